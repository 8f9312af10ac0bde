// csrc/kv/layer.cc
// SPDX-License-Identifier: Apache-2.0
#include "kv/layer.h"

#include <string.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/convert.h"
#include "ops/attention.h"
#include "ops/kv_rows.h"
#include "ops/rows.h"

namespace halfbyte {
namespace {

// The keys of a page, or its values, without and with their steps.
size_t RowBytes(const KvLayerShape& s) {
  return s.num_heads * KvLayer::kPageLen * s.head_dim * ElementBytes(s.type);
}

size_t HalfBytes(const KvLayerShape& s) {
  const size_t steps = s.num_heads * KvLayer::kPageLen * sizeof(float);
  return RowBytes(s) + (s.type == KvType::kI8 ? steps : 0);
}

size_t PageBytesOf(const KvLayerShape& s) { return 2 * HalfBytes(s); }

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

KvLayer::Half KvLayer::At(uint8_t* half, size_t head, size_t position) const {
  const size_t row = head * kPageLen + position % kPageLen;
  Half at = {.rows = half + row * shape_.head_dim * ElementBytes(shape_.type),
             .steps = nullptr};
  if (shape_.type == KvType::kI8) {
    at.steps = reinterpret_cast<float*>(half + RowBytes(shape_)) + row;
  }
  return at;
}

KvLayer::Half KvLayer::KeyAt(size_t head, size_t position) const {
  return At(pages_[position / kPageLen % pages_.size()].get(), head, position);
}

KvLayer::Half KvLayer::ValueAt(size_t head, size_t position) const {
  uint8_t* page = pages_[position / kPageLen % pages_.size()].get();
  return At(page + HalfBytes(shape_), head, position);
}

void KvLayer::StoreRow(const float* x, float step, Half to) const {
  const size_t dim = shape_.head_dim;
  switch (shape_.type) {
    case KvType::kF32:
      memcpy(to.rows, x, dim * sizeof(float));
      break;
    case KvType::kF16:
      ConvertF32ToF16(x, dim, to.rows);
      break;
    case KvType::kI8:
      *to.steps = EncodeI8(x, dim, shape_.IsRotated(), step,
                           reinterpret_cast<int8_t*>(to.rows));
      break;
  }
}

void KvLayer::LoadRow(Half from, float* x) const {
  const size_t dim = shape_.head_dim;
  switch (shape_.type) {
    case KvType::kF32:
      memcpy(x, from.rows, dim * sizeof(float));
      break;
    case KvType::kF16:
      ConvertF16ToF32(from.rows, dim, x);
      break;
    case KvType::kI8:
      DecodeI8(reinterpret_cast<int8_t*>(from.rows), dim, shape_.IsRotated(),
               *from.steps, x);
      break;
  }
}

void KvLayer::Store(size_t position, const float* k, const float* v) {
  const size_t dim = shape_.head_dim;
  for (size_t h = 0; h < shape_.num_heads; ++h) {
    StoreRow(k + h * dim, shape_.k_step, KeyAt(h, position));
    StoreRow(v + h * dim, shape_.v_step, ValueAt(h, position));
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
  return written_ == 0 || FirstVisible(length) >= FirstKept();
}

size_t KvLayer::FirstKept() const {
  const size_t newest = written_ == 0 ? 0 : (written_ - 1) / kPageLen;
  return newest < pages_.size() ? 0 : (newest - pages_.size() + 1) * kPageLen;
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
  while (begin < end) {
    const size_t stop = std::min(end, (begin / kPageLen + 1) * kPageLen);
    const Half k = KeyAt(head, begin), v = ValueAt(head, begin);
    out.push_back({.k = k.rows,
                   .v = v.rows,
                   .len = stop - begin,
                   .k_steps = k.steps,
                   .v_steps = v.steps});
    begin = stop;
  }
}

void KvLayer::Read(size_t head, size_t begin, Mat<float> k, Mat<float> v) const {
  Require(begin >= FirstKept() && begin + k.rows <= written_,
          "kv: positions that are not kept");
  for (size_t i = 0; i < k.rows; ++i) {
    LoadRow(KeyAt(head, begin + i), k.Row(i));
    LoadRow(ValueAt(head, begin + i), v.Row(i));
  }
}

void Attention(const Context& context, std::span<const KvQueries> sequences,
               Mat<const float> q, size_t heads, float scale, Mat<float> out) {
  const size_t batch = sequences.size();
  Require(batch != 0 && q.rows % batch == 0, "attention: not as many rows of each");
  const size_t rows = q.rows / batch;  // of one sequence
  for (const KvQueries& sequence : sequences) {
    Require(sequence.position + rows <= sequence.layer->written(),
            "kv: positions that were not appended");
  }
  const KvLayerShape& shape = sequences[0].layer->shape();
  const size_t dim = shape.head_dim, group = heads / shape.num_heads;
  const AttendQueries queries = {
      .q = {q.data, batch, heads, rows, dim, rows * q.ld, dim, q.ld},
      .scale = scale,
      .type = shape.type,
      .rotated = shape.IsRotated(),
      .k_ld = dim,
      .v_ld = dim,
      .out = {out.data, batch, heads, rows, dim, rows * out.ld, dim, out.ld}};
  const HeadGrid grid = {.batch = batch,
                         .kv_heads = shape.num_heads,
                         .tokens = rows,
                         .group = group,
                         .together = group};
  ForEachTile(context, grid, [&](const HeadTile& tile) {
    const auto& [kept, first_position] = sequences[tile.batch];
    const KvLayer& layer = *kept;
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
      AttendTokens(queries, tile, m, lists);
    }
  });
}

}  // namespace halfbyte
