// csrc/ops/linear.h
// Products with packed weights, and rows of them.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_LINEAR_H_
#define HALFBYTE_OPS_LINEAR_H_

#include <stddef.h>
#include <stdint.h>

#include <list>
#include <span>
#include <vector>

#include "base/view.h"
#include "formats/format.h"
#include "kernels/q8.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

// What the rows of a view are as they are stored. Products read blocks: other rows are
// made into some as they are packed, 16 at a time.
enum class Stored : uint8_t {
  kBlocks,  // of the view's format
  kApart,   // codes of the format, neighbours together, whose scales lie elsewhere
  kFloats,  // floats, to be rounded to the format
};

// Packed weights: N rows of K, in the format's blocks. Never owns.
struct WeightView {
  Format format = Format::kF32;
  size_t N = 0, K = 0;
  const uint8_t* data = nullptr;  // any alignment
  Stored stored = Stored::kBlocks;
  // kApart: [N, K / group_len] of two bytes, any alignment; null where rows have
  // scales.
  const uint8_t* group_scale = nullptr;
  size_t group_len = 0;
  Format floats = Format::kF32;  // kFloats: which
  // The same weights in panels of 16 rows, aligned to 64 bytes: what products read.
  // Null until someone packs them (PackPanels); products then pack as they go.
  const uint8_t* panels = nullptr;
  // [N], for formats with one scale a row; never null there.
  const float* row_scale = nullptr;
  // The same formats: steps of 8-bit codes that the checkpoint was trained with, for
  // what goes in and what comes out. 0: in by each token's largest magnitude, out as it
  // is.
  float x_step = 0.0f, y_step = 0.0f;

  size_t row_bytes() const { return RowBytes(format, K); }
  size_t bytes() const { return N * row_bytes(); }
  // Of a row at `data`.
  size_t stored_row_bytes() const;
  // Null for float formats, which are multiplied as they are stored.
  size_t panel_bytes() const;
  // Of all panels.
  size_t packed_bytes() const;
  WeightView Rows(size_t begin, size_t count) const;
};

// Whether weights of `format` take a row_scale.
bool HasRowScale(Format format);
// The longest row of these: sums of 255 * 128 stay below 2^31.
inline constexpr size_t kMaxRowScaledK = 65536;

// Writes w.packed_bytes() bytes of panels, aligned to 64. Changes no value.
void PackPanels(const Context& context, const WeightView& w, uint8_t* panels);

// For kFloats: throws what PackPanels does where a row is not finite and cannot be
// rounded, an Error(kNumerical), MODEL_NOT_FINITE, whose offset counts from w.data.
void CheckFinite(const Context& context, const WeightView& w);

enum class ActivationMode {
  kAuto,  // 8-bit codes for quantised weights, f32 for float weights
  kF32,   // f32 always: slow, and exact up to rounding of the sums
};

// The input of one or several products. Its 8-bit form is made at most once for each
// step, so q, k, v (and gate, up) share it.
class LinearInput {
 public:
  // Borrows `x`, which must outlive this object and stay as it is.
  LinearInput(const Context& context, Mat<const float> x, ActivationMode mode)
      : context_(context), x_(x), mode_(mode) {}

  Mat<const float> x() const { return x_; }
  ActivationMode mode() const { return mode_; }
  const Context& context() const { return context_; }
  // One row of codes a token, all with step `step`; 0: each with max |x| / 127.
  struct Rows8 {
    float step;
    size_t ld;
    std::vector<int8_t> codes;
    std::vector<int32_t> neg_sum;
    std::vector<float> scale;
  };
  // Valid as long as this object.
  const Rows8& I8(float step);

  // M rows of K / 32 blocks, q8_ld() blocks apart. K must be a multiple of 32.
  const Q8Block* Q8();
  // Odd: rows a power of two apart would share their places in the first cache.
  size_t q8_ld() const { return x_.cols / Q8Block::kLen | 1; }

 private:
  const Context& context_;
  Mat<const float> x_;
  ActivationMode mode_;
  std::vector<Q8Block> q8_;
  std::list<Rows8> i8_;  // one for each step
};

// y[M, N] = x[M, K] W[N, K]^T. `y` must not overlap x. Throws ShapeError.
void Linear(LinearInput& x, const WeightView& w, Mat<float> y);

// From codes to codes: y = round(x_step w.row_scale (w . x) / y_step) within -128 ..
// 127, the product in exact integers. Only for formats with one scale a row; x_step and
// y_step are above 0. Throws ShapeError.
void LinearCodes(const Context& context, Mat<const int8_t> x, float x_step,
                 const WeightView& w, float y_step, Mat<int8_t> y);

// y.Row(i) = row ids[i] of w, decoded. Ids are trusted to be below w.N.
void EmbeddingRows(const Context& context, const WeightView& w,
                   std::span<const int32_t> ids, Mat<float> y);

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_LINEAR_H_
