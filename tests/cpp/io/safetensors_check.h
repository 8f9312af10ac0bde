// tests/cpp/io/safetensors_check.h
// What must hold for every safetensors file that opens, said without the reader's code.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_TESTS_CPP_IO_SAFETENSORS_CHECK_H_
#define HALFBYTE_TESTS_CPP_IO_SAFETENSORS_CHECK_H_

#include <algorithm>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/utf8.h"
#include "io/safetensors.h"

namespace halfbyte {

// The first broken invariant, or "".
inline std::string BrokenInvariant(std::span<const uint8_t> bytes,
                                   const SafetensorsHeader& header) {
  static const std::map<std::string, unsigned> kBits = {
      {"F64", 64},        {"F32", 32},       {"F16", 16},    {"BF16", 16},
      {"I64", 64},        {"I32", 32},       {"I16", 16},    {"I8", 8},
      {"U64", 64},        {"U32", 32},       {"U16", 16},    {"U8", 8},
      {"BOOL", 8},        {"C64", 64},       {"F8_E4M3", 8}, {"F8_E5M2", 8},
      {"F8_E8M0", 8},     {"F6_E2M3", 6},    {"F6_E3M2", 6}, {"F4", 4},
      {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}};
  if (header.data_start < 10 || header.data_start > bytes.size()) return "data_start";
  std::set<std::string> names;
  std::vector<std::pair<uint64_t, uint64_t>> extents;
  for (const TensorView& t : header.tensors) {
    if (t.name.empty() || FirstUnclean(t.name) != t.name.size()) return "name";
    if (!names.insert(t.name).second) return "name twice: " + t.name;
    if (!kBits.contains(t.type)) return "type: " + t.type;
    unsigned __int128 bits = kBits.at(t.type);
    for (const uint64_t d : t.shape) {
      if (d >> 63 != 0) return "dimension";
      bits *= d;
      if (bits >> 64 != 0) return "product";  // so the next one cannot wrap
    }
    if (bits % 8 != 0 || bits / 8 != t.bytes) return "bytes of " + t.name;
    if (t.file_offset < header.data_start || t.file_offset > bytes.size() ||
        t.bytes > bytes.size() - t.file_offset) {
      return "outside the file: " + t.name;
    }
    if (t.data != bytes.data() + t.file_offset) return "data";
    extents.emplace_back(t.file_offset, t.file_offset + t.bytes);
    // For the sanitizers: the bytes can be read.
    if (t.bytes > 0 && *t.data + t.data[t.bytes - 1] < 0) return "unreadable";
  }
  std::sort(extents.begin(), extents.end());
  uint64_t end = header.data_start;
  for (const auto& [first, last] : extents) {
    if (first != end) return "hole or overlap";
    end = last;
  }
  return end == bytes.size() ? "" : "trailing bytes";
}

}  // namespace halfbyte
#endif  // HALFBYTE_TESTS_CPP_IO_SAFETENSORS_CHECK_H_
