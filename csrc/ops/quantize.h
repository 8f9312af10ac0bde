// csrc/ops/quantize.h
// Float matrices to packed ones.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_QUANTIZE_H_
#define HALFBYTE_OPS_QUANTIZE_H_

#include <stdint.h>

#include <span>

#include "base/view.h"
#include "formats/format.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

enum class Quantizer {
  kOrdinary,  // the step by the weight of largest magnitude
  kSearch,    // the step of least squared error: see kernels/search.h
};

// Rows of x as blocks, and the scale of each row where the format has one: scales is
// then x.rows long, else empty. `importance`, of kSearch, is empty or x.cols long, and
// none of it is negative. Throws ShapeError; ArgumentError if the format has no such
// quantizer; NumericalError for what is not finite, or far larger than the format's
// steps reach, unless the format is one of floats.
void Quantize(const Context& context, Mat<const float> x, Format format,
              Quantizer quantizer, std::span<const float> importance, uint8_t* w,
              std::span<float> scales);

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_QUANTIZE_H_
