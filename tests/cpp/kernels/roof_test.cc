// tests/cpp/kernels/roof_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/roof.h"

#include <gtest/gtest.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <random>
#include <vector>

#include "guarded.h"
#include "test_targets.h"

namespace halfbyte {
namespace {

class RoofTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(RoofTest);

std::vector<uint8_t> RandomBytes(size_t n) {
  std::mt19937 random(static_cast<uint32_t>(n));
  std::vector<uint8_t> bytes(n);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
  return bytes;
}

// The definition: words in the order of the machine, the last one filled up with zeros.
uint64_t XorOfWords(const std::vector<uint8_t>& bytes) {
  uint64_t all = 0;
  for (size_t i = 0; i < bytes.size(); i += sizeof(uint64_t)) {
    uint64_t word = 0;
    memcpy(&word, &bytes[i], std::min(sizeof(word), bytes.size() - i));
    all ^= word;
  }
  return all;
}

// One bit that is read twice or not at all changes the sum: every byte counts once.
TEST_P(RoofTest, ReadsEveryByteOnceAndNoneOutside) {
  for (size_t n : kLengths) {
    for (size_t more : {0, 4096}) {  // whole turns of the loop, with every tail
      const std::vector<uint8_t> bytes = RandomBytes(n + more);
      for (Guard guard : kGuards) {
        Guarded<uint8_t> data(bytes, guard, n % 3);
        for (size_t num_streams : {1, 2, 4}) {
          EXPECT_EQ(XorOfWords(bytes), ReadAll(data.data(), bytes.size(), num_streams))
              << bytes.size() << " bytes, " << num_streams << " streams";
        }
      }
    }
  }
}

// Twelve sums of FMAs, a vector of counters each; runs of eight dot products of four:
// the total is a multiple of all, and grows with the rounds in the same proportion.
TEST_P(RoofTest, CountsEveryMultiplyAdd) {
  const uint64_t dots = CountDots(1), fmas = CountFmas(1);
  EXPECT_EQ(0u, fmas % 12);
  EXPECT_EQ(0u, dots % (fmas / 12 * 8 * 4));
  EXPECT_EQ(0u, fmas / 12 & (fmas / 12 - 1)) << "no number of lanes: " << fmas / 12;
  for (size_t rounds : {size_t{0}, size_t{2}, size_t{1000}, kMaxRoofRounds}) {
    EXPECT_EQ(rounds * dots, CountDots(rounds));
    EXPECT_EQ(rounds * fmas, CountFmas(rounds));
  }
}

}  // namespace
}  // namespace halfbyte
