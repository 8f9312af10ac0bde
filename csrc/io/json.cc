// csrc/io/json.cc
// SPDX-License-Identifier: Apache-2.0
#include "io/json.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <span>
#include <system_error>
#include <utility>

#include "base/utf8.h"
#include "io/mmap.h"

namespace halfbyte {
namespace {

using json_internal::kInText;
using json_internal::Node;
using json_internal::Tree;

// Ends the fast part of a string: the quote, an escape, a control character.
constexpr std::array<bool, 256> kEndsRun = [] {
  std::array<bool, 256> ends{};
  for (size_t c = 0; c < 0x20; ++c) ends[c] = true;
  ends['"'] = ends['\\'] = true;
  return ends;
}();

constexpr bool IsSpace(char c) {
  return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}
constexpr bool IsDigit(char c) { return c >= '0' && c <= '9'; }

void AppendUtf8(uint32_t c, std::string& out) {
  const auto put = [&out](uint32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) return put(c);
  if (c < 0x800) {
    put(0xC0 | c >> 6);
  } else {
    if (c < 0x10000) {
      put(0xE0 | c >> 12);
    } else {
      put(0xF0 | c >> 18);
      put(0x80 | (c >> 12 & 0x3F));
    }
    put(0x80 | (c >> 6 & 0x3F));
  }
  put(0x80 | (c & 0x3F));
}

// Every value but the root follows one of these, so this bounds the nodes. Quoted ones
// are counted too: the bound is loose then, and pages never written cost nothing.
size_t CountNodes(std::string_view text) {
  size_t n = 1;
  for (const char c : text) n += c == ',' || c == ':' || c == '[' || c == '{';
  return n;
}

class Parser {
 public:
  Parser(std::string_view text, const JsonOptions& options)
      : text_(text), options_(options), tree_(std::make_unique<Tree>()) {
    tree_->text = text.data();
    tree_->kind = options.kind;
    tree_->base_offset = options.base_offset;
    tree_->path = options.path;
  }

  std::unique_ptr<Tree> Run();

 private:
  struct Frame {
    uint32_t node;
    uint32_t size;
    bool object;
  };

  bool AtEnd() const { return pos_ == text_.size(); }
  char Peek() const { return AtEnd() ? '\0' : text_[pos_]; }
  void SkipSpace() {
    while (!AtEnd() && IsSpace(text_[pos_])) ++pos_;
  }
  uint32_t Add(JsonKind kind, size_t offset, size_t size, uint32_t link);

  void CheckText() const;
  void Document();
  bool Value();  // true if it opened a container that wants a value next
  bool Open(JsonKind kind);
  void Close();
  void Key();
  void Literal(std::string_view word, JsonKind kind);
  void Number();
  void String();
  void Escape(std::string& out);
  uint32_t Hex4();
  void CheckKeys(const Frame& object);

  [[noreturn]] void Fail(size_t at, const char* expected) const;
  [[noreturn]] void FailLimit(size_t at, const char* field, size_t limit,
                              const char* hint = "") const;
  ErrorInfo InfoAt(const char* code, size_t at) const;

