// csrc/io/safetensors.cc
// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <errno.h>
#include <stddef.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <numeric>
#include <optional>
#include <set>
#include <string_view>
#include <system_error>

#include "base/checked.h"
#include "base/error.h"
#include "base/utf8.h"
#include "io/cursor.h"
#include "io/json.h"
#include "io/sniff.h"
#include "io/unique.h"

namespace halfbyte {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kTooLarge = uint64_t{1} << 63;  // the format's integers are below it
constexpr std::string_view kMetadataKey = "__metadata__";
constexpr const char* kOneFile = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

struct DType {
  std::string_view name;
  uint32_t bits;
  std::optional<Format> format;
};

constexpr DType kDTypes[] = {
    {"F64", 64, {}},           {"F32", 32, Format::kF32},
    {"F16", 16, Format::kF16}, {"BF16", 16, Format::kBF16},
    {"I64", 64, {}},           {"I32", 32, {}},
    {"I16", 16, {}},           {"I8", 8, {}},
    {"U64", 64, {}},           {"U32", 32, {}},
    {"U16", 16, {}},           {"U8", 8, {}},
    {"BOOL", 8, {}},           {"C64", 64, {}},
    {"F8_E4M3", 8, {}},        {"F8_E5M2", 8, {}},
    {"F8_E8M0", 8, {}},        {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2FNUZ", 8, {}},    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},        {"F4", 4, {}},
};

const DType* FindDType(std::string_view name) {
  for (const DType& d : kDTypes) {
    if (d.name == name) return &d;
  }
  return nullptr;
}

std::string Quote(std::string_view text) { return "'" + Escape(text) + "'"; }

// ------------------------------------------------------------------- one file

// What is being read, for a complaint: the header as a whole, or one tensor in it.
struct Place {
  std::string_view subject = "header";
  std::optional<uint64_t> tensor;  // its number; `subject` is its name
};

class HeaderParser {
 public:
  HeaderParser(std::span<const uint8_t> bytes, const SafetensorsLimits& limits)
      : bytes_(bytes), limits_(limits) {}

  SafetensorsHeader Run();

 private:
  struct Fields {
    JsonValue dtype, shape, offsets;  // a string and two arrays
  };

  std::string_view ReadHeaderText();
  void CheckPadding(std::string_view header);
  JsonDocument ParseHeader(std::string_view header);
  void ReadMetadata(const JsonValue& value);
  void ReadTensor(const JsonMember& member);
  void CheckName(const JsonMember& member);
  Fields ReadFields(const JsonValue& value);
  uint64_t ReadShape(const JsonValue& shape, const DType& dtype, TensorView* t);
  uint64_t ReadBegin(const JsonValue& offsets, const TensorView& t);
  uint64_t Integer(const JsonValue& v, const char* field);
  void CheckLayout(const JsonValue& root);
  JsonValue OffsetField(const JsonValue& root, uint32_t tensor, size_t which) const;

  uint64_t DataBytes() const { return bytes_.size() - out_.data_start; }

  [[noreturn]] void Fail(ErrorClass cls, const char* code, const char* field,
                         uint64_t offset, std::string found, std::string expected,
                         std::string hint = "");
  [[noreturn]] void Fail(const char* code, const char* field, uint64_t offset,
                         std::string found, std::string expected) {
    Fail(ErrorClass::kFormat, code, field, offset, std::move(found),
         std::move(expected));
  }

  const std::span<const uint8_t> bytes_;
  const SafetensorsLimits& limits_;
  Place place_;
  SafetensorsHeader out_;
};

void HeaderParser::Fail(ErrorClass cls, const char* code, const char* field,
                        uint64_t offset, std::string found, std::string expected,
                        std::string hint) {
  ErrorInfo info;
  info.kind = "safetensors";
  info.code = code;
  info.subject = place_.subject;
  if (place_.tensor) {
    info.tensor = Escape(place_.subject);
    info.index = place_.tensor;
    info.subject =
        "tensor '" + info.tensor + "' (#" + std::to_string(*info.index) + ")";
  }
  info.field = field;
  info.offset = offset;
  info.found = std::move(found);
  info.expected = std::move(expected);
  info.hint = std::move(hint);
  throw Error(cls, std::move(info));
}

SafetensorsHeader HeaderParser::Run() {
  const std::string_view header = ReadHeaderText();
  const JsonDocument document = ParseHeader(header);
  const JsonValue root = document.root();

  const uint64_t num_tensors = root.size() - (root.Find(kMetadataKey) ? 1 : 0);
  if (num_tensors > limits_.tensors) {
    Fail(ErrorClass::kLimit, "ST_JSON", "tensors", kLengthBytes,
         std::to_string(num_tensors), "at most " + std::to_string(limits_.tensors),
         kRaiseLimit);
  }
  out_.tensors.reserve(num_tensors);
  for (const JsonMember& m : root.Members()) {
    if (m.key == kMetadataKey) {
      ReadMetadata(m.value);
    } else {
      ReadTensor(m);
    }
  }
  CheckLayout(root);
  for (TensorView& t : out_.tensors) t.data = bytes_.data() + t.file_offset;
  return std::move(out_);
}

std::string_view HeaderParser::ReadHeaderText() {
  Cursor cursor(bytes_);
  uint64_t length = 0;
  std::string_view header;
  const uint64_t present = bytes_.size();
  if (!cursor.Read(&length)) {
    Fail(ErrorClass::kTruncatedFile, "ST_TOO_SHORT", "length", 0,
         std::to_string(present) + " bytes", "at least 8",
         std::to_string(kLengthBytes - present) +
             " bytes missing: incomplete download?");
  }
  if (length > limits_.header_bytes) {
    const bool is_one = LooksLikeSafetensors(bytes_);
    const std::string hint = is_one ? kRaiseLimit : SniffHint(bytes_);
    Fail(is_one || hint.empty() ? ErrorClass::kLimit : ErrorClass::kFormat,
         "ST_HEADER_TOO_LARGE", "length", 0, std::to_string(length),
         "at most " + std::to_string(limits_.header_bytes), hint);
  }
  if (length < 2) {
    Fail("ST_HEADER_LENGTH", "length", 0, std::to_string(length), "at least 2");
  }
  if (!cursor.Take(length, &header)) {
    Fail(ErrorClass::kTruncatedFile, "ST_HEADER_LENGTH", "length", 0,
         std::to_string(length),
         "at most " + std::to_string(cursor.remaining()) + ", the bytes that follow",
         std::to_string(length - cursor.remaining()) +
             " bytes missing: incomplete download?");
  }
  out_.data_start = cursor.pos();
  return header;
}

// Around the object only JSON's spaces are padding; NUL in particular is not.
void HeaderParser::CheckPadding(std::string_view header) {
  static constexpr std::string_view kSpaces = " \t\n\r";
  const auto is_control = [](char c) { return static_cast<uint8_t>(c) < 0x20; };
  const auto fail = [&](const char* code, size_t at, const char* expected) {
    const std::string found =
        at < header.size() ? Quote(header.substr(at, 1)) : "the end";
    Fail(code, "text", kLengthBytes + at, found, expected);
  };

  const size_t start = std::min(header.find_first_not_of(kSpaces), header.size());
  if (start == header.size() || header[start] != '{') {
    const bool padding = start < header.size() && is_control(header[start]);
    fail(padding ? "ST_PADDING" : "ST_HEADER_START", start, "'{'");
  }
  size_t end = header.size();
  while (is_control(header[end - 1]) || header[end - 1] == ' ') --end;
  const size_t bad = header.find_first_not_of(kSpaces, end);
  if (bad != std::string_view::npos) {
    fail("ST_PADDING", bad, "spaces only after the object");
  }
}

JsonDocument HeaderParser::ParseHeader(std::string_view header) {
  JsonOptions options;
  options.kind = "safetensors";
  options.subject = "header";
  options.utf8_code = "ST_UTF8";
  options.syntax_code = "ST_JSON";
  options.duplicate_code = "ST_DUPLICATE";
  options.base_offset = kLengthBytes;
  options.max_depth = kJsonMaxHeaderDepth;
  options.max_string_bytes = kSafetensorsMaxMetadataBytes;
  // All tensors that a caller allows, and __metadata__. A limit may be the largest
  // number there is.
  options.max_members = std::max<uint64_t>(
      options.max_members, std::min(limits_.tensors, UINT64_MAX - 1) + 1);
  options.max_members_hint = kRaiseLimit;
  options.max_bytes =
      std::clamp<uint64_t>(limits_.header_bytes, options.max_bytes, kJsonMostBytes);
  // Text that is no UTF-8 is refused as that, whatever surrounds it.
  const bool bom = header.starts_with("\xEF\xBB\xBF");
  if (!bom && FirstInvalidUtf8(header) == header.size()) CheckPadding(header);
  return ParseJson(header, options);
}

void HeaderParser::ReadMetadata(const JsonValue& value) {
  place_ = {"key '__metadata__'", std::nullopt};
  const auto fail = [&](uint64_t offset, std::string found, const char* expected) {
    Fail("ST_METADATA", "value", offset, std::move(found), expected);
  };
  if (!value.IsObject()) fail(value.offset(), value.Describe(), "an object");
  for (const JsonMember& m : value.Members()) {
    if (m.key.size() > kSafetensorsMaxStringBytes) {
      Fail(ErrorClass::kLimit, "ST_JSON", "metadata key", m.key_offset,
           std::to_string(m.key.size()) + " bytes",
           "at most " + std::to_string(kSafetensorsMaxStringBytes));
    }
    if (FirstUnclean(m.key) != m.key.size()) {
      fail(m.key_offset, Quote(m.key), "a key without control characters");
    }
    if (!m.value.IsString()) fail(m.value.offset(), m.value.Describe(), "a string");
    out_.metadata.emplace_back(m.key, m.value.AsString());
  }
}

void HeaderParser::CheckName(const JsonMember& member) {
  const std::string_view name = member.key;
  if (name.empty() || name.size() > kSafetensorsMaxNameBytes) {
    Fail("ST_NAME", "name", member.key_offset, std::to_string(name.size()) + " bytes",
         "1 to " + std::to_string(kSafetensorsMaxNameBytes));
  }
  if (FirstUnclean(name) != name.size()) {
    Fail("ST_NAME", "name", member.key_offset, Quote(name), "no control characters");
  }
}

HeaderParser::Fields HeaderParser::ReadFields(const JsonValue& value) {
  if (!value.IsObject()) {
    Fail("ST_FIELDS", "value", value.offset(), value.Describe(), "an object");
  }
  std::optional<JsonValue> dtype, shape, offsets;
  for (const JsonMember& f : value.Members()) {
    if (f.key == "dtype" && f.value.IsString()) {
      dtype = f.value;
    } else if (f.key == "shape" && f.value.IsArray()) {
      shape = f.value;
    } else if (f.key == "data_offsets" && f.value.IsArray()) {
      offsets = f.value;
    } else {
      Fail("ST_FIELDS", "field", f.key_offset, Quote(f.key) + ": " + f.value.Describe(),
           "a string dtype, arrays shape and data_offsets, nothing else");
    }
  }
  if (!dtype || !shape || !offsets) {
    const char* missing = !dtype ? "dtype" : !shape ? "shape" : "data_offsets";
    Fail("ST_FIELDS", "value", value.offset(), std::string("no ") + missing,
         "dtype, shape and data_offsets");
  }
  return {*dtype, *shape, *offsets};
}

void HeaderParser::ReadTensor(const JsonMember& member) {
  place_ = {member.key, out_.tensors.size()};
  CheckName(member);
  const Fields fields = ReadFields(member.value);
  const DType* type = FindDType(fields.dtype.AsString());
  if (type == nullptr) {
    Fail("ST_DTYPE", "dtype", fields.dtype.offset(), Quote(fields.dtype.AsString()),
         "a type of the format, such as BF16");
  }
  TensorView t;
  t.name = member.key;
  t.type = type->name;
  t.format = type->format;
  t.bytes = ReadShape(fields.shape, *type, &t);
  // The sum of two numbers below 2^63.
  t.file_offset = out_.data_start + ReadBegin(fields.offsets, t);
  out_.tensors.push_back(std::move(t));
}

uint64_t HeaderParser::Integer(const JsonValue& v, const char* field) {
  static constexpr const char* kRule = "digits only, below 2^63";
  if (!v.IsInteger() || v.NumberText().front() == '-') {
    Fail("ST_INTEGER", field, v.offset(), v.Describe(), kRule);
  }
  uint64_t value = kTooLarge;
  if (v.NumberText().size() <= 19) value = v.AsUint64();  // 10^19 is below 2^64
  if (value >= kTooLarge) Fail("ST_INTEGER", field, v.offset(), v.Describe(), kRule);
  return value;
}

// The bytes of a tensor of this shape.
uint64_t HeaderParser::ReadShape(const JsonValue& shape, const DType& dtype,
                                 TensorView* t) {
  if (shape.size() > limits_.rank) {
    Fail(ErrorClass::kLimit, "ST_OVERFLOW", "shape", shape.offset(),
         std::to_string(shape.size()) + " dimensions",
         "at most " + std::to_string(limits_.rank), kRaiseLimit);
  }
  // Without the zeros, so that {0, 2^62, 2^62} is refused in any order.
  uint64_t bits = dtype.bits;
  bool empty = false;
  t->shape.reserve(shape.size());
  for (const JsonValue& v : shape.Elements()) {
    const uint64_t dim = Integer(v, "shape");
    t->shape.push_back(dim);
    if (dim == 0) {
      empty = true;
      continue;
    }
    const std::optional<uint64_t> product = CheckedMul(bits, dim);
    if (!product) {
      Fail("ST_OVERFLOW", "shape", v.offset(), v.Describe(),
           "fewer than 2^64 bits in the tensor");
    }
    bits = *product;
  }
  if (empty) return 0;
  if (bits % 8 != 0) {
    Fail("ST_SUBBYTE", "shape", shape.offset(), std::to_string(bits) + " bits",
         "a whole number of bytes");
  }
  return bits / 8;
}

// Where a tensor's data begins, counted from data_start.
uint64_t HeaderParser::ReadBegin(const JsonValue& offsets, const TensorView& t) {
  if (offsets.size() != 2) {
    Fail("ST_OFFSETS", "data_offsets", offsets.offset(),
         std::to_string(offsets.size()) + " numbers", "2");
  }
  auto it = offsets.Elements().begin();
  const uint64_t begin = Integer(*it, "data_offsets");
  ++it;
  const uint64_t end = Integer(*it, "data_offsets");
  if (begin <= end && end - begin == t.bytes) return begin;

  const std::string range = std::to_string(begin) + " to " + std::to_string(end);
  if (begin > end) {
    Fail("ST_OFFSETS", "data_offsets", offsets.offset(), range,
         "an end that is not before the begin");
  }
  Fail("ST_SIZE", "data_offsets", offsets.offset(), range,
       std::to_string(t.bytes) + " bytes for this shape and dtype");
}

// Tensors, in the order of their data, touch each other and fill the file.
void HeaderParser::CheckLayout(const JsonValue& root) {
  const std::vector<TensorView>& tensors = out_.tensors;
  std::vector<uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&tensors](uint32_t a, uint32_t b) {
    const TensorView &x = tensors[a], &y = tensors[b];
    if (x.file_offset != y.file_offset) return x.file_offset < y.file_offset;
    return x.bytes != y.bytes ? x.bytes < y.bytes : a < b;
  });
  uint64_t end = 0;  // of the data so far, from data_start
  std::optional<uint32_t> first_cut;
  for (const uint32_t i : order) {
    const uint64_t begin = tensors[i].file_offset - out_.data_start;
    if (begin != end) {
      place_ = {tensors[i].name, i};
      Fail(begin < end ? "ST_OVERLAP" : "ST_HOLE", "data_offsets",
           OffsetField(root, i, 0).offset(), std::to_string(begin),
           std::to_string(end) + ", where the data before it ends");
    }
    end = begin + tensors[i].bytes;  // below 2^63
    if (end > DataBytes() && !first_cut) first_cut = i;
  }
  if (first_cut) {
    place_ = {tensors[*first_cut].name, *first_cut};
    Fail(ErrorClass::kTruncatedFile, "ST_DATA_TRUNCATED", "data_offsets",
         OffsetField(root, *first_cut, 1).offset(),
         "a file of " + std::to_string(bytes_.size()) + " bytes",
         std::to_string(out_.data_start + end),
         std::to_string(end - DataBytes()) + " bytes missing: incomplete download?");
  }
  if (end < DataBytes()) {
    place_ = {};
    Fail("ST_TRAILING", "data", out_.data_start + end,
         std::to_string(DataBytes() - end) + " bytes after the last tensor", "none");
  }
}

