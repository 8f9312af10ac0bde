// csrc/kernels/search.cc
// Lanes are trial steps and the sums over weights run in order, so that every target
// and any width of vectors finds the same. Trials: the ordinary quantizer's step, and a
// geometric series with both signs; 15 near the best, and the step that fits the
// best one's levels by least squares; and once more the last.
//
// On Gaussian and on heavier tails the error is within 0.2 % of that of the best f16
// step for Q4_0 (62 trials to begin with; 30 leave 0.4 %, and without the fit 62 leave
// 0.9 %).
// SPDX-License-Identifier: Apache-2.0
#include "kernels/search.h"

#include <math.h>

#include <algorithm>

#include "base/targets.h"  // before any Highway header
#include "formats/step.h"
#include "kernels/q8.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/search.cc"  // this file, re-included per target
// clang-format on
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h
#include "formats/q4_0-inl.h"
#include "formats/q8_0-inl.h"
#include "formats/w2-inl.h"
#include "formats/w4-inl.h"
#include "formats/w4g32-inl.h"
#include "formats/w8-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;

constexpr size_t kBlock = 32;
constexpr size_t kTrials = 64;
constexpr size_t kPerSign = (kTrials - 2) / 2;
constexpr size_t kNear = 16;

// Of the largest magnitude over the lowest level, where trials begin, and how far each
// is from the next: 31 of them reach 1.2. The larger of many weights is further out.
template <class Fmt>
constexpr float kFirst = kHasRowScale<Fmt> ? 0.08f : 0.4f;
template <class Fmt>
constexpr float kRatio = kHasRowScale<Fmt> ? 1.0945f : 1.0373f;

// Readers of safetensors take no step below 0. There the trials that the other sign
// would be are between the first, by the root of the ratio.
template <class Fmt>
constexpr bool kBothSigns = !kHasRowScale<Fmt> && !kHasBF16Scale<Fmt>;
template <class Fmt>
constexpr float kBetween = kHasRowScale<Fmt> ? 1.0462f : 1.0185f;

// The power of two that brings `largest` near 1.
float UnitFor(float largest) {
  if (!(largest > 0.0f) || !isfinite(largest)) return 1.0f;
  return ldexpf(1.0f, -std::clamp(ilogbf(largest), -126, 126));
}

// Weights that share a step, and how much the error of each counts. The units keep
// squares of tiny errors, and tiny factors of them, from vanishing.
struct Group {
  const float* x;
  const float* importance;  // null: 1
  size_t len;               // a multiple of kBlock
  float unit, importance_unit;

  static Group Of(const float* x, float largest, const float* importance, size_t len) {
    const float most = importance == nullptr ? 1.0f : MaxMagnitude(importance, len);
    const bool counts = most > 0.0f;  // or none does, and all do alike
    return {x, counts ? importance : nullptr, len, UnitFor(largest), UnitFor(most)};
  }

  float Importance(size_t i) const {
    return importance == nullptr ? 1.0f : importance[i] * importance_unit;
  }
};

struct Trial {
  float step;
  float error;
};

float Reciprocal(float step) { return step == 0.0f ? 0.0f : 1.0f / step; }

template <class Fmt>
float Level(float x, float inv_step) {
  const float level = rintf(x * inv_step);
  return fmaxf(kLowestLevel<Fmt>, fminf(kHighestLevel<Fmt>, level));
}

// The error of each of `num` steps, a multiple of 16. Blocks are summed apart: the
// sum over a long row is then as good as over a short one.
template <class Fmt>
void Errors(const Group& g, const float* steps, size_t num, float* errors) {
  const DF df;
  const auto low = hn::Set(df, kLowestLevel<Fmt>),
             high = hn::Set(df, kHighestLevel<Fmt>);
  const auto unit = hn::Set(df, g.unit);
  alignas(64) float inverse[kTrials];
  for (size_t t = 0; t < num; ++t) inverse[t] = Reciprocal(steps[t]);
  for (size_t t = 0; t < num; t += hn::Lanes(df)) {
    const auto step = hn::Load(df, steps + t), inv_step = hn::Load(df, inverse + t);
    auto total = hn::Zero(df);
    for (size_t begin = 0; begin < g.len; begin += kBlock) {
      auto sum = hn::Zero(df);
      for (size_t i = begin; i < begin + kBlock; ++i) {
        const auto x = hn::Set(df, g.x[i]);
        const auto nearest = hn::Round(hn::Mul(x, inv_step));
        const auto level = hn::Max(low, hn::Min(high, nearest));
        const auto off = hn::Mul(hn::Sub(x, hn::Mul(step, level)), unit);
        const auto squared = hn::Mul(off, off);
        sum = hn::Add(sum, hn::Mul(squared, hn::Set(df, g.Importance(i))));
      }
      total = hn::Add(total, sum);
    }
    hn::Store(total, df, errors + t);
  }
}

// Replaces `best` by the first of those steps that has less error than all others.
template <class Fmt>
void Try(const Group& g, const float* steps, size_t num, Trial& best) {
  alignas(64) float errors[kTrials];
  Errors<Fmt>(g, steps, num, errors);
  for (size_t t = 0; t < num; ++t) {
    if (errors[t] < best.error) best = {steps[t], errors[t]};
  }
}

