// csrc/model/packed.h
// Matrices that a safetensors checkpoint keeps in several tensors: codes, scales, and
// the steps of their activations.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_PACKED_H_
#define HALFBYTE_MODEL_PACKED_H_

#include <stddef.h>

#include <span>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/quantization.h"
#include "ops/linear.h"

namespace halfbyte {

struct CodeLayout;  // of a tensor of codes

// Codes stay where the file has them. Problems are noted in the checkpoint.
class PackedLoader {
 public:
  // Scales that have to be decoded are added to `scales`, which must live as long as
  // the views.
  PackedLoader(const Quantization& quantization, Checkpoint& checkpoint,
               std::vector<Vector>& scales)
      : q_(quantization), checkpoint_(checkpoint), scales_(scales) {}

  // True if `module` ("….q_proj") is kept in that way.
  bool Has(const std::string& module) const;
  // N x K weights.
  WeightView Matrix(const std::string& module, size_t N, size_t K);
  // N rows of `blocks` blocks of K weights. With a scale a block it is N x blocks rows
  // of K, with a scale a row N rows of blocks x K.
  WeightView Table(const std::string& module, size_t N, size_t blocks, size_t K);

  // The same for the matrices of a mixture's experts, E of N x K in one tensor, which
  // is a parameter of its own ("….experts.down_proj").
  bool HasExperts(const std::string& name) const;
  WeightView Experts(const std::string& name, size_t E, size_t N, size_t K);

  // Whether a layer's attention ("….self_attn.") has steps for its cache.
  bool HasCacheSteps(const std::string& attention) const;
  // A step, which 0 says is not used.
  float Step(const std::string& name);

 private:
  bool IsNamed(const std::string& module) const;  // by Quantization::formats
  bool IsEmbedding(const std::string& module) const;
  std::string ScaleName(const std::string& module) const;
  WeightView Codes(const std::string& module, size_t N, size_t K);
  WeightView CodesIn(const std::string& name, std::span<const CodeLayout> layouts,
                     size_t N, size_t K);
  WeightView Rows(const std::string& module, size_t N, size_t K);
  WeightView Bytes(const std::string& name, const std::string& module, Shape shape,
                   size_t K);
  // Notes a tensor that is missing (null), or of another type or shape.
  void Mismatch(const std::string& name, const TensorView* tensor,
                const std::string& expected);
  void CheckCompressed(const std::string& module, size_t N, size_t K);
  void LoadSteps(const std::string& module, WeightView& w);
  WeightView Grouped(const std::string& scale_name, const TensorView& scale,
                     WeightView w);

  const float* Scales(const std::string& name, const Shape& shape);
  const float* TableScales(const std::string& name, const Shape& shape);
  bool AreScales(const std::string& name, const float* values, size_t count);

  const Quantization& q_;
  Checkpoint& checkpoint_;
  std::vector<Vector>& scales_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_PACKED_H_
