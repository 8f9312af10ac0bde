// csrc/formats/w4g32-inl.h
// W4G32: 32 weights share one bf16 scale. Weight i is d * (n - 8), n the 4-bit code;
// neighbours share a byte, the first in the low bits. What compressed-tensors calls
// int4 in groups of 32, whose files keep scales and codes apart.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_W4G32_INL_H_
#define HALFBYTE_FORMATS_W4G32_INL_H_

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"

namespace halfbyte {

struct W4G32 {
  static constexpr size_t kBlockLen = 32;
  static constexpr size_t kGroupLen = 32;
  static constexpr int kMaxCode = 15;
  static constexpr bool kHasMin = false;
  static constexpr int kZeroLog2 = 3;  // weight = scale * (code - 8)
  static constexpr bool kSubScales = false;
  static constexpr bool kBF16Scale = true;

  struct Block {
    uint8_t d[2];  // bf16; blocks are not aligned
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 18, "two tensors of the files, joined");

  static void DecodeRef(const Block& b, float* out) noexcept {
    const float d = LoadBF16(b.d);
    for (size_t i = 0; i < kBlockLen; ++i) {
      const int code = (b.qs[i / 2] >> (4 * (i % 2))) & 15;
      out[i] = d * static_cast<float>(code - 8);
    }
  }

  // The step makes a range of 15 of twice the largest magnitude, as the library has it.
  static void EncodeRowRef(const float* in, size_t num_blocks, Block* row) noexcept {
    for (size_t b = 0; b < num_blocks; ++b, in += kBlockLen) {
      float largest = 0.0f;
      for (size_t i = 0; i < kBlockLen; ++i) largest = fmaxf(largest, fabsf(in[i]));
      StoreBF16(largest / 7.5f, row[b].d);
      const float d = LoadBF16(row[b].d);
      uint8_t codes[kBlockLen];
      for (size_t i = 0; i < kBlockLen; ++i) {
        const float level = d == 0.0f ? 0.0f : rintf(in[i] / d);
        codes[i] = static_cast<uint8_t>(fmaxf(-8.0f, fminf(7.0f, level)) + 8.0f);
      }
      Pack(codes, row[b]);
    }
  }

  // From codes, level + 8; the scale stays as it is.
  static void Pack(const uint8_t* codes, Block& b) noexcept {
    for (size_t i = 0; i < 16; ++i) {
      b.qs[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
    }
  }

  // From 16 bytes of codes and a scale.
  static void Join(const uint8_t* codes, const uint8_t* scale, Block& b) noexcept {
    memcpy(b.d, scale, sizeof(b.d));
    memcpy(b.qs, codes, sizeof(b.qs));
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_W4G32_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_W4G32_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_W4G32_INL_TOGGLE
#undef HALFBYTE_FORMATS_W4G32_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_W4G32_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes [i, i + Lanes(du8)) of a block; du8 has 16 or 32 lanes and i is a multiple.
template <class DU8>
HWY_INLINE hn::Vec<DU8> Codes(W4G32, DU8 du8, const W4G32::Block& b, size_t i) {
  return NibblePairs(du8, b.qs, i);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
