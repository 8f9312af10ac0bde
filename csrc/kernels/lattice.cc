// csrc/kernels/lattice.cc
// A weight w that was rounded from step * level pins the step to an interval: what is
// nearer to w than to its neighbours in bf16, divided by the level. Weights are on the
// lattice if the intervals of all 32 have a step in common. Minima and maxima do not
// depend on their order, so every target finds the same.
// SPDX-License-Identifier: Apache-2.0
#include "kernels/lattice.h"

#include <string.h>

#include <bit>

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

struct Group {
  alignas(64) float w[kLen];
  float max;  // of the magnitudes
  size_t nonzero;
};

struct Fit {
  alignas(64) float level[kLen];
  float low, high;  // of the steps that all weights agree on
  bool negative;    // a level is +8, which only a negative step can store
};

// False if a weight is infinite or no number.
bool LoadGroup(const uint8_t* w, Group& g) {
  const DF df;
  const hn::RebindToSigned<DF> di32;
  const HalfBits<DF> du16;
  auto max = hn::Zero(di32);  // bits of magnitudes are ordered as these are
  g.nonzero = kLen;
  for (size_t i = 0; i < kLen; i += hn::Lanes(df)) {
    const auto x = PromoteBF16(df, WholeIo().LoadBytes(du16, w + 2 * i));
    hn::Store(x, df, g.w + i);
    max = hn::Max(max, hn::BitCast(di32, hn::Abs(x)));
    g.nonzero -= hn::CountTrue(df, hn::Eq(x, hn::Zero(df)));
  }
  const int32_t bits = hn::ReduceMax(di32, max);
  memcpy(&g.max, &bits, sizeof(g.max));
  return bits < 0x7F800000;
}

// Magnitudes fall into 32 bins, the largest one just into the last.
constexpr float kBins = 31.99f;

// Bins, bit b for bin b, of the magnitudes beside a largest one of level m. A weight
// and the largest one are both within 2^-8 of the step times their levels, so their
// ratio is within 2^-7 / (1 - 2^-8) of that of the levels; what is left of the
// hundredth is for the rounding in `LikelyLevels`.
constexpr uint32_t BinsOf(int m) {
  constexpr float kTolerance = 0x1p-7f * 1.01f;
  uint32_t bins = 1;  // of level 0
  for (int level = 1; level <= m; ++level) {
    const float place = kBins * static_cast<float>(level) / static_cast<float>(m);
    const int first = static_cast<int>(place * (1.0f - kTolerance));
    const int last = static_cast<int>(place * (1.0f + kTolerance));
    for (int b = first; b <= last && b < 32; ++b) bins |= uint32_t{1} << b;
  }
  return bins;
}

// The levels that the largest magnitude may have, bit m - 1 for level m: mostly one or
// two, told by which bins have a weight in them.
uint32_t LikelyLevels(const Group& g) {
  constexpr uint32_t kBinsOf[kMaxLevel] = {BinsOf(1), BinsOf(2), BinsOf(3), BinsOf(4),
                                           BinsOf(5), BinsOf(6), BinsOf(7), BinsOf(8)};
  const DF df;
  const hn::RebindToSigned<DF> di32;
  const hn::RebindToUnsigned<DF> du32;
  if (g.max < 0x1p-120f) return (1u << kMaxLevel) - 1;  // the factor could be infinite
  const auto factor = hn::Set(df, kBins / g.max);
  auto bins = hn::Zero(du32);
  for (size_t i = 0; i < kLen; i += hn::Lanes(df)) {
    const auto place = hn::Mul(hn::Abs(hn::Load(df, g.w + i)), factor);
    const auto bin = hn::BitCast(du32, hn::ConvertTo(di32, place));
    bins = hn::Or(bins, hn::Shl(hn::Set(du32, 1), bin));
  }
  alignas(64) uint32_t lanes[hn::MaxLanes(du32)];
  hn::Store(bins, du32, lanes);
  uint32_t all = 0, levels = 0;
  for (const uint32_t lane : lanes) all |= lane;
  for (int m = 1; m <= kMaxLevel; ++m) {
    levels |= static_cast<uint32_t>((all & ~kBinsOf[m - 1]) == 0) << (m - 1);
  }
  return levels;
}

// kFactor / |level|, to multiply with where dividing by the level is meant. 840 can be
// divided by 1 to 8, and borders of bf16 numbers have 9 bits, so that the products are
// exact; one division by kFactor at the end gives the quotient. Of level 0, anything.
constexpr float kFactor = 840.0f / 1024;
hn::Vec<DF> FactorOf(DF df, hn::Vec<DF> level) {
  alignas(64) static constexpr float kOf[16] = {
      kFactor / 8, kFactor,     kFactor / 2, kFactor / 3,  // 8 and 0 share a place
      kFactor / 4, kFactor / 5, kFactor / 6, kFactor / 7,
      kFactor / 8, kFactor,     kFactor / 2, kFactor / 3,  // again, for wide vectors
      kFactor / 4, kFactor / 5, kFactor / 6, kFactor / 7};
  const hn::RebindToSigned<DF> di32;
  const auto magnitude = hn::ConvertTo(di32, hn::Abs(level));
  const auto at = hn::IndicesFromVec(df, hn::And(magnitude, hn::Set(di32, 7)));
  if constexpr (hn::MaxLanes(df) >= 8) {
    return hn::TableLookupLanes(hn::Load(df, kOf), at);
  } else {
    return hn::TwoTablesLookupLanes(df, hn::Load(df, kOf), hn::Load(df, kOf + 4), at);
  }
}

