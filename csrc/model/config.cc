// csrc/model/config.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/config.h"

#include <math.h>
#include <stdint.h>

#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "io/gguf.h"
#include "io/json.h"

namespace halfbyte {
namespace {

constexpr Family kFamilies[] = {
    {.name = "gemma3",
     .value_norm = false,
     .layer_scale = false,
     .norms_minus_one = true,
     .default_softcap = 0.0,
     .pattern_period = 6,
     .full_rotary = 1.0},
    {.name = "gemma4",
     .value_norm = true,
     .layer_scale = true,
     .norms_minus_one = false,
     .default_softcap = 30.0,
     .pattern_period = 6,
     .full_rotary = 0.25},
};

// A drafter's: "gemma4_assistant", "gemma4_unified_assistant", "gemma4-assistant".
bool IsDrafter(std::string_view architecture) {
  return architecture.ends_with("_assistant") || architecture.ends_with("-assistant");
}

const Family& FamilyNamed(std::string_view architecture, const std::string& path) {
  std::string known;
  for (const Family& family : kFamilies) {
    if (architecture == family.name) return family;
    known += known.empty() ? "" : ", ";
    known += family.name;
  }
  ErrorInfo info;
  info.path = path;
  info.kind = "model";
  info.code = "MODEL_ARCHITECTURE";
  info.subject = "architecture";
  info.found = "'" + Escape(architecture) + "'";
  info.expected = "one of " + known;
  throw Error(ErrorClass::kUnsupported, std::move(info));
}

[[noreturn]] void BadHparam(std::string key, std::string found, std::string expected) {
  ErrorInfo info;
  info.kind = "model";
  info.code = "MODEL_HPARAM";
  info.key = key;
  info.subject = "key '" + std::move(key) + "'";
  info.found = std::move(found);
  info.expected = std::move(expected);
  throw Error(ErrorClass::kModel, std::move(info));
}

size_t InRange(const std::string& key, uint64_t value, uint64_t low, uint64_t high) {
  if (value < low || value > high) {
    BadHparam(key, std::to_string(value),
              std::to_string(low) + " to " + std::to_string(high));
  }
  return static_cast<size_t>(value);
}

double Positive(const std::string& key, double value) {
  if (!std::isfinite(value) || value <= 0.0) {
    BadHparam(key, std::to_string(value), "a finite number above 0");
  }
  return value;
}

// What multiplies the scores of attention.
float ScaleOf(const std::string& key, double divisor) {
  return static_cast<float>(1.0 / sqrt(Positive(key, divisor)));
}

constexpr uint64_t kMaxLayers = 1024, kMaxLen = uint64_t{1} << 20, kMaxHeads = 4096;
constexpr uint64_t kMaxHeadDim = 8192, kMaxContext = uint64_t{1} << 24;

// Layer l of those that share takes the last owner before it of its own kind.
void SetKvSources(ModelConfig& c, size_t num_shared, const std::string& key) {
  if (c.IsDrafter()) {
    if (num_shared != 0 && num_shared != c.layers.size()) {
      BadHparam(key, std::to_string(num_shared),
                std::to_string(c.layers.size()) + ", all layers of a drafter");
    }
    for (LayerConfig& layer : c.layers) layer.kv_source = kElsewhere;
    return;
  }
  const size_t first = c.layers.size() - num_shared;
  for (size_t l = 0; l < c.layers.size(); ++l) {
    size_t source = l;
    while (source >= first || c.layers[source].sliding != c.layers[l].sliding) {
      if (source == 0) {
        BadHparam(key, std::to_string(num_shared),
                  "an earlier layer of each kind to share from");
      }
      --source;
    }
    c.layers[l].kv_source = source;
  }
}

// What the files of one kind call the numbers that are checked for both.
struct Keys {
  std::string norm_eps, softcap, experts_used, kv_heads, head_dim;
};

// `want`: what layer l has to have, as layer `other` has.
void CheckAlike(const std::string& key, size_t l, size_t found, size_t want,
                size_t other, const char* why) {
  if (found == want) return;
  BadHparam(key, std::to_string(found) + " in layer " + std::to_string(l),
            std::to_string(want) + ", as in layer " + std::to_string(other) + why);
}

// One table of angles turns all layers of a kind, and one layer's keys and values serve
// those that share them.
void CheckLayers(const ModelConfig& c, const Keys& keys) {
  for (size_t l = 0; l < c.layers.size(); ++l) {
    const LayerConfig& layer = c.layers[l];
    if (c.num_heads % layer.num_kv_heads != 0) {
      BadHparam(keys.kv_heads,
                std::to_string(layer.num_kv_heads) + " in layer " + std::to_string(l),
                "a divisor of the number of heads, " + std::to_string(c.num_heads));
    }
    if (layer.head_dim % 2 != 0) {
      BadHparam(keys.head_dim,
                std::to_string(layer.head_dim) + " in layer " + std::to_string(l),
                "an even number");
    }
    size_t first = 0;
    while (c.layers[first].sliding != layer.sliding) ++first;
    CheckAlike(keys.head_dim, l, layer.head_dim, c.layers[first].head_dim, first,
               layer.sliding ? ", which slides too" : ", which is full too");
    if (c.IsDrafter()) continue;
    CheckAlike(keys.kv_heads, l, layer.num_kv_heads,
               c.layers[layer.kv_source].num_kv_heads, layer.kv_source,
               ", whose keys it takes");
  }
}

// What a drafter has none of: what it would compute with them nobody has seen.
void CheckDrafter(const ModelConfig& c) {
  if (!c.IsDrafter()) return;
  std::string found;
  if (c.ple_len != 0) found = "per-layer embeddings";
  if (c.num_experts != 0) found = "experts";
  if (!c.family->layer_scale) found = c.family->name;
  if (found.empty()) return;
  ErrorInfo info;
  info.kind = "model";
  info.code = "MODEL_DRAFTER";
  info.subject = "drafter";
  info.found = found;
  info.expected = "a dense one of Gemma 4";
  throw Error(ErrorClass::kUnsupported, std::move(info));
}

// What holds for every family and file kind.
void CheckConfig(const ModelConfig& c, const Keys& keys) {
  if (!(c.norm_eps > 0.0f && c.norm_eps <= 0.1f)) {
    BadHparam(keys.norm_eps, std::to_string(c.norm_eps), "above 0, at most 0.1");
  }
  if (!std::isfinite(c.softcap) || c.softcap < 0.0f) {
    BadHparam(keys.softcap, std::to_string(c.softcap), "a finite number above 0");
  }
  if (c.num_experts_used > c.num_experts) {
    BadHparam(keys.experts_used, std::to_string(c.num_experts_used),
              "at most the number of experts, " + std::to_string(c.num_experts));
  }
  CheckDrafter(c);
  CheckLayers(c, keys);
}

// ---- GGUF

class GgufConfig {
 public:
  // `architecture`: what its keys begin with.
  GgufConfig(const GgufFile& file, const Family& family, std::string_view architecture)
      : file_(file), m_(file.metadata), prefix_(std::string(architecture) + ".") {
    c_.family = &family;
    if (IsDrafter(architecture)) c_.drafter.backbone_size = BackboneSize();
  }

