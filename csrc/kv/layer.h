// csrc/kv/layer.h
// The keys and values of one layer: pages that are allocated as they are first written,
// and, on sliding layers, written over once the window has passed them.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KV_LAYER_H_
#define HALFBYTE_KV_LAYER_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <vector>

#include "base/view.h"
#include "kernels/attention.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

enum class KvType { kF32, kF16 };

struct KvLayerShape {
  size_t num_heads, head_dim;
  size_t capacity;    // positions a sequence may have
  size_t window;      // positions a query sees, itself included; 0: all
  size_t max_append;  // positions one Append may bring
  KvType type;
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

  // Where keys and values of `head` for positions [begin, end) lie, in order.
  void Spans(size_t head, size_t begin, size_t end, std::vector<KvSpan>& out) const;

 private:
  // Keys of `head` at `position`; the values follow half a page later.
  uint8_t* At(size_t head, size_t position) const;
  void Store(size_t position, const float* k, const float* v);

  KvLayerShape shape_;
  std::vector<std::unique_ptr<uint8_t[]>> pages_;  // a ring where there is a window
  size_t written_ = 0;
};

// out[m, h] = attention of query head h of row m, whose position is first_position + m,
// over the positions it sees in `layer`. q, out: [M, heads x head_dim]. Query head h
// uses key head h / (heads / num_kv_heads).
void Attention(const Context& context, const KvLayer& layer, Mat<const float> q,
               size_t heads, size_t first_position, float scale, Mat<float> out);

}  // namespace halfbyte
#endif  // HALFBYTE_KV_LAYER_H_
