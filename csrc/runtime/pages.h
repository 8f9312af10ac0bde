// csrc/runtime/pages.h
// Large blocks of memory: for weights in another order, and for what a thread needs
// while it computes.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_RUNTIME_PAGES_H_
#define HALFBYTE_RUNTIME_PAGES_H_

#include <stddef.h>
#include <stdint.h>

namespace halfbyte {

// Zeroed memory of its own, aligned to 2 MiB and in pages of that size where the system
// grants them: walking 2 GiB of small pages costs a tenth to a quarter of the
// bandwidth. Pages become resident when they are first written.
class PageBuffer {
 public:
  PageBuffer() = default;
  // Throws Error(kOutOfMemory) with the size.
  explicit PageBuffer(size_t bytes);
  ~PageBuffer();
  PageBuffer(PageBuffer&& other) noexcept;
  PageBuffer& operator=(PageBuffer&& other) noexcept;

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* mapping_ = nullptr;
  size_t mapped_bytes_ = 0;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

// Memory of the calling thread, aligned to 64 bytes, until its next call. The content
// is anything.
uint8_t* ThreadScratch(size_t bytes);

}  // namespace halfbyte
#endif  // HALFBYTE_RUNTIME_PAGES_H_
