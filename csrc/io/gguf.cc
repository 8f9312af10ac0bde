// csrc/io/gguf.cc
// SPDX-License-Identifier: Apache-2.0
#include "io/gguf.h"

#include <stddef.h>

#include <algorithm>
#include <bit>
#include <string_view>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "base/utf8.h"
#include "io/cursor.h"
#include "io/ggml_types.h"
#include "io/sniff.h"
#include "io/unique.h"

namespace halfbyte {
namespace {

constexpr uint64_t kFixedHeaderBytes = 24;  // magic, version, two counts
// The least an entry can take: key of one byte, type and a one-byte value; a tensor's
// length field, rank, type and offset.
constexpr uint64_t kMinKeyBytes = 14;
constexpr uint64_t kMinTensorBytes = 24;
// No tensor and no sum of tensors reaches this, so that later sums cannot wrap.
constexpr uint64_t kMaxBytes = uint64_t{1} << 63;

std::string Bytes(uint64_t n) {
  return std::to_string(n) + (n == 1 ? " byte" : " bytes");
}

// What is wrong with the field at `offset` of the subject being read.
struct Problem {
  ErrorClass cls = ErrorClass::kFormat;
  const char* code = "";
  std::string field = {};
  uint64_t offset = 0;
  std::string found = {};
  std::string expected = {};
  std::string hint = {};
};

struct TextRule {
  uint64_t min_bytes;
  uint64_t max_bytes;
  ErrorClass too_long;  // kFormat if the format says so, kLimit if we do
  const char* code;
};

class Parser {
 public:
  Parser(std::span<const uint8_t> bytes, const GgufLimits& limits)
      : bytes_(bytes),
        limits_(limits),
        cursor_(bytes.first(std::min<uint64_t>(bytes.size(), limits.header_bytes))) {}

  Gguf Run();

 private:
  enum class Subject { kHeader, kKey, kTensor };
  struct TableEntry {
    uint64_t name_at;
    uint64_t offset_at;  // of the field that holds `offset`
    Untrusted offset;
  };

  // In file order.
  void ReadFixedHeader();
  void CheckVersion(uint32_t version) const;
  Untrusted ReadCount(const char* code, const char* field, uint64_t limit,
                      uint64_t min_bytes);
  void ReadKeys();
  void ReadKey();
  void ReadArray(GgufValue* value);
  void ReadStrings(GgufValue* value);
  void ReadElements(GgufValue* value);
  void ReadAlignment(const GgufValue& value);
  void CheckKeysUnique();
  void ReadSplit();
  void ReadTensors();
  void ReadTensor();
  void ReadShape(TensorView* tensor);
  void ReadType(TensorView* tensor, uint64_t entry_at, uint64_t rank_at);
  void CheckTensorsUnique();
  void PlaceTensors();
  uint64_t PlaceTensor(size_t i, uint64_t expected_offset);
  void CheckTrailing(uint64_t end);

  template <class T>
  T Read(const char* field);
  GgufType ReadGgufType(const char* code, const char* field);
  std::string_view ReadText(const TextRule& rule, const char* field);
  uint64_t Left() const { return bytes_.size() - cursor_.pos(); }

  void Begin(Subject subject, size_t index) {
    subject_ = subject;
    index_ = index;
    name_ = {};
  }
  [[noreturn]] void Fail(Problem problem) const;
  // For a field of `want` bytes at the cursor that cannot be read.
  [[noreturn]] void FailShort(const char* field, uint64_t want) const;
  // For a number that is beyond what the file can hold, or a limit, or both.
  [[noreturn]] void FailCount(Problem problem, Untrusted found, uint64_t fits,
                              uint64_t limit, ErrorClass over_limit) const;

  std::span<const uint8_t> bytes_;
  const GgufLimits& limits_;
  Cursor cursor_;  // ends at the header limit

  Subject subject_ = Subject::kHeader;
  size_t index_ = 0;
  std::string_view name_;

