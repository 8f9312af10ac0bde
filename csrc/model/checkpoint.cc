// csrc/model/checkpoint.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/checkpoint.h"

#include <string.h>

#include "kernels/format_kernels.h"

namespace halfbyte {

std::string Text(const Shape& shape) {
  std::string text = "[";
  for (const uint64_t n : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  }
  return text + "]";
}

std::string_view WithoutRoot(std::string_view name) {
  for (const std::string_view root : kTextRoots) {
    if (name.starts_with(root)) return name.substr(root.size());
  }
  return name;
}

Checkpoint::Checkpoint(std::span<const TensorView> tensors) : tensors_(tensors) {
  for (const TensorView& tensor : tensors) by_name_.emplace(tensor.name, &tensor);
}

const TensorView* Checkpoint::Find(std::string_view name) const {
  const auto it = by_name_.find(name);
  if (it == by_name_.end()) return nullptr;
  read_.insert(it->second);
  return it->second;
}

std::vector<std::string> Checkpoint::Unread() const {
  std::vector<std::string> names;
  for (const TensorView& tensor : tensors_) {
    if (!read_.contains(&tensor)) names.push_back(tensor.name);
  }
  return names;
}

const TensorView* Checkpoint::OfShape(const std::string& name, const Shape& shape) {
  const TensorView* tensor = Find(name);
  if (tensor == nullptr) {
    Problem("MODEL_MISSING_TENSOR", name, "none", Text(shape));
  } else if (tensor->shape != shape) {
    Problem("MODEL_SHAPE", name, Text(tensor->shape), Text(shape));
  } else {
    return tensor;
  }
  return nullptr;
}

const TensorView* Checkpoint::Decodable(const std::string& name, const Shape& shape) {
  const TensorView* tensor = OfShape(name, shape);
  if (tensor == nullptr || tensor->format) return tensor;
  Problem("MODEL_TYPE", name, tensor->type, "a type that can be decoded");
  return nullptr;
}

Vector Checkpoint::Values(const std::string& name, const Shape& shape) {
  const TensorView* tensor = Decodable(name, shape);
  if (tensor == nullptr) return {};
  const FormatInfo& info = InfoOf(*tensor->format);
  if (info.block_len != 1) {
    Problem("MODEL_TYPE", name, tensor->type, "F32, F16 or BF16");
    return {};
  }
  Vector values(tensor->bytes / info.block_bytes);
  KernelsFor(*tensor->format).decode_row(tensor->data, values.size(), values.data());
  return values;
}

std::vector<int32_t> Checkpoint::Ids(const std::string& name, size_t count) {
  const TensorView* tensor = OfShape(name, {count});
  if (tensor == nullptr) return {};
  const size_t width = tensor->bytes / count;
  if (tensor->type != "I64" && tensor->type != "I32") {
    Problem("MODEL_TYPE", name, tensor->type, "I64 or I32");
    return {};
  }
  std::vector<int32_t> ids(count);
  for (size_t i = 0; i < count; ++i) {
    int64_t id = 0;
    int32_t narrow = 0;
    if (width == sizeof(id)) {
      memcpy(&id, tensor->data + i * width, width);
    } else {
      memcpy(&narrow, tensor->data + i * width, sizeof(narrow));
      id = narrow;
    }
    if (id < 0 || static_cast<uint64_t>(id) >= count) {
      Problem("MODEL_IDS", name, std::to_string(id) + " at " + std::to_string(i),
              "0 to " + std::to_string(count - 1));
      return {};
    }
    ids[i] = static_cast<int32_t>(id);
  }
  return ids;
}

void Checkpoint::Problem(const char* code, const std::string& tensor,
                         const std::string& found, const std::string& expected) {
  constexpr size_t kListed = 10;
  if (++num_problems_ > kListed) return;
  if (num_problems_ == 1) {
    first_.code = code;
    first_.tensor = tensor;
    first_.found = found;
    first_.expected = expected;
  } else {
    others_ += "; tensor '" + tensor + "': found " + found + ", expected " + expected;
  }
}

void Checkpoint::ThrowProblems() {
  if (num_problems_ == 0) return;
  first_.kind = "model";
  first_.subject = "tensor '" + first_.tensor + "'";
  first_.expected += others_;
  if (num_problems_ > 1) {
    first_.hint = std::to_string(num_problems_) + " tensors are missing or misshapen: ";
  }
  first_.hint += "download or convert the model again";
  throw Error(ErrorClass::kModel, first_);
}

}  // namespace halfbyte
