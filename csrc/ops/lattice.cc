// csrc/ops/lattice.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/lattice.h"

#include <algorithm>
#include <memory>
#include <string>

#include "base/error.h"
#include "kernels/convert.h"
#include "kernels/format_kernels.h"
#include "ops/rows.h"

namespace halfbyte {
namespace {

// One scale for the row. Off the lattice, as the ordinary quantizer packs it.
OnLattice RecoverOrPack(Format format, const uint16_t* w, size_t K, uint8_t* blocks,
                        float* scale) {
  const OnLattice kind = RecoverRow(format, w, K, blocks, scale);
  if (kind == OnLattice::kNo || kind == OnLattice::kNotFinite) {
    const auto floats = std::make_unique_for_overwrite<float[]>(K);
    ConvertBF16ToF32(w, K, floats.get());
    *scale = KernelsFor(format).encode_row_scaled_ref(floats.get(), K, blocks);
  }
  return kind;
}

}  // namespace

size_t LatticeGroup(Format format, size_t K) {
  if (HasLattice(format)) return 32;
  if (HasRowLattice(format)) return std::max<size_t>(K, 1);
  throw Error(ErrorClass::kValue,
              std::string("format: no lattice is stored in ") + InfoOf(format).stem);
}

void RecoverLattice(const Context& context, Mat<const uint16_t> w, Format format,
                    uint8_t* blocks, std::span<float> scales, Mat<OnLattice> found) {
  const size_t group = LatticeGroup(format, w.cols),
               row_bytes = RowBytes(format, w.cols);
  Require(w.cols % 32 == 0, "lattice: K is no multiple of 32");
  Require(found.rows == w.rows && found.cols == w.cols / group,
          "lattice: found has not an item for each group");
  const bool of_row = HasRowLattice(format);
  Require(scales.size() == (of_row ? w.rows : 0), "lattice: scales are not one a row");
  ForEachRow(context, w.rows, w.cols, [&](size_t n) {
    uint8_t* to = blocks + n * row_bytes;
    if (!of_row) return RecoverBlocks(format, w.Row(n), w.cols, to, found.Row(n));
    const OnLattice kind = RecoverOrPack(format, w.Row(n), w.cols, to, &scales[n]);
    if (found.cols != 0) *found.Row(n) = kind;
  });
}

void RepairLattice(const Context& context, const uint8_t* blocks, uint8_t* to,
                   Mat<Repair> done) {
  const size_t K = 32 * done.cols, row_bytes = RowBytes(Format::kQ4_0, K);
  ForEachRow(context, done.rows, K, [&](size_t n) {
    RepairQ4_0(blocks + n * row_bytes, K, to + n * row_bytes, done.Row(n));
  });
}

}  // namespace halfbyte
