// csrc/runtime/topology.cc
// SPDX-License-Identifier: Apache-2.0
#include "runtime/topology.h"

#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <string_view>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace halfbyte {
namespace {

std::string FirstLine(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// The CPUs the scheduler may put us on; empty if it cannot be asked.
std::vector<int> AllowedCpus() {
  std::vector<int> cpus;
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &set)) cpus.push_back(i);
    }
  }
#endif
  return cpus;
}

// Cores among `cpus`: hardware threads of one core name the same siblings. 0 if
// unknown.
size_t PhysicalCores(const std::vector<int>& cpus) {
  std::set<std::string> cores;
  for (const int cpu : cpus) {
    const std::string siblings =
        FirstLine("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                  "/topology/thread_siblings_list");
    if (siblings.empty()) return 0;
    cores.insert(siblings);
  }
  return cores.size();
}

// The directories of this process's control groups that `controller` governs, and of
// their parents, whose limits bind as well. Inside a container the path may be the
// host's and not exist; the mount's root is then our own group.
std::vector<std::string> CgroupDirs(const std::string& root,
                                    const std::string& controller) {
  const std::string mount = root + "/sys/fs/cgroup";
  std::vector<std::string> dirs;
  std::ifstream in(root + "/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    // hierarchy-id:controllers:path; the unified hierarchy names no controllers.
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    const bool governs =
        ("," + names + ",").find("," + controller + ",") != std::string::npos;
    if (!names.empty() && !governs) continue;
    const std::string base = names.empty() ? mount : mount + "/" + names;
    std::filesystem::path path = line.substr(second + 1);
    for (; path.has_relative_path(); path = path.parent_path()) {
      dirs.push_back(base + path.string());
    }
    dirs.push_back(base);
  }
  return dirs;
}

// The number a file consists of; nothing if it is none ("max"), or there is no file.
std::optional<uint64_t> Number(const std::string& path) {
  std::istringstream in(FirstLine(path));
  uint64_t number = 0;
  return in >> number ? std::optional(number) : std::nullopt;
}

// The number that follows `name` in a line of a file; nothing if it is not there.
std::optional<uint64_t> Field(const std::string& path, std::string_view name) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(name)) {
      return strtoull(line.c_str() + name.size(), nullptr, 10);
    }
  }
  return std::nullopt;
}

// Calls f(limit, dir, usage) for every group that has a limit; dir + usage is the file
// that says how much of it is taken.
template <class F>
void ForEachMemoryLimit(const std::string& root, const F& f) {
  constexpr uint64_t kNone = uint64_t{1} << 60;  // version 1 writes a huge number
  struct Names {
    const char *limit, *usage;
  };
  for (const std::string& dir : CgroupDirs(root, "memory")) {
    for (const Names& names : {Names{"/memory.max", "/memory.current"},
                               {"/memory.limit_in_bytes", "/memory.usage_in_bytes"}}) {
      const std::optional<uint64_t> limit = Number(dir + names.limit);
      if (limit && *limit < kNone) f(*limit, dir, names.usage);
    }
  }
}

// CPUs' worth of time per period, from "quota period"; nothing if unlimited.
std::optional<double> Quota(const std::string& text) {
  std::istringstream in(text);
  double quota = 0, period = 0;
  if (!(in >> quota >> period) || quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

}  // namespace

std::optional<double> CpuQuota(const std::string& root) {
  std::optional<double> least;
  for (const std::string& dir : CgroupDirs(root, "cpu")) {
    for (const std::string& text :
         {FirstLine(dir + "/cpu.max"), FirstLine(dir + "/cpu.cfs_quota_us") + " " +
                                           FirstLine(dir + "/cpu.cfs_period_us")}) {
      const std::optional<double> quota = Quota(text);
      if (quota && (!least || *quota < *least)) least = quota;
    }
  }
  return least;
}

std::optional<uint64_t> MemoryLimit(const std::string& root) {
  std::optional<uint64_t> least;
  ForEachMemoryLimit(root, [&](uint64_t limit, const std::string&, const char*) {
    if (!least || limit < *least) least = limit;
  });
  return least;
}

std::optional<uint64_t> MemoryLeft(const std::string& root) {
  std::optional<uint64_t> least;
  ForEachMemoryLimit(root,
                     [&](uint64_t limit, const std::string& dir, const char* usage) {
                       // Pages of files are dropped when memory is wanted, the oldest
                       // first.
                       const std::string stat = dir + "/memory.stat";
                       uint64_t cached = 0;
                       for (const char* list : {"inactive_file ", "active_file "}) {
                         // Version 1 counts what is in the groups below apart.
                         const auto total = Field(stat, std::string("total_") + list);
                         cached += total ? *total : Field(stat, list).value_or(0);
                       }
                       const uint64_t used = Number(dir + usage).value_or(0);
                       const uint64_t held = used > cached ? used - cached : 0;
                       const uint64_t left = limit > held ? limit - held : 0;
                       if (!least || left < *least) least = left;
                     });
  return least;
}

ThreadBudget DefaultThreads() {
  const std::vector<int> cpus = AllowedCpus();
  size_t n = cpus.size();
  if (n == 0) n = std::max(1u, std::thread::hardware_concurrency());
  std::string reason = std::to_string(n) + (n == 1 ? " CPU allowed" : " CPUs allowed");
  if (const size_t cores = PhysicalCores(cpus); cores != 0) {
    reason += ", " + std::to_string(cores) +
              (cores == 1 ? " physical core" : " physical cores");
    n = std::min(n, cores);
  }
  if (const std::optional<double> quota = CpuQuota("")) {
    std::ostringstream text;
    text << ", CPU quota " << *quota;
    reason += text.str();
    n = std::min(n, std::max<size_t>(1, static_cast<size_t>(*quota)));
  } else {
    reason += ", no CPU quota";
  }
  return {n, reason};
}

MemoryBudget TotalMemory() {
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  const uint64_t machine =
      pages > 0 && page > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page)
                            : 0;
  const std::optional<uint64_t> group = MemoryLimit("");
  if (group && (machine == 0 || *group < machine)) {
    return {*group, "control group limit"};
  }
  return {machine, "machine"};
}

namespace {

// The kB of a line "Name:   123 kB" of a file, in bytes; 0 if it is not there.
uint64_t KibiField(const char* path, std::string_view name) {
  return 1024 * Field(path, name).value_or(0);
}

// Bytes that this process could take now without pushing others out; nothing if that is
// unknown.
std::optional<uint64_t> AvailableMemory() {
  const uint64_t machine = KibiField("/proc/meminfo", "MemAvailable:");
  const std::optional<uint64_t> group = MemoryLeft("");
  if (machine == 0) return group;
  return group ? std::min(machine, *group) : machine;
}

}  // namespace

bool MemoryHolds(uint64_t bytes) {
  const std::optional<uint64_t> free = AvailableMemory();
  return !free || *free / 6 * 5 >= bytes;
}

uint64_t PeakRss() {
  // Not getrusage first: its peak outlives exec, so it may be that of our parent.
  if (const uint64_t peak = KibiField("/proc/self/status", "VmHWM:")) return peak;
  struct rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#ifdef __APPLE__
  return static_cast<uint64_t>(usage.ru_maxrss);
#else
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
#endif
}

}  // namespace halfbyte
