// csrc/model/weights.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <string>
#include <string_view>
#include <utility>

#include "model/packed.h"

namespace halfbyte {
namespace {

// A tensor's name in the two kinds of files, without the layer's prefix.
struct Name {
  const char* gguf;
  const char* hf;
};

constexpr Name kEmbedding = {"token_embd.weight", "embed_tokens.weight"};
constexpr Name kNorm = {"output_norm.weight", "norm.weight"};
constexpr Name kPleTable = {"per_layer_token_embd.weight",
                            "embed_tokens_per_layer.weight"};
constexpr Name kPleModelProj = {"per_layer_model_proj.weight",
                                "per_layer_model_projection.weight"};
constexpr Name kPleProjNorm = {"per_layer_proj_norm.weight",
                               "per_layer_projection_norm.weight"};
constexpr Name kAttnNorm = {"attn_norm.weight", "input_layernorm.weight"};
constexpr Name kQkv = {"attn_qkv.weight", "self_attn.qkv_proj.weight"};
constexpr Name kQ = {"attn_q.weight", "self_attn.q_proj.weight"};
constexpr Name kK = {"attn_k.weight", "self_attn.k_proj.weight"};
constexpr Name kV = {"attn_v.weight", "self_attn.v_proj.weight"};
constexpr Name kO = {"attn_output.weight", "self_attn.o_proj.weight"};
constexpr Name kQNorm = {"attn_q_norm.weight", "self_attn.q_norm.weight"};
constexpr Name kKNorm = {"attn_k_norm.weight", "self_attn.k_norm.weight"};
constexpr Name kPostAttnNorm = {"post_attention_norm.weight",
                                "post_attention_layernorm.weight"};
constexpr Name kFfnNorm = {"ffn_norm.weight", "pre_feedforward_layernorm.weight"};
constexpr Name kGate = {"ffn_gate.weight", "mlp.gate_proj.weight"};
constexpr Name kUp = {"ffn_up.weight", "mlp.up_proj.weight"};
constexpr Name kDown = {"ffn_down.weight", "mlp.down_proj.weight"};
constexpr Name kPostFfnNorm = {"post_ffw_norm.weight",
                               "post_feedforward_layernorm.weight"};
constexpr Name kLayerScale = {"layer_output_scale.weight", "layer_scalar"};
constexpr Name kPleGate = {"inp_gate.weight", "per_layer_input_gate.weight"};
constexpr Name kPleProj = {"proj.weight", "per_layer_projection.weight"};
constexpr Name kPleNorm = {"post_norm.weight", "post_per_layer_input_norm.weight"};
constexpr Name kRouter = {"ffn_gate_inp.weight", "router.proj.weight"};
constexpr Name kRouterScale = {"ffn_gate_inp.scale", "router.scale"};
constexpr Name kExpertScale = {"ffn_down_exps.scale", "router.per_expert_scale"};
constexpr Name kGateUpExps = {"ffn_gate_up_exps.weight", "experts.gate_up_proj"};
constexpr Name kGateExps = {"ffn_gate_exps.weight", "experts.gate_proj"};
constexpr Name kUpExps = {"ffn_up_exps.weight", "experts.up_proj"};
constexpr Name kDownExps = {"ffn_down_exps.weight", "experts.down_proj"};
constexpr Name kMoePreNorm = {"pre_ffw_norm_2.weight",
                              "pre_feedforward_layernorm_2.weight"};
constexpr Name kDensePostNorm = {"post_ffw_norm_1.weight",
                                 "post_feedforward_layernorm_1.weight"};
constexpr Name kMoePostNorm = {"post_ffw_norm_2.weight",
                               "post_feedforward_layernorm_2.weight"};

// A drafter's have no prefix. Those of GGUF are in the order of kGgufDrafterOut.
constexpr const char* kGgufDrafterIn[] = {"nextn.pre_projection", "mtp.pre_projection",
                                          "mtp_pre_proj"};
constexpr const char* kDrafterIn[] = {"pre_projection"};
constexpr const char* kDrafterOut[] = {"post_projection"};
constexpr const char* kCentroids[] = {"masked_embedding.centroids"};

class Loader {
 public:
  Loader(const ModelConfig& config, std::span<const TensorView> tensors,
         TensorNames names, const Quantization& quantization)
      : c_(config),
        names_(names),
        checkpoint_(tensors),
        packed_(quantization, checkpoint_, w_.scales) {
    if (names_ == TensorNames::kHuggingFace) root_ = FindRoot();
  }

