// csrc/io/gguf.h
// Reads GGUF versions 2 and 3. Everything a file claims is checked before it is
// believed: what opens has all its tensors inside the file, none overlapping another.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_IO_GGUF_H_
#define HALFBYTE_IO_GGUF_H_

#include <stdint.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf_metadata.h"
#include "io/limits.h"
#include "io/mmap.h"
#include "io/tensor.h"

namespace halfbyte {

// What a shard says about the whole.
struct GgufSplit {
  uint64_t number = 0;       // of this shard, from 0
  uint64_t count = 1;        // shards
  uint64_t num_tensors = 0;  // in all of them
};

// One file's worth of bytes, understood. Points into those bytes.
struct Gguf {
  uint32_t version = 0;
  uint64_t alignment = kGgufDefaultAlignment;
  uint64_t header_bytes = 0;  // up to the end of the tensor table
  uint64_t data_start = 0;    // where tensor offsets count from
  GgufMetadata metadata;
  std::vector<TensorView> tensors;      // in file order
  std::vector<uint64_t> entry_offsets;  // of each tensor's entry in the table
  std::optional<GgufSplit> split;
  std::vector<std::string> warnings;  // one sentence each
};

// Reads the header only, so it touches no page of tensor data. Throws Error with the
// code, the offset and an empty path; memory and time are bounded by the header's size.
Gguf ParseGguf(std::span<const uint8_t> bytes, const GgufLimits& limits = {});

// Throws Error, code GGUF_INTERNAL, unless every tensor of `gguf` lies inside `bytes`,
// no two intersect and names are unique. A check of the parser, not of the file:
// ParseGguf calls it in debug builds, fuzzers and tests always.
void CheckInvariants(const Gguf& gguf, std::span<const uint8_t> bytes);

// A file, or all shards of a split file.
struct GgufFile {
  std::vector<std::shared_ptr<const MappedFile>> files;  // shards in order
  uint32_t version = 0;
  GgufMetadata metadata;            // of the first shard, which has it all
  std::vector<TensorView> tensors;  // shard by shard, in file order
  std::vector<std::string> warnings;

  const TensorView* FindTensor(std::string_view name) const;  // null if absent

  std::vector<uint32_t> by_name;  // indices of `tensors`, sorted by name
};

// `path` is the file, or any shard of a split file named <prefix>-00001-of-00003.gguf;
// the others are looked for beside it. Throws Error naming the file that is at fault.
GgufFile OpenGguf(const std::string& path, const GgufLimits& limits = {},
                  const Reading& reading = {});

}  // namespace halfbyte
#endif  // HALFBYTE_IO_GGUF_H_