  ModelConfig Read() {
    const size_t num_layers = Size("block_count", 1, kMaxLayers);
    c_.layers.resize(num_layers);
    c_.context_length = Size("context_length", 1, kMaxContext);
    c_.hidden_size = Size("embedding_length", 1, kMaxLen);
    c_.vocab_size = VocabSize();
    c_.norm_eps = m_.GetF32(Key("attention.layer_norm_rms_epsilon"));
    c_.sliding_window = Size("attention.sliding_window", 1, kMaxContext);
    const auto softcap = static_cast<float>(c_.family->default_softcap);
    c_.softcap = m_.GetF32(Key("final_logit_softcapping"), softcap);
    ReadHeads();
    ReadRope();
    ReadPattern();
    ReadLayers();
    ReadPle();
    c_.num_experts = Optional("expert_count", 0, 4096);
    if (c_.num_experts != 0) {
      c_.num_experts_used = Size("expert_used_count", 1, 4096);
      c_.expert_ffn_len = PerLayer("expert_feed_forward_length", kMaxLen).front();
    }
    const std::string shared = "attention.shared_kv_layers";
    const size_t most = c_.IsDrafter() ? num_layers : num_layers - 1;
    SetKvSources(c_, Optional(shared, 0, most), Key(shared));
    CheckConfig(c_, {.norm_eps = Key("attention.layer_norm_rms_epsilon"),
                     .softcap = Key("final_logit_softcapping"),
                     .experts_used = Key("expert_used_count"),
                     .kv_heads = Key("attention.head_count_kv"),
                     .head_dim = Key("attention.key_length")});
    return std::move(c_);
  }

