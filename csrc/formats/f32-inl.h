// csrc/formats/f32-inl.h
// F32: IEEE binary32, as it is.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_F32_INL_H_
#define HALFBYTE_FORMATS_F32_INL_H_

#include <stddef.h>
#include <stdint.h>

#include "base/half.h"

namespace halfbyte {

struct F32 {
  static constexpr size_t kBlockLen = 1;

  struct Block {
    uint8_t v[4];  // rows need not be aligned
  };
  static_assert(sizeof(Block) == 4, "as stored in the file");

  static void DecodeRef(const Block& b, float* out) noexcept { *out = LoadF32(b.v); }

  static void EncodeRowRef(const float* in, size_t num_blocks, Block* row) noexcept {
    for (size_t i = 0; i < num_blocks; ++i) StoreF32(in[i], row[i].v);
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_F32_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_F32_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_F32_INL_TOGGLE
#undef HALFBYTE_FORMATS_F32_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_F32_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Weights [i, i + n) of a row, zeros above; n = Lanes(df) where the caller knows it.
template <class DF>
HWY_INLINE hn::Vec<DF> LoadWeights(F32, DF df, const uint8_t* row, size_t i) {
  const hn::Repartition<uint8_t, DF> du8;
  return hn::BitCast(df, hn::LoadU(du8, row + i * sizeof(float)));
}
template <class DF>
HWY_INLINE hn::Vec<DF> LoadWeightsN(F32, DF df, const uint8_t* row, size_t i,
                                    size_t n) {
  const hn::Repartition<uint8_t, DF> du8;
  return hn::BitCast(df, hn::LoadN(du8, row + i * sizeof(float), n * sizeof(float)));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