  ModelWeights Load() {
    ModelWeights& w = w_;
    const size_t H = c_.hidden_size, L = c_.layers.size();
    w.embedding = Matrix(kEmbedding, c_.vocab_size, H);
    w.norm = Norm(kNorm, H);
    w.head = Head();
    w.own_head = w.head.data != w.embedding.data;
    if (const TensorView* freqs = checkpoint_.Find("rope_freqs.weight")) {
      w.rope_freqs = checkpoint_.Values("rope_freqs.weight",
                                        {freqs->shape.empty() ? 1 : freqs->shape[0]});
    }
    if (c_.ple_len != 0) {
      w.ple_table = PleTable();
      w.ple_model_proj = Matrix(kPleModelProj, L * c_.ple_len, H);
      w.ple_proj_norm = Norm(kPleProjNorm, c_.ple_len);
    }
    for (size_t l = 0; l < L; ++l) w.layers.push_back(Layer(l));
    if (c_.IsDrafter()) LoadDrafter();
    checkpoint_.ThrowProblems();
    w.unread = checkpoint_.Unread();
    return std::move(w_);
  }

 private:
  // A head beside a dense embedding in a directory is a copy of it, unless the config
  // says otherwise.
  WeightView Head() {
    if (checkpoint_.Has("output.weight")) {
      return Matrix({"output.weight", ""}, c_.vocab_size, c_.hidden_size);
    }
    const size_t V = c_.vocab_size, H = c_.hidden_size;
    if (packed_.Has("lm_head")) return packed_.Matrix("lm_head", V, H);
    const std::string own = "lm_head.weight";
    const bool is_own = c_.untied_head || packed_.Has(ModuleOf(kEmbedding));
    if (is_own && Has(own)) return View(own, {V, H}, V, H);
    return w_.embedding;
  }

  WeightView PleTable() {
    const size_t L = c_.layers.size();
    const std::string module = ModuleOf(kPleTable);
    if (packed_.Has(module)) {
      return packed_.Table(module, c_.vocab_size, L, c_.ple_len);
    }
    return Matrix(kPleTable, c_.vocab_size, L * c_.ple_len);
  }

  void LoadDrafter() {
    DrafterWeights& w = w_.drafter;
    const size_t H = c_.hidden_size, B = c_.drafter.backbone_size;
    const bool gguf = names_ == TensorNames::kGguf;
    using Names = std::span<const char* const>;
    w.in = Outer(gguf ? Names(kGgufDrafterIn) : Names(kDrafterIn), H, 2 * B);
    w.out = Outer(gguf ? Names(kGgufDrafterOut) : Names(kDrafterOut), B, H);
    if (c_.drafter.num_clusters == 0) return;
    w.centroids = Outer(kCentroids, c_.drafter.num_clusters, H);
    w.order = checkpoint_.Ids("masked_embedding.token_ordering", c_.vocab_size);
  }

  // A matrix outside the network proper: the first of `names` that is there.
  WeightView Outer(std::span<const char* const> names, size_t N, size_t K) {
    for (const char* name : names) {
      if (packed_.Has(name)) return packed_.Matrix(name, N, K);
      const std::string weight = std::string(name) + ".weight";
      if (Has(weight)) return View(weight, {N, K}, N, K);
    }
    return View(std::string(names[0]) + ".weight", {N, K}, N, K);
  }

  LayerWeights Layer(size_t l) {
    prefix_ =
        (names_ == TensorNames::kGguf ? "blk." : "layers.") + std::to_string(l) + ".";
    const size_t H = c_.hidden_size, F = c_.layers[l].ffn_len, P = c_.ple_len;
    LayerWeights w;
    w.attn_norm = Norm(kAttnNorm, H);
    LoadAttention(l, w);
    w.post_attn_norm = Norm(kPostAttnNorm, H);
    w.ffn_norm = Norm(kFfnNorm, H);
    w.gate = Matrix(kGate, F, H);
    w.up = Matrix(kUp, F, H);
    w.down = Matrix(kDown, H, F);
    w.post_ffn_norm = Norm(kPostFfnNorm, H);
    if (c_.family->layer_scale) {
      const Vector scale = checkpoint_.Values(NameOf(kLayerScale), {1});
      if (!scale.empty()) w.scale = scale[0];
    }
    if (P != 0) {
      w.ple_gate = Matrix(kPleGate, P, H);
      w.ple_proj = Matrix(kPleProj, H, P);
      w.ple_norm = Norm(kPleNorm, H);
    }
    if (c_.num_experts != 0) LoadExperts(w.moe);
    prefix_.clear();
    return w;
  }

