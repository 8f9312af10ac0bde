// csrc/kernels/cover-inl.h
// Which tiles cover a slice of rows and its tokens, whatever a tile computes. One token
// reads every weight once and is bound by memory (gemv); more share each unpacked
// weight (gemm).
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_COVER_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_COVER_INL_TOGGLE
#undef HALFBYTE_KERNELS_COVER_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_COVER_INL_TOGGLE
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

// A register of rows: 16 where it has 512 bits, else a part of a panel.
using TileF32 = hn::CappedTag<float, kPanelRows>;
inline constexpr size_t kTileRows = HWY_MAX_LANES_D(TileF32);

// Tokens that one pass over the weights serves without unpacking them again, and the
// registers of rows in a tile of longer prompts. Two registers share each broadcast of
// activations: 32 x 6 reaches more of the dot product's peak than 16 x 8. kMaxSums is
// what a tile of few tokens may keep in registers, beside codes, masks and scales;
// where there are 16, f32 sums wait on the stack while a unit is summed. kMaxChains are
// the dot products in flight for one sum: 16-bit runs have no latency to cover.
#if HALFBYTE_REGISTERS == 32
inline constexpr size_t kMaxTokens = 8, kGemmV = 2, kMaxSums = 8, kMaxChains = 4;
#else
inline constexpr size_t kMaxTokens = 4, kGemmV = 2, kMaxSums = 8, kMaxChains = 1;
#endif

// Registers of rows for T tokens: neighbours in one panel.
template <size_t T>
inline constexpr size_t kRegisters =
    HWY_MAX(HWY_MIN(kPanelRows / kTileRows, kMaxSums / T), size_t{1});

// Streams of weights that V registers of rows are in, panel by panel.
inline constexpr size_t kPanelV = kPanelRows / kTileRows;
template <size_t V>
inline constexpr size_t kStreams = hwy::DivCeil(V, kPanelV);

// What a tile asks memory for with each unit that it computes. A pass of few tokens
// reads on in its own stream of weights.
template <size_t T>
struct FetchStream {
  Core core = ThisCore();

  // Whether units of so few tokens are asked for on this core.
  template <class Fmt>
  HWY_INLINE bool Pays() const {
    if (T >= kPrefetchTokens) return true;
    // Sub-scales lie apart from the codes, which a prefetcher does not follow when a
    // unit takes many instructions: one token of Q6_K took 1.4 times as long with AVX2,
    // twice as long on Zen 5.
    if (Fmt::kSubScales && kTileRows < kPanelRows) return true;
    // CoverStreams reads in several places instead; on Zen 3 small codes want both.
    constexpr bool kFar = T == 1 && kTileRows == kPanelRows && !Fmt::kSubScales;
    if (core == Core::kZen5) return !kFar;
    if (core == Core::kZen3) return T == 2 && Fmt::kMaxCode <= 15;
    return core == Core::kIntel && HWY_TARGET != HWY_AVX3_ZEN4;
  }

  template <class Fmt, size_t kUnitBytes, size_t V>
  HWY_INLINE void Unit(const uint8_t* const (&stream)[V]) const {
    if (!Pays<Fmt>()) return;
    HALFBYTE_UNROLL
    for (size_t i = 0; i < kStreams<V>; ++i) {
      PrefetchAhead<kUnitBytes>(stream[i * kPanelV], core);
    }
  }
};

// Tiles of one block of rows, which are in a cache after the first, share what is to be
// read of the next block: memory never waits.
struct FetchNext {
  const uint8_t* next = nullptr;
  const uint8_t* end = nullptr;
  size_t lines = 0;  // a unit

  template <class /*Fmt*/, size_t /*kUnitBytes*/, size_t V>
  HWY_INLINE void Unit(const uint8_t* const (&/*stream*/)[V]) {
    for (size_t i = 0; i < lines; ++i, next += kLineBytes) Prefetch<2>(next);
  }
  // Moves on by what a tile of so many units has asked for.
  void Skip(size_t units) {
    next += units * lines * kLineBytes;
    if (next >= end) lines = 0;
  }
};

// `Tiles` has
//   Args               the slice: w, w_row_bytes, row_begin, row_end, M, K
//   kT                 tokens in a tile of longer prompts
//   FarStreams(T)      streams of weights far apart for T tokens, on Intel's cores: two
//                      at least pay, three a little better if registers hold the sums
//   kCodeBits, kSubScales  of the format
//   ActivationBytes(K) of one token
//   Run<V, T>(args, row, m, fetch)
//                      rows [row[v], row[v] + kTileRows) for each v, against tokens
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
      Tiles::template Run<V, T>(a, rows, m, FetchStream<T>());
    }
  }
  for (; row < end; row += kTileRows) {
    Tiles::template Run<1, T>(a, {row}, m, FetchStream<T>());
  }
}

// The same for as many tokens as `count` says, at most T.
template <class Tiles, size_t T>
void CoverUpTo(const typename Tiles::Args& a, size_t begin, size_t end, size_t m,
               size_t count) {
  if (count == T) return CoverTokens<Tiles, T>(a, begin, end, m);
  if constexpr (T > 1) CoverUpTo<Tiles, T - 1>(a, begin, end, m, count);
}

// T tokens, S streams of weights far apart, a panel each: more of memory's pages are
// open than with one, and the streams share the activations.
template <class Tiles, size_t S, size_t T>
void CoverFar(const typename Tiles::Args& a) {
  constexpr size_t V = S * kPanelV;
  const size_t far = (a.row_end - a.row_begin) / kPanelRows / S * kPanelRows;
  for (size_t row = a.row_begin; row < a.row_begin + far; row += kPanelRows) {
    size_t rows[V];
    for (size_t v = 0; v < V; ++v) {
      rows[v] = row + v / kPanelV * far + v % kPanelV * kTileRows;
    }
    Tiles::template Run<V, T>(a, rows, 0, FetchStream<T>());
  }
  CoverTokens<Tiles, T>(a, a.row_begin + S * far, a.row_end, 0);
}

