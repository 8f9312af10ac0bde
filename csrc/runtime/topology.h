// csrc/runtime/topology.h
// How many threads and how much memory this process may use, and why.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_RUNTIME_TOPOLOGY_H_
#define HALFBYTE_RUNTIME_TOPOLOGY_H_

#include <stddef.h>
#include <stdint.h>

#include <optional>
#include <string>

namespace halfbyte {

struct ThreadBudget {
  size_t num_threads;  // at least 1
  std::string reason;  // "2 CPUs allowed, 2 physical cores, no CPU quota"
};

// The smallest of: CPUs this process may run on, the control group's CPU quota rounded
// down, physical cores among those CPUs.
ThreadBudget DefaultThreads();

struct MemoryBudget {
  uint64_t bytes;      // 0 if unknown
  std::string reason;  // "machine" or "control group limit"
};

// The memory this process can ever have: the machine's, or its control group's limit.
MemoryBudget TotalMemory();

// Whether this process could take so many bytes now, with a fifth to spare, without
// pushing others out; true where that is unknown.
bool MemoryHolds(uint64_t bytes);

// CPUs' worth of time, and bytes, that the control groups allow this process; nothing
// without a limit. `root` goes before /proc and /sys: "" but in tests.
std::optional<double> CpuQuota(const std::string& root);
std::optional<uint64_t> MemoryLimit(const std::string& root);
// The same limit less what the groups hold already, but for pages of files, which are
// dropped when memory is wanted.
std::optional<uint64_t> MemoryLeft(const std::string& root);

// Peak resident set of this process in bytes; 0 if unknown.
uint64_t PeakRss();

}  // namespace halfbyte
#endif  // HALFBYTE_RUNTIME_TOPOLOGY_H_
