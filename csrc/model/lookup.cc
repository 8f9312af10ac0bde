// csrc/model/lookup.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/lookup.h"

#include <algorithm>

namespace halfbyte {

std::vector<int32_t> LookUp(std::span<const int32_t> tokens, size_t most) {
  // One token alone is followed by too many others for a guess to pay.
  for (const size_t length : {size_t{3}, size_t{2}}) {
    if (tokens.size() <= length) continue;
    const auto ending = tokens.last(length);
    const auto before = tokens.first(tokens.size() - 1);
    // Not std::ranges::find_end: Clang 14 cannot compile GCC 12's.
    const auto found =
        std::find_end(before.begin(), before.end(), ending.begin(), ending.end());
    if (found == before.end()) continue;
    const size_t behind = static_cast<size_t>(found - before.begin()) + length;
    std::vector<int32_t> guess;
    for (size_t i = behind; guess.size() < most; ++i) {  // round and round, at the end
      guess.push_back(i < tokens.size() ? tokens[i] : guess[i - tokens.size()]);
    }
    return guess;
  }
  return {};
}

}  // namespace halfbyte
