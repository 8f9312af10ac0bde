// csrc/kernels/attention.h
// Attention of one query head to cached keys and values.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_ATTENTION_H_
#define HALFBYTE_KERNELS_ATTENTION_H_

#include <stddef.h>

namespace halfbyte {

// Consecutive positions of a cache that lie together: `len` rows of head_dim elements.
struct KvSpan {
  const void* k;
  const void* v;
  size_t len;
};

struct AttendArgs {
  const float* q;  // head_dim
  size_t head_dim;
  float scale;
  const KvSpan* spans;  // num_spans, oldest position first
  size_t num_spans;
  bool f16;       // rows are IEEE binary16, else f32
  float* scores;  // scratch, one per position of all spans
  float* out;     // head_dim; overlaps nothing else
};

// out = sum of p[j] v[j], p = softmax(scale * q . k[j]) over all positions j; zeros if
// there are none. The bits depend on the sequence of positions alone, not on where the
// spans are cut, so a ring buffer may wrap and pages may end anywhere. Needs
// 2 head_dim operations per position: bound by reading the cache.
void Attend(const AttendArgs& args) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_ATTENTION_H_
