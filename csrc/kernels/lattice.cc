// csrc/kernels/lattice.cc
// A weight w that was rounded from step * level pins the step to an interval: what is
// nearer to w than to its neighbours in bf16, divided by the level. Weights are on the
// lattice if the intervals of all 32 have a step in common. Minima and maxima do not
// depend on their order, so every target finds the same.
// SPDX-License-Identifier: Apache-2.0
#include "kernels/lattice.h"

#include <float.h>
#include <string.h>

#include "base/targets.h"  // before any Highway header
#include "formats/step.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/lattice.cc"  // this file, re-included per target
// clang-format on
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h
#include "formats/half-inl.h"
#include "formats/q4_0-inl.h"
#include "formats/q8_0-inl.h"
#include "formats/w4g32-inl.h"
#include "kernels/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kLen = 32;
constexpr int kMaxLevel = 8;  // of either sign, but not of both
// Two weights apart from 0 fit by chance in about one block of ten, each further one
// divides that by ten or more.
constexpr size_t kFewest = 4;
using DF = hn::CappedTag<float, 16>;

// 32 weights, and the borders of what rounds to each, signs left out.
struct Group {
  alignas(64) float w[kLen], low[kLen], high[kLen];
  float max = 0.0f;
  size_t nonzero = 0;
  bool finite = true;
};

struct Fit {
  alignas(64) float level[kLen];
  float low, high;  // of the steps that all weights agree on
  bool negative;    // a level is +8, which only a negative step can store
};

void LoadGroup(const uint8_t* w, Group& g) {
  const DF df;
  const hn::RebindToUnsigned<DF> du32;
  const HalfBits<DF> du16;
  const auto half_ulp = hn::Set(du32, 0x8000);
  auto max = hn::Zero(df);
  for (size_t i = 0; i < kLen; i += hn::Lanes(df)) {
    const auto x = PromoteBF16(df, WholeIo().LoadBytes(du16, w + 2 * i));
    const auto magnitude = hn::Abs(x);
    const auto is_zero = hn::Eq(x, hn::Zero(df));
    const auto bits = hn::BitCast(du32, magnitude);
    const auto low = hn::BitCast(df, hn::Sub(bits, half_ulp));
    const auto high = hn::BitCast(df, hn::Add(bits, half_ulp));
    hn::Store(x, df, g.w + i);
    hn::Store(hn::IfThenZeroElse(is_zero, low), df, g.low + i);
    hn::Store(hn::IfThenElse(is_zero, hn::Set(df, FLT_MAX), high), df, g.high + i);
    max = hn::Max(max, magnitude);
    g.finite = g.finite && hn::AllTrue(df, hn::IsFinite(x));
    g.nonzero += hn::Lanes(df) - hn::CountTrue(df, is_zero);
  }
  g.max = hn::ReduceMax(df, max);
}

// False if no step can make the largest magnitude level m: most m of most groups, told
// without a division. The weight and the largest one are both within 2^-8 of the step
// times their levels, so their ratio times m is within 2^-7 / (1 - 2^-8) of a level; a
// hundredth more is for the rounding here.
bool MayFit(const Group& g, int m) {
  const DF df;
  const auto inv_step = hn::Set(df, static_cast<float>(m) / g.max);
  const auto tolerance = hn::Set(df, 0x1p-7f * 1.01f);
  for (size_t i = 0; i < kLen; i += hn::Lanes(df)) {
    const auto ratio = hn::Mul(hn::Load(df, g.w + i), inv_step);
    const auto level = hn::Round(ratio);
    const auto error = hn::Abs(hn::Sub(ratio, level));
    if (!hn::AllTrue(df, hn::Le(error, hn::Mul(hn::Abs(level), tolerance)))) {
      return false;
    }
  }
  return true;
}

// Levels with which the largest magnitude is level m, if there is a step for them.
bool FitLevels(const Group& g, int m, Fit& fit) {
  if (!MayFit(g, m)) return false;
  const DF df;
  const auto zero = hn::Zero(df), one = hn::Set(df, 1.0f);
  const auto top = hn::Set(df, static_cast<float>(kMaxLevel));
  const auto inv_step = hn::Set(df, static_cast<float>(m) / g.max);
  auto low = zero, high = hn::Set(df, FLT_MAX);
  auto wrong = hn::MaskFalse(df), plus = wrong, minus = wrong;
  for (size_t i = 0; i < kLen; i += hn::Lanes(df)) {
    const auto w = hn::Load(df, g.w + i);
    const auto level = hn::Round(hn::Mul(w, inv_step));
    hn::Store(level, df, fit.level + i);
    wrong = hn::Or(wrong, hn::Xor(hn::Eq(level, zero), hn::Eq(w, zero)));
    plus = hn::Or(plus, hn::Eq(level, top));
    minus = hn::Or(minus, hn::Eq(level, hn::Neg(top)));
    const auto by = hn::Max(hn::Abs(level), one);
    low = hn::Max(low, hn::Div(hn::Load(df, g.low + i), by));
    high = hn::Min(high, hn::Div(hn::Load(df, g.high + i), by));
  }
  fit.low = hn::ReduceMax(df, low);
  fit.high = hn::ReduceMin(df, high);
  fit.negative = !hn::AllFalse(df, plus);
  const bool both = fit.negative && !hn::AllFalse(df, minus);
  // Each quotient is rounded: what touches may have come apart by an ulp.
  return hn::AllFalse(df, wrong) && !both && fit.low <= fit.high * (1.0f + 0x1p-22f);
}