 private:
  std::string Key(const std::string& name) const { return prefix_ + name; }

  size_t Size(const std::string& name, uint64_t low, uint64_t high) const {
    return InRange(Key(name), m_.GetU64(Key(name)), low, high);
  }
  size_t Optional(const std::string& name, uint64_t fallback, uint64_t high) const {
    return InRange(Key(name), m_.GetU64(Key(name), fallback), 0, high);
  }

  // A number for all layers, or one each.
  std::vector<uint64_t> PerLayer(const std::string& name, uint64_t high) const {
    std::vector<uint64_t> v = m_.GetU64Array(Key(name), c_.layers.size());
    for (const uint64_t x : v) InRange(Key(name), x, 1, high);
    return v;
  }

  // Number of rows of `tensor`, which may be null.
  static size_t NumRows(const TensorView* tensor, const std::string& name,
                        uint64_t high) {
    if (tensor == nullptr || tensor->shape.size() != 2) {
      ErrorInfo info;
      info.kind = "model";
      info.code = "MODEL_MISSING_TENSOR";
      info.tensor = name;
      info.subject = "tensor '" + name + "'";
      info.found = tensor == nullptr ? "none" : "another rank";
      info.expected = "a matrix";
      throw Error(ErrorClass::kModel, std::move(info));
    }
    return InRange(name, tensor->shape[0], 1, high);
  }

  size_t VocabSize() const {
    const std::string name = "token_embd.weight";
    return NumRows(file_.FindTensor(name), name, uint64_t{1} << 21);
  }

  // The key's name changed more often than the tensor's.
  size_t BackboneSize() const {
    const auto name = [](const char* stem) { return std::string(stem) + ".weight"; };
    const TensorView* tensor = nullptr;
    for (const char* stem : kGgufDrafterOut) {
      if (tensor == nullptr) tensor = file_.FindTensor(name(stem));
    }
    return NumRows(tensor, name(kGgufDrafterOut[0]), kMaxLen);
  }

  // Only the small sizes have per-layer embeddings; a file that has them says how wide.
  void ReadPle() {
    const std::string length = "embedding_length_per_layer_input";
    const bool has_table = file_.FindTensor("per_layer_token_embd.weight") != nullptr;
    c_.ple_len = has_table ? Size(length, 0, 65536) : Optional(length, 0, 65536);
  }

  void ReadHeads() {
    const std::vector<uint64_t> heads = PerLayer("attention.head_count", kMaxHeads);
    c_.num_heads = heads.front();
    for (const uint64_t n : heads) {
      if (n != c_.num_heads) {
        BadHparam(Key("attention.head_count"), std::to_string(n),
                  "the same everywhere");
      }
    }
    head_dim_full_ = head_dim_sliding_ = Size("attention.key_length", 2, kMaxHeadDim);
    if (IsGemma4()) {
      head_dim_sliding_ = Size("attention.key_length_swa", 2, kMaxHeadDim);
      c_.attention_scale = 1.0f;
    } else {
      // The 27B, and it alone, scales by the width of a head's share of the stream.
      const bool is_27b = c_.layers.size() == 62;
      const size_t divisor = is_27b ? c_.hidden_size / c_.num_heads : head_dim_full_;
      c_.attention_scale =
          ScaleOf(Key("embedding_length"), static_cast<double>(divisor));
    }
    CheckSame("attention.value_length", head_dim_full_);
    CheckSame("attention.value_length_swa", head_dim_sliding_);
  }

