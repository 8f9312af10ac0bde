// csrc/model/config.h
// What a checkpoint says about its network, in one form for every family and file kind.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_CONFIG_H_
#define HALFBYTE_MODEL_CONFIG_H_

#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace halfbyte {

struct GgufFile;
class JsonValue;

// What sets a family apart from the others: a row of the table in config.cc.
struct Family {
  const char* name;        // "gemma4", also the architecture key of its GGUF files
  bool value_norm;         // values get an RMS norm without weight
  bool layer_scale;        // a number multiplies the stream after each layer
  bool norms_minus_one;    // safetensors hold norm weights less 1 (GGUF never does)
  double default_softcap;  // of the logits where a GGUF names none; 0: none
  size_t pattern_period;   // every so many-th layer is full where a file has no pattern
  double full_rotary;      // share of a full layer's head that RoPE turns
};

struct LayerConfig {
  bool sliding;
  size_t head_dim, num_kv_heads;
  size_t ffn_len;
  // The layer whose keys and values this one attends to: itself, unless shared. A
  // drafter's layers attend to another model's.
  size_t kv_source;
};

inline constexpr size_t kElsewhere = SIZE_MAX;

// A GGUF file's names of a drafter's last matrix, without ".weight": llama.cpp's, those
// that it had before, ik_llama.cpp's.
inline constexpr const char* kGgufDrafterOut[] = {
    "nextn.post_projection", "mtp.post_projection", "mtp_post_proj"};

// What a drafter takes from the model that it drafts for, and how it reads its head.
struct DrafterConfig {
  size_t backbone_size = 0;  // hidden_size of that model; 0: this is no drafter
  // Clusters of the head's rows, and how many of them are looked through; 0: all rows.
  size_t num_clusters = 0, num_clusters_used = 0;
};

struct ModelConfig {
  const Family* family;
  size_t vocab_size, hidden_size, num_heads;
  size_t context_length;  // positions the model was made for
  size_t sliding_window;
  float norm_eps;
  float softcap;  // 0: none
  double rope_base_sliding, rope_base_full;
  double rope_factor_full;  // divides the frequencies of full layers
  float attention_scale;
  size_t ple_len;          // per-layer embedding; 0: none
  bool full_value_is_key;  // full layers have no value matrix
  size_t num_experts, num_experts_used, expert_ffn_len;  // 0: dense
  bool untied_head;  // config.json says that a head beside the embedding is no copy
  std::vector<LayerConfig> layers;
  DrafterConfig drafter;

  bool IsDrafter() const { return drafter.backbone_size != 0; }
  bool OwnsKv(size_t layer) const { return layers[layer].kv_source == layer; }
  // Layers from here on have no keys and values of their own.
  size_t FirstSharedLayer() const;
};

// Both throw Error(kModel, MODEL_HPARAM) naming the key, or kUnsupported for an
// architecture that is not in the table.
ModelConfig ConfigFromGguf(const GgufFile& file);
// `root` is config.json: of the text model, or with a text_config in it.
ModelConfig ConfigFromJson(const JsonValue& root);

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_CONFIG_H_
