// csrc/model/forward.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/forward.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <numeric>

#include "kernels/activation.h"
#include "kernels/softmax.h"
#include "kernels/vector_ops.h"
#include "model/largest.h"
#include "ops/linear.h"
#include "ops/rows.h"
#include "ops/rowwise.h"

namespace halfbyte {
namespace {

// Rounded from double, and below no product is fused with a sum: what stands between
// the products of matrices has the bits of transformers' modules in float32.
float InverseRoot(size_t n) {
  return static_cast<float>(1.0 / sqrt(static_cast<double>(n)));
}

// y.Row(i) = row ids[i] of the table.
void Gather(const Context& context, const Model& model, Workspace& workspace,
            const WeightView& table, std::span<const int32_t> ids, Mat<float> y) {
  std::vector<int32_t> all(ids.size());
  std::iota(all.begin(), all.end(), 0);
  EmbeddingRows(context, workspace.table_rows.Copy(model, table, ids), all, y);
}

void ScaleRows(const Context& context, float a, Mat<float> x) {
  ForEachRow(context, x.rows, x.cols, [&](size_t m) { Scale(a, x.cols, x.Row(m)); });
}

// One pass. M tokens, H hidden_size, D head_dim of the layer, P ple_len, F ffn_len.
class Pass {
 public:
  // `ahead`: 1 for a drafter's token, which adds no keys. It attends as the one before
  // it does, and is turned as what follows that.
  Pass(const Context& context, const Model& model,
       std::span<const PassSequence> sequences, Workspace& workspace, size_t num_tokens,
       size_t ahead = 0)
      : context_(context),
        model_(model),
        c_(model.config()),
        sequences_(sequences),
        ws_(workspace),
        num_tokens_(num_tokens),
        tokens_of_each_(num_tokens / sequences.size()) {
    Require(tokens_of_each_ * sequences.size() == num_tokens,
            "pass: more tokens of one sequence than of another");
    std::vector<uint64_t> positions;
    for (const PassSequence& sequence : sequences) {
      for (size_t i = 0; i < tokens_of_each_; ++i) {
        positions.push_back(sequence.position + ahead + i);
      }
    }
    turns_sliding_ = RopeTurns::Make(context, model.rope(true), positions);
    turns_full_ = RopeTurns::Make(context, model.rope(false), positions);
  }

  void Run(std::span<const int32_t> ids, Mat<float> logits) {
    Mat<float> h = ws_.stream.Shape(num_tokens_, c_.hidden_size);
    Inputs(ids, h);
    Require(sequences_.size() == 1 || logits.rows == num_tokens_,
            "pass: logits of some tokens of several sequences");
    const size_t first_shared = c_.FirstSharedLayer();
    for (size_t l = 0; l < c_.layers.size(); ++l) {
      // Layers without keys of their own leave nothing behind for later tokens: from
      // here on only the tokens whose logits are wanted matter.
      if (l == first_shared) {
        first_row_ = num_tokens_ - logits.rows;
        h = h.Slice(first_row_, logits.rows);
      }
      if (h.rows == 0) return;
      Layer(l, h);
    }
    if (logits.rows != 0) Head(h.Slice(h.rows - logits.rows, logits.rows), logits);
  }

  void Draft(Mat<const float> x, Mat<float> y) const {
    const Mat<float> h = ws_.stream.Shape(x.rows, c_.hidden_size);
    Product(x, model_.weights().drafter.in, h);
    for (size_t l = 0; l < c_.layers.size(); ++l) Layer(l, h);
    Norm(h, model_.weights().norm, y);
  }

  void Inputs(std::span<const int32_t> ids, Mat<float> h) const {
    EmbedTokens(context_, model_, ws_, ids, h);
    if (c_.ple_len != 0) PerLayerInputs(ids, h);
  }

  // What Inputs leaves for the layers: [num_tokens, L P].
  Mat<float> Ple() const {
    return ws_.ple.Shape(num_tokens_, c_.layers.size() * c_.ple_len);
  }

  void Layer(size_t l, Mat<float> h) const {
    AttentionBlock(l, h);
    FeedForward(l, h);
    if (c_.ple_len != 0) PerLayerBlock(l, h);
    if (c_.family->layer_scale) ScaleRows(context_, W(l).scale, h);
  }