// How many weights are bf16(step * level).
size_t CountExact(const Group& g, const Fit& fit, float step) {
  const DF df;
  size_t exact = 0;
  for (size_t i = 0; i < kLen; i += hn::Lanes(df)) {
    const auto product = hn::Mul(hn::Load(df, fit.level + i), hn::Set(df, step));
    const auto rounded = PromoteBF16(df, DemoteBF16(df, product));
    exact += hn::CountTrue(df, hn::Eq(rounded, hn::Load(df, g.w + i)));
  }
  return exact;
}

// Of the steps that the format stores around the middle of the interval, the one that
// gives the most weights; the nearest of several. Returns how many.
template <class Fmt>
size_t ChooseStep(const Group& g, const Fit& fit, uint16_t& step) {
  constexpr int kNear[] = {0, -1, 1};
  const uint16_t middle = StepBits<Fmt>(0.5f * fit.low + 0.5f * fit.high);
  size_t best = 0;
  for (const int away : kNear) {
    const int bits = middle + away;
    if (bits <= 0 || bits >= kInfiniteStep<Fmt>) continue;  // there is no such step
    const auto candidate = static_cast<uint16_t>(bits);
    const size_t exact = CountExact(g, fit, StepOfBits<Fmt>(candidate));
    if (exact <= best) continue;
    best = exact;
    step = candidate;
    if (best == kLen) break;
  }
  return best;
}

template <class Fmt>
void StoreBlock(const Fit& fit, uint16_t step, typename Fmt::Block& block) {
  const float sign = fit.negative ? -1.0f : 1.0f;
  uint8_t codes[kLen];
  for (size_t i = 0; i < kLen; ++i) {
    codes[i] = static_cast<uint8_t>(sign * fit.level[i] - kLowestLevel<Fmt>);
  }
  StoreStep<Fmt>(static_cast<uint16_t>(step | (fit.negative ? 0x8000 : 0)), block);
  Fmt::Pack(codes, block);
}

template <class Fmt>
OnLattice RecoverGroup(const uint8_t* w, typename Fmt::Block& block) {
  Group g;
  Fit fit = {};
  LoadGroup(w, g);
  if (!g.finite) {
    Fmt::EncodeRowRef(g.w, 1, &block);
    return OnLattice::kNotFinite;
  }
  if (g.nonzero == 0) {
    StoreBlock<Fmt>(fit, 0, block);
    return OnLattice::kExact;
  }
  // A common factor of all levels is a larger step: the smallest m has it.
  for (int m = 1; m <= kMaxLevel; ++m) {
    if (!FitLevels(g, m, fit)) continue;
    uint16_t step = 0;
    const size_t exact = ChooseStep<Fmt>(g, fit, step);
    if (exact == 0) break;  // too small or too large to store
    StoreBlock<Fmt>(fit, step, block);
    if (g.nonzero < kFewest) return OnLattice::kTooFew;
    return exact == kLen ? OnLattice::kExact : OnLattice::kLevels;
  }
  Fmt::EncodeRowRef(g.w, 1, &block);
  return OnLattice::kNo;
}

template <class Fmt>
void RecoverBlocks(const void* w, size_t K, uint8_t* blocks, OnLattice* found) {
  const auto* from = static_cast<const uint8_t*>(w);
  auto* to = reinterpret_cast<typename Fmt::Block*>(blocks);
  for (size_t b = 0; b < K / kLen; ++b) {
    const uint8_t* group = from + b * kLen * sizeof(uint16_t);
    const OnLattice kind = RecoverGroup<Fmt>(group, to[b]);
    if (found != nullptr) found[b] = kind;
  }
}

using Recoverer = void (*)(const void*, size_t, uint8_t*, OnLattice*);

// Null for formats that do not hold 4-bit levels with a step for 32 weights.
Recoverer RecovererOf(Format format) {
  switch (format) {
    case Format::kQ4_0:
      return &RecoverBlocks<Q4_0>;
    case Format::kQ8_0:
      return &RecoverBlocks<Q8_0>;
    case Format::kW4G32:
      return &RecoverBlocks<W4G32>;
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

HWY_EXPORT(RecovererOf);

bool HasLattice(Format format) noexcept {
  return HWY_DYNAMIC_DISPATCH(RecovererOf)(format) != nullptr;
}

void RecoverBlocks(Format format, const void* w, size_t K, uint8_t* blocks,
                   OnLattice* found) noexcept {
  HWY_DYNAMIC_DISPATCH(RecovererOf)(format)(w, K, blocks, found);
}

}  // namespace halfbyte
#endif  // HWY_ONCE