// Levels with which the largest magnitude is level m, if there is a step for them.
bool FitLevels(const Group& g, int m, Fit& fit) {
  const DF df;
  const hn::RebindToUnsigned<DF> du32;
  const auto half_ulp = hn::Set(du32, 0x8000);
  const auto zero = hn::Zero(df), infinity = hn::Inf(df);
  const auto top = hn::Set(df, static_cast<float>(kMaxLevel));
  const auto inv_step = hn::Set(df, static_cast<float>(m) / g.max);
  auto low = zero, high = infinity;
  auto wrong = hn::MaskFalse(df), plus = wrong, minus = wrong;
  for (size_t i = 0; i < kLen; i += hn::Lanes(df)) {
    const auto w = hn::Load(df, g.w + i);
    const auto level = hn::Round(hn::Mul(w, inv_step));
    hn::Store(level, df, fit.level + i);
    const auto is_zero = hn::Eq(w, zero);
    wrong = hn::Or(wrong, hn::Xor(hn::Eq(level, zero), is_zero));
    plus = hn::Or(plus, hn::Eq(level, top));
    minus = hn::Or(minus, hn::Eq(level, hn::Neg(top)));
    // What rounds to the weight is between these, signs left out.
    const auto bits = hn::BitCast(du32, hn::Abs(w));
    const auto below = hn::BitCast(df, hn::Sub(bits, half_ulp));
    const auto above = hn::BitCast(df, hn::Add(bits, half_ulp));
    const auto factor = FactorOf(df, level);
    low = hn::Max(low, hn::Mul(hn::IfThenZeroElse(is_zero, below), factor));
    high = hn::Min(high, hn::Mul(hn::IfThenElse(is_zero, infinity, above), factor));
  }
  fit.low = hn::ReduceMax(df, low) / kFactor;
  fit.high = hn::ReduceMin(df, high) / kFactor;
  fit.negative = !hn::AllFalse(df, plus);
  const bool both = fit.negative && !hn::AllFalse(df, minus);
  // Each quotient is rounded: what touches may have come apart by an ulp.
  return hn::AllFalse(df, wrong) && !both && fit.low <= fit.high * (1.0f + 0x1p-22f);
}

// How many weights are bf16(step * level), if all others are but an ulp away; else 0. A
// step that 16 bits do not hold moves them further: all but those that are 0.
size_t CountExact(const Group& g, const Fit& fit, float step) {
  constexpr int32_t kUlp = 0x10000;  // of bf16, in bits of f32
  const DF df;
  const hn::RebindToSigned<DF> di32;
  auto apart = hn::Zero(di32);
  size_t exact = 0;
  for (size_t i = 0; i < kLen; i += hn::Lanes(df)) {
    const auto w = hn::Load(df, g.w + i);
    const auto product = hn::Mul(hn::Load(df, fit.level + i), hn::Set(df, step));
    const auto rounded = PromoteBF16(df, DemoteBF16(df, product));
    exact += hn::CountTrue(df, hn::Eq(rounded, w));
    const auto bits = hn::Sub(hn::BitCast(di32, rounded), hn::BitCast(di32, w));
    apart = hn::Max(apart, hn::Abs(bits));
  }
  return hn::ReduceMax(di32, apart) > kUlp ? 0 : exact;
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
  const DF df;
  const hn::RebindToSigned<DF> di32;
  const hn::Rebind<uint8_t, DF> du8;
  const auto sign = hn::Set(df, fit.negative ? -1.0f : 1.0f);
  const auto lowest = hn::Set(df, static_cast<float>(kLowestLevel<Fmt>));
  alignas(64) uint8_t codes[kLen];
  for (size_t i = 0; i < kLen; i += hn::Lanes(df)) {
    const auto code = hn::Sub(hn::Mul(sign, hn::Load(df, fit.level + i)), lowest);
    hn::StoreU(hn::DemoteTo(du8, hn::ConvertTo(di32, code)), du8, codes + i);
  }
  StoreStep<Fmt>(static_cast<uint16_t>(step | (fit.negative ? 0x8000 : 0)), block);
  Fmt::Pack(codes, block);
}

template <class Fmt>
OnLattice RecoverGroup(const uint8_t* w, typename Fmt::Block& block) {
  Group g;
  if (!LoadGroup(w, g)) {
    Fmt::EncodeRowRef(g.w, 1, &block);
    return OnLattice::kNotFinite;
  }
  if (g.nonzero == 0) {
    StoreBlock<Fmt>(Fit{}, 0, block);
    return OnLattice::kExact;
  }
  Fit fit;
  // A common factor of all levels is a larger step: the smallest m has it.
  for (uint32_t left = LikelyLevels(g); left != 0; left &= left - 1) {
    if (!FitLevels(g, 1 + std::countr_zero(left), fit)) continue;
    uint16_t step = 0;
    const size_t exact = ChooseStep<Fmt>(g, fit, step);
    if (exact == 0) break;  // the step is too small or too large to store
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
