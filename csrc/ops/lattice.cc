// csrc/ops/lattice.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/lattice.h"

#include "base/error.h"
#include "formats/format.h"
#include "ops/rows.h"

namespace halfbyte {

void RecoverQ4_0(const Context& context, Mat<const uint16_t> w, uint8_t* blocks,
                 Mat<OnLattice> found) {
  Require(w.cols % 32 == 0, "lattice: K is no multiple of 32");
  Require(found.rows == w.rows && found.cols == w.cols / 32,
          "lattice: found is not N x K / 32");
  const size_t row_bytes = RowBytes(Format::kQ4_0, w.cols);
  ForEachRow(context, w.rows, w.cols, [&](size_t n) {
    RecoverQ4_0(w.Row(n), w.cols, blocks + n * row_bytes, found.Row(n));
  });
}

}  // namespace halfbyte
