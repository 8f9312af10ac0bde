// csrc/formats/half-inl.h
// 16-bit floats to and from f32, a vector at a time, bit for bit as base/half.h on
// every target.
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_FORMATS_HALF_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_HALF_INL_TOGGLE
#undef HALFBYTE_FORMATS_HALF_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_HALF_INL_TOGGLE
#endif

#include <stdint.h>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Where the instruction set converts binary16. Highway's emulation elsewhere takes
// infinity for 65536 and NaN for larger numbers, so there we have our own.
inline constexpr bool kConvertsF16 =
    (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2) || HWY_ARCH_ARM;

// As many 16-bit floats as DF has lanes, as bits.
template <class DF>
using HalfBits = hn::Rebind<uint16_t, DF>;

template <class DF>
HWY_INLINE hn::Vec<DF> PromoteF16(DF df, hn::Vec<HalfBits<DF>> half) {
  if constexpr (kConvertsF16) {
    return hn::PromoteTo(df, hn::BitCast(hn::Rebind<hwy::float16_t, DF>(), half));
  } else {
    const hn::RebindToUnsigned<DF> du32;
    const hn::RebindToSigned<DF> di32;
    const auto wide = hn::PromoteTo(du32, half);
    const auto magnitude = hn::And(wide, hn::Set(du32, 0x7FFF));
    const auto sign = hn::ShiftLeft<16>(hn::Sub(wide, magnitude));
    const auto rebias = hn::Set(du32, 112u << 23);

    // Once for finite numbers; infinity and NaN have the top exponent in both formats.
    auto bits = hn::Add(hn::ShiftLeft<13>(magnitude), rebias);
    const auto top = hn::Set(du32, 0x7C00);
    bits = hn::IfThenElse(hn::Ge(magnitude, top), hn::Add(bits, rebias), bits);
    const auto quiet = hn::Or(bits, hn::Set(du32, 0x400000));
    bits = hn::IfThenElse(hn::Gt(magnitude, top), quiet, bits);

    // Zero and subnormals: multiples of 2^-24.
    const auto units = hn::ConvertTo(df, hn::BitCast(di32, magnitude));
    const auto small = hn::BitCast(du32, hn::Mul(units, hn::Set(df, 0x1p-24f)));
    bits = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du32, 0x400)), small, bits);
    return hn::BitCast(df, hn::Or(bits, sign));
  }
}

// Rounds to nearest, ties to even.
template <class DF>
HWY_INLINE hn::Vec<HalfBits<DF>> DemoteF16(DF df, hn::Vec<DF> v) {
  const HalfBits<DF> du16;
  if constexpr (kConvertsF16) {
    return hn::BitCast(du16, hn::DemoteTo(hn::Rebind<hwy::float16_t, DF>(), v));
  } else {
    const hn::RebindToUnsigned<DF> du32;
    const auto bits = hn::BitCast(du32, hn::Abs(v));
    const auto sign = hn::ShiftRight<16>(hn::Xor(hn::BitCast(du32, v), bits));

    const auto is_odd = hn::And(hn::ShiftRight<13>(bits), hn::Set(du32, 1));
    const auto rounded = hn::Add(hn::Add(bits, hn::Set(du32, 0xFFF)), is_odd);
    auto half = hn::Sub(hn::ShiftRight<13>(rounded), hn::Set(du32, 112u << 10));
    // Below 2^-14 the result is a multiple of 2^-24, the ulp of 0.5: the adder rounds.
    const auto sum = hn::BitCast(du32, hn::Add(hn::Abs(v), hn::Set(df, 0.5f)));
    const auto small = hn::Sub(sum, hn::Set(du32, 0x3F000000));
    half = hn::IfThenElse(hn::Lt(bits, hn::Set(du32, 0x38800000)), small, half);
    const auto is_large = hn::Ge(bits, hn::Set(du32, 0x47800000));
    half = hn::IfThenElse(is_large, hn::Set(du32, 0x7C00), half);
    const auto payload = hn::And(hn::ShiftRight<13>(bits), hn::Set(du32, 0x3FF));
    const auto nan = hn::Or(payload, hn::Set(du32, 0x7E00));
    half = hn::IfThenElse(hn::Gt(bits, hn::Set(du32, 0x7F800000)), nan, half);
    return hn::TruncateTo(du16, hn::Or(half, sign));
  }
}

template <class DF>
HWY_INLINE hn::Vec<DF> PromoteBF16(DF df, hn::Vec<HalfBits<DF>> half) {
  const hn::RebindToUnsigned<DF> du32;
  return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du32, half)));
}

// Rounds to nearest, ties to even. In integers, not by the conversion instructions:
// those of x86 flush subnormals.
template <class DF>
HWY_INLINE hn::Vec<HalfBits<DF>> DemoteBF16(DF /*df*/, hn::Vec<DF> v) {
  const hn::RebindToUnsigned<DF> du32;
  const auto bits = hn::BitCast(du32, v);
  const auto is_odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du32, 1));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(du32, 0x7FFF)), is_odd);
  const auto quiet = hn::Or(bits, hn::Set(du32, 0x400000));
  const auto is_nan = hn::RebindMask(du32, hn::IsNaN(v));
  const auto upper = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, rounded));
  return hn::TruncateTo(HalfBits<DF>(), upper);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
