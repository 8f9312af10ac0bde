// tests/cpp/kernels/vector_ops_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/vector_ops.h"

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

class VectorOpsTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(VectorOpsTest);

struct Rows {
  Rows(size_t n, Guard guard)
      : x_values(Normal(n, 1)),
        y_values(Normal(n, 2)),
        x(x_values, guard, n % 4 * sizeof(float)),
        y(y_values, guard, n % 4 * sizeof(float)) {}
  std::vector<float> x_values, y_values;
  Guarded<float> x, y;
};

template <class Op, class Check>
void ForAllLengths(const Op& op, const Check& check) {
  for (size_t n : kLengths) {
    for (Guard guard : kGuards) {
      Rows r(n, guard);
      op(r.x.data(), n, r.y.data());
      for (size_t i = 0; i < n; ++i) {
        check(r.x_values[i], r.y_values[i], r.y.At(i));
        EXPECT_EQ(r.x_values[i], r.x.At(i));
      }
      EXPECT_TRUE(r.x.Intact() && r.y.Intact());
    }
  }
}

// One operation, rounded once: exact equality with the scalar one.
TEST_P(VectorOpsTest, AddMulAndScaleAreExact) {
  ForAllLengths(Add, [](float x, float y, float got) { EXPECT_EQ(y + x, got); });
  ForAllLengths(Mul, [](float x, float y, float got) { EXPECT_EQ(y * x, got); });
  ForAllLengths([](const float*, size_t n, float* y) { Scale(0.37f, n, y); },
                [](float, float y, float got) { EXPECT_EQ(y * 0.37f, got); });
}

TEST_P(VectorOpsTest, InputMayBeTheOutput) {
  const std::vector<float> x = Normal(77, 3);
  std::vector<float> y = x, z = x;
  Add(y.data(), 77, y.data());
  Mul(z.data(), 77, z.data());
  for (size_t i = 0; i < 77; ++i) {
    EXPECT_EQ(2.0f * x[i], y[i]);
    EXPECT_EQ(x[i] * x[i], z[i]);
  }
}

TEST_P(VectorOpsTest, SpecialValuesFollowIeee) {
  const std::vector<float> x = {kNaN, kInf, kInf, -0.0f, 0x1p-149f, kMaxFloat};
  const std::vector<float> y = {1.0f, -kInf, 0.0f, -0.0f, 0x1p-149f, kMaxFloat};
  std::vector<float> sum = y, product = y;
  Add(x.data(), x.size(), sum.data());
  Mul(x.data(), x.size(), product.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const float want_sum = y[i] + x[i], want_product = y[i] * x[i];
    if (isnan(want_sum)) {
      EXPECT_TRUE(isnan(sum[i]));
    } else {
      EXPECT_EQ(BitsOf(want_sum), BitsOf(sum[i]));
    }
    if (isnan(want_product)) {
      EXPECT_TRUE(isnan(product[i]));
    } else {
      EXPECT_EQ(BitsOf(want_product), BitsOf(product[i]));
    }
  }
}

}  // namespace
}  // namespace halfbyte
