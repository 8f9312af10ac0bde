// tests/cpp/runtime/topology_test.cc
// What control groups leave of the memory they allow.
// SPDX-License-Identifier: Apache-2.0
#include "runtime/topology.h"

#include <gtest/gtest.h>

#include <optional>

#include "temp_dir.h"

namespace halfbyte {
namespace {

class MemoryLeftTest : public TempDirTest {
 protected:
  std::optional<uint64_t> Left() const { return MemoryLeft(dir_.string()); }
};

TEST_F(MemoryLeftTest, NothingIsSaidWithoutALimit) {
  EXPECT_EQ(Left(), std::nullopt);
  Write("proc/self/cgroup", "0::/a");
  Write("sys/fs/cgroup/a/memory.max", "max");
  Write("sys/fs/cgroup/a/memory.current", "1000");
  EXPECT_EQ(Left(), std::nullopt);
}

// Others of the group have taken most of it.
TEST_F(MemoryLeftTest, WhatTheGroupUsesIsTaken) {
  Write("proc/self/cgroup", "0::/a/b");
  Write("sys/fs/cgroup/a/b/memory.max", "max");
  Write("sys/fs/cgroup/a/memory.max", "10000");
  Write("sys/fs/cgroup/a/memory.current", "9000");
  EXPECT_EQ(Left(), 1000u);
  Write("sys/fs/cgroup/a/memory.current", "11000");  // just being reclaimed
  EXPECT_EQ(Left(), 0u);
}

TEST_F(MemoryLeftTest, PagesOfFilesMakeRoom) {
  Write("proc/self/cgroup", "0::/a");
  Write("sys/fs/cgroup/a/memory.max", "10000");
  Write("sys/fs/cgroup/a/memory.current", "9000");
  Write("sys/fs/cgroup/a/memory.stat",
        "anon 2000\nfile 7000\ninactive_file 4000\nactive_file 2500");
  EXPECT_EQ(Left(), 7500u);
}

TEST_F(MemoryLeftTest, TheTightestGroupDecides) {
  Write("proc/self/cgroup", "0::/a/b");
  Write("sys/fs/cgroup/a/b/memory.max", "5000");
  Write("sys/fs/cgroup/a/b/memory.current", "1000");
  Write("sys/fs/cgroup/a/memory.max", "9000");
  Write("sys/fs/cgroup/a/memory.current", "8500");
  EXPECT_EQ(Left(), 500u);
}

TEST_F(MemoryLeftTest, VersionOneCountsTheGroupsBelowApart) {
  Write("proc/self/cgroup", "4:memory:/m");
  Write("sys/fs/cgroup/memory/m/memory.limit_in_bytes", "10000");
  Write("sys/fs/cgroup/memory/m/memory.usage_in_bytes", "9000");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  Write("sys/fs/cgroup/memory/m/memory.stat",
        "inactive_file 1\nactive_file 2\ntotal_inactive_file 300\n"
        "total_active_file 0");
  EXPECT_EQ(Left(), 1300u);
}

}  // namespace
}  // namespace halfbyte
