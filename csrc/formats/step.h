// csrc/formats/step.h
// The step of formats whose weights are step * level, with one step for a block or a
// row: what levels there are, and which steps the format stores.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_STEP_H_
#define HALFBYTE_FORMATS_STEP_H_

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"
#include "formats/traits.h"

namespace halfbyte {

template <class Fmt>
inline constexpr int kLowestLevel = -(1 << Fmt::kZeroLog2);
template <class Fmt>
inline constexpr int kHighestLevel = -kLowestLevel<Fmt> - 1;

// Bits of infinity; what is below them is a positive step, in ascending order.
template <class Fmt>
inline constexpr uint16_t kInfiniteStep = kHasBF16Scale<Fmt> ? 0x7F80 : 0x7C00;

template <class Fmt>
inline uint16_t StepBits(float step) noexcept {
  return kHasBF16Scale<Fmt> ? BF16FromF32(step) : F16FromF32(step);
}

template <class Fmt>
inline float StepOfBits(uint16_t bits) noexcept {
  return kHasBF16Scale<Fmt> ? F32FromBF16(bits) : F32FromF16(bits);
}

// The nearest step that the format stores: finite, and 0 if its reciprocal is not.
template <class Fmt>
inline float StorableStep(float step) noexcept {
  float stored = step;
  if constexpr (!kHasRowScale<Fmt>) {
    stored = StepOfBits<Fmt>(StepBits<Fmt>(step));
    if (isinf(stored)) {
      const float largest = StepOfBits<Fmt>(kInfiniteStep<Fmt> - 1);
      stored = copysignf(largest, step);
    }
  }
  return fabsf(stored) < FLT_MIN ? 0.0f : stored;
}

template <class Fmt>
inline void StoreStep(uint16_t bits, typename Fmt::Block& b) noexcept {
  memcpy(b.d, &bits, sizeof(bits));
}

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_STEP_H_