  void CheckSame(const std::string& name, size_t want) const {
    const uint64_t found = m_.GetU64(Key(name), want);
    if (found != want) {
      BadHparam(Key(name), std::to_string(found),
                "the key length, " + std::to_string(want));
    }
  }

  void ReadRope() {
    // Gemma 4's base is 10^6 in every file that names one; without it llama.cpp
    // computes with another, so a file that lacks it is not trusted. Gemma 3 files may
    // lack it.
    const std::string base = Key("rope.freq_base");
    c_.rope_base_full =
        Positive(base, IsGemma4() ? m_.GetF32(base) : m_.GetF32(base, 1e6f));
    const std::string sliding = Key("rope.freq_base_swa");
    c_.rope_base_sliding = Positive(sliding, m_.GetF32(sliding, 1e4f));
    c_.rope_factor_full = 1.0;
    const std::string type = Key("rope.scaling.type");
    const std::string_view scaling = m_.GetString(type, "none");
    if (scaling == "linear") {
      const std::string factor = Key("rope.scaling.factor");
      c_.rope_factor_full = Positive(factor, m_.GetF32(factor));
    } else if (scaling != "none") {
      BadHparam(type, "'" + Escape(scaling) + "'", "'none' or 'linear'");
    }
  }

  void ReadPattern() {
    const std::string key = Key("attention.sliding_window_pattern");
    const GgufValue* value = m_.Find(key);
    const size_t n = c_.layers.size();
    if (value != nullptr && value->is_array()) {
      const std::vector<bool> sliding = m_.GetBoolArray(key, n);
      for (size_t l = 0; l < n; ++l) c_.layers[l].sliding = sliding[l];
      return;
    }
    if (IsGemma4()) m_.GetBoolArray(key);  // throws: the pattern is not guessed
    const size_t period =
        InRange(key, m_.GetU64(key, c_.family->pattern_period), 1, kMaxLayers);
    for (size_t l = 0; l < n; ++l) c_.layers[l].sliding = (l + 1) % period != 0;
  }

  void ReadLayers() {
    const std::vector<uint64_t> kv = PerLayer("attention.head_count_kv", kMaxHeads);
    const std::vector<uint64_t> ffn = PerLayer("feed_forward_length", kMaxLen);
    for (size_t l = 0; l < c_.layers.size(); ++l) {
      LayerConfig& layer = c_.layers[l];
      layer.head_dim = layer.sliding ? head_dim_sliding_ : head_dim_full_;
      layer.num_kv_heads = kv[l];
      layer.ffn_len = ffn[l];
    }
  }

  bool IsGemma4() const { return c_.family->value_norm; }

  const GgufFile& file_;
  const GgufMetadata& m_;
  const std::string prefix_;
  size_t head_dim_full_ = 0, head_dim_sliding_ = 0;
  ModelConfig c_{};
};

// ---- config.json

class JsonConfig {
 public:
  // `root`: what `text` lies in, or `text` itself.
  JsonConfig(const JsonValue& root, const JsonValue& text, const Family& family)
      : root_(root), j_(text) {
    c_.family = &family;
  }

