// csrc/model/packed.h
// Matrices that a safetensors checkpoint keeps in several tensors: codes, scales, and
// the steps of their activations.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_PACKED_H_
#define HALFBYTE_MODEL_PACKED_H_

#include <stddef.h>

#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/quantization.h"
#include "ops/linear.h"

namespace halfbyte {

// Codes stay where the file has them: its layout is that of W2, W4 and W8. Problems are
// noted in the checkpoint.
class PackedLoader {
 public:
  // Scales that have to be decoded are added to `scales`, which must live as long as
  // the views.
  PackedLoader(const Quantization& quantization, Checkpoint& checkpoint,
               std::vector<Vector>& scales)
      : q_(quantization), checkpoint_(checkpoint), scales_(scales) {}

  // True if `module` ("….q_proj") is kept in that way.
  bool Has(const std::string& module) const;
  // N x K weights with one scale a row.
  WeightView Matrix(const std::string& module, size_t N, size_t K);
  // N rows of `blocks` blocks of K weights. With a scale a block it is N x blocks rows
  // of K, with a scale a row N rows of blocks x K.
  WeightView Table(const std::string& module, size_t N, size_t blocks, size_t K);
  // A step, which 0 says is not used.
  float Step(const std::string& name);
  bool HasCacheSteps(const std::string& attention) const;

 private:
  bool IsEmbedding(const std::string& module) const;
  std::string CodesName(const std::string& module) const;
  std::string ScaleName(const std::string& module) const;
  WeightView Codes(const std::string& name, size_t N, size_t K);
  const float* Scales(const std::string& name, const Shape& shape);
  const float* InPlace(const TensorView& tensor);
  bool AreScales(const std::string& name, const float* values, size_t count);

  const Quantization& q_;
  Checkpoint& checkpoint_;
  std::vector<Vector>& scales_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_PACKED_H_
