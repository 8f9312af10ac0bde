// tests/fuzz/fuzz_safetensors.cc
// Any bytes either parse, with every invariant of the result, or throw one of the
// documented classes with an offset inside the file.
// SPDX-License-Identifier: Apache-2.0
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "../cpp/io/safetensors_check.h"
#include "base/error.h"
#include "io/safetensors.h"

namespace {

void Die(const std::string& why) {
  fprintf(stderr, "fuzz_safetensors: %s\n", why.c_str());
  abort();
}

void Parse(std::span<const uint8_t> bytes) {
  try {
    const halfbyte::SafetensorsHeader header = halfbyte::ParseSafetensors(bytes);
    const std::string broken = halfbyte::BrokenInvariant(bytes, header);
    if (!broken.empty()) Die(broken);
  } catch (const halfbyte::Error& e) {
    if (e.cls() != halfbyte::ErrorClass::kFormat &&
        e.cls() != halfbyte::ErrorClass::kTruncatedFile &&
        e.cls() != halfbyte::ErrorClass::kLimit) {
      Die(e.what());
    }
    if (!e.info().offset || *e.info().offset > bytes.size()) Die(e.what());
    if (!e.info().code.starts_with("ST_")) Die(e.what());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A heap block of exactly this size, so that reading past its end is seen.
  std::vector<uint8_t> bytes(data, data + size);
  Parse(bytes);

  // Again with a length that fits, or few inputs would get past it: the header ends at
  // the last brace.
  const auto brace = std::find(bytes.rbegin(), bytes.rend(), uint8_t{'}'});
  const auto end = static_cast<uint64_t>(bytes.rend() - brace);
  if (end <= 8) return 0;
  const uint64_t length = end - 8;
  memcpy(bytes.data(), &length, sizeof(length));
  Parse(bytes);
  return 0;
}
