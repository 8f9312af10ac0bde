// tests/fuzz/fuzz_json.cc
// Any bytes either throw one of the documented errors or give a tree that, written out
// again, reads as the same tree.
// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/utf8.h"
#include "io/json.h"

namespace {

using halfbyte::JsonKind;
using halfbyte::JsonMember;
using halfbyte::JsonValue;

void Die(const char* why) {
  fprintf(stderr, "fuzz_json: %s\n", why);
  abort();
}

void WriteString(std::string_view s, std::string* out) {
  if (halfbyte::FirstInvalidUtf8(s) != s.size()) Die("a string is not UTF-8");
  *out += '"';
  for (const char c : s) {
    if (static_cast<uint8_t>(c) < 0x20 || c == '"' || c == '\\') {
      char hex[8];
      snprintf(hex, sizeof(hex), "\\u%04x", static_cast<unsigned>(c));
      *out += hex;
    } else {
      *out += c;
    }
  }
  *out += '"';
}

// Calls every getter: the one that fits must not throw, the others must throw Error.
template <class Get>
bool Throws(const Get& get) {
  try {
    (void)get();
    return false;
  } catch (const halfbyte::Error& e) {
    if (e.info().code != "JSON_TYPE" || !e.info().offset) Die(e.what());
    return true;
  }
}

void CheckGetters(const JsonValue& v) {
  if (Throws([&] { return v.AsString(); }) == v.IsString()) Die("AsString");
  if (Throws([&] { return v.AsBool(); }) == v.IsBool()) Die("AsBool");
  if (Throws([&] { return v.NumberText(); }) == v.IsNumber()) Die("NumberText");
  const bool is_u64 = !Throws([&] { return v.AsUint64(); });
  const bool is_i64 = !Throws([&] { return v.AsInt64(); });
  if ((is_u64 || is_i64) && !v.IsInteger()) Die("an integer that is none");
  if (is_u64 && is_i64 && v.AsUint64() != static_cast<uint64_t>(v.AsInt64())) {
    Die("two integers");
  }
  if (!Throws([&] { return v.AsDouble(); }) && !isfinite(v.AsDouble())) Die("infinite");
}

// Recursion is as deep as the parser's limit.
void Write(const JsonValue& v, std::string* out) {
  CheckGetters(v);
  switch (v.kind()) {
    case JsonKind::kString:
      return WriteString(v.AsString(), out);
    case JsonKind::kNumber:
      *out += v.NumberText();
      return;
    case JsonKind::kArray: {
      size_t n = 0;
      *out += '[';
      for (const JsonValue& e : v.Elements()) {
        if (n++ > 0) *out += ',';
        Write(e, out);
      }
      *out += ']';
      if (n != v.size()) Die("elements");
      return;
    }
    case JsonKind::kObject: {
      size_t n = 0;
      *out += '{';
      for (const JsonMember& m : v.Members()) {
        if (n++ > 0) *out += ',';
        WriteString(m.key, out);
        *out += ':';
        Write(m.value, out);
        if (m.key_offset >= m.value.offset()) Die("offsets");
      }
      *out += '}';
      if (n != v.size()) Die("members");
      return;
    }
    default:
      *out += v.Describe();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<char> text(data, data + size);
  std::string once, twice;
  try {
    const halfbyte::JsonDocument document =
        halfbyte::ParseJson({text.data(), text.size()});
    Write(document.root(), &once);
  } catch (const halfbyte::Error& e) {
    const std::string& code = e.info().code;
    if (code != "JSON" && code != "JSON_UTF8" && code != "JSON_DUPLICATE") {
      Die(e.what());
    }
    if (!e.info().offset || *e.info().offset > size) Die(e.what());
    return 0;
  }
  Write(halfbyte::ParseJson(once).root(), &twice);
  if (once != twice) Die("written out, it reads differently");
  return 0;
}
