// csrc/model/quantization.h
// What config.json says of how a safetensors checkpoint was quantised.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_QUANTIZATION_H_
#define HALFBYTE_MODEL_QUANTIZATION_H_

#include <stddef.h>

#include <map>
#include <string>

#include "formats/format.h"
#include "io/json.h"

namespace halfbyte {

enum class QuantMethod {
  kNone,               // tensors are matrices
  kGemma,              // the mobile schema: codes, a scale a row, steps of activations
  kCompressedTensors,  // codes, scales of rows or groups, perhaps steps
  kHalfbyte,           // rows of our own formats, as HalfbyteConfig packs them
};

struct Quantization {
  QuantMethod method = QuantMethod::kNone;
  // Widths in bits that some module may have. Which module has which of them is seen
  // from its tensors' names and shapes, which leave no choice. The configs' own ways to
  // say it, lists of regular expressions over names, are not followed: they could only
  // repeat the tensors or contradict them, and an expression from a stranger may take
  // forever to match.
  unsigned widths = 0;  // the sum of those of 2, 4 and 8
  // kHalfbyte: of packed modules, and of the two matrices of a mixture's experts, by
  // their names without the root (WithoutRoot). Bytes alone do not tell the format.
  std::map<std::string, Format> formats = {};

  bool MayHave(size_t bits) const { return (widths & bits) != 0; }
};

// `root` is config.json. Throws Error: kUnsupported for a method that is not handled,
// kModel (MODEL_HPARAM) naming the key of a value that is none of those it may have.
Quantization QuantizationFromJson(const JsonValue& root);

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_QUANTIZATION_H_
