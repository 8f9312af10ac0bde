// csrc/kv/layer.cc
// SPDX-License-Identifier: Apache-2.0
#include "kv/layer.h"

#include <string.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/convert.h"
#include "ops/attention.h"
#include "ops/rows.h"

namespace halfbyte {
namespace {

size_t ElementBytes(const KvLayerShape& s) { return s.type == KvType::kF16 ? 2 : 4; }

size_t PageBytesOf(const KvLayerShape& s) {
  return 2 * s.num_heads * KvLayer::kPageLen * s.head_dim * ElementBytes(s);
}

// Pages that hold everything a window sees from any position of an append, wherever the
// page boundaries fall.
size_t NumPages(const KvLayerShape& s) {
  constexpr size_t kPageLen = KvLayer::kPageLen;
  const size_t all = (s.capacity + kPageLen - 1) / kPageLen;
  if (s.window == 0) return all;
  const size_t live = s.window - 1 + s.max_append;
  return std::min(all, (live + kPageLen - 2) / kPageLen + 1);
}

}  // namespace

KvLayer::KvLayer(const KvLayerShape& shape) : shape_(shape), pages_(NumPages(shape)) {}

KvLayer::KvLayer(const KvLayer& other)
    : shape_(other.shape_), pages_(other.pages_.size()), written_(other.written_) {
  for (size_t page = 0; page < pages_.size(); ++page) {
    if (!other.pages_[page]) continue;
    pages_[page] = std::make_unique_for_overwrite<uint8_t[]>(PageBytesOf(shape_));
    memcpy(pages_[page].get(), other.pages_[page].get(), PageBytesOf(shape_));
  }
}

uint8_t* KvLayer::At(size_t head, size_t position) const {
  uint8_t* page = pages_[position / kPageLen % pages_.size()].get();
  const size_t row = head * kPageLen + position % kPageLen;
  return page + row * shape_.head_dim * ElementBytes(shape_);
}

void KvLayer::Store(size_t position, const float* k, const float* v) {
  const size_t dim = shape_.head_dim, values = PageBytesOf(shape_) / 2;
  for (size_t h = 0; h < shape_.num_heads; ++h) {
    uint8_t* to = At(h, position);
    if (shape_.type == KvType::kF16) {
      ConvertF32ToF16(k + h * dim, dim, to);
      ConvertF32ToF16(v + h * dim, dim, to + values);
    } else {
      memcpy(to, k + h * dim, dim * sizeof(float));
      memcpy(to + values, v + h * dim, dim * sizeof(float));
    }
  }
}

void KvLayer::Append(const Context& context, size_t position, Mat<const float> k,
                     Mat<const float> v) {
  const size_t end = position + k.rows;
  Require(position <= written_, "kv: positions would leave a gap");
  Require(end <= shape_.capacity && (shape_.window == 0 || k.rows <= shape_.max_append),
          "kv: more positions than the layer holds");
  for (size_t page = position / kPageLen; page * kPageLen < end; ++page) {
    auto& p = pages_[page % pages_.size()];
    // Not zeroed: every position is written before it is read.
    if (!p) p = std::make_unique_for_overwrite<uint8_t[]>(PageBytesOf(shape_));
  }
  // First: an append that is cancelled has written over some of what was there.
  written_ = std::max(written_, end);
  ForEachRow(context, k.rows, k.cols,
             [&](size_t m) { Store(position + m, k.Row(m), v.Row(m)); });
}

size_t KvLayer::FirstVisible(size_t position) const {
  if (shape_.window == 0 || position < shape_.window) return 0;
  return position - shape_.window + 1;
}

bool KvLayer::CanResumeAt(size_t length) const {
  if (length > written_) return false;
  if (written_ == 0) return true;
  const size_t newest = (written_ - 1) / kPageLen;
  const size_t oldest = newest < pages_.size() ? 0 : newest - pages_.size() + 1;
  return FirstVisible(length) >= oldest * kPageLen;
}

uint64_t KvLayer::allocated_bytes() const {
  const auto num = std::count_if(pages_.begin(), pages_.end(),
                                 [](const auto& page) { return page != nullptr; });
  return static_cast<uint64_t>(num) * PageBytesOf(shape_);
}

uint64_t KvLayer::BytesFor(const KvLayerShape& shape, size_t positions) {
  const size_t pages = std::min(NumPages(shape), (positions + kPageLen - 1) / kPageLen);
  return uint64_t{pages} * PageBytesOf(shape);
}

void KvLayer::Spans(size_t head, size_t begin, size_t end,
                    std::vector<KvSpan>& out) const {
  out.clear();
  const size_t values = PageBytesOf(shape_) / 2;
  while (begin < end) {
    const size_t stop = std::min(end, (begin / kPageLen + 1) * kPageLen);
    const uint8_t* k = At(head, begin);
    out.push_back({.k = k, .v = k + values, .len = stop - begin});
    begin = stop;
  }
}

void Attention(const Context& context, const KvLayer& layer, Mat<const float> q,
               size_t heads, size_t first_position, float scale, Mat<float> out) {
  Require(first_position + q.rows <= layer.written(),
          "kv: positions that were not appended");
  const size_t dim = layer.shape().head_dim;
  const size_t group = heads / layer.shape().num_heads;
  const HeadGrid grid = {.batch = 1,
                         .kv_heads = layer.shape().num_heads,
                         .tokens = q.rows,
                         .group = group,
                         .together = group};
  ForEachTile(context, grid, [&](const HeadTile& tile) {
    AttendLists lists;
    for (size_t m = tile.begin; m < tile.end; m += lists.sees.size()) {
      const size_t first = layer.FirstVisible(first_position + m);
      const size_t positions = first_position + tile.end - first;
      const size_t count = TokensTogether(tile.end - m, tile.num_heads, positions);
      const size_t end = first_position + m + count;
      layer.Spans(tile.kv_head, first, end, lists.spans);
      lists.sees.clear();
      for (size_t at = first_position + m; at < end; ++at) {
        lists.sees.push_back({layer.FirstVisible(at) - first, at + 1 - first});
      }
      Attend({.q = q.Row(m) + tile.head * dim,
              .num_tokens = count,
              .q_token_ld = q.ld,
              .num_queries = tile.num_heads,
              .q_ld = dim,
              .head_dim = dim,
              .scale = scale,
              .spans = lists.spans.data(),
              .num_spans = lists.spans.size(),
              .sees = lists.sees.data(),
              .k_ld = dim,
              .v_ld = dim,
              .f16 = layer.shape().type == KvType::kF16,
              .scores = ScoreScratch(count, tile.num_heads, end - first),
              .out = out.Row(m) + tile.head * dim,
              .out_token_ld = out.ld,
              .out_ld = dim});
    }
  });
}

}  // namespace halfbyte
