// csrc/formats/row_scale.h
// The quantizer that formats with one scale a row share.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_ROW_SCALE_H_
#define HALFBYTE_FORMATS_ROW_SCALE_H_

#include <math.h>
#include <stddef.h>
#include <stdint.h>

namespace halfbyte {

// From weights to levels; returns the scale of the row. The largest magnitude becomes
// the highest level, halves go to the even one.
template <class Fmt>
float EncodeRowScaled(const float* in, size_t num_blocks,
                      typename Fmt::Block* row) noexcept {
  constexpr float kLowest = -static_cast<float>(1 << Fmt::kZeroLog2);
  constexpr float kHighest = -kLowest - 1.0f;
  float largest = 0.0f;
  for (size_t i = 0; i < num_blocks * Fmt::kBlockLen; ++i) {
    largest = fmaxf(largest, fabsf(in[i]));
  }
  const float scale = largest / kHighest;
  for (size_t b = 0; b < num_blocks; ++b, in += Fmt::kBlockLen) {
    uint8_t codes[Fmt::kBlockLen];
    for (size_t i = 0; i < Fmt::kBlockLen; ++i) {
      const float level = scale == 0.0f ? 0.0f : rintf(in[i] / scale);
      codes[i] = static_cast<uint8_t>(fmaxf(kLowest, fminf(kHighest, level)) - kLowest);
    }
    Fmt::Pack(codes, row[b]);
  }
  return scale;
}

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_ROW_SCALE_H_
