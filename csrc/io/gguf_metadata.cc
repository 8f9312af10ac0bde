// csrc/io/gguf_metadata.cc
// SPDX-License-Identifier: Apache-2.0
#include "io/gguf_metadata.h"

#include <float.h>
#include <math.h>
#include <stddef.h>

#include <algorithm>
#include <charconv>
#include <type_traits>

#include "io/cursor.h"
#include "io/unique.h"

namespace halfbyte {
namespace {

struct TypeInfo {
  const char* name;
  uint32_t bytes;
};

constexpr TypeInfo kTypes[kNumGgufTypes] = {
    {"u8", 1},  {"i8", 1},  {"u16", 2},  {"i16", 2},    {"u32", 4},
    {"i32", 4}, {"f32", 4}, {"bool", 1}, {"string", 0}, {"array", 0},
    {"u64", 8}, {"i64", 8}, {"f64", 8},
};

std::string Describe(const GgufValue& value) {
  if (!value.is_array()) return NameOf(value.type);
  return "array of " + std::to_string(value.count) + " " + NameOf(value.element);
}

template <class T>
std::string Decimal(T number) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), number).ptr;
  return {buffer, end};
}

std::string RenderElement(const GgufValue& value, uint64_t i) {
  const GgufScalar scalar = value.At(i);
  if (const auto* text = std::get_if<std::string_view>(&scalar)) {
    return '"' + Escape(*text) + '"';
  }
  if (const auto* flag = std::get_if<bool>(&scalar)) return *flag ? "true" : "false";
  if (const auto* number = std::get_if<double>(&scalar)) {
    // The shortest digits that give the stored number back, not its double.
    return value.element == GgufType::kF32 ? Decimal(static_cast<float>(*number))
                                           : Decimal(*number);
  }
  if (const auto* number = std::get_if<uint64_t>(&scalar)) return Decimal(*number);
  return Decimal(std::get<int64_t>(scalar));
}

// Whether, and to what, a stored element converts.
template <class T>
std::optional<T> Convert(const GgufScalar& scalar) {
  if constexpr (std::is_same_v<T, bool> || std::is_same_v<T, std::string_view>) {
    if (const T* same = std::get_if<T>(&scalar)) return *same;
  } else if constexpr (std::is_same_v<T, float>) {
    const double* number = std::get_if<double>(&scalar);
    // Beyond float's range only infinities and NaN convert.
    if (number != nullptr && !(isfinite(*number) && fabs(*number) > FLT_MAX)) {
      return static_cast<float>(*number);
    }
  } else {
    if (const auto* number = std::get_if<uint64_t>(&scalar)) {
      if (std::in_range<T>(*number)) return static_cast<T>(*number);
    }
    if (const auto* number = std::get_if<int64_t>(&scalar)) {
      if (std::in_range<T>(*number)) return static_cast<T>(*number);
    }
  }
  return std::nullopt;
}

}  // namespace

const char* NameOf(GgufType type) { return kTypes[static_cast<uint32_t>(type)].name; }
uint32_t BytesOf(GgufType type) { return kTypes[static_cast<uint32_t>(type)].bytes; }

GgufScalar GgufValue::At(uint64_t i) const {
  const auto number = [this, i]<class T>(T) { return LoadLE<T>(data + i * sizeof(T)); };
  switch (element) {
    case GgufType::kU8:
      return uint64_t{number(uint8_t{})};
    case GgufType::kI8:
      return int64_t{number(int8_t{})};
    case GgufType::kU16:
      return uint64_t{number(uint16_t{})};
    case GgufType::kI16:
      return int64_t{number(int16_t{})};
    case GgufType::kU32:
      return uint64_t{number(uint32_t{})};
    case GgufType::kI32:
      return int64_t{number(int32_t{})};
    case GgufType::kU64:
      return number(uint64_t{});
    case GgufType::kI64:
      return number(int64_t{});
    case GgufType::kF32:
      return double{number(float{})};
    case GgufType::kF64:
      return number(double{});
    case GgufType::kBool:
      return data[i] != 0;
    case GgufType::kString:
    case GgufType::kArray:  // no element is an array
      break;
  }
  if (strings != nullptr) return strings[i];
  return std::string_view(reinterpret_cast<const char*>(data), bytes);
}

std::string Render(const GgufValue& value, uint64_t max_elements) {
  if (!value.is_array()) return RenderElement(value, 0);
  std::string out = "[";
  for (uint64_t i = 0; i < std::min(value.count, max_elements); ++i) {
    if (i > 0) out += ", ";
    out += RenderElement(value, i);
  }
  if (value.count > max_elements) {
    out += max_elements > 0 ? ", ... (" : "... (";
    out += std::to_string(value.count) + " x " + NameOf(value.element) + ")";
  }
  return out + "]";
}

GgufMetadata::GgufMetadata(std::vector<GgufEntry> entries,
                           std::vector<GgufStringArray> arrays)
    : entries_(std::move(entries)), arrays_(std::move(arrays)) {
  by_key_ = SortedByName(entries_.size(), [this](size_t i) { return entries_[i].key; });
}

const GgufEntry* GgufMetadata::FirstDuplicate() const {
  const auto repeated =
      FirstRepeated(by_key_, [this](size_t i) { return entries_[i].key; });
  return repeated ? &entries_[*repeated] : nullptr;
}

const GgufValue* GgufMetadata::Find(std::string_view key) const {
  const auto it = std::lower_bound(
      by_key_.begin(), by_key_.end(), key,
      [this](uint32_t i, std::string_view k) { return entries_[i].key < k; });
  if (it == by_key_.end() || entries_[*it].key != key) return nullptr;
  return &entries_[*it].value;
}

