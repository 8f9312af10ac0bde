// csrc/base/half.h
// IEEE binary16 and bfloat16 as bits, to and from float. Scalar: kernels convert a
// whole vector. NaN of binary16 becomes quiet and keeps its upper payload bits in both
// directions, as the conversion instructions of x86 and Arm do.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_BASE_HALF_H_
#define HALFBYTE_BASE_HALF_H_

#include <stdint.h>
#include <string.h>

namespace halfbyte {

// Exact. NaN stays NaN and becomes quiet.
inline float F32FromF16(uint16_t h) noexcept {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1Fu;
  const uint32_t mantissa = h & 0x3FFu;

  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24 is exact in f32
    const float f = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -f : f;
  }
  const uint32_t biased = exponent == 31 ? 255 : exponent + 127 - 15;
  const uint32_t quiet = exponent == 31 && mantissa != 0 ? 0x400000u : 0u;
  const uint32_t bits = sign | (biased << 23) | (mantissa << 13) | quiet;
  float f;
  memcpy(&f, &bits, sizeof(f));
  return f;
}

// Rounds to nearest, ties to even; overflow becomes infinity.
inline uint16_t F16FromF32(float f) noexcept {
  uint32_t bits;
  memcpy(&bits, &f, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7FFFFFFFu;

  if (bits > 0x7F800000u) {  // NaN
    return static_cast<uint16_t>(sign | 0x7E00u | ((bits >> 13) & 0x3FFu));
  }
  if (bits >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7C00u);  // >= 2^16
  if (bits < 0x38800000u) {  // below 2^-14, so a multiple of 2^-24
    float magnitude;
    memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude += 0.5f;  // ulp(0.5) is 2^-24: the adder rounds for us
    memcpy(&bits, &magnitude, sizeof(bits));
    return static_cast<uint16_t>(sign | (bits - 0x3F000000u));
  }
  bits += 0xFFFu + ((bits >> 13) & 1u);  // round the 13 dropped bits
  return static_cast<uint16_t>(sign | ((bits >> 13) - ((127u - 15u) << 10)));
}

// The same from and to memory of any alignment, as in quantised blocks.
inline uint16_t LoadU16(const uint8_t* p) noexcept {
  uint16_t bits;
  memcpy(&bits, p, sizeof(bits));
  return bits;
}

inline float LoadF16(const uint8_t* p) noexcept {
  uint16_t h;
  memcpy(&h, p, sizeof(h));
  return F32FromF16(h);
}

inline void StoreF16(float f, uint8_t* p) noexcept {
  const uint16_t h = F16FromF32(f);
  memcpy(p, &h, sizeof(h));
}

// bfloat16: the upper half of a binary32. Exact, bit for bit.
inline float F32FromBF16(uint16_t h) noexcept {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  memcpy(&f, &bits, sizeof(f));
  return f;
}

// Rounds to nearest, ties to even; overflow becomes infinity, NaN becomes quiet.
inline uint16_t BF16FromF32(float f) noexcept {
  uint32_t bits;
  memcpy(&bits, &f, sizeof(bits));
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
    return static_cast<uint16_t>((bits >> 16) | 0x40u);
  }
  bits += 0x7FFFu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>(bits >> 16);
}

inline float LoadBF16(const uint8_t* p) noexcept {
  uint16_t h;
  memcpy(&h, p, sizeof(h));
  return F32FromBF16(h);
}

inline void StoreBF16(float f, uint8_t* p) noexcept {
  const uint16_t h = BF16FromF32(f);
  memcpy(p, &h, sizeof(h));
}

inline float LoadF32(const uint8_t* p) noexcept {
  float f;
  memcpy(&f, p, sizeof(f));
  return f;
}

inline void StoreF32(float f, uint8_t* p) noexcept { memcpy(p, &f, sizeof(f)); }

}  // namespace halfbyte
#endif  // HALFBYTE_BASE_HALF_H_
