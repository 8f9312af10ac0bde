// csrc/kernels/dequantize-inl.h
// Weights to f32, a row at a time.
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_DEQUANTIZE_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_DEQUANTIZE_INL_TOGGLE
#undef HALFBYTE_KERNELS_DEQUANTIZE_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_DEQUANTIZE_INL_TOGGLE
#endif

#include <stddef.h>

#include "formats/traits.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class Fmt>
HWY_INLINE void DecodeFloats(const uint8_t* w, size_t K, float* HWY_RESTRICT out) {
  const hn::CappedTag<float, 16> df;
  const size_t lanes = hn::Lanes(df);
  size_t i = 0;
  for (; i + lanes <= K; i += lanes) {
    hn::StoreU(LoadWeights(Fmt(), df, w, i), df, out + i);
  }
  if (i < K) hn::StoreN(LoadWeightsN(Fmt(), df, w, i, K - i), df, out + i, K - i);
}

// The f32 scale of each group of a block, and its minimum.
template <class Fmt, class DF>
HWY_INLINE void Scales(DF df, const typename Fmt::Block& b, float* scale, float* min) {
  float d = 1.0f, dmin = 0.0f;
  if constexpr (kHasBF16Scale<Fmt>) {
    d = LoadBF16(b.d);
  } else if constexpr (!kHasRowScale<Fmt>) {
    d = F32FromF16Fast(LoadU16(b.d));
  }
  if constexpr (Fmt::kHasMin) dmin = F32FromF16Fast(Fmt::MinBits(b));
  if constexpr (Fmt::kSubScales) {
    int8_t s[16], m[16];
    Fmt::SubScales(b, s, m);
    ScaleBytes(df, s, kGroups<Fmt>, d, scale);
    if constexpr (Fmt::kHasMin) ScaleBytes(df, m, kGroups<Fmt>, dmin, min);
  } else {
    scale[0] = d;
    min[0] = dmin;
  }
}

// One quantised block. Codes are widened a quarter vector at a time: all lanes of a
// quarter belong to one group.
template <class Fmt>
HWY_INLINE void DecodeBlock(const typename Fmt::Block& b, float* HWY_RESTRICT out) {
  const hn::CappedTag<float, 8> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<uint8_t, decltype(df)> du8;
  const hn::Full128<uint8_t> d16;
  float scale[kGroups<Fmt>], min[kGroups<Fmt>];
  alignas(16) uint8_t codes[16];
  Scales<Fmt>(df, b, scale, min);
  const auto zero = hn::Set(di32, Fmt::kHasMin ? 0 : 1 << Fmt::kZeroLog2);
  for (size_t i = 0; i < Fmt::kBlockLen; i += 16) {
    const size_t g = i / Fmt::kGroupLen;
    hn::Store(Codes(Fmt(), d16, b, i), d16, codes);
    for (size_t j = 0; j < 16; j += hn::Lanes(df)) {
      const auto code = hn::PromoteTo(di32, hn::LoadU(du8, codes + j));
      auto w = hn::Mul(hn::Set(df, scale[g]), hn::ConvertTo(df, hn::Sub(code, zero)));
      if constexpr (Fmt::kHasMin) w = hn::Sub(w, hn::Set(df, min[g]));
      hn::StoreU(w, df, out + i + j);
    }
  }
}

template <class Fmt>
void DecodeRow(const uint8_t* w, size_t K, float* HWY_RESTRICT out) noexcept {
  if constexpr (kIsFloat<Fmt>) {
    DecodeFloats<Fmt>(w, K, out);
  } else {
    const auto* blocks = reinterpret_cast<const typename Fmt::Block*>(w);
    for (size_t b = 0; b < K / Fmt::kBlockLen; ++b) {
      DecodeBlock<Fmt>(blocks[b], out + b * Fmt::kBlockLen);
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
