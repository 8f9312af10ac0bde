// csrc/ops/linear.h
// Products with packed weights, and rows of them.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_LINEAR_H_
#define HALFBYTE_OPS_LINEAR_H_

#include <stddef.h>
#include <stdint.h>

#include <span>
#include <vector>

#include "base/view.h"
#include "formats/format.h"
#include "kernels/q8.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

// Packed weights: N rows of K, in the format's blocks. Never owns.
struct WeightView {
  Format format = Format::kF32;
  size_t N = 0, K = 0;
  const uint8_t* data = nullptr;  // any alignment

  size_t row_bytes() const { return RowBytes(format, K); }
  size_t bytes() const { return N * row_bytes(); }
  WeightView Rows(size_t begin, size_t count) const {
    return {format, count, K, data + begin * row_bytes()};
  }
};

enum class ActivationMode {
  kAuto,  // 8-bit codes for quantised weights, f32 for float weights
  kF32,   // f32 always: slow, and exact up to rounding of the sums
};

// The input of one or several products. Its 8-bit form is made at most once, so q, k, v
// (and gate, up) share it.
class LinearInput {
 public:
  // Borrows `x`, which must outlive this object and stay as it is.
  LinearInput(const Context& context, Mat<const float> x, ActivationMode mode)
      : context_(context), x_(x), mode_(mode) {}

  Mat<const float> x() const { return x_; }
  ActivationMode mode() const { return mode_; }
  const Context& context() const { return context_; }
  // M rows of K / 32 blocks. K must be a multiple of 32.
  const Q8Block* Q8();

 private:
  const Context& context_;
  Mat<const float> x_;
  ActivationMode mode_;
  std::vector<Q8Block> q8_;
};

// y[M, N] = x[M, K] W[N, K]^T. `y` must not overlap x. Throws ShapeError.
void Linear(LinearInput& x, const WeightView& w, Mat<float> y);

// y.Row(i) = row ids[i] of w, decoded. Ids are trusted to be below w.N.
void EmbeddingRows(const Context& context, const WeightView& w,
                   std::span<const int32_t> ids, Mat<float> y);

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_LINEAR_H_
