// csrc/model/lookup.h
// Guesses which tokens follow by what followed the same ones before, where prompts are
// quoted, code is edited, names come again: prompt lookup, or n-gram speculation.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_LOOKUP_H_
#define HALFBYTE_MODEL_LOOKUP_H_

#include <stddef.h>
#include <stdint.h>

#include <span>
#include <vector>

namespace halfbyte {

// `most` tokens: those behind the latest earlier place where the last three tokens
// stand, or where the last two do, again and again if there are fewer. None if there is
// no such place.
std::vector<int32_t> LookUp(std::span<const int32_t> tokens, size_t most);

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_LOOKUP_H_
