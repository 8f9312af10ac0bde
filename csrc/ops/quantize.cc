// csrc/ops/quantize.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/quantize.h"

#include <stddef.h>
#include <stdio.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/format_kernels.h"
#include "kernels/q8.h"
#include "kernels/search.h"
#include "ops/rows.h"

namespace halfbyte {
namespace {

// Throws if the format cannot be written so.
void CheckWritable(const FormatInfo& info, Quantizer quantizer) {
  const FormatKernels& kernels = KernelsFor(info.format);
  const std::string name = info.stem;
  if (kernels.encode_row_ref == nullptr && kernels.encode_row_scaled_ref == nullptr) {
    throw Error(ErrorClass::kValue, "format: " + name + " can only be read");
  }
  if (quantizer == Quantizer::kSearch && !HasSearch(info.format)) {
    throw Error(ErrorClass::kValue, "quantizer: " + name + " has no other than rtn");
  }
}

// The largest magnitude of a row. No code stands for what is not finite.
float CheckFinite(Mat<const float> x, size_t row) {
  const float largest = MaxMagnitude(x.Row(row), x.cols);
  if (!std::isnan(largest)) return largest;
  // Another thread may change the array meanwhile: each value is read once, to the end.
  size_t col = 0;
  float found = x.Row(row)[0];
  while (std::isfinite(found) && col + 1 < x.cols) found = x.Row(row)[++col];
  throw Error(ErrorClass::kNumerical,
              "x: expected finite values, got " + std::to_string(found) + " at " +
                  std::to_string(row) + ", " + std::to_string(col));
}

// Steps in the blocks are f16 or bf16: what is far larger than any weight has none.
void CheckFits(const FormatInfo& info, size_t row, size_t K, float largest,
               const uint8_t* blocks) {
  constexpr float kLargestF16 = 65504.0f;
  if (largest <= kLargestF16) return;
  std::vector<float> decoded(K);
  KernelsFor(info.format).decode_row(blocks, K, decoded.data());
  // Rounding to nearest keeps more than half, a search somewhat less; NaN is no number.
  if (MaxMagnitude(decoded.data(), K) >= largest / 4) return;
  char found[32];
  snprintf(found, sizeof(found), "%g", static_cast<double>(largest));
  throw Error(ErrorClass::kNumerical,
              "x: expected values that " + std::string(info.stem) +
                  " has steps for, got " + found + " in row " + std::to_string(row));
}

}  // namespace

void Quantize(const Context& context, Mat<const float> x, Format format,
              Quantizer quantizer, std::span<const float> importance, uint8_t* w,
              std::span<float> scales) {
  const FormatInfo& info = InfoOf(format);
  const FormatKernels& kernels = KernelsFor(format);
  CheckWritable(info, quantizer);
  if (x.cols % info.block_len != 0) {
    throw Error(ErrorClass::kShape,
                "x: expected a last dimension that is a multiple of " +
                    std::to_string(info.block_len) + " for " + info.stem + ", got " +
                    std::to_string(x.cols));
  }
  Require(importance.empty() || importance.size() == x.cols,
          "importance: expected one factor a column of x");
  const float* factors = importance.empty() ? nullptr : importance.data();
  const size_t row_bytes = RowBytes(format, x.cols);
  ForEachRow(context, x.rows, x.cols, [&](size_t n) {
    const float largest = info.block_len == 1 ? 0.0f : CheckFinite(x, n);
    uint8_t* to = w + n * row_bytes;
    float scale = 1.0f;
    if (quantizer == Quantizer::kSearch) {
      scale = SearchRow(format, x.Row(n), factors, x.cols, to);
    } else if (kernels.encode_row_ref != nullptr) {
      kernels.encode_row_ref(x.Row(n), x.cols, to);
    } else {
      scale = kernels.encode_row_scaled_ref(x.Row(n), x.cols, to);
    }
    if (scales.empty()) {
      CheckFits(info, n, x.cols, largest, to);
    } else {
      scales[n] = scale;
    }
  });
}

}  // namespace halfbyte
