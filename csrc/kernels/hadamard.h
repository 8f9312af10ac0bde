// csrc/kernels/hadamard.h
// The Walsh-Hadamard transform, which spreads what a few elements of a row hold over
// all.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_HADAMARD_H_
#define HALFBYTE_KERNELS_HADAMARD_H_

#include <stddef.h>

namespace halfbyte {

inline constexpr size_t kMaxHadamardLen = 512;

// The largest power of two, up to that, that divides n.
constexpr size_t HadamardLen(size_t n) {
  const size_t power = n & (~n + 1);
  return power < kMaxHadamardLen ? power : kMaxHadamardLen;
}

// Each B = HadamardLen(n) elements of a row become H x / sqrt(B), where H[i, j] is 1,
// or -1 if i & j has an odd number of bits. Orthonormal, and its own inverse: products
// of two rows stay as they are. Equal bits on every target.
void Hadamard(float* x, size_t n) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_HADAMARD_H_
