// tests/cpp/kernels/rope_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/rope.h"

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

class RopeTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(RopeTest);

// Two products and a sum, each rounded once: on every target, and in torch.
TEST_P(RopeTest, TurnsThePairsAndLeavesTheRest) {
  for (size_t head_dim : {2, 4, 6, 8, 14, 30, 32, 34, 64, 66, 126, 128, 256, 512}) {
    const size_t half = head_dim / 2;
    for (size_t pairs : {size_t{0}, size_t{1}, half / 4, half - 1, half}) {
      for (Guard guard : kGuards) {
        const size_t skew = head_dim % 3 * sizeof(float);
        const std::vector<float> in = Normal(head_dim, 1);
        const std::vector<float> cos = Normal(pairs, 2), sin = Normal(pairs, 3);
        Guarded<float> x(in, guard, skew), c(cos, guard, skew), s(sin, guard, skew);
        Rope(x.data(), head_dim, c.data(), s.data(), pairs);
        for (size_t i = 0; i < half; ++i) {
          if (i >= pairs) {
            EXPECT_EQ(in[i], x.At(i));
            EXPECT_EQ(in[half + i], x.At(half + i));
            continue;
          }
          const float a = in[i], b = in[half + i], ci = cos[i], si = sin[i];
          EXPECT_EQ(x.At(i), a * ci - b * si);
          EXPECT_EQ(x.At(half + i), b * ci + a * si);
        }
        EXPECT_TRUE(x.Intact() && c.Intact() && s.Intact());
      }
    }
  }
}

TEST_P(RopeTest, NonFiniteElementsSpoilTheirPairOnly) {
  std::vector<float> x(64, 1.0f);
  const std::vector<float> cos(32, 0.6f), sin(32, 0.8f);
  x[5] = kNaN;
  x[32 + 20] = kInf;
  Rope(x.data(), 64, cos.data(), sin.data(), 32);
  for (size_t i = 0; i < 64; ++i) {
    EXPECT_EQ(i % 32 != 5 && i % 32 != 20, static_cast<bool>(isfinite(x[i]))) << i;
  }
}

// long double has 64 bits here: the product of a 53-bit frequency and a 24-bit position
// is within 2^-63 relative, so the oracle's angle is exact to 1e-12 at 2^24.
TEST(RopeAnglesTest, AreExactUpToPosition2To24) {
  const size_t pairs = 128;
  std::vector<double> inv_freq(pairs);
  for (size_t i = 0; i < pairs; ++i) {
    inv_freq[i] = pow(10000.0, -2.0 * static_cast<double>(i) / 256.0);
  }
  std::vector<float> cos(pairs), sin(pairs);
  for (uint64_t position : {0, 1, 511, 4097, 131071, 1 << 20, (1 << 24) - 1, 1 << 24}) {
    RopeAngles(position, inv_freq.data(), pairs, cos.data(), sin.data());
    for (size_t i = 0; i < pairs; ++i) {
      const long double angle = static_cast<long double>(position) * inv_freq[i];
      EXPECT_NEAR(cos[i], static_cast<double>(cosl(angle)), 1e-7) << position;
      EXPECT_NEAR(sin[i], static_cast<double>(sinl(angle)), 1e-7) << position;
    }
  }
}

TEST(RopeAnglesTest, PositionZeroIsTheIdentity) {
  const double inv_freq[] = {1.0, 0.5, 0.0};
  float cos[3], sin[3];
  RopeAngles(0, inv_freq, 3, cos, sin);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(1.0f, cos[i]);
    EXPECT_EQ(0.0f, sin[i]);
  }
}

}  // namespace
}  // namespace halfbyte
