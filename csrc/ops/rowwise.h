// csrc/ops/rowwise.h
// The f32 operations between the products, over rows of a matrix.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_ROWWISE_H_
#define HALFBYTE_OPS_ROWWISE_H_

#include <stddef.h>
#include <stdint.h>

#include <span>
#include <vector>

#include "base/view.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

// y = x / sqrt(mean(x^2) + eps) * weight, row by row; an empty weight means ones.
// y may be x.
void RmsNorm(const Context& context, Mat<const float> x, std::span<const float> weight,
             float eps, Mat<float> y);

// The same over each of the `heads` parts of head_dim that a row consists of, in place.
void RmsNormHeads(const Context& context, Mat<float> x, size_t heads,
                  std::span<const float> weight, float eps);

// The frequencies of rotary position embedding: pair (i, i + head_dim / 2) of a head is
// turned by position * inv_freq[i].
struct RopeTable {
  std::vector<double> inv_freq;  // one per rotated pair; the others stay as they are

  // inv_freq[i] = base^(-2i / head_dim) / factor, for the first `pairs` pairs.
  static RopeTable Make(size_t head_dim, size_t pairs, double base, double factor);
};

// The angles of some positions, worked out once and used by every head and layer.
struct RopeTurns {
  size_t pairs = 0;
  std::vector<float> cos, sin;  // [positions, pairs]

  static RopeTurns Make(const Context& context, const RopeTable& table,
                        std::span<const uint64_t> positions);
};

// Rotates every head of row m of x by row first_row + m of `turns`, in place.
void Rope(const Context& context, Mat<float> x, size_t heads, const RopeTurns& turns,
          size_t first_row = 0);

// y = gelu_tanh(gate) * up; y may be either of them.
void GeluMul(const Context& context, Mat<const float> gate, Mat<const float> up,
             Mat<float> y);

// y = x; y may be x.
void CopyRows(const Context& context, Mat<const float> x, Mat<float> y);

// y += x
void AddRows(const Context& context, Mat<const float> x, Mat<float> y);

// Softmax of each row; y may be x.
void Softmax(const Context& context, Mat<const float> x, Mat<float> y);

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_ROWWISE_H_