// The begin (0) or end (1) of tensor number `tensor`, to say where it stands.
JsonValue HeaderParser::OffsetField(const JsonValue& root, uint32_t tensor,
                                    size_t which) const {
  for (const JsonMember& m : root.Members()) {
    if (m.key == kMetadataKey || tensor-- != 0) continue;
    auto it = m.value.Find("data_offsets")->Elements().begin();
    return which == 0 ? *it : *++it;
  }
  return root;
}

SafetensorsFile OpenOne(const std::string& path, const SafetensorsLimits& limits,
                        const Reading& reading) {
  SafetensorsFile out;
  out.files.push_back(MappedFile::Open(path, reading));
  try {
    SafetensorsHeader header = ParseSafetensors(out.files[0]->bytes(), limits);
    out.metadata = std::move(header.metadata);
    out.tensors = std::move(header.tensors);
  } catch (const Error& e) {
    throw e.WithPath(path);
  }
  return out;
}

// ------------------------------------------------------------------- an index

struct IndexEntry {
  std::string_view name, shard;
  uint64_t name_offset, shard_offset;
};

[[noreturn]] void FailIndex(ErrorClass cls, const char* code, const IndexEntry& entry,
                            const char* field, std::optional<uint64_t> offset,
                            std::string found, std::string expected,
                            std::string hint = "") {
  ErrorInfo info;
  info.kind = "index";
  info.code = code;
  info.subject = "document";
  if (!entry.name.empty()) {
    info.tensor = Escape(entry.name);
    info.subject = "tensor '" + info.tensor + "'";
  }
  info.field = field;
  info.offset = offset;
  info.found = std::move(found);
  info.expected = std::move(expected);
  info.hint = std::move(hint);
  throw Error(cls, std::move(info));
}

