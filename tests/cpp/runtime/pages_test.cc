// tests/cpp/runtime/pages_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "runtime/pages.h"

#include <gtest/gtest.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "base/error.h"

namespace halfbyte {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

TEST(PageBufferTest, EveryByteIsThereAndCanBeWritten) {
  for (size_t bytes :
       {size_t{0}, size_t{1}, size_t{5000}, kHugePage, 3 * kHugePage + 7}) {
    PageBuffer buffer(bytes);
    ASSERT_EQ(bytes, buffer.bytes());
    EXPECT_EQ(0u, reinterpret_cast<uintptr_t>(buffer.data()) % kHugePage);
    EXPECT_EQ(static_cast<ptrdiff_t>(bytes),
              std::count(buffer.data(), buffer.data() + bytes, 0));
    std::fill_n(buffer.data(), bytes, uint8_t{2});  // memset takes no null, even for 0
  }
}

TEST(PageBufferTest, MovesWithItsBytes) {
  PageBuffer from(100);
  memset(from.data(), 7, 100);
  PageBuffer to;
  to = std::move(from);
  EXPECT_EQ(100, std::count(to.data(), to.data() + to.bytes(), 7));
}

TEST(PageBufferTest, MoreThanThereIsIsRefused) {
  for (size_t bytes : {SIZE_MAX, SIZE_MAX - kHugePage, size_t{1} << 60}) {
    try {
      PageBuffer buffer(bytes);
      FAIL() << bytes;
    } catch (const Error& error) {
      EXPECT_EQ(ErrorClass::kOutOfMemory, error.cls());
      EXPECT_EQ(bytes, error.info().requested_bytes);
    }
  }
}

TEST(ThreadScratchTest, IsAlignedAndOneForEachThread) {
  uint8_t* const mine = ThreadScratch(1000);
  EXPECT_EQ(0u, reinterpret_cast<uintptr_t>(mine) % 64);
  EXPECT_EQ(mine, ThreadScratch(10));
  uint8_t* theirs = nullptr;
  std::thread([&] { theirs = ThreadScratch(1000); }).join();
  EXPECT_NE(mine, theirs);
  memset(ThreadScratch(1 << 20), 1, 1 << 20);
}

}  // namespace
}  // namespace halfbyte
