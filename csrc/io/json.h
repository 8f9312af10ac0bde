// csrc/io/json.h
// Strict JSON from strangers: safetensors headers, index files, config.json and
// tokenizer.json. No recursion, no double for integers, no duplicate keys.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_IO_JSON_H_
#define HALFBYTE_IO_JSON_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace halfbyte {

enum class JsonKind : uint8_t {
  kNull,
  kFalse,
  kTrue,
  kNumber,
  kString,
  kArray,
  kObject
};

// Of a document, in bytes: see `size` of a node.
inline constexpr size_t kJsonMostBytes = (size_t{1} << 29) - 1;

// What a document may be, and what its errors are called.
struct JsonOptions {
  std::string path = {};      // named by every error, those about values too
  const char* kind = "json";  // ErrorInfo::kind and ::subject
  const char* subject = "document";
  const char* utf8_code = "JSON_UTF8";
  const char* syntax_code = "JSON";
  const char* duplicate_code = "JSON_DUPLICATE";
  uint64_t base_offset = 0;  // where the text starts in its file
  size_t max_depth = 32;
  size_t max_bytes = size_t{256} << 20;  // at most kJsonMostBytes
  size_t max_string_bytes = size_t{64} << 20;
  size_t max_members = size_t{1} << 22;  // of one object
  const char* max_members_hint = "";     // what a caller can do about it
};

namespace json_internal {

// Nodes lie in the order of the text; a key is a string node before its value.
struct Node {
  uint32_t offset;     // first byte in the text
  uint32_t kind : 3;   // JsonKind
  uint32_t size : 29;  // bytes of text (string: unescaped), or children
  uint32_t link;       // container: index after its last descendant; string: kInText,
                       // or where the unescaped bytes are in `unescaped`
};
static_assert(sizeof(Node) == 12, "a tokenizer.json has millions of them");

inline constexpr uint32_t kInText = 0xFFFFFFFFu;

struct Tree {
  std::string path;
  const char* text;
  const char* kind;
  uint64_t base_offset;
  std::vector<Node> nodes;
  std::string unescaped;  // the strings that had escapes, end to end
  std::shared_ptr<const void> owner;

  std::string_view String(uint32_t i) const {
    const Node& n = nodes[i];
    return n.link == kInText ? std::string_view(text + n.offset + 1, n.size)
                             : std::string_view(unescaped.data() + n.link, n.size);
  }
  uint32_t After(uint32_t i) const {  // the sibling that follows, or the parent's end
    const JsonKind k = static_cast<JsonKind>(nodes[i].kind);
    return k >= JsonKind::kArray ? nodes[i].link : i + 1;
  }
};

}  // namespace json_internal

class JsonElements;
class JsonMembers;

// One value; a handle that lives as long as its document. The As… functions throw
// Error(kFormat, JSON_TYPE) with the value's offset if it is something else.
class JsonValue {
 public:
  JsonValue(const json_internal::Tree* tree, uint32_t node)
      : tree_(tree), node_(node) {}

  JsonKind kind() const { return static_cast<JsonKind>(self().kind); }
  bool IsNull() const { return kind() == JsonKind::kNull; }
  bool IsNumber() const { return kind() == JsonKind::kNumber; }
  bool IsString() const { return kind() == JsonKind::kString; }
  bool IsArray() const { return kind() == JsonKind::kArray; }
  bool IsObject() const { return kind() == JsonKind::kObject; }
  bool IsBool() const {
    return kind() == JsonKind::kTrue || kind() == JsonKind::kFalse;
  }
  // A number written as digits only, "-" before them allowed.
  bool IsInteger() const;

  const std::string& path() const { return tree_->path; }  // of the file
  uint64_t offset() const { return tree_->base_offset + self().offset; }
  size_t size() const { return self().size; }  // members, elements, or bytes of text

