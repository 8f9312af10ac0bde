// tests/cpp/text/token_table_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "text/token_table.h"

#include <gtest/gtest.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

namespace halfbyte {
namespace {

TEST(TokenTableTest, SpellingsMadeToCollideDoNot) {
  // Eight bytes equal to a constant of the hash made it forget all that came before:
  // these took 8 seconds, and take some 10 milliseconds.
  constexpr size_t kNum = 40000;
  const uint64_t forget = 0xD1B54A32D192ED03u;
  std::vector<std::string> spellings;
  for (uint64_t i = 0; i < kNum; ++i) {
    std::string text(16, '\0');
    memcpy(text.data(), &i, 8);
    memcpy(text.data() + 8, &forget, 8);
    spellings.push_back(text);
  }
  const auto begin = std::chrono::steady_clock::now();
  const TokenTable table(
      std::vector<std::string_view>(spellings.begin(), spellings.end()));
  for (size_t i = 0; i < kNum; ++i) {
    ASSERT_EQ(static_cast<int32_t>(i), table.Find(spellings[i]));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
}

}  // namespace
}  // namespace halfbyte
