// csrc/model/drafter.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/drafter.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "model/largest.h"
#include "ops/linear.h"

namespace halfbyte {
namespace {

[[noreturn]] void Fail(const Model& drafter, const char* subject, std::string found,
                       std::string expected) {
  ErrorInfo info;
  info.path = drafter.path();
  info.kind = "model";
  info.code = "MODEL_DRAFTER";
  info.subject = std::string("drafter: ") + subject;
  info.found = std::move(found);
  info.expected = std::move(expected);
  info.hint = "take the drafter that was made for this model";
  throw Error(ErrorClass::kModel, std::move(info));
}

void RequireSame(const Model& drafter, const char* subject, size_t found,
                 size_t expected) {
  if (found == expected) return;
  Fail(drafter, subject, std::to_string(found),
       std::to_string(expected) + ", as of the model");
}

// The last layer of the target that has keys of its own and is of that kind.
size_t SourceFor(const Model& drafter, const ModelConfig& target, bool sliding) {
  size_t l = target.layers.size();
  while (l != 0) {
    --l;
    if (target.OwnsKv(l) && target.layers[l].sliding == sliding) return l;
  }
  Fail(drafter, sliding ? "sliding layers" : "full layers", "some",
       "none, as of the model");
}

}  // namespace

Drafter::Drafter(std::shared_ptr<const Model> model, const Model& target)
    : model_(std::move(model)) {
  const ModelConfig &c = model_->config(), &t = target.config();
  const auto same = [this](const char* subject, size_t found, size_t expected) {
    RequireSame(*model_, subject, found, expected);
  };
  same("backbone_hidden_size", c.drafter.backbone_size, t.hidden_size);
  same("vocab_size", c.vocab_size, t.vocab_size);
  for (const LayerConfig& layer : c.layers) {
    sources_.push_back(SourceFor(*model_, t, layer.sliding));
    const LayerConfig& source = t.layers[sources_.back()];
    same("head_dim", layer.head_dim, source.head_dim);
    same("num_key_value_heads", layer.num_kv_heads, source.num_kv_heads);
  }
}

std::vector<int32_t> Drafter::Draft(const Context& context, const Model& target,
                                    KvLayers& kv, Workspace& workspace,
                                    std::span<const float> hidden, int32_t id,
                                    size_t position, size_t count) {
  model_->CheckFiles();
  KvSources sources;
  for (const size_t source : sources_) sources.push_back(&*kv[source]);
  const DrafterWeights& w = model_->weights().drafter;
  const size_t backbone = hidden.size();
  const Mat<float> in = in_.Shape(1, 2 * backbone);  // the token, and what led to it
  const Mat<float> token(in.data, 1, backbone), state(in.data + backbone, 1, backbone);
  const Mat<float> y = y_.Shape(1, model_->config().hidden_size);
  std::ranges::copy(hidden, state.data);
  std::vector<int32_t> drafted;
  while (drafted.size() < count) {
    EmbedTokens(context, target, workspace, std::span(&id, 1), token);
    RunDraft(context, *model_, sources, workspace_, position, in, y);
    id = w.order.empty() ? Likeliest(context, y) : LikeliestInClusters(context, y);
    drafted.push_back(id);
    LinearInput next(context, y, model_->options().activations);
    Linear(next, w.out, state);
  }
  return drafted;
}

int32_t Drafter::Likeliest(const Context& context, Mat<const float> y) {
  const WeightView& head = model_->weights().head;
  const Mat<float> logits = logits_.Shape(1, head.N);
  LinearInput in(context, y, model_->options().activations);
  Linear(in, head, logits);
  return ArgMax({logits.data, logits.cols});
}

// Among the tokens of the clusters whose centroids y is most alike: the head's rows lie
// in their order.
int32_t Drafter::LikeliestInClusters(const Context& context, Mat<const float> y) {
  const ModelWeights& w = model_->weights();
  const size_t clusters = model_->config().drafter.num_clusters;
  const size_t len = w.head.N / clusters;
  LinearInput in(context, y, model_->options().activations);
  const Mat<float> scores = scores_.Shape(1, clusters);
  Linear(in, w.drafter.centroids, scores);
  const std::vector<int32_t> best =
      Largest({scores.data, clusters}, model_->config().drafter.num_clusters_used);
  const auto first_row = [&](size_t i) { return static_cast<size_t>(best[i]) * len; };
  const Mat<float> logits = logits_.Shape(1, best.size() * len);
  for (size_t i = 0; i < best.size(); ++i) {
    Linear(in, w.head.Rows(first_row(i), len),
           Mat<float>(logits.data + i * len, 1, len));
  }
  const auto at = static_cast<size_t>(ArgMax({logits.data, logits.cols}));
  return w.drafter.order[first_row(at / len) + at % len];
}

}  // namespace halfbyte
