// tests/cpp/kernels/q8_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/q8.h"

#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <vector>

#include "guarded.h"
#include "test_floats.h"
#include "test_targets.h"

namespace halfbyte {
namespace {

class Q8Test : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(Q8Test);

Q8Block Want(const float* x) {
  Q8Block want = {};
  float max = 0.0f;
  for (size_t i = 0; i < Q8Block::kLen; ++i) max = std::max(max, fabsf(x[i]));
  want.d = max / 127.0f;
  for (size_t i = 0; i < Q8Block::kLen && want.d > 0.0f; ++i) {
    const float level = std::clamp(x[i] / want.d, -127.0f, 127.0f);
    want.q[i] = static_cast<int8_t>(nearbyintf(level));
    want.neg_sum -= want.q[i];
    if (i >= Q8Block::kLen / 2) want.neg_sum_last -= want.q[i];
  }
  const float biased_start = kSumBias + 8.0f * static_cast<float>(want.neg_sum);
  want.biased_start = static_cast<int32_t>(BitsOf(biased_start));
  return want;
}

void ExpectEqual(const Q8Block& want, const Q8Block& got) {
  EXPECT_EQ(BitsOf(want.d), BitsOf(got.d));
  for (size_t i = 0; i < Q8Block::kLen; ++i) ASSERT_EQ(want.q[i], got.q[i]) << i;
  EXPECT_EQ(want.neg_sum, got.neg_sum);
  EXPECT_EQ(want.neg_sum_last, got.neg_sum_last);
  EXPECT_EQ(want.biased_start, got.biased_start);
}

TEST_P(Q8Test, CodesEqualTheScalarDefinition) {
  for (float scale : {0.0f, 1.0f, 1e-30f, 1e30f, 0x1p-140f, 0x1p-149f}) {
    for (size_t skew : {0, 4}) {
      constexpr size_t K = 5 * Q8Block::kLen;
      Guarded<float> x(Normal(K, 11, scale), Guard::kAfter, skew);
      x.Set(3, kMaxFloat * std::min(scale, 1.0f));
      std::vector<Q8Block> got(K / Q8Block::kLen);
      QuantizeQ8(x.data(), K, got.data());
      for (size_t b = 0; b < got.size(); ++b) {
        ExpectEqual(Want(x.data() + b * Q8Block::kLen), got[b]);
      }
    }
  }
}

TEST_P(Q8Test, NegativeSumsAreExact) {
  for (size_t K : {0, 1, 15, 64, 65, 191, 65536}) {
    for (int code : {-128, -1, 127}) {
      Guarded<int8_t> codes(std::vector<int8_t>(K, static_cast<int8_t>(code)),
                            Guard::kAfter);
      EXPECT_EQ(-code * static_cast<int32_t>(K), NegativeSum(codes.data(), K)) << K;
    }
    std::vector<int8_t> mixed(K);
    int32_t want = 0;
    for (size_t i = 0; i < K; ++i) {
      mixed[i] = static_cast<int8_t>(static_cast<int>(i * 37 % 256) - 128);
      want -= mixed[i];
    }
    EXPECT_EQ(want, NegativeSum(mixed.data(), K)) << K;
  }
}

// x / d lies exactly between two codes: nearest even.
TEST_P(Q8Test, TiesGoToTheEvenCode) {
  std::vector<float> x(Q8Block::kLen, 0.0f);
  x[0] = 127.0f;  // d = 1
  x[1] = 0.5f;
  x[2] = 1.5f;
  x[3] = -2.5f;
  x[4] = -127.0f;
  Q8Block b;
  QuantizeQ8(x.data(), x.size(), &b);
  EXPECT_EQ(1.0f, b.d);
  EXPECT_EQ((std::vector<int8_t>{127, 0, 2, -2, -127}),
            std::vector<int8_t>(b.q, b.q + 5));
}

// 1070 / 127 = 8.4 units of the smallest float: the step is 8, and 1070 / 8 is above
// 127.
TEST_P(Q8Test, AStepThatIsSubnormalDoesNotOverflowTheCodes) {
  std::vector<float> x(Q8Block::kLen, 0.0f);
  x[0] = -1070.0f * 0x1p-149f;
  x[1] = 1070.0f * 0x1p-149f;
  Q8Block b;
  QuantizeQ8(x.data(), x.size(), &b);
  EXPECT_EQ(8.0f * 0x1p-149f, b.d);
  EXPECT_EQ(-127, b.q[0]);
  EXPECT_EQ(127, b.q[1]);
}

TEST_P(Q8Test, TheErrorIsAtMostHalfAStep) {
  const std::vector<float> x = Normal(64 * Q8Block::kLen, 12);
  std::vector<Q8Block> got(64);
  QuantizeQ8(x.data(), x.size(), got.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const Q8Block& b = got[i / Q8Block::kLen];
    const double error = fabs(double{x[i]} - double{b.d} * b.q[i % Q8Block::kLen]);
    // The quotient is rounded before it is rounded to a code: 127 u steps.
    EXPECT_LE(error, double{b.d} * (0.5 + 127.0 * kU));
  }
}

TEST_P(Q8Test, ABlockThatIsNotFiniteGetsAStepThatIsNaN) {
  for (float bad : {kInf, -kInf, kNaN}) {
    for (size_t at : {0, 17, 31}) {
      std::vector<float> x = Normal(2 * Q8Block::kLen, 13);
      x[Q8Block::kLen + at] = bad;
      Q8Block got[2];
      QuantizeQ8(x.data(), x.size(), got);
      ExpectEqual(Want(x.data()), got[0]);
      EXPECT_TRUE(isnan(got[1].d));
    }
  }
}

}  // namespace
}  // namespace halfbyte