  ModelConfig Read() {
    const size_t num_layers = Size("num_hidden_layers", 1, kMaxLayers);
    c_.layers.resize(num_layers);
    c_.vocab_size = Size("vocab_size", 1, uint64_t{1} << 21);
    ReadDrafter();
    c_.hidden_size = Size("hidden_size", 1, kMaxLen);
    c_.num_heads = Size("num_attention_heads", 1, kMaxHeads);
    c_.context_length = Size("max_position_embeddings", 1, kMaxContext);
    c_.sliding_window = Size("sliding_window", 1, kMaxContext);
    c_.norm_eps = static_cast<float>(Number("rms_norm_eps", 1e-6));
    c_.softcap = static_cast<float>(Number("final_logit_softcapping", 0.0));
    c_.ple_len = Size("hidden_size_per_layer_input", 0, 65536, DefaultPle());
    c_.full_value_is_key = Flag("attention_k_eq_v");
    if (Flag("enable_moe_block")) {
      c_.num_experts = Size("num_experts", 1, 4096);
      c_.num_experts_used = Size("top_k_experts", 1, 4096);
      c_.expert_ffn_len = Size("moe_intermediate_size", 1, kMaxLen);
    }
    RefuseOtherForms();
    ReadLayerTypes();
    ReadRope();
    ReadLayers();
    const size_t most = c_.IsDrafter() ? num_layers : num_layers - 1;
    SetKvSources(c_, Size("num_kv_shared_layers", 0, most, 0), "num_kv_shared_layers");
    WidenSharedMlps();
    const std::string scalar = "query_pre_attn_scalar";
    c_.attention_scale = IsGemma4() ? 1.0f : ScaleOf(scalar, Number(scalar, 256.0));
    CheckConfig(c_, {.norm_eps = "rms_norm_eps",
                     .softcap = "final_logit_softcapping",
                     .experts_used = "top_k_experts",
                     .kv_heads = "num_key_value_heads",
                     .head_dim = "head_dim"});
    return std::move(c_);
  }

 private:
  size_t Size(const std::string& key, uint64_t low, uint64_t high,
              std::optional<uint64_t> fallback = {}) const {
    return SizeIn(j_, key, low, high, fallback);
  }

  static size_t SizeIn(const JsonValue& where, const std::string& key, uint64_t low,
                       uint64_t high, std::optional<uint64_t> fallback = {}) {
    const std::optional<JsonValue> v = where.Get(key);
    if (!v && !fallback) BadHparam(key, "none", "a number");
    return InRange(key, v ? v->AsUint64() : *fallback, low, high);
  }

  double Number(const std::string& key, double fallback) const {
    const std::optional<JsonValue> v = j_.Get(key);
    return v ? v->AsDouble() : fallback;
  }

  bool Flag(const std::string& key) const {
    const std::optional<JsonValue> v = j_.Get(key);
    return v && v->AsBool();
  }

  bool IsGemma4() const { return c_.family->value_norm; }

  void ReadDrafter() {
    const std::optional<JsonValue> type = root_.Find("model_type");
    if (!type || !IsDrafter(type->AsString())) return;
    DrafterConfig& d = c_.drafter;
    d.backbone_size = SizeIn(root_, "backbone_hidden_size", 1, kMaxLen, 1536);
    const std::optional<JsonValue> ordered = root_.Get("use_ordered_embeddings");
    if (!ordered || !ordered->AsBool()) return;
    d.num_clusters = SizeIn(root_, "num_centroids", 1, uint64_t{1} << 21, 2048);
    d.num_clusters_used =
        SizeIn(root_, "centroid_intermediate_top_k", 1, d.num_clusters, 32);
    if (c_.vocab_size % d.num_clusters != 0) {
      BadHparam("num_centroids", std::to_string(d.num_clusters),
                "a divisor of vocab_size, " + std::to_string(c_.vocab_size));
    }
  }

  // As in transformers, whose Gemma4TextConfig has per-layer embeddings unless it is
  // told otherwise, and whose classes of Gemma 3 and of the 12B ("unified") never have.
  uint64_t DefaultPle() const {
    const auto type = j_.Find("model_type");
    const bool unified = type && type->AsString().starts_with("gemma4_unified");
    const bool said = j_.Find("hidden_size_per_layer_input").has_value();  // null: none
    return IsGemma4() && !unified && !said ? 256 : 0;
  }

