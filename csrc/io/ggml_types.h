// csrc/io/ggml_types.h
// Every tensor type a GGUF file may name, also those nobody decodes here: their size
// is needed to check a file and to list it.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_IO_GGML_TYPES_H_
#define HALFBYTE_IO_GGML_TYPES_H_

#include <stdint.h>

#include "formats/format.h"

namespace halfbyte {

struct GgmlType {
  uint32_t id;
  const char* name;
  uint32_t block_len;    // elements; 0 if the type was withdrawn
  uint32_t block_bytes;  // as stored
};

inline constexpr GgmlType kGgmlTypes[] = {
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},      {4, "Q4_2", 0, 0},        {5, "Q4_3", 0, 0},
    {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},      {8, "Q8_0", 32, 34},
    {9, "Q8_1", 32, 36},      {10, "Q2_K", 256, 84},    {11, "Q3_K", 256, 110},
    {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},   {14, "Q6_K", 256, 210},
    {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74},
    {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},   {20, "IQ4_NL", 32, 18},
    {21, "IQ3_S", 256, 110},  {22, "IQ2_S", 256, 82},   {23, "IQ4_XS", 256, 136},
    {24, "I8", 1, 1},         {25, "I16", 1, 2},        {26, "I32", 1, 4},
    {27, "I64", 1, 8},        {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56},
    {30, "BF16", 1, 2},       {31, "Q4_0_4_4", 0, 0},   {32, "Q4_0_4_8", 0, 0},
    {33, "Q4_0_8_8", 0, 0},   {34, "TQ1_0", 256, 54},   {35, "TQ2_0", 256, 66},
    {36, "IQ4_NL_4_4", 0, 0}, {37, "IQ4_NL_4_8", 0, 0}, {38, "IQ4_NL_8_8", 0, 0},
    {39, "MXFP4", 32, 17},    {40, "NVFP4", 64, 36},    {41, "Q1_0", 128, 18},
    {42, "Q2_0", 64, 18},
};

inline constexpr uint64_t kNumGgmlTypes = sizeof(kGgmlTypes) / sizeof(kGgmlTypes[0]);

// Null if the id means nothing. Withdrawn types have `block_len` 0.
constexpr const GgmlType* FindGgmlType(uint64_t id) {
  return id < kNumGgmlTypes ? &kGgmlTypes[id] : nullptr;
}

// The table is indexed by id and agrees with the formats we decode.
constexpr bool GgmlTypesAreConsistent() {
  uint32_t id = 0;
  for (const GgmlType& type : kGgmlTypes) {
    if (type.id != id++) return false;
  }
  for (const FormatInfo& format : kFormats) {
    const auto format_id = static_cast<uint32_t>(format.format);
    if (format_id >= 1000) continue;  // ours, in no GGUF file
    if (format_id >= kNumGgmlTypes) return false;
    const GgmlType& type = kGgmlTypes[format_id];
    if (type.block_len != format.block_len || type.block_bytes != format.block_bytes) {
      return false;
    }
  }
  return true;
}
static_assert(GgmlTypesAreConsistent());

}  // namespace halfbyte
#endif  // HALFBYTE_IO_GGML_TYPES_H_
