// csrc/model/largest.h
// The largest of some numbers: experts, clusters, tokens.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_LARGEST_H_
#define HALFBYTE_MODEL_LARGEST_H_

#include <stddef.h>
#include <stdint.h>

#include <span>
#include <vector>

namespace halfbyte {

// The place of the largest value, the first of those that are alike.
int32_t ArgMax(std::span<const float> values);

// Places of the `count` largest values, or of all if there are fewer: the largest
// first, the lower place where two are alike.
std::vector<int32_t> Largest(std::span<const float> values, size_t count);

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_LARGEST_H_
