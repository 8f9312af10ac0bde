// csrc/formats/w4-inl.h
// W4: signed 4-bit levels with one f32 scale a row, which is kept apart. Neighbours
// share a byte, the first in the low bits: level + 8.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_W4_INL_H_
#define HALFBYTE_FORMATS_W4_INL_H_

#include <stddef.h>
#include <stdint.h>

#include "formats/row_scale.h"

namespace halfbyte {

struct W4 {
  static constexpr size_t kBlockLen = 32;
  static constexpr size_t kGroupLen = 32;
  static constexpr int kMaxCode = 15;
  static constexpr bool kHasMin = false;
  static constexpr int kZeroLog2 = 3;  // level = code - 8
  static constexpr bool kSubScales = false;
  static constexpr bool kRowScale = true;  // weight = level * the row's scale

  struct Block {
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 16, "as stored in the file");

  // Levels: who has the scales multiplies.
  static void DecodeRef(const Block& b, float* out) noexcept {
    for (size_t i = 0; i < kBlockLen; ++i) {
      out[i] = static_cast<float>(((b.qs[i / 2] >> (4 * (i % 2))) & 15) - 8);
    }
  }

  // From codes, level + 8.
  static void Pack(const uint8_t* codes, Block& b) noexcept {
    for (size_t i = 0; i < 16; ++i) {
      b.qs[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
    }
  }

  static float EncodeRowScaledRef(const float* in, size_t num_blocks,
                                  Block* row) noexcept {
    return EncodeRowScaled<W4>(in, num_blocks, row);
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_W4_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_W4_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_W4_INL_TOGGLE
#undef HALFBYTE_FORMATS_W4_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_W4_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes [i, i + Lanes(du8)) of a block; du8 has 16 or 32 lanes and i is a multiple.
template <class DU8>
HWY_INLINE hn::Vec<DU8> Codes(W4, DU8 du8, const W4::Block& b, size_t i) {
  return NibblePairs(du8, b.qs, i);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
