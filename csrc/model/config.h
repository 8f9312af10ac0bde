// csrc/model/config.h
// What a checkpoint says about its network, in one form for every family and file kind.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_CONFIG_H_
#define HALFBYTE_MODEL_CONFIG_H_

#include <stddef.h>

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
  // The layer whose keys and values this one attends to: itself, unless shared.
  size_t kv_source;
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
