// tests/cpp/runtime/huge_buffer_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "runtime/huge_buffer.h"

#include <gtest/gtest.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <stdexcept>

#include "base/error.h"

namespace halfbyte {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

TEST(HugeBufferTest, EveryByteIsThereAndCanBeWritten) {
  for (size_t bytes :
       {size_t{0}, size_t{1}, size_t{5000}, kHugePage, 3 * kHugePage + 7}) {
    HugeBuffer buffer({.num_threads = 3}, bytes);
    ASSERT_EQ(bytes, buffer.size());
    EXPECT_EQ(0u, reinterpret_cast<uintptr_t>(buffer.data()) % kHugePage);
    EXPECT_EQ(static_cast<ptrdiff_t>(bytes),
              std::count(buffer.data(), buffer.data() + bytes, 1));
    memset(buffer.data(), 2, bytes);
  }
}

TEST(HugeBufferTest, MoreThanThereIsIsRefusedUntouched) {
  for (size_t bytes : {SIZE_MAX, SIZE_MAX - kHugePage, size_t{1} << 60}) {
    try {
      HugeBuffer buffer({.num_threads = 1}, bytes);
      FAIL() << bytes;
    } catch (const Error& error) {
      EXPECT_EQ(ErrorClass::kOutOfMemory, error.cls());
      EXPECT_EQ(bytes, error.info().requested_bytes);
    }
  }
}

TEST(HugeBufferTest, CanBeCancelled) {
  const Context context = {.num_threads = 1,
                           .poll = [] { throw std::runtime_error("cancelled"); }};
  EXPECT_THROW(HugeBuffer(context, 4 * kHugePage), std::runtime_error);
}

}  // namespace
}  // namespace halfbyte
