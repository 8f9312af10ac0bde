// csrc/formats/k_scales.h
// The twelve bytes of Q4_K and Q5_K that hold eight 6-bit scales and eight 6-bit
// minima: [s0..s3 | s4..s7 high << 6][m0..m3 | m4..m7 high << 6][s4..s7 low | m4..m7
// low << 4]
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_K_SCALES_H_
#define HALFBYTE_FORMATS_K_SCALES_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace halfbyte {

// The definition, one at a time.
inline int KScale(const uint8_t* s, size_t k) noexcept {
  return k < 4 ? s[k] & 63 : (s[k + 4] & 15) | (s[k - 4] >> 6) << 4;
}
inline int KMin(const uint8_t* s, size_t k) noexcept {
  return k < 4 ? s[k + 4] & 63 : (s[k + 4] >> 4) | (s[k] >> 6) << 4;
}

// All of them, four a 32-bit word.
inline void UnpackKScales(const uint8_t* bytes, int8_t* scales, int8_t* mins) noexcept {
  uint32_t s[3];
  memcpy(s, bytes, sizeof(s));
  const auto high = [](uint32_t word) { return ((word >> 6) & 0x03030303u) << 4; };
  const uint32_t scale[2] = {s[0] & 0x3F3F3F3Fu, (s[2] & 0x0F0F0F0Fu) | high(s[0])};
  const uint32_t min[2] = {s[1] & 0x3F3F3F3Fu,
                           ((s[2] >> 4) & 0x0F0F0F0Fu) | high(s[1])};
  memcpy(scales, scale, sizeof(scale));
  memcpy(mins, min, sizeof(min));
}

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_K_SCALES_H_
