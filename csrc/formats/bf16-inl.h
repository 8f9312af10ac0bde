// csrc/formats/bf16-inl.h
// BF16: the upper half of a binary32.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_BF16_INL_H_
#define HALFBYTE_FORMATS_BF16_INL_H_

#include <stddef.h>
#include <stdint.h>

#include "base/half.h"

namespace halfbyte {

struct BF16 {
  static constexpr size_t kBlockLen = 1;

  struct Block {
    uint8_t v[2];  // rows need not be aligned
  };
  static_assert(sizeof(Block) == 2, "as stored in the file");

  static void DecodeRef(const Block& b, float* out) noexcept { *out = LoadBF16(b.v); }

  static void EncodeRowRef(const float* in, size_t num_blocks, Block* row) noexcept {
    for (size_t i = 0; i < num_blocks; ++i) StoreBF16(in[i], row[i].v);
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_BF16_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_BF16_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_BF16_INL_TOGGLE
#undef HALFBYTE_FORMATS_BF16_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_BF16_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class DF>
HWY_INLINE hn::Vec<DF> LoadWeights(BF16, DF df, const uint8_t* row, size_t i) {
  return F32FromBF16(df, hn::LoadU(HalfBytes<DF>(), row + i * sizeof(uint16_t)));
}
template <class DF>
HWY_INLINE hn::Vec<DF> LoadWeightsN(BF16, DF df, const uint8_t* row, size_t i,
                                    size_t n) {
  return F32FromBF16(
      df, hn::LoadN(HalfBytes<DF>(), row + i * sizeof(uint16_t), n * sizeof(uint16_t)));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
