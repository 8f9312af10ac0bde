// csrc/formats/w2-inl.h
// W2: signed 2-bit levels with one f32 scale a row, which is kept apart. Four
// neighbours share a byte, the first in the lowest bits: level + 2.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_W2_INL_H_
#define HALFBYTE_FORMATS_W2_INL_H_

#include <stddef.h>
#include <stdint.h>

#include "formats/row_scale.h"

namespace halfbyte {

struct W2 {
  static constexpr size_t kBlockLen = 32;
  static constexpr size_t kGroupLen = 32;
  static constexpr int kMaxCode = 3;
  static constexpr bool kHasMin = false;
  static constexpr int kZeroLog2 = 1;  // level = code - 2
  static constexpr bool kSubScales = false;
  static constexpr bool kRowScale = true;  // weight = level * the row's scale

  struct Block {
    uint8_t qs[8];
  };
  static_assert(sizeof(Block) == 8, "as stored in the file");

  // Levels: who has the scales multiplies.
  static void DecodeRef(const Block& b, float* out) noexcept {
    for (size_t i = 0; i < kBlockLen; ++i) {
      out[i] = static_cast<float>(((b.qs[i / 4] >> (2 * (i % 4))) & 3) - 2);
    }
  }

  // From codes, level + 2.
  static void Pack(const uint8_t* codes, Block& b) noexcept {
    for (size_t i = 0; i < 8; ++i, codes += 4) {
      b.qs[i] = static_cast<uint8_t>(codes[0] | codes[1] << 2 | codes[2] << 4 |
                                     codes[3] << 6);
    }
  }

  static float EncodeRowScaledRef(const float* in, size_t num_blocks,
                                  Block* row) noexcept {
    return EncodeRowScaled<W2>(in, num_blocks, row);
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_W2_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_W2_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_W2_INL_TOGGLE
#undef HALFBYTE_FORMATS_W2_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_W2_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes [i, i + Lanes(du8)) of a block; du8 has 16 or 32 lanes and i is a multiple.
template <class DU8>
HWY_INLINE hn::Vec<DU8> Codes(W2, DU8 du8, const W2::Block& b, size_t i) {
  alignas(32) uint8_t codes[32];
  const hn::CappedTag<uint8_t, 16> d16;
  for (size_t j = 0; j < hn::Lanes(du8); j += 16) {
    // Four bytes, each widened to the four codes it holds.
    uint32_t quads;
    memcpy(&quads, b.qs + (i + j) / 4, sizeof(quads));
    const hn::Repartition<uint32_t, decltype(d16)> d4;
    const hn::Rebind<uint8_t, decltype(d4)> db;
    const hn::Repartition<uint32_t, decltype(db)> d32;
    const auto wide = hn::PromoteTo(d4, hn::BitCast(db, hn::Set(d32, quads)));
    const auto two = hn::Or(wide, hn::ShiftLeft<12>(wide));
    const auto four = hn::Or(two, hn::ShiftLeft<6>(two));
    const auto mask = hn::Set(d16, uint8_t{3});
    hn::Store(hn::And(hn::BitCast(d16, four), mask), d16, codes + j);
  }
  return hn::Load(du8, codes);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