  bool AsBool() const;
  uint64_t AsUint64() const;
  int64_t AsInt64() const;
  double AsDouble() const;            // any number that fits
  std::string_view AsString() const;  // unescaped; may contain NUL
  std::string_view NumberText() const;

  JsonElements Elements() const;  // of an array
  JsonMembers Members() const;    // of an object

  // The member called `key`, if this is an object that has one. Looks at every member:
  // walk Members() once instead of calling this in a loop over a file's names.
  std::optional<JsonValue> Find(std::string_view key) const;
  // The same where null counts as missing, as it does in the files of models.
  std::optional<JsonValue> Get(std::string_view key) const;

  // What a message calls this value: "an array", "the number 1.5".
  std::string Describe() const;

 private:
  const json_internal::Node& self() const { return tree_->nodes[node_]; }
  std::string Place() const;
  [[noreturn]] void WrongType(const char* expected) const;

  const json_internal::Tree* tree_;
  uint32_t node_;
};

struct JsonMember {
  std::string_view key;
  uint64_t key_offset;
  JsonValue value;
};

class JsonElements {
 public:
  class Iterator {
   public:
    Iterator(const json_internal::Tree* tree, uint32_t node)
        : tree_(tree), node_(node) {}
    JsonValue operator*() const { return JsonValue(tree_, node_); }
    Iterator& operator++() {
      node_ = tree_->After(node_);
      return *this;
    }
    bool operator==(const Iterator& o) const { return node_ == o.node_; }

   private:
    const json_internal::Tree* tree_;
    uint32_t node_;
  };

  JsonElements(const json_internal::Tree* tree, uint32_t array)
      : tree_(tree), array_(array) {}
  Iterator begin() const { return Iterator(tree_, array_ + 1); }
  Iterator end() const { return Iterator(tree_, tree_->nodes[array_].link); }

 private:
  const json_internal::Tree* tree_;
  uint32_t array_;
};

class JsonMembers {
 public:
  class Iterator {
   public:
    Iterator(const json_internal::Tree* tree, uint32_t node)
        : tree_(tree), node_(node) {}
    JsonMember operator*() const {
      return {tree_->String(node_), tree_->base_offset + tree_->nodes[node_].offset,
              JsonValue(tree_, node_ + 1)};
    }
    Iterator& operator++() {
      node_ = tree_->After(node_ + 1);
      return *this;
    }
    bool operator==(const Iterator& o) const { return node_ == o.node_; }

   private:
    const json_internal::Tree* tree_;
    uint32_t node_;
  };

  JsonMembers(const json_internal::Tree* tree, uint32_t object)
      : tree_(tree), object_(object) {}
  Iterator begin() const { return Iterator(tree_, object_ + 1); }
  Iterator end() const { return Iterator(tree_, tree_->nodes[object_].link); }

 private:
  const json_internal::Tree* tree_;
  uint32_t object_;
};

// Immutable; may be read from several threads. Values stay valid when it is moved.
class JsonDocument {
 public:
  explicit JsonDocument(std::unique_ptr<const json_internal::Tree> tree)
      : tree_(std::move(tree)) {}
  JsonValue root() const { return JsonValue(tree_.get(), 0); }

 private:
  std::unique_ptr<const json_internal::Tree> tree_;
};

// Borrows `text`, which must outlive the document unless `owner` keeps it. For n bytes
// of text it takes time n log n and at most 24 MiB + 4 n, and while it reads, 16 bytes
// a key of the largest object. Errors are found in this order: UTF-8, syntax and
// limits, duplicate keys; of each the first in the text.
JsonDocument ParseJson(std::string_view text, const JsonOptions& options = {},
                       std::shared_ptr<const void> owner = nullptr);

// Maps a file and keeps the mapping as long as the document. Errors name the file.
JsonDocument ReadJsonFile(const std::string& path, const JsonOptions& options = {});

}  // namespace halfbyte
#endif  // HALFBYTE_IO_JSON_H_