  void LoadAttention(size_t l, LayerWeights& w) {
    const LayerConfig& layer = c_.layers[l];
    const size_t H = c_.hidden_size, D = layer.head_dim;
    const size_t q_rows = c_.num_heads * D, kv_rows = layer.num_kv_heads * D;
    w.q_norm = Norm(kQNorm, D);
    w.o = Matrix(kO, H, q_rows);
    if (c_.OwnsKv(l)) w.k_norm = Norm(kKNorm, D);
    if (Has(NameOf(kQkv))) {
      const WeightView qkv = Matrix(kQkv, q_rows + 2 * kv_rows, H);
      w.q = qkv.Rows(0, q_rows);
      w.k = qkv.Rows(q_rows, kv_rows);
      w.v = qkv.Rows(q_rows + kv_rows, kv_rows);
      return;
    }
    w.q = Matrix(kQ, q_rows, H);
    if (!c_.OwnsKv(l)) return;  // what a file holds for shared layers is never used
    w.k = Matrix(kK, kv_rows, H);
    LoadCacheSteps(w);
    // GGUF has no key that says "values are keys": a full layer without a matrix does.
    // Only models without per-layer embeddings are made that way.
    const bool may_lack =
        c_.full_value_is_key ||
        (names_ == TensorNames::kGguf && c_.ple_len == 0 && c_.family->value_norm);
    const bool has_v = Has(NameOf(kV)) || packed_.Has(ModuleOf(kV));
    if (has_v || !may_lack || layer.sliding) w.v = Matrix(kV, kv_rows, H);
  }

  void LoadCacheSteps(LayerWeights& w) {
    const std::string attention = root_ + prefix_ + "self_attn.";
    if (!packed_.HasCacheSteps(attention)) return;
    w.k_cache_step = packed_.Step(attention + "k_cache_scale");
    w.v_cache_step = packed_.Step(attention + "v_cache_scale");
  }

  void LoadExperts(MoeWeights& w) {
    const size_t H = c_.hidden_size, F = c_.expert_ffn_len, E = c_.num_experts;
    w.router = Matrix(kRouter, E, H);
    w.router_scale = checkpoint_.Values(NameOf(kRouterScale), {H});
    w.expert_scale = checkpoint_.Values(NameOf(kExpertScale), {E});
    w.pre_norm = Norm(kMoePreNorm, H);
    w.dense_post_norm = Norm(kDensePostNorm, H);
    w.post_norm = Norm(kMoePostNorm, H);
    w.down = Experts(kDownExps, E, H, F);
    if (Has(NameOf(kGateExps))) {
      w.gate = Experts(kGateExps, E, F, H);
      w.up = Experts(kUpExps, E, F, H);
    } else {
      w.gate_up = Experts(kGateUpExps, E, 2 * F, H);
    }
  }

  std::string NameOf(const Name& name) const {
    return names_ == TensorNames::kGguf ? prefix_ + name.gguf
                                        : root_ + prefix_ + name.hf;
  }

  // "….q_proj" of "….q_proj.weight"
  std::string ModuleOf(const Name& name) const {
    const std::string full = NameOf(name);
    return full.substr(0, full.rfind('.'));
  }

  std::string FindRoot() const {
    for (const std::string_view prefix : kTextRoots) {
      const std::string root(prefix);
      if (Has(root + kEmbedding.hf) || Has(root + kNorm.hf)) return root;
    }
    return "model.";
  }

  bool Has(std::string_view name) const { return checkpoint_.Has(name); }

  WeightView View(const std::string& name, const Shape& shape, size_t N, size_t K) {
    const TensorView* tensor = checkpoint_.Decodable(name, shape);
    if (tensor == nullptr) return {};
    return {.format = *tensor->format, .N = N, .K = K, .data = tensor->data};
  }

  WeightView Matrix(const Name& name, size_t N, size_t K) {
    const std::string module = ModuleOf(name);
    if (packed_.Has(module)) return packed_.Matrix(module, N, K);
    return View(NameOf(name), {N, K}, N, K);
  }
  WeightView Experts(const Name& name, size_t E, size_t N, size_t K) {
    if (packed_.HasExperts(NameOf(name))) return packed_.Experts(NameOf(name), E, N, K);
    return View(NameOf(name), {E, N, K}, E * N, K);
  }

  Vector Norm(const Name& name, size_t n) {
    Vector values = checkpoint_.Values(NameOf(name), {n});
    if (names_ == TensorNames::kHuggingFace && c_.family->norms_minus_one) {
      for (float& v : values) v += 1.0f;
    }
    return values;
  }

  const ModelConfig& c_;
  const TensorNames names_;
  ModelWeights w_;
  Checkpoint checkpoint_;
  PackedLoader packed_;
  std::string root_, prefix_;
};

}  // namespace

WeightView MoeWeights::Gate(size_t expert, size_t ffn_len) const {
  return gate.data != nullptr ? gate.Rows(expert * ffn_len, ffn_len)
                              : gate_up.Rows(2 * expert * ffn_len, ffn_len);
}

WeightView MoeWeights::Up(size_t expert, size_t ffn_len) const {
  return up.data != nullptr ? up.Rows(expert * ffn_len, ffn_len)
                            : gate_up.Rows((2 * expert + 1) * ffn_len, ffn_len);
}

ModelWeights LoadWeights(const ModelConfig& config, std::span<const TensorView> tensors,
                         TensorNames names, const Quantization& quantization) {
  return Loader(config, tensors, names, quantization).Load();
}

}  // namespace halfbyte
