// csrc/kernels/activation.h
// The non-linear element-wise functions of a layer.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_ACTIVATION_H_
#define HALFBYTE_KERNELS_ACTIVATION_H_

#include <stddef.h>

namespace halfbyte {

// y[i] = gelu(gate[i]) * up[i] with the tanh form of GELU. y may be gate or up.
void GeluMul(const float* gate, const float* up, size_t n, float* y) noexcept;

// x[i] = cap * tanh(x[i] / cap), cap > 0.
void Softcap(float* x, size_t n, float cap) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_ACTIVATION_H_
