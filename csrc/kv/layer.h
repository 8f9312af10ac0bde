// csrc/kv/layer.h
// The keys and values of one layer: pages that are allocated as they are first written,
// and, on sliding layers, written over once the window has passed them.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KV_LAYER_H_
#define HALFBYTE_KV_LAYER_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <span>
#include <vector>

#include "base/view.h"
#include "kernels/attention.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

struct KvLayerShape {
  size_t num_heads, head_dim;
  size_t capacity;    // positions a sequence may have
  size_t window;      // positions a query sees, itself included; 0: all
  size_t max_append;  // positions one Append may bring
  KvType type;
  // kI8: the steps of all keys and of all values, as a checkpoint was trained for. 0:
  // each position and head has its own, the largest magnitude over 127, behind a
  // Hadamard transform of the head.
  float k_step = 0.0f, v_step = 0.0f;

  bool IsRotated() const {
    return type == KvType::kI8 && k_step == 0.0f && v_step == 0.0f;
  }
};

class KvLayer {
 public:
  static constexpr size_t kPageLen = 256;  // positions

  explicit KvLayer(const KvLayerShape& shape);
  KvLayer(const KvLayer& other);  // copies the pages
  KvLayer(KvLayer&&) = default;

  const KvLayerShape& shape() const { return shape_; }

  // Writes positions [position, position + k.rows). Rows are num_heads x head_dim.
  // Positions must not leave a gap behind what was written before. If the context's
  // poll throws, they count as written, and have to be appended again before they are
  // read.
  void Append(const Context& context, size_t position, Mat<const float> k,
              Mat<const float> v);

  // Positions [0, written()) have been written since Reset.
  size_t written() const { return written_; }

  // The first position that a query at `position` sees.
  size_t FirstVisible(size_t position) const;

  // True if a sequence cut to `length` could go on: all that its next query sees is
  // still here.
  bool CanResumeAt(size_t length) const;

  // Forgets all positions; keeps the pages.
  void Reset() { written_ = 0; }

  uint64_t allocated_bytes() const;
  // Bytes that `positions` positions take at most.
  static uint64_t BytesFor(const KvLayerShape& shape, size_t positions);

  // Where keys and values of `head` for positions [begin, end) lie, in order, as they
  // are kept: rotated, if shape().IsRotated().
  void Spans(size_t head, size_t begin, size_t end, std::vector<KvSpan>& out) const;

  // Keys and values of `head` for positions from `begin` on, as f32, k.rows of them:
  // what was appended, rounded to the layer's type. They must be visible from the last.
  void Read(size_t head, size_t begin, Mat<float> k, Mat<float> v) const;

 private:
  // Keys or values of one page: rows of all heads, and behind them the steps of kI8.
  struct Half {
    uint8_t* rows;
    float* steps;
  };
  // The keys of `head` at `position`, and the values.
  Half KeyAt(size_t head, size_t position) const;
  Half ValueAt(size_t head, size_t position) const;
  Half At(uint8_t* half, size_t head, size_t position) const;
  void Store(size_t position, const float* k, const float* v);
  void StoreRow(const float* x, float step, Half to) const;
  void LoadRow(Half from, float* x) const;
  // The oldest position whose page was not written over.
  size_t FirstKept() const;

  KvLayerShape shape_;
  std::vector<std::unique_ptr<uint8_t[]>> pages_;  // a ring where there is a window
  size_t written_ = 0;
};

// What one sequence's queries attend to, and the position of the first of them.
struct KvQueries {
  const KvLayer* layer;
  size_t position;
};

// out[m, h] = attention of query head h of row m over the positions it sees. Rows are
// as many of each sequence, at neighbouring positions, one sequence after another;
// layers are of one shape. q, out: [M, heads x head_dim]. Query head h uses key head
// h / (heads / num_kv_heads).
void Attention(const Context& context, std::span<const KvQueries> sequences,
               Mat<const float> q, size_t heads, float scale, Mat<float> out);

}  // namespace halfbyte
#endif  // HALFBYTE_KV_LAYER_H_
