// csrc/kernels/rows-inl.h
// Products of float weights, in rows as they are stored, with f32 activations. Lanes
// run along K: each output has a register of partial sums, added up at the end, so its
// bits do not depend on the tile it falls in.
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_ROWS_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_ROWS_INL_TOGGLE
#undef HALFBYTE_KERNELS_ROWS_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_ROWS_INL_TOGGLE
#endif

#include <stddef.h>

#include "hwy/highway.h"
#include "kernels/format_kernels.h"
#include "kernels/prefetch.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// R rows from n on, `step` apart, against tokens m .. m + T - 1.
template <class Fmt, size_t R, size_t T>
HWY_NOINLINE void FloatTile(const LinearArgs& a, size_t n, size_t step, size_t m) {
  const hn::CappedTag<float, 16> df;
  using VF = hn::Vec<decltype(df)>;
  const size_t lanes = hn::Lanes(df);
  const auto* x = static_cast<const float*>(a.x) + m * a.x_ld;
  const uint8_t* w = a.w + n * a.w_row_bytes;
  const size_t w_step = step * a.w_row_bytes;
  // The first pass over rows asks for what the next tile of it reads: prefetchers lose
  // several rows that are read side by side.
  const bool asks = m == 0 && step == 1;
  const uint8_t* next = w + R * w_step;
  VF sum[R][T];
  HALFBYTE_UNROLL
  for (size_t i = 0; i < R * T; ++i) sum[i / T][i % T] = hn::Zero(df);
  size_t k = 0;
  for (; k + lanes <= a.K; k += lanes) {
    VF row[R];
    HALFBYTE_UNROLL
    for (size_t r = 0; r < R; ++r) {
      row[r] = LoadWeights(Fmt(), df, w + r * w_step, k);
      if (asks) {
        Prefetch<2>(next + r * w_step + k * sizeof(typename Fmt::Block));
      }
    }
    HALFBYTE_UNROLL
    for (size_t t = 0; t < T; ++t) {
      const auto xv = hn::LoadU(df, x + t * a.x_ld + k);
      HALFBYTE_UNROLL
      for (size_t r = 0; r < R; ++r) sum[r][t] = hn::MulAdd(row[r], xv, sum[r][t]);
    }
  }
  if (const size_t left = a.K - k; left != 0) {
    HALFBYTE_UNROLL
    for (size_t i = 0; i < R * T; ++i) {
      const size_t r = i / T, t = i % T;
      const auto row = LoadWeightsN(Fmt(), df, w + r * w_step, k, left);
      sum[r][t] = hn::MulAdd(row, hn::LoadN(df, x + t * a.x_ld + k, left), sum[r][t]);
    }
  }
  HALFBYTE_UNROLL
  for (size_t i = 0; i < R * T; ++i) {
    const size_t r = i / T, t = i % T;
    a.y[(m + t) * a.y_ld + n + r * step] = hn::ReduceSum(df, sum[r][t]);
  }
}

// Rows [begin, end), R at a time, against tokens [m, m + T).
template <class Fmt, size_t R, size_t T>
void FloatRows(const LinearArgs& a, size_t begin, size_t end, size_t m) {
  size_t n = begin;
  for (; n + R <= end; n += R) FloatTile<Fmt, R, T>(a, n, 1, m);
  for (; n < end; ++n) FloatTile<Fmt, 1, T>(a, n, 1, m);
}

// All T tokens against four rows at a time that are far apart: the prefetchers of Zen 3
// and 5 follow those, and asking ahead as well takes longer.
template <class Fmt, size_t T>
void FarRows(const LinearArgs& a) {
  constexpr size_t R = 4;
  const size_t step = (a.row_end - a.row_begin) / R;
  for (size_t n = a.row_begin; n < a.row_begin + step; ++n) {
    FloatTile<Fmt, R, T>(a, n, step, 0);
  }
  FloatRows<Fmt, 1, T>(a, a.row_begin + R * step, a.row_end, 0);
}

// Rows of so many bytes stay in the second cache while all tokens pass over them: the
// more rows, the fewer passes the tokens, which do not fit there, have to make.
inline size_t RowsOfBlock(size_t row_bytes) {
  constexpr size_t kBlockBytes = size_t{384} << 10, kMost = 252;
  constexpr size_t kTiles = 12;  // whole tiles of three and of four rows
  const size_t rows = kBlockBytes / HWY_MAX(row_bytes, size_t{1});
  return HWY_MAX(HWY_MIN(rows / kTiles * kTiles, kMost), kTiles);
}

template <class Fmt>
void LinearRows(const LinearArgs& a) noexcept {
  constexpr size_t kRows = HALFBYTE_REGISTERS == 32 ? 4 : 3;
  constexpr size_t kT = HALFBYTE_REGISTERS == 32 ? 6 : 4;
  if (ThisCore() == Core::kZen3 || ThisCore() == Core::kZen5) {
    if (a.M == 1) return FarRows<Fmt, 1>(a);
    if (a.M == 2) return FarRows<Fmt, 2>(a);
  }
  const size_t block_rows = RowsOfBlock(a.w_row_bytes);
  for (size_t row = a.row_begin; row < a.row_end; row += block_rows) {
    const size_t end = HWY_MIN(row + block_rows, a.row_end);
    size_t m = 0;
    // Fours, until what is left is sixes and at most one.
    for (; (a.M - m) % kT > 1 && a.M - m >= 4; m += 4) {
      FloatRows<Fmt, kRows, 4>(a, row, end, m);
    }
    for (; a.M - m >= kT; m += kT) FloatRows<Fmt, kRows, kT>(a, row, end, m);
    for (; a.M - m >= 2; m += 2) FloatRows<Fmt, kRows, 2>(a, row, end, m);
    if (m < a.M) FloatRows<Fmt, 4, 1>(a, row, end, m);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
