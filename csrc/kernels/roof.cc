// csrc/kernels/roof.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/roof.h"

#include "base/targets.h"  // before any Highway header

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/roof.cc"  // this file, re-included per target
// clang-format on
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h
#include "kernels/fast_dot.h"
#include "kernels/math-inl.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// ---- memory

// The exclusive or of the 64-bit words of a vector.
template <class DU8>
HWY_INLINE uint64_t FoldWords(DU8 /*du8*/, hn::Vec<DU8> v) {
  const hn::Repartition<uint64_t, DU8> du64;
  HWY_ALIGN uint64_t words[HWY_MAX_LANES_D(decltype(du64))];
  hn::Store(hn::BitCast(du64, v), du64, words);
  uint64_t all = 0;
  for (size_t i = 0; i < hn::Lanes(du64); ++i) all ^= words[i];
  return all;
}

uint64_t ReadAll(const uint8_t* data, size_t bytes, size_t num_streams) {
  // Two loads a cache line: whole lines were 5 % slower on Zen 4.
  const hn::CappedTag<uint8_t, 32> du8;
  const size_t lanes = hn::Lanes(du8);
  // 8 loads a turn: the loop itself costs nothing then. Two are from each of four
  // places, which follow each other, or begin a part of their own.
  const size_t turns = bytes / (8 * lanes), step = 8 * lanes / num_streams;
  const auto place = [&](size_t i) {
    const size_t of_stream = 4 / num_streams;
    return data + i / of_stream * turns * step + i % of_stream * 2 * lanes;
  };
  const uint8_t *p = place(0), *q = place(1), *r = place(2), *s = place(3);
  auto sum0 = hn::Zero(du8), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  auto sum4 = sum0, sum5 = sum0, sum6 = sum0, sum7 = sum0;
  for (size_t turn = 0; turn < turns; ++turn) {
    sum0 = hn::Xor(sum0, hn::LoadU(du8, p));
    sum1 = hn::Xor(sum1, hn::LoadU(du8, p + lanes));
    sum2 = hn::Xor(sum2, hn::LoadU(du8, q));
    sum3 = hn::Xor(sum3, hn::LoadU(du8, q + lanes));
    sum4 = hn::Xor(sum4, hn::LoadU(du8, r));
    sum5 = hn::Xor(sum5, hn::LoadU(du8, r + lanes));
    sum6 = hn::Xor(sum6, hn::LoadU(du8, s));
    sum7 = hn::Xor(sum7, hn::LoadU(du8, s + lanes));
    p += step, q += step, r += step, s += step;
  }
  auto rest = hn::Zero(du8);
  ForVectors(du8, turns * 8 * lanes, bytes, [&](size_t i, auto io) HWY_ATTR {
    rest = hn::Xor(rest, io.Load(du8, data + i));
  });
  rest = hn::Xor3(rest, sum0, sum1);
  rest = hn::Xor3(rest, sum2, sum3);
  rest = hn::Xor3(rest, sum4, sum5);
  return FoldWords(du8, hn::Xor3(rest, sum6, sum7));
}

// ---- arithmetic

template <class V>
HWY_INLINE V Sum4(V a, V b, V c, V d) {
  return hn::Add(hn::Add(a, b), hn::Add(c, d));
}

// Codes small enough for the longest runs.
struct SmallCodes {
  static constexpr int kMaxCode = 15;
};

// As many sums as cover the latency of the dot product, and leave registers for 16-bit
// runs where it needs those.
inline constexpr size_t kDotRun = 8;
inline constexpr size_t kDotSums = HALFBYTE_REGISTERS == 32 ? 12 : 4;

