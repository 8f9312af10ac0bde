// csrc/model/model.h
// A checkpoint, loaded: its network, its weights where the files map them, its
// tokenizer. Immutable, so any number of sessions and threads share one.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_MODEL_H_
#define HALFBYTE_MODEL_MODEL_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/gguf.h"
#include "io/mmap.h"
#include "kv/layer.h"
#include "model/config.h"
#include "model/tokenizer.h"
#include "model/weights.h"
#include "ops/linear.h"
#include "ops/rowwise.h"

namespace halfbyte {

struct ModelOptions {
  size_t context = 0;  // positions of a session; 0: what the model was made for
  KvType kv = KvType::kF32;
  ActivationMode activations = ActivationMode::kAuto;
};

// How many tensors, and how many bytes, the text model has of one type.
struct TypeUse {
  std::string type;
  size_t tensors = 0;
  uint64_t bytes = 0;
};

class Model {
 public:
  // Positions one pass over the network takes: prompts are cut into such chunks.
  static constexpr size_t kChunk = 256;

  // `path`: a GGUF file (any shard), or a directory in the Hugging Face layout
  // (config.json, *.safetensors, and tokenizer.json if there is one). Throws Error;
  // kOutOfMemory if the weights that every token reads exceed the machine's memory.
  static std::shared_ptr<const Model> Load(const std::string& path,
                                           const ModelOptions& options);

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  const ModelOptions& options() const { return options_; }
  const Tokenizer* tokenizer() const { return tokenizer_ ? &*tokenizer_ : nullptr; }
  // As the files have it; "" if they have none. Data: shown, never rendered.
  const std::string& chat_template() const { return chat_template_; }
  // Sampling settings a file recommends, by GGUF's names: "temp", "top_k", "top_p".
  const std::vector<std::pair<std::string, double>>& sampling() const {
    return sampling_;
  }
  const std::vector<TypeUse>& types() const { return types_; }
  uint64_t file_bytes() const;
  // Weights that decoding one token reads.
  uint64_t bytes_per_token() const;
  // Keys and values of `positions` positions of one session.
  uint64_t KvBytes(size_t positions) const;

  KvLayerShape KvShape(size_t layer) const;
  const RopeTable& rope(bool sliding) const {
    return sliding ? rope_sliding_ : rope_full_;
  }
  // Ids that are never sampled: media tokens mean nothing to a model of text.
  const std::vector<int32_t>& suppressed() const { return suppressed_; }

  // Throws Error(kFileChanged) if a mapped file was changed in place.
  void CheckFiles() const;

 private:
  Model() = default;
  void LoadGguf(const std::string& path);
  void LoadDirectory(const std::string& dir);
  void Finish(const std::vector<TensorView>& tensors, TensorNames names);
  void MakeRope();
  void CheckMemory() const;
  void FindSuppressed();

  ModelOptions options_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
  ModelConfig config_{};
  ModelWeights weights_;
  std::optional<Tokenizer> tokenizer_;
  std::string chat_template_;
  std::vector<std::pair<std::string, double>> sampling_;
  std::vector<TypeUse> types_;
  std::vector<int32_t> suppressed_;
  RopeTable rope_sliding_, rope_full_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_MODEL_H_
