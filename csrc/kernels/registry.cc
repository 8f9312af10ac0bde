// csrc/kernels/registry.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/format_kernels.h"

namespace halfbyte {

#define HALFBYTE_FORMAT(type, stem, id, len, bytes) \
  const FormatKernels& Kernels_##type();
#include "formats/list.inc"
#undef HALFBYTE_FORMAT

const FormatKernels& KernelsFor(Format format) {
  switch (format) {
#define HALFBYTE_FORMAT(type, stem, id, len, bytes) \
  case Format::k##type:                             \
    return Kernels_##type();
#include "formats/list.inc"
#undef HALFBYTE_FORMAT
  }
  throw Error(ErrorClass::kValue, "KernelsFor: not a format");
}

}  // namespace halfbyte
