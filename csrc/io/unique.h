// csrc/io/unique.h
// Repeated names in n log n: comparing every pair would let a small file burn minutes.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_IO_UNIQUE_H_
#define HALFBYTE_IO_UNIQUE_H_

#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <string_view>
#include <vector>

namespace halfbyte {

// The positions 0 <= i < count sorted by `name(i)`, a std::string_view; equal names
// stay in order. `count` < 2^32.
template <class Name>
std::vector<uint32_t> SortedByName(size_t count, const Name& name) {
  std::vector<uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&name](uint32_t a, uint32_t b) {
    const int c = std::string_view(name(a)).compare(name(b));
    return c != 0 ? c < 0 : a < b;
  });
  return order;
}

// The first position whose name an earlier one has, given the result of SortedByName.
template <class Name>
std::optional<uint32_t> FirstRepeated(const std::vector<uint32_t>& order,
                                      const Name& name) {
  std::optional<uint32_t> first;
  for (size_t i = 1; i < order.size(); ++i) {
    if (std::string_view(name(order[i - 1])) != name(order[i])) continue;
    if (!first || order[i] < *first) first = order[i];
  }
  return first;
}

}  // namespace halfbyte
#endif  // HALFBYTE_IO_UNIQUE_H_
