// csrc/runtime/pages.cc
// SPDX-License-Identifier: Apache-2.0
#include "runtime/pages.h"

#include <stdlib.h>
#include <sys/mman.h>

#include <memory>
#include <string>
#include <utility>

#include "base/error.h"
#include "runtime/topology.h"

namespace halfbyte {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

[[noreturn]] void ThrowOutOfMemory(size_t bytes) {
  ErrorInfo info;
  info.code = "OUT_OF_MEMORY";
  info.subject = "memory";
  info.found = std::to_string(bytes) + " bytes asked for";
  info.expected = "no more than this process may use";
  info.requested_bytes = bytes;
  throw Error(ErrorClass::kOutOfMemory, std::move(info));
}

}  // namespace

PageBuffer::PageBuffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  // Control groups take 0.1 ms to look up, and a pass over a model asks a dozen times.
  static const MemoryBudget memory = TotalMemory();
  const bool known = memory.bytes != 0;
  if (bytes > SIZE_MAX - 2 * kHugePage || (known && bytes > memory.bytes)) {
    ThrowOutOfMemory(bytes);
  }
  mapped_bytes_ = bytes + 2 * kHugePage;  // to begin and to end at one
  void* const map = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) ThrowOutOfMemory(bytes);
  mapping_ = map;
  const auto address = reinterpret_cast<uintptr_t>(mapping_);
  const uintptr_t aligned = (address + kHugePage - 1) / kHugePage * kHugePage;
  data_ = reinterpret_cast<uint8_t*>(aligned);
#ifdef MADV_HUGEPAGE
  // A wish: refused, it is small pages. The last page is wished for as a whole if at
  // least half of it is used.
  const size_t huge = (bytes + kHugePage / 2) / kHugePage * kHugePage;
  if (huge != 0) madvise(data_, huge, MADV_HUGEPAGE);
#endif
}

PageBuffer::~PageBuffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_bytes_);
}

PageBuffer::PageBuffer(PageBuffer&& other) noexcept { *this = std::move(other); }

PageBuffer& PageBuffer::operator=(PageBuffer&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

uint8_t* ThreadScratch(size_t bytes) {
  constexpr size_t kAlign = 64;
  struct Free {
    void operator()(uint8_t* p) const { free(p); }
  };
  thread_local std::unique_ptr<uint8_t, Free> memory;
  thread_local size_t size = 0;
  if (size < bytes) {
    const size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
    memory.reset(static_cast<uint8_t*>(aligned_alloc(kAlign, rounded)));
    size = memory == nullptr ? 0 : rounded;
    if (memory == nullptr) ThrowOutOfMemory(bytes);
  }
  return memory.get();
}

}  // namespace halfbyte
