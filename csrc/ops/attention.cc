// csrc/ops/attention.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"

#include <string.h>

#include <vector>

#include "base/error.h"
#include "kernels/attention.h"
#include "kernels/hadamard.h"
#include "runtime/pages.h"

namespace halfbyte {
namespace {

// The keys that the query at `token` sees, but for the mask.
KvRange Visible(const AttentionArgs& a, size_t token) {
  const size_t all = a.k.rows.tokens;
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
                     .len = end - begin,
                     .k_steps = a.k.Steps(tile.batch, tile.kv_head, begin),
                     .v_steps = a.v.Steps(tile.batch, tile.kv_head, begin)});
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
  AttendTokens({.q = a.q,
                .scale = a.scale,
                .type = a.k.type,
                .rotated = a.rotated,
                .k_ld = a.k.rows.token_ld,
                .v_ld = a.v.rows.token_ld,
                .out = a.out},
               tile, token, lists);
}

void CheckShapes(const AttentionArgs& a) {
  const HeadRows<const float>& q = a.q;
  const HeadRows<const uint8_t>& k = a.k.rows;
  Require(k.batch == q.batch && k.row_len == q.row_len,
          "attention: k has another batch or head_dim than q");
  Require(a.v.rows.HasShape(k.batch, k.heads, k.tokens, k.row_len),
          "attention: v is not shaped like k");
  Require(a.v.type == a.k.type, "attention: v is not kept as k is");
  for (const KvHeads* x : {&a.k, &a.v}) {
    Require(
        x->type != KvType::kI8 || (x->steps.HasShape(k.batch, k.heads, k.tokens, 1) &&
                                   (k.tokens <= 1 || x->steps.token_ld == 1)),
        "attention: steps are not [batch, kv_heads, kv_tokens], side by side");
  }
  Require(a.out.HasShape(q.batch, q.heads, q.tokens, q.row_len),
          "attention: out is not shaped like q");
  Require(q.heads == 0 || (k.heads != 0 && q.heads % k.heads == 0),
          "attention: heads are no multiple of kv_heads");
  Require(
      a.mask.data == nullptr || a.mask.HasShape(q.batch, q.heads, q.tokens, k.tokens),
      "attention: mask is not [batch, heads, tokens, kv_tokens]");
  Require(a.window == 0 || a.causal, "attention: a window takes causal");
}

// Calls f(row of out, row of q) for the heads of a tile at `count` tokens.
template <class F>
void ForTileRows(const AttendQueries& a, const HeadTile& tile, size_t token,
                 size_t count, const F& f) {
  for (size_t t = token; t < token + count; ++t) {
    for (size_t h = tile.head; h < tile.head + tile.num_heads; ++h) {
      f(a.out.Row(tile.batch, h, t), a.q.Row(tile.batch, h, t));
    }
  }
}

}  // namespace

void AttendTokens(const AttendQueries& a, const HeadTile& tile, size_t token,
                  const AttendLists& lists) {
  const size_t count = lists.sees.size(), dim = a.q.row_len;
  size_t positions = 0;
  for (const KvSpan& span : lists.spans) positions += span.len;
  const size_t rows = NumDecoded(dim);
  const size_t scores = NumScores(count, tile.num_heads, positions);
  auto* scratch =
      reinterpret_cast<float*>(ThreadScratch((rows + scores) * sizeof(float)));
  HeadRows<const float> q = a.q;
  if (a.rotated) {  // queries as keys are; Attend may read them from `out`
    ForTileRows(a, tile, token, count, [dim](float* out, const float* query) {
      memcpy(out, query, dim * sizeof(float));
      Hadamard(out, dim);
    });
    q = a.out;
  }
  Attend({.q = q.Row(tile.batch, tile.head, token),
          .num_tokens = count,
          .q_token_ld = q.token_ld,
          .num_queries = tile.num_heads,
          .q_ld = q.head_ld,
          .head_dim = dim,
          .scale = a.scale,
          .spans = lists.spans.data(),
          .num_spans = lists.spans.size(),
          .sees = lists.sees.data(),
          .k_ld = a.k_ld,
          .v_ld = a.v_ld,
          .type = a.type,
          .rows = scratch,
          .scores = scratch + rows,
          .out = a.out.Row(tile.batch, tile.head, token),
          .out_token_ld = a.out.token_ld,
          .out_ld = a.out.head_ld});
  if (!a.rotated) return;
  ForTileRows(a, tile, token, count,
              [dim](float* out, const float* /*query*/) { Hadamard(out, dim); });
}

void Attention(const Context& context, const AttentionArgs& a) {
  CheckShapes(a);
  if (a.q.heads == 0) return;
  const size_t group = a.q.heads / a.k.rows.heads;
  const bool one_mask = a.mask.data == nullptr || a.mask.head_ld == 0;
  const HeadGrid grid = {.batch = a.q.batch,
                         .kv_heads = a.k.rows.heads,
                         .tokens = a.q.tokens,
                         .group = group,
                         .together = one_mask ? group : 1};
  ForEachTile(context, grid, [&](const HeadTile& tile) {
    AttendLists lists;
    for (size_t token = tile.begin; token < tile.end; token += lists.sees.size()) {
      const size_t left = a.mask.data == nullptr ? tile.end - token : 1;
      const size_t count = TokensTogether(left, tile.num_heads, a.k.rows.tokens);
      AttendTile(a, tile, token, count, lists);
    }
  });
}

}  // namespace halfbyte
