// csrc/ops/attention.h
// Attention to keys and values that lie anywhere in memory.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_ATTENTION_H_
#define HALFBYTE_OPS_ATTENTION_H_

#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <vector>

#include "base/view.h"
#include "kernels/attention.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

// Keys or values, [batch, kv_heads, kv_tokens, head_dim]: f32, or 8-bit codes and a
// step for each row.
struct KvHeads {
  // NOLINTNEXTLINE(google-explicit-constructor): they are keys as they are
  KvHeads(HeadRows<const float> f32) : rows(f32.Over(Bytes(f32.data))) {}
  KvHeads(HeadRows<const int8_t> codes, HeadRows<const float> code_steps)
      : type(KvType::kI8), rows(codes.Over(Bytes(codes.data))), steps(code_steps) {}

  const uint8_t* Row(size_t b, size_t h, size_t t) const {
    const size_t at = b * rows.batch_ld + h * rows.head_ld + t * rows.token_ld;
    return rows.data + at * ElementBytes(type);
  }
  const float* Steps(size_t b, size_t h, size_t t) const {
    return type == KvType::kI8 ? steps.Row(b, h, t) : nullptr;
  }

  KvType type = KvType::kF32;
  HeadRows<const uint8_t> rows;  // sizes and distances in elements
  HeadRows<const float> steps;   // [batch, kv_heads, kv_tokens, 1]; tokens side by side

 private:
  static const uint8_t* Bytes(const void* data) {
    return static_cast<const uint8_t*>(data);
  }
};

struct AttentionArgs {
  HeadRows<const float> q;       // [batch, heads, tokens, head_dim]
  KvHeads k, v;                  // of one type
  HeadRows<const uint8_t> mask;  // [batch, heads, tokens, kv_tokens]; no data: all ones
  float scale;
  bool causal;
  size_t window;        // keys a query sees, its own included; 0: all. Takes `causal`
  bool rotated;         // keys and values are behind a Hadamard transform of the head
  HeadRows<float> out;  // [batch, heads, tokens, head_dim]; overlaps nothing else
};

// out = softmax(scale * q . k) v over the keys that a query sees; zeros where it sees
// none. Those are the keys whose mask is not 0 and, if `causal`, which do not come
// later than the query, where the last query stands at the last key. Query head h uses
// key head h / (heads / kv_heads). What a query does not see is not read. The bits of
// a query depend on it and on the keys and values it sees, in their order, alone.
void Attention(const Context& context, const AttentionArgs& args);

// What a task lists of its calls, kept from one to the next.
struct AttendLists {
  std::vector<KvSpan> spans;
  std::vector<KvRange> sees;
};

// The heads and tokens that share their keys, to be cut into tasks.
struct HeadGrid {
  size_t batch, kv_heads, tokens;
  size_t group;     // query heads of a key head
  size_t together;  // of them at most, in one task
};

// What one task does: query heads [head, head + num_heads), all of one key head, for
// tokens [begin, end).
struct HeadTile {
  size_t batch, kv_head;
  size_t head, num_heads;
  size_t begin, end;
};

// Queries, and how the keys and values of `lists` are kept.
struct AttendQueries {
  HeadRows<const float> q;
  float scale;
  KvType type;
  bool rotated;       // see AttentionArgs
  size_t k_ld, v_ld;  // elements from one position of a span to the next
  HeadRows<float> out;
};

// The heads of a tile at tokens [token, token + lists.sees.size()), which see those of
// `lists`.
void AttendTokens(const AttendQueries& queries, const HeadTile& tile, size_t token,
                  const AttendLists& lists);

// Calls f(tile) for tiles that cover the grid. Many heads a tile read the keys few
// times; there are as few as it takes to leave work for every thread.
template <class F>
void ForEachTile(const Context& context, const HeadGrid& g, const F& f) {
  constexpr size_t kTokens = 8;  // neighbours see nearly the same keys
  const size_t blocks = (g.tokens + kTokens - 1) / kTokens;
  const size_t tasks = g.batch * g.kv_heads * blocks;
  const auto parts_of = [&](size_t heads) { return (g.group + heads - 1) / heads; };
  size_t heads = g.together;
  while (heads > 1 && tasks * parts_of(heads) < context.num_threads) {
    heads = (heads + 1) / 2;
  }
  const size_t parts = parts_of(heads);
  context.ParallelFor(tasks * parts, [&](size_t task) {
    const size_t part = task % parts, block = task / parts % blocks;
    const size_t pair = task / parts / blocks;  // of batch and kv_head
    const size_t kv_head = pair % g.kv_heads, first = part * heads;
    f(HeadTile{.batch = pair / g.kv_heads,
               .kv_head = kv_head,
               .head = kv_head * g.group + first,
               .num_heads = std::min(heads, g.group - first),
               .begin = block * kTokens,
               .end = std::min((block + 1) * kTokens, g.tokens)});
  });
}

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_ATTENTION_H_
