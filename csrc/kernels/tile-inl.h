// csrc/kernels/tile-inl.h
// The inner product of panels with 8-bit activations: V registers of rows against T
// tokens. Per group of 16 or 32 weights the codes are unpacked once, multiplied with
// each token's codes into exact 32-bit sums, and added to the token's f32 sums. The sum
// of one output takes the groups in order whatever V and T are, so its bits depend on
// neither. Bound by memory at T = 1, by the dot product from T = 8.
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_TILE_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_TILE_INL_TOGGLE
#undef HALFBYTE_KERNELS_TILE_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_TILE_INL_TOGGLE
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "kernels/cover-inl.h"
#include "kernels/format_kernels.h"
#include "kernels/panel-inl.h"
#include "kernels/q8.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A lane of a register is a row.
using TileI32 = hn::RebindToSigned<TileF32>;
using TileU8 = hn::Repartition<uint8_t, TileF32>;
using TileI8 = hn::Repartition<int8_t, TileF32>;

// The sums of V registers of rows and T tokens come in C chains, which groups take in
// turn: with few sums, one dot product would wait for the one before. A chain stays in
// one plane.
template <class Fmt, size_t C>
constexpr size_t ChainOf(size_t g) {
  constexpr size_t kOfPlane = C / kPlanes<Fmt>;
  return PlaneOf<Fmt>(g) * kOfPlane + g % kOfPlane;
}

// run[c][v][t] += codes of groups [kBegin, kEnd) . activations.
template <class Fmt, class Dot, size_t kBegin, size_t kEnd, class Run, size_t C,
          size_t V, size_t T>
HWY_INLINE void AddGroups(const uint8_t* const (&unit)[V], const int8_t* const (&q)[T],
                          Run (&run)[C][V][T]) {
  const TileI32 di32;
  const TileU8 du8;
  hn::Vec<TileU8> codes[V];
  HALFBYTE_UNROLL
  for (size_t v = 0; v < V; ++v) {
    if constexpr (kPlanes<Fmt> != 1) {
      codes[v] = UnitCodesInPlace<Fmt, kBegin>(du8, unit[v]);
    } else {
      codes[v] = UnitCodes<Fmt, kBegin>(du8, unit[v]);
    }
  }
  HALFBYTE_UNROLL
  for (size_t t = 0; t < T; ++t) {
    const auto quad = Dot::template Load<kBegin>(TileI8(), q[t]);
    HALFBYTE_UNROLL
    for (size_t v = 0; v < V; ++v) {
      auto& sum = run[ChainOf<Fmt, C>(kBegin)][v][t];
      sum = Dot::template Add<Fmt, kBegin>(di32, codes[v], quad, sum);
    }
  }
  if constexpr (kBegin + 1 < kEnd) AddGroups<Fmt, Dot, kBegin + 1, kEnd>(unit, q, run);
}

template <class Fmt, class Dot>
using RunOf = decltype(Dot::template Begin<Fmt>(TileI32(), hn::Vec<TileI32>()));

template <class Fmt, class Dot, size_t C, size_t V, size_t T>
HWY_INLINE void BeginRuns(const hn::Vec<TileI32> (&sum)[C][V][T],
                          RunOf<Fmt, Dot> (&run)[C][V][T]) {
  HALFBYTE_UNROLL
  for (size_t i = 0; i < C * V * T; ++i) {
    const size_t c = i / (V * T), v = i / T % V, t = i % T;
    run[c][v][t] = Dot::template Begin<Fmt>(TileI32(), sum[c][v][t]);
  }
}

template <class Fmt, class Dot, size_t C, size_t V, size_t T>
HWY_INLINE void EndRuns(const RunOf<Fmt, Dot> (&run)[C][V][T],
                        hn::Vec<TileI32> (&sum)[C][V][T]) {
  HALFBYTE_UNROLL
  for (size_t i = 0; i < C * V * T; ++i) {
    const size_t c = i / (V * T), v = i / T % V, t = i % T;
    sum[c][v][t] = Dot::template End<Fmt>(TileI32(), run[c][v][t], sum[c][v][t]);
  }
}

// sum[0][v][t] += codes of groups [kBegin, kEnd) . activations, in runs.
template <class Fmt, class Dot, size_t kBegin, size_t kEnd, size_t V, size_t T>
HWY_INLINE void AddRuns(const uint8_t* const (&unit)[V], const int8_t* const (&q)[T],
                        hn::Vec<TileI32> (&sum)[1][V][T]) {
  constexpr size_t kRunEnd = kBegin + HWY_MIN(Dot::template kRun<Fmt>, kEnd - kBegin);
  RunOf<Fmt, Dot> run[1][V][T];
  BeginRuns<Fmt, Dot>(sum, run);
  AddGroups<Fmt, Dot, kBegin, kRunEnd>(unit, q, run);
  EndRuns<Fmt, Dot>(run, sum);
  if constexpr (kRunEnd < kEnd) AddRuns<Fmt, Dot, kRunEnd, kEnd>(unit, q, sum);
}