const GgufValue& GgufMetadata::Require(std::string_view key) const {
  if (const GgufValue* value = Find(key)) return *value;
  ErrorInfo info;
  info.path = path_;
  info.kind = "gguf";
  info.code = "GGUF_MISSING_KEY";
  info.key = Escape(key);
  info.subject = "key '" + info.key + "'";
  info.found = "no such key";
  info.expected = "it to be present";
  throw Error(ErrorClass::kModel, std::move(info));
}

Error GgufMetadata::ErrorAt(std::string_view key, ErrorClass cls, const char* code,
                            std::string found, std::string expected,
                            std::string hint) const {
  ErrorInfo info;
  info.path = path_;
  info.kind = "gguf";
  info.code = code;
  info.key = Escape(key);
  info.subject = "key '" + info.key + "'";
  info.field = "value";
  if (const GgufValue* value = Find(key)) {
    const auto* entry =
        std::find_if(entries_.data(), entries_.data() + entries_.size(),
                     [value](const GgufEntry& e) { return &e.value == value; });
    info.index = static_cast<uint64_t>(entry - entries_.data());
    info.subject += " (#" + std::to_string(*info.index) + ")";
    info.offset = value->offset;
  }
  info.found = std::move(found);
  info.expected = std::move(expected);
  info.hint = std::move(hint);
  return Error(cls, std::move(info));
}

void GgufMetadata::FailType(std::string_view key, const GgufValue& value,
                            const std::string& expected) const {
  std::string found = Describe(value);
  if (!value.is_array() && value.type != GgufType::kString) {
    found += " " + Render(value);
  }
  throw ErrorAt(key, ErrorClass::kFormat, "GGUF_KEY_TYPE", found, expected);
}

void GgufMetadata::CheckLength(std::string_view key, const GgufValue& value,
                               Len len) const {
  if (len && value.is_array() && value.count != *len) {
    FailType(key, value, "an array of " + std::to_string(*len));
  }
}

template <class T>
T GgufMetadata::Scalar(std::string_view key, const char* expected) const {
  const GgufValue& value = Require(key);
  if (value.is_array()) FailType(key, value, expected);
  const std::optional<T> converted = Convert<T>(value.At(0));
  if (!converted) FailType(key, value, expected);
  return *converted;
}

template <class T>
std::vector<T> GgufMetadata::Array(std::string_view key, Len len,
                                   const char* expected) const {
  const GgufValue& value = Require(key);
  CheckLength(key, value, len);
  const std::string rule = std::string(expected) + ", or an array of them";
  std::vector<T> out;
  out.reserve(value.count);
  for (uint64_t i = 0; i < value.count; ++i) {
    const std::optional<T> converted = Convert<T>(value.At(i));
    if (!converted) {
      if (value.count == 1) FailType(key, value, rule);
      throw ErrorAt(key, ErrorClass::kFormat, "GGUF_KEY_TYPE",
                    Describe(value) + " with element " + std::to_string(i) + " = " +
                        RenderElement(value, i),
                    rule);
    }
    out.push_back(*converted);
  }
  if (len && !value.is_array()) out.resize(*len, out[0]);
  return out;
}

namespace {
constexpr char kUnsigned[] = "an integer from 0 to 2^64-1";
constexpr char kSigned[] = "an integer from -2^63 to 2^63-1";
constexpr char kFloat[] = "a number stored as f32, or as f64 in the range of f32";
constexpr char kBool[] = "a bool";
constexpr char kString[] = "a string";
}  // namespace

uint64_t GgufMetadata::GetU64(std::string_view key) const {
  return Scalar<uint64_t>(key, kUnsigned);
}
int64_t GgufMetadata::GetI64(std::string_view key) const {
  return Scalar<int64_t>(key, kSigned);
}
float GgufMetadata::GetF32(std::string_view key) const {
  return Scalar<float>(key, kFloat);
}
bool GgufMetadata::GetBool(std::string_view key) const {
  return Scalar<bool>(key, kBool);
}
std::string_view GgufMetadata::GetString(std::string_view key) const {
  return Scalar<std::string_view>(key, kString);
}

uint64_t GgufMetadata::GetU64(std::string_view key, uint64_t fallback) const {
  return Has(key) ? GetU64(key) : fallback;
}
int64_t GgufMetadata::GetI64(std::string_view key, int64_t fallback) const {
  return Has(key) ? GetI64(key) : fallback;
}
float GgufMetadata::GetF32(std::string_view key, float fallback) const {
  return Has(key) ? GetF32(key) : fallback;
}
bool GgufMetadata::GetBool(std::string_view key, bool fallback) const {
  return Has(key) ? GetBool(key) : fallback;
}
std::string_view GgufMetadata::GetString(std::string_view key,
                                         std::string_view fallback) const {
  return Has(key) ? GetString(key) : fallback;
}

std::vector<uint64_t> GgufMetadata::GetU64Array(std::string_view key, Len len) const {
  return Array<uint64_t>(key, len, kUnsigned);
}
std::vector<int64_t> GgufMetadata::GetI64Array(std::string_view key, Len len) const {
  return Array<int64_t>(key, len, kSigned);
}
std::vector<float> GgufMetadata::GetF32Array(std::string_view key, Len len) const {
  return Array<float>(key, len, kFloat);
}
std::vector<bool> GgufMetadata::GetBoolArray(std::string_view key, Len len) const {
  return Array<bool>(key, len, kBool);
}

std::span<const std::string_view> GgufMetadata::GetStringArray(std::string_view key,
                                                               Len len) const {
  const GgufValue& value = Require(key);
  if (!value.is_array() || value.element != GgufType::kString) {
    FailType(key, value, "an array of strings");
  }
  CheckLength(key, value, len);
  return {value.strings, value.count};
}

}  // namespace halfbyte