  void Head(Mat<const float> h, Mat<float> logits) const {
    const Mat<float> y = ws_.head.Shape(h.rows, c_.hidden_size);
    Norm(h, model_.weights().norm, y);
    Product(y, model_.weights().head, logits);
    if (c_.softcap == 0.0f) return;
    ForEachRow(context_, logits.rows, logits.cols,
               [&](size_t m) { Softcap(logits.Row(m), logits.cols, c_.softcap); });
  }

 private:
  const LayerWeights& W(size_t l) const { return model_.weights().layers[l]; }
  ActivationMode mode() const { return model_.options().activations; }

  void Norm(Mat<const float> x, const Vector& weight, Mat<float> y) const {
    RmsNorm(context_, x, weight, c_.norm_eps, y);
  }

  void Product(Mat<const float> x, const WeightView& w, Mat<float> y) const {
    LinearInput in(context_, x, mode());
    Linear(in, w, y);
  }

  // The table has a row for each token, or for each token and layer.
  void PleRows(const WeightView& table, std::span<const int32_t> ids,
               Mat<float> y) const {
    const size_t parts = y.cols / table.K;
    std::vector<int32_t> rows(ids.size() * parts);
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i] = ids[i / parts] * static_cast<int32_t>(parts) +
                static_cast<int32_t>(i % parts);
    }
    const Mat<float> parts_of_y(y.data, rows.size(), table.K);
    Gather(context_, model_, ws_, table, rows, parts_of_y);
  }

  // ple[m, l] = (norm(projection of h) + table row * sqrt(P)) / sqrt(2): what each
  // layer adds that depends on the token itself.
  void PerLayerInputs(std::span<const int32_t> ids, Mat<const float> h) const {
    const ModelWeights& w = model_.weights();
    const size_t L = c_.layers.size(), P = c_.ple_len;
    const Mat<float> ple = Ple();
    Product(h, w.ple_model_proj, ple);
    ScaleRows(context_, InverseRoot(c_.hidden_size), ple);
    RmsNormHeads(context_, ple, L, w.ple_proj_norm, c_.norm_eps);
    const float scale = sqrtf(static_cast<float>(P));
    constexpr size_t kAtOnce = 16;  // tokens: their rows are decoded beside `ple`
    for (size_t begin = 0; begin < h.rows; begin += kAtOnce) {
      const size_t count = std::min(kAtOnce, h.rows - begin);
      const Mat<float> rows = ws_.ple_rows.Shape(count, L * P);
      PleRows(w.ple_table, ids.subspan(begin, count), rows);
      ForEachRow(context_, count, L * P, [&](size_t m) {
        Scale(scale, L * P, rows.Row(m));
        Add(rows.Row(m), L * P, ple.Row(begin + m));
        Scale(sqrtf(0.5f), L * P, ple.Row(begin + m));
      });
    }
  }

  void AttentionBlock(size_t l, Mat<float> h) const {
    const LayerConfig& layer = c_.layers[l];
    const LayerWeights& w = W(l);
    const size_t q_cols = c_.num_heads * layer.head_dim;
    const Mat<float> a = ws_.norm.Shape(h.rows, c_.hidden_size);
    Norm(h, w.attn_norm, a);
    LinearInput in(context_, a, mode());
    if (c_.OwnsKv(l)) AppendKv(l, in);
    const Mat<float> q = ws_.wide.Shape(h.rows, q_cols);
    Linear(in, w.q, q);
    RmsNormHeads(context_, q, c_.num_heads, w.q_norm, c_.norm_eps);
    Rope(context_, q, c_.num_heads, Turns(l), first_row_);
    const Mat<float> mixed = ws_.wide_too.Shape(h.rows, q_cols);
    std::vector<KvQueries> queries;
    for (const PassSequence& sequence : sequences_) {
      queries.push_back({sequence.kv[l], sequence.position + first_row_});
    }
    Attention(context_, queries, q, c_.num_heads, c_.attention_scale, mixed);
    const Mat<float> out = ws_.branch.Shape(h.rows, c_.hidden_size);
    Product(mixed, w.o, out);
    Norm(out, w.post_attn_norm, out);
    AddRows(context_, out, h);
  }

  const RopeTurns& Turns(size_t l) const {
    return c_.layers[l].sliding ? turns_sliding_ : turns_full_;
  }

