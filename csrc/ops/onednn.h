// csrc/ops/onednn.h
// oneDNN, a library that may be there: products of float weights with many tokens. It
// is never needed, and off until it is asked for: its sums run in another order, so a
// row of a batch is no longer that row alone, bit for bit (docs/numerics.md).
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_ONEDNN_H_
#define HALFBYTE_OPS_ONEDNN_H_

#include <optional>
#include <string>

#include "base/view.h"
#include "ops/linear.h"

namespace halfbyte {

struct OnednnStatus {
  std::string version, path;
  bool on;  // whether products go there
};

// Opens the library at `path`, or the one the loader knows by that name. Once one is
// open, it stays, and this does nothing. Throws Error(kUnsupported) that says why not.
void OpenOnednn(const std::string& path);

// Nothing while no library is open.
std::optional<OnednnStatus> OnednnState();

// Whether products go to the opened library from now on, in the whole process.
void UseOnednn(bool on);

// y = x W^T, if the library is on and this is a product for it: weights in F32 and 64
// tokens or more, or in BF16 and 32, where the CPU multiplies that. BF16 rounds x to
// bfloat16 too, so it has to be allowed to: not with ActivationMode::kF32. Shapes are
// trusted, and not empty. False means that y is not written, or has to be written
// again.
bool OnednnLinear(const LinearInput& x, const WeightView& w, Mat<float> y);

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_ONEDNN_H_