// A name that can only mean a file beside the index.
bool IsPlainBaseName(std::string_view name) {
  return !name.empty() && name.size() <= kMaxBaseNameBytes && name != "." &&
         name != ".." && name.find_first_of("/\\:") == std::string_view::npos &&
         FirstUnclean(name) == name.size();
}

std::vector<IndexEntry> ReadWeightMap(const JsonValue& root) {
  const std::optional<JsonValue> map = root.Find("weight_map");
  if (!map || !map->IsObject() || map->size() == 0) {
    FailIndex(ErrorClass::kFormat, "IDX_WEIGHT_MAP", {}, "weight_map",
              map ? map->offset() : root.offset(), map ? map->Describe() : "none",
              "an object with at least one tensor");
  }
  std::vector<IndexEntry> entries;
  entries.reserve(map->size());
  for (const JsonMember& m : map->Members()) {
    IndexEntry entry{m.key, {}, m.key_offset, m.value.offset()};
    if (m.key.empty() || m.key.size() > kSafetensorsMaxNameBytes ||
        FirstUnclean(m.key) != m.key.size()) {
      FailIndex(ErrorClass::kFormat, "IDX_NAME", entry, "name", m.key_offset,
                Quote(m.key),
                "a tensor name of 1 to " + std::to_string(kSafetensorsMaxNameBytes) +
                    " bytes without control characters");
    }
    if (m.value.IsString()) entry.shard = m.value.AsString();
    if (!IsPlainBaseName(entry.shard)) {
      FailIndex(ErrorClass::kFormat, "IDX_SHARD_NAME", entry, "shard", m.value.offset(),
                m.value.IsString() ? Quote(entry.shard) : m.value.Describe(),
                "the name of a file beside the index, without a directory");
    }
    entries.push_back(entry);
  }
  return entries;
}

