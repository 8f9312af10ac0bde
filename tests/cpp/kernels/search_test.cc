// tests/cpp/kernels/search_test.cc
// What the steps are worth is tested in Python, against a NumPy twin; here that every
// target, of any machine, finds the same, and touches nothing else.
// SPDX-License-Identifier: Apache-2.0
#include "kernels/search.h"

#include <gtest/gtest.h>
#include <stddef.h>
#include <stdint.h>

#include <utility>
#include <vector>

#include "guarded.h"
#include "test_targets.h"

namespace halfbyte {
namespace {

class SearchTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(SearchTest);

constexpr size_t K = 256;

// The same numbers on every machine: no library draws them. A few are far out.
std::vector<float> Numbers(size_t len, uint32_t seed) {
  std::vector<float> x(len);
  for (float& value : x) {
    seed = seed * 1664525u + 1013904223u;
    const auto signed_bits = static_cast<int32_t>(seed) >> 8;
    value = static_cast<float>(signed_bits) * 0x1p-28f;
    if (seed >> 28 == 7) value *= 3.5f;
  }
  return x;
}

std::vector<float> Squares(size_t len, uint32_t seed) {
  std::vector<float> x = Numbers(len, seed);
  for (float& value : x) value *= value;
  return x;
}

uint32_t Digest(uint32_t hash, const uint8_t* bytes, size_t len) {
  for (size_t i = 0; i < len; ++i) hash = (hash ^ bytes[i]) * 16777619u;
  return hash;
}

// Rows of a format, weighted and not, as one number.
uint32_t DigestOf(Format format) {
  const std::vector<float> importance = Squares(K, 5);
  uint32_t hash = 2166136261u;
  for (uint32_t row = 0; row < 16; ++row) {
    const std::vector<float> x = Numbers(K, 100 + row);
    for (const float* factors :
         {static_cast<const float*>(nullptr), importance.data()}) {
      std::vector<uint8_t> w(RowBytes(format, K));
      const float scale = SearchRow(format, x.data(), factors, K, w.data());
      hash = Digest(hash, w.data(), w.size());
      hash = Digest(hash, reinterpret_cast<const uint8_t*>(&scale), sizeof(scale));
    }
  }
  return hash;
}

TEST_P(SearchTest, FindsTheSameEverywhere) {
  // Those that halfbyte.reference.quantize gives.
  constexpr std::pair<Format, uint32_t> kWant[] = {
      {Format::kQ4_0, 0x5CA062E1},  {Format::kQ8_0, 0xA830EDFF},
      {Format::kW4G32, 0x6BC01C89}, {Format::kW2, 0x91B3A0D5},
      {Format::kW4, 0x95BCB658},    {Format::kW8, 0x84DD9FF1},
  };
  for (const auto& [format, want] : kWant) {
    ASSERT_TRUE(HasSearch(format));
    EXPECT_EQ(want, DigestOf(format)) << InfoOf(format).name;
  }
}

TEST_P(SearchTest, TouchesNothingElse) {
  for (const FormatInfo& info : kFormats) {
    if (!HasSearch(info.format)) continue;
    for (const Guard guard : kGuards) {
      for (size_t k = 32; k <= 96; k += 32) {
        Guarded<float> x(Numbers(k, 1), guard), importance(Squares(k, 2), guard);
        Guarded<uint8_t> w(RowBytes(info.format, k), guard);
        SearchRow(info.format, x.data(), importance.data(), k, w.data());
        EXPECT_TRUE(w.Intact()) << info.name;
      }
    }
  }
}

}  // namespace
}  // namespace halfbyte
