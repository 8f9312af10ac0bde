// csrc/kernels/convert.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/convert.h"

#include <stdint.h>

#include "base/targets.h"  // before any Highway header

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/convert.cc"  // this file, re-included per target
// clang-format on
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h
#include "formats/half-inl.h"
#include "kernels/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

void ConvertF16ToF32(const void* x, size_t n, float* y) {
  const hn::ScalableTag<float> df;
  const HalfBits<decltype(df)> du16;
  const auto* from = static_cast<const uint8_t*>(x);
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    io.Store(PromoteF16(df, io.LoadBytes(du16, from + 2 * i)), df, y + i);
  });
}

void ConvertF32ToF16(const float* x, size_t n, void* y) {
  const hn::ScalableTag<float> df;
  const HalfBits<decltype(df)> du16;
  auto* to = static_cast<uint8_t*>(y);
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    io.StoreBytes(DemoteF16(df, io.Load(df, x + i)), du16, to + 2 * i);
  });
}

void ConvertBF16ToF32(const void* x, size_t n, float* y) {
  const hn::ScalableTag<float> df;
  const HalfBits<decltype(df)> du16;
  const auto* from = static_cast<const uint8_t*>(x);
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    io.Store(PromoteBF16(df, io.LoadBytes(du16, from + 2 * i)), df, y + i);
  });
}

void ConvertF32ToBF16(const float* x, size_t n, void* y) {
  const hn::ScalableTag<float> df;
  const HalfBits<decltype(df)> du16;
  auto* to = static_cast<uint8_t*>(y);
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    io.StoreBytes(DemoteBF16(df, io.Load(df, x + i)), du16, to + 2 * i);
  });
}

void ConvertI8ToF32(const int8_t* codes, float step, size_t n, float* y) {
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di32;
  const hn::Rebind<int8_t, decltype(df)> di8;
  const auto factor = hn::Set(df, step);
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    const auto wide = hn::PromoteTo(di32, io.Load(di8, codes + i));
    io.Store(hn::Mul(hn::ConvertTo(df, wide), factor), df, y + i);
  });
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfbyte {

HWY_EXPORT(ConvertF16ToF32);
HWY_EXPORT(ConvertF32ToF16);
HWY_EXPORT(ConvertBF16ToF32);
HWY_EXPORT(ConvertF32ToBF16);
HWY_EXPORT(ConvertI8ToF32);

void ConvertF16ToF32(const void* x, size_t n, float* y) noexcept {
  HWY_DYNAMIC_DISPATCH(ConvertF16ToF32)(x, n, y);
}

void ConvertF32ToF16(const float* x, size_t n, void* y) noexcept {
  HWY_DYNAMIC_DISPATCH(ConvertF32ToF16)(x, n, y);
}

void ConvertBF16ToF32(const void* x, size_t n, float* y) noexcept {
  HWY_DYNAMIC_DISPATCH(ConvertBF16ToF32)(x, n, y);
}

void ConvertF32ToBF16(const float* x, size_t n, void* y) noexcept {
  HWY_DYNAMIC_DISPATCH(ConvertF32ToBF16)(x, n, y);
}

void ConvertI8ToF32(const int8_t* codes, float step, size_t n, float* y) noexcept {
  HWY_DYNAMIC_DISPATCH(ConvertI8ToF32)(codes, step, n, y);
}

}  // namespace halfbyte
#endif  // HWY_ONCE
