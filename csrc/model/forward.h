// csrc/model/forward.h
// The pass of a few tokens through the network.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_FORWARD_H_
#define HALFBYTE_MODEL_FORWARD_H_

#include <stddef.h>
#include <stdint.h>

#include <optional>
#include <span>
#include <vector>

#include "base/view.h"
#include "kv/layer.h"
#include "model/model.h"
#include "model/table_rows.h"
#include "runtime/pages.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

// By layer; none for those that share another layer's.
using KvLayers = std::vector<std::optional<KvLayer>>;

KvLayers MakeKv(const Model& model);

// Memory for intermediate results, kept from pass to pass. Of its own: what is let go
// of goes back to the system, not into a heap with holes.
class Buffer {
 public:
  // The content is what was there before: write before you read.
  Mat<float> Shape(size_t rows, size_t cols) {
    const size_t bytes = rows * cols * sizeof(float);
    if (memory_.bytes() < bytes) memory_ = PageBuffer(bytes);
    return Mat<float>(reinterpret_cast<float*>(memory_.data()), rows, cols);
  }

 private:
  PageBuffer memory_;
};

struct Workspace {
  Buffer stream, norm, k, v, branch, ple, ple_rows;
  // Attention's queries, then gate; what it mixes, then up.
  Buffer wide, wide_too;
  Buffer router, routed, expert_in, expert_out, head;
  TableRows table_rows;
  size_t most_tokens = 0;  // that a pass had since all of this was empty

  // Lets go of what a prompt needed once single tokens follow it: 28 MB of E2B's.
  void FitTo(size_t num_tokens);
};

// By layer of a model, where the keys and values lie that it attends to.
using KvSources = std::vector<KvLayer*>;

KvSources SourcesOf(const Model& model, KvLayers& kv);

// A sequence that a pass runs tokens of, the first of them at `position`.
struct PassSequence {
  KvSources kv;
  size_t position;
};

// `scaled` row i = the embedding of ids[i], as the first layer gets it.
void EmbedTokens(const Context& context, const Model& model, Workspace& workspace,
                 std::span<const int32_t> ids, Mat<float> scaled);

// Runs `ids` (at most Model::kChunk): as many of each sequence, one sequence after
// another. Their keys and values are added to its own; the last logits.rows of a single
// sequence get logits, or all of several.
void RunChunk(const Context& context, const Model& model,
              std::span<const PassSequence> sequences, Workspace& workspace,
              std::span<const int32_t> ids, Mat<float> logits);

// Runs one row of a drafter's inputs, [1, 2 x backbone], at `position`, which is just
// behind the keys that `sources` have for it, through its layers. `y`: [1, hidden],
// after the final norm. `workspace`: the drafter's own.
void RunDraft(const Context& context, const Model& drafter, const KvSources& sources,
              Workspace& workspace, size_t position, Mat<const float> x, Mat<float> y);

// The stages of RunChunk one at a time, for those who compare them with somebody
// else's. Rows of `h`, hidden_size wide, are the positions from 0 on.
class Stages {
 public:
  Stages(const Context& context, const Model& model, KvLayers& kv,
         Workspace& workspace);

  // The stream before the first layer, and what the layers add for the tokens
  // themselves: [ids, layers x ple_len], not written if the model has no such thing.
  void Inputs(std::span<const int32_t> ids, Mat<float> h, Mat<float> ple) const;
  // `ple`: [h.rows, ple_len], the layer's part. A layer without keys of its own reads
  // those that its source wrote.
  void Layer(size_t layer, Mat<const float> ple, Mat<float> h) const;
  void Head(Mat<const float> h, Mat<float> logits) const;

 private:
  const Context& context_;
  const Model& model_;
  const PassSequence sequence_;
  Workspace& workspace_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_FORWARD_H_