// The step that fits the levels of `step` by least squares.
template <class Fmt>
float Fit(const Group& g, float step) {
  const float inv_step = Reciprocal(step);
  double along = 0.0, square = 0.0;
  for (size_t i = 0; i < g.len; ++i) {
    const double level = Level<Fmt>(g.x[i], inv_step);
    const double weighted = level * g.Importance(i);
    along += weighted * g.x[i];
    square += weighted * level;
  }
  return square > 0.0 ? StorableStep<Fmt>(static_cast<float>(along / square)) : step;
}

template <class Fmt>
float BestStep(const Group& g, float largest, float ordinary) {
  alignas(64) float steps[kTrials];
  Trial best = {StorableStep<Fmt>(ordinary), INFINITY};
  float trial = largest / -static_cast<float>(kLowestLevel<Fmt>) * kFirst<Fmt>;
  for (size_t k = 0; k < kPerSign; ++k, trial *= kRatio<Fmt>) {
    steps[2 * k] = StorableStep<Fmt>(trial);
    steps[2 * k + 1] =
        kBothSigns<Fmt> ? -steps[2 * k] : StorableStep<Fmt>(trial * kBetween<Fmt>);
  }
  steps[kTrials - 2] = steps[kTrials - 1] = best.step;
  Try<Fmt>(g, steps, kTrials, best);

  constexpr float kNearer = (kRatio<Fmt> - 1.0f) / (kNear / 2);
  const float middle = best.step;
  for (size_t k = 1; k < kNear; ++k) {
    const float away = static_cast<float>(k) - static_cast<float>(kNear / 2);
    steps[k] = StorableStep<Fmt>(middle * (1.0f + away * kNearer));
  }
  steps[0] = Fit<Fmt>(g, middle);
  Try<Fmt>(g, steps, kNear, best);

  const float fitted = Fit<Fmt>(g, best.step);
  for (size_t k = 0; k < kNear; ++k) steps[k] = fitted;
  Try<Fmt>(g, steps, kNear, best);
  return best.step;
}

template <class Fmt>
void PackBlock(const float* x, float inv_step, typename Fmt::Block& block) {
  uint8_t codes[kBlock];
  for (size_t i = 0; i < kBlock; ++i) {
    codes[i] = static_cast<uint8_t>(Level<Fmt>(x[i], inv_step) - kLowestLevel<Fmt>);
  }
  Fmt::Pack(codes, block);
}

template <class Fmt>
void EncodeBlock(const float* x, const float* importance, typename Fmt::Block& block) {
  Fmt::EncodeRowRef(x, 1, &block);
  const float largest = MaxMagnitude(x, kBlock);
  if (!isfinite(largest)) return;
  const Group g = Group::Of(x, largest, importance, kBlock);
  const float ordinary = StepOfBits<Fmt>(LoadU16(block.d));
  const float step = BestStep<Fmt>(g, largest, ordinary);
  StoreStep<Fmt>(StepBits<Fmt>(step), block);
  PackBlock<Fmt>(x, Reciprocal(step), block);
}

template <class Fmt>
float EncodeRow(const float* x, const float* importance, size_t K, uint8_t* w) {
  static_assert(Fmt::kBlockLen == kBlock && Fmt::kGroupLen == kBlock);
  auto* blocks = reinterpret_cast<typename Fmt::Block*>(w);
  if constexpr (kHasRowScale<Fmt>) {
    const float ordinary = Fmt::EncodeRowScaledRef(x, K / kBlock, blocks);
    const float largest = MaxMagnitude(x, K);
    if (!isfinite(largest)) return ordinary;
    const Group g = Group::Of(x, largest, importance, K);
    const float step = BestStep<Fmt>(g, largest, ordinary);
    for (size_t i = 0; i < K; i += kBlock) {
      PackBlock<Fmt>(x + i, Reciprocal(step), blocks[i / kBlock]);
    }
    return step;
  } else {
    for (size_t i = 0; i < K; i += kBlock) {
      const float* factors = importance == nullptr ? nullptr : importance + i;
      EncodeBlock<Fmt>(x + i, factors, blocks[i / kBlock]);
    }
    return 1.0f;
  }
}

using Encoder = float (*)(const float*, const float*, size_t, uint8_t*);

// Null for formats that are not of signed levels with one step.
Encoder EncoderOf(Format format) {
  switch (format) {
    case Format::kQ4_0:
      return &EncodeRow<Q4_0>;
    case Format::kQ8_0:
      return &EncodeRow<Q8_0>;
    case Format::kW4G32:
      return &EncodeRow<W4G32>;
    case Format::kW8:
      return &EncodeRow<W8>;
    case Format::kW4:
      return &EncodeRow<W4>;
    case Format::kW2:
      return &EncodeRow<W2>;
    default:
      return nullptr;
  }
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfbyte {

HWY_EXPORT(EncoderOf);

bool HasSearch(Format format) noexcept {
  return HWY_DYNAMIC_DISPATCH(EncoderOf)(format) != nullptr;
}

float SearchRow(Format format, const float* x, const float* importance, size_t K,
                uint8_t* w) noexcept {
  return HWY_DYNAMIC_DISPATCH(EncoderOf)(format)(x, importance, K, w);
}

}  // namespace halfbyte
#endif  // HWY_ONCE