  // What the released models do not do, and would change every logit.
  void RefuseOtherForms() const {
    const std::string_view known = "gelu_pytorch_tanh";
    const std::optional<JsonValue> act = j_.Get("hidden_activation");
    if (act && !(act->IsString() && act->AsString() == known)) {
      BadHparam("hidden_activation", act->Describe(), std::string(known));
    }
    if (Flag("attention_bias")) BadHparam("attention_bias", "true", "false");
    const std::optional<JsonValue> v = j_.Get("use_bidirectional_attention");
    if (v &&
        ((v->IsString() && v->AsString() == "all") || (v->IsBool() && v->AsBool()))) {
      BadHparam("use_bidirectional_attention", v->Describe(),
                "causal attention for text");
    }
  }

  // As in transformers, whose Gemma4TextConfig has a full layer at the end, whatever
  // it is told.
  void ReadLayerTypes() {
    ReadPattern();
    if (IsGemma4()) c_.layers.back().sliding = false;
  }

  void ReadPattern() {
    const size_t n = c_.layers.size();
    if (const std::optional<JsonValue> types = j_.Get("layer_types")) {
      size_t l = 0;
      for (const JsonValue type : types->Elements()) {
        const std::string_view name = type.AsString();
        const bool sliding = name == "sliding_attention";
        if (l == n || (!sliding && name != "full_attention")) {
          BadHparam("layer_types", type.Describe(),
                    "sliding_attention or full_attention for each layer");
        }
        c_.layers[l++].sliding = sliding;
      }
      if (l == n) return;
      BadHparam("layer_types", std::to_string(l) + " entries", std::to_string(n));
    }
    const size_t period =
        Size("sliding_window_pattern", 1, kMaxLayers, c_.family->pattern_period);
    for (size_t l = 0; l < n; ++l) c_.layers[l].sliding = (l + 1) % period != 0;
  }

  void ReadRope() {
    c_.rope_base_sliding = Base("rope_local_base_freq", 1e4);
    c_.rope_base_full = Base("rope_theta", 1e6);
    c_.rope_factor_full = 1.0;
    if (const std::optional<JsonValue> scaling = j_.Get("rope_scaling")) {
      c_.rope_factor_full = RopeFactor("rope_scaling", *scaling);
    }
    if (const std::optional<JsonValue> rope = j_.Get("rope_parameters")) {
      const double sliding =
          ReadRopeOf(*rope, "sliding_attention", 1.0, 1.0, c_.rope_base_sliding);
      if (sliding != 1.0) {
        BadHparam("rope_parameters.sliding_attention.factor", std::to_string(sliding),
                  "1");
      }
      c_.rope_factor_full = ReadRopeOf(*rope, "full_attention", c_.family->full_rotary,
                                       c_.rope_factor_full, c_.rope_base_full);
    }
  }

  double Base(const std::string& key, double fallback) const {
    return Positive(key, Number(key, fallback));
  }

  // RoPE of the layers of one type, whose heads turn by the share `rotary`: returns its
  // factor, `factor` if the config has no such type.
  static double ReadRopeOf(const JsonValue& rope, const std::string& type,
                           double rotary, double factor, double& base) {
    const std::optional<JsonValue> found = rope.Get(type);
    if (!found) return factor;
    const std::string key = "rope_parameters." + type;
    if (const auto theta = found->Get("rope_theta")) {
      base = Positive(key + ".rope_theta", theta->AsDouble());
    }
    const double found_factor = RopeFactor(key, *found);
    const auto share = found->Get("partial_rotary_factor");
    if (share && share->AsDouble() != rotary) {
      BadHparam(key + ".partial_rotary_factor", share->Describe(),
                std::to_string(rotary));
    }
    return found_factor;
  }