// The path to open for `shard`. With strict paths, the real one, checked to be inside.
std::string ShardPath(const std::filesystem::path& dir, const IndexEntry& entry,
                      const SafetensorsLimits& limits) {
  const std::filesystem::path path = dir / entry.shard;
  if (!limits.strict_paths) return path.string();
  std::error_code error;
  const std::filesystem::path real = std::filesystem::canonical(path, error);
  if (error) return path.string();  // opening it says what is wrong
  const std::filesystem::path home =
      std::filesystem::canonical(dir.empty() ? "." : dir, error);
  const auto [end, unused] =
      std::mismatch(home.begin(), home.end(), real.begin(), real.end());
  if (error || end != home.end()) {
    FailIndex(ErrorClass::kFormat, "IDX_SHARD_PATH", entry, "shard", entry.shard_offset,
              "a link out of the directory",
              "a file inside it, as strict_paths demands");
  }
  return real.string();
}

SafetensorsFile OpenShard(const std::filesystem::path& dir, const IndexEntry& entry,
                          const SafetensorsLimits& limits, const Reading& reading) {
  const std::string path = ShardPath(dir, entry, limits);
  try {
    return OpenOne(path, limits, reading);
  } catch (const Error& e) {
    if (e.info().os_errno != ENOENT) throw;
    FailIndex(ErrorClass::kTruncatedFile, "IDX_SHARD_MISSING", entry, "shard",
              entry.shard_offset, Quote(entry.shard) + ", which does not exist",
              "a file beside the index", "incomplete download?");
  }
}

