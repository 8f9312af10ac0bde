// csrc/ops/linear.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/linear.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>
#include <utility>

#include "base/error.h"
#include "kernels/convert.h"
#include "kernels/format_kernels.h"
#include "kernels/lattice.h"
#include "kernels/prefetch.h"
#include "kernels/vector_ops.h"
#include "ops/onednn.h"
#include "ops/rows.h"
#include "ops/slices.h"
#include "runtime/pages.h"

namespace halfbyte {
namespace {

Slices SlicesOf(const WeightView& w, size_t num_tokens, size_t num_threads) {
  return {w.N, w.K, w.row_bytes(), num_tokens, num_threads};
}

// Memory that BlockRows needs for `count` rows: one of floats and of bf16, then the
// blocks.
size_t ScratchBytes(const WeightView& w, size_t count) {
  constexpr size_t kRow = sizeof(float) + sizeof(uint16_t);
  return w.stored == Stored::kBlocks ? 0 : w.K * kRow + count * w.row_bytes();
}

// `offset` is where the row begins, from the first one.
[[noreturn]] void FailNotFinite(ptrdiff_t offset) {
  ErrorInfo info;
  info.kind = "model";
  info.code = "MODEL_NOT_FINITE";
  info.field = "row";
  info.offset = static_cast<uint64_t>(offset);
  info.found = "a value that is not finite";
  info.expected = "numbers that can be rounded";
  throw Error(ErrorClass::kNumerical, std::move(info));
}

void DecodeFinite(const WeightView& w, const uint8_t* row, float* floats) {
  KernelsFor(w.floats).decode_row(row, w.K, floats);
  if (std::isnan(MaxMagnitude(floats, w.K))) FailNotFinite(row - w.data);
}

bool AreBF16(const float* x, size_t n) {
  uint32_t below = 0;  // bits that bf16 lacks
  for (size_t i = 0; i < n; ++i) below |= std::bit_cast<uint32_t>(x[i]) & 0xFFFF;
  return below == 0;
}

// A row of floats as blocks of w's format. bf16 that was trained for Q4_0 keeps the
// levels it was trained to, in whichever type it is stored; other weights are rounded
// as ever. `floats`: room for a row, and behind it for one of bf16.
void EncodeRow(const WeightView& w, const uint8_t* row, float* floats, uint8_t* to) {
  DecodeFinite(w, row, floats);
  if (w.format == Format::kQ4_0 && AreBF16(floats, w.K)) {
    ConvertF32ToBF16(floats, w.K, floats + w.K);
    return RecoverBlocks(w.format, floats + w.K, w.K, to, nullptr);
  }
  KernelsFor(w.format).encode_row_ref(floats, w.K, to);
}

// Rows [begin, begin + count) of w as blocks of its format: where they are, or made in
// `scratch`, which is aligned.
const uint8_t* BlockRows(const WeightView& w, size_t begin, size_t count,
                         uint8_t* scratch) {
  const uint8_t* row = w.data + begin * w.stored_row_bytes();
  if (w.stored == Stored::kBlocks) return row;
  auto* floats = reinterpret_cast<float*>(scratch);
  uint8_t* blocks = scratch + w.K * (sizeof(float) + sizeof(uint16_t));
  for (size_t i = 0; i < count; ++i, row += w.stored_row_bytes()) {
    uint8_t* to = blocks + i * w.row_bytes();
    if (w.stored == Stored::kFloats) {
      EncodeRow(w, row, floats, to);
    } else {
      const uint8_t* scales = w.group_scale;
      if (scales != nullptr) scales += (begin + i) * (w.K / w.group_len) * 2;
      KernelsFor(w.format).join_row(row, scales, w.group_len, w.K, to);
    }
  }
  return blocks;
}

// Panels of rows [begin, end) of w. `scratch`: for BlockRows, of one panel.
void PackRows(const WeightView& w, size_t begin, size_t end, uint8_t* panels,
              uint8_t* scratch) {
  const FormatKernels& kernels = KernelsFor(w.format);
  const size_t panel_bytes = w.panel_bytes();
  for (size_t n = begin; n < end; n += kPanelRows, panels += panel_bytes) {
    const size_t count = std::min(kPanelRows, end - n);
    kernels.pack_panel(BlockRows(w, n, count, scratch), w.row_bytes(), count, w.K,
                       panels);
  }
}

// Moves a slice to the rows from n on: what is left counts from 0.
void BeginAt(size_t n, LinearArgs& a) { a.y += n; }
void BeginAt(size_t n, ChannelArgs& a) {
  a.w_scale += n;
  if (a.y != nullptr) a.y += n;
  if (a.y_codes != nullptr) a.y_codes += n;
}

// Rows [begin, end) of a slice, where they count from 0.
template <class Args>
Args RowsOf(const Args& slice, size_t begin, size_t end) {
  Args rows = slice;
  BeginAt(begin, rows);
  rows.row_begin = 0;
  rows.row_end = end - begin;
  return rows;
}

// Moves a slice to the tokens from m on.
void SkipTokens(size_t m, LinearArgs& a) {
  a.x = static_cast<const Q8Block*>(a.x) + m * a.x_ld;
  a.y += m * a.y_ld;
  a.M -= m;
}
void SkipTokens(size_t m, ChannelArgs& a) {
  a.x += m * a.x_ld;
  a.x_neg_sum += m;
  a.x_scale += m;
  if (a.y != nullptr) a.y += m * a.y_ld;
  if (a.y_codes != nullptr) a.y_codes += m * a.y_ld;
  a.M -= m;
}

// Which functions multiply the weights of a format.
template <class Args>
struct Products {
  const FormatKernels& kernels;
  void (*linear)(const Args&) noexcept;
  void (*spread)(const Args&) noexcept;  // null: panels hold bytes already
};
Products<LinearArgs> ProductsFor(const FormatKernels& k, const LinearArgs&) {
  return {k, k.linear, k.linear_spread};
}
Products<ChannelArgs> ProductsFor(const FormatKernels& k, const ChannelArgs&) {
  return {k, k.linear_channels, k.linear_channels_spread};
}

// One slice of weights that nobody has packed: a tile at a time, in this thread's
// memory. What a weight costs in packing is soon shared by a prompt's tokens.
template <class Args>
void LinearUnpacked(const WeightView& w, const Args& slice,
                    void (*linear)(const Args&) noexcept) {
  const size_t tile_bytes = Slices::kTileRows / kPanelRows * w.panel_bytes();
  uint8_t* panels = ThreadScratch(tile_bytes + ScratchBytes(w, kPanelRows));
  for (size_t n = slice.row_begin; n < slice.row_end; n += Slices::kTileRows) {
    const size_t end = std::min(n + Slices::kTileRows, slice.row_end);
    PackRows(w, n, end, panels, panels + tile_bytes);
    Args tile = RowsOf(slice, n, end);
    tile.w = panels;
    linear(tile);
  }
}

// One slice of packed weights and a long prompt: the codes of a tile's rows are spread
// to bytes once for all tokens, in this thread's memory. Tokens and rows that fill no
// tile are multiplied as ever.
template <class Args>
void LinearSpread(const WeightView& w, const Args& slice,
                  const Products<Args>& products) {
  const FormatKernels& kernels = products.kernels;
  const size_t bytes = kernels.spread_bytes(w.K);
  const size_t tokens = slice.M / kernels.spread_tokens * kernels.spread_tokens;
  uint8_t* panels = ThreadScratch(Slices::kTileRows / kPanelRows * bytes);
  size_t n = slice.row_begin;
  for (; n + Slices::kTileRows <= slice.row_end; n += Slices::kTileRows) {
    const uint8_t* packed = slice.w + n / kPanelRows * slice.w_row_bytes;
    for (size_t i = 0; i < Slices::kTileRows / kPanelRows; ++i) {
      kernels.spread_panel(packed + i * slice.w_row_bytes, w.K, panels + i * bytes);
    }
    Args tile = RowsOf(slice, n, n + Slices::kTileRows), rest = tile;
    tile.w = panels;
    tile.w_row_bytes = bytes;
    tile.M = tokens;
    products.spread(tile);
    rest.w = packed;
    SkipTokens(tokens, rest);
    products.linear(rest);
  }
  Args rest = slice;
  rest.row_begin = n;
  products.linear(rest);
}

// Spreading reads memory while nothing multiplies: so many tokens make up for it. Zen 5
// has slots to spare beside dot products, and unpacks in them where nothing else wants
// them: scales of groups do.
template <class Args>
bool SpreadPays(const Products<Args>& products, size_t num_tokens) {
  constexpr size_t kSpreadTokens = 96;
  const bool unpacks_aside =
      std::is_same_v<Args, ChannelArgs> && ThisCore() == Core::kZen5;
  return products.spread != nullptr && num_tokens >= kSpreadTokens && !unpacks_aside;
}

// All rows of quantised weights, shared out.
template <class Args>
void LinearSlices(const Context& context, const WeightView& w, const Args& args) {
  const Products<Args> products = ProductsFor(KernelsFor(w.format), args);
  const bool spread = SpreadPays(products, args.M);
  const Slices slices = SlicesOf(w, args.M, context.num_threads);
  context.ParallelFor(slices.size(), [&](size_t i) {
    Args slice = args;
    slice.w = w.panels;
    slice.w_row_bytes = w.panel_bytes();
    slice.row_begin = slices.begin(i);
    slice.row_end = slices.end(i);
    if (w.panels == nullptr) return LinearUnpacked(w, slice, products.linear);
    if (spread) return LinearSpread(w, slice, products);
    products.linear(slice);
  });
}

void DecodeRow(const WeightView& w, size_t row, float* out) {
  uint8_t* scratch = ThreadScratch(ScratchBytes(w, 1));
  KernelsFor(w.format).decode_row(BlockRows(w, row, 1, scratch), w.K, out);
  if (w.row_scale != nullptr) Scale(w.row_scale[row], w.K, out);
}

// One slice with f32 activations whatever the format: rows are decoded, a few at a
// time.
void LinearDecoded(const WeightView& w, Mat<const float> x, Mat<float> y, size_t begin,
                   size_t end) {
  constexpr size_t kRows = 16;
  const FormatKernels& f32 = KernelsFor(Format::kF32);
  std::vector<float> rows(kRows * w.K);
  for (size_t n = begin; n < end; n += kRows) {
    const size_t count = std::min(kRows, end - n);
    for (size_t i = 0; i < count; ++i) {
      DecodeRow(w, n + i, &rows[i * w.K]);
    }
    f32.linear({.w = reinterpret_cast<const uint8_t*>(rows.data()),
                .w_row_bytes = w.K * sizeof(float),
                .x = x.data,
                .x_ld = x.ld,
                .y = y.data + n,
                .y_ld = y.ld,
                .row_begin = 0,
                .row_end = count,
                .M = x.rows,
                .K = w.K});
  }
}

}  // namespace

size_t WeightView::panel_bytes() const {
  const FormatKernels& kernels = KernelsFor(format);
  return kernels.panel_bytes == nullptr ? 0 : kernels.panel_bytes(K);
}

size_t WeightView::packed_bytes() const {
  return (N + kPanelRows - 1) / kPanelRows * panel_bytes();
}

bool HasRowScale(Format format) {
  return KernelsFor(format).linear_channels != nullptr;
}

size_t WeightView::stored_row_bytes() const {
  if (stored == Stored::kFloats) return RowBytes(floats, K);
  if (stored == Stored::kBlocks) return row_bytes();
  return group_scale != nullptr ? K / 2 : row_bytes();  // 4-bit codes, or W8
}

WeightView WeightView::Rows(size_t begin, size_t count) const {
  WeightView rows = *this;
  rows.N = count;
  rows.data += begin * stored_row_bytes();
  if (group_scale != nullptr) rows.group_scale += begin * (K / group_len) * 2;
  if (row_scale != nullptr) rows.row_scale += begin;
  // Rows that begin inside a panel are still there as they were stored.
  if (panels != nullptr && begin % kPanelRows == 0) {
    rows.panels += begin / kPanelRows * panel_bytes();
  } else {
    rows.panels = nullptr;
  }
  return rows;
}

void PackPanels(const Context& context, const WeightView& w, uint8_t* panels) {
  constexpr size_t kTokens = 16;  // rounding floats computes as long as so many do
  const Slices slices = SlicesOf(w, kTokens, context.num_threads);
  context.ParallelFor(slices.size(), [&](size_t i) {
    const size_t begin = slices.begin(i);
    PackRows(w, begin, slices.end(i), panels + begin / kPanelRows * w.panel_bytes(),
             ThreadScratch(ScratchBytes(w, kPanelRows)));
  });
}

void CheckFinite(const Context& context, const WeightView& w) {
  ForEachRow(context, w.N, w.K, [&](size_t n) {
    auto* floats = reinterpret_cast<float*>(ThreadScratch(w.K * sizeof(float)));
    DecodeFinite(w, w.data + n * w.stored_row_bytes(), floats);
  });
}

const Q8Block* LinearInput::Q8() {
  if (q8_.empty()) {
    q8_.resize(x_.rows * q8_ld());
    ForEachRow(context_, x_.rows, x_.cols,
               [&](size_t m) { QuantizeQ8(x_.Row(m), x_.cols, &q8_[m * q8_ld()]); });
  }
  return q8_.data();
}

const LinearInput::Rows8& LinearInput::I8(float step) {
  for (const Rows8& made : i8_) {
    if (made.step == step) return made;
  }
  const size_t M = x_.rows, K = x_.cols;
  Rows8& rows = i8_.emplace_back();
  rows.step = step;
  // Rows a power of two apart would share their places in the first cache.
  rows.ld = K + 64;
  rows.codes.resize(M * rows.ld);
  rows.neg_sum.resize(M);
  rows.scale.resize(M);
  ForEachRow(context_, M, K, [&](size_t m) {
    const float max = MaxMagnitude(x_.Row(m), K);  // NaN of what is not finite
    const float scale = step == 0.0f || std::isnan(max) ? max / 127.0f : step;
    rows.scale[m] = scale;
    rows.neg_sum[m] = QuantizeI8(x_.Row(m), K, scale, &rows.codes[m * rows.ld]);
  });
  return rows;
}

namespace {

void CheckChannels(const WeightView& w) {
  Require(w.K <= kMaxRowScaledK,
          "linear: K above 65536 for a format with one scale a row");
  Require(w.row_scale != nullptr || w.N == 0, "linear: w has no row scales");
}

void LinearRowScaled(LinearInput& x, const WeightView& w, Mat<float> y) {
  CheckChannels(w);
  const LinearInput::Rows8& codes = x.I8(w.x_step);
  const ChannelArgs args = {.w_scale = w.row_scale,
                            .x = codes.codes.data(),
                            .x_ld = codes.ld,
                            .x_neg_sum = codes.neg_sum.data(),
                            .x_scale = codes.scale.data(),
                            .y_step = w.y_step,
                            .y = y.data,
                            .y_ld = y.ld,
                            .M = y.rows,
                            .K = w.K};
  LinearSlices(x.context(), w, args);
}

// f32 activations: float weights, or others decoded as they are met.
void LinearFloats(LinearInput& x, const WeightView& w, Mat<float> y) {
  const Mat<const float> in = x.x();
  const FormatKernels& kernels = KernelsFor(w.format);
  const Slices slices = SlicesOf(w, in.rows, x.context().num_threads);
  x.context().ParallelFor(slices.size(), [&](size_t i) {
    const size_t begin = slices.begin(i), end = slices.end(i);
    if (kernels.activations != Activations::kF32) {
      return LinearDecoded(w, in, y, begin, end);
    }
    kernels.linear({.w = w.data,
                    .w_row_bytes = w.row_bytes(),
                    .x = in.data,
                    .x_ld = in.ld,
                    .y = y.data,
                    .y_ld = y.ld,
                    .row_begin = begin,
                    .row_end = end,
                    .M = in.rows,
                    .K = w.K});
  });
}

}  // namespace

void Linear(LinearInput& x, const WeightView& w, Mat<float> y) {
  const Mat<const float> in = x.x();
  Require(in.cols == w.K, "linear: x and w differ in K");
  Require(y.rows == in.rows && y.cols == w.N, "linear: y is not M x N");
  if (in.rows == 0 || w.N == 0) return;
  if (OnednnLinear(x, w, y)) return;
  const FormatKernels& kernels = KernelsFor(w.format);
  if (kernels.activations == Activations::kF32 || x.mode() == ActivationMode::kF32) {
    return LinearFloats(x, w, y);
  }
  if (kernels.activations == Activations::kI8) return LinearRowScaled(x, w, y);
  const LinearArgs args = {.x = x.Q8(),
                           .x_ld = x.q8_ld(),
                           .y = y.data,
                           .y_ld = y.ld,
                           .M = in.rows,
                           .K = w.K};
  LinearSlices(x.context(), w, args);
}

void LinearCodes(const Context& context, Mat<const int8_t> x, float x_step,
                 const WeightView& w, float y_step, Mat<int8_t> y) {
  Require(x.cols == w.K, "linear_codes: x and w differ in K");
  Require(y.rows == x.rows && y.cols == w.N, "linear_codes: y is not M x N");
  const FormatKernels& kernels = KernelsFor(w.format);
  Require(kernels.linear_channels != nullptr, "linear_codes: w has no scale a row");
  Require(x_step > 0.0f && y_step > 0.0f, "linear_codes: a step is not above 0");
  CheckChannels(w);
  if (x.rows == 0 || w.N == 0) return;
  std::vector<int32_t> neg_sum(x.rows);
  ForEachRow(context, x.rows, x.cols,
             [&](size_t m) { neg_sum[m] = NegativeSum(x.Row(m), x.cols); });
  const std::vector<float> scale(x.rows, x_step);
  const ChannelArgs args = {.w_scale = w.row_scale,
                            .x = x.data,
                            .x_ld = x.ld,
                            .x_neg_sum = neg_sum.data(),
                            .x_scale = scale.data(),
                            .y_step = y_step,
                            .y_codes = y.data,
                            .y_ld = y.ld,
                            .M = x.rows,
                            .K = w.K};
  LinearSlices(context, w, args);
}

void EmbeddingRows(const Context& context, const WeightView& w,
                   std::span<const int32_t> ids, Mat<float> y) {
  Require(y.rows == ids.size() && y.cols == w.K, "embedding_rows: y is not M x K");
  ForEachRow(context, ids.size(), w.K,
             [&](size_t i) { DecodeRow(w, static_cast<size_t>(ids[i]), y.Row(i)); });
}

}  // namespace halfbyte
