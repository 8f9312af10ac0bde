// csrc/model/model.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/model.h"

#include <stdio.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <string_view>
#include <system_error>

#include "base/error.h"
#include "io/gguf.h"
#include "io/json.h"
#include "io/limits.h"
#include "io/safetensors.h"
#include "kernels/format_kernels.h"
#include "runtime/topology.h"

namespace halfbyte {
namespace {

namespace fs = std::filesystem;

std::string GiB(uint64_t bytes) {
  char text[32];
  snprintf(text, sizeof(text), "%.1f GiB", static_cast<double>(bytes) / (1u << 30));
  return text;
}

// A link that leads nowhere is there: opening it says what is the matter with it.
bool IsThere(const fs::path& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() != fs::file_type::not_found;
}

std::optional<JsonDocument> ReadIfThere(const fs::path& path) {
  if (!IsThere(path)) return std::nullopt;
  return ReadJsonFile(path.string());
}

// The text of a file; "" if there is none.
std::string TextIfThere(const fs::path& path) {
  if (!IsThere(path)) return {};
  const auto file = MappedFile::Open(path.string());
  const auto bytes = file->bytes();
  if (bytes.size() > kMaxTemplateBytes) {
    ErrorInfo info;
    info.path = path.string();
    info.kind = "model";
    info.code = "MODEL_TEMPLATE";
    info.found = std::to_string(bytes.size()) + " bytes";
    info.expected = "at most " + std::to_string(kMaxTemplateBytes);
    throw Error(ErrorClass::kLimit, std::move(info));
  }
  return {bytes.begin(), bytes.end()};
}

// An option asks for what the checkpoint does not have.
[[noreturn]] void FailOption(const char* code, const char* subject, const char* found,
                             const char* expected, const char* hint) {
  ErrorInfo info;
  info.kind = "model";
  info.code = code;
  info.subject = subject;
  info.found = found;
  info.expected = expected;
  info.hint = hint;
  throw Error(ErrorClass::kModel, std::move(info));
}

// f(), whose errors name `path` unless they name another file.
template <class F>
auto Naming(const std::string& path, const F& f) {
  try {
    return f();
  } catch (const Error& e) {
    if (!e.info().path.empty()) throw;
    throw e.WithPath(path);
  }
}

[[noreturn]] void FailRopeFreqs(const char* code, std::string found,
                                std::string expected) {
  ErrorInfo info;
  info.kind = "model";
  info.code = code;
  info.tensor = "rope_freqs.weight";
  info.subject = "tensor 'rope_freqs.weight'";
  info.found = std::move(found);
  info.expected = std::move(expected);
  throw Error(ErrorClass::kModel, std::move(info));
}

std::vector<TypeUse> CountTypes(const std::vector<TensorView>& tensors) {
  std::vector<TypeUse> types;  // in the order of the file
  for (const TensorView& tensor : tensors) {
    auto it = std::ranges::find(types, tensor.type, &TypeUse::type);
    if (it == types.end()) it = types.insert(it, {.type = tensor.type});
    ++it->tensors;
    it->bytes += tensor.bytes;
  }
  return types;
}

// Bytes of a layer's matrices, `experts_used` of its experts among them.
uint64_t LayerBytes(const LayerWeights& w, const ModelConfig& c, size_t experts_used) {
  uint64_t bytes = 0, experts = 0;
  ForEachMatrix(w, [&](const WeightView& view) { bytes += view.bytes(); });
  if (c.num_experts == 0) return bytes;
  ForEachExpertMatrix(w.moe, [&](const WeightView& view) { experts += view.bytes(); });
  return bytes - experts + experts / c.num_experts * experts_used;
}

}  // namespace

std::shared_ptr<const Model> Model::Load(const Context& context,
                                         const std::string& path,
                                         const ModelOptions& options,
                                         const LoadProgress& progress) {
  std::shared_ptr<Model> model(new Model);
  model->options_ = options;
  const uint64_t memory = TotalMemory().bytes;
  const Reading reading = {.mode = options.load,
                           .most_bytes = memory != 0 ? memory : UINT64_MAX,
                           .progress = [&](uint64_t done, uint64_t total) {
                             if (context.poll) context.poll();
                             if (progress) progress(done, total);
                           }};
  std::error_code ignored;  // whoever opens the file says what is the matter with it
  Naming(path, [&] {
    if (fs::is_directory(path, ignored)) {
      model->LoadDirectory(path, path, reading);
    } else if (const fs::path p = path; p.extension() == ".safetensors") {
      MappedFile::Open(path);  // what lies beside it says nothing of a misspelt name
      model->LoadDirectory(p.parent_path(), WholeOf(path), reading);
    } else {
      model->LoadGguf(path, reading);
    }
  });
  model->ForgetFiles();  // all scales have been checked, and most were copied
  model->RepackWeights(context, progress);
  model->DropOrderedRows();
  model->ForgetFiles();
  return model;
}

void Model::LoadGguf(const std::string& path, const Reading& reading) {
  const GgufFile file = OpenGguf(path, options_.limits.gguf, reading);
  files_ = file.files;
  // Of several files the one with the metadata.
  config_ = Naming(file.metadata.path(), [&] { return ConfigFromGguf(file); });
  Finish(file.tensors, TensorNames::kGguf, {});
  if (file.metadata.Has("tokenizer.ggml.tokens")) {
    tokenizer_ = Tokenizer::FromGguf(file);
    chat_template_ = tokenizer_->chat_template();
  }
  for (const char* name : {"temp", "top_k", "top_p"}) {
    const std::string key = std::string("general.sampling.") + name;
    if (!file.metadata.Has(key)) continue;
    // Written as an integer or a float, as it came.
    const GgufType type = file.metadata.Find(key)->type;
    const bool real = type == GgufType::kF32 || type == GgufType::kF64;
    sampling_.emplace_back(name, real ? double{file.metadata.GetF32(key)}
                                      : static_cast<double>(file.metadata.GetI64(key)));
  }
  FindSuppressed();
}

void Model::LoadDirectory(const fs::path& root, const std::string& weights,
                          const Reading& reading) {
  const JsonDocument config = ReadJsonFile((root / "config.json").string());
  const Quantization quantization = Naming(config.root().path(), [&] {
    config_ = ConfigFromJson(config.root());
    return QuantizationFromJson(config.root());
  });
  const SafetensorsFile file =
      OpenSafetensors(weights, options_.limits.safetensors, reading);
  files_ = file.files;
  Finish(file.tensors, TensorNames::kHuggingFace, quantization);
  const auto generation = ReadIfThere(root / "generation_config.json");
  if (const auto tokenizer = ReadIfThere(root / "tokenizer.json")) {
    const auto tokenizer_config = ReadIfThere(root / "tokenizer_config.json");
    const auto value = [](const std::optional<JsonDocument>& d) {
      return d ? std::optional(d->root()) : std::nullopt;
    };
    const auto a = value(tokenizer_config), b = value(generation);
    tokenizer_ = Naming(tokenizer->root().path(), [&] {
      return Tokenizer::FromJson(tokenizer->root(), a ? &*a : nullptr,
                                 b ? &*b : nullptr);
    });
    chat_template_ = tokenizer_->chat_template();
    if (chat_template_.empty()) {
      chat_template_ = TextIfThere(root / "chat_template.jinja");
    }
  }
  constexpr std::pair<const char*, const char*> kSampling[] = {
      {"temperature", "temp"}, {"top_k", "top_k"}, {"top_p", "top_p"}};
  for (const auto& [key, name] : kSampling) {
    const auto v = generation ? generation->root().Find(key) : std::nullopt;
    if (v && v->IsNumber()) sampling_.emplace_back(name, v->AsDouble());
  }
  FindSuppressed();
}

void Model::Finish(const std::vector<TensorView>& tensors, TensorNames names,
                   const Quantization& quantization) {
  CheckKind();
  tensors_ = tensors;
  weights_ = LoadWeights(config_, tensors, names, quantization);
  if (!weights_.drafter.order.empty()) OrderHead();
  ChooseSteps();
  if (options_.quantize) QuantizeFloats();
  ChooseContext();
  types_ = CountTypes(tensors);
  MakeRope();
  if (options_.runs) CheckMemory();
}

void Model::CheckKind() const {
  constexpr const char *kWhole = "a model that answers by itself", *kPart = "a drafter";
  if (config_.IsDrafter() == options_.drafter) return;
  ErrorInfo info;
  info.kind = "model";
  info.code = "MODEL_KIND";
  info.subject = "architecture";
  info.found = config_.IsDrafter() ? kPart : kWhole;
  info.expected = options_.drafter ? kPart : kWhole;
  info.hint = options_.drafter ? "load it by itself"
                               : "give it as drafter of the model it was made for";
  throw Error(ErrorClass::kUnsupported, std::move(info));
}

// A drafter reads some clusters of its head: copied so that each lies together.
void Model::OrderHead() {
  weights_.head = ordered_head_.Copy(*this, weights_.head, weights_.drafter.order);
}

// Panels are all that is read of whole clusters: the rows would be 134 MB of E2B's.
void Model::DropOrderedRows() {
  const size_t clusters = config_.drafter.num_clusters;
  if (clusters == 0 || weights_.head.panels == nullptr) return;
  if (weights_.head.N / clusters % kPanelRows != 0) return;
  ordered_head_.DropPacked();
  weights_.head.data = weights_.embedding.data;  // something that is there
}

void Model::ChooseContext() {
  if (options_.context == 0) options_.context = config_.context_length;
  if (options_.context <= config_.context_length) return;
  throw Error(ErrorClass::kValue, "context: " + std::to_string(options_.context) +
                                      " positions asked, the model was made for " +
                                      std::to_string(config_.context_length));
}

void Model::ChooseSteps() {
  const bool drop = options_.steps == TrainedSteps::kDrop ||
                    options_.activations == ActivationMode::kF32;
  ForEachMatrix(weights_, [&](WeightView& w) {
    if (drop) w.x_step = w.y_step = 0.0f;
    has_steps_ = has_steps_ || w.x_step != 0.0f || w.y_step != 0.0f;
  });
  if (has_steps_ || options_.steps != TrainedSteps::kRequire) return;
  FailOption("MODEL_STEPS", "steps of activations", "none",
             "those that activations=static rounds by", "load with activations=auto");
}

// Marks float matrices to be rounded when they are packed: a panel at a time, from the
// mapped file. Embeddings are gathered by rows and stay there. So do what chooses
// experts or clusters, whose mistakes are not averaged away, the projection that makes
// per-layer embeddings, which official files keep in 16 bits, and rows of no whole
// number of blocks.
void Model::QuantizeFloats() {
  const size_t block_len = InfoOf(*options_.quantize).block_len;
  std::set<const WeightView*> kept = {&weights_.ple_model_proj,
                                      &weights_.drafter.centroids};
  for (const LayerWeights& layer : weights_.layers) kept.insert(&layer.moe.router);
  ForEachMatrix(weights_, [&](WeightView& w) {
    if (kept.contains(&w)) return;
    if (InfoOf(w.format).block_len != 1 || w.K % block_len != 0) return;
    w.stored = Stored::kFloats;
    w.floats = w.format;
    w.format = *options_.quantize;
    ++num_quantized_;
  });
  if (num_quantized_ != 0 || !options_.must_quantize) return;
  FailOption("MODEL_QUANTIZE", "matrices", "none in F32, F16 or BF16",
             "some that quantize can round", "load without quantize");
}

void Model::MakeRope() {
  size_t full_dim = 0, sliding_dim = 0;
  for (const LayerConfig& layer : config_.layers) {
    (layer.sliding ? sliding_dim : full_dim) = layer.head_dim;
  }
  rope_sliding_ =
      RopeTable::Make(sliding_dim, sliding_dim / 2, config_.rope_base_sliding, 1.0);
  const auto rotary = static_cast<size_t>(config_.family->full_rotary *
                                          static_cast<double>(full_dim) / 2.0);
  rope_full_ = RopeTable::Make(full_dim, full_dim / 2, config_.rope_base_full,
                               config_.rope_factor_full);
  const Vector& freqs = weights_.rope_freqs;
  if (freqs.empty()) {
    rope_full_.inv_freq.resize(rotary);
    return;
  }
  if (freqs.size() != full_dim / 2) {
    FailRopeFreqs("MODEL_SHAPE", std::to_string(freqs.size()) + " values",
                  std::to_string(full_dim / 2));
  }
  // 1e30 stops a pair: the angle is below any float's resolution at every position.
  constexpr float kStopped = 1e20f;
  size_t pairs = 0;
  for (size_t i = 0; i < freqs.size(); ++i) {
    if (!(freqs[i] > 0.0f)) {
      FailRopeFreqs(
          "MODEL_ROPE",
          "value " + std::to_string(freqs[i]) + " of pair " + std::to_string(i),
          "numbers above 0");
    }
    rope_full_.inv_freq[i] /= static_cast<double>(freqs[i]);
    if (freqs[i] < kStopped) pairs = i + 1;
  }
  rope_full_.inv_freq.resize(pairs);
}

void Model::CheckMemory() const {
  const MemoryBudget memory = TotalMemory();
  uint64_t need = KvBytes(kChunk);
  // Every expert: which ones are used changes from token to token.
  ForEachMatrix(weights_, [&](const WeightView& w) { need += w.bytes(); });
  if (memory.bytes == 0 || need <= memory.bytes) return;
  ErrorInfo info;
  info.kind = "model";
  info.code = "MODEL_MEMORY";
  info.subject = "memory";
  info.found = GiB(need) + " needed in memory at once, " + GiB(memory.bytes) +
               " there (" + memory.reason + ")";
  info.expected = "a machine or a limit larger than that";
  info.hint = "take a smaller model, or fewer bits: quantize=\"q4_0\" for a float one";
  info.requested_bytes = need;
  throw Error(ErrorClass::kOutOfMemory, std::move(info));
}

// f(rows) for some rows of `view` after the other. What the file's pages took is let go
// of after each: the peak is what f makes of the weights and a little more. Errors
// about a row say where it is, in which tensor of which file.
template <class F>
void Model::ForEachPart(const WeightView& view, const F& f) const {
  constexpr size_t kStepBytes = 32u << 20;
  const size_t step =
      std::max<size_t>(kStepBytes / view.stored_row_bytes() / 32 * 32, 32);
  for (size_t row = 0; row < view.N; row += step) {
    const WeightView rows = view.Rows(row, std::min(step, view.N - row));
    try {
      f(rows);
    } catch (const Error& e) {
      const MappedFile* file = FileOf(rows.data);
      if (!e.info().offset) throw;
      ErrorInfo info = e.info();
      if (file == nullptr) {  // rows that were put into another order
        info.path = path();
        info.subject = "the head";
        info.offset.reset();
        throw Error(e.cls(), std::move(info));
      }
      info.path = file->path();
      info.tensor = Escape(TensorAt(rows.data));
      info.subject = "tensor '" + info.tensor + "'";
      *info.offset += static_cast<uint64_t>(rows.data - file->bytes().data());
      info.hint = "load it without quantize";
      throw Error(e.cls(), std::move(info));
    }
    Forget(rows);
  }
}

void Model::RepackWeights(const Context& context, const LoadProgress& progress) {
  if (options_.repack == Repack::kNever) return;
  if (options_.activations == ActivationMode::kF32) {
    // Products decode the rows as they are stored, or round them as they go.
    ForEachMatrix(weights_, [&](const WeightView& view) {
      if (view.stored != Stored::kFloats) return;
      ForEachPart(view, [&](const WeightView& rows) { CheckFinite(context, rows); });
    });
    return;
  }
  std::vector<WeightView*> views;
  uint64_t bytes = 0;
  ForEachMatrix(weights_, [&](WeightView& view) {
    if (view.packed_bytes() == 0) return;
    views.push_back(&view);
    bytes += view.packed_bytes();
  });
  // Weights that are rounded as they are packed would be rounded in every product.
  const bool may_leave = options_.repack == Repack::kAuto && !options_.quantize;
  if (may_leave && !MemoryHolds(bytes)) return;
  panels_ = PageBuffer(bytes);
  uint8_t* panels = panels_.data();
  for (WeightView* view : views) {
    view->panels = panels;
    ForEachPart(*view, [&](const WeightView& rows) {
      PackPanels(context, rows, panels);
      panels += rows.packed_bytes();
      if (progress) progress(static_cast<uint64_t>(panels - panels_.data()), bytes);
    });
  }
}

std::string_view Model::TensorAt(const uint8_t* address) const {
  for (const TensorView& tensor : tensors_) {
    if (address >= tensor.data && address < tensor.data + tensor.bytes) {
      return tensor.name;
    }
  }
  return {};
}

const MappedFile* Model::FileOf(const uint8_t* address) const {
  const auto maps = [address](const auto& file) {
    const uint8_t* begin = file->bytes().data();
    return address >= begin && address < begin + file->bytes().size();
  };
  const auto it = std::find_if(files_.begin(), files_.end(), maps);
  return it == files_.end() ? nullptr : it->get();
}

void Model::Forget(const WeightView& w) const {
  const MappedFile* file = FileOf(w.data);
  if (file != nullptr) file->Forget({w.data, w.N * w.stored_row_bytes()});
}

void Model::ForgetFiles() const {
  for (const auto& file : files_) file->Forget(file->bytes());
}

void Model::FindSuppressed() {
  if (!tokenizer_) return;
  suppressed_ = tokenizer_->suppress();
  for (const char* text : {"<|image>", "<image|>", "<|audio>", "<audio|>", "<|image|>",
                           "<|audio|>", "<|video|>"}) {
    const int32_t id = tokenizer_->FindToken(text);
    if (id >= 0 && tokenizer_->IsControl(id)) suppressed_.push_back(id);
  }
  // The network may have more outputs than the tokenizer has ids, or fewer.
  for (size_t id = tokenizer_->num_tokens(); id < config_.vocab_size; ++id) {
    suppressed_.push_back(static_cast<int32_t>(id));
  }
  std::erase_if(suppressed_, [this](int32_t id) {
    return static_cast<size_t>(id) >= config_.vocab_size;
  });
}

uint64_t Model::file_bytes() const {
  uint64_t bytes = 0;
  for (const auto& file : files_) bytes += file->bytes().size();
  return bytes;
}

uint64_t Model::bytes_per_token() const {
  uint64_t bytes = weights_.head.bytes();
  if (config_.ple_len != 0) bytes += weights_.ple_model_proj.bytes();
  for (const LayerWeights& layer : weights_.layers) {
    bytes += LayerBytes(layer, config_, config_.num_experts_used);
  }
  return bytes;
}

KvLayerShape Model::KvShape(size_t l) const {
  const LayerConfig& layer = config_.layers[l];
  KvLayerShape shape = {.num_heads = layer.num_kv_heads,
                        .head_dim = layer.head_dim,
                        .capacity = options_.context,
                        .window = layer.sliding ? config_.sliding_window : 0,
                        .max_append = kChunk,
                        .type = options_.kv};
  if (options_.kv == KvType::kI8 && options_.steps != TrainedSteps::kDrop) {
    // Full layers were trained for 4 bits: 8 of them cover the same range in steps of a
    // sixteenth, as Google's own runtime keeps them.
    const float part = layer.sliding ? 1.0f : 1.0f / 16.0f;
    shape.k_step = part * weights_.layers[l].k_cache_step;
    shape.v_step = part * weights_.layers[l].v_cache_step;
  }
  return shape;
}

uint64_t Model::KvBytes(size_t positions) const {
  uint64_t bytes = 0;
  for (size_t l = 0; l < config_.layers.size(); ++l) {
    if (config_.OwnsKv(l)) bytes += KvLayer::BytesFor(KvShape(l), positions);
  }
  return bytes;
}

void Model::Read(std::span<const uint8_t> part, uint8_t* to) const {
  const MappedFile* file = FileOf(part.data());
  if (file == nullptr) {
    std::copy(part.begin(), part.end(), to);
  } else {
    file->Read(part, to);
  }
}

void Model::CheckFiles() const {
  for (const auto& file : files_) file->CheckUnchanged();
}

}  // namespace halfbyte
