// csrc/model/weights.h
// A checkpoint's tensors in their places in the network.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_WEIGHTS_H_
#define HALFBYTE_MODEL_WEIGHTS_H_

#include <stddef.h>

#include <span>
#include <string>
#include <vector>

#include "io/tensor.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/quantization.h"
#include "ops/linear.h"

namespace halfbyte {

struct MoeWeights {
  WeightView router;    // [experts, hidden]
  Vector router_scale;  // [hidden]
  Vector expert_scale;  // [experts]
  WeightView gate_up;   // [experts x 2 ffn, hidden], gate first; or the next two
  WeightView gate, up;  // [experts x ffn, hidden] each
  WeightView down;      // [experts x hidden, ffn]
  Vector pre_norm, dense_post_norm, post_norm;  // [hidden]

  WeightView Gate(size_t expert, size_t ffn_len) const;
  WeightView Up(size_t expert, size_t ffn_len) const;
};

struct LayerWeights {
  Vector attn_norm, post_attn_norm, ffn_norm, post_ffn_norm;  // [hidden]
  WeightView q, k, v, o;  // k, v: owning layers; v also missing where it is k
  Vector q_norm, k_norm;  // [head_dim]
  WeightView gate, up, down;
  float scale = 1.0f;
  // Steps of the cache's codes that the checkpoint was trained with; 0: none. Owning
  // layers only.
  float k_cache_step = 0.0f, v_cache_step = 0.0f;
  // Per-layer embedding: [ple, hidden], [hidden, ple], [hidden]
  WeightView ple_gate, ple_proj;
  Vector ple_norm;
  MoeWeights moe;
};

// Calls f(view) for the matrices of all experts that are there.
template <class Moe, class F>
void ForEachExpertMatrix(Moe& w, const F& f) {
  for (auto* view : {&w.gate_up, &w.gate, &w.up, &w.down}) {
    if (view->data != nullptr) f(*view);
  }
}

// Calls f(view) for every matrix of a layer that is there, the experts' last.
template <class Layer, class F>
requires requires(Layer& w) { w.moe; }
void ForEachMatrix(Layer& w, const F& f) {
  for (auto* view : {&w.q, &w.k, &w.v, &w.o, &w.gate, &w.up, &w.down, &w.ple_gate,
                     &w.ple_proj, &w.moe.router}) {
    if (view->data != nullptr) f(*view);
  }
  ForEachExpertMatrix(w.moe, f);
}

// What a drafter has beside a network's.
struct DrafterWeights {
  WeightView in;         // [hidden, 2 x backbone]
  WeightView out;        // [backbone, hidden]
  WeightView centroids;  // [clusters, hidden]; missing where all of the head is read
  // With centroids: the tokens of the clusters, one cluster after the other, [vocab].
  std::vector<int32_t> order;
};

struct ModelWeights {
  WeightView embedding;       // [vocab, hidden]
  WeightView head;            // the same, unless the file has its own
  bool own_head = false;      // it has
  Vector norm;                // [hidden]
  WeightView ple_table;       // [vocab, layers x ple], or [vocab x layers, ple]
  WeightView ple_model_proj;  // [layers x ple, hidden]
  Vector ple_proj_norm;       // [ple]
  // Divisors of the full layers' RoPE frequencies; empty: by the family's rule.
  Vector rope_freqs;
  std::vector<LayerWeights> layers;
  DrafterWeights drafter;
  std::vector<Vector> scales;       // what the views' row_scale point to
  std::vector<std::string> unread;  // tensors that the network has no place for
};

// Calls f(view) for every matrix that products read: not for the embeddings, of which
// rows are gathered, but where the head is the embedding.
template <class Weights, class F>
requires requires(Weights& w) { w.layers; }
void ForEachMatrix(Weights& w, const F& f) {
  if (w.ple_model_proj.data != nullptr) f(w.ple_model_proj);
  for (auto& layer : w.layers) ForEachMatrix(layer, f);
  for (auto* view : {&w.drafter.in, &w.drafter.out, &w.drafter.centroids}) {
    if (view->data != nullptr) f(*view);
  }
  f(w.head);
}

enum class TensorNames { kGguf, kHuggingFace };

// Finds every tensor that `config` asks for. Throws one Error(kModel) that lists up to
// ten missing or misshapen tensors. The views point where the tensors do.
ModelWeights LoadWeights(const ModelConfig& config, std::span<const TensorView> tensors,
                         TensorNames names, const Quantization& quantization);

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_WEIGHTS_H_
