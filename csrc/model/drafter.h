// csrc/model/drafter.h
// Google's drafters for Gemma 4: networks of four layers without keys of their own,
// which guess what follows from the last hidden state of the model they were made for,
// and from the keys and values that it holds: Gemma4AssistantForCausalLM of
// transformers. Sliding layers see the model's window, a key less than there.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_DRAFTER_H_
#define HALFBYTE_MODEL_DRAFTER_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <span>
#include <vector>

#include "base/view.h"
#include "model/forward.h"
#include "model/model.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

// Used by one thread at a time.
class Drafter {
 public:
  // Throws Error(kModel), MODEL_DRAFTER, unless `model` was made for models as
  // `target`.
  Drafter(std::shared_ptr<const Model> model, const Model& target);

  const std::shared_ptr<const Model>& model() const { return model_; }

  // `count` tokens that may follow `id`, each the likeliest behind the one before.
  // `position`, above 0: of `id`, whose keys are not in `kv` yet. `hidden`: the
  // target's row behind its final norm that `id` was chosen from.
  std::vector<int32_t> Draft(const Context& context, const Model& target, KvLayers& kv,
                             Workspace& workspace, std::span<const float> hidden,
                             int32_t id, size_t position, size_t count);

 private:
  int32_t Likeliest(const Context& context, Mat<const float> y);
  int32_t LikeliestInClusters(const Context& context, Mat<const float> y);

  std::shared_ptr<const Model> model_;
  std::vector<size_t> sources_;  // by layer, the target's whose keys it attends to
  Workspace workspace_;
  Buffer in_, y_, scores_, logits_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_DRAFTER_H_
