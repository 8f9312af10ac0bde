// tests/cpp/io/cursor_test.cc
// The bounds and the arithmetic that every parser stands on.
// SPDX-License-Identifier: Apache-2.0
#include "io/cursor.h"

#include <gtest/gtest.h>

#include <limits>
#include <string_view>

#include "base/checked.h"

namespace halfbyte {
namespace {

constexpr uint8_t kBytes[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};

TEST(Cursor, ReadsLittleEndianUpToTheLastByte) {
  Cursor cursor(kBytes);
  uint32_t a = 0;
  ASSERT_TRUE(cursor.Read(&a));
  EXPECT_EQ(a, 0x04030201u);
  uint8_t b = 0;
  ASSERT_TRUE(cursor.Read(&b));
  EXPECT_EQ(b, 5u);
  ASSERT_TRUE(cursor.Read(&a));
  EXPECT_EQ(a, 0x09080706u);
  EXPECT_EQ(cursor.remaining(), 0u);
  EXPECT_FALSE(cursor.Read(&b));
}

TEST(Cursor, AFailedReadChangesNothing) {
  Cursor cursor(kBytes);
  std::string_view text;
  ASSERT_TRUE(cursor.Take(2, &text));
  uint64_t number = 77;
  text = "old";
  std::span<const uint8_t> bytes;
  EXPECT_FALSE(cursor.Read(&number));
  for (const uint64_t n : {uint64_t{8}, UINT64_MAX - 1, UINT64_MAX}) {
    EXPECT_FALSE(cursor.Take(n, &text));
    EXPECT_FALSE(cursor.Take(n, &bytes));
  }
  EXPECT_EQ(number, 77u);
  EXPECT_EQ(text, "old");
  EXPECT_TRUE(bytes.empty());
  EXPECT_EQ(cursor.pos(), 2u);
  ASSERT_TRUE(cursor.Take(7, &text));
  EXPECT_EQ(text, std::string_view("\3\4\5\6\7\10\11"));
}

TEST(Checked, AddsAndMultipliesUpToTheLimit) {
  EXPECT_EQ(CheckedAdd(UINT64_MAX - 1, 1), UINT64_MAX);
  EXPECT_FALSE(CheckedAdd(UINT64_MAX, 1));
  EXPECT_EQ(CheckedMul(UINT64_MAX / 3, 3), UINT64_MAX);  // 3 divides 2^64 - 1
  EXPECT_FALSE(CheckedMul(UINT64_MAX / 3 + 1, 3));
  EXPECT_FALSE(CheckedMul(1ull << 32, 1ull << 32));
  EXPECT_EQ(CheckedMul(0, UINT64_MAX), 0u);
  EXPECT_EQ(CheckedMul(UINT64_MAX, 0), 0u);
}

TEST(Checked, AlignsUpWithoutWrappingToZero) {
  EXPECT_EQ(CheckedAlignUp(0, 32), 0u);
  EXPECT_EQ(CheckedAlignUp(1, 32), 32u);
  EXPECT_EQ(CheckedAlignUp(32, 32), 32u);
  EXPECT_EQ(CheckedAlignUp(UINT64_MAX, 1), UINT64_MAX);
  EXPECT_EQ(CheckedAlignUp(UINT64_MAX - 31, 32), UINT64_MAX - 31);
  EXPECT_FALSE(CheckedAlignUp(UINT64_MAX - 30, 32));
  EXPECT_FALSE(CheckedAlignUp(1, 0));
  EXPECT_FALSE(CheckedAlignUp(1, 24));
}

}  // namespace
}  // namespace halfbyte
