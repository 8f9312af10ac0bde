// csrc/runtime/huge_buffer.h
// Memory for reading at full speed: in huge pages where the system gives them.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_RUNTIME_HUGE_BUFFER_H_
#define HALFBYTE_RUNTIME_HUGE_BUFFER_H_

#include <stddef.h>
#include <stdint.h>

#include "runtime/thread_pool.h"

namespace halfbyte {

class HugeBuffer {
 public:
  // `bytes` bytes that begin at a huge page. Each is written once, by several threads:
  // memory that was only asked for reads as one page of zeros, out of the cache. Throws
  // Error(kOutOfMemory) if this process cannot have as much.
  HugeBuffer(const Context& context, size_t bytes);
  ~HugeBuffer();
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;

  uint8_t* data() { return data_; }
  size_t size() const { return bytes_; }

 private:
  size_t bytes_;
  size_t map_bytes_;
  void* map_;
  uint8_t* data_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_RUNTIME_HUGE_BUFFER_H_
