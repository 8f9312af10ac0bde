// csrc/model/largest.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/largest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace halfbyte {

int32_t ArgMax(std::span<const float> values) {
  return static_cast<int32_t>(std::max_element(values.begin(), values.end()) -
                              values.begin());
}

std::vector<int32_t> Largest(std::span<const float> values, size_t count) {
  if (count == 0) return {};
  std::vector<int32_t> places(values.size());
  std::iota(places.begin(), places.end(), 0);
  const size_t kept = std::min(count, places.size());
  const auto end = places.begin() + static_cast<ptrdiff_t>(kept);
  const auto rank = [values](int32_t place) {  // NaN comes last, or there is no order
    const float value = values[static_cast<size_t>(place)];
    return std::isnan(value) ? -std::numeric_limits<float>::infinity() : value;
  };
  std::partial_sort(places.begin(), end, places.end(), [&](int32_t a, int32_t b) {
    const float x = rank(a), y = rank(b);
    return x > y || (x == y && a < b);
  });
  places.resize(kept);
  return places;
}

}  // namespace halfbyte
