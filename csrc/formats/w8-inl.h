// csrc/formats/w8-inl.h
// W8: signed 8-bit levels with one f32 scale a row, which is kept apart. A level is a
// signed byte.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_W8_INL_H_
#define HALFBYTE_FORMATS_W8_INL_H_

#include <stddef.h>
#include <stdint.h>

#include "formats/row_scale.h"

namespace halfbyte {

struct W8 {
  static constexpr size_t kBlockLen = 32;
  static constexpr size_t kGroupLen = 32;
  static constexpr int kMaxCode = 255;
  static constexpr bool kHasMin = false;
  static constexpr int kZeroLog2 = 7;  // level = code - 128
  static constexpr bool kSubScales = false;
  static constexpr bool kRowScale = true;  // weight = level * the row's scale

  struct Block {
    int8_t q[32];
  };
  static_assert(sizeof(Block) == 32, "as stored in the file");

  // Levels: who has the scales multiplies.
  static void DecodeRef(const Block& b, float* out) noexcept {
    for (size_t i = 0; i < kBlockLen; ++i) {
      out[i] = static_cast<float>(b.q[i]);
    }
  }

  // From codes, level + 128.
  static void Pack(const uint8_t* codes, Block& b) noexcept {
    for (size_t i = 0; i < kBlockLen; ++i) {
      b.q[i] = static_cast<int8_t>(codes[i] - 128);
    }
  }

  // There is no scale to join.
  static void Join(const uint8_t* codes, const uint8_t* /*scale*/, Block& b) noexcept {
    Pack(codes, b);
  }

  static float EncodeRowScaledRef(const float* in, size_t num_blocks,
                                  Block* row) noexcept {
    return EncodeRowScaled<W8>(in, num_blocks, row);
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_W8_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_W8_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_W8_INL_TOGGLE
#undef HALFBYTE_FORMATS_W8_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_W8_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes [i, i + Lanes(du8)) of a block; du8 has 16 or 32 lanes and i is a multiple.
template <class DU8>
HWY_INLINE hn::Vec<DU8> Codes(W8, DU8 du8, const W8::Block& b, size_t i) {
  const hn::RebindToSigned<DU8> di8;
  return hn::Xor(hn::BitCast(du8, hn::LoadU(di8, b.q + i)), hn::Set(du8, uint8_t{128}));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
