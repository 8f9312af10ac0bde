// csrc/kernels/softmax.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/softmax.h"

#include <cmath>
#include <limits>

#include "base/targets.h"  // before any Highway header

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/softmax.cc"  // this file, re-included per target
// clang-format on
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h
#include "kernels/math-inl.h"
#include "kernels/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kNoMax = -std::numeric_limits<float>::infinity();

void Fill(float value, size_t n, float* y) {
  const hn::ScalableTag<float> df;
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    io.Store(hn::Set(df, value), df, y + i);
  });
}

void Softmax(const float* x, size_t n, float* y) {
  const hn::ScalableTag<float> df;
  const float max = MaxOf(x, n);
  if (max == kNoMax) {
    Fill(AnyNaN(x, n) ? std::numeric_limits<float>::quiet_NaN() : 0.0f, n, y);
    return;
  }
  const double sum = SumOfExp(
      x, n, max, [&](size_t i, auto io, auto e) HWY_ATTR { io.Store(e, df, y + i); });
  const auto scale = hn::Set(df, static_cast<float>(1.0 / sum));
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    io.Store(hn::Mul(scale, io.Load(df, y + i)), df, y + i);
  });
}

double LogSumExp(const float* x, size_t n) {
  const float max = MaxOf(x, n);
  if (max == kNoMax) {
    return AnyNaN(x, n) ? std::numeric_limits<double>::quiet_NaN()
                        : static_cast<double>(kNoMax);
  }
  const double sum = SumOfExp(x, n, max, [](size_t, auto, auto) HWY_ATTR {});
  return static_cast<double>(max) + std::log(sum);
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfbyte {

HWY_EXPORT(Softmax);
HWY_EXPORT(LogSumExp);

void Softmax(const float* x, size_t n, float* y) noexcept {
  HWY_DYNAMIC_DISPATCH(Softmax)(x, n, y);
}

double LogSumExp(const float* x, size_t n) noexcept {
  return HWY_DYNAMIC_DISPATCH(LogSumExp)(x, n);
}

}  // namespace halfbyte
#endif  // HWY_ONCE