// One entry a distinct shard (its first), sorted by the shard's name.
std::vector<IndexEntry> DistinctShards(const std::vector<IndexEntry>& entries) {
  std::vector<IndexEntry> shards = entries;
  std::sort(shards.begin(), shards.end(), [](const IndexEntry& a, const IndexEntry& b) {
    return a.shard != b.shard ? a.shard < b.shard : a.name_offset < b.name_offset;
  });
  const auto last = std::unique(
      shards.begin(), shards.end(),
      [](const IndexEntry& a, const IndexEntry& b) { return a.shard == b.shard; });
  shards.erase(last, shards.end());
  return shards;
}

// Whether a tensor is of a part that sees or hears: one word of its name says so.
bool IsOfEncoder(std::string_view name) {
  constexpr std::string_view kParts[] = {"vision_tower", "audio_tower", "embed_vision",
                                         "embed_audio", "multi_modal_projector"};
  for (size_t begin = 0; begin < name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view word = name.substr(begin, end - begin);
    if (std::find(std::begin(kParts), std::end(kParts), word) != std::end(kParts)) {
      return true;
    }
    begin = end + 1;
  }
  return false;
}

// A text model runs without its encoders, and a download may leave out a shard that has
// nothing else. What is said of such a shard is forgotten here, if it is not there.
void ForgetAbsentEncoders(const std::filesystem::path& dir,
                          std::vector<IndexEntry>* entries,
                          std::vector<IndexEntry>* shards, SafetensorsFile* out) {
  std::set<std::string_view> text, absent;
  for (const IndexEntry& e : *entries) {
    if (!IsOfEncoder(e.name)) text.insert(e.shard);
  }
  if (text.empty()) return;
  for (const IndexEntry& s : *shards) {
    std::error_code ignored;
    if (text.contains(s.shard) || std::filesystem::exists(dir / s.shard, ignored)) {
      continue;
    }
    absent.insert(s.shard);
    out->warnings.push_back(Quote(s.shard) +
                            ", which has encoders alone, is not there");
  }
  const auto is_absent = [&](const IndexEntry& e) { return absent.contains(e.shard); };
  std::erase_if(*entries, is_absent);
  std::erase_if(*shards, is_absent);
}

