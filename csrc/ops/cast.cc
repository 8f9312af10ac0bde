// csrc/ops/cast.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/cast.h"

#include <stddef.h>

#include "base/error.h"
#include "kernels/convert.h"
#include "ops/rows.h"

namespace halfbyte {

void Widen(const Context& context, Mat<const uint16_t> x, Format type, Mat<float> y) {
  Require(type == Format::kF16 || type == Format::kBF16, "widen: type has not 16 bits");
  Require(y.rows == x.rows && y.cols == x.cols, "widen: y is not shaped like x");
  const auto convert = type == Format::kF16 ? &ConvertF16ToF32 : &ConvertBF16ToF32;
  ForEachRow(context, x.rows, x.cols,
             [&](size_t m) { convert(x.Row(m), x.cols, y.Row(m)); });
}

void Narrow(const Context& context, Mat<const float> x, Format type, Mat<uint16_t> y) {
  Require(type == Format::kF16 || type == Format::kBF16,
          "narrow: type has not 16 bits");
  Require(y.rows == x.rows && y.cols == x.cols, "narrow: y is not shaped like x");
  const auto convert = type == Format::kF16 ? &ConvertF32ToF16 : &ConvertF32ToBF16;
  ForEachRow(context, x.rows, x.cols,
             [&](size_t m) { convert(x.Row(m), x.cols, y.Row(m)); });
}

}  // namespace halfbyte
