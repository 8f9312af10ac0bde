// csrc/formats/unpack-inl.h
// What the SIMD halves of several formats share: half-precision scales and bit fields.
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_FORMATS_UNPACK_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_UNPACK_INL_TOGGLE
#undef HALFBYTE_FORMATS_UNPACK_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_UNPACK_INL_TOGGLE
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"
#include "formats/half-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The bytes of as many 16-bit floats as DF has lanes: rows need not be aligned.
template <class DF>
using HalfBytes = hn::Repartition<uint8_t, hn::Half<DF>>;

template <class DF>
HWY_INLINE hn::Vec<DF> F32FromF16(DF df, hn::Vec<HalfBytes<DF>> bytes) {
  return PromoteF16(df, hn::BitCast(HalfBits<DF>(), bytes));
}
template <class DF>
HWY_INLINE hn::Vec<DF> F32FromBF16(DF df, hn::Vec<HalfBytes<DF>> bytes) {
  return PromoteBF16(df, hn::BitCast(HalfBits<DF>(), bytes));
}

// One f16 through the conversion instruction where there is one.
HWY_INLINE float F32FromF16Fast(uint16_t bits) {
  if constexpr (!kConvertsF16) return halfbyte::F32FromF16(bits);
  const hn::CappedTag<float, 1> df;
  return hn::GetLane(PromoteF16(df, hn::Set(HalfBits<decltype(df)>(), bits)));
}

// out[i] = d * levels[i], in f32, for the n (8 or 16) sub-scales of a block.
template <class DF, class T>
HWY_INLINE void ScaleBytes(DF df, const T* levels, size_t n, float d, float* out) {
  const hn::Rebind<int32_t, DF> di32;
  const hn::Rebind<T, DF> dt;
  const auto dv = hn::Set(df, d);
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const auto level =
        hn::ConvertTo(df, hn::PromoteTo(di32, hn::LoadU(dt, levels + i)));
    hn::StoreU(hn::Mul(dv, level), df, out + i);
  }
}

// The field of kMask's width that begins at bit `shift` of each byte. There is no byte
// shift on x86: shift pairs of bytes and mask what crossed over.
template <int kMask, class DU8>
HWY_INLINE hn::Vec<DU8> BitField(DU8 du8, hn::Vec<DU8> bytes, size_t shift) {
  const hn::RepartitionToWide<DU8> du16;
  const auto shifted =
      hn::ShiftRightSame(hn::BitCast(du16, bytes), static_cast<int>(shift));
  return hn::And(hn::BitCast(du8, shifted), hn::Set(du8, uint8_t{kMask}));
}

// bytes << kBits, for bytes small enough that no bit leaves them.
template <int kBits, class DU8>
HWY_INLINE hn::Vec<DU8> ShiftBytesLeft(DU8 du8, hn::Vec<DU8> bytes) {
  const hn::RepartitionToWide<DU8> du16;
  return hn::BitCast(du8, hn::ShiftLeft<kBits>(hn::BitCast(du16, bytes)));
}

// 4-bit codes [i, i + Lanes(du8)) of 32 in 16 bytes: first the low nibbles, then the
// high.
template <class DU8>
HWY_INLINE hn::Vec<DU8> Nibbles(DU8 du8, const uint8_t* qs, size_t i) {
  const hn::Full128<uint8_t> d16;
  const auto bytes = hn::LoadU(d16, qs);
  const auto mask = hn::Set(du8, uint8_t{15});
  if constexpr (HWY_MAX_LANES_D(DU8) == 32) {
    return hn::And(hn::Combine(du8, hn::ShiftRight<4>(bytes), bytes), mask);
  } else {
    return i == 0 ? hn::And(bytes, mask) : hn::ShiftRight<4>(bytes);
  }
}

// The same where neighbours share a byte, the first in the low bits.
template <class DU8>
HWY_INLINE hn::Vec<DU8> NibblePairs(DU8 du8, const uint8_t* qs, size_t i) {
  alignas(32) uint8_t codes[32];
  const hn::CappedTag<uint8_t, 16> d16;
  for (size_t j = 0; j < hn::Lanes(du8); j += 16) {
    // Eight bytes, each widened to the two codes it holds.
    uint64_t pairs;
    memcpy(&pairs, qs + (i + j) / 2, sizeof(pairs));
    const hn::Repartition<uint16_t, decltype(d16)> d8;
    const hn::Half<decltype(d16)> dh;
    const hn::Repartition<uint64_t, decltype(dh)> d64;
    const auto wide = hn::PromoteTo(d8, hn::BitCast(dh, hn::Set(d64, pairs)));
    const auto both = hn::Or(wide, hn::ShiftLeft<4>(wide));
    const auto mask = hn::Set(d16, uint8_t{15});
    hn::Store(hn::And(hn::BitCast(d16, both), mask), d16, codes + j);
  }
  return hn::Load(du8, codes);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
