// csrc/ops/kv_rows.h
// Keys and values in 8 bits: the rows of a cache.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_KV_ROWS_H_
#define HALFBYTE_OPS_KV_ROWS_H_

#include <stddef.h>
#include <stdint.h>

#include "base/view.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

// Codes of a row of one head, x / step rounded to nearest even within -128 .. 127;
// returns the step. `step`: 0 for the row's own, its largest magnitude over 127. With
// `rotate` the row is transformed first (kernels/hadamard.h), which spreads what a few
// elements hold: they would set the step for all. What is too small for a step becomes
// 0, and a row that is not finite NaN, unless its step is given.
float EncodeI8(const float* x, size_t n, bool rotate, float step, int8_t* codes);

// x[i] = codes[i] * step, and the transform undone.
void DecodeI8(const int8_t* codes, size_t n, bool rotated, float step, float* x);

// The same of all rows; one step for each.
void EncodeI8(const Context& context, HeadRows<const float> x, bool rotate, float step,
              HeadRows<int8_t> codes, HeadRows<float> steps);
void DecodeI8(const Context& context, HeadRows<const int8_t> codes,
              HeadRows<const float> steps, bool rotated, HeadRows<float> x);

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_KV_ROWS_H_
