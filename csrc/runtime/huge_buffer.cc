// csrc/runtime/huge_buffer.cc
// SPDX-License-Identifier: Apache-2.0
#include "runtime/huge_buffer.h"

#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "runtime/topology.h"

namespace halfbyte {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;  // of x86, and of Arm with 4 KiB pages

[[noreturn]] void ThrowOutOfMemory(size_t bytes) {
  ErrorInfo info;
  info.subject = "buffer";
  info.found = std::to_string(bytes) + " bytes asked for";
  info.expected = "no more than this process may use";
  info.requested_bytes = bytes;
  throw Error(ErrorClass::kOutOfMemory, std::move(info));
}

}  // namespace

HugeBuffer::HugeBuffer(const Context& context, size_t bytes) : bytes_(bytes) {
  const MemoryBudget memory = TotalMemory();
  const bool known = memory.bytes != 0;
  if (bytes > SIZE_MAX - kHugePage || (known && bytes > memory.bytes)) {
    ThrowOutOfMemory(bytes);
  }
  map_bytes_ = bytes + kHugePage;
  map_ = mmap(nullptr, map_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
              -1, 0);
  if (map_ == MAP_FAILED) ThrowOutOfMemory(bytes);
  const auto address = reinterpret_cast<uintptr_t>(map_);
  data_ = static_cast<uint8_t*>(map_) + (kHugePage - address % kHugePage) % kHugePage;
#ifdef MADV_HUGEPAGE
  madvise(data_, bytes, MADV_HUGEPAGE);  // refused or not: the pages are ours
#endif
  try {
    context.ParallelFor((bytes + kHugePage - 1) / kHugePage, [&](size_t page) {
      const size_t begin = page * kHugePage;
      memset(data_ + begin, 1, std::min(kHugePage, bytes - begin));
    });
  } catch (...) {
    munmap(map_, map_bytes_);
    throw;
  }
}

HugeBuffer::~HugeBuffer() { munmap(map_, map_bytes_); }

}  // namespace halfbyte
