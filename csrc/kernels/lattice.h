// csrc/kernels/lattice.h
// The lattice that quantization-aware training leaves in bf16 weights: 32 neighbours
// are bf16(step * level), level an integer in -8 .. 7. SPDX-License-Identifier:
// Apache-2.0

#ifndef HALFBYTE_KERNELS_LATTICE_H_
#define HALFBYTE_KERNELS_LATTICE_H_

#include <stddef.h>
#include <stdint.h>

namespace halfbyte {

// What 32 weights turned out to be.
enum class OnLattice : uint8_t {
  kNotFinite,  // one is infinite or NaN: packed as any other weights
  kNo,         // no step makes integers of them: likewise
  kTooFew,     // they fit, as fewer than kFewest that are not 0 do by chance
  kLevels,     // they fit, but rounding the step to f16 moves some by an ulp of bf16
  kExact,      // bf16(d * level) is the weight, bit for bit
};

// Two weights apart from 0 fit by chance in about one block of ten, each further one
// divides that by ten or more.
inline constexpr size_t kFewest = 4;

// Q4_0 blocks of K / 32 groups of bf16, at any address, and what each of them is if
// `found` is not null.
void RecoverQ4_0(const void* w, size_t K, uint8_t* blocks, OnLattice* found) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_LATTICE_H_
