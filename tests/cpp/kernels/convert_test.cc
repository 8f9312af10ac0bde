// tests/cpp/kernels/convert_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/convert.h"

#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <vector>

#include "base/half.h"
#include "guarded.h"
#include "test_floats.h"
#include "test_targets.h"

namespace halfbyte {
namespace {

class ConvertTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(ConvertTest);

constexpr size_t kAll16 = 65536;

std::vector<uint16_t> All16() {
  std::vector<uint16_t> all(kAll16);
  for (size_t i = 0; i < kAll16; ++i) all[i] = static_cast<uint16_t>(i);
  return all;
}

TEST_P(ConvertTest, EveryF16AndBF16EqualsTheScalarDefinition) {
  const std::vector<uint16_t> all = All16();
  std::vector<float> f16(kAll16), bf16(kAll16);
  ConvertF16ToF32(all.data(), kAll16, f16.data());
  ConvertBF16ToF32(all.data(), kAll16, bf16.data());
  for (size_t i = 0; i < kAll16; ++i) {
    ASSERT_EQ(BitsOf(F32FromF16(all[i])), BitsOf(f16[i])) << std::hex << i;
    ASSERT_EQ(BitsOf(F32FromBF16(all[i])), BitsOf(bf16[i])) << std::hex << i;
  }
}

// Every upper half of a float with every kind of lower half: below, at and above each
// possible tie, for both formats.
std::vector<float> FloatsAroundTies() {
  std::vector<float> x;
  for (uint32_t upper = 0; upper < kAll16; ++upper) {
    for (uint32_t lower : {0x0000u, 0x0001u, 0x0FFFu, 0x1000u, 0x1001u, 0x2000u,
                           0x3000u, 0x7FFFu, 0x8000u, 0x8001u, 0xF000u, 0xFFFFu}) {
      x.push_back(FloatFromBits(upper << 16 | lower));
    }
  }
  return x;
}

TEST_P(ConvertTest, F32ToF16AndBF16EqualTheScalarDefinition) {
  const std::vector<float> x = FloatsAroundTies();
  std::vector<uint16_t> f16(x.size()), bf16(x.size());
  ConvertF32ToF16(x.data(), x.size(), f16.data());
  ConvertF32ToBF16(x.data(), x.size(), bf16.data());
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(F16FromF32(x[i]), f16[i]) << std::hex << BitsOf(x[i]);
    ASSERT_EQ(BF16FromF32(x[i]), bf16[i]) << std::hex << BitsOf(x[i]);
  }
}

// The scalar definitions themselves, against a search for the nearest value in double.
double ValueOf(uint16_t bits, bool f16) {
  return double{f16 ? F32FromF16(bits) : F32FromBF16(bits)};
}

TEST_P(ConvertTest, TheScalarDefinitionRoundsToNearestEven) {
  for (bool f16 : {true, false}) {
    const uint16_t inf = f16 ? 0x7C00 : 0x7F80;
    for (uint16_t h = 0; h < inf; ++h) {
      const double lo = ValueOf(h, f16);
      // The neighbour of the largest finite value, had the exponent one more step.
      const double hi =
          h + 1 == inf ? 2 * lo - ValueOf(h - 1, f16) : ValueOf(h + 1, f16);
      const double tie = (lo + hi) / 2;
      const auto round = [f16](double v) {
        const float f = static_cast<float>(v);
        return f16 ? F16FromF32(f) : BF16FromF32(f);
      };
      const float tie32 = static_cast<float>(tie);
      ASSERT_EQ(tie, double{tie32});
      ASSERT_EQ(h % 2 == 0 ? h : h + 1, round(tie)) << h;
      ASSERT_EQ(h, round(nextafterf(tie32, 0.0f))) << h;
      ASSERT_EQ(h + 1, round(nextafterf(tie32, kInf))) << h;
      ASSERT_EQ(h, round(lo)) << h;
    }
  }
  // Reaches a dispatched function, so that the fixture knows the target was used.
  float out = 0.0f;
  ConvertF16ToF32("\x00\x3C", 1, &out);
  EXPECT_EQ(1.0f, out);
}

TEST_P(ConvertTest, NaNStaysNaNAndBecomesQuiet) {
  const std::vector<float> x = {FloatFromBits(0x7F800001), FloatFromBits(0xFF800001),
                                FloatFromBits(0x7FBFFFFF), kNaN};
  std::vector<uint16_t> f16(4), bf16(4);
  ConvertF32ToF16(x.data(), 4, f16.data());
  ConvertF32ToBF16(x.data(), 4, bf16.data());
  EXPECT_EQ((std::vector<uint16_t>{0x7E00, 0xFE00, 0x7FFF, 0x7E00}), f16);
  EXPECT_EQ((std::vector<uint16_t>{0x7FC0, 0xFFC0, 0x7FFF, 0x7FC0}), bf16);
}

TEST_P(ConvertTest, EveryLengthStaysInside) {
  for (size_t n : kLengths) {
    for (Guard guard : kGuards) {
      for (size_t skew : {0, 1, 2}) {
        const std::vector<float> values = Normal(n, 1);
        Guarded<float> x(values, guard, 4 * skew), back(n, guard, 4 * skew);
        Guarded<uint16_t> half(n, guard, skew);
        ConvertF32ToF16(x.data(), n, half.data());
        for (size_t i = 0; i < n; ++i) EXPECT_EQ(F16FromF32(values[i]), half.At(i));
        ConvertF16ToF32(half.data(), n, back.data());
        for (size_t i = 0; i < n; ++i) EXPECT_EQ(F32FromF16(half.At(i)), back.At(i));
        ConvertF32ToBF16(x.data(), n, half.data());
        for (size_t i = 0; i < n; ++i) EXPECT_EQ(BF16FromF32(values[i]), half.At(i));
        ConvertBF16ToF32(half.data(), n, back.data());
        for (size_t i = 0; i < n; ++i) EXPECT_EQ(F32FromBF16(half.At(i)), back.At(i));
        EXPECT_TRUE(x.Intact() && half.Intact() && back.Intact());
      }
    }
  }
}

}  // namespace
}  // namespace halfbyte