// Moves what `shard` holds into `out`; equal metadata keys keep their first value.
void Append(SafetensorsFile shard, SafetensorsFile* out) {
  const auto number = static_cast<uint32_t>(out->files.size());
  out->files.push_back(std::move(shard.files[0]));
  for (TensorView& t : shard.tensors) {
    t.shard = number;
    out->tensors.push_back(std::move(t));
  }
  for (auto& item : shard.metadata) out->metadata.push_back(std::move(item));
}

void KeepFirstOfEqualKeys(SafetensorsMetadata* metadata) {
  const auto key = [metadata](size_t i) {
    return std::string_view((*metadata)[i].first);
  };
  const std::vector<uint32_t> order = SortedByName(metadata->size(), key);
  std::vector<bool> drop(order.size(), false);
  for (size_t i = 1; i < order.size(); ++i) {
    drop[order[i]] = key(order[i]) == key(order[i - 1]);
  }
  SafetensorsMetadata kept;
  for (size_t i = 0; i < drop.size(); ++i) {
    if (!drop[i]) kept.push_back(std::move((*metadata)[i]));
  }
  *metadata = std::move(kept);
}

std::vector<const TensorView*> SortedByName(const std::vector<TensorView>& tensors) {
  std::vector<const TensorView*> sorted;
  sorted.reserve(tensors.size());
  for (const TensorView& t : tensors) sorted.push_back(&t);
  std::sort(sorted.begin(), sorted.end(), [](const TensorView* a, const TensorView* b) {
    return a->name != b->name ? a->name < b->name : a->shard < b->shard;
  });
  return sorted;
}

