// tests/cpp/kernels/math_test.cc
// exp and tanh of math-inl.h, which no table reaches: this file is compiled per target.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "base/targets.h"  // before any Highway header
#include "test_floats.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/math_test.cc"  // this file, re-included per target
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

void ExpRow(const float* x, size_t n, float* y) {
  const hn::ScalableTag<float> df;
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    io.Store(Exp(df, io.Load(df, x + i)), df, y + i);
  });
}

void TanhRow(const float* x, size_t n, float* y) {
  const hn::ScalableTag<float> df;
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    io.Store(Tanh(df, io.Load(df, x + i)), df, y + i);
  });
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "test_targets.h"

namespace halfbyte {
namespace {

HWY_EXPORT(ExpRow);
HWY_EXPORT(TanhRow);

class MathTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(MathTest);

// A million floats of both signs, evenly over all bit patterns but NaN, and every float
// around 0 and around the ends of the range.
std::vector<float> Floats() {
  std::vector<float> x;
  for (uint64_t bits = 0; bits < 0x7F800000u; bits += 4099) {
    x.push_back(FloatFromBits(static_cast<uint32_t>(bits)));
    x.push_back(-x.back());
  }
  for (float center :
       {0.0f, 88.7228f, -87.3365f, -103.972f, 1.0f, -0.34657f, 0.34657f}) {
    for (int i = -2000; i <= 2000; ++i) {
      x.push_back(center + static_cast<float>(i) * 0x1p-17f);
      x.push_back(center + static_cast<float>(i) * kTiny);
    }
  }
  x.insert(x.end(), {kInf, -kInf});
  return x;
}

// Checks row(x) against f(x) in double, to `ulps` of the nearest float.
template <class Row, class F>
void Check(const Row& row, const F& f, double ulps) {
  const std::vector<float> x = Floats();
  std::vector<float> y(x.size());
  row(x.data(), x.size(), y.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = f(double{x[i]});
    const float nearest = static_cast<float>(want);
    if (nearest == y[i]) continue;  // infinities among them
    // One step above FLT_MAX is infinity.
    const double got = isinf(y[i]) ? copysign(0x1p128, y[i]) : double{y[i]};
    ASSERT_LE(fabs(got - fmin(want, 0x1p128)), ulps * Ulp(fmin(want, 0x1p127)))
        << x[i] << " gave " << y[i] << ", not " << nearest;
  }
}

TEST_P(MathTest, ExpIsWithin2Ulp) {
  Check(
      [](auto... a) {
        HWY_DYNAMIC_DISPATCH(ExpRow)
        (a...);
      },
      [](double x) { return exp(x); }, 2.0);
}

TEST_P(MathTest, TanhIsWithin4Ulp) {
  Check(
      [](auto... a) {
        HWY_DYNAMIC_DISPATCH(TanhRow)
        (a...);
      },
      [](double x) { return tanh(x); }, 4.0);
}

TEST_P(MathTest, SpecialValues) {
  const std::vector<float> x = {0.0f, -0.0f, kInf, -kInf, kNaN, -kNaN};
  std::vector<float> e(x.size()), t(x.size());
  HWY_DYNAMIC_DISPATCH(ExpRow)(x.data(), x.size(), e.data());
  HWY_DYNAMIC_DISPATCH(TanhRow)(x.data(), x.size(), t.data());
  EXPECT_EQ(1.0f, e[0]);
  EXPECT_EQ(1.0f, e[1]);
  EXPECT_EQ(kInf, e[2]);
  EXPECT_EQ(BitsOf(0.0f), BitsOf(e[3]));
  EXPECT_TRUE(isnan(e[4]) && isnan(e[5]));
  EXPECT_EQ(BitsOf(0.0f), BitsOf(t[0]));
  EXPECT_EQ(BitsOf(-0.0f), BitsOf(t[1]));
  EXPECT_EQ(1.0f, t[2]);
  EXPECT_EQ(-1.0f, t[3]);
  EXPECT_TRUE(isnan(t[4]) && isnan(t[5]));
}

}  // namespace
}  // namespace halfbyte
#endif  // HWY_ONCE
