// csrc/formats/q4_0-inl.h
// Q4_0: 32 weights share one f16 scale. Weight i is d * (n - 8), n the 4-bit code: the
// low nibbles hold weights 0 to 15, the high nibbles 16 to 31.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_Q4_0_INL_H_
#define HALFBYTE_FORMATS_Q4_0_INL_H_

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "base/half.h"

namespace halfbyte {

struct Q4_0 {
  static constexpr size_t kBlockLen = 32;
  static constexpr size_t kGroupLen = 32;  // weights that share a scale
  static constexpr int kMaxCode = 15;
  static constexpr bool kHasMin = false;
  static constexpr int kZeroLog2 = 3;  // weight = scale * (code - 8)
  static constexpr bool kSubScales = false;

  struct Block {
    uint8_t d[2];  // f16; blocks are not aligned
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 18, "as stored in the file");

  // The definition of the format. The SIMD decoder equals it bit for bit.
  static void DecodeRef(const Block& b, float* out) noexcept {
    const float d = LoadF16(b.d);
    for (size_t i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>((b.qs[i] & 15) - 8);
      out[i + 16] = d * static_cast<float>((b.qs[i] >> 4) - 8);
    }
  }

  // The extreme weight, sign kept, becomes level -8: the ordinary Q4_0 quantizer. The
  // codes come from the step before it is rounded to f16.
  static void EncodeRowRef(const float* in, size_t num_blocks, Block* row) noexcept {
    for (size_t b = 0; b < num_blocks; ++b, in += kBlockLen) {
      float extreme = 0.0f;
      for (size_t i = 0; i < kBlockLen; ++i) {
        if (fabsf(in[i]) > fabsf(extreme)) extreme = in[i];
      }
      const float d = extreme / -8.0f;
      const float inv_d = d == 0.0f ? 0.0f : 1.0f / d;
      const auto code = [inv_d](float x) {
        return static_cast<uint8_t>(
            fminf(15.0f, fmaxf(0.0f, truncf(x * inv_d + 8.5f))));
      };
      StoreF16(d, row[b].d);
      uint8_t codes[kBlockLen];
      for (size_t i = 0; i < kBlockLen; ++i) codes[i] = code(in[i]);
      Pack(codes, row[b]);
    }
  }

  // From codes, level + 8; the scale stays as it is.
  static void Pack(const uint8_t* codes, Block& b) noexcept {
    for (size_t i = 0; i < 16; ++i) {
      b.qs[i] = static_cast<uint8_t>(codes[i] | codes[i + 16] << 4);
    }
  }

  // From 16 bytes whose nibbles are neighbours, and a scale, as files have them that
  // keep the two apart.
  static void Join(const uint8_t* codes, const uint8_t* scale, Block& b) noexcept {
    b.d[0] = scale[0];
    b.d[1] = scale[1];
    for (size_t i = 0; i < 8; ++i) {
      const int low = codes[i], high = codes[i + 8];
      b.qs[2 * i] = static_cast<uint8_t>((low & 15) | (high & 15) << 4);
      b.qs[2 * i + 1] = static_cast<uint8_t>(low >> 4 | (high & 0xF0));
    }
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_Q4_0_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_Q4_0_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_Q4_0_INL_TOGGLE
#undef HALFBYTE_FORMATS_Q4_0_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_Q4_0_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes [i, i + Lanes(du8)) of a block; du8 has 16 or 32 lanes and i is a multiple.
template <class DU8>
HWY_INLINE hn::Vec<DU8> Codes(Q4_0, DU8 du8, const Q4_0::Block& b, size_t i) {
  return Nibbles(du8, b.qs, i);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
