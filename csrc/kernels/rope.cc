// csrc/kernels/rope.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/rope.h"

#include <cmath>

#include "base/targets.h"  // before any Highway header

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rope.cc"  // this file, re-included per target
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

void Rope(float* x, size_t head_dim, const float* cos, const float* sin, size_t pairs) {
  HWY_DASSERT(pairs <= head_dim / 2);
  const hn::ScalableTag<float> df;
  float* upper = x + head_dim / 2;
  ForVectors(df, 0, pairs, [&](size_t i, auto io) HWY_ATTR {
    const auto a = io.Load(df, x + i), b = io.Load(df, upper + i);
    const auto c = io.Load(df, cos + i), s = io.Load(df, sin + i);
    // Each product is rounded, as in the modules of transformers: the same bits.
    io.Store(hn::Sub(hn::Mul(a, c), hn::Mul(b, s)), df, x + i);
    io.Store(hn::Add(hn::Mul(b, c), hn::Mul(a, s)), df, upper + i);
  });
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfbyte {

HWY_EXPORT(Rope);

void Rope(float* x, size_t head_dim, const float* cos, const float* sin,
          size_t pairs) noexcept {
  HWY_DYNAMIC_DISPATCH(Rope)(x, head_dim, cos, sin, pairs);
}

void RopeAngles(uint64_t position, const double* inv_freq, size_t pairs, float* cos,
                float* sin) noexcept {
  for (size_t i = 0; i < pairs; ++i) {
    const double angle = static_cast<double>(position) * inv_freq[i];
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
  }
}

}  // namespace halfbyte
#endif  // HWY_ONCE