template <class Policy>
HWY_INLINE uint64_t CountDotsOf(size_t rounds) {
  const hn::CappedTag<int32_t, 16> di32;
  const hn::Repartition<uint8_t, decltype(di32)> du8;
  const hn::Repartition<int8_t, decltype(di32)> di8;
  using VI32 = hn::Vec<decltype(di32)>;
  const auto u = hn::Set(du8, uint8_t{1});
  auto s = hn::Set(di8, int8_t{1});
  VI32 sum[kDotSums];
  HALFBYTE_UNROLL
  for (size_t j = 0; j < kDotSums; ++j) sum[j] = hn::Zero(di32);
  for (size_t i = 0; i < rounds; ++i) {
    decltype(Policy::template Begin<SmallCodes>(di32, sum[0])) run[kDotSums];
    HALFBYTE_UNROLL
    for (size_t j = 0; j < kDotSums; ++j) {
      run[j] = Policy::template Begin<SmallCodes>(di32, sum[j]);
    }
    HALFBYTE_UNROLL
    for (size_t k = 0; k < kDotRun; ++k) {
      HALFBYTE_UNROLL
      for (size_t j = 0; j < kDotSums; ++j) {
        run[j] = Policy::template Add<SmallCodes, 0>(di32, u, Hide(s), run[j]);
        Hide(run[j]);  // or GCC 12 spreads each over three registers
      }
    }
    HALFBYTE_UNROLL
    for (size_t j = 0; j < kDotSums; ++j) {
      sum[j] = Policy::template End<SmallCodes>(di32, run[j], sum[j]);
    }
  }
  auto all = sum[0];
  HALFBYTE_UNROLL
  for (size_t j = 1; j < kDotSums; ++j) all = hn::Add(all, sum[j]);
  return static_cast<uint64_t>(hn::ReduceSum(di32, all));
}

uint64_t CountDots(size_t rounds) {
  HWY_DASSERT(rounds <= kMaxRoofRounds);
#if HALFBYTE_HAVE_FAST_DOT
  if (UseFastDot(HWY_TARGET)) return CountDotsOf<FastDot>(rounds);
#endif
  return CountDotsOf<BaseDot>(rounds);
}

uint64_t CountFmas(size_t rounds) {
  HWY_DASSERT(rounds <= kMaxRoofRounds);
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di32;
  const auto a = hn::Set(df, 1.0f);
  auto b = a;
  auto sum0 = hn::Zero(df), sum1 = sum0, sum2 = sum0, sum3 = sum0, sum4 = sum0;
  auto sum5 = sum0, sum6 = sum0, sum7 = sum0, sum8 = sum0, sum9 = sum0, sum10 = sum0;
  auto sum11 = sum0;
  for (size_t i = 0; i < rounds; ++i) {
    sum0 = hn::MulAdd(a, Hide(b), sum0);
    sum1 = hn::MulAdd(a, Hide(b), sum1);
    sum2 = hn::MulAdd(a, Hide(b), sum2);
    sum3 = hn::MulAdd(a, Hide(b), sum3);
    sum4 = hn::MulAdd(a, Hide(b), sum4);
    sum5 = hn::MulAdd(a, Hide(b), sum5);
    sum6 = hn::MulAdd(a, Hide(b), sum6);
    sum7 = hn::MulAdd(a, Hide(b), sum7);
    sum8 = hn::MulAdd(a, Hide(b), sum8);
    sum9 = hn::MulAdd(a, Hide(b), sum9);
    sum10 = hn::MulAdd(a, Hide(b), sum10);
    sum11 = hn::MulAdd(a, Hide(b), sum11);
  }
  const auto sum0_3 = Sum4(sum0, sum1, sum2, sum3);
  const auto sum4_7 = Sum4(sum4, sum5, sum6, sum7);
  const auto sum8_11 = Sum4(sum8, sum9, sum10, sum11);
  const auto all = hn::Add(hn::Add(sum0_3, sum4_7), sum8_11);
  return static_cast<uint64_t>(hn::ReduceSum(di32, hn::ConvertTo(di32, all)));
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfbyte {

HWY_EXPORT(ReadAll);
HWY_EXPORT(CountDots);
HWY_EXPORT(CountFmas);

uint64_t ReadAll(const uint8_t* data, size_t bytes, size_t num_streams) noexcept {
  return HWY_DYNAMIC_DISPATCH(ReadAll)(data, bytes, num_streams);
}

uint64_t CountDots(size_t rounds) noexcept {
  return HWY_DYNAMIC_DISPATCH(CountDots)(rounds);
}

uint64_t CountFmas(size_t rounds) noexcept {
  return HWY_DYNAMIC_DISPATCH(CountFmas)(rounds);
}

}  // namespace halfbyte
#endif  // HWY_ONCE
