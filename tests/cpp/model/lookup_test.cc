// tests/cpp/model/lookup_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/lookup.h"

#include <gtest/gtest.h>
#include <stdint.h>

#include <vector>

namespace halfbyte {
namespace {

using Ids = std::vector<int32_t>;

TEST(LookUp, TakesWhatFollowedTheLastThree) {
  EXPECT_EQ(LookUp(Ids{1, 2, 3, 4, 5, 6, 1, 2, 3}, 2), (Ids{4, 5}));
}

TEST(LookUp, TakesTheLatestPlace) {
  EXPECT_EQ(LookUp(Ids{1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3}, 1), (Ids{5}));
}

TEST(LookUp, PrefersThreeToALaterTwo) {
  EXPECT_EQ(LookUp(Ids{1, 2, 3, 4, 0, 2, 3, 5, 1, 2, 3}, 1), (Ids{4}));
}

TEST(LookUp, TakesTwoWhereThreeAreNew) {
  EXPECT_EQ(LookUp(Ids{7, 2, 3, 9, 8, 2, 3}, 3), (Ids{9, 8, 2}));
}

TEST(LookUp, GoesRoundAtTheEnd) {
  EXPECT_EQ(LookUp(Ids{8, 9, 8, 9}, 5), (Ids{8, 9, 8, 9, 8}));
  EXPECT_EQ(LookUp(Ids{7, 7, 7}, 4), (Ids{7, 7, 7, 7}));
}

TEST(LookUp, GuessesNothingOfWhatIsNew) {
  EXPECT_EQ(LookUp(Ids{}, 4), Ids{});
  EXPECT_EQ(LookUp(Ids{1}, 4), Ids{});
  EXPECT_EQ(LookUp(Ids{1, 1}, 4), Ids{});
  EXPECT_EQ(LookUp(Ids{1, 2, 3, 4, 3}, 4), Ids{});  // one token is no ending
  EXPECT_EQ(LookUp(Ids{1, 2, 1, 2}, 0), Ids{});
}

}  // namespace
}  // namespace halfbyte
