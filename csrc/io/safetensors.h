// csrc/io/safetensors.h
// safetensors files: one, or the shards that a model.safetensors.index.json names.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_IO_SAFETENSORS_H_
#define HALFBYTE_IO_SAFETENSORS_H_

#include <stdint.h>

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/limits.h"
#include "io/mmap.h"
#include "io/tensor.h"

namespace halfbyte {

using SafetensorsMetadata = std::vector<std::pair<std::string, std::string>>;

// What one file says; the tensors' `data` points into the parsed bytes.
struct SafetensorsHeader {
  SafetensorsMetadata metadata;     // __metadata__, in file order
  std::vector<TensorView> tensors;  // in header order, shard 0
  uint64_t data_start = 0;
};

// Every rule is checked before this returns: each tensor lies inside `bytes`, none
// overlap, no byte of the data is left over. Reads nothing but the header. Throws Error
// without a path; codes begin with ST_.
SafetensorsHeader ParseSafetensors(std::span<const uint8_t> bytes,
                                   const SafetensorsLimits& limits = {});

struct SafetensorsFile {
  std::vector<std::shared_ptr<const MappedFile>> files;  // a shard each, sorted by name
  SafetensorsMetadata metadata;  // of all files; the first of two equal keys
  std::vector<TensorView> tensors;
  // Tensors that the index does not name; shards of encoders alone that are not there.
  std::vector<std::string> warnings;
};

// `path` is a safetensors file, an index (….index.json), or a directory.
SafetensorsFile OpenSafetensors(const std::string& path,
                                const SafetensorsLimits& limits = {},
                                const Reading& reading = {});

// model.safetensors in `dir`, else model.safetensors.index.json, else the only
// *.safetensors there. Errors in the index have codes that begin with IDX_.
SafetensorsFile OpenSafetensorsDir(const std::string& dir,
                                   const SafetensorsLimits& limits = {},
                                   const Reading& reading = {});

// The index beside the safetensors file `path` that names it as a shard, else `path`:
// what OpenSafetensors opens to have all tensors of the model that it belongs to.
std::string WholeOf(const std::string& path);

}  // namespace halfbyte
#endif  // HALFBYTE_IO_SAFETENSORS_H_
