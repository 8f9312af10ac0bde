// tests/cpp/kernels/softmax_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/softmax.h"

#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "guarded.h"
#include "test_floats.h"
#include "test_targets.h"

namespace halfbyte {
namespace {

class SoftmaxTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(SoftmaxTest);

double Max(const std::vector<float>& x) {
  double max = -kInf;
  for (float v : x) max = std::max(max, double{v});
  return max;
}

double SumOfExp(const std::vector<float>& x) {
  const double max = Max(x);
  double sum = 0.0;
  for (float v : x) sum += exp(double{v} - max);
  return sum;
}

// x - max is rounded once, u |d| of exp's argument, and exp itself is within 2 ulp =
// 4u: each term is within (4 + |d|) u. The sum weighs those by e^d, and e^d |d| <= 0.37
// sums to less than n_eff: the largest |d| that matters there is taken from the data.
// Scale and product add 2u. Subnormal terms add their own rounding.
double Bound(double y, double d, double weighted_d) {
  return y * (4.0 + d + 4.0 + weighted_d + 2.0) * kU * (1.0 + 1e-5) + 2 * kTiny;
}

void Check(const std::vector<float>& x, Guard guard, size_t skew) {
  const size_t n = x.size();
  Guarded<float> in(x, guard, skew), out(n, guard, skew);
  Softmax(in.data(), n, out.data());
  const double max = Max(x), sum = SumOfExp(x);
  double weighted_d = 0.0;  // mean of |d| under the softmax
  for (float v : x) weighted_d += exp(double{v} - max) / sum * (max - double{v});
  for (size_t i = 0; i < n; ++i) {
    const double d = max - double{x[i]}, y = exp(-d) / sum;
    ASSERT_NEAR(out.At(i), y, Bound(y, d, weighted_d)) << n << " at " << i;
  }
  EXPECT_TRUE(in.Intact() && out.Intact());

  // The logarithm of a sum that is within `relative` moves by as much, absolutely.
  const double relative = (4.0 + weighted_d) * kU * (1.0 + 1e-5) + 1e-12;
  if (n != 0) {
    EXPECT_NEAR(LogSumExp(in.data(), n), max + log(sum), relative + fabs(max) * 1e-15);
  }
}

TEST_P(SoftmaxTest, StaysInsideTheBoundAtEveryLength) {
  for (size_t n : kLengths) {
    for (Guard guard : kGuards) {
      for (float scale : {0.1f, 1.0f, 30.0f, 1000.0f}) {
        Check(Normal(n, 1, scale), guard, n % 3 * sizeof(float));
      }
    }
  }
}

TEST_P(SoftmaxTest, AVocabularyOfNearlyEqualLogits) {
  Check(Normal(262144, 2, 0.01f), Guard::kAfter, 0);
}

TEST_P(SoftmaxTest, InPlaceIsTheSame) {
  const std::vector<float> x = Normal(77, 3);
  std::vector<float> y(77), z = x;
  Softmax(x.data(), 77, y.data());
  Softmax(z.data(), 77, z.data());
  EXPECT_EQ(y, z);
}

TEST_P(SoftmaxTest, EqualInputsGiveEqualOutputs) {
  for (float value : {0.0f, -0.0f, 3.7f, -1e30f, kMaxFloat, 0x1p-149f}) {
    for (size_t n : kLengths) {
      std::vector<float> x(n, value), y(n);
      Softmax(x.data(), n, y.data());
      for (float v : y) EXPECT_EQ(1.0f / static_cast<float>(n), v) << n;
    }
  }
}

TEST_P(SoftmaxTest, LargeLogitsNeverOverflow) {
  std::vector<float> x = {kMaxFloat, 0.0f, -kMaxFloat}, y(3);
  Softmax(x.data(), 3, y.data());
  EXPECT_EQ((std::vector<float>{1.0f, 0.0f, 0.0f}), y);
  EXPECT_EQ(double{kMaxFloat}, LogSumExp(x.data(), 3));
}

TEST_P(SoftmaxTest, MaskedElementsAreZeroAndAMaskedRowIsZeros) {
  for (size_t n : kLengths) {
    std::vector<float> x(n, -kInf), y(n, 1.0f);
    Softmax(x.data(), n, y.data());
    for (float v : y) EXPECT_EQ(0.0f, v);
    EXPECT_EQ(-kInf, LogSumExp(x.data(), n));
    if (n == 0) continue;
    x[n / 2] = 5.0f;
    Softmax(x.data(), n, y.data());
    for (size_t i = 0; i < n; ++i) EXPECT_EQ(i == n / 2 ? 1.0f : 0.0f, y[i]);
    EXPECT_EQ(5.0, LogSumExp(x.data(), n));
  }
}

TEST_P(SoftmaxTest, NaNAndPositiveInfinityReachEveryElement) {
  for (float rest : {1.0f, -kInf}) {
    for (float bad : {kNaN, -kNaN, kInf}) {
      for (size_t n : {1, 2, 9, 33, 130}) {
        for (size_t at : {size_t{0}, n / 2, n - 1}) {
          std::vector<float> x(n, rest), y(n);
          x[at] = bad;
          Softmax(x.data(), n, y.data());
          for (float v : y) EXPECT_TRUE(isnan(v)) << n << " at " << at;
          EXPECT_TRUE(isnan(LogSumExp(x.data(), n)));
        }
      }
    }
  }
}

}  // namespace
}  // namespace halfbyte
