// csrc/io/sniff.h
// What a file that is not of the expected format looks like, for the error message.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_IO_SNIFF_H_
#define HALFBYTE_IO_SNIFF_H_

#include <stdint.h>

#include <span>
#include <string>

namespace halfbyte {

// A sentence such as "this is a Git LFS pointer, not the file: run `git lfs pull`", or
// an empty string. Looks at the first 512 bytes.
std::string SniffHint(std::span<const uint8_t> bytes);

// Whether a header could follow its length, and data the header.
bool LooksLikeSafetensors(std::span<const uint8_t> bytes);

}  // namespace halfbyte
#endif  // HALFBYTE_IO_SNIFF_H_
