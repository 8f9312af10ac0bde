// csrc/formats/q5_1-inl.h
// Q5_1: 32 weights share an f16 scale and an f16 minimum. Weight i is d * n + m; the
// five bits of n as in Q5_0.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_Q5_1_INL_H_
#define HALFBYTE_FORMATS_Q5_1_INL_H_

#include <stddef.h>
#include <stdint.h>

#include "base/half.h"

namespace halfbyte {

struct Q5_1 {
  static constexpr size_t kBlockLen = 32;
  static constexpr size_t kGroupLen = 32;  // weights that share a scale
  static constexpr int kMaxCode = 31;
  static constexpr bool kHasMin = true;
  static constexpr int kZeroLog2 = 0;  // weight = scale * code - min
  static constexpr bool kSubScales = false;

  struct Block {
    uint8_t d[2];   // f16
    uint8_t m[2];   // f16
    uint8_t qh[4];  // bit i belongs to weight i
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 24, "as stored in the file");

  // The minimum as f16: it is subtracted.
  static uint16_t MinBits(const Block& b) noexcept {
    return static_cast<uint16_t>(LoadU16(b.m) ^ 0x8000);
  }

  static void DecodeRef(const Block& b, float* out) noexcept {
    const float d = LoadF16(b.d), m = LoadF16(b.m);
    for (size_t i = 0; i < kBlockLen; ++i) {
      const int low = i < 16 ? b.qs[i] & 15 : b.qs[i - 16] >> 4;
      const int high = (b.qh[i / 8] >> (i % 8)) & 1;
      out[i] = d * static_cast<float>(low + 16 * high) + m;
    }
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_Q5_1_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_Q5_1_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_Q5_1_INL_TOGGLE
#undef HALFBYTE_FORMATS_Q5_1_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_Q5_1_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes [i, i + Lanes(du8)) of a block; du8 has 16 or 32 lanes and i is a multiple.
template <class DU8>
HWY_INLINE hn::Vec<DU8> Codes(Q5_1, DU8 du8, const Q5_1::Block& b, size_t i) {
  const auto high = hn::IfThenElseZero(hn::LoadMaskBits(du8, b.qh + i / 8),
                                       hn::Set(du8, uint8_t{16}));
  return hn::Or(Nibbles(du8, b.qs, i), high);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
