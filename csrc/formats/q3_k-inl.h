// csrc/formats/q3_k-inl.h
// Q3_K: 256 weights in 16 groups. Weight = (d * s) * (c - 4) with the group's 6-bit s -
// 32 and a 3-bit code c: two bits in qs as in Q2_K, the third in hmask. scales: 12
// bytes: [t0..t7 low | t8..t15 low << 4][high 2 bits: byte t%4, bits 2(t/4)]
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_Q3_K_INL_H_
#define HALFBYTE_FORMATS_Q3_K_INL_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"

namespace halfbyte {

struct Q3_K {
  static constexpr size_t kBlockLen = 256;
  static constexpr size_t kGroupLen = 16;  // weights that share a scale
  static constexpr int kMaxCode = 7;
  static constexpr bool kHasMin = false;
  static constexpr int kZeroLog2 = 2;  // weight = scale * (code - 4)
  static constexpr bool kSubScales = true;

  struct Block {
    uint8_t hmask[32];  // bit 4h + j of byte l belongs to weight 128h + 32j + l
    uint8_t qs[64];
    uint8_t scales[12];
    uint8_t d[2];  // f16
  };
  static_assert(sizeof(Block) == 110, "as stored in the file");

  static void SubScales(const Block& b, int8_t* scale, int8_t* /*min*/) noexcept {
    // Four 6-bit scales a 32-bit word, the way the bytes lie.
    uint32_t s[3];
    memcpy(s, b.scales, sizeof(s));
    const auto word = [&s](uint32_t low, int shift) {
      return (low & 0x0F0F0F0Fu) | ((s[2] >> shift) & 0x03030303u) << 4;
    };
    const uint32_t words[4] = {word(s[0], 0), word(s[1], 2), word(s[0] >> 4, 4),
                               word(s[1] >> 4, 6)};
    memcpy(scale, words, sizeof(words));
    for (size_t g = 0; g < 16; ++g) scale[g] = static_cast<int8_t>(scale[g] - 32);
  }

  static void DecodeRef(const Block& b, float* out) noexcept {
    const float d = LoadF16(b.d);
    for (size_t i = 0; i < kBlockLen; ++i) {
      const size_t h = i / 128, j = i % 128 / 32, l = i % 32, t = i / 16;
      const int low = t < 8 ? b.scales[t] & 15 : b.scales[t - 8] >> 4;
      const int high = (b.scales[8 + t % 4] >> (2 * (t / 4))) & 3;
      const int bit = (b.hmask[l] >> (4 * h + j)) & 1;
      const int c = ((b.qs[32 * h + l] >> (2 * j)) & 3) + 4 * bit;
      const float scale = d * static_cast<float>((low | high << 4) - 32);
      out[i] = scale * static_cast<float>(c - 4);
    }
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_Q3_K_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_Q3_K_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_Q3_K_INL_TOGGLE
#undef HALFBYTE_FORMATS_Q3_K_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_Q3_K_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes [i, i + Lanes(du8)) of a block; du8 has 16 or 32 lanes and i is a multiple.
template <class DU8>
HWY_INLINE hn::Vec<DU8> Codes(Q3_K, DU8 du8, const Q3_K::Block& b, size_t i) {
  const size_t h = i / 128, j = i % 128 / 32, l = i % 32;
  const auto low = BitField<3>(du8, hn::LoadU(du8, b.qs + 32 * h + l), 2 * j);
  const auto high = BitField<1>(du8, hn::LoadU(du8, b.hmask + l), 4 * h + j);
  return hn::Or(low, ShiftBytesLeft<2>(du8, high));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
