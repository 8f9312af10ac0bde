// csrc/kernels/vector_ops.h
// Sums and products of rows. y may be x.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_VECTOR_OPS_H_
#define HALFBYTE_KERNELS_VECTOR_OPS_H_

#include <stddef.h>

namespace halfbyte {

void Add(const float* x, size_t n, float* y) noexcept;  // y += x
void Mul(const float* x, size_t n, float* y) noexcept;  // y *= x
void Scale(float a, size_t n, float* y) noexcept;       // y *= a

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_VECTOR_OPS_H_
