// csrc/ops/attention.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"

#include <string.h>

#include <vector>

#include "base/error.h"
#include "kernels/attention.h"

namespace halfbyte {
namespace {

// The keys that the query at `token` sees, but for the mask.
KvRange Visible(const AttentionArgs& a, size_t token) {
  const size_t all = a.k.tokens;
  if (!a.causal) return {0, all};
  // How many keys there are up to the query's own, which is the last for the last one.
  const size_t later = a.q.tokens - 1 - token;
  const size_t end = all > later ? all - later : 0;
  return {a.window != 0 && end > a.window ? end - a.window : 0, end};
}

// The first byte of [begin, end) that is not 0, or end.
size_t SkipZeros(const uint8_t* mask, size_t begin, size_t end) {
  for (; end - begin >= sizeof(uint64_t); begin += sizeof(uint64_t)) {
    uint64_t bytes;
    memcpy(&bytes, mask + begin, sizeof(bytes));
    if (bytes != 0) break;
  }
  while (begin < end && mask[begin] == 0) ++begin;
  return begin;
}

// The first byte of [begin, end) that is 0, or end.
size_t SkipOnes(const uint8_t* mask, size_t begin, size_t end) {
  const void* zero = memchr(mask + begin, 0, end - begin);
  return zero == nullptr
             ? end
             : static_cast<size_t>(static_cast<const uint8_t*>(zero) - mask);
}

// The runs of keys in `range` that `mask` lets through; returns their number of keys.
size_t FindSpans(const AttentionArgs& a, const HeadTile& tile, KvRange range,
                 const uint8_t* mask, std::vector<KvSpan>& spans) {
  spans.clear();
  size_t num = 0;
  for (size_t begin = range.begin; begin < range.end;) {
    if (mask != nullptr) begin = SkipZeros(mask, begin, range.end);
    const size_t end = mask != nullptr ? SkipOnes(mask, begin, range.end) : range.end;
    if (begin == end) break;
    spans.push_back({.k = a.k.Row(tile.batch, tile.kv_head, begin),
                     .v = a.v.Row(tile.batch, tile.kv_head, begin),
                     .len = end - begin});
    num += end - begin;
    begin = end;
  }
  return num;
}

// The heads of a tile, which share keys and mask, at `count` of its tokens from `token`
// on: at one, if there is a mask.
void AttendTile(const AttentionArgs& a, const HeadTile& tile, size_t token,
                size_t count, AttendLists& lists) {
  const uint8_t* mask =
      a.mask.data == nullptr ? nullptr : a.mask.Row(tile.batch, tile.head, token);
  const KvRange range = {Visible(a, token).begin, Visible(a, token + count - 1).end};
  const size_t num = FindSpans(a, tile, range, mask, lists.spans);
  lists.sees.clear();
  for (size_t i = 0; i < count; ++i) {
    const KvRange sees = Visible(a, token + i);
    lists.sees.push_back(
        mask != nullptr ? KvRange{0, num}
                        : KvRange{sees.begin - range.begin, sees.end - range.begin});
  }
  Attend({.q = a.q.Row(tile.batch, tile.head, token),
          .num_tokens = count,
          .q_token_ld = a.q.token_ld,
          .num_queries = tile.num_heads,
          .q_ld = a.q.head_ld,
          .head_dim = a.q.row_len,
          .scale = a.scale,
          .spans = lists.spans.data(),
          .num_spans = lists.spans.size(),
          .sees = lists.sees.data(),
          .k_ld = a.k.token_ld,
          .v_ld = a.v.token_ld,
          .f16 = false,
          .scores = ScoreScratch(count, tile.num_heads, num),
          .out = a.out.Row(tile.batch, tile.head, token),
          .out_token_ld = a.out.token_ld,
          .out_ld = a.out.head_ld});
}

template <class T>
bool IsShaped(const HeadRows<T>& a, size_t batch, size_t heads, size_t tokens,
              size_t row_len) {
  return a.batch == batch && a.heads == heads && a.tokens == tokens &&
         a.row_len == row_len;
}

void CheckShapes(const AttentionArgs& a) {
  const HeadRows<const float>&q = a.q, &k = a.k;
  Require(k.batch == q.batch && k.row_len == q.row_len,
          "attention: k has another batch or head_dim than q");
  Require(IsShaped(a.v, k.batch, k.heads, k.tokens, k.row_len),
          "attention: v is not shaped like k");
  Require(IsShaped(a.out, q.batch, q.heads, q.tokens, q.row_len),
          "attention: out is not shaped like q");
  Require(q.heads == 0 || (k.heads != 0 && q.heads % k.heads == 0),
          "attention: heads are no multiple of kv_heads");
  Require(
      a.mask.data == nullptr || IsShaped(a.mask, q.batch, q.heads, q.tokens, k.tokens),
      "attention: mask is not [batch, heads, tokens, kv_tokens]");
  Require(a.window == 0 || a.causal, "attention: a window takes causal");
}

}  // namespace

void Attention(const Context& context, const AttentionArgs& a) {
  CheckShapes(a);
  if (a.q.heads == 0) return;
  const size_t group = a.q.heads / a.k.heads;
  const bool one_mask = a.mask.data == nullptr || a.mask.head_ld == 0;
  const HeadGrid grid = {.batch = a.q.batch,
                         .kv_heads = a.k.heads,
                         .tokens = a.q.tokens,
                         .group = group,
                         .together = one_mask ? group : 1};
  ForEachTile(context, grid, [&](const HeadTile& tile) {
    AttendLists lists;
    for (size_t token = tile.begin; token < tile.end; token += lists.sees.size()) {
      const size_t left = a.mask.data == nullptr ? tile.end - token : 1;
      const size_t count = TokensTogether(left, tile.num_heads, a.k.tokens);
      AttendTile(a, tile, token, count, lists);
    }
  });
}

}  // namespace halfbyte
