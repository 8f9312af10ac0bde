// csrc/kernels/convert.h
// Rows of 16-bit floats to and from f32, bit for bit as base/half.h; 8-bit codes to
// f32.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_CONVERT_H_
#define HALFBYTE_KERNELS_CONVERT_H_

#include <stddef.h>
#include <stdint.h>

namespace halfbyte {

// The 16-bit side has any alignment. Inputs and outputs do not overlap.
void ConvertF16ToF32(const void* x, size_t n, float* y) noexcept;
void ConvertF32ToF16(const float* x, size_t n, void* y) noexcept;
void ConvertBF16ToF32(const void* x, size_t n, float* y) noexcept;
void ConvertF32ToBF16(const float* x, size_t n, void* y) noexcept;

// y[i] = codes[i] * step
void ConvertI8ToF32(const int8_t* codes, float step, size_t n, float* y) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_CONVERT_H_
