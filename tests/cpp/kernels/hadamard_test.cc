// tests/cpp/kernels/hadamard_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/hadamard.h"

#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>

#include <bit>
#include <vector>

#include "guarded.h"
#include "test_floats.h"
#include "test_targets.h"

namespace halfbyte {
namespace {

class HadamardTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(HadamardTest);

constexpr size_t kRowLens[] = {2,  4,  6,  8,   12,  16,  24,  32,  48,
                               64, 80, 96, 128, 160, 256, 320, 512, 1024};

std::vector<double> Definition(const std::vector<float>& x) {
  const size_t len = HadamardLen(x.size());
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t begin = i / len * len;
    for (size_t j = 0; j < len; ++j) {
      const bool odd = std::popcount((i - begin) & j) % 2 != 0;
      y[i] += odd ? -double{x[begin + j]} : double{x[begin + j]};
    }
    y[i] /= sqrt(static_cast<double>(len));
  }
  return y;
}

// log2(len) sums, the scale and its product: each rounds what is at most the sum of all
// magnitudes.
TEST_P(HadamardTest, EqualsTheDefinition) {
  for (size_t n : kRowLens) {
    for (Guard guard : kGuards) {
      const std::vector<float> x = Normal(n, 5);
      Guarded<float> row(x, guard);
      Hadamard(row.data(), n);
      ASSERT_TRUE(row.Intact());
      const std::vector<double> want = Definition(x);
      const size_t len = HadamardLen(n);
      for (size_t i = 0; i < n; ++i) {
        double sum = 0.0;
        for (size_t j = 0; j < len; ++j) sum += fabs(double{x[i / len * len + j]});
        const double bound =
            (log2(len) + 2.0) * kU * sum / sqrt(static_cast<double>(len));
        ASSERT_NEAR(want[i], row.At(i), bound) << n;
      }
    }
  }
}

TEST_P(HadamardTest, BitsAreThoseOfPlainSums) {
  for (size_t n : kRowLens) {
    const std::vector<float> x = Normal(n, 6);
    const size_t len = HadamardLen(n);
    std::vector<float> want = x;
    for (size_t stage = 1; stage < len; stage *= 2) {
      const std::vector<float> from = want;
      for (size_t begin = 0; begin < n; begin += len) {
        for (size_t i = 0; i < len / 2; ++i) {
          const float a = from[begin + 2 * i], b = from[begin + 2 * i + 1];
          want[begin + i] = a + b;
          want[begin + len / 2 + i] = a - b;
        }
      }
    }
    const auto scale = static_cast<float>(1.0 / sqrt(static_cast<double>(len)));
    std::vector<float> got = x;
    Hadamard(got.data(), n);
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(want[i] * scale, got[i]) << n;
  }
}

TEST(HadamardLenTest, IsTheLargestPowerOfTwoThatDivides) {
  EXPECT_EQ(1u, HadamardLen(1));
  EXPECT_EQ(1u, HadamardLen(7));
  EXPECT_EQ(32u, HadamardLen(96));
  EXPECT_EQ(256u, HadamardLen(256));
  EXPECT_EQ(512u, HadamardLen(1024));
}

TEST(HadamardLenTest, OddRowsStay) {
  std::vector<float> x = {1.0f, 2.0f, 3.0f};
  Hadamard(x.data(), x.size());
  EXPECT_EQ((std::vector<float>{1.0f, 2.0f, 3.0f}), x);
}

}  // namespace
}  // namespace halfbyte
