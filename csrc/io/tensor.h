// csrc/io/tensor.h
// What every file reader hands out: named tensors whose bytes lie inside the file.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_IO_TENSOR_H_
#define HALFBYTE_IO_TENSOR_H_

#include <stdint.h>

#include <optional>
#include <string>
#include <vector>

#include "formats/format.h"

namespace halfbyte {

struct TensorView {
  std::string name;              // clean UTF-8
  std::string type;              // as the file calls it: "Q4_0", "IQ2_S", "BF16", "I64"
  std::optional<Format> format;  // empty if the type is known but not decodable here
  std::vector<uint64_t> shape;   // PyTorch order: rows first, contiguous dimension last
  const uint8_t* data = nullptr;  // inside the mapping; any alignment
  uint64_t bytes = 0;
  uint64_t file_offset = 0;  // of `data` in its file
  uint32_t shard = 0;        // index of that file
};

}  // namespace halfbyte
#endif  // HALFBYTE_IO_TENSOR_H_