// True if codes are multiplied as they are, and sums start from minus their zero point
// times the sum of the activations.
template <class Fmt, class Dot>
inline constexpr bool kStartsBelow = !Fmt::kHasMin && !Dot::template kSigns<Fmt>;

// True if sums are made as the bits of an f32 (q8.h): then a fused multiply-add takes
// kSumBias off again while it multiplies by the scale, and rounds as if it were not
// there.
inline constexpr bool kBiasedSums = HWY_NATIVE_FMA;

// Minus the sum of the activations that meet group `kPart` of a unit.
template <class Fmt, size_t kPart>
HWY_INLINE int32_t NegSum(const Q8Block& x) {
  if constexpr (Fmt::kGroupLen == 32) return x.neg_sum;
  return kPart == 0 ? x.neg_sum - x.neg_sum_last : x.neg_sum_last;
}

// What the sum over a group starts from.
template <class Fmt, class Dot, size_t kPart>
HWY_INLINE hn::Vec<TileI32> StartSum(const Q8Block& x) {
  const TileI32 di32;
  if constexpr (!kStartsBelow<Fmt, Dot>) {
    return kBiasedSums ? hn::Set(di32, kSumBiasBits) : hn::Zero(di32);
  } else if constexpr (kBiasedSums) {
    constexpr int32_t kZero = 1 << Fmt::kZeroLog2;
    return hn::Set(di32, kZero == 8 ? x.biased_start
                                    : kSumBiasBits + kZero * NegSum<Fmt, kPart>(x));
  } else {
    return hn::ShiftLeft<Fmt::kZeroLog2>(hn::Set(di32, NegSum<Fmt, kPart>(x)));
  }
}

// Exact sums over group `kPart` (of one or two) of a unit.
template <class Fmt, class Dot, size_t kPart, size_t V, size_t T>
HWY_INLINE void PartSums(const uint8_t* const (&unit)[V], const Q8Block* const (&x)[T],
                         hn::Vec<TileI32> (&sum)[1][V][T]) {
  const int8_t* q[T];
  HALFBYTE_UNROLL
  for (size_t t = 0; t < T; ++t) {
    const auto start = StartSum<Fmt, Dot, kPart>(*x[t]);
    HALFBYTE_UNROLL
    for (size_t v = 0; v < V; ++v) sum[0][v][t] = start;
    q[t] = x[t]->q;
  }
  constexpr size_t kQuads = Fmt::kGroupLen / 4;
  AddRuns<Fmt, Dot, kPart * kQuads, (kPart + 1) * kQuads>(unit, q, sum);
}

// The 16 bytes at `p`, a register of rows of them, as numbers.
HWY_INLINE hn::Vec<TileF32> SubScale(const uint8_t* p) {
  const hn::Rebind<int8_t, TileF32> di8;
  const auto bytes = hn::LoadU(di8, reinterpret_cast<const int8_t*>(p));
  return hn::ConvertTo(TileF32(), hn::PromoteTo(TileI32(), bytes));
}

template <bool kBF16>
HWY_INLINE hn::Vec<TileF32> HalfScale(const uint8_t* p) {
  const TileF32 df;
  const HalfBits<TileF32> du16;
  const auto half = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(p));
  return kBF16 ? PromoteBF16(df, half) : PromoteF16(df, half);
}

// Where one register of rows finds its part of a superblock.
struct TileRows {
  const uint8_t* super;
  size_t lane;  // first row of the panel that it holds
};

// The scale of a group of weights, or its minimum. Exact: an f16 times a byte.
template <class Fmt>
HWY_INLINE hn::Vec<TileF32> GroupScale(const TileRows& rows, size_t half_at,
                                       size_t sub_scale_at) {
  const auto scale =
      HalfScale<kHasBF16Scale<Fmt>>(rows.super + half_at + 2 * rows.lane);
  if constexpr (!Fmt::kSubScales) return scale;
  return hn::Mul(scale, SubScale(rows.super + sub_scale_at + rows.lane));
}

// scale * sum, rounded once: kSumBias * scale is exact.
HWY_INLINE hn::Vec<TileF32> ScaleSum(hn::Vec<TileI32> sum, hn::Vec<TileF32> scale) {
  const TileF32 df;
  if (!kBiasedSums) return hn::Mul(hn::ConvertTo(df, sum), scale);
  const auto below = hn::Mul(scale, hn::Set(df, -kSumBias));
  return hn::MulAdd(hn::BitCast(df, sum), scale, below);
}

