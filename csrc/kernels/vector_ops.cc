// csrc/kernels/vector_ops.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/vector_ops.h"

#include "base/targets.h"  // before any Highway header

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/vector_ops.cc"  // this file, re-included per target
// clang-format on
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h
#include "kernels/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

void Add(const float* x, size_t n, float* y) {
  const hn::ScalableTag<float> df;
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    io.Store(hn::Add(io.Load(df, y + i), io.Load(df, x + i)), df, y + i);
  });
}

void Mul(const float* x, size_t n, float* y) {
  const hn::ScalableTag<float> df;
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    io.Store(hn::Mul(io.Load(df, y + i), io.Load(df, x + i)), df, y + i);
  });
}

void Scale(float a, size_t n, float* y) {
  const hn::ScalableTag<float> df;
  const auto factor = hn::Set(df, a);
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    io.Store(hn::Mul(io.Load(df, y + i), factor), df, y + i);
  });
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfbyte {

HWY_EXPORT(Add);
HWY_EXPORT(Mul);
HWY_EXPORT(Scale);

void Add(const float* x, size_t n, float* y) noexcept {
  HWY_DYNAMIC_DISPATCH(Add)(x, n, y);
}

void Mul(const float* x, size_t n, float* y) noexcept {
  HWY_DYNAMIC_DISPATCH(Mul)(x, n, y);
}

void Scale(float a, size_t n, float* y) noexcept {
  HWY_DYNAMIC_DISPATCH(Scale)(a, n, y);
}

}  // namespace halfbyte
#endif  // HWY_ONCE
