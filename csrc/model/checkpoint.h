// csrc/model/checkpoint.h
// The tensors of a checkpoint by name, and all that is wrong with them in one error.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_CHECKPOINT_H_
#define HALFBYTE_MODEL_CHECKPOINT_H_

#include <stddef.h>
#include <stdint.h>

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "io/tensor.h"

namespace halfbyte {

using Vector = std::vector<float>;  // small tensors, decoded at load
using Shape = std::vector<uint64_t>;

std::string Text(const Shape& shape);  // "[2, 3]"

// Text tensors of a directory have one of these prefixes; what lies beside them is
// never looked at.
inline constexpr std::string_view kTextRoots[] = {
    "model.language_model.", "language_model.model.", "language_model.", "model."};
// `name` without the first of them that it begins with, or as it is.
std::string_view WithoutRoot(std::string_view name);

class Checkpoint {
 public:
  // Borrows `tensors`.
  explicit Checkpoint(std::span<const TensorView> tensors);

  // Null if there is none of that name.
  const TensorView* Find(std::string_view name) const;
  bool Has(std::string_view name) const { return Find(name) != nullptr; }
  // Names of the tensors that were never asked for, in the order of the file.
  std::vector<std::string> Unread() const;

  // The tensor if it is there and has that shape, else null and a problem noted. The
  // second one also wants a type that can be decoded.
  const TensorView* OfShape(const std::string& name, const Shape& shape);
  const TensorView* Decodable(const std::string& name, const Shape& shape);
  // All numbers of an F32, F16 or BF16 tensor; empty if a problem was noted.
  Vector Values(const std::string& name, const Shape& shape);

  // All of a vector of `count` integers (I64, I32), which are row numbers of a matrix
  // of as many rows.
  std::vector<int32_t> Ids(const std::string& name, size_t count);

  void Problem(const char* code, const std::string& tensor, const std::string& found,
               const std::string& expected);
  // Throws one Error(kModel) that lists up to ten problems, if there are any.
  void ThrowProblems();

 private:
  std::span<const TensorView> tensors_;
  // Sorted: the standard hash of a name is known, and a file can make names collide.
  std::map<std::string_view, const TensorView*> by_name_;
  mutable std::unordered_set<const TensorView*> read_;
  size_t num_problems_ = 0;
  ErrorInfo first_;
  std::string others_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_CHECKPOINT_H_