  void AppendKv(size_t l, LinearInput& a) const {
    const LayerConfig& layer = c_.layers[l];
    const LayerWeights& w = W(l);
    const size_t M = a.x().rows, cols = layer.num_kv_heads * layer.head_dim;
    const Mat<float> k = ws_.k.Shape(M, cols), v = ws_.v.Shape(M, cols);
    Linear(a, w.k, k);
    if (w.v.data != nullptr) {
      Linear(a, w.v, v);
    } else {  // values are the keys before their norm and rotation
      CopyRows(context_, k, v);
    }
    if (c_.family->value_norm) {
      RmsNormHeads(context_, v, layer.num_kv_heads, {}, c_.norm_eps);
    }
    RmsNormHeads(context_, k, layer.num_kv_heads, w.k_norm, c_.norm_eps);
    Rope(context_, k, layer.num_kv_heads, Turns(l));
    size_t row = 0;
    for (const PassSequence& sequence : sequences_) {
      sequence.kv[l]->Append(context_, sequence.position, k.Slice(row, tokens_of_each_),
                             v.Slice(row, tokens_of_each_));
      row += tokens_of_each_;
    }
  }

  void FeedForward(size_t l, Mat<float> h) const {
    const LayerWeights& w = W(l);
    const Mat<float> in = ws_.norm.Shape(h.rows, c_.hidden_size);
    const Mat<float> out = ws_.branch.Shape(h.rows, c_.hidden_size);
    Norm(h, w.ffn_norm, in);
    Mlp(in, w.gate, w.up, w.down, out);
    if (c_.num_experts != 0) {
      Norm(out, w.moe.dense_post_norm, out);
      AddExperts(w.moe, h, out);
    }
    Norm(out, w.post_ffn_norm, out);
    AddRows(context_, out, h);
  }

  // out = down (gelu(gate in) * (up in))
  void Mlp(Mat<const float> in, const WeightView& w_gate, const WeightView& w_up,
           const WeightView& w_down, Mat<float> out) const {
    LinearInput x(context_, in, mode());
    const Mat<float> gate = ws_.wide.Shape(in.rows, w_gate.N);
    const Mat<float> up = ws_.wide_too.Shape(in.rows, w_up.N);
    Linear(x, w_gate, gate);
    Linear(x, w_up, up);
    GeluMul(context_, gate, up, gate);
    Product(gate, w_down, out);
  }

  // One token's weight for one expert.
  struct Choice {
    size_t token;
    float weight;
  };

  // By expert, the tokens that use it.
  std::vector<std::vector<Choice>> Route(const MoeWeights& w,
                                         Mat<const float> residual) const {
    const size_t E = c_.num_experts;
    const Mat<float> t = ws_.norm.Shape(residual.rows, c_.hidden_size);
    Norm(residual, {}, t);
    ForEachRow(context_, t.rows, t.cols,
               [&](size_t m) { Mul(w.router_scale.data(), t.cols, t.Row(m)); });
    ScaleRows(context_, InverseRoot(c_.hidden_size), t);
    const Mat<float> p = ws_.router.Shape(residual.rows, E);
    Product(t, w.router, p);
    Softmax(context_, p, p);
    std::vector<std::vector<Choice>> chosen(E);
    for (size_t m = 0; m < p.rows; ++m) {
      const float* row = p.Row(m);
      const std::vector<int32_t> top = Largest({row, E}, c_.num_experts_used);
      float sum = 0.0f;
      for (const int32_t e : top) sum += row[e];
      for (const int32_t e : top) {
        const auto expert = static_cast<size_t>(e);
        chosen[expert].push_back({m, row[expert] / sum * w.expert_scale[expert]});
      }
    }
    return chosen;
  }

  // out += norm(sum of the chosen experts' outputs). Experts add up in ascending order.
  void AddExperts(const MoeWeights& w, Mat<const float> residual,
                  Mat<float> out) const {
    const size_t H = c_.hidden_size, F = c_.expert_ffn_len;
    const auto chosen = Route(w, residual);
    const Mat<float> in = ws_.norm.Shape(residual.rows, H);
    Norm(residual, w.pre_norm, in);
    const Mat<float> sum = ws_.routed.Shape(residual.rows, H);
    std::fill_n(sum.data, sum.rows * H, 0.0f);
    for (size_t e = 0; e < chosen.size(); ++e) {
      const std::vector<Choice>& tokens = chosen[e];
      if (tokens.empty()) continue;
      const Mat<float> x = ws_.expert_in.Shape(tokens.size(), H);
      const Mat<float> y = ws_.expert_out.Shape(tokens.size(), H);
      for (size_t i = 0; i < tokens.size(); ++i) {
        memcpy(x.Row(i), in.Row(tokens[i].token), H * sizeof(float));
      }
      Mlp(x, w.Gate(e, F), w.Up(e, F), w.down.Rows(e * H, H), y);
      for (size_t i = 0; i < tokens.size(); ++i) {
        Scale(tokens[i].weight, H, y.Row(i));
        Add(y.Row(i), H, sum.Row(tokens[i].token));
      }
    }
    Norm(sum, w.post_norm, sum);
    AddRows(context_, sum, out);
  }

