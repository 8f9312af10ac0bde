// csrc/runtime/topology.cc
// SPDX-License-Identifier: Apache-2.0
#include "runtime/topology.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
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

// Cores among `cpus`: hardware threads of one core name the same siblings. 0 if unknown.
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

// The directories of our control group and its parents, in the hierarchy of
// `controller` ("" is the unified one), innermost first.
std::vector<std::string> CgroupDirs(const std::string& controller) {
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    // hierarchy-id:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string names = "," + line.substr(first + 1, second - first - 1) + ",";
    if (names.find("," + controller + ",") == std::string::npos) continue;
    const std::string root =
        controller.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controller;
    std::vector<std::string> dirs;
    std::filesystem::path path = line.substr(second + 1);
    while (path.has_relative_path()) {
      dirs.push_back(root + path.string());
      path = path.parent_path();
    }
    dirs.push_back(root);  // in a container this is our own group
    return dirs;
  }
  return {};
}

// CPUs' worth of time per period, from "quota period"; nothing if unlimited.
std::optional<double> Quota(const std::string& quota, const std::string& period) {
  std::istringstream q(quota), p(period);
  double a = 0, b = 0;
  if (!(q >> a) || !(p >> b) || a <= 0 || b <= 0) return std::nullopt;
  return a / b;
}

std::optional<double> CpuQuota() {
  std::optional<double> least;
  const auto take = [&least](std::optional<double> quota) {
    if (quota && (!least || *quota < *least)) least = quota;
  };
  for (const std::string& dir : CgroupDirs("")) {
    const std::string line = FirstLine(dir + "/cpu.max");
    const size_t space = line.find(' ');
    if (space != std::string::npos) {
      take(Quota(line.substr(0, space), line.substr(space + 1)));
    }
  }
  for (const std::string& dir : CgroupDirs("cpu")) {
    take(Quota(FirstLine(dir + "/cpu.cfs_quota_us"),
               FirstLine(dir + "/cpu.cfs_period_us")));
  }
  return least;
}

uint64_t CgroupMemoryLimit() {
  uint64_t least = UINT64_MAX;
  const auto take = [&least](const std::string& line) {
    std::istringstream in(line);
    uint64_t bytes = 0;
    if (in >> bytes) least = std::min(least, bytes);  // "max" is no number
  };
  for (const std::string& dir : CgroupDirs("")) take(FirstLine(dir + "/memory.max"));
  for (const std::string& dir : CgroupDirs("memory")) {
    take(FirstLine(dir + "/memory.limit_in_bytes"));
  }
  return least;
}

}  // namespace

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
  if (const std::optional<double> quota = CpuQuota()) {
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
  const uint64_t group = CgroupMemoryLimit();
  if (machine == 0 || group < machine) {
    return {group == UINT64_MAX ? 0 : group, "control group limit"};
  }
  return {machine, "machine"};
}

uint64_t PeakRss() {
  struct rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#ifdef __APPLE__
  return static_cast<uint64_t>(usage.ru_maxrss);
#else
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
#endif
}

}  // namespace halfbyte
