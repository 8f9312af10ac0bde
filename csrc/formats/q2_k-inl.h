// csrc/formats/q2_k-inl.h
// Q2_K: 256 weights in 16 groups. Weight = (d * s) * c - (dmin * m) with the group's
// 4-bit s and m (low and high nibble of scales[group]) and a 2-bit code c. Bits 2j,
// 2j+1 of qs[32h + l] hold weight 128h + 32j + l.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_Q2_K_INL_H_
#define HALFBYTE_FORMATS_Q2_K_INL_H_

#include <stddef.h>
#include <stdint.h>

#include "base/half.h"

namespace halfbyte {

struct Q2_K {
  static constexpr size_t kBlockLen = 256;
  static constexpr size_t kGroupLen = 16;  // weights that share a scale
  static constexpr int kMaxCode = 3;
  static constexpr bool kHasMin = true;
  static constexpr int kZeroLog2 = 0;  // weight = scale * code - min
  static constexpr bool kSubScales = true;

  struct Block {
    uint8_t scales[16];
    uint8_t qs[64];
    uint8_t d[2];     // f16
    uint8_t dmin[2];  // f16
  };
  static_assert(sizeof(Block) == 84, "as stored in the file");

  static uint16_t MinBits(const Block& b) noexcept { return LoadU16(b.dmin); }

  static void SubScales(const Block& b, int8_t* scale, int8_t* min) noexcept {
    for (size_t g = 0; g < 16; ++g) {
      scale[g] = static_cast<int8_t>(b.scales[g] & 15);
      min[g] = static_cast<int8_t>(b.scales[g] >> 4);
    }
  }

  static void DecodeRef(const Block& b, float* out) noexcept {
    const float d = LoadF16(b.d), dmin = LoadF16(b.dmin);
    for (size_t i = 0; i < kBlockLen; ++i) {
      const size_t h = i / 128, j = i % 128 / 32, l = i % 32;
      const uint8_t s = b.scales[i / 16];
      const int c = (b.qs[32 * h + l] >> (2 * j)) & 3;
      const float scale = d * static_cast<float>(s & 15);
      out[i] = scale * static_cast<float>(c) - dmin * static_cast<float>(s >> 4);
    }
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_Q2_K_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_Q2_K_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_Q2_K_INL_TOGGLE
#undef HALFBYTE_FORMATS_Q2_K_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_Q2_K_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes [i, i + Lanes(du8)) of a block; du8 has 16 or 32 lanes and i is a multiple.
template <class DU8>
HWY_INLINE hn::Vec<DU8> Codes(Q2_K, DU8 du8, const Q2_K::Block& b, size_t i) {
  const auto packed = hn::LoadU(du8, b.qs + 32 * (i / 128) + i % 32);
  return BitField<3>(du8, packed, 2 * (i % 128 / 32));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
