// csrc/model/session.h
// One sequence of tokens running through a model: its keys and values, and the pass.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_SESSION_H_
#define HALFBYTE_MODEL_SESSION_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <span>
#include <vector>

#include "base/view.h"
#include "kv/layer.h"
#include "model/forward.h"
#include "model/model.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

// Used by one thread at a time.
class Session {
 public:
  explicit Session(std::shared_ptr<const Model> model);
  Session(const Session& other);  // the same tokens; keys and values are copied

  const Model& model() const { return *model_; }
  // Tokens whose keys and values are held.
  const std::vector<int32_t>& tokens() const { return tokens_; }

  // Throws TOK_ID_RANGE or CONTEXT_OVERFLOW if `ids` cannot be appended.
  void Check(std::span<const int32_t> ids) const;

  // Appends `ids` to the sequence; the last logits.rows of them get logits. Throws as
  // Check does, before anything is computed. If the context's poll throws, the sequence
  // ends after the last chunk that was finished.
  void Run(const Context& context, std::span<const int32_t> ids, Mat<float> logits);

  // Cuts the sequence to at most `length` tokens. Sliding layers remember only so much:
  // where too little is left to go on from there, the sequence becomes empty. Returns
  // what its length is now.
  size_t Truncate(size_t length);

  uint64_t kv_bytes() const;  // allocated

 private:
  std::shared_ptr<const Model> model_;
  std::vector<int32_t> tokens_;
  KvLayers kv_;
  Workspace workspace_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_SESSION_H_