void CheckNoTensorTwice(const std::vector<const TensorView*>& sorted,
                        const std::vector<IndexEntry>& entries,
                        const std::vector<IndexEntry>& shards) {
  const auto twice = std::adjacent_find(
      sorted.begin(), sorted.end(),
      [](const TensorView* a, const TensorView* b) { return a->name == b->name; });
  if (twice == sorted.end()) return;

  const std::string_view name = (*twice)->name;
  const auto entry =
      std::find_if(entries.begin(), entries.end(),
                   [name](const IndexEntry& e) { return e.name == name; });
  std::optional<uint64_t> offset;
  if (entry != entries.end()) offset = entry->name_offset;
  FailIndex(ErrorClass::kFormat, "IDX_DUPLICATE_TENSOR", {name, {}, 0, 0}, "name",
            offset,
            "it in " + Quote(shards[twice[0]->shard].shard) + " and in " +
                Quote(shards[twice[1]->shard].shard),
            "one shard");
}

// Index and shards agree on which tensor is where; the index may know fewer.
void CheckAgainstShards(const std::vector<IndexEntry>& entries,
                        const std::vector<IndexEntry>& shards, SafetensorsFile* out) {
  const std::vector<const TensorView*> sorted = SortedByName(out->tensors);
  CheckNoTensorTwice(sorted, entries, shards);
  std::vector<bool> named(sorted.size(), false);
  for (const IndexEntry& e : entries) {
    const auto it = std::lower_bound(
        sorted.begin(), sorted.end(), e.name,
        [](const TensorView* t, std::string_view name) { return t->name < name; });
    if (it == sorted.end() || (*it)->name != e.name ||
        shards[(*it)->shard].shard != e.shard) {
      FailIndex(ErrorClass::kFormat, "IDX_TENSOR_MISSING", e, "name", e.name_offset,
                "no such tensor in " + Quote(e.shard),
                "the tensor where the index says it is");
    }
    named[static_cast<size_t>(it - sorted.begin())] = true;
  }
  const auto extra = std::find(named.begin(), named.end(), false);
  if (extra == named.end()) return;
  const TensorView& first = *sorted[static_cast<size_t>(extra - named.begin())];
  out->warnings.push_back(std::to_string(sorted.size() - entries.size()) +
                          " of the tensors are not in the index, first " +
                          Quote(first.name) + " in " +
                          Quote(shards[first.shard].shard));
}

// f(document) of the index `path`, whose errors name it unless they are a shard's own.
template <class F>
auto ReadIndex(const std::string& path, const F& f) {
  const std::shared_ptr<const MappedFile> file = MappedFile::Open(path);
  const std::span<const uint8_t> b = file->bytes();
  const std::string_view text(reinterpret_cast<const char*>(b.data()), b.size());
  JsonOptions options;
  options.kind = "index";
  options.utf8_code = "IDX_UTF8";
  options.syntax_code = "IDX_JSON";
  options.duplicate_code = "IDX_DUPLICATE";
  options.max_depth = kJsonMaxSidecarDepth;
  options.max_bytes = kMaxSidecarBytes;
  options.max_string_bytes = kSafetensorsMaxStringBytes;
  try {
    return f(ParseJson(text, options));
  } catch (const Error& e) {
    if (!e.info().path.empty()) throw;
    ErrorInfo info = e.info();
    if (info.hint.empty()) info.hint = SniffHint(b);
    info.path = path;
    throw Error(e.cls(), std::move(info));
  }
}

