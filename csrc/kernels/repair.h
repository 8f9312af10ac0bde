// csrc/kernels/repair.h
// Q4_0 blocks that the ordinary quantizer made of weights on a lattice, back on it as
// far as they tell.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_REPAIR_H_
#define HALFBYTE_KERNELS_REPAIR_H_

#include <stddef.h>
#include <stdint.h>

namespace halfbyte {

// What was done with a block.
enum class Repair : uint8_t {
  kForeign,    // no level is -8: another quantizer made it, and it stays
  kKept,       // its step is the trained one, as far as it tells; or it is of zeros
  kAmbiguous,  // it has its step back; of what was cut off at level 7, the likelier
  kRestored,   // it has its step back, and all levels
};

// From K / 32 blocks to as many, which may be the same. `done`: what was done.
void RepairQ4_0(const uint8_t* blocks, size_t K, uint8_t* to, Repair* done) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_REPAIR_H_
