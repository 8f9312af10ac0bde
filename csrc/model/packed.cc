// csrc/model/packed.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/packed.h"

#include <math.h>

#include <utility>

namespace halfbyte {
namespace {

struct Width {
  size_t bits;
  Format format;
  const char* type;  // of the codes' tensor
};
constexpr Width kWidths[] = {
    {2, Format::kW2, "U8"}, {4, Format::kW4, "U8"}, {8, Format::kW8, "I8"}};

// Sums of 255 * 128 stay below 2^31: the limit of the products.
constexpr size_t kMaxK = 65536;

}  // namespace

bool PackedLoader::IsEmbedding(const std::string& module) const {
  return checkpoint_.Has(module + ".embedding_quantized") ||
         checkpoint_.Has(module + ".embedding_scale");
}

std::string PackedLoader::CodesName(const std::string& module) const {
  return module + (IsEmbedding(module) ? ".embedding_quantized" : ".weight");
}

std::string PackedLoader::ScaleName(const std::string& module) const {
  return module + (IsEmbedding(module) ? ".embedding_scale" : ".weight_scale");
}

bool PackedLoader::Has(const std::string& module) const {
  if (q_.method == QuantMethod::kNone) return false;
  if (IsEmbedding(module) || checkpoint_.Has(module + ".weight_scale")) return true;
  // Without its scale it is a packed matrix still, and a broken one.
  const TensorView* weight = checkpoint_.Find(module + ".weight");
  return weight != nullptr && (weight->type == "U8" || weight->type == "I8");
}

WeightView PackedLoader::Matrix(const std::string& module, size_t N, size_t K) {
  WeightView w = Codes(CodesName(module), N, K);
  w.row_scale = Scales(ScaleName(module), {N, 1});
  if (IsEmbedding(module)) return w;
  w.x_step = Step(module + ".input_activation_scale");
  w.y_step = Step(module + ".output_activation_scale");
  return w;
}

WeightView PackedLoader::Table(const std::string& module, size_t N, size_t blocks,
                               size_t K) {
  const std::string name = ScaleName(module);
  const TensorView* scale = checkpoint_.Find(name);
  const bool by_row = scale != nullptr && scale->shape == Shape{N, 1};
  WeightView w = Codes(CodesName(module), N, blocks * K);
  if (by_row || w.data == nullptr) {
    w.row_scale = Scales(name, {N, 1});
    return w;
  }
  // Rows are chosen by 32-bit numbers.
  if (K % InfoOf(w.format).block_len != 0 || N * blocks > INT32_MAX) {
    checkpoint_.Problem("MODEL_SHAPE", name, "blocks of " + std::to_string(K),
                        "a multiple of 32 weights with one scale");
    return {};
  }
  w.N = N * blocks;
  w.K = K;
  w.row_scale = Scales(name, {N, blocks});
  return w;
}

// The width follows from the number of columns; see Quantization::widths.
WeightView PackedLoader::Codes(const std::string& name, size_t N, size_t K) {
  const TensorView* tensor = checkpoint_.Find(name);
  std::string expected;
  for (const Width& width : kWidths) {
    const Shape shape = {N, K * width.bits / 8};
    expected +=
        (expected.empty() ? "" : " or ") + std::string(width.type) + " " + Text(shape);
    if (tensor == nullptr || tensor->type != width.type || tensor->shape != shape) {
      continue;
    }
    if (!q_.MayHave(width.bits)) {
      checkpoint_.Problem("MODEL_WIDTH", name,
                          std::to_string(width.bits) + " bits by its shape",
                          "a width that quantization_config in config.json names");
      return {};
    }
    if (K % InfoOf(width.format).block_len != 0 || K > kMaxK) {
      checkpoint_.Problem("MODEL_SHAPE", name, std::to_string(K) + " weights a row",
                          "a multiple of 32, at most " + std::to_string(kMaxK));
      return {};
    }
    return {.format = width.format, .N = N, .K = K, .data = tensor->data};
  }
  if (tensor == nullptr) {
    checkpoint_.Problem("MODEL_MISSING_TENSOR", name, "none", expected);
  } else {
    checkpoint_.Problem("MODEL_SHAPE", name, tensor->type + " " + Text(tensor->shape),
                        expected);
  }
  return {};
}

const float* PackedLoader::Scales(const std::string& name, const Shape& shape) {
  const TensorView* tensor = checkpoint_.OfShape(name, shape);
  if (tensor == nullptr) return nullptr;
  if (const float* in_place = InPlace(*tensor)) {
    const size_t count = tensor->bytes / sizeof(float);
    return AreScales(name, in_place, count) ? in_place : nullptr;
  }
  Vector values = checkpoint_.Values(name, shape);
  if (!AreScales(name, values.data(), values.size())) return nullptr;
  scales_.push_back(std::move(values));
  return scales_.back().data();
}

// The scales of a large table stay in the file, as its codes do, if they are aligned
// there. Those that every token reads are worth a copy beside the repacked weights.
const float* PackedLoader::InPlace(const TensorView& tensor) {
  constexpr uint64_t kLarge = 8u << 20;
  if (tensor.bytes < kLarge || tensor.type != "F32") return nullptr;
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.data) % alignof(float) == 0;
  return aligned ? reinterpret_cast<const float*>(tensor.data) : nullptr;
}

bool PackedLoader::AreScales(const std::string& name, const float* values,
                             size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (std::isfinite(values[i]) && values[i] >= 0.0f) continue;
    checkpoint_.Problem("MODEL_SCALE", name,
                        std::to_string(values[i]) + " at index " + std::to_string(i),
                        "finite numbers, none below 0");
    return false;
  }
  return true;
}

bool PackedLoader::HasCacheSteps(const std::string& attention) const {
  return q_.method == QuantMethod::kGemma &&
         (checkpoint_.Has(attention + "k_cache_scale") ||
          checkpoint_.Has(attention + "v_cache_scale"));
}

float PackedLoader::Step(const std::string& name) {
  const TensorView* tensor = checkpoint_.Find(name);
  const bool is_vector = tensor != nullptr && tensor->shape == Shape{1};
  const Vector step = checkpoint_.Values(name, is_vector ? Shape{1} : Shape{});
  return !step.empty() && AreScales(name, step.data(), 1) ? step[0] : 0.0f;
}

}  // namespace halfbyte
