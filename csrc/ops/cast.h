// csrc/ops/cast.h
// Rows of 16-bit floats to and from the f32 that operations compute in.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_CAST_H_
#define HALFBYTE_OPS_CAST_H_

#include <stdint.h>

#include "base/view.h"
#include "formats/format.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

// y = x: rows of `type`, which is kF16 or kBF16, of any alignment.
void Widen(const Context& context, Mat<const uint16_t> x, Format type, Mat<float> y);

// y = x, each rounded to nearest, halves to even.
void Narrow(const Context& context, Mat<const float> x, Format type, Mat<uint16_t> y);

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_CAST_H_
