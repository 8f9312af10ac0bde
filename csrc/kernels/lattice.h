// csrc/kernels/lattice.h
// The lattices that quantization-aware training leaves in bf16 weights: those that
// share a step are bf16(step * level), level a small integer. A step of Q4_0 serves 32
// neighbours, one of the mobile schema a row.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_LATTICE_H_
#define HALFBYTE_KERNELS_LATTICE_H_

#include <stddef.h>
#include <stdint.h>

#include "formats/format.h"

namespace halfbyte {

// What weights that share a step turned out to be.
enum class OnLattice : uint8_t {
  kNotFinite,  // one is infinite or NaN: packed as any other weights
  kNo,         // no step makes integers of them: likewise
  kTooFew,     // they fit, as so few that are not 0 do by chance
  kLevels,     // they fit, but the step that is stored moves some by an ulp of bf16
  kExact,      // bf16(step * level) is the weight, bit for bit
};

// Q4_0, and those that hold its levels and a 16-bit step as well: Q8_0 and W4G32.
bool HasLattice(Format format) noexcept;

// Blocks of such a format of K / 32 groups of bf16, at any address, and what each of
// them is if `found` is not null. Levels are -8 .. 7, whatever the format holds.
void RecoverBlocks(Format format, const void* w, size_t K, uint8_t* blocks,
                   OnLattice* found) noexcept;

// W2, W4 and W8: one f32 step for a row.
bool HasRowLattice(Format format) noexcept;

// The blocks of a row of K bf16 weights of such a format, and its scale; kTooFew or
// kExact. Of kNotFinite and kNo neither is written.
OnLattice RecoverRow(Format format, const uint16_t* w, size_t K, uint8_t* blocks,
                     float* scale) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_LATTICE_H_
