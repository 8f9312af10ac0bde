// csrc/kernels/hadamard.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/hadamard.h"

#include <math.h>

#include <utility>

#include "base/targets.h"  // before any Highway header

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/hadamard.cc"  // this file, re-included per target
// clang-format on
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Sums of neighbours into the first half of y, their differences into the second. That
// log2(len) times is the transform, and every stage reads and writes whole vectors
// (Pease 1968, "An adaptation of the fast Fourier transform for parallel processing").
HWY_INLINE void Stage(const float* x, size_t len, float* y) {
  const hn::ScalableTag<float> df;
  const size_t half = len / 2, lanes = hn::Lanes(df);
  size_t i = 0;
  for (; i + lanes <= half; i += lanes) {
    hn::Vec<decltype(df)> a, b;
    hn::LoadInterleaved2(df, x + 2 * i, a, b);
    hn::StoreU(hn::Add(a, b), df, y + i);
    hn::StoreU(hn::Sub(a, b), df, y + half + i);
  }
  for (; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    y[i] = a + b;
    y[half + i] = a - b;
  }
}

void Hadamard(float* x, size_t len) {
  float other[kMaxHadamardLen];
  float *from = x, *to = other;
  for (size_t stage = 1; stage < len; stage *= 2) {
    Stage(from, len, to);
    std::swap(from, to);
  }
  const float scale = static_cast<float>(1.0 / sqrt(static_cast<double>(len)));
  for (size_t i = 0; i < len; ++i) x[i] = from[i] * scale;
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfbyte {

HWY_EXPORT(Hadamard);

void Hadamard(float* x, size_t n) noexcept {
  const size_t len = HadamardLen(n);
  if (len < 2) return;
  for (size_t i = 0; i < n; i += len) HWY_DYNAMIC_DISPATCH(Hadamard)(x + i, len);
}

}  // namespace halfbyte
#endif  // HWY_ONCE
