// csrc/kernels/attention.h
// Attention of a few queries to the same keys and values.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_ATTENTION_H_
#define HALFBYTE_KERNELS_ATTENTION_H_

#include <stddef.h>

namespace halfbyte {

// Consecutive positions that lie evenly in memory: `len` rows of head_dim elements.
struct KvSpan {
  const void* k;
  const void* v;
  size_t len;
};

struct AttendArgs {
  const float* q;  // num_queries rows of head_dim, q_ld elements apart
  size_t num_queries, q_ld;
  size_t head_dim;
  float scale;
  const KvSpan* spans;  // num_spans, oldest position first
  size_t num_spans;
  size_t k_ld, v_ld;  // elements from one position of a span to the next
  bool f16;           // keys and values are IEEE binary16, else f32
  float* scores;      // scratch: num_queries x (positions of all spans + 1)
  float* out;  // num_queries rows of head_dim, out_ld apart; overlaps nothing else
  size_t out_ld;
};

// For each query: out = sum of p[j] v[j], p = softmax(scale * q . k[j]) over all
// positions j; zeros if there are none. The bits of a query depend on it and on the
// sequence of positions alone: not on the other queries, nor on where the spans are
// cut, so a ring buffer may wrap and pages may end anywhere. Each key and value is
// fetched once and used by every query while it is near: that fetching is the bound.
void Attend(const AttendArgs& args) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_ATTENTION_H_
