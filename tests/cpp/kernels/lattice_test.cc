// tests/cpp/kernels/lattice_test.cc
// What is found is tested in Python, against a NumPy twin; here the groups that the
// formats are specified by, on every target, and that nothing else is touched.
// SPDX-License-Identifier: Apache-2.0
#include "kernels/lattice.h"

#include <gtest/gtest.h>
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "base/half.h"
#include "guarded.h"
#include "kernels/format_kernels.h"
#include "kernels/repair.h"
#include "test_targets.h"

namespace halfbyte {
namespace {

class LatticeTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(LatticeTest);

// bf16(step * level) with levels -half .. half - 1 in turn, every one of them.
std::vector<uint16_t> Weights(size_t len, int half, float step) {
  std::vector<uint16_t> w(len);
  for (size_t i = 0; i < len; ++i) {
    const int level =
        static_cast<int>((5 * i) % (2 * static_cast<size_t>(half))) - half;
    w[i] = BF16FromF32(step * static_cast<float>(level));
  }
  return w;
}

// How many weights the blocks give back, once rounded to bf16.
size_t CountSame(Format format, const std::vector<uint16_t>& w, const uint8_t* blocks,
                 float scale) {
  std::vector<float> values(w.size());
  KernelsFor(format).decode_row_ref(blocks, w.size(), values.data());
  size_t same = 0;
  for (size_t i = 0; i < w.size(); ++i) same += BF16FromF32(scale * values[i]) == w[i];
  return same;
}

TEST_P(LatticeTest, BlocksGiveTheirWeightsBack) {
  for (const Format format : {Format::kQ4_0, Format::kQ8_0}) {
    for (const Guard guard : kGuards) {
      const std::vector<uint16_t> w = Weights(96, 8, 0.0123f);
      Guarded<uint16_t> in(w, guard, 1);  // at an odd address
      Guarded<uint8_t> blocks(RowBytes(format, 96), guard);
      OnLattice found[3];
      RecoverBlocks(format, in.data(), 96, blocks.data(), found);
      EXPECT_TRUE(blocks.Intact());
      for (const OnLattice kind : found) EXPECT_EQ(OnLattice::kExact, kind);
      EXPECT_EQ(96u, CountSame(format, w, blocks.data(), 1.0f));
    }
  }
}

// The nearest that f16 has, 2^-24 and 65504, would give but the zeros among them.
TEST_P(LatticeTest, StepsBeyondThoseOfTheFormatAreNone) {
  for (const float step : {0x1p-40f, 0x1p30f}) {
    const std::vector<uint16_t> w = Weights(32, 8, step);
    std::vector<uint8_t> blocks(RowBytes(Format::kQ4_0, 32)), usual(blocks.size());
    OnLattice found;
    RecoverBlocks(Format::kQ4_0, w.data(), 32, blocks.data(), &found);
    EXPECT_EQ(OnLattice::kNo, found) << step;
    std::vector<float> values(32);
    for (size_t i = 0; i < 32; ++i) values[i] = F32FromBF16(w[i]);
    KernelsFor(Format::kQ4_0).encode_row_ref(values.data(), 32, usual.data());
    EXPECT_EQ(usual, blocks) << step;
  }
}

// Not dispatched by target.
TEST(RowLatticeTest, RowsGiveTheirWeightsBack) {
  for (const auto& [format, half] :
       {std::pair(Format::kW2, 2), {Format::kW4, 8}, {Format::kW8, 128}}) {
    ASSERT_TRUE(HasRowLattice(format));
    for (const Guard guard : kGuards) {
      const std::vector<uint16_t> w = Weights(320, half, 0.0123f);
      Guarded<uint16_t> in(w, guard);
      Guarded<uint8_t> blocks(RowBytes(format, 320), guard);
      float scale = 0.0f;
      EXPECT_EQ(OnLattice::kExact,
                RecoverRow(format, in.data(), 320, blocks.data(), &scale));
      EXPECT_TRUE(blocks.Intact());
      EXPECT_EQ(320u, CountSame(format, w, blocks.data(), scale));
    }
  }
}

TEST(RowLatticeTest, OtherRowsAreLeftAlone) {
  std::vector<uint16_t> w = Weights(64, 8, 0.0123f);
  for (const uint16_t other : {0x3F81, 0x7F80, 0x7FC0}) {  // 1.0078, infinite, NaN
    w[40] = other;
    std::vector<uint8_t> blocks(RowBytes(Format::kW4, 64), 0xAB);
    float scale = -1.0f;
    EXPECT_EQ(other == 0x3F81 ? OnLattice::kNo : OnLattice::kNotFinite,
              RecoverRow(Format::kW4, w.data(), 64, blocks.data(), &scale));
    EXPECT_EQ(std::vector<uint8_t>(blocks.size(), 0xAB), blocks);
    EXPECT_EQ(-1.0f, scale);
  }
}

TEST(RepairTest, TouchesNothingElseAndWorksInPlace) {
  // The block of formats.md's group whose extreme is a trained +7, thrice.
  constexpr uint8_t kBlock[18] = {0x80, 0xa1, 0xf0, 0xbb, 0x66, 0x00, 0xdd, 0x77, 0x11,
                                  0xee, 0x88, 0x22, 0xff, 0x99, 0x33, 0xff, 0xaa, 0x55};
  for (const Guard guard : kGuards) {
    Guarded<uint8_t> w(3 * sizeof(kBlock), guard);
    for (size_t i = 0; i < w.size(); ++i) w.Set(i, kBlock[i % sizeof(kBlock)]);
    Repair done[3];
    RepairQ4_0(w.data(), 96, w.data(), done);
    EXPECT_TRUE(w.Intact());
    for (size_t b = 0; b < 3; ++b) {
      EXPECT_EQ(Repair::kAmbiguous, done[b]);
      // 8/7 of the step, and its levels 7, -3, 2 ...
      EXPECT_EQ(0x2249, LoadU16(w.data() + 18 * b));
      EXPECT_EQ(15, w.At(18 * b + 2) & 15);
      EXPECT_EQ(5, w.At(18 * b + 3) & 15);
    }
  }
}

}  // namespace
}  // namespace halfbyte
