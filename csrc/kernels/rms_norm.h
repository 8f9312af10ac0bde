// csrc/kernels/rms_norm.h
// Root-mean-square normalisation of one row.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_RMS_NORM_H_
#define HALFBYTE_KERNELS_RMS_NORM_H_

#include <stddef.h>

namespace halfbyte {

// y[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i], computed in double and rounded once.
// A null `weight` is all ones; y may be x. Zeros give zeros, also with eps = 0. If any
// element of x is not finite, every y is NaN.
void RmsNorm(const float* x, const float* weight, size_t n, float eps,
             float* y) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_RMS_NORM_H_