SafetensorsFile OpenIndexed(const std::string& path, const SafetensorsLimits& limits,
                            const Reading& reading) {
  return ReadIndex(path, [&](const JsonDocument& document) {
    std::vector<IndexEntry> entries = ReadWeightMap(document.root());
    std::vector<IndexEntry> shards = DistinctShards(entries);
    if (shards.size() > limits.shards) {
      FailIndex(ErrorClass::kLimit, "IDX_SHARD_COUNT", {}, "weight_map",
                document.root().offset(), std::to_string(shards.size()) + " shards",
                "at most " + std::to_string(limits.shards), kRaiseLimit);
    }
    SafetensorsFile out;
    const std::filesystem::path dir = std::filesystem::path(path).parent_path();
    ForgetAbsentEncoders(dir, &entries, &shards, &out);
    Reading rest = reading;
    for (const IndexEntry& s : shards) {
      Append(OpenShard(dir, s, limits, rest), &out);
      rest = out.files.back()->Rest(rest);
    }
    CheckAgainstShards(entries, shards, &out);
    KeepFirstOfEqualKeys(&out.metadata);
    return out;
  });
}

// The files in `dir` called *.safetensors, sorted.
std::vector<std::string> ListSafetensors(const std::string& dir) {
  std::vector<std::string> paths;
  std::error_code error;
  std::filesystem::directory_iterator it(dir, error), end;
  for (; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".safetensors") paths.push_back(it->path().string());
  }
  if (error) ThrowOsError(error.value(), dir);
  std::sort(paths.begin(), paths.end());
  return paths;
}

// open(path); nothing if there is no such file, nor a link that leads nowhere.
template <class Open>
auto UnlessAbsent(const std::string& path, const Open& open)
    -> std::optional<decltype(open(path))> {
  try {
    return open(path);
  } catch (const Error& e) {
    const bool absent = e.info().os_errno == ENOENT && e.info().path == path;
    std::error_code ignored;
    if (!absent || std::filesystem::is_symlink(path, ignored)) throw;
    return std::nullopt;
  }
}

}  // namespace

SafetensorsHeader ParseSafetensors(std::span<const uint8_t> bytes,
                                   const SafetensorsLimits& limits) {
  return HeaderParser(bytes, limits).Run();
}

SafetensorsFile OpenSafetensors(const std::string& path,
                                const SafetensorsLimits& limits,
                                const Reading& reading) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    return OpenSafetensorsDir(path, limits, reading);
  }
  if (path.ends_with(".index.json")) return OpenIndexed(path, limits, reading);
  return OpenOne(path, limits, reading);
}

SafetensorsFile OpenSafetensorsDir(const std::string& dir,
                                   const SafetensorsLimits& limits,
                                   const Reading& reading) {
  const auto one = [&](const std::string& p) { return OpenOne(p, limits, reading); };
  const auto index = [&](const std::string& p) {
    return OpenIndexed(p, limits, reading);
  };
  if (auto f = UnlessAbsent(dir + "/" + kOneFile, one)) return std::move(*f);
  if (auto f = UnlessAbsent(dir + "/" + kIndex, index)) return std::move(*f);
  const std::vector<std::string> paths = ListSafetensors(dir);
  if (paths.size() == 1) return one(paths[0]);
  if (paths.empty()) ThrowOsError(ENOENT, dir + "/" + kOneFile);
  ErrorInfo info;
  info.path = dir;
  info.kind = "index";
  info.code = "IDX_MISSING";
  info.subject = kIndex;
  info.found = std::to_string(paths.size()) + " safetensors files and no index";
  info.expected = "an index, or one file";
  throw Error(ErrorClass::kFormat, std::move(info));
}

std::string WholeOf(const std::string& path) {
  const std::filesystem::path p = path;
  // The index says nothing of it, whoever wrote one: see OpenSafetensorsDir.
  if (p.filename() == kOneFile) return path;
  const std::string index = (p.parent_path() / kIndex).string();
  const auto names = [&](const std::string& i) {
    return ReadIndex(i, [&](const JsonDocument& document) {
      const std::vector<IndexEntry> entries = ReadWeightMap(document.root());
      return std::any_of(entries.begin(), entries.end(), [&](const IndexEntry& e) {
        return e.shard == p.filename().native();
      });
    });
  };
  return UnlessAbsent(index, names).value_or(false) ? index : path;
}

}  // namespace halfbyte
