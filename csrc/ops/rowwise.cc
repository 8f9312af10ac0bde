// csrc/ops/rowwise.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/rowwise.h"

#include <math.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/activation.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/softmax.h"
#include "kernels/vector_ops.h"
#include "ops/rows.h"

namespace halfbyte {
namespace {

const float* DataOrNull(std::span<const float> weight) {
  return weight.empty() ? nullptr : weight.data();
}

}  // namespace

void RmsNorm(const Context& context, Mat<const float> x, std::span<const float> weight,
             float eps, Mat<float> y) {
  Require(weight.empty() || weight.size() == x.cols, "rms_norm: weight is not K long");
  Require(y.rows == x.rows && y.cols == x.cols, "rms_norm: y is not shaped like x");
  ForEachRow(context, x.rows, x.cols, [&](size_t m) {
    RmsNorm(x.Row(m), DataOrNull(weight), x.cols, eps, y.Row(m));
  });
}

void RmsNormHeads(const Context& context, Mat<float> x, size_t heads,
                  std::span<const float> weight, float eps) {
  const size_t head_dim = x.cols / heads;
  Require(weight.empty() || weight.size() == head_dim,
          "rms_norm: weight is not head_dim long");
  ForEachRow(context, x.rows, x.cols, [&](size_t m) {
    for (size_t h = 0; h < heads; ++h) {
      float* head = x.Row(m) + h * head_dim;
      RmsNorm(head, DataOrNull(weight), head_dim, eps, head);
    }
  });
}

RopeTable RopeTable::Make(size_t head_dim, size_t pairs, double base, double factor) {
  Require(pairs <= head_dim / 2, "rope: too many pairs");
  RopeTable table;
  table.inv_freq.resize(pairs);
  for (size_t i = 0; i < pairs; ++i) {
    const double exponent =
        -2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
    table.inv_freq[i] = pow(base, exponent) / factor;
  }
  return table;
}

RopeTurns RopeTurns::Make(const Context& context, const RopeTable& table,
                          std::span<const uint64_t> positions) {
  RopeTurns turns;
  const size_t pairs = turns.pairs = table.inv_freq.size();
  turns.cos.resize(positions.size() * pairs);
  turns.sin.resize(positions.size() * pairs);
  ForEachRow(context, positions.size(), pairs, [&](size_t m) {
    RopeAngles(positions[m], table.inv_freq.data(), pairs, turns.cos.data() + m * pairs,
               turns.sin.data() + m * pairs);
  });
  return turns;
}

void Rope(const Context& context, Mat<float> x, size_t heads, const RopeTurns& turns,
          size_t first_row) {
  const size_t head_dim = x.cols / heads, pairs = turns.pairs;
  Require(x.cols % heads == 0 && pairs <= head_dim / 2, "rope: too many pairs");
  Require(pairs == 0 || (first_row + x.rows) * pairs <= turns.cos.size(),
          "rope: one position a row is needed");
  ForEachRow(context, x.rows, x.cols, [&](size_t m) {
    const size_t turn = (first_row + m) * pairs;
    for (size_t h = 0; h < heads; ++h) {
      Rope(x.Row(m) + h * head_dim, head_dim, turns.cos.data() + turn,
           turns.sin.data() + turn, pairs);
    }
  });
}

void GeluMul(const Context& context, Mat<const float> gate, Mat<const float> up,
             Mat<float> y) {
  Require(gate.rows == up.rows && gate.cols == up.cols && y.rows == up.rows &&
              y.cols == up.cols,
          "gelu_mul: gate, up and out differ in shape");
  ForEachRow(context, gate.rows, gate.cols,
             [&](size_t m) { GeluMul(gate.Row(m), up.Row(m), gate.cols, y.Row(m)); });
}

void CopyRows(const Context& context, Mat<const float> x, Mat<float> y) {
  Require(x.rows == y.rows && x.cols == y.cols, "copy: x and y differ in shape");
  if (x.data == y.data) return;
  ForEachRow(context, x.rows, x.cols,
             [&](size_t m) { std::copy_n(x.Row(m), x.cols, y.Row(m)); });
}

void AddRows(const Context& context, Mat<const float> x, Mat<float> y) {
  Require(x.rows == y.rows && x.cols == y.cols, "add: x and y differ in shape");
  ForEachRow(context, x.rows, x.cols,
             [&](size_t m) { Add(x.Row(m), x.cols, y.Row(m)); });
}

void Softmax(const Context& context, Mat<const float> x, Mat<float> y) {
  Require(y.rows == x.rows && y.cols == x.cols, "softmax: y is not shaped like x");
  ForEachRow(context, x.rows, x.cols,
             [&](size_t m) { Softmax(x.Row(m), x.cols, y.Row(m)); });
}

}  // namespace halfbyte