  // What divides the frequencies. Other kinds of scaling change them in other ways.
  static double RopeFactor(const std::string& key, const JsonValue& rope) {
    auto type = rope.Get("rope_type");
    if (!type) type = rope.Get("type");
    const std::string_view name = type ? type->AsString() : "linear";
    if (name == "default") return 1.0;
    if (name != "linear" && name != "proportional") {
      BadHparam(key + ".rope_type", type->Describe(),
                "'default', 'linear' or 'proportional'");
    }
    const auto factor = rope.Get("factor");
    return factor ? Positive(key + ".factor", factor->AsDouble()) : 1.0;
  }

  // head_dim and num_key_value_heads describe sliding layers. Full layers differ by the
  // global_ keys of the released files, or by the per_layer_config that newer ones
  // have.
  void ReadLayers() {
    const size_t head_dim = Size("head_dim", 2, kMaxHeadDim);
    const size_t kv = Size("num_key_value_heads", 1, kMaxHeads);
    const size_t ffn = Size("intermediate_size", 1, kMaxLen);
    const size_t global_dim = Size("global_head_dim", 2, kMaxHeadDim, head_dim);
    const size_t global_kv = c_.full_value_is_key
                                 ? Size("num_global_key_value_heads", 1, kMaxHeads, kv)
                                 : kv;
    for (LayerConfig& layer : c_.layers) {
      layer.head_dim = layer.sliding ? head_dim : global_dim;
      layer.num_kv_heads = layer.sliding ? kv : global_kv;
      layer.ffn_len = ffn;
    }
    const std::optional<JsonValue> per_layer = j_.Get("per_layer_config");
    if (!per_layer) return;
    for (const JsonMember& member : per_layer->Members()) ReadLayer(member);
  }

  void ReadLayer(const JsonMember& member) {
    size_t l = c_.layers.size();  // keys are numbers, padded with zeros: "05"
    const char* end = member.key.data() + member.key.size();
    const auto [stop, error] = std::from_chars(member.key.data(), end, l);
    if (error != std::errc() || stop != end || l >= c_.layers.size()) {
      BadHparam("per_layer_config", "'" + Escape(member.key) + "'", "a layer's number");
    }
    const auto read = [&](const char* key, uint64_t low, uint64_t high, size_t& out) {
      const auto v = member.value.Get(key);
      if (v) out = InRange(key, v->AsUint64(), low, high);
    };
    read("head_dim", 2, kMaxHeadDim, c_.layers[l].head_dim);
    read("num_key_value_heads", 1, kMaxHeads, c_.layers[l].num_kv_heads);
  }

  void WidenSharedMlps() {
    if (!Flag("use_double_wide_mlp")) return;
    for (size_t l = c_.FirstSharedLayer(); l < c_.layers.size(); ++l) {
      c_.layers[l].ffn_len *= 2;
    }
  }

  const JsonValue &root_, &j_;
  ModelConfig c_{};
};

}  // namespace

size_t ModelConfig::FirstSharedLayer() const {
  size_t l = 0;
  while (l < layers.size() && OwnsKv(l)) ++l;
  return l;
}

ModelConfig ConfigFromGguf(const GgufFile& file) {
  const std::string_view architecture = file.metadata.GetString("general.architecture");
  std::string_view name = architecture;
  if (IsDrafter(name)) name.remove_suffix(std::string_view("-assistant").size());
  const Family& family = FamilyNamed(name, file.metadata.path());
  return GgufConfig(file, family, architecture).Read();
}

ModelConfig ConfigFromJson(const JsonValue& root) {
  const std::optional<JsonValue> nested = root.Find("text_config");
  const JsonValue text = nested ? *nested : root;
  std::string_view type;
  if (const auto t = text.Find("model_type")) type = t->AsString();
  // gemma4, gemma4_text, gemma4_unified_text, gemma3_text: the family comes first.
  ModelConfig config =
      JsonConfig(root, text, FamilyNamed(type.substr(0, type.find('_')), "")).Read();
  for (const JsonValue& where : {root, text}) {
    const std::optional<JsonValue> tied = where.Get("tie_word_embeddings");
    if (tied && !tied->AsBool()) config.untied_head = true;
  }
  return config;
}

}  // namespace halfbyte
