// csrc/kernels/format_kernels.h
// What can be done with a format: one table of functions per format and target.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_FORMAT_KERNELS_H_
#define HALFBYTE_KERNELS_FORMAT_KERNELS_H_

#include <stddef.h>
#include <stdint.h>

#include "formats/format.h"
#include "kernels/q8.h"

namespace halfbyte {

// y[m, n] = dot(row n of W, row m of X) for n in [row_begin, row_end), m in [0, M).
// W is N x K: N output features, K input features.
struct LinearArgs {
  const uint8_t* w;  // row 0; rows are row_bytes apart
  size_t w_row_bytes;
  // M rows of K activations: f32, x_ld elements apart, or K / 32 blocks, x_ld blocks
  // apart. The table says which of the two a format multiplies with.
  const void* x;
  size_t x_ld;
  float* y;  // y_ld floats between the rows; must not alias w or x
  size_t y_ld;
  size_t row_begin, row_end;
  size_t M, K;  // K is a multiple of the block length
};

enum class Activations { kF32, kQ8 };

// Arguments are trusted: `ops/` has checked them. The sum of one output is made in the
// same order for every M, so a row of a batch equals that row alone, bit for bit.
struct FormatKernels {
  int64_t target;           // the HWY_TARGET this was compiled for
  Activations activations;  // what `linear` reads
  void (*decode_row)(const uint8_t* w, size_t K, float* out) noexcept;
  void (*linear)(const LinearArgs& args) noexcept;
  // Scalar, the same on every target: the definition, and the oracle for tests.
  void (*decode_row_ref)(const uint8_t* w, size_t K, float* out) noexcept;
  // Null where the format can only be read.
  void (*encode_row_ref)(const float* in, size_t K, uint8_t* w) noexcept;
};

// The table for the best instruction set of this CPU. Look it up once an operation.
const FormatKernels& KernelsFor(Format format);

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_FORMAT_KERNELS_H_
