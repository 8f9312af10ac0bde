// csrc/kernels/q8.h
// Activations as 8-bit codes: what quantised weights are multiplied with.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_Q8_H_
#define HALFBYTE_KERNELS_Q8_H_

#include <stddef.h>
#include <stdint.h>

namespace halfbyte {

// A sum s of integers that begins from these bits ends as the bits of the f32
// 3 * 2^22 + s, if |s| < 2^22: it is one without being converted.
inline constexpr int32_t kSumBiasBits = 0x4B400000;
inline constexpr float kSumBias = 12582912.0f;

// 32 activations share one step: x[i] = d * q[i] + error, |error| <= d / 2.
struct Q8Block {
  static constexpr size_t kLen = 32;

  float d;  // max |x| / 127
  // Minus the sum of all codes, and of the last 16: times a format's zero point, the
  // start value of the dot product that multiplies the same codes.
  int32_t neg_sum, neg_sum_last;
  // kSumBiasBits - 8 * sum: the start value for Q4_0's zero point.
  int32_t biased_start;
  int8_t q[kLen];  // -127 .. 127
};

// Codes are x / d rounded to nearest even, equal on every target. A block that holds a
// NaN or an infinity gets d = NaN, so that every product with it is NaN.
// `K` is a multiple of 32; `out` holds K / 32 blocks.
void QuantizeQ8(const float* x, size_t K, Q8Block* out) noexcept;

// The largest |x|, or NaN if one is not finite.
float MaxMagnitude(const float* x, size_t K) noexcept;

// A row with one step: codes x / step rounded to nearest even, within -128 .. 127; NaN
// becomes 0. Returns minus their sum.
int32_t QuantizeI8(const float* x, size_t K, float step, int8_t* codes) noexcept;

// Minus the sum of codes that are there already. K is below 2^24.
int32_t NegativeSum(const int8_t* codes, size_t K) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_Q8_H_