  const std::string_view text_;
  const JsonOptions& options_;
  size_t pos_ = 0;
  size_t max_nodes_ = 0;
  std::vector<Frame> stack_;
  std::optional<uint32_t> first_duplicate_;  // a key's node
  std::vector<std::pair<size_t, uint32_t>> keys_;
  std::unique_ptr<Tree> tree_;
};

ErrorInfo Parser::InfoAt(const char* code, size_t at) const {
  ErrorInfo info;
  info.path = options_.path;
  info.kind = options_.kind;
  info.subject = options_.subject;
  info.code = code;
  info.offset = options_.base_offset + at;
  return info;
}

void Parser::Fail(size_t at, const char* expected) const {
  ErrorInfo info = InfoAt(options_.syntax_code, at);
  info.field = "text";
  const size_t len = Utf8Length(text_.substr(at));
  info.found =
      len == 0 ? "the end" : "'" + halfbyte::Escape(text_.substr(at, len)) + "'";
  info.expected = expected;
  throw Error(ErrorClass::kFormat, std::move(info));
}

void Parser::FailLimit(size_t at, const char* field, size_t limit,
                       const char* hint) const {
  ErrorInfo info = InfoAt(options_.syntax_code, at);
  info.field = field;
  info.found = "more";
  info.expected = "at most " + std::to_string(limit);
  info.hint = hint;
  throw Error(ErrorClass::kLimit, std::move(info));
}

void Parser::CheckText() const {
  if (text_.size() > options_.max_bytes) FailLimit(0, "bytes", options_.max_bytes);
  size_t bad = FirstInvalidUtf8(text_);
  const bool bom = text_.starts_with("\xEF\xBB\xBF");
  if (bom) bad = 0;
  if (bad == text_.size()) return;

  ErrorInfo info = InfoAt(options_.utf8_code, bad);
  info.field = "text";
  info.found = bom ? "a byte-order mark" : halfbyte::Escape(text_.substr(bad, 1));
  info.expected = bom ? "none" : "valid UTF-8";
  throw Error(ErrorClass::kFormat, std::move(info));
}

std::unique_ptr<Tree> Parser::Run() {
  CheckText();
  max_nodes_ = (size_t{1} << 21) + text_.size() / 4;
  tree_->nodes.reserve(std::min(CountNodes(text_), max_nodes_));
  Document();

  if (first_duplicate_) {
    const uint32_t key = *first_duplicate_;
    ErrorInfo info = InfoAt(options_.duplicate_code, tree_->nodes[key].offset);
    info.key = halfbyte::Escape(tree_->String(key));
    info.subject = "key '" + info.key + "'";
    info.found = "a second one";
    info.expected = "each key once";
    throw Error(ErrorClass::kFormat, std::move(info));
  }
  return std::move(tree_);
}

void Parser::Document() {
  bool want_value = true;
  while (want_value || !stack_.empty()) {
    SkipSpace();
    if (want_value) {
      if (!stack_.empty()) ++stack_.back().size;
      want_value = Value();
    } else if (const bool object = stack_.back().object; Peek() == ',') {
      ++pos_;
      if (object) Key();
      want_value = true;
    } else if (Peek() == (object ? '}' : ']')) {
      Close();
    } else {
      Fail(pos_, object ? "',' or '}'" : "',' or ']'");
    }
  }
  SkipSpace();
  if (!AtEnd()) Fail(pos_, "the end");
}

uint32_t Parser::Add(JsonKind kind, size_t offset, size_t size, uint32_t link) {
  if (tree_->nodes.size() == max_nodes_) FailLimit(offset, "values", max_nodes_);
  tree_->nodes.push_back({static_cast<uint32_t>(offset), static_cast<uint32_t>(kind),
                          static_cast<uint32_t>(size), link});
  return static_cast<uint32_t>(tree_->nodes.size() - 1);
}

bool Parser::Value() {
  switch (Peek()) {
    case '{':
      return Open(JsonKind::kObject);
    case '[':
      return Open(JsonKind::kArray);
    case '"':
      String();
      return false;
    case 't':
      Literal("true", JsonKind::kTrue);
      return false;
    case 'f':
      Literal("false", JsonKind::kFalse);
      return false;
    case 'n':
      Literal("null", JsonKind::kNull);
      return false;
    default:
      Number();
      return false;
  }
}

bool Parser::Open(JsonKind kind) {
  if (stack_.size() == options_.max_depth) {
    FailLimit(pos_, "depth", options_.max_depth);
  }
  const bool object = kind == JsonKind::kObject;
  stack_.push_back({Add(kind, pos_, 0, 0), 0, object});
  ++pos_;
  SkipSpace();
  if (Peek() == (object ? '}' : ']')) {
    Close();
    return false;
  }
  if (object) Key();
  return true;
}

void Parser::Close() {
  const Frame frame = stack_.back();
  stack_.pop_back();
  Node& node = tree_->nodes[frame.node];
  node.size = frame.size;
  node.link = static_cast<uint32_t>(tree_->nodes.size());
  if (frame.object) CheckKeys(frame);
  ++pos_;
}

void Parser::Key() {
  SkipSpace();
  if (Peek() != '"') Fail(pos_, "a key in double quotes");
  if (stack_.back().size == options_.max_members) {
    FailLimit(pos_, "members", options_.max_members, options_.max_members_hint);
  }
  String();
  SkipSpace();
  if (Peek() != ':') Fail(pos_, "':'");
  ++pos_;
}

void Parser::Literal(std::string_view word, JsonKind kind) {
  const size_t start = pos_;
  for (const char c : word) {
    if (Peek() != c) Fail(pos_, "true, false or null");
    ++pos_;
  }
  Add(kind, start, word.size(), kInText);
}

void Parser::Number() {
  const size_t start = pos_;
  const auto digits = [this](const char* expected) {
    if (!IsDigit(Peek())) Fail(pos_, expected);
    while (IsDigit(Peek())) ++pos_;
  };
  if (Peek() == '-') ++pos_;
  if (Peek() == '0') {
    ++pos_;  // a digit after it is not part of the number
  } else {
    digits(pos_ == start ? "a value" : "a digit");
  }
  if (Peek() == '.') {
    ++pos_;
    digits("a digit");
  }
  if (Peek() == 'e' || Peek() == 'E') {
    ++pos_;
    if (Peek() == '+' || Peek() == '-') ++pos_;
    digits("a digit");
  }
  Add(JsonKind::kNumber, start, pos_ - start, kInText);
}

void Parser::String() {
  const size_t start = pos_++;
  size_t run = pos_;
  size_t link = kInText;
  std::string& out = tree_->unescaped;
  for (;;) {
    while (!AtEnd() && !kEndsRun[static_cast<uint8_t>(text_[pos_])]) ++pos_;
    if (pos_ - start - 1 > options_.max_string_bytes) {
      FailLimit(start, "bytes of a string", options_.max_string_bytes);
    }
    if (AtEnd()) Fail(pos_, "'\"'");
    if (text_[pos_] == '"') break;
    if (text_[pos_] != '\\') Fail(pos_, "an escape instead of a control character");
    if (link == kInText) link = out.size();
    out.append(text_, run, pos_ - run);
    Escape(out);
    run = pos_;
  }
  if (link != kInText) out.append(text_, run, pos_ - run);
  const size_t size = link == kInText ? pos_ - run : out.size() - link;
  Add(JsonKind::kString, start, size, static_cast<uint32_t>(link));
  ++pos_;
}

void Parser::Escape(std::string& out) {
  static constexpr std::string_view kFrom = "\"\\/bfnrt";
  static constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
  const size_t start = pos_++;
  if (AtEnd()) Fail(pos_, "'\"'");
  const char c = text_[pos_++];
  if (c != 'u') {
    const size_t i = kFrom.find(c);
    if (i == std::string_view::npos) Fail(start, "a JSON escape");
    out += kTo[i];
    return;
  }
  uint32_t code = Hex4();
  if (code >= 0xD800 && code < 0xE000) {
    if (code >= 0xDC00 || !text_.substr(pos_).starts_with("\\u")) {
      Fail(start, "a pair of surrogates");
    }
    pos_ += 2;
    const uint32_t low = Hex4();
    if (low < 0xDC00 || low >= 0xE000) Fail(start, "a pair of surrogates");
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  AppendUtf8(code, out);
}

uint32_t Parser::Hex4() {
  const std::string_view digits = text_.substr(pos_, 4);
  uint32_t code = 0;
  const char* const begin = digits.data();
  const char* const end = std::from_chars(begin, begin + digits.size(), code, 16).ptr;
  pos_ += static_cast<size_t>(end - begin);
  if (end - begin != 4) Fail(pos_, "four hexadecimal digits");
  return code;
}

// Sorted, equal keys are neighbours. The hash only saves comparisons: keys made to
// collide cost n log n too.
void Parser::CheckKeys(const Frame& object) {
  if (object.size < 2) return;
  keys_.clear();
  keys_.reserve(object.size);
  const uint32_t end = tree_->nodes[object.node].link;
  for (uint32_t key = object.node + 1; key < end; key = tree_->After(key + 1)) {
    keys_.emplace_back(std::hash<std::string_view>{}(tree_->String(key)), key);
  }
  std::sort(keys_.begin(), keys_.end(), [this](const auto& a, const auto& b) {
    if (a.first != b.first) return a.first < b.first;
    const int order = tree_->String(a.second).compare(tree_->String(b.second));
    return order != 0 ? order < 0 : a.second < b.second;
  });
  for (size_t i = 1; i < keys_.size(); ++i) {
    const auto [hash, key] = keys_[i];
    if (hash != keys_[i - 1].first) continue;
    if (tree_->String(key) != tree_->String(keys_[i - 1].second)) continue;
    first_duplicate_ = std::min(key, first_duplicate_.value_or(key));
  }
}

const char* NameOf(JsonKind kind) {
  switch (kind) {
    case JsonKind::kNull:
      return "null";
    case JsonKind::kFalse:
      return "false";
    case JsonKind::kTrue:
      return "true";
    case JsonKind::kNumber:
      return "a number";
    case JsonKind::kString:
      return "a string";
    case JsonKind::kArray:
      return "an array";
    case JsonKind::kObject:
      return "an object";
  }
  return "nothing";
}

}  // namespace

std::string JsonValue::Describe() const {
  if (IsNumber()) return "the number " + Escape(NumberText(), 32);
  return NameOf(kind());
}

// Where a node is: "rope_parameters.full_attention.factor", "added_tokens[3].id"; "" of
// the root. Walks down to it: containers are left by one step.
std::string JsonValue::Place() const {
  std::string place;
  const Tree& t = *tree_;
  for (uint32_t at = 0; at != node_;) {
    const bool is_object = static_cast<JsonKind>(t.nodes[at].kind) == JsonKind::kObject;
    uint32_t child = at + 1 + is_object, index = 0;
    for (; t.After(child) <= node_; ++index) child = t.After(child) + is_object;
    if (is_object) {
      place += (place.empty() ? "" : ".") + Escape(t.String(child - 1));
    } else {
      place += "[" + std::to_string(index) + "]";
    }
    at = child;
  }
  return place;
}

void JsonValue::WrongType(const char* expected) const {
  ErrorInfo info;
  info.key = Place();
  if (!info.key.empty()) info.subject = "key '" + info.key + "'";
  info.path = tree_->path;
  info.kind = tree_->kind;
  info.code = "JSON_TYPE";
  info.offset = offset();
  info.field = "value";
  info.found = Describe();
  info.expected = expected;
  throw Error(ErrorClass::kFormat, std::move(info));
}

bool JsonValue::IsInteger() const {
  return IsNumber() && NumberText().find_first_of(".eE") == std::string_view::npos;
}

bool JsonValue::AsBool() const {
  if (!IsBool()) WrongType("true or false");
  return kind() == JsonKind::kTrue;
}

uint64_t JsonValue::AsUint64() const {
  uint64_t v = 0;
  if (!IsInteger()) WrongType("an integer");
  const std::string_view t = NumberText();
  if (std::from_chars(t.data(), t.data() + t.size(), v).ec != std::errc()) {
    WrongType("an integer from 0 to 2^64 - 1");
  }
  return v;
}

int64_t JsonValue::AsInt64() const {
  int64_t v = 0;
  if (!IsInteger()) WrongType("an integer");
  const std::string_view t = NumberText();
  if (std::from_chars(t.data(), t.data() + t.size(), v).ec != std::errc()) {
    WrongType("an integer from -2^63 to 2^63 - 1");
  }
  return v;
}

double JsonValue::AsDouble() const {
  double v = 0;
  const std::string_view t = NumberText();
  if (std::from_chars(t.data(), t.data() + t.size(), v).ec != std::errc()) {
    WrongType("a number in the range of a double");
  }
  return v;
}

std::string_view JsonValue::AsString() const {
  if (!IsString()) WrongType("a string");
  return tree_->String(node_);
}

std::string_view JsonValue::NumberText() const {
  if (!IsNumber()) WrongType("a number");
  return {tree_->text + self().offset, self().size};
}

JsonElements JsonValue::Elements() const {
  if (!IsArray()) WrongType("an array");
  return JsonElements(tree_, node_);
}

JsonMembers JsonValue::Members() const {
  if (!IsObject()) WrongType("an object");
  return JsonMembers(tree_, node_);
}

std::optional<JsonValue> JsonValue::Find(std::string_view key) const {
  if (!IsObject()) return std::nullopt;
  for (const JsonMember& m : Members()) {
    if (m.key == key) return m.value;
  }
  return std::nullopt;
}

std::optional<JsonValue> JsonValue::Get(std::string_view key) const {
  const std::optional<JsonValue> v = Find(key);
  return v && v->IsNull() ? std::nullopt : v;
}

JsonDocument ParseJson(std::string_view text, const JsonOptions& options,
                       std::shared_ptr<const void> owner) {
  std::unique_ptr<Tree> tree = Parser(text, options).Run();
  tree->owner = std::move(owner);
  return JsonDocument(std::move(tree));
}

JsonDocument ReadJsonFile(const std::string& path, const JsonOptions& options) {
  const std::shared_ptr<const MappedFile> file = MappedFile::Open(path);
  const std::span<const uint8_t> b = file->bytes();
  JsonOptions named = options;
  named.path = path;
  return ParseJson({reinterpret_cast<const char*>(b.data()), b.size()}, named, file);
}

}  // namespace halfbyte
