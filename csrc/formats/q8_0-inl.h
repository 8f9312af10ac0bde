// csrc/formats/q8_0-inl.h
// Q8_0: 32 weights share one f16 scale. Weight i is d * q[i].
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_Q8_0_INL_H_
#define HALFBYTE_FORMATS_Q8_0_INL_H_

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "base/half.h"

namespace halfbyte {

struct Q8_0 {
  static constexpr size_t kBlockLen = 32;
  static constexpr size_t kGroupLen = 32;  // weights that share a scale
  static constexpr int kMaxCode = 255;
  static constexpr bool kHasMin = false;
  static constexpr int kZeroLog2 = 7;  // weight = scale * (code - 128)
  static constexpr bool kSubScales = false;

  struct Block {
    uint8_t d[2];  // f16
    int8_t q[32];
  };
  static_assert(sizeof(Block) == 34, "as stored in the file");

  static void DecodeRef(const Block& b, float* out) noexcept {
    const float d = LoadF16(b.d);
    for (size_t i = 0; i < kBlockLen; ++i) out[i] = d * b.q[i];
  }

  // Codes come from the reciprocal of the step before it is rounded to f16, halves away
  // from zero: the reference quantizer's rule.
  static void EncodeRowRef(const float* in, size_t num_blocks, Block* row) noexcept {
    for (size_t b = 0; b < num_blocks; ++b, in += kBlockLen) {
      float amax = 0.0f;
      for (size_t i = 0; i < kBlockLen; ++i) amax = fmaxf(amax, fabsf(in[i]));
      const float d = amax / 127.0f;
      const float inv_d = d == 0.0f ? 0.0f : 1.0f / d;
      StoreF16(d, row[b].d);
      for (size_t i = 0; i < kBlockLen; ++i) {
        const float level = fmaxf(-128.0f, fminf(127.0f, roundf(in[i] * inv_d)));
        row[b].q[i] = static_cast<int8_t>(level);
      }
    }
  }

  // From codes, level + 128; the scale stays as it is.
  static void Pack(const uint8_t* codes, Block& b) noexcept {
    for (size_t i = 0; i < kBlockLen; ++i) {
      b.q[i] = static_cast<int8_t>(codes[i] - 128);
    }
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_Q8_0_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_Q8_0_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_Q8_0_INL_TOGGLE
#undef HALFBYTE_FORMATS_Q8_0_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_Q8_0_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes [i, i + Lanes(du8)) of a block; du8 has 16 or 32 lanes and i is a multiple.
template <class DU8>
HWY_INLINE hn::Vec<DU8> Codes(Q8_0, DU8 du8, const Q8_0::Block& b, size_t i) {
  const hn::RebindToSigned<DU8> di8;
  return hn::Xor(hn::BitCast(du8, hn::LoadU(di8, b.q + i)), hn::Set(du8, uint8_t{128}));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
