// csrc/kernels/cover-inl.h
// Which tiles cover a slice of rows and its tokens, whatever a tile computes. One token
// reads every weight once and is bound by memory (gemv); more share each unpacked
// weight (gemm). SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_COVER_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_COVER_INL_TOGGLE
#undef HALFBYTE_KERNELS_COVER_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_COVER_INL_TOGGLE
#endif

#include <stddef.h>

#include "hwy/highway.h"
#include "kernels/format_kernels.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A register of rows: 16 where it has 512 bits, else a part of a panel.
using TileF32 = hn::CappedTag<float, kPanelRows>;
inline constexpr size_t kTileRows = HWY_MAX_LANES_D(TileF32);

// Tokens that one pass over the weights serves without unpacking them again, and the
// registers of rows in a tile of longer prompts. Two registers share each broadcast of
// activations: 32 x 6 reaches more of the dot product's peak than 16 x 8. kMaxSums is
// what a tile of few tokens may keep in registers, beside codes, masks and scales.
#if HALFBYTE_REGISTERS == 32
inline constexpr size_t kMaxTokens = 8, kGemmV = 2, kMaxSums = 8;
#else
inline constexpr size_t kMaxTokens = 4, kGemmV = 1, kMaxSums = 2;
#endif

// From so many tokens a pass computes for longer than the core looks ahead in the
// stream of weights, and prefetching pays; below, it costs.
inline constexpr size_t kPrefetchTokens = 3;

// Registers of rows for T tokens: neighbours in one panel.
template <size_t T>
inline constexpr size_t kRegisters =
    HWY_MAX(HWY_MIN(kPanelRows / kTileRows, kMaxSums / T), size_t{1});

// `Tiles` has
//   Args               the slice: w, row_begin, row_end, M, K
//   kT                 tokens in a tile of longer prompts
//   ActivationBytes(K) of one token
//   Run<V, T>(args, row, m)  rows [row[v], row[v] + kTileRows) for each v, against
//   tokens
//                      [m, m + T); rows from row_end on are not written

// Rows [begin, end) against tokens [m, m + T).
template <class Tiles, size_t T>
void CoverTokens(const typename Tiles::Args& a, size_t begin, size_t end, size_t m) {
  constexpr size_t V = kRegisters<T>;
  size_t row = begin;
  if constexpr (V > 1) {
    for (; row + V * kTileRows <= end; row += V * kTileRows) {
      size_t rows[V];
      for (size_t v = 0; v < V; ++v) rows[v] = row + v * kTileRows;
      Tiles::template Run<V, T>(a, rows, m);
    }
  }
  for (; row < end; row += kTileRows) Tiles::template Run<1, T>(a, {row}, m);
}

// The same for as many tokens as `count` says, at most T.
template <class Tiles, size_t T>
void CoverUpTo(const typename Tiles::Args& a, size_t begin, size_t end, size_t m,
               size_t count) {
  if (count == T) return CoverTokens<Tiles, T>(a, begin, end, m);
  if constexpr (T > 1) CoverUpTo<Tiles, T - 1>(a, begin, end, m, count);
}

// One token. Where its codes fill much of the first cache, two streams of weights far
// apart keep more of memory's pages open than one, and share the activations.
template <class Tiles>
void CoverOneToken(const typename Tiles::Args& a) {
  constexpr size_t kStreamBytes = 10 * 1024;
  const size_t panels = (a.row_end - a.row_begin) / kPanelRows;
  if (kTileRows < kPanelRows || panels < 2 ||
      Tiles::ActivationBytes(a.K) < kStreamBytes) {
    return CoverTokens<Tiles, 1>(a, a.row_begin, a.row_end, 0);
  }
  const size_t far = panels / 2 * kPanelRows;
  for (size_t row = a.row_begin; row < a.row_begin + far; row += kPanelRows) {
    Tiles::template Run<2, 1>(a, {row, row + far}, 0);
  }
  CoverTokens<Tiles, 1>(a, a.row_begin + 2 * far, a.row_end, 0);
}

template <class Tiles>
void CoverRows(const typename Tiles::Args& a) {
  if (a.row_begin >= a.row_end || a.M == 0) return;
  if (a.M == 1) return CoverOneToken<Tiles>(a);
  if (a.M <= kMaxTokens) {
    return CoverUpTo<Tiles, kMaxTokens>(a, a.row_begin, a.row_end, 0, a.M);
  }
  // A few registers of rows stay in the first caches while all tokens pass over them.
  constexpr size_t kRows = kGemmV * kTileRows, kT = Tiles::kT;
  for (size_t row = a.row_begin; row < a.row_end; row += kRows) {
    size_t rows[kGemmV];
    for (size_t v = 0; v < kGemmV; ++v) rows[v] = row + v * kTileRows;
    const bool whole = rows[kGemmV - 1] < a.row_end;
    const size_t end = HWY_MIN(row + kRows, a.row_end);
    size_t m = 0;
    // What is left for the last tile is never so little that it runs at half speed.
    for (; whole && (a.M - m > kMaxTokens || a.M - m == kT); m += kT) {
      Tiles::template Run<kGemmV, kT>(a, rows, m);
    }
    while (m < a.M) {
      const size_t count = HWY_MIN(a.M - m, kMaxTokens);
      CoverUpTo<Tiles, kMaxTokens>(a, row, end, m, count);
      m += count;
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
