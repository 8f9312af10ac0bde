// csrc/formats/q6_k-inl.h
// Q6_K: 256 weights in 16 groups. Weight = (d * s) * (c - 32) with the group's i8 s and
// a 6-bit code c. With h = i/128, j = (i%128)/32, l = i%32: the low four bits are a
// nibble of ql[64h + 32 (j&1) + l] (high for j >= 2), the high two are bits 2j of
// qh[32h + l].
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_Q6_K_INL_H_
#define HALFBYTE_FORMATS_Q6_K_INL_H_

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"

namespace halfbyte {

struct Q6_K {
  static constexpr size_t kBlockLen = 256;
  static constexpr size_t kGroupLen = 16;  // weights that share a scale
  static constexpr int kMaxCode = 63;
  static constexpr bool kHasMin = false;
  static constexpr int kZeroLog2 = 5;  // weight = scale * (code - 32)
  static constexpr bool kSubScales = true;

  struct Block {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint8_t d[2];  // f16
  };
  static_assert(sizeof(Block) == 210, "as stored in the file");

  static void SubScales(const Block& b, int8_t* scale, int8_t* /*min*/) noexcept {
    memcpy(scale, b.scales, sizeof(b.scales));
  }

  static void DecodeRef(const Block& b, float* out) noexcept {
    const float d = LoadF16(b.d);
    for (size_t i = 0; i < kBlockLen; ++i) {
      const size_t h = i / 128, j = i % 128 / 32, l = i % 32;
      const uint8_t byte = b.ql[64 * h + 32 * (j & 1) + l];
      const int low = j < 2 ? byte & 15 : byte >> 4;
      const int high = (b.qh[32 * h + l] >> (2 * j)) & 3;
      const float scale = d * static_cast<float>(b.scales[i / 16]);
      out[i] = scale * static_cast<float>((low | high << 4) - 32);
    }
  }

  static void EncodeRowRef(const float* in, size_t num_blocks, Block* row) noexcept {
    for (size_t b = 0; b < num_blocks; ++b) EncodeBlock(in + b * kBlockLen, row[b]);
  }

 private:
  static constexpr size_t kGroups = kBlockLen / kGroupLen;

  static float Level(float x) noexcept { return fmaxf(-32.0f, fminf(31.0f, rintf(x))); }

  // The step that fits 16 weights best with levels -32 to 31: of 19 trial steps around
  // extreme / -32, the one whose least-squares fit, weighted by x^2, leaves least
  // error.
  static float GroupStep(const float* x) noexcept {
    float extreme = 0.0f;
    for (size_t i = 0; i < kGroupLen; ++i) {
      if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
    }
    if (fabsf(extreme) < 1e-15f) return 0.0f;
    float best_step = 0.0f, best = 0.0f;
    const auto attempt = [&](float inv_step, bool first) {
      float sum_lx = 0.0f, sum_l2 = 0.0f;
      for (size_t i = 0; i < kGroupLen; ++i) {
        const float level = Level(inv_step * x[i]), weight = x[i] * x[i];
        sum_lx += weight * x[i] * level;
        sum_l2 += weight * level * level;
      }
      if (sum_l2 > 0.0f && (first || sum_lx * sum_lx > best * sum_l2)) {
        best_step = sum_lx / sum_l2;
        best = best_step * sum_lx;
      }
    };
    attempt(-32.0f / extreme, true);
    for (int tenth = -9; tenth <= 9; ++tenth) {
      if (tenth != 0) {
        attempt(-(32.0f + 0.1f * static_cast<float>(tenth)) / extreme, false);
      }
    }
    return best_step;
  }

  static void EncodeBlock(const float* x, Block& b) noexcept {
    float steps[kGroups], extreme = 0.0f;
    for (size_t g = 0; g < kGroups; ++g) {
      steps[g] = GroupStep(x + g * kGroupLen);
      if (fabsf(steps[g]) > fabsf(extreme)) extreme = steps[g];
    }
    b = {};
    if (fabsf(extreme) < 1e-15f) return;
    const float inv_d = -128.0f / extreme;
    StoreF16(1.0f / inv_d, b.d);
    const float d = LoadF16(b.d);
    uint8_t codes[kBlockLen];
    for (size_t g = 0; g < kGroups; ++g) {
      const float s = fmaxf(-128.0f, fminf(127.0f, rintf(inv_d * steps[g])));
      b.scales[g] = static_cast<int8_t>(s);
      const float step = d * s;
      for (size_t i = g * kGroupLen; i < (g + 1) * kGroupLen; ++i) {
        // A group whose step vanished keeps level 0.
        codes[i] = step == 0.0f ? 32 : static_cast<uint8_t>(Level(x[i] / step) + 32.0f);
      }
    }
    PackCodes(codes, b);
  }

  static void PackCodes(const uint8_t* codes, Block& b) noexcept {
    for (size_t i = 0; i < kBlockLen; ++i) {
      const size_t h = i / 128, j = i % 128 / 32, l = i % 32;
      const int low = codes[i] & 15, high = codes[i] >> 4;
      uint8_t& ql = b.ql[64 * h + 32 * (j & 1) + l];
      uint8_t& qh = b.qh[32 * h + l];
      ql = static_cast<uint8_t>(ql | low << (j < 2 ? 0 : 4));
      qh = static_cast<uint8_t>(qh | high << (2 * j));
    }
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_Q6_K_INL_H_

// From here on: once per target.
#if defined(HALFBYTE_FORMATS_Q6_K_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_FORMATS_Q6_K_INL_TOGGLE
#undef HALFBYTE_FORMATS_Q6_K_INL_TOGGLE
#else
#define HALFBYTE_FORMATS_Q6_K_INL_TOGGLE
#endif

#include "formats/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes [i, i + Lanes(du8)) of a block; du8 has 16 or 32 lanes and i is a multiple.
template <class DU8>
HWY_INLINE hn::Vec<DU8> Codes(Q6_K, DU8 du8, const Q6_K::Block& b, size_t i) {
  const size_t h = i / 128, j = i % 128 / 32, l = i % 32;
  const auto packed = hn::LoadU(du8, b.ql + 64 * h + 32 * (j & 1) + l);
  const auto low = BitField<15>(du8, packed, 4 * (j / 2));
  const auto high = BitField<3>(du8, hn::LoadU(du8, b.qh + 32 * h + l), 2 * j);
  return hn::Or(low, ShiftBytesLeft<4>(du8, high));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