// The same for as many tokens as there are, at most T.
template <class Tiles, size_t T>
void CoverFarUpTo(const typename Tiles::Args& a) {
  if (a.M == T) return CoverFar<Tiles, Tiles::FarStreams(T), T>(a);
  if constexpr (T > 1) CoverFarUpTo<Tiles, T - 1>(a);
}

// True if it has covered everything. On Intel's cores several streams pay for all that
// is no longer prompt; on Zen 5 for one token, unless sub-scales have it prefetch, and
// from five on, unless codes fill bytes; on Zen 4 for one token whose codes fill much
// of the first cache; on Zen 3 for one, and without sub-scales for two.
template <class Tiles>
bool CoverStreams(const typename Tiles::Args& a) {
  constexpr size_t kStreamBytes = 10 * 1024, kManyTokens = 5;
  if constexpr (kTileRows == kPanelRows) {
    const bool zen5 = ThisCore() == Core::kZen5;
    const bool many = zen5 && Tiles::kCodeBits <= 4 && a.M >= kManyTokens;
    if ((ThisCore() == Core::kIntel || many) && a.M <= kMaxTokens) {
      CoverFarUpTo<Tiles, kMaxTokens>(a);
      return true;
    }
    const bool wide = Tiles::ActivationBytes(a.K) >= kStreamBytes;
    if (a.M == 1 && (zen5 ? !Tiles::kSubScales : wide)) {
      CoverFar<Tiles, 2, 1>(a);
      return true;
    }
  } else if constexpr (kPanelV == 2) {
    if (ThisCore() != Core::kZen3) return false;
    if (a.M == 1) {
      CoverFar<Tiles, Tiles::kSubScales ? 2 : 3, 1>(a);
      return true;
    }
    if (a.M == 2 && !Tiles::kSubScales) {
      CoverFar<Tiles, 2, 2>(a);
      return true;
    }
  }
  return false;
}

// Rows of whole panels, which stay in the first caches while all tokens pass over them.
inline constexpr size_t kGemmRows = kGemmV * kTileRows;
inline constexpr size_t kBlockRows = HWY_MAX(kGemmRows, kPanelRows);

// What each tile of the block at `row` asks for of the block that follows it in the
// slice.
template <class Tiles>
FetchNext NextBlock(const typename Tiles::Args& a, size_t row) {
  constexpr size_t kTilesPerPass = kBlockRows / kGemmRows;
  const size_t units = a.M / Tiles::kT * kTilesPerPass * (a.K / kUnitLen);
  if (row + 2 * kBlockRows > a.row_end || units == 0) return {};
  const uint8_t* begin = a.w + (row + kBlockRows) / kPanelRows * a.w_row_bytes;
  const size_t bytes = kBlockRows / kPanelRows * a.w_row_bytes;
  return {begin, begin + bytes, hwy::DivCeil(bytes / kLineBytes, units)};
}

template <class Tiles>
void CoverBlock(const typename Tiles::Args& a, size_t row) {
  constexpr size_t kT = Tiles::kT;
  const size_t end = HWY_MIN(row + kBlockRows, a.row_end);
  FetchNext fetch = NextBlock<Tiles>(a, row);
  size_t m = 0;
  // What is left for the last tile is never so little that it runs at half speed.
  const bool whole = row + kBlockRows <= a.row_end;
  for (; whole && (a.M - m > kMaxTokens || a.M - m == kT); m += kT) {
    for (size_t begin = row; begin < end; begin += kGemmRows) {
      size_t rows[kGemmV];
      for (size_t v = 0; v < kGemmV; ++v) rows[v] = begin + v * kTileRows;
      Tiles::template Run<kGemmV, kT>(a, rows, m, fetch);
      fetch.Skip(a.K / kUnitLen);
    }
  }
  while (m < a.M) {
    const size_t count = HWY_MIN(a.M - m, kMaxTokens);
    CoverUpTo<Tiles, kMaxTokens>(a, row, end, m, count);
    m += count;
  }
}

// One block of rows against as many tokens as fill tiles of kT.
template <class Tiles>
void CoverWhole(const typename Tiles::Args& a) {
  for (size_t m = 0; m + Tiles::kT <= a.M; m += Tiles::kT) {
    for (size_t begin = a.row_begin; begin < a.row_end; begin += kGemmRows) {
      size_t rows[kGemmV];
      for (size_t v = 0; v < kGemmV; ++v) rows[v] = begin + v * kTileRows;
      Tiles::template Run<kGemmV, Tiles::kT>(a, rows, m, FetchNext());
    }
  }
}

template <class Tiles>
void CoverRows(const typename Tiles::Args& a) {
  if (a.row_begin >= a.row_end || a.M == 0) return;
  if (CoverStreams<Tiles>(a)) return;
  // As many tokens as a tile of a prompt has are a prompt, but on Zen 5, where asking
  // ahead in one stream reads faster than what a block of rows asks for.
  const bool prompt = a.M == Tiles::kT && ThisCore() != Core::kZen5;
  if (a.M <= kMaxTokens && !prompt) {
    return CoverUpTo<Tiles, kMaxTokens>(a, a.row_begin, a.row_end, 0, a.M);
  }
  for (size_t row = a.row_begin; row < a.row_end; row += kBlockRows) {
    CoverBlock<Tiles>(a, row);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
