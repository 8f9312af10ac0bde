// csrc/model/packed.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/packed.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <utility>

#include "kernels/format_kernels.h"

namespace halfbyte {

struct CodeLayout {
  size_t bits;  // of a code
  Format format;
  const char* type;  // of the tensor
  size_t column_bits;
  Stored stored = Stored::kBlocks;
};

namespace {

// Codes lie along a row, offset binary, the first in the lowest bits. That is what W2
// and W4 are; W8 is signed.
constexpr CodeLayout kBytes[] = {
    {2, Format::kW2, "U8", 8}, {4, Format::kW4, "U8", 8}, {8, Format::kW8, "I8", 8}};
constexpr CodeLayout kWords[] = {{2, Format::kW2, "I32", 32},
                                 {4, Format::kW4, "I32", 32},
                                 {8, Format::kW8, "I32", 32, Stored::kApart}};
constexpr CodeLayout kSignedBytes[] = {{8, Format::kW8, "I8", 8}};

}  // namespace

bool PackedLoader::IsNamed(const std::string& module) const {
  return q_.formats.contains(std::string(WithoutRoot(module)));
}

bool PackedLoader::IsEmbedding(const std::string& module) const {
  if (IsNamed(module) && WithoutRoot(module).starts_with("embed_tokens")) return true;
  return (q_.method == QuantMethod::kGemma || q_.method == QuantMethod::kHalfbyte) &&
         (checkpoint_.Has(module + ".embedding_quantized") ||
          checkpoint_.Has(module + ".embedding_scale"));
}

std::string PackedLoader::ScaleName(const std::string& module) const {
  return module + (IsEmbedding(module) ? ".embedding_scale" : ".weight_scale");
}

bool PackedLoader::Has(const std::string& module) const {
  if (q_.method == QuantMethod::kNone) return false;
  // A tied head has a format too, and no tensor beside its table's.
  if (IsNamed(module) && module != "lm_head") return true;
  if (checkpoint_.Has(ScaleName(module)) || IsEmbedding(module) ||
      checkpoint_.Has(module + ".weight_packed")) {
    return true;
  }
  // Without its scale it is a packed matrix still, and a broken one.
  const TensorView* weight = checkpoint_.Find(module + ".weight");
  return weight != nullptr && (weight->type == "U8" || weight->type == "I8");
}

WeightView PackedLoader::Matrix(const std::string& module, size_t N, size_t K) {
  if (q_.method == QuantMethod::kHalfbyte) return Rows(module, N, K);
  WeightView w = Codes(module, N, K);
  const std::string name = ScaleName(module);
  const TensorView* scale = checkpoint_.Find(name);
  const bool in_groups = q_.method == QuantMethod::kCompressedTensors && scale &&
                         scale->shape.size() == 2 && scale->shape[1] > 1;
  if (in_groups && w.data != nullptr) return Grouped(name, *scale, w);
  w.row_scale = Scales(name, {N, 1});
  LoadSteps(module, w);
  return w;
}

WeightView PackedLoader::Table(const std::string& module, size_t N, size_t blocks,
                               size_t K) {
  if (q_.method == QuantMethod::kHalfbyte) return Rows(module, N, blocks * K);
  const std::string name = ScaleName(module);
  const TensorView* scale = checkpoint_.Find(name);
  const bool by_row = scale != nullptr && scale->shape == Shape{N, 1};
  WeightView w = Codes(module, N, blocks * K);
  if (by_row || w.data == nullptr) {
    w.row_scale = TableScales(name, {N, 1});
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
  w.row_scale = TableScales(name, {N, blocks});
  return w;
}

WeightView PackedLoader::Rows(const std::string& module, size_t N, size_t K) {
  const char* bytes = IsEmbedding(module) ? ".embedding_quantized" : ".weight";
  WeightView w = Bytes(module + bytes, module, {N}, K);
  if (w.data == nullptr || !HasRowScale(w.format)) return w;
  if (K > kMaxRowScaledK) {
    checkpoint_.Problem("MODEL_SHAPE", module + bytes,
                        std::to_string(K) + " weights a row",
                        "at most " + std::to_string(kMaxRowScaledK));
    return {};
  }
  w.row_scale = Scales(ScaleName(module), {N, 1});
  return w;
}

bool PackedLoader::HasExperts(const std::string& name) const {
  if (q_.method != QuantMethod::kHalfbyte) return false;
  if (IsNamed(name)) return true;
  const TensorView* tensor = checkpoint_.Find(name);
  return tensor != nullptr && tensor->type == "U8";
}

WeightView PackedLoader::Experts(const std::string& name, size_t E, size_t N,
                                 size_t K) {
  const WeightView w = Bytes(name, name, {E, N}, K);
  if (w.data == nullptr || !HasRowScale(w.format)) return w;
  checkpoint_.Problem("MODEL_QUANTIZATION", name, InfoOf(w.format).name,
                      "a format of blocks: experts have no scales of rows");
  return {};
}

// Rows of a format, [..., bytes of a row], as they lie in memory.
WeightView PackedLoader::Bytes(const std::string& name, const std::string& module,
                               Shape shape, size_t K) {
  const auto found = q_.formats.find(std::string(WithoutRoot(module)));
  if (found == q_.formats.end()) {
    checkpoint_.Problem("MODEL_QUANTIZATION", name, "packed bytes",
                        "its format in quantization_config.module_formats");
    return {};
  }
  const FormatInfo& info = InfoOf(found->second);
  if (K % info.block_len != 0) {
    checkpoint_.Problem(
        "MODEL_SHAPE", name, std::to_string(K) + " weights a row",
        "a multiple of " + std::to_string(info.block_len) + " for " + info.name);
    return {};
  }
  size_t N = 1;
  for (const uint64_t n : shape) N *= n;
  shape.push_back(RowBytes(info.format, K));
  const TensorView* tensor = checkpoint_.Find(name);
  if (tensor == nullptr || tensor->type != "U8" || tensor->shape != shape) {
    Mismatch(name, tensor, "U8 " + Text(shape) + ", rows of " + info.stem);
    return {};
  }
  return {.format = info.format, .N = N, .K = K, .data = tensor->data};
}

WeightView PackedLoader::Codes(const std::string& module, size_t N, size_t K) {
  if (q_.method == QuantMethod::kGemma) {
    const char* codes = IsEmbedding(module) ? ".embedding_quantized" : ".weight";
    return CodesIn(module + codes, kBytes, N, K);
  }
  if (!checkpoint_.Has(module + ".weight_packed") &&
      checkpoint_.Has(module + ".weight")) {
    return CodesIn(module + ".weight", kSignedBytes, N, K);
  }
  CheckCompressed(module, N, K);
  return CodesIn(module + ".weight_packed", kWords, N, K);
}

// The width follows from the number of columns; see Quantization::widths.
WeightView PackedLoader::CodesIn(const std::string& name,
                                 std::span<const CodeLayout> layouts, size_t N,
                                 size_t K) {
  const TensorView* tensor = checkpoint_.Find(name);
  std::string expected;
  for (const CodeLayout& layout : layouts) {
    const Shape shape = {N, K * layout.bits / layout.column_bits};
    expected +=
        (expected.empty() ? "" : " or ") + std::string(layout.type) + " " + Text(shape);
    if (tensor == nullptr || tensor->type != layout.type || tensor->shape != shape) {
      continue;
    }
    if (!q_.MayHave(layout.bits)) {
      checkpoint_.Problem("MODEL_WIDTH", name,
                          std::to_string(layout.bits) + " bits by its shape",
                          "a width that quantization_config in config.json names");
      return {};
    }
    if (K % InfoOf(layout.format).block_len != 0 || K > kMaxRowScaledK) {
      checkpoint_.Problem(
          "MODEL_SHAPE", name, std::to_string(K) + " weights a row",
          "a multiple of 32, at most " + std::to_string(kMaxRowScaledK));
      return {};
    }
    return {.format = layout.format,
            .N = N,
            .K = K,
            .data = tensor->data,
            .stored = layout.stored};
  }
  Mismatch(name, tensor, expected);
  return {};
}

void PackedLoader::Mismatch(const std::string& name, const TensorView* tensor,
                            const std::string& expected) {
  if (tensor == nullptr) {
    checkpoint_.Problem("MODEL_MISSING_TENSOR", name, "none", expected);
  } else {
    checkpoint_.Problem("MODEL_SHAPE", name, tensor->type + " " + Text(tensor->shape),
                        expected);
  }
}

// What compressed-tensors says of a packed matrix beside its codes.
void PackedLoader::CheckCompressed(const std::string& module, size_t N, size_t K) {
  for (const char* extra : {".weight_zero_point", ".weight_g_idx"}) {
    if (!checkpoint_.Has(module + extra)) continue;
    checkpoint_.Problem("MODEL_QUANTIZATION", module + extra, "a tensor",
                        "none: symmetric weights in the order of their columns");
  }
  const std::string name = module + ".weight_shape";
  const TensorView* tensor = checkpoint_.OfShape(name, {2});
  if (tensor == nullptr) return;
  int64_t shape[2] = {};
  if (tensor->type == "I64") memcpy(shape, tensor->data, sizeof(shape));
  if (shape[0] == static_cast<int64_t>(N) && shape[1] == static_cast<int64_t>(K))
    return;
  checkpoint_.Problem(
      "MODEL_SHAPE", name,
      tensor->type + " " + std::to_string(shape[0]) + ", " + std::to_string(shape[1]),
      "I64 " + std::to_string(N) + ", " + std::to_string(K));
}

void PackedLoader::LoadSteps(const std::string& module, WeightView& w) {
  if (IsEmbedding(module)) return;
  if (q_.method == QuantMethod::kGemma) {
    w.x_step = Step(module + ".input_activation_scale");
    w.y_step = Step(module + ".output_activation_scale");
    return;
  }
  // Only modules that were calibrated have them.
  const std::string in = module + ".input_scale", out = module + ".output_scale";
  if (checkpoint_.Has(in)) w.x_step = Step(in);
  if (checkpoint_.Has(out)) w.y_step = Step(out);
}

// Four bits whose scales serve whole blocks of 32. Scales of both 16-bit types are kept
// bit for bit, so each has its format.
WeightView PackedLoader::Grouped(const std::string& scale_name, const TensorView& scale,
                                 WeightView w) {
  const uint64_t groups = scale.shape[1];
  const bool is_bf16 = scale.type == "BF16", fits = w.K % groups == 0;
  if (scale.shape[0] != w.N || !fits || w.K / groups % 32 != 0) {
    checkpoint_.Problem("MODEL_SHAPE", scale_name, Text(scale.shape),
                        Text({w.N, w.K / 32}) + ", or fewer and wider groups");
    return {};
  }
  if (w.format != Format::kW4 || !(is_bf16 || scale.type == "F16")) {
    checkpoint_.Problem("MODEL_QUANTIZATION", scale_name,
                        scale.type + " scales of groups of " + InfoOf(w.format).name,
                        "4-bit groups with BF16 or F16 scales");
    return {};
  }
  Vector row(groups);
  const FormatKernels& kernels = KernelsFor(*scale.format);
  for (size_t n = 0; n < w.N; ++n) {
    kernels.decode_row(scale.data + n * groups * 2, groups, row.data());
    if (!AreScales(scale_name, row.data(), groups)) return {};
  }
  w.format = is_bf16 ? Format::kW4G32 : Format::kQ4_0;
  w.stored = Stored::kApart;
  w.group_scale = scale.data;
  w.group_len = w.K / groups;
  return w;
}

// Every token reads them: a copy beside the repacked weights.
const float* PackedLoader::Scales(const std::string& name, const Shape& shape) {
  Vector values = checkpoint_.Values(name, shape);
  if (!AreScales(name, values.data(), values.size())) return nullptr;
  scales_.push_back(std::move(values));
  return scales_.back().data();
}

// A table is large and a token reads one row of it: its scales stay in the file, as its
// codes do, if they are aligned there.
const float* PackedLoader::TableScales(const std::string& name, const Shape& shape) {
  const TensorView* tensor = checkpoint_.OfShape(name, shape);
  if (tensor == nullptr) return nullptr;
  const bool aligned = reinterpret_cast<uintptr_t>(tensor->data) % alignof(float) == 0;
  if (tensor->type != "F32" || !aligned) return Scales(name, shape);
  const auto* scales = reinterpret_cast<const float*>(tensor->data);
  return AreScales(name, scales, tensor->bytes / sizeof(float)) ? scales : nullptr;
}

bool PackedLoader::AreScales(const std::string& name, const float* values,
                             size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (std::isfinite(values[i]) && values[i] >= 0.0f) continue;
    char found[48];
    snprintf(found, sizeof(found), "%g at index %zu", static_cast<double>(values[i]),
             i);
    checkpoint_.Problem("MODEL_SCALE", name, found, "finite numbers, none below 0");
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
