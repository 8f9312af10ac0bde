// csrc/kernels/softmax.h
// Softmax and log-sum-exp of one row.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_SOFTMAX_H_
#define HALFBYTE_KERNELS_SOFTMAX_H_

#include <stddef.h>

namespace halfbyte {

// y[i] = exp(x[i]) / sum of exp(x). y may be x. A row of -inf (fully masked) gives
// zeros; a row with NaN or +inf gives NaN everywhere. Equal inputs give equal outputs.
void Softmax(const float* x, size_t n, float* y) noexcept;

// log(sum of exp(x)); -inf if n = 0 or all are -inf, NaN if any is NaN or +inf.
double LogSumExp(const float* x, size_t n) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_SOFTMAX_H_
