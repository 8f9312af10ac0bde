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

// Rows that a panel interleaves: see kernels/panel-inl.h.
inline constexpr size_t kPanelRows = 16;
inline constexpr size_t kUnitLen = 32;  // weights of a row that a panel keeps together

// y[m, n] = dot(row n of W, row m of X) for n in [row_begin, row_end), m in [0, M).
// W is N x K: N output features, K input features.
struct LinearArgs {
  // Float formats: row 0, and the bytes to the next. Quantised formats: panel 0,
  // aligned to 64 bytes, and the bytes to the next panel.
  const uint8_t* w = nullptr;
  size_t w_row_bytes = 0;
  // M rows of K activations: f32, x_ld elements apart, or K / 32 blocks, x_ld blocks
  // apart. The table says which of the two a format multiplies with.
  const void* x;
  size_t x_ld;
  float* y;  // y_ld floats between the rows; must not alias w or x
  size_t y_ld;
  size_t row_begin = 0, row_end = 0;  // quantised formats: row_begin begins a panel
  size_t M, K;                        // K is a multiple of the block length
};

// The same for weights with one scale a row and activations with one step a token.
struct ChannelArgs {
  const uint8_t* w = nullptr;  // panels, as in LinearArgs
  size_t w_row_bytes = 0;
  const float* w_scale;  // [N]
  const int8_t* x;       // M rows of K codes, x_ld apart
  size_t x_ld;
  const int32_t* x_neg_sum;  // [M]: minus the sum of a row's codes
  const float* x_scale;      // [M]: what a code of the row stands for
  // 0: y is the product. Else it is rounded to -128 .. 127 times y_step, and where
  // y_codes is not null, the codes are written there and y stays as it is.
  float y_step = 0.0f;
  float* y = nullptr;
  int8_t* y_codes = nullptr;
  size_t y_ld;
  size_t row_begin = 0, row_end = 0;
  size_t M, K;  // K <= 65536: sums of 255 * 128 stay below 2^31
};

enum class Activations { kF32, kQ8, kI8 };

// Arguments are trusted: `ops/` has checked them. The sum of one output is made in the
// same order for every M, so a row of a batch equals that row alone, bit for bit.
struct FormatKernels {
  int64_t target;           // the HWY_TARGET this was compiled for
  const char* dot;          // how it multiplies bytes: "VNNI", "MADD", "SDOT"
  Activations activations;  // what `linear` reads
  void (*decode_row)(const uint8_t* w, size_t K, float* out) noexcept;
  // Null for formats with a scale a row, and the next null for the others.
  void (*linear)(const LinearArgs& args) noexcept;
  void (*linear_channels)(const ChannelArgs& args) noexcept;
  // Quantised formats, else null. Bytes of a panel of rows of K weights; and the panel
  // of num_rows <= 16 rows, row_bytes apart.
  size_t (*panel_bytes)(size_t K) noexcept;
  void (*pack_panel)(const uint8_t* rows, size_t row_bytes, size_t num_rows, size_t K,
                     uint8_t* panel) noexcept;
  // Quantised formats with codes of fewer than 8 bits, else null: a panel whose codes
  // have a byte each, which is faster than the other where many tokens share it. The
  // products take whole blocks of rows and a multiple of spread_tokens tokens.
  size_t spread_tokens;
  size_t (*spread_bytes)(size_t K) noexcept;
  void (*spread_panel)(const uint8_t* panel, size_t K, uint8_t* spread) noexcept;
  void (*linear_spread)(const LinearArgs& args) noexcept;
  void (*linear_channels_spread)(const ChannelArgs& args) noexcept;
  // Formats whose levels and 2-byte scales some files keep apart, else null: makes a
  // row of blocks. A scale serves group_len weights, a multiple of the block; formats
  // with a scale a row get none.
  void (*join_row)(const uint8_t* codes, const uint8_t* scales, size_t group_len,
                   size_t K, uint8_t* w) noexcept;
  // Scalar, the same on every target: the definition, and the oracle for tests.
  void (*decode_row_ref)(const uint8_t* w, size_t K, float* out) noexcept;
  // Null where the format can only be read.
  void (*encode_row_ref)(const float* in, size_t K, uint8_t* w) noexcept;
  // Formats with a scale a row: returns it.
  float (*encode_row_scaled_ref)(const float* in, size_t K, uint8_t* w) noexcept;
};

// The table for the best instruction set of this CPU. Look it up once an operation.
const FormatKernels& KernelsFor(Format format);

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_FORMAT_KERNELS_H_
