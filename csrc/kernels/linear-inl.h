// csrc/kernels/linear-inl.h
// Y = X W^T for one slice of W's rows. One token reads every weight once and is bound
// by memory (gemv); more tokens share each unpacked weight, four at a time (gemm). The
// sum of one output runs over K in the same order in every shape, so results do not
// depend on how tokens are batched. SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_LINEAR_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_LINEAR_INL_TOGGLE
#undef HALFBYTE_KERNELS_LINEAR_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_LINEAR_INL_TOGGLE
#endif

#include <stddef.h>

#include "hwy/highway.h"
#include "kernels/dequantize-inl.h"  // kIsFloat, kGroups
#include "kernels/format_kernels.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Row `n` of W against token `m`, and their three successors: along N for one token,
// along M for many. `row(i)` and `x(i)` give the i-th of four.

// ---- float weights: f32 activations

template <class Fmt, class Row, class X>
HWY_INLINE void DotFloats4(const Row& row, const X& x, size_t K, float* out) {
  const hn::CappedTag<float, 16> df;
  const size_t lanes = hn::Lanes(df);
  auto sum0 = hn::Zero(df), sum1 = hn::Zero(df), sum2 = hn::Zero(df),
       sum3 = hn::Zero(df);
  size_t k = 0;
  for (; k + lanes <= K; k += lanes) {
    sum0 = hn::MulAdd(LoadWeights(Fmt(), df, row(0), k), hn::LoadU(df, x(0) + k), sum0);
    sum1 = hn::MulAdd(LoadWeights(Fmt(), df, row(1), k), hn::LoadU(df, x(1) + k), sum1);
    sum2 = hn::MulAdd(LoadWeights(Fmt(), df, row(2), k), hn::LoadU(df, x(2) + k), sum2);
    sum3 = hn::MulAdd(LoadWeights(Fmt(), df, row(3), k), hn::LoadU(df, x(3) + k), sum3);
  }
  if (const size_t n = K - k; n != 0) {
    const auto tail = [&](size_t i, hn::Vec<decltype(df)> sum) HWY_ATTR {
      return hn::MulAdd(LoadWeightsN(Fmt(), df, row(i), k, n),
                        hn::LoadN(df, x(i) + k, n), sum);
    };
    sum0 = tail(0, sum0);
    sum1 = tail(1, sum1);
    sum2 = tail(2, sum2);
    sum3 = tail(3, sum3);
  }
  out[0] = hn::ReduceSum(df, sum0);
  out[1] = hn::ReduceSum(df, sum1);
  out[2] = hn::ReduceSum(df, sum2);
  out[3] = hn::ReduceSum(df, sum3);
}

// ---- quantised weights: 8-bit activations

// 32 weights, or fewer where vectors are shorter: one i32 lane sums four products.
using DQ = hn::CappedTag<float, 8>;

// The scale of each lane of codes [i, i + 4 Lanes).
template <class Fmt>
HWY_INLINE hn::Vec<DQ> LaneScales(const float* s, size_t i) {
  const DQ df;
  const size_t g = i / Fmt::kGroupLen;
  if constexpr (Fmt::kGroupLen == 16 && HWY_MAX_LANES_D(DQ) == 8) {
    const hn::Half<DQ> dh;
    return hn::Combine(df, hn::Set(dh, s[g + 1]), hn::Set(dh, s[g]));
  } else {
    return hn::Set(df, s[g]);
  }
}

// sum += scale * d * (codes . q) - min * d * sum(q), lane by lane.
template <class Fmt, class VU8>
HWY_INLINE hn::Vec<DQ> AddDot(VU8 codes, const Q8Block& x, size_t j, hn::Vec<DQ> scale,
                              hn::Vec<DQ> min, hn::Vec<DQ> sum) {
  const DQ df;
  const hn::RebindToSigned<DQ> di32;
  const hn::Repartition<int8_t, DQ> di8;
  const hn::Rebind<int16_t, DQ> di16;
  const auto d = hn::Set(df, x.d);
  const auto neg_sum = hn::PromoteTo(di32, hn::LoadU(di16, x.neg_sum + j / 4));
  const auto dot = Dot4<Fmt>(di32, codes, hn::LoadU(di8, x.q + j), neg_sum);
  sum = hn::MulAdd(hn::ConvertTo(df, dot), hn::Mul(scale, d), sum);
  if constexpr (Fmt::kHasMin) {
    sum = hn::MulAdd(hn::ConvertTo(df, neg_sum), hn::Mul(min, d), sum);
  }
  return sum;
}

// One block of four rows against one token, or of one row against four tokens.
template <class Fmt, bool kRows>
struct Step4 {
  using Block = typename Fmt::Block;
  static constexpr size_t kSources = kRows ? 4 : 1;
  float scale[kSources][kGroups<Fmt>], min[kSources][kGroups<Fmt>];

  HWY_INLINE void LoadScales(size_t i, const Block& b) {
    Scales(Fmt(), DQ(), b, scale[i], min[i]);
    if constexpr (!Fmt::kHasMin) min[i][0] = 0.0f;
  }
};

