// csrc/kernels/rms_norm.cc
// Double throughout: the squares of any f32 fit, and the time is still nothing beside a
// matrix product.
// SPDX-License-Identifier: Apache-2.0
#include "kernels/rms_norm.h"

#include <cmath>
#include <limits>

#include "base/targets.h"  // before any Highway header

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rms_norm.cc"  // this file, re-included per target
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

double SumOfSquares(const float* x, size_t n) {
  const hn::ScalableTag<double> dd;
  const hn::Rebind<float, decltype(dd)> df;  // half a vector
  const size_t lanes = hn::Lanes(dd);
  auto sum0 = hn::Zero(dd), sum1 = hn::Zero(dd), sum2 = hn::Zero(dd),
       sum3 = hn::Zero(dd);
  const auto load = [&](size_t i)
                        HWY_ATTR { return hn::PromoteTo(dd, hn::LoadU(df, x + i)); };
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {  // 4 sums: the latency of an FMA
    const auto x0 = load(i), x1 = load(i + lanes);
    const auto x2 = load(i + 2 * lanes), x3 = load(i + 3 * lanes);
    sum0 = hn::MulAdd(x0, x0, sum0);
    sum1 = hn::MulAdd(x1, x1, sum1);
    sum2 = hn::MulAdd(x2, x2, sum2);
    sum3 = hn::MulAdd(x3, x3, sum3);
  }
  ForVectors(dd, i, n, [&](size_t at, auto io) HWY_ATTR {
    const auto v = hn::PromoteTo(dd, io.Load(df, x + at));
    sum0 = hn::MulAdd(v, v, sum0);
  });
  return hn::ReduceSum(dd, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)));
}

void RmsNorm(const float* x, const float* weight, size_t n, float eps, float* y) {
  if (n == 0) return;
  const double sum = SumOfSquares(x, n);
  const double mean = sum / static_cast<double>(n) + static_cast<double>(eps);
  // 0 * inf would make NaN of zeros; x / inf would make a plausible zero of a row that
  // holds an infinity.
  double factor = mean == 0.0 ? 0.0 : 1.0 / std::sqrt(mean);
  if (!std::isfinite(sum)) factor = std::numeric_limits<double>::quiet_NaN();

  const hn::ScalableTag<double> dd;
  const hn::Rebind<float, decltype(dd)> df;
  const auto scale = hn::Set(dd, factor);
  ForVectors(dd, 0, n, [&](size_t i, auto io) HWY_ATTR {
    auto v = hn::Mul(hn::PromoteTo(dd, io.Load(df, x + i)), scale);
    if (weight != nullptr) v = hn::Mul(v, hn::PromoteTo(dd, io.Load(df, weight + i)));
    io.Store(hn::DemoteTo(df, v), df, y + i);
  });
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfbyte {

HWY_EXPORT(RmsNorm);

void RmsNorm(const float* x, const float* weight, size_t n, float eps,
             float* y) noexcept {
  HWY_DYNAMIC_DISPATCH(RmsNorm)(x, weight, n, eps, y);
}

}  // namespace halfbyte
#endif  // HWY_ONCE
