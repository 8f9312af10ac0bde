// tests/cpp/test_targets.h
// Runs a test once for every instruction set that was compiled and that this CPU has:
//   class FooTest : public TargetTest {};
//   HALFBYTE_INSTANTIATE_TARGETS(FooTest);
//   TEST_P(FooTest, DoesThis) { ... }
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_TEST_TARGETS_H_
#define HALFBYTE_TEST_TARGETS_H_

#include <gtest/gtest.h>
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <string>

#include "base/targets.h"  // before any Highway header
#include "hwy/highway.h"
#include "kernels/targets.h"

namespace halfbyte {

// GetParam() names what calls through HWY_DYNAMIC_DISPATCH now reach: "AVX3+MADD".
class TargetTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    SetCpuTarget(GetParam());
    hwy::GetChosenTarget().DeInit();  // chosen again by the first call
  }

  void TearDown() override {
    // With a single target compiled, calls are static and nothing is chosen.
    if ((HWY_TARGETS & (HWY_TARGETS - 1)) != 0 && !IsSkipped()) {
      EXPECT_TRUE(hwy::GetChosenTarget().IsInitialized())
          << "the test reached no dispatched function: it need not run per target";
    }
    SetCpuTarget("");
  }
};

inline std::string NameOfTarget(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '+', '_');
  return name;
}

#define HALFBYTE_INSTANTIATE_TARGETS(suite)                             \
  INSTANTIATE_TEST_SUITE_P(Targets, suite,                              \
                           testing::ValuesIn(::halfbyte::CpuTargets()), \
                           ::halfbyte::NameOfTarget)

// Lengths around every vector width up to 64 lanes of any target, and the odd ones
// between: no tail and no unrolling escapes.
inline constexpr size_t kLengths[] = {
    0,  1,  2,  3,  4,  5,  7,  8,  9,   13,  15,  16,  17,  23,  31,  32,  33,  47,
    48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 191, 193, 255, 256, 257, 1000};

}  // namespace halfbyte
#endif  // HALFBYTE_TEST_TARGETS_H_