// acc[v][t] += d * (scale * sum + min * minimum's sum), over group `kPart` of a unit.
template <class Fmt, class Dot, size_t kPart, size_t V, size_t T>
HWY_INLINE void AddPart(const TileRows (&rows)[V], size_t unit,
                        const Q8Block* const (&x)[T], hn::Vec<TileF32> (&acc)[V][T]) {
  using P = Panel<Fmt>;
  static_assert(Fmt::kGroupLen * (Fmt::kMaxCode + 1) * 127 < 1 << 22, "see kSumBias");
  const size_t group = unit * kUnitLen / Fmt::kGroupLen + kPart;
  const TileF32 df;
  const uint8_t* codes[V];
  hn::Vec<TileF32> scale[V];
  HALFBYTE_UNROLL
  for (size_t v = 0; v < V; ++v) {
    codes[v] = rows[v].super + P::UnitAt(unit) + 4 * rows[v].lane;
    // Here, so that nothing waits for it after the sums.
    scale[v] = GroupScale<Fmt>(rows[v], P::ScaleAt(unit), P::SubScaleAt(group));
  }
  hn::Vec<TileI32> sum[1][V][T];
  PartSums<Fmt, Dot, kPart>(codes, x, sum);
  HALFBYTE_UNROLL
  for (size_t t = 0; t < T; ++t) {
    const auto d = hn::Set(df, x[t]->d);
    HALFBYTE_UNROLL
    for (size_t v = 0; v < V; ++v) {
      auto scaled = ScaleSum(sum[0][v][t], scale[v]);
      if constexpr (Fmt::kHasMin) {
        const auto min = GroupScale<Fmt>(rows[v], P::MinAt(unit), P::SubMinAt(group));
        const auto neg_sum = hn::Set(TileI32(), NegSum<Fmt, kPart>(*x[t]));
        scaled = hn::MulAdd(hn::ConvertTo(df, neg_sum), min, scaled);
      }
      acc[v][t] = hn::MulAdd(scaled, d, acc[v][t]);
    }
  }
}

// A register of outputs, or as many of them as there are rows.
template <class D, class V>
HWY_INLINE void StoreRows(D d, V v, size_t num_rows, hn::TFromD<D>* to) {
  if (num_rows >= kTileRows) {
    hn::StoreU(v, d, to);
  } else {
    hn::StoreN(v, d, to, num_rows);
  }
}

// acc = rows . tokens. Not inlined: a register for everything needs a function of its
// own.
template <class Fmt, class Dot, size_t V, size_t T, class Fetch>
HWY_NOINLINE void Tile(const LinearArgs& a, const size_t (&row)[V], size_t m,
                       Fetch fetch) {
  using P = Panel<Fmt>;
  const TileF32 df;
  hn::Vec<TileF32> acc[V][T];
  HALFBYTE_UNROLL
  for (size_t i = 0; i < V * T; ++i) acc[i / T][i % T] = hn::Zero(df);
  TileRows rows[V];
  const Q8Block* x[T];
  HALFBYTE_UNROLL
  for (size_t v = 0; v < V; ++v) {
    rows[v] = {a.w + row[v] / kPanelRows * a.w_row_bytes, row[v] % kPanelRows};
  }
  HALFBYTE_UNROLL
  for (size_t t = 0; t < T; ++t) {
    x[t] = static_cast<const Q8Block*>(a.x) + (m + t) * a.x_ld;
  }
  for (size_t left = a.K / kUnitLen; left != 0;) {
    const size_t units = HWY_MIN(left, P::kUnits);
    for (size_t unit = 0; unit < units; ++unit) {
      // A unit's share of the superblock, its head too.
      constexpr size_t kShare = P::kBytes / P::kUnits;
      const uint8_t* shares[V];
      HALFBYTE_UNROLL
      for (size_t v = 0; v < V; ++v) shares[v] = rows[v].super + unit * kShare;
      fetch.template Unit<Fmt, kShare>(shares);
      AddPart<Fmt, Dot, 0>(rows, unit, x, acc);
      if constexpr (Fmt::kGroupLen == 16) AddPart<Fmt, Dot, 1>(rows, unit, x, acc);
      HALFBYTE_UNROLL
      for (size_t t = 0; t < T; ++t) ++x[t];
    }
    HALFBYTE_UNROLL
    for (size_t v = 0; v < V; ++v) rows[v].super += P::kBytes;
    left -= units;
  }
  HALFBYTE_UNROLL
  for (size_t i = 0; i < V * T; ++i) {
    const size_t v = i / T, t = i % T;
    float* out = a.y + (m + t) * a.y_ld + row[v];
    StoreRows(df, acc[v][t], a.row_end - row[v], out);
  }
}

template <class Fmt, class Dot>
struct BlockTiles {
  using Args = LinearArgs;
  static constexpr size_t kT = HALFBYTE_REGISTERS == 32 ? 6 : 4;
  static constexpr size_t kCodeBits = Panel<Fmt>::kBits;
  static constexpr bool kSubScales = Fmt::kSubScales;
  static constexpr size_t FarStreams(size_t T) { return T == 1 ? 3 : 2; }
  static size_t ActivationBytes(size_t K) {
    return K / Q8Block::kLen * sizeof(Q8Block);
  }

  template <size_t V, size_t T, class Fetch>
  static void Run(const LinearArgs& a, const size_t (&row)[V], size_t m, Fetch fetch) {
    Tile<Fmt, Dot, V, T>(a, row, m, fetch);
  }
};

template <class Fmt, class Dot>
void LinearPanels(const LinearArgs& a) noexcept {
  CoverRows<BlockTiles<Fmt, Dot>>(a);
}
template <class Fmt, class Dot>
void LinearSpreadPanels(const LinearArgs& a) noexcept {
  CoverWhole<BlockTiles<Spread<Fmt>, Dot>>(a);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
