// csrc/formats/format.h
// What everyone may know of a format without seeing how it is decoded.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_FORMAT_H_
#define HALFBYTE_FORMATS_FORMAT_H_

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

namespace halfbyte {

enum class Format : uint32_t {
#define HALFBYTE_FORMAT(type, stem, id, len, bytes) k##type = id,
#include "formats/list.inc"
#undef HALFBYTE_FORMAT
};

struct FormatInfo {
  Format format;
  const char* name;    // "Q4_0"
  const char* stem;    // "q4_0": the file and the Python name
  size_t block_len;    // weights
  size_t block_bytes;  // as stored in the file
};

inline constexpr FormatInfo kFormats[] = {
#define HALFBYTE_FORMAT(type, stem, id, len, bytes) \
  {Format::k##type, #type, #stem, len, bytes},
#include "formats/list.inc"
#undef HALFBYTE_FORMAT
};

// Null if `id` (a GGUF type id, or one of ours from 1000) is no format we decode.
constexpr const FormatInfo* FindFormat(uint32_t id) {
  for (const FormatInfo& info : kFormats) {
    if (static_cast<uint32_t>(info.format) == id) return &info;
  }
  return nullptr;
}

// Compares no address: with -fsanitize=undefined GCC has none in constants.
constexpr const FormatInfo& InfoOf(Format format) {
  for (const FormatInfo& info : kFormats) {
    if (info.format == format) return info;
  }
  throw Error(ErrorClass::kValue, "not a format");
}

// Bytes of a row of K weights. K is a multiple of the block length.
constexpr size_t RowBytes(Format format, size_t K) {
  const FormatInfo& info = InfoOf(format);
  return K / info.block_len * info.block_bytes;
}

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_FORMAT_H_
