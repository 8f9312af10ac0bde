// csrc/io/gguf_metadata.h
// The keys of a GGUF file in file order, and getters that check what they convert.
// Strings and arrays stay where they are: in the bytes that were parsed.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_IO_GGUF_METADATA_H_
#define HALFBYTE_IO_GGUF_METADATA_H_

#include <stdint.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"

namespace halfbyte {

// As stored in the file.
enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};
inline constexpr uint32_t kNumGgufTypes = 13;

const char* NameOf(GgufType type);  // "u8", "string"
// Bytes of one element in the file; 0 for strings and arrays, which vary.
uint32_t BytesOf(GgufType type);

using GgufScalar = std::variant<uint64_t, int64_t, double, bool, std::string_view>;

struct GgufValue {
  GgufType type = GgufType::kU8;     // kArray for arrays
  GgufType element = GgufType::kU8;  // of the array; `type` itself for scalars
  uint64_t count = 1;                // elements
  uint64_t offset = 0;               // absolute, of the value's first byte
  // Numbers and bools: the elements back to back, of any alignment. A single string:
  // its text. Arrays of strings: null.
  const uint8_t* data = nullptr;
  uint64_t bytes = 0;
  const std::string_view* strings = nullptr;  // (count,), arrays of strings only

  bool is_array() const { return type == GgufType::kArray; }
  // Element `i` < count. Not range-checked.
  GgufScalar At(uint64_t i) const;
};

// What a person wants to see on one line: `[1, 2, 3, ... (262144 x u32)]`, escaped.
std::string Render(const GgufValue& value, uint64_t max_elements = 6);

struct GgufEntry {
  std::string_view key;  // clean UTF-8
  uint64_t offset = 0;   // absolute, of the key's first character
  GgufValue value;
};

using GgufStringArray = std::unique_ptr<std::string_view[]>;

class GgufMetadata {
 public:
  GgufMetadata() = default;
  // `arrays` owns what the entries' `strings` point to.
  GgufMetadata(std::vector<GgufEntry> entries, std::vector<GgufStringArray> arrays);

  const std::vector<GgufEntry>& entries() const { return entries_; }  // in file order
  // The later of the first two equal keys, if there are any.
  const GgufEntry* FirstDuplicate() const;

  const GgufValue* Find(std::string_view key) const;  // null if absent
  bool Has(std::string_view key) const { return Find(key) != nullptr; }

  // Each getter throws Error of class kFormat, code GGUF_KEY_TYPE, if the value is of
  // another kind or does not fit: integers of any width convert when in range, f32 and
  // f64 to float, nothing else. Without a fallback a missing key is an Error of class
  // kModel, code GGUF_MISSING_KEY.
  uint64_t GetU64(std::string_view key) const;
  int64_t GetI64(std::string_view key) const;
  float GetF32(std::string_view key) const;
  bool GetBool(std::string_view key) const;
  std::string_view GetString(std::string_view key) const;
  uint64_t GetU64(std::string_view key, uint64_t fallback) const;
  int64_t GetI64(std::string_view key, int64_t fallback) const;
  float GetF32(std::string_view key, float fallback) const;
  bool GetBool(std::string_view key, bool fallback) const;
  std::string_view GetString(std::string_view key, std::string_view fallback) const;

  // Arrays. A scalar counts as one element, or as `len` equal ones if a length is
  // asked for; an array of another length is refused then.
  using Len = std::optional<uint64_t>;
  std::vector<uint64_t> GetU64Array(std::string_view key, Len len = {}) const;
  std::vector<int64_t> GetI64Array(std::string_view key, Len len = {}) const;
  std::vector<float> GetF32Array(std::string_view key, Len len = {}) const;
  std::vector<bool> GetBoolArray(std::string_view key, Len len = {}) const;
  // Arrays only: a single string is no list.
  std::span<const std::string_view> GetStringArray(std::string_view key,
                                                   Len len = {}) const;

  // An error about the value of `key`, which is present.
  Error ErrorAt(std::string_view key, ErrorClass cls, const char* code,
                std::string found, std::string expected, std::string hint = "") const;
  // From now on the errors of the getters name this file.
  void set_path(std::string path) { path_ = std::move(path); }
  const std::string& path() const { return path_; }

 private:
  template <class T>
  T Scalar(std::string_view key, const char* expected) const;
  template <class T>
  std::vector<T> Array(std::string_view key, Len len, const char* expected) const;
  const GgufValue& Require(std::string_view key) const;
  [[noreturn]] void FailType(std::string_view key, const GgufValue& value,
                             const std::string& expected) const;
  void CheckLength(std::string_view key, const GgufValue& value, Len len) const;

  std::vector<GgufEntry> entries_;
  std::vector<GgufStringArray> arrays_;
  std::vector<uint32_t> by_key_;  // indices of entries_, sorted by key, then position
  std::string path_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_IO_GGUF_METADATA_H_
