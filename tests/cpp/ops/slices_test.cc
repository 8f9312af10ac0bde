// tests/cpp/ops/slices_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/slices.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace halfbyte {
namespace {

TEST(SlicesTest, EveryRowIsInOneSliceOfWholeTiles) {
  for (size_t N : {0, 1, 31, 32, 333, 12288, 262144}) {
    for (size_t threads : {1, 2, 3, 64}) {
      for (size_t row_macs : {size_t{0}, size_t{1536}, size_t{1} << 40}) {
        const Slices slices(N, 864, row_macs, threads);
        size_t next = 0;
        for (size_t i = 0; i < slices.size(); ++i) {
          EXPECT_EQ(slices.begin(i), next);
          EXPECT_EQ(next % Slices::kTileRows, 0u);
          EXPECT_LT(next, slices.end(i));
          next = slices.end(i);
        }
        EXPECT_EQ(next, N);
      }
    }
  }
}

// Until less than 16 KiB are left, of which nobody gets less.
TEST(SlicesTest, NoneIsLongerThanWhatIsLeftForAThread) {
  constexpr size_t kN = 12288, kRowBytes = 864, kThreads = 2;
  const Slices slices(kN, kRowBytes, 1536, kThreads);
  for (size_t i = 0; i < slices.size(); ++i) {
    const size_t rows = slices.end(i) - slices.begin(i), left = kN - slices.begin(i);
    EXPECT_LE(rows, std::max(left / kThreads, Slices::kTileRows)) << i;
  }
  const size_t last = slices.size() - 1;
  EXPECT_EQ(slices.end(last) - slices.begin(last), Slices::kTileRows);
}

TEST(SlicesTest, OneSliceAThreadIfThatIsLittle) {
  EXPECT_EQ(Slices(256, 768, 1536, 2).size(), 2u);  // 96 KiB each
  EXPECT_GT(Slices(512, 768, 1536, 2).size(), 2u);
  EXPECT_EQ(Slices(12288, 864, 1536, 1).size(), 1u);
}

TEST(SlicesTest, NoSliceOfALongPromptKeepsTheCallerAway) {
  constexpr size_t kRowMacs = size_t{5376} * 512, kMost = size_t{1} << 30;
  const Slices slices(21504, 3024, kRowMacs, 1);
  for (size_t i = 0; i < slices.size(); ++i) {
    const size_t rows = slices.end(i) - slices.begin(i);
    EXPECT_LE((rows - Slices::kTileRows) * kRowMacs, kMost) << i;
  }
}

}  // namespace
}  // namespace halfbyte
