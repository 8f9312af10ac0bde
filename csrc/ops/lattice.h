// csrc/ops/lattice.h
// Matrices of bf16 weights on a lattice, back to the blocks they came from.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_LATTICE_H_
#define HALFBYTE_OPS_LATTICE_H_

#include <stddef.h>
#include <stdint.h>

#include "base/view.h"
#include "kernels/lattice.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

// Q4_0 blocks of bf16 rows, and what each group of 32 is: found.cols = w.cols / 32.
// `blocks` has room for w.rows * found.cols of them. Throws ShapeError.
void RecoverQ4_0(const Context& context, Mat<const uint16_t> w, uint8_t* blocks,
                 Mat<OnLattice> found);

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_LATTICE_H_
