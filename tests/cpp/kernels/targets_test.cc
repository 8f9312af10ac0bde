// tests/cpp/kernels/targets_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/targets.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

namespace halfbyte {
namespace {

class TargetsTest : public testing::Test {
 protected:
  void TearDown() override { SetCpuTarget(""); }
};

TEST_F(TargetsTest, IsTheOneThatWasNamed) {
  for (const std::string& name : CpuTargets()) {
    SetCpuTarget(name);
    EXPECT_EQ(CpuTarget(), name);
  }
}

TEST_F(TargetsTest, NamesTheDotThatRuns) {
  for (const std::string& name : CpuTargets()) {
    SetCpuTarget(name);
    const size_t plus = name.find('+');
    if (plus == std::string::npos) continue;
    EXPECT_EQ(CpuDot(), name.substr(plus + 1));
  }
}

TEST_F(TargetsTest, ShortNameIsTheFirstOfTwo) {
  std::string before;
  for (const std::string& name : CpuTargets()) {
    const std::string target = name.substr(0, name.find('+'));
    if (target != before) {
      SetCpuTarget(target);
      EXPECT_EQ(CpuTarget(), name);
    }
    before = target;
  }
}

TEST_F(TargetsTest, RefusesWhatIsNotThere) {
  EXPECT_THROW(SetCpuTarget("NEON+VNNI"), Error);
  EXPECT_THROW(SetCpuTarget("+"), Error);
}

}  // namespace
}  // namespace halfbyte