  // h += norm(proj (gelu(gate h) * ple))
  void PerLayerBlock(size_t l, Mat<float> h) const {
    const LayerWeights& w = W(l);
    const size_t L = c_.layers.size(), P = c_.ple_len;
    const Mat<const float> ple(Ple().Row(first_row_) + l * P, h.rows, P, L * P);
    const Mat<float> gate = ws_.wide.Shape(h.rows, P);
    const Mat<float> out = ws_.branch.Shape(h.rows, c_.hidden_size);
    Product(h, w.ple_gate, gate);
    GeluMul(context_, gate, ple, gate);
    Product(gate, w.ple_proj, out);
    Norm(out, w.ple_norm, out);
    AddRows(context_, out, h);
  }

  const Context& context_;
  const Model& model_;
  const ModelConfig& c_;
  const std::span<const PassSequence> sequences_;
  Workspace& ws_;
  const size_t num_tokens_, tokens_of_each_;
  size_t first_row_ = 0;  // of the tokens that are still in the stream
  RopeTurns turns_sliding_, turns_full_;
};

}  // namespace

// embedding * sqrt(H)
void EmbedTokens(const Context& context, const Model& model, Workspace& workspace,
                 std::span<const int32_t> ids, Mat<float> scaled) {
  Gather(context, model, workspace, model.weights().embedding, ids, scaled);
  ScaleRows(context, sqrtf(static_cast<float>(scaled.cols)), scaled);
}

KvLayers MakeKv(const Model& model) {
  KvLayers kv(model.config().layers.size());
  for (size_t l = 0; l < kv.size(); ++l) {
    if (model.config().OwnsKv(l)) kv[l].emplace(model.KvShape(l));
  }
  return kv;
}

KvSources SourcesOf(const Model& model, KvLayers& kv) {
  Require(!model.config().IsDrafter(), "a drafter has no keys of its own");
  KvSources sources;
  for (const LayerConfig& layer : model.config().layers) {
    sources.push_back(&*kv[layer.kv_source]);
  }
  return sources;
}

void Workspace::FitTo(size_t num_tokens) {
  constexpr size_t kFewer = 16;
  if (num_tokens * kFewer <= most_tokens) *this = {};
  most_tokens = std::max(most_tokens, num_tokens);
}

void RunChunk(const Context& context, const Model& model,
              std::span<const PassSequence> sequences, Workspace& workspace,
              std::span<const int32_t> ids, Mat<float> logits) {
  workspace.FitTo(ids.size());
  Pass(context, model, sequences, workspace, ids.size()).Run(ids, logits);
}

void RunDraft(const Context& context, const Model& drafter, const KvSources& sources,
              Workspace& workspace, size_t position, Mat<const float> x, Mat<float> y) {
  const PassSequence sequence = {sources, position - 1};
  Pass(context, drafter, {&sequence, 1}, workspace, 1, 1).Draft(x, y);
}

Stages::Stages(const Context& context, const Model& model, KvLayers& kv,
               Workspace& workspace)
    : context_(context),
      model_(model),
      sequence_{SourcesOf(model, kv), 0},
      workspace_(workspace) {}

void Stages::Inputs(std::span<const int32_t> ids, Mat<float> h, Mat<float> ple) const {
  const Pass pass(context_, model_, {&sequence_, 1}, workspace_, ids.size());
  pass.Inputs(ids, h);
  if (ple.cols != 0) CopyRows(context_, pass.Ple(), ple);
}

void Stages::Layer(size_t layer, Mat<const float> ple, Mat<float> h) const {
  const Pass pass(context_, model_, {&sequence_, 1}, workspace_, h.rows);
  const Mat<float> all = pass.Ple();
  CopyRows(context_, ple,
           Mat<float>(all.data + layer * ple.cols, ple.rows, ple.cols, all.ld));
  pass.Layer(layer, h);
}

void Stages::Head(Mat<const float> h, Mat<float> logits) const {
  Pass(context_, model_, {&sequence_, 1}, workspace_, h.rows).Head(h, logits);
}

}  // namespace halfbyte
