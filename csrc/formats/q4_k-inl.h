// csrc/formats/q4_k-inl.h
// Q4_K: 256 weights in 8 groups. Weight = (d * s) * n - (dmin * m) with the group's
// 6-bit s and m and a 4-bit code n. qs[32 (k/2) + l] holds weight 32k + l: the low
// nibble for even k, the high one for odd.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_Q4_K_INL_H_
#define HALFBYTE_FORMATS_Q4_K_INL_H_

#include <stddef.h>
#include <stdint.h>

#include "base/half.h"
#include "formats/k_scales.h"

namespace halfbyte {

struct Q4_K {
  static constexpr size_t kBlockLen = 256;
  static constexpr size_t kGroupLen = 32;  // weights that share a scale
  static constexpr int kMaxCode = 15;
  static constexpr bool kHasMin = true;
  static constexpr int kZeroLog2 = 0;  // weight = scale * code - min
  static constexpr bool kSubScales = true;

  struct Block {
    uint8_t d[2];     // f16
    uint8_t dmin[2];  // f16
    uint8_t scales[12];
    uint8_t qs[128];
  };
  static_assert(sizeof(Block) == 144, "as stored in the file");

  static uint16_t MinBits(const Block& b) noexcept { return LoadU16(b.dmin); }

  static void SubScales(const Block& b, int8_t* scale, int8_t* min) noexcept {
    UnpackKScales(b.scales, scale, min);
  }

  static void DecodeRef(const Block& b, float* out) noexcept {
    const float d = LoadF16(b.d), dmin = LoadF16(b.dmin);
    for (size_t i = 0; i < kBlockLen; ++i) {
      const size_t k = i / 32, l = i % 32;
      const uint8_t byte = b.qs[32 * (k / 2) + l];
      const int n = k % 2 ? byte >> 4 : byte & 15;
      const float scale = d * static_cast<float>(KScale(b.scales, k));
      out[i] =
          scale * static_cast<float>(n) - dmin * static_cast<float>(KMin(b.scales, k));
    }
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_Q4_K_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_Q4_K_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_Q4_K_INL_TOGGLE
#undef HALFBYTE_FORMATS_Q4_K_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_Q4_K_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes [i, i + Lanes(du8)) of a block; du8 has 16 or 32 lanes and i is a multiple.
template <class DU8>
HWY_INLINE hn::Vec<DU8> Codes(Q4_K, DU8 du8, const Q4_K::Block& b, size_t i) {
  const size_t k = i / 32, l = i % 32;
  const auto packed = hn::LoadU(du8, b.qs + 32 * (k / 2) + l);
  return BitField<15>(du8, packed, 4 * (k % 2));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
