// csrc/model/model.h
// A checkpoint, loaded: its network, its weights where the files map them, its
// tokenizer. Immutable, so any number of sessions and threads share one.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_MODEL_H_
#define HALFBYTE_MODEL_MODEL_H_

#include <stddef.h>
#include <stdint.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/limits.h"
#include "io/mmap.h"
#include "io/tensor.h"
#include "kv/layer.h"
#include "model/config.h"
#include "model/table_rows.h"
#include "model/weights.h"
#include "ops/linear.h"
#include "ops/rowwise.h"
#include "runtime/pages.h"
#include "runtime/thread_pool.h"
#include "text/tokenizer.h"

namespace halfbyte {

// Whether weights are copied at load into the order in which products read them.
// Without it every product reorders as it goes: less memory, slower decoding.
enum class Repack {
  kAuto,  // if the memory that is free holds them with a fifth to spare
  kAlways,
  kNever,
};

// What becomes of the steps that a checkpoint was trained to round activations with.
enum class TrainedSteps {
  kUse,      // where there are some
  kRequire,  // and refuse a checkpoint without
  kDrop,     // as if it had none: other arithmetic than it was trained for
};

// Called with bytes so far and in all: of each file that is copied, then of the weights
// that are repacked.
using LoadProgress = std::function<void(uint64_t done, uint64_t total)>;

struct ModelOptions {
  size_t context = 0;  // positions of a session; 0: what the model was made for
  KvType kv = KvType::kF32;
  ActivationMode activations = ActivationMode::kAuto;
  TrainedSteps steps = TrainedSteps::kUse;
  Repack repack = Repack::kAuto;
  LoadMode load = LoadMode::kMap;
  FileLimits limits;
  // Whether it will run: its weights then have to fit into the machine's memory.
  bool runs = true;
  // Round float matrices to this format as they are repacked; refuse a model that has
  // none, if it must.
  std::optional<Format> quantize;
  bool must_quantize = true;
  // Whether a drafter is expected, or a model that answers by itself.
  bool drafter = false;
};

// How many tensors, and how many bytes, the files have of one type.
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
  // (config.json, *.safetensors, and tokenizer.json if there is one), or one of its
  // safetensors files: that one, or all shards of the index that names it. Throws
  // Error; kOutOfMemory if the weights that every token reads exceed the machine's
  // memory.
  static std::shared_ptr<const Model> Load(const Context& context,
                                           const std::string& path,
                                           const ModelOptions& options,
                                           const LoadProgress& progress);

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
  // True if products round by the checkpoint's own steps.
  bool has_steps() const { return has_steps_; }
  // Of the first of its files.
  const std::string& path() const { return files_.front()->path(); }
  // Float matrices that are rounded to ModelOptions::quantize.
  size_t num_quantized() const { return num_quantized_; }
  uint64_t file_bytes() const;
  // Weights that were repacked; 0 if they are used where the file maps them.
  uint64_t repacked_bytes() const { return panels_.bytes(); }
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

  // Copies `part` of a weight or of its scales, out of the file if it lies in one (see
  // MappedFile::Read).
  void Read(std::span<const uint8_t> part, uint8_t* to) const;

  // Throws Error(kFileChanged) if a mapped file was changed in place.
  void CheckFiles() const;

 private:
  Model() = default;
  void LoadGguf(const std::string& path, const Reading& reading);
  // `weights`: what OpenSafetensors takes; the other files lie in `root`.
  void LoadDirectory(const std::filesystem::path& root, const std::string& weights,
                     const Reading& reading);
  void Finish(const std::vector<TensorView>& tensors, TensorNames names,
              const Quantization& quantization);
  void CheckKind() const;
  void OrderHead();
  void DropOrderedRows();
  void ChooseSteps();
  void ChooseContext();
  void QuantizeFloats();
  void MakeRope();
  void CheckMemory() const;
  template <class F>
  void ForEachPart(const WeightView& view, const F& f) const;
  void RepackWeights(const Context& context, const LoadProgress& progress);
  // Null if none maps it.
  const MappedFile* FileOf(const uint8_t* address) const;
  // The name of the tensor that a file has there; "" if none.
  std::string_view TensorAt(const uint8_t* address) const;
  void Forget(const WeightView& w) const;
  void ForgetFiles() const;
  void FindSuppressed();

  ModelOptions options_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
  std::vector<TensorView> tensors_;
  ModelConfig config_{};
  ModelWeights weights_;
  PageBuffer panels_;
  TableRows ordered_head_;
  std::optional<Tokenizer> tokenizer_;
  std::string chat_template_;
  std::vector<std::pair<std::string, double>> sampling_;
  std::vector<TypeUse> types_;
  std::vector<int32_t> suppressed_;
  bool has_steps_ = false;
  size_t num_quantized_ = 0;
  RopeTable rope_sliding_, rope_full_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_MODEL_H_
