// csrc/formats/named.h
// Formats by the names that Python and config files have for them.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_NAMED_H_
#define HALFBYTE_FORMATS_NAMED_H_

#include <string_view>

#include "formats/format.h"

namespace halfbyte {

// Null if `stem` ("q4_0") is that of no format.
constexpr const FormatInfo* FindFormatNamed(std::string_view stem) {
  for (const FormatInfo& info : kFormats) {
    if (info.stem == stem) return &info;
  }
  return nullptr;
}

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_NAMED_H_
