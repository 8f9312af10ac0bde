// csrc/kernels/search.h
// Weights to blocks by the steps of least squared error; in GGUF's formats of either
// sign. Slower than the ordinary quantizers, which set the step by the largest
// magnitude.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_SEARCH_H_
#define HALFBYTE_KERNELS_SEARCH_H_

#include <stddef.h>
#include <stdint.h>

#include "formats/format.h"

namespace halfbyte {

// Formats of signed levels with one step for 32 weights or for a row.
bool HasSearch(Format format) noexcept;

// K weights as blocks of such a format. The step of 32 weights, or of the row, is the
// one of some 80 that makes the sum of importance * (x - step * level)^2 least; the
// ordinary quantizer's is among them. `importance`: null, or K factors, none negative;
// where a step has none above 0, all count alike. What is not finite is packed by the
// ordinary quantizer. Returns the scale of the row; 1 if the blocks have their own.
float SearchRow(Format format, const float* x, const float* importance, size_t K,
                uint8_t* w) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_SEARCH_H_
