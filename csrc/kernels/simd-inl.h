// csrc/kernels/simd-inl.h
// What differs between instruction sets. The only file with `#if HWY_TARGET`.
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_SIMD_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_SIMD_INL_TOGGLE
#undef HALFBYTE_KERNELS_SIMD_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_SIMD_INL_TOGGLE
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// True where u8 x s8 products of four neighbours are summed by one instruction.
#undef HALFBYTE_HAVE_DOT4
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
#define HALFBYTE_HAVE_DOT4 1
#else
#define HALFBYTE_HAVE_DOT4 0
#endif

// Per 32-bit lane: the sum of (code - 2^kZeroLog2) * q over the lane's four bytes, or
// of code * q if the format has a minimum instead of a zero point. Exact. neg_sum:
// minus the sum of the lane's four q.
template <class Fmt, class DI32, class VU8, class VI8>
HWY_INLINE hn::Vec<DI32> Dot4(DI32 di32, VU8 codes, VI8 q, hn::Vec<DI32> neg_sum) {
  constexpr bool kZeroPoint = !Fmt::kHasMin;
  const auto start =
      kZeroPoint ? hn::ShiftLeft<Fmt::kZeroLog2>(neg_sum) : hn::Zero(di32);
#if HALFBYTE_HAVE_DOT4
  return hn::SumOfMulQuadAccumulate(di32, codes, q, start);
#elif HWY_ARCH_X86
  const hn::Repartition<int16_t, DI32> di16;
  const hn::Repartition<int8_t, DI32> di8;
  const hn::Repartition<uint8_t, DI32> du8;
  const auto ones = hn::Set(di16, int16_t{1});
  if constexpr (Fmt::kMaxCode <= 127) {
    // Pair sums: at most 2 * 127 * 127, no saturation.
    const auto pairs = hn::SatWidenMulPairwiseAdd(di16, codes, q);
    return hn::Add(start, hn::WidenMulPairwiseAdd(di32, pairs, ones));
  } else {
    // Codes to 255 would saturate: |w| times q with the sign of w. |w| <= 128 and
    // |q| <= 127, so pair sums stay below 2^15.
    static_assert(kZeroPoint && Fmt::kZeroLog2 == 7);
    const auto w = hn::BitCast(di8, hn::Xor(codes, hn::Set(du8, uint8_t{128})));
    const auto magnitude = hn::BitCast(du8, hn::Abs(w));
    const auto signed_q = hn::IfNegativeThenNegOrUndefIfZero(w, q);
    const auto pairs = hn::SatWidenMulPairwiseAdd(di16, magnitude, signed_q);
    return hn::WidenMulPairwiseAdd(di32, pairs, ones);
  }
#else
  // Arm multiplies signed bytes: codes up to 127 are valid ones.
  const hn::Repartition<int8_t, DI32> di8;
  const hn::Repartition<uint8_t, DI32> du8;
  if constexpr (Fmt::kMaxCode <= 127) {
    return hn::SumOfMulQuadAccumulate(di32, hn::BitCast(di8, codes), q, start);
  } else {
    static_assert(kZeroPoint && Fmt::kZeroLog2 == 7);
    const auto w = hn::BitCast(di8, hn::Xor(codes, hn::Set(du8, uint8_t{128})));
    return hn::SumOfMulQuadAccumulate(di32, w, q, hn::Zero(di32));
  }
#endif
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
