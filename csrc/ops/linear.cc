// csrc/ops/linear.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/linear.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/format_kernels.h"
#include "ops/rows.h"

namespace halfbyte {
namespace {

// Rows of W a task takes: enough bytes to be worth handing out, few enough that every
// thread gets several.
size_t RowsPerTask(const WeightView& w, size_t num_threads) {
  constexpr size_t kTaskBytes = 64 * 1024, kTileRows = 16;
  const size_t by_bytes = kTaskBytes / std::max<size_t>(w.row_bytes(), 1);
  const size_t by_threads = w.N / (num_threads * 8);
  const size_t rows = std::max({by_bytes, by_threads, kTileRows});
  return (rows + kTileRows - 1) / kTileRows * kTileRows;
}

// One slice with f32 activations whatever the format: rows are decoded, a few at a
// time.
void LinearDecoded(const WeightView& w, Mat<const float> x, Mat<float> y, size_t begin,
                   size_t end) {
  constexpr size_t kRows = 16;
  const FormatKernels& format = KernelsFor(w.format);
  const FormatKernels& f32 = KernelsFor(Format::kF32);
  std::vector<float> rows(kRows * w.K);
  for (size_t n = begin; n < end; n += kRows) {
    const size_t count = std::min(kRows, end - n);
    for (size_t i = 0; i < count; ++i) {
      format.decode_row(w.data + (n + i) * w.row_bytes(), w.K, &rows[i * w.K]);
    }
    f32.linear({.w = reinterpret_cast<const uint8_t*>(rows.data()),
                .w_row_bytes = w.K * sizeof(float),
                .x = x.data,
                .x_ld = x.ld,
                .y = y.data + n,
                .y_ld = y.ld,
                .row_begin = 0,
                .row_end = count,
                .M = x.rows,
                .K = w.K});
  }
}

}  // namespace

const Q8Block* LinearInput::Q8() {
  const size_t blocks = x_.cols / Q8Block::kLen;
  if (q8_.empty()) {
    q8_.resize(x_.rows * blocks);
    ForEachRow(context_, x_.rows, x_.cols,
               [&](size_t m) { QuantizeQ8(x_.Row(m), x_.cols, &q8_[m * blocks]); });
  }
  return q8_.data();
}

void Linear(LinearInput& x, const WeightView& w, Mat<float> y) {
  const Mat<const float> in = x.x();
  Require(in.cols == w.K, "linear: x and w differ in K");
  Require(y.rows == in.rows && y.cols == w.N, "linear: y is not M x N");
  if (in.rows == 0 || w.N == 0) return;
  const FormatKernels& kernels = KernelsFor(w.format);
  const bool q8 = kernels.activations == Activations::kQ8;
  const bool decode = q8 && x.mode() == ActivationMode::kF32;
  LinearArgs args = {.w = w.data,
                     .w_row_bytes = w.row_bytes(),
                     .x = in.data,
                     .x_ld = in.ld,
                     .y = y.data,
                     .y_ld = y.ld,
                     .row_begin = 0,
                     .row_end = 0,
                     .M = in.rows,
                     .K = w.K};
  if (q8 && !decode) {
    args.x = x.Q8();
    args.x_ld = w.K / Q8Block::kLen;
  }
  const size_t step = RowsPerTask(w, x.context().num_threads);
  x.context().ParallelFor((w.N + step - 1) / step, [&](size_t task) {
    const size_t begin = task * step, end = std::min(begin + step, w.N);
    if (decode) return LinearDecoded(w, in, y, begin, end);
    LinearArgs slice = args;
    slice.row_begin = begin;
    slice.row_end = end;
    kernels.linear(slice);
  });
}

void EmbeddingRows(const Context& context, const WeightView& w,
                   std::span<const int32_t> ids, Mat<float> y) {
  Require(y.rows == ids.size() && y.cols == w.K, "embedding_rows: y is not M x K");
  const FormatKernels& kernels = KernelsFor(w.format);
  ForEachRow(context, ids.size(), w.K, [&](size_t i) {
    const auto row = static_cast<size_t>(ids[i]);
    kernels.decode_row(w.data + row * w.row_bytes(), w.K, y.Row(i));
  });
}

}  // namespace halfbyte
