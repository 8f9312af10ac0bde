// tests/cpp/kernels/rms_norm_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/rms_norm.h"

#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <vector>

#include "guarded.h"
#include "test_floats.h"
#include "test_targets.h"

namespace halfbyte {
namespace {

class RmsNormTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(RmsNormTest);

std::vector<double> Want(const std::vector<float>& x, const float* weight, float eps) {
  double sum = 0.0;
  for (float v : x) sum += double{v} * double{v};
  const double inv = 1.0 / sqrt(sum / static_cast<double>(x.size()) + double{eps});
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = double{x[i]} * inv * (weight != nullptr ? double{weight[i]} : 1.0);
  }
  return y;
}

// Kernel and reference both work in double (u_d = 2^-53): the sums of n positive terms
// differ by 2 n u_d relative, the root halves that, the other operations add less than
// 8 u_d. Rounding to f32 adds u, or half the smallest subnormal.
double Bound(double want, size_t n) {
  const double relative = kU + (static_cast<double>(n) + 8.0) * 0x1p-53;
  return fabs(want) * relative * (1.0 + kU) + kTiny / 2;
}

TEST_P(RmsNormTest, StaysInsideTheBoundAtEveryLength) {
  for (size_t n : kLengths) {
    for (Guard guard : kGuards) {
      for (size_t skew : {0, 4, 8}) {
        const std::vector<float> values = Normal(n, 1, 3.0f),
                                 weights = Normal(n, 2, 5.0f);
        Guarded<float> x(values, guard, skew), w(weights, guard, skew);
        Guarded<float> y(n, guard, skew);
        for (bool weighted : {false, true}) {
          RmsNorm(x.data(), weighted ? w.data() : nullptr, n, 1e-6f, y.data());
          const auto want = Want(values, weighted ? weights.data() : nullptr, 1e-6f);
          for (size_t i = 0; i < n; ++i) {
            ASSERT_NEAR(y.At(i), want[i], Bound(want[i], n)) << n << " at " << i;
          }
        }
        EXPECT_TRUE(y.Intact() && x.Intact() && w.Intact());
      }
    }
  }
}

TEST_P(RmsNormTest, InPlaceIsTheSame) {
  const std::vector<float> x = Normal(77, 3), w = Normal(77, 4);
  std::vector<float> y(77), z = x;
  RmsNorm(x.data(), w.data(), 77, 1e-6f, y.data());
  RmsNorm(z.data(), w.data(), 77, 1e-6f, z.data());
  EXPECT_EQ(y, z);
}

TEST_P(RmsNormTest, ZerosGiveZerosWithAndWithoutEps) {
  for (float eps : {0.0f, 1e-6f}) {
    std::vector<float> x(19, 0.0f), y(19, 1.0f);
    x[3] = -0.0f;
    RmsNorm(x.data(), nullptr, 19, eps, y.data());
    for (size_t i = 0; i < 19; ++i) {
      EXPECT_EQ(0.0f, y[i]);
      EXPECT_EQ(i == 3, static_cast<bool>(signbit(y[i])));
    }
  }
}

// Squares of these overflow f32, or vanish in it.
TEST_P(RmsNormTest, TheWholeRangeOfFloatsIsNormalised) {
  for (float scale : {kMaxFloat, 1e30f, 1e-30f, 0x1p-149f}) {
    for (size_t n : {1, 5, 64, 131}) {
      std::vector<float> x(n), y(n);
      for (size_t i = 0; i < n; ++i) x[i] = i % 3 == 0 ? -scale : scale;
      RmsNorm(x.data(), nullptr, n, 0.0f, y.data());
      const auto want = Want(x, nullptr, 0.0f);
      for (size_t i = 0; i < n; ++i) EXPECT_NEAR(y[i], want[i], Bound(want[i], n));
    }
  }
}

TEST_P(RmsNormTest, ANonFiniteElementMakesTheRowNaN) {
  for (float bad : {kInf, -kInf, kNaN}) {
    for (size_t at : {0, 16, 40}) {
      std::vector<float> x = Normal(41, 5), y(41);
      x[at] = bad;
      RmsNorm(x.data(), nullptr, 41, 1e-6f, y.data());
      for (float v : y) EXPECT_TRUE(isnan(v));
    }
  }
}

}  // namespace
}  // namespace halfbyte
