// csrc/model/sampler.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/sampler.h"

#include <math.h>

#include <algorithm>
#include <limits>
#include <string>

#include "base/error.h"
#include "kernels/softmax.h"
#include "model/largest.h"

namespace halfbyte {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

void Check(bool ok, const char* name, float value, const char* range) {
  if (ok) return;
  throw Error(ErrorClass::kValue, std::string(name) + ": found " +
                                      std::to_string(value) + "; expected " + range);
}

void Penalize(std::span<float> logits, std::span<const int32_t> history,
              float penalty) {
  std::vector<int32_t> ids(history.begin(), history.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  constexpr float kMost = std::numeric_limits<float>::max();  // no infinity, or NaN
  for (const int32_t id : ids) {
    float& logit = logits[static_cast<size_t>(id)];
    logit = std::min(logit > 0.0f ? logit / penalty : logit * penalty, kMost);
  }
}

}  // namespace

Sampler::Sampler(const SamplingParams& params, uint64_t seed)
    : params_(params), seed_(seed) {
  const SamplingParams& p = params_;
  Check(std::isfinite(p.temperature) && p.temperature >= 0.0f, "temperature",
        p.temperature, "a finite number, 0 or more");
  Check(p.top_p > 0.0f && p.top_p <= 1.0f, "top_p", p.top_p, "above 0, at most 1");
  Check(p.min_p >= 0.0f && p.min_p < 1.0f, "min_p", p.min_p, "0 or more, below 1");
  Check(std::isfinite(p.repetition_penalty) && p.repetition_penalty > 0.0f,
        "repetition_penalty", p.repetition_penalty, "a finite number above 0");
}

// SplitMix64 of a counter (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
// Generators, 2014): no state but seed and position, the same on every machine.
double Sampler::NextUniform() {
  uint64_t z = seed_ + ++draws_ * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

// Leaves in candidates_ the tokens that may be drawn, in weights_ what each weighs.
void Sampler::Filter(std::span<const float> logits) {
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] != kNever)
      candidates_.push_back({logits[i], static_cast<int32_t>(i)});
  }
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  const size_t k = params_.top_k;
  if (k != 0 && k < candidates_.size()) {
    std::nth_element(candidates_.begin(),
                     candidates_.begin() + static_cast<ptrdiff_t>(k), candidates_.end(),
                     before);
    candidates_.resize(k);
  }
  std::sort(candidates_.begin(), candidates_.end(), before);
  weights_.clear();
  double sum = 0.0;
  for (const Candidate& c : candidates_) {
    const double above = static_cast<double>(c.logit) - candidates_.front().logit;
    weights_.push_back(exp(above / params_.temperature));
    sum += weights_.back();
  }
  // The first weight is 1. Both cuts keep the likeliest token.
  size_t keep = weights_.size();
  if (params_.top_p < 1.0f) {
    double below = 0.0;
    for (size_t i = 0; i < keep; ++i) {
      below += weights_[i];
      if (below >= static_cast<double>(params_.top_p) * sum) keep = i + 1;
    }
  }
  while (keep > 1 && weights_[keep - 1] < params_.min_p) --keep;
  weights_.resize(keep);
}

int32_t Sampler::Draw() {
  double sum = 0.0;
  for (const double w : weights_) sum += w;
  double left = NextUniform() * sum;
  for (size_t i = 0; i < weights_.size(); ++i) {
    left -= weights_[i];
    if (left < 0.0) return candidates_[i].id;
  }
  return candidates_[weights_.size() - 1].id;  // rounding used up the last weight
}

int32_t Sampler::Sample(std::span<float> logits, std::span<const int32_t> history,
                        std::span<const int32_t> suppressed) {
  if (std::any_of(logits.begin(), logits.end(),
                  [](float x) { return !(x < -kNever); })) {
    throw Error(
        ErrorClass::kNumerical,
        "logits: found NaN or infinity; the weights or the input are not finite");
  }
  const int32_t unfiltered = ArgMax(logits);
  for (const int32_t id : suppressed) logits[static_cast<size_t>(id)] = kNever;
  if (params_.repetition_penalty != 1.0f) {
    Penalize(logits, history, params_.repetition_penalty);
  }
  const int32_t best = ArgMax(logits);
  if (logits[static_cast<size_t>(best)] == kNever) return unfiltered;
  if (params_.temperature == 0.0f) return best;
  Filter(logits);
  return Draw();
}

std::vector<TokenLogprob> Logprobs(std::span<const float> logits, int32_t id,
                                   size_t top) {
  std::vector<int32_t> ids = Largest(logits, top);
  ids.insert(ids.begin(), id);
  const double log_sum = LogSumExp(logits.data(), logits.size());
  std::vector<TokenLogprob> found;
  for (const int32_t i : ids) {
    found.push_back({i, logits[static_cast<size_t>(i)] - log_sum});
  }
  return found;
}

}  // namespace halfbyte
