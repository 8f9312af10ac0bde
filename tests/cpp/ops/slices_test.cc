// tests/cpp/ops/slices_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/slices.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace halfbyte {
namespace {

size_t RowsOf(const Slices& slices, size_t i) {
  return slices.end(i) - slices.begin(i);
}

TEST(SlicesTest, EveryRowIsInOneSliceOfWholeTiles) {
  for (size_t N : {0, 1, 31, 32, 333, 12288, 262144}) {
    for (size_t threads : {1, 2, 3, 64}) {
      for (size_t K : {size_t{0}, size_t{1536}, size_t{1} << 40}) {
        for (size_t tokens : {0, 1, 8, 9, 512}) {
          const Slices slices(N, K, 864, tokens, threads);
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
}

// In whole tiles, and 16 KiB or more.
TEST(SlicesTest, NoneIsLongerThanAThreadsShareOfWhatItsRoundFound) {
  constexpr size_t kN = 12288, kThreads = 2;
  for (size_t tokens : {1, 32}) {
    const Slices slices(kN, 1536, 864, tokens, kThreads);
    for (size_t i = 0; i < slices.size(); ++i) {
      const size_t share = (kN - slices.begin(i / kThreads * kThreads)) / kThreads;
      EXPECT_LT(RowsOf(slices, i), share + Slices::kTileRows) << i;
    }
    EXPECT_LE(RowsOf(slices, slices.size() - 1), 4 * Slices::kTileRows);
  }
}

TEST(SlicesTest, RoundsOfFewTokensAreFew) {
  const Slices few(12288, 1536, 864, 8, 4), prompt(12288, 1536, 864, 9, 4);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(RowsOf(few, i), 12288u * 7 / 8 / 4);
    EXPECT_EQ(RowsOf(prompt, i), 12288u / 2 / 4);
  }
  EXPECT_EQ(RowsOf(few, 4), 352u);  // 12288 / 8 * 7 / 8 / 4, in whole tiles
  EXPECT_EQ(RowsOf(prompt, 4), 12288u / 4 / 4);
}

TEST(SlicesTest, OneSliceAThreadIfThatIsLittle) {
  EXPECT_EQ(Slices(256, 1536, 768, 1, 2).size(), 2u);  // 96 KiB each
  EXPECT_GT(Slices(512, 1536, 768, 1, 2).size(), 2u);
  EXPECT_EQ(Slices(12288, 1536, 864, 1, 1).size(), 1u);
}

TEST(SlicesTest, NoSliceOfALongPromptKeepsTheCallerAway) {
  constexpr size_t kK = 5376, kTokens = 512, kMost = size_t{1} << 30;
  const Slices slices(21504, kK, 3024, kTokens, 1);
  for (size_t i = 0; i < slices.size(); ++i) {
    EXPECT_LE((RowsOf(slices, i) - Slices::kTileRows) * kK * kTokens, kMost) << i;
  }
}

}  // namespace
}  // namespace halfbyte
