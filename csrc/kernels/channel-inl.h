// csrc/kernels/channel-inl.h
// Products of weights with one scale a row and activations with one step a token: sums
// over all of K are exact integers, equal on every instruction set, and floating point
// begins at the end.
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_CHANNEL_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_CHANNEL_INL_TOGGLE
#undef HALFBYTE_KERNELS_CHANNEL_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_CHANNEL_INL_TOGGLE
#endif

#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "hwy/highway.h"
#include "kernels/format_kernels.h"
#include "kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// From exact sums of rows [row, row + kTileRows) to what token m gets of them.
HWY_INLINE void StoreChannel(const ChannelArgs& a, hn::Vec<TileI32> sum, size_t row,
                             size_t m) {
  const TileF32 df;
  const size_t num_rows = a.row_end - row, at = m * a.y_ld + row;
  const auto w_scale = num_rows >= kTileRows ? hn::LoadU(df, a.w_scale + row)
                                             : hn::LoadN(df, a.w_scale + row, num_rows);
  const auto scale = hn::Mul(w_scale, hn::Set(df, a.x_scale[m]));
  auto y = hn::Mul(hn::ConvertTo(df, sum), scale);
  if (a.y_step != 0.0f) {
    const auto step = hn::Set(df, a.y_step);
    const auto level = hn::Round(hn::Div(y, step));
    const auto low = hn::Set(df, -128.0f), high = hn::Set(df, 127.0f);
    const auto code = hn::Min(hn::Max(level, low), high);
    if (a.y_codes != nullptr) {
      const hn::Rebind<int8_t, TileF32> di8;
      const auto bytes = hn::DemoteTo(di8, hn::ConvertTo(TileI32(), code));
      return StoreRows(di8, bytes, num_rows, a.y_codes + at);
    }
    y = hn::IfThenElse(hn::IsNaN(y), y, hn::Mul(code, step));
  }
  StoreRows(df, y, num_rows, a.y + at);
}

// Codes in place for so few sums that half the registers hold those of every plane.
template <class Fmt, class Dot, size_t kSums, class Codes = InPlace<Fmt, Dot::kField>>
using CodesFor = std::conditional_t<kPlanes<Codes> != 1 && kSums * kPlanes<Codes> <=
                                                               HALFBYTE_REGISTERS / 2,
                                    Codes, Fmt>;

// Units that a run spans: each adds eight groups, to C chains in turn.
template <class Fmt, class Dot, size_t C>
constexpr size_t RunUnits() {
  constexpr size_t kGroupsOfUnit = kUnitLen / 4;
  constexpr size_t kUnits = Dot::template kRun<Fmt> / (kGroupsOfUnit / C);
  static_assert(kGroupsOfUnit % C == 0 && kUnits != 0);
  return kUnits;
}

// Rows [row[v], row[v] + kTileRows) against tokens [m, m + T).
template <class Fmt, class Dot, size_t V, size_t T, class Fetch>
HWY_NOINLINE void ChannelTile(const ChannelArgs& a, const size_t (&row)[V], size_t m,
                              Fetch fetch) {
  using P = Panel<Fmt>;
  using Codes = CodesFor<Fmt, Dot, V * T>;
  // Dot products in flight: more than their latency, if registers allow.
  constexpr size_t C = HWY_MAX(HWY_MIN(kMaxSums / (V * T), kMaxChains), kPlanes<Codes>);
  const TileI32 di32;
  hn::Vec<TileI32> sum[C][V][T];
  const uint8_t* codes[V];
  const int8_t* q[T];
  HALFBYTE_UNROLL
  for (size_t v = 0; v < V; ++v) {
    codes[v] = a.w + row[v] / kPanelRows * a.w_row_bytes + row[v] % kPanelRows * 4;
    Prefetch<2>(reinterpret_cast<const uint8_t*>(a.w_scale + row[v]));
  }
  HALFBYTE_UNROLL
  for (size_t t = 0; t < T; ++t) {
    q[t] = a.x + (m + t) * a.x_ld;
    HALFBYTE_UNROLL
    for (size_t v = 0; v < V; ++v) {
      sum[0][v][t] = hn::Zero(di32);
      if constexpr (kStartsBelow<Fmt, Dot>) {
        const auto neg_sum = hn::Set(di32, a.x_neg_sum[m + t]);
        sum[0][v][t] = hn::ShiftLeft<Fmt::kZeroLog2>(neg_sum);
      }
      HALFBYTE_UNROLL
      for (size_t c = 1; c < C; ++c) sum[c][v][t] = hn::Zero(di32);
    }
  }
  for (size_t left = a.K / kUnitLen; left != 0;) {
    const size_t units = HWY_MIN(left, (RunUnits<Codes, Dot, C>()));
    RunOf<Codes, Dot> run[C][V][T];
    BeginRuns<Codes, Dot>(sum, run);
    for (size_t unit = units; unit != 0; --unit) {
      fetch.template Unit<Fmt, P::kUnitBytes>(codes);
      AddGroups<Codes, Dot, 0, kUnitLen / 4>(codes, q, run);
      HALFBYTE_UNROLL
      for (size_t v = 0; v < V; ++v) codes[v] += P::kUnitBytes;
      HALFBYTE_UNROLL
      for (size_t t = 0; t < T; ++t) q[t] += kUnitLen;
    }
    EndRuns<Codes, Dot>(run, sum);
    left -= units;
  }
  HALFBYTE_UNROLL
  for (size_t i = 0; i < V * T; ++i) {
    const size_t v = i / T, t = i % T;
    auto total = sum[0][v][t];
    HALFBYTE_UNROLL
    for (size_t c = 1; c < C; ++c) {
      // Exact: every product in it has that factor.
      constexpr int kPlaneBits = static_cast<int>(P::kBits);
      const int shift = kPlaneBits * static_cast<int>(c * kPlanes<Codes> / C);
      total = hn::Add(total, hn::ShiftRightSame(sum[c][v][t], shift));
    }
    StoreChannel(a, total, row[v], m + t);
  }
}

template <class Fmt, class Dot>
struct ChannelTiles {
  using Args = ChannelArgs;
  // Sums stay integers, so registers hold more of them.
  static constexpr size_t kT = HALFBYTE_REGISTERS == 32 ? 8 : 4;
  static constexpr size_t kCodeBits = Panel<Fmt>::kBits;
  static constexpr bool kSubScales = Fmt::kSubScales;
  static constexpr size_t FarStreams(size_t T) { return HWY_MIN(16 / T, size_t{3}); }
  static size_t ActivationBytes(size_t K) { return K; }

  template <size_t V, size_t T, class Fetch>
  static void Run(const ChannelArgs& a, const size_t (&row)[V], size_t m, Fetch fetch) {
    ChannelTile<Fmt, Dot, V, T>(a, row, m, fetch);
  }
};

template <class Fmt, class Dot>
void LinearChannels(const ChannelArgs& a) noexcept {
  CoverRows<ChannelTiles<Fmt, Dot>>(a);
}
template <class Fmt, class Dot>
void LinearSpreadChannels(const ChannelArgs& a) noexcept {
  CoverWhole<ChannelTiles<Spread<Fmt>, Dot>>(a);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
