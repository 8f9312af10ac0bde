// tests/cpp/test_floats.h
// Floats for tests: random rows, bit patterns, distances.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_TEST_FLOATS_H_
#define HALFBYTE_TEST_FLOATS_H_

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <limits>
#include <random>
#include <vector>

namespace halfbyte {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kMaxFloat = std::numeric_limits<float>::max();
inline constexpr double kU = 0x1p-24;      // unit roundoff of f32
inline constexpr double kTiny = 0x1p-149;  // smallest subnormal f32

inline std::vector<float> Normal(size_t num, uint32_t seed, float scale = 1.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> dist;  // which takes no scale of 0
  std::vector<float> v(num);
  for (float& f : v) f = scale * dist(rng);
  return v;
}

inline float FloatFromBits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof(f));
  return f;
}

inline uint32_t BitsOf(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof(bits));
  return bits;
}

// Distance of two neighbouring floats at |x|.
inline double Ulp(double x) {
  if (!(fabs(x) >= 0x1p-126)) return kTiny;
  return ldexp(1.0, ilogb(x) - 23);
}

}  // namespace halfbyte
#endif  // HALFBYTE_TEST_FLOATS_H_
