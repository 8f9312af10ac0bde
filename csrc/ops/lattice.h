// csrc/ops/lattice.h
// Matrices of bf16 weights on a lattice, back to the blocks they came from.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_LATTICE_H_
#define HALFBYTE_OPS_LATTICE_H_

#include <stddef.h>
#include <stdint.h>

#include <span>

#include "base/view.h"
#include "formats/format.h"
#include "kernels/lattice.h"
#include "kernels/repair.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

// Weights that share a step in a lattice of rows of K weights, stored in `format`: 32,
// or K. Throws ArgumentError if no lattice is stored so.
size_t LatticeGroup(Format format, size_t K);

// Blocks of bf16 rows, the scale of each row where the format has one (else `scales` is
// empty), and what each group is: found.cols = w.cols / LatticeGroup. What is off the
// lattice is packed by the ordinary quantizer. Throws ShapeError and ArgumentError.
void RecoverLattice(const Context& context, Mat<const uint16_t> w, Format format,
                    uint8_t* blocks, std::span<float> scales, Mat<OnLattice> found);

// Q4_0 blocks of done.rows rows of 32 * done.cols weights, repaired, and what was done
// with each. `to` may be `blocks`.
void RepairLattice(const Context& context, const uint8_t* blocks, uint8_t* to,
                   Mat<Repair> done);

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_LATTICE_H_