  Gguf out_;
  Untrusted num_tensors_, num_keys_;
  std::vector<GgufEntry> entries_;
  std::vector<GgufStringArray> arrays_;
  std::vector<TableEntry> table_;
};

// ---------------------------------------------------------------------- errors

void Parser::Fail(Problem problem) const {
  ErrorInfo info;
  info.kind = "gguf";
  info.code = problem.code;
  info.field = std::move(problem.field);
  info.offset = problem.offset;
  info.found = std::move(problem.found);
  info.expected = std::move(problem.expected);
  info.hint = std::move(problem.hint);
  if (subject_ == Subject::kHeader) {
    info.subject = "header";
    throw Error(problem.cls, std::move(info));
  }
  const std::string name = Escape(name_);
  const std::string number = "#" + std::to_string(index_);
  info.index = index_;
  info.subject = subject_ == Subject::kKey ? "key " : "tensor ";
  info.subject += name.empty() ? number : "'" + name + "' (" + number + ")";
  (subject_ == Subject::kKey ? info.key : info.tensor) = name;
  throw Error(problem.cls, std::move(info));
}

void Parser::FailShort(const char* field, uint64_t want) const {
  if (want <= Left()) {
    Fail({.cls = ErrorClass::kLimit,
          .code = "GGUF_HEADER_TOO_LARGE",
          .field = field,
          .offset = cursor_.pos(),
          .found = "a header that goes on",
          .expected = "at most " + std::to_string(limits_.header_bytes) +
                      " bytes of metadata and tensor table",
          .hint = kRaiseLimit});
  }
  Fail({.cls = ErrorClass::kTruncatedFile,
        .code = "GGUF_HEADER_TRUNCATED",
        .field = field,
        .offset = cursor_.pos(),
        .found = Bytes(Left()) + " left in the file",
        .expected = Bytes(want),
        .hint = "incomplete download?"});
}

void Parser::FailCount(Problem problem, Untrusted found, uint64_t fits, uint64_t limit,
                       ErrorClass over_limit) const {
  const bool over_file = found > fits, over = found > limit;
  problem.found = std::to_string(found.value());
  problem.expected = over_file && fits <= limit ? "at most " + std::to_string(fits) +
                                                      ", for the bytes left in the file"
                                                : "at most " + std::to_string(limit);
  // Absurd by both measures is corruption, by one of them a short or a large file.
  problem.cls = over && over_file ? ErrorClass::kFormat
                : over            ? over_limit
                                  : ErrorClass::kTruncatedFile;
  if (problem.cls == ErrorClass::kTruncatedFile) problem.hint = "incomplete download?";
  if (problem.cls == ErrorClass::kLimit) {
    problem.hint = kRaiseLimit;
  }
  Fail(std::move(problem));
}

// ---------------------------------------------------------------------- fields

template <class T>
T Parser::Read(const char* field) {
  T value;
  if (!cursor_.Read(&value)) FailShort(field, sizeof(T));
  return value;
}

GgufType Parser::ReadGgufType(const char* code, const char* field) {
  const uint64_t at = cursor_.pos();
  const auto type = Read<uint32_t>(field);
  if (type >= kNumGgufTypes) {
    Fail({.code = code,
          .field = field,
          .offset = at,
          .found = std::to_string(type),
          .expected = "0 to 12"});
  }
  return static_cast<GgufType>(type);
}

std::string_view Parser::ReadText(const TextRule& rule, const char* field) {
  const uint64_t at = cursor_.pos();
  const Untrusted len(Read<uint64_t>(field));
  if (len < rule.min_bytes) {
    Fail({.code = rule.code,
          .field = field,
          .offset = at,
          .found = "0",
          .expected = "1 to " + std::to_string(rule.max_bytes) + " bytes"});
  }
  if (len > rule.max_bytes || len > Left()) {
    FailCount({.code = rule.code, .field = field, .offset = at}, len, Left(),
              rule.max_bytes, rule.too_long);
  }
  std::string_view text;
  if (!cursor_.Take(len.value(), &text)) FailShort(field, len.value());
  return text;
}

// ---------------------------------------------------------------------- header

Gguf Parser::Run() {
  ReadFixedHeader();
  ReadKeys();
  ReadSplit();
  ReadTensors();
  PlaceTensors();
  return std::move(out_);
}

void Parser::ReadFixedHeader() {
  if (bytes_.size() < kFixedHeaderBytes) {
    constexpr uint8_t kMagic[] = {'G', 'G', 'U', 'F'};
    const size_t compared = std::min(bytes_.size(), sizeof(kMagic));
    const bool gguf = std::equal(kMagic, kMagic + compared, bytes_.begin());
    const std::string hint = gguf ? "incomplete download?" : SniffHint(bytes_);
    Fail({.cls = ErrorClass::kTruncatedFile,
          .code = "GGUF_TOO_SHORT",
          .field = "magic",
          .offset = 0,
          .found = Bytes(bytes_.size()),
          .expected = "at least " + Bytes(kFixedHeaderBytes),
          .hint = hint});
  }
  std::string_view magic;
  if (!cursor_.Take(4, &magic)) FailShort("magic", 4);
  if (magic != "GGUF") {
    Fail({.code = "GGUF_BAD_MAGIC",
          .field = "magic",
          .offset = 0,
          .found = "'" + Escape(magic) + "'",
          .expected = "'GGUF'",
          .hint = SniffHint(bytes_)});
  }
  out_.version = Read<uint32_t>("version");
  CheckVersion(out_.version);
  num_tensors_ =
      ReadCount("GGUF_TENSOR_COUNT", "tensor count", limits_.tensors, kMinTensorBytes);
  num_keys_ = ReadCount("GGUF_KV_COUNT", "key count", limits_.keys, kMinKeyBytes);
}

void Parser::CheckVersion(uint32_t version) const {
  if (version == 2 || version == 3) return;
  Problem problem{.cls = ErrorClass::kUnsupported,
                  .code = "GGUF_VERSION",
                  .field = "version",
                  .offset = 4,
                  .found = std::to_string(version),
                  .expected = "2 or 3"};
  if (version != 0 && (version & 0xFFFF) == 0) {
    problem.code = "GGUF_BIG_ENDIAN";
    problem.found = "a version with swapped bytes";
    problem.hint = "big-endian files are not read: convert it again for little-endian";
  } else if (version == 1) {
    problem.hint = "version 1 is from 2023: convert the model again";
  }
  Fail(std::move(problem));
}

Untrusted Parser::ReadCount(const char* code, const char* field, uint64_t limit,
                            uint64_t min_bytes) {
  const uint64_t at = cursor_.pos();
  const Untrusted count(Read<uint64_t>(field));
  const uint64_t fits = (bytes_.size() - kFixedHeaderBytes) / min_bytes;
  if (count > fits || count > limit) {
    FailCount({.code = code, .field = field, .offset = at}, count, fits, limit,
              ErrorClass::kLimit);
  }
  return count;
}

// ------------------------------------------------------------------------ keys

void Parser::ReadKeys() {
  const uint64_t num_keys = num_keys_.value();
  try {
    for (size_t i = 0; i < num_keys; ++i) {
      Begin(Subject::kKey, i);
      ReadKey();
    }
  } catch (const Error&) {
    CheckKeysUnique();  // a repeated key lies before this error, and the first one wins
    throw;
  }
  CheckKeysUnique();
}

void Parser::ReadKey() {
  constexpr TextRule kKeyRule = {1, kGgufMaxKeyBytes, ErrorClass::kFormat,
                                 "GGUF_KEY_LENGTH"};
  GgufEntry entry;
  entry.key = ReadText(kKeyRule, "key length");
  entry.offset = cursor_.pos() - entry.key.size();
  name_ = entry.key;
  if (const size_t bad = FirstUnclean(entry.key); bad < entry.key.size()) {
    Fail({.code = "GGUF_KEY_TEXT",
          .field = "key",
          .offset = entry.offset + bad,
          .found = "'" + Escape(entry.key.substr(bad, 1)) + "'",
          .expected = "UTF-8 without control characters"});
  }
  entries_.push_back(entry);
  GgufValue& value = entries_.back().value;
  value.type = value.element = ReadGgufType("GGUF_VALUE_TYPE", "value type");
  value.offset = cursor_.pos();
  if (value.is_array()) {
    ReadArray(&value);
  } else if (value.type == GgufType::kString) {
    const TextRule rule = {0, limits_.string_bytes, ErrorClass::kLimit,
                           "GGUF_STRING_LENGTH"};
    const std::string_view text = ReadText(rule, "string length");
    value.data = reinterpret_cast<const uint8_t*>(text.data());
    value.bytes = text.size();
  } else {
    ReadElements(&value);
  }
  if (entry.key == "general.alignment") ReadAlignment(value);
}

void Parser::ReadArray(GgufValue* value) {
  value->element = ReadGgufType("GGUF_ARRAY_TYPE", "array element type");
  if (value->element == GgufType::kArray) {
    Fail({.cls = ErrorClass::kUnsupported,
          .code = "GGUF_NESTED_ARRAY",
          .field = "array element type",
          .offset = value->offset,
          .found = "an array of arrays",
          .expected = "an array of numbers, bools or strings"});
  }
  const uint64_t at = cursor_.pos();
  const Untrusted count(Read<uint64_t>("array length"));
  const bool strings = value->element == GgufType::kString;
  const uint64_t element_bytes = strings ? sizeof(uint64_t) : BytesOf(value->element);
  const uint64_t fits = Left() / element_bytes;
  if (count > fits || count > limits_.array_elements) {
    FailCount({.code = "GGUF_ARRAY_LENGTH", .field = "array length", .offset = at},
              count, fits, limits_.array_elements, ErrorClass::kLimit);
  }
  value->count = count.value();
  if (strings) {
    ReadStrings(value);
  } else {
    ReadElements(value);
  }
}

void Parser::ReadStrings(GgufValue* value) {
  const TextRule rule = {0, limits_.string_bytes, ErrorClass::kLimit,
                         "GGUF_STRING_LENGTH"};
  // Two words for the at least eight bytes that each string takes in the file.
  arrays_.push_back(std::make_unique<std::string_view[]>(value->count));
  std::string_view* strings = arrays_.back().get();
  value->strings = strings;
  for (uint64_t i = 0; i < value->count; ++i) {
    strings[i] = ReadText(rule, "string length");
  }
}

void Parser::ReadElements(GgufValue* value) {
  const std::optional<uint64_t> bytes =
      CheckedMul(value->count, BytesOf(value->element));
  std::span<const uint8_t> data;
  if (!bytes || !cursor_.Take(*bytes, &data)) {
    FailShort("value", bytes.value_or(UINT64_MAX));
  }
  value->data = data.data();
  value->bytes = data.size();
  if (value->element != GgufType::kBool) return;
  const auto bad =
      std::find_if(data.begin(), data.end(), [](uint8_t b) { return b > 1; });
  if (bad != data.end()) {
    const auto i = static_cast<uint64_t>(bad - data.begin());
    Fail({.code = "GGUF_BOOL",
          .field = value->is_array() ? "element " + std::to_string(i) : "value",
          .offset = cursor_.pos() - data.size() + i,
          .found = std::to_string(*bad),
          .expected = "0 or 1"});
  }
}

void Parser::ReadAlignment(const GgufValue& value) {
  Problem problem{.code = "GGUF_ALIGNMENT", .field = "value", .offset = value.offset};
  if (value.type != GgufType::kU32) {
    problem.found = NameOf(value.type);
    problem.expected = "u32";
    Fail(std::move(problem));
  }
  const auto alignment = LoadLE<uint32_t>(value.data);
  if (!std::has_single_bit(alignment) || alignment > limits_.alignment) {
    const bool power = std::has_single_bit(alignment);
    problem.cls = power ? ErrorClass::kLimit : ErrorClass::kFormat;
    problem.found = std::to_string(alignment);
    problem.expected = "a power of two, at most " + std::to_string(limits_.alignment);
    if (power) problem.hint = kRaiseLimit;
    Fail(std::move(problem));
  }
  if (alignment < 8) {
    out_.warnings.push_back("general.alignment is " + std::to_string(alignment) +
                            ", the format asks for a multiple of 8");
  }
  out_.alignment = alignment;
}

void Parser::CheckKeysUnique() {
  out_.metadata = GgufMetadata(std::move(entries_), std::move(arrays_));
  const GgufEntry* repeated = out_.metadata.FirstDuplicate();
  if (repeated == nullptr) return;
  Begin(Subject::kKey, static_cast<size_t>(repeated - out_.metadata.entries().data()));
  name_ = repeated->key;
  Fail({.code = "GGUF_DUPLICATE_KEY",
        .field = "key",
        .offset = repeated->offset,
        .found = "a key that came before",
        .expected = "each key once"});
}

void Parser::ReadSplit() {
  constexpr const char* kKeys[] = {"split.no", "split.count", "split.tensors.count"};
  const GgufMetadata& m = out_.metadata;
  const auto fail = [&m](const char* key, ErrorClass cls, std::string expected) {
    throw m.ErrorAt(key, cls, "GGUF_SPLIT", Render(*m.Find(key)), std::move(expected),
                    cls == ErrorClass::kLimit ? kRaiseLimit : "");
  };
  const char* present = nullptr;
  const char* absent = nullptr;
  for (const char* key : kKeys) (m.Has(key) ? present : absent) = key;
  if (present == nullptr) return;
  if (absent != nullptr) {
    fail(present, ErrorClass::kFormat,
         "the key '" + std::string(absent) + "' beside it");
  }
  uint64_t numbers[3];
  for (size_t i = 0; i < 3; ++i) {
    const GgufScalar scalar =
        m.Find(kKeys[i])->is_array() ? GgufScalar(false) : m.Find(kKeys[i])->At(0);
    const auto* u = std::get_if<uint64_t>(&scalar);
    const auto* s = std::get_if<int64_t>(&scalar);
    if (u == nullptr && (s == nullptr || *s < 0)) {
      fail(kKeys[i], ErrorClass::kFormat, "an integer of at least 0");
    }
    numbers[i] = u != nullptr ? *u : static_cast<uint64_t>(*s);
  }
  const auto [number, count, num_tensors] = numbers;
  if (count > limits_.shards) {
    fail(kKeys[1], ErrorClass::kLimit, "at most " + std::to_string(limits_.shards));
  }
  // The reference tool marks a file that it merged from shards with a count of 0.
  if (count == 0 && number == 0) return;
  if (number >= count) {
    fail(kKeys[0], ErrorClass::kFormat,
         "less than split.count, " + std::to_string(count));
  }
  out_.split = GgufSplit{number, count, num_tensors};
}

// --------------------------------------------------------------------- tensors

void Parser::ReadTensors() {
  const uint64_t num_tensors = num_tensors_.value();
  try {
    for (size_t i = 0; i < num_tensors; ++i) {
      Begin(Subject::kTensor, i);
      ReadTensor();
    }
  } catch (const Error&) {
    CheckTensorsUnique();
    throw;
  }
  CheckTensorsUnique();
  out_.header_bytes = cursor_.pos();
}

void Parser::ReadTensor() {
  constexpr TextRule kNameRule = {1, kGgufMaxNameBytes, ErrorClass::kFormat,
                                  "GGUF_NAME"};
  const uint64_t entry_at = cursor_.pos();
  const std::string_view name = ReadText(kNameRule, "name length");
  const uint64_t name_at = cursor_.pos() - name.size();
  name_ = name;
  if (FirstUnclean(name) < name.size()) {
    Fail({.code = "GGUF_NAME",
          .field = "name",
          .offset = name_at,
          .found = "'" + Escape(name, 16) + "'",
          .expected = "UTF-8 without control characters"});
  }
  table_.push_back({.name_at = name_at, .offset_at = 0, .offset = {}});
  out_.tensors.emplace_back();
  out_.entry_offsets.push_back(entry_at);
  TensorView& tensor = out_.tensors.back();
  tensor.name = name;
  const uint64_t rank_at = cursor_.pos();
  ReadShape(&tensor);
  ReadType(&tensor, entry_at, rank_at);
  table_.back().offset_at = cursor_.pos();
  table_.back().offset = Untrusted(Read<uint64_t>("offset"));
}

// Leaves `shape` as the file has it: the contiguous dimension first.
void Parser::ReadShape(TensorView* tensor) {
  const uint64_t at = cursor_.pos();
  const auto rank = Read<uint32_t>("dimension count");
  if (rank > kGgufMaxRank) {
    Fail({.code = "GGUF_RANK",
          .field = "dimension count",
          .offset = at,
          .found = std::to_string(rank),
          .expected = "0 to 4"});
  }
  uint64_t product = 1;  // of the dimensions that are not zero
  for (uint32_t i = 0; i < rank; ++i) {
    const std::string field = "dimension " + std::to_string(i);
    const uint64_t dim_at = cursor_.pos();
    const Untrusted dim(Read<uint64_t>(field.c_str()));
    const std::optional<uint64_t> next =
        dim == 0 ? product : CheckedMul(product, dim.value());
    if (!next || *next >= kMaxBytes) {
      Fail({.code = "GGUF_DIMS_OVERFLOW",
            .field = field,
            .offset = dim_at,
            .found = std::to_string(dim.value()),
            .expected = "an element count below 2^63"});
    }
    product = *next;
    tensor->shape.push_back(dim.value());
  }
}

// Also computes `bytes`, and turns `shape` to PyTorch's order.
void Parser::ReadType(TensorView* tensor, uint64_t entry_at, uint64_t rank_at) {
  const uint64_t type_at = cursor_.pos();
  const auto id = Read<uint32_t>("type");
  const GgmlType* type = FindGgmlType(id);
  if (type == nullptr || type->block_len == 0) {
    Fail({.cls = ErrorClass::kUnsupported,
          .code = "GGUF_TENSOR_TYPE",
          .field = "type",
          .offset = type_at,
          .found = std::to_string(id) +
                   (type != nullptr ? " (" + std::string(type->name) + ", withdrawn)"
                                    : ", which is unknown"),
          .expected = "a type from 0 to 42 that is in use"});
  }
  std::vector<uint64_t>& shape = tensor->shape;
  if (shape.empty() && type->block_len > 1) {
    Fail({.code = "GGUF_RANK",
          .field = "dimension count",
          .offset = rank_at,
          .found = "0",
          .expected = "at least 1 for " + std::string(type->name)});
  }
  const uint64_t row = shape.empty() ? 1 : shape[0];
  if (row % type->block_len != 0) {
    Fail({.code = "GGUF_ROW_BLOCK",
          .field = "dimension 0",
          .offset = rank_at + sizeof(uint32_t),
          .found = std::to_string(row),
          .expected = "a multiple of " + std::to_string(type->block_len) + " for " +
                      type->name});
  }
  std::optional<uint64_t> bytes = CheckedMul(row / type->block_len, type->block_bytes);
  for (size_t i = 1; i < shape.size() && bytes; ++i)
    bytes = CheckedMul(*bytes, shape[i]);
  if (!bytes || *bytes >= kMaxBytes) {
    Fail({.code = "GGUF_BYTES_OVERFLOW",
          .field = "entry",
          .offset = entry_at,
          .found = "a size in bytes of 2^63 or more",
          .expected = "less"});
  }
  tensor->bytes = *bytes;
  tensor->type = type->name;
  if (const FormatInfo* format = FindFormat(id)) tensor->format = format->format;
  std::reverse(shape.begin(), shape.end());
}

void Parser::CheckTensorsUnique() {
  const auto name = [this](size_t i) -> std::string_view {
    return out_.tensors[i].name;
  };
  const auto repeated = FirstRepeated(SortedByName(out_.tensors.size(), name), name);
  if (!repeated) return;
  Begin(Subject::kTensor, *repeated);
  name_ = name(*repeated);
  Fail({.code = "GGUF_DUPLICATE_TENSOR",
        .field = "name",
        .offset = table_[*repeated].name_at,
        .found = "a name that came before",
        .expected = "each name once"});
}

// ------------------------------------------------------------------------ data

void Parser::PlaceTensors() {
  Begin(Subject::kHeader, 0);
  const std::optional<uint64_t> start =
      CheckedAlignUp(out_.header_bytes, out_.alignment);
  if (out_.tensors.empty()) {
    out_.data_start = start.value_or(out_.header_bytes);
    CheckTrailing(out_.header_bytes);
    return;
  }
  if (!start || *start > bytes_.size()) {
    Fail({.cls = ErrorClass::kTruncatedFile,
          .code = "GGUF_DATA_START",
          .field = "data",
          .offset = out_.header_bytes,
          .found = "the end of the file at byte " + std::to_string(bytes_.size()),
          .expected = "padding to a multiple of " + std::to_string(out_.alignment) +
                      ", then tensor data",
          .hint = "incomplete download?"});
  }
  out_.data_start = *start;
  uint64_t next = 0;  // where the next tensor has to begin, from data_start
  for (size_t i = 0; i < out_.tensors.size(); ++i) next = PlaceTensor(i, next);
  const TensorView& last = out_.tensors.back();
  CheckTrailing(last.file_offset + last.bytes);
}

// Returns where the tensor after it has to begin.
uint64_t Parser::PlaceTensor(size_t i, uint64_t expected_offset) {
  TensorView& tensor = out_.tensors[i];
  const Untrusted offset = table_[i].offset;
  Begin(Subject::kTensor, i);
  name_ = tensor.name;
  Problem problem{.field = "offset",
                  .offset = table_[i].offset_at,
                  .found = std::to_string(offset.value())};
  if (offset.value() % out_.alignment != 0) {
    problem.code = "GGUF_OFFSET_ALIGN";
    problem.expected = "a multiple of the alignment, " + std::to_string(out_.alignment);
    Fail(std::move(problem));
  }
  const uint64_t present = bytes_.size() - out_.data_start;
  if (offset > present || tensor.bytes > present - offset.value()) {
    const std::optional<uint64_t> from = CheckedAdd(out_.data_start, offset.value());
    const std::optional<uint64_t> end = from ? CheckedAdd(*from, tensor.bytes) : from;
    problem.cls = ErrorClass::kTruncatedFile;
    problem.code = "GGUF_DATA_TRUNCATED";
    problem.found = end ? "data that ends at byte " + std::to_string(*end)
                        : "data that ends beyond 2^64";
    problem.expected = "at most " + std::to_string(bytes_.size()) + ", the file's size";
    if (end) {
      problem.hint = Bytes(*end - bytes_.size()) + " missing: incomplete download?";
    }
    Fail(std::move(problem));
  }
  if (offset != expected_offset) {
    problem.code = "GGUF_LAYOUT";
    problem.expected =
        std::to_string(expected_offset) + ", the padded end of the tensor before";
    Fail(std::move(problem));
  }
  tensor.file_offset = out_.data_start + offset.value();
  tensor.data = bytes_.data() + tensor.file_offset;
  // Both terms are at most the file's size here.
  return *CheckedAlignUp(offset.value() + tensor.bytes, out_.alignment);
}

void Parser::CheckTrailing(uint64_t end) {
  const uint64_t extra = bytes_.size() - end;
  if (extra <= out_.alignment) return;
  if (limits_.strict) {
    Begin(Subject::kHeader, 0);
    Fail({.code = "GGUF_TRAILING",
          .field = "data",
          .offset = end,
          .found = Bytes(extra) + " after the last tensor",
          .expected = "the end of the file"});
  }
  out_.warnings.push_back(Bytes(extra) + " after the last tensor, which nothing uses");
}

[[noreturn]] void FailInvariant(const char* what) {
  ErrorInfo info;
  info.kind = "gguf";
  info.code = "GGUF_INTERNAL";
  info.expected = what;
  throw Error(ErrorClass::kFormat, std::move(info));
}

}  // namespace

Gguf ParseGguf(std::span<const uint8_t> bytes, const GgufLimits& limits) {
  Gguf gguf = Parser(bytes, limits).Run();
#ifndef NDEBUG
  CheckInvariants(gguf, bytes);
#endif
  return gguf;
}

void CheckInvariants(const Gguf& gguf, std::span<const uint8_t> bytes) {
  uint64_t end = gguf.tensors.empty() ? 0 : gguf.data_start;
  uint64_t total = 0;
  if (gguf.header_bytes > bytes.size() || end > bytes.size()) {
    FailInvariant("a header inside the file");
  }
  for (const TensorView& t : gguf.tensors) {
    if (t.file_offset < end) FailInvariant("no overlap");
    if (t.file_offset > bytes.size() || t.bytes > bytes.size() - t.file_offset) {
      FailInvariant("every tensor inside the file");
    }
    if (t.data != bytes.data() + t.file_offset) FailInvariant("data at its offset");
    end = t.file_offset + t.bytes;
    total += t.bytes;  // each is inside the file and none overlaps: no wrap
    if (total > bytes.size()) FailInvariant("tensors no larger than the file");
  }
  const auto name = [&gguf](size_t i) -> std::string_view {
    return gguf.tensors[i].name;
  };
  if (FirstRepeated(SortedByName(gguf.tensors.size(), name), name) ||
      gguf.metadata.FirstDuplicate() != nullptr) {
    FailInvariant("unique names");
  }
}

}  // namespace halfbyte
