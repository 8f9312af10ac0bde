// tests/cpp/kernels/activation_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation.h"

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

class ActivationTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(ActivationTest);

constexpr double kSqrt2OverPi = 0.79788456080286535588;

double TwoU(double g) { return 2.0 * kSqrt2OverPi * (g + 0.044715 * g * g * g); }

// In double; the textbook form's cancellation costs it nothing here since e^2u / (1 +
// e^2u) has none.
double Gelu(double g) {
  const double e = exp(-fabs(TwoU(g)));
  return g * (g < 0 ? e : 1.0) / (1.0 + e);
}

// 2u: two constants (u/2 each), g^2, product, sum, product: 5.5u at most, which exp
// turns into 5.5u |2u|. exp: 2 ulp = 4u. Sum, quotient and two products: 4u. Results
// and factors below the normal range lose up to the smallest subnormal, times what
// follows.
double GeluBound(double g, double up) {
  const double want = fabs(Gelu(g) * up);
  return want * (8.0 + 5.5 * fabs(TwoU(g))) * kU * 1.001 +
         kTiny * (1.0 + 2.0 * fabs(up) * (1.0 + fabs(g)));
}

TEST_P(ActivationTest, GeluMulStaysInsideTheBoundAtEveryLength) {
  for (size_t n : kLengths) {
    for (Guard guard : kGuards) {
      const size_t skew = n % 4 * sizeof(float);
      const std::vector<float> g = Normal(n, 1, 4.0f), up = Normal(n, 2);
      Guarded<float> gate(g, guard, skew), upper(up, guard, skew), y(n, guard, skew);
      GeluMul(gate.data(), upper.data(), n, y.data());
      for (size_t i = 0; i < n; ++i) {
        ASSERT_NEAR(y.At(i), Gelu(g[i]) * up[i], GeluBound(g[i], up[i])) << g[i];
      }
      EXPECT_TRUE(gate.Intact() && upper.Intact() && y.Intact());
    }
  }
}

TEST_P(ActivationTest, GeluMulOverTheWholeRange) {
  std::vector<float> g;
  for (int i = -40000; i <= 40000; ++i) g.push_back(static_cast<float>(i) / 2048.0f);
  for (int e = -149; e < 128; ++e) {
    for (float m : {1.0f, -1.0f, 1.7f, -1.3f}) g.push_back(ldexpf(m, e));
  }
  const std::vector<float> up(g.size(), 1.0f);
  std::vector<float> y(g.size());
  GeluMul(g.data(), up.data(), g.size(), y.data());
  for (size_t i = 0; i < g.size(); ++i) {
    ASSERT_NEAR(y[i], Gelu(g[i]), GeluBound(g[i], 1.0)) << g[i];
  }
}

TEST_P(ActivationTest, GeluMulMayOverwriteEitherInput) {
  const std::vector<float> g = Normal(77, 3), up = Normal(77, 4);
  std::vector<float> y(77), on_gate = g, on_up = up;
  GeluMul(g.data(), up.data(), 77, y.data());
  GeluMul(on_gate.data(), up.data(), 77, on_gate.data());
  GeluMul(g.data(), on_up.data(), 77, on_up.data());
  EXPECT_EQ(y, on_gate);
  EXPECT_EQ(y, on_up);
}

TEST_P(ActivationTest, GeluMulAtTheEdges) {
  const std::vector<float> g = {0.0f, -0.0f, kInf,      -kInf,
                                kNaN, 1.0f,  kMaxFloat, -kMaxFloat};
  const std::vector<float> up = {2.0f, 2.0f, 2.0f, 2.0f, 2.0f, kNaN, 1.0f, 1.0f};
  std::vector<float> y(g.size());
  GeluMul(g.data(), up.data(), g.size(), y.data());
  EXPECT_EQ(BitsOf(0.0f), BitsOf(y[0]));
  EXPECT_EQ(BitsOf(-0.0f), BitsOf(y[1]));
  EXPECT_EQ(kInf, y[2]);
  EXPECT_TRUE(isnan(y[3]));  // -inf * 0, as in the formula
  EXPECT_TRUE(isnan(y[4]));
  EXPECT_TRUE(isnan(y[5]));
  EXPECT_EQ(kMaxFloat, y[6]);
  EXPECT_EQ(0.0f, y[7]);
}

// The reciprocal and its product put 2u on tanh's argument, and x tanh'(x) / tanh(x) <=
// 1; tanh is within 4 ulp = 8u, the last product adds u. x / cap below the normal range
// loses half the smallest subnormal, times cap.
double SoftcapBound(double want, double cap) {
  return fabs(want) * 11.0 * kU * 1.001 + kTiny * (1.0 + cap);
}

TEST_P(ActivationTest, SoftcapStaysInsideTheBound) {
  for (float cap : {30.0f, 50.0f, 1.0f, 1e-3f}) {
    for (size_t n : kLengths) {
      for (Guard guard : kGuards) {
        const std::vector<float> in = Normal(n, 5, n % 2 == 0 ? cap : 0.01f * cap);
        Guarded<float> x(in, guard, n % 4 * sizeof(float));
        Softcap(x.data(), n, cap);
        for (size_t i = 0; i < n; ++i) {
          const double want = double{cap} * tanh(double{in[i]} / double{cap});
          ASSERT_NEAR(x.At(i), want, SoftcapBound(want, cap)) << in[i];
        }
        EXPECT_TRUE(x.Intact());
      }
    }
  }
}

TEST_P(ActivationTest, SoftcapAtTheEdges) {
  std::vector<float> x = {0.0f, -0.0f, kInf, -kInf, kNaN, kMaxFloat, -1e10f};
  Softcap(x.data(), x.size(), 30.0f);
  EXPECT_EQ(BitsOf(0.0f), BitsOf(x[0]));
  EXPECT_EQ(BitsOf(-0.0f), BitsOf(x[1]));
  EXPECT_EQ(30.0f, x[2]);
  EXPECT_EQ(-30.0f, x[3]);
  EXPECT_TRUE(isnan(x[4]));
  EXPECT_EQ(30.0f, x[5]);
  EXPECT_EQ(-30.0f, x[6]);
}

}  // namespace
}  // namespace halfbyte