template <class Fmt, class Row, class X>
HWY_INLINE void DotRows4(const Row& row, const X& x, size_t num_blocks, float* out) {
  const DQ df;
  const hn::Repartition<uint8_t, DQ> du8;
  auto sum0 = hn::Zero(df), sum1 = hn::Zero(df), sum2 = hn::Zero(df),
       sum3 = hn::Zero(df);
  Step4<Fmt, true> s;
  const Q8Block* xb = x(0);
  for (size_t b = 0; b < num_blocks; ++b, xb += Fmt::kBlockLen / Q8Block::kLen) {
    for (size_t r = 0; r < 4; ++r) s.LoadScales(r, row(r)[b]);
    const auto add = [&](size_t r, size_t i, hn::Vec<DQ> sum) HWY_ATTR {
      const auto scale = LaneScales<Fmt>(s.scale[r], i);
      const auto min = Fmt::kHasMin ? LaneScales<Fmt>(s.min[r], i) : scale;
      return AddDot<Fmt>(Codes(Fmt(), du8, row(r)[b], i), xb[i / Q8Block::kLen],
                         i % Q8Block::kLen, scale, min, sum);
    };
    for (size_t i = 0; i < Fmt::kBlockLen; i += hn::Lanes(du8)) {
      sum0 = add(0, i, sum0);
      sum1 = add(1, i, sum1);
      sum2 = add(2, i, sum2);
      sum3 = add(3, i, sum3);
    }
  }
  out[0] = hn::ReduceSum(df, sum0);
  out[1] = hn::ReduceSum(df, sum1);
  out[2] = hn::ReduceSum(df, sum2);
  out[3] = hn::ReduceSum(df, sum3);
}

template <class Fmt, class Row, class X>
HWY_INLINE void DotTokens4(const Row& row, const X& x, size_t num_blocks, float* out) {
  const DQ df;
  const hn::Repartition<uint8_t, DQ> du8;
  auto sum0 = hn::Zero(df), sum1 = hn::Zero(df), sum2 = hn::Zero(df),
       sum3 = hn::Zero(df);
  Step4<Fmt, false> s;
  for (size_t b = 0; b < num_blocks; ++b) {
    s.LoadScales(0, row(0)[b]);
    for (size_t i = 0; i < Fmt::kBlockLen; i += hn::Lanes(du8)) {
      const auto codes = Codes(Fmt(), du8, row(0)[b], i);
      const auto scale = LaneScales<Fmt>(s.scale[0], i);
      const auto min = Fmt::kHasMin ? LaneScales<Fmt>(s.min[0], i) : scale;
      const size_t xb = (b * Fmt::kBlockLen + i) / Q8Block::kLen, j = i % Q8Block::kLen;
      sum0 = AddDot<Fmt>(codes, x(0)[xb], j, scale, min, sum0);
      sum1 = AddDot<Fmt>(codes, x(1)[xb], j, scale, min, sum1);
      sum2 = AddDot<Fmt>(codes, x(2)[xb], j, scale, min, sum2);
      sum3 = AddDot<Fmt>(codes, x(3)[xb], j, scale, min, sum3);
    }
  }
  out[0] = hn::ReduceSum(df, sum0);
  out[1] = hn::ReduceSum(df, sum1);
  out[2] = hn::ReduceSum(df, sum2);
  out[3] = hn::ReduceSum(df, sum3);
}

// ---- the slice

// Four outputs: kRows: rows n .. n + 3 of token m; else tokens m .. m + 3 of row n.
template <class Fmt, bool kRows>
HWY_INLINE void Dot4Outputs(const LinearArgs& a, size_t n, size_t m, float* out) {
  const auto row = [&](size_t i)
                       HWY_ATTR { return a.w + (kRows ? n + i : n) * a.w_row_bytes; };
  const auto token = [&](size_t i) HWY_ATTR { return kRows ? m : m + i; };
  if constexpr (kIsFloat<Fmt>) {
    const auto x = [&](size_t i) HWY_ATTR {
      return static_cast<const float*>(a.x) + token(i) * a.x_ld;
    };
    DotFloats4<Fmt>(row, x, a.K, out);
  } else {
    const auto blocks = [&](size_t i) HWY_ATTR {
      return reinterpret_cast<const typename Fmt::Block*>(row(i));
    };
    const auto x = [&](size_t i) HWY_ATTR {
      return static_cast<const Q8Block*>(a.x) + token(i) * a.x_ld;
    };
    if constexpr (kRows) {
      DotRows4<Fmt>(blocks, x, a.K / Fmt::kBlockLen, out);
    } else {
      DotTokens4<Fmt>(blocks, x, a.K / Fmt::kBlockLen, out);
    }
  }
}

// Rows [begin, end) of one token. A row that is left over is computed four times: a
// tail shorter than the code it would take.
template <class Fmt>
HWY_INLINE void OneToken(const LinearArgs& a, size_t begin, size_t end, size_t m) {
  float out[4];
  float* y = a.y + m * a.y_ld;
  size_t n = begin;
  for (; n + 4 <= end; n += 4) Dot4Outputs<Fmt, true>(a, n, m, y + n);
  for (; n < end; ++n) {
    LinearArgs one = a;
    one.w += n * a.w_row_bytes;
    one.w_row_bytes = 0;
    Dot4Outputs<Fmt, true>(one, 0, m, out);
    y[n] = out[0];
  }
}

template <class Fmt>
void Linear(const LinearArgs& a) noexcept {
  // 16 rows stay in L1 while all tokens pass over them.
  constexpr size_t kTileRows = 16;
  for (size_t tile = a.row_begin; tile < a.row_end; tile += kTileRows) {
    const size_t tile_end = HWY_MIN(tile + kTileRows, a.row_end);
    size_t m = 0;
    for (; m + 4 <= a.M; m += 4) {
      for (size_t n = tile; n < tile_end; ++n) {
        float out[4];
        Dot4Outputs<Fmt, false>(a, n, m, out);
        for (size_t i = 0; i < 4; ++i) a.y[(m + i) * a.y_ld + n] = out[i];
      }
    }
    for (; m < a.M; ++m) OneToken<Fmt>(a, tile, tile_end, m);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
