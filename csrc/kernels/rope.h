// csrc/kernels/rope.h
// Rotary position embedding of one head, half-split: pairs (i, i + head_dim / 2).
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_ROPE_H_
#define HALFBYTE_KERNELS_ROPE_H_

#include <stddef.h>
#include <stdint.h>

namespace halfbyte {

// x[i], x[i + head_dim / 2] = the pair turned by the angle of (cos[i], sin[i]), for
// i < pairs <= head_dim / 2. The other elements stay.
void Rope(float* x, size_t head_dim, const float* cos, const float* sin,
          size_t pairs) noexcept;

// cos[i], sin[i] of position * inv_freq[i]. In double, so that at position 2^24 the
// angle is still within 1e-8 and the results are rounded once.
void RopeAngles(uint64_t position, const double* inv_freq, size_t pairs, float* cos,
                float* sin) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_ROPE_H_
