// csrc/base/error.cc
// SPDX-License-Identifier: Apache-2.0
#include "base/error.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <utility>

#include "base/utf8.h"

namespace halfbyte {
namespace {

std::string FileName(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return Escape(slash == std::string::npos ? path : path.substr(slash + 1), 255);
}

std::string Compose(const ErrorInfo& e) {
  std::string m;
  const auto add = [&m](const std::string& part) {
    if (part.empty()) return;
    if (!m.empty()) m += ": ";
    m += part;
  };
  if (!e.path.empty()) add(FileName(e.path));
  add(e.kind);
  add(e.subject);
  std::string field = e.field;
  if (e.offset) {
    if (!field.empty()) field += ' ';
    field += "at byte " + std::to_string(*e.offset);
  }
  add(field);
  std::string values;
  if (!e.found.empty()) values = "found " + e.found;
  if (!e.expected.empty()) {
    if (!values.empty()) values += "; ";
    values += "expected " + e.expected;
  }
  add(values);
  if (!e.hint.empty()) m += (m.empty() ? "" : " - ") + e.hint;
  if (!e.code.empty()) m += " [" + e.code + "]";
  return m;
}

}  // namespace

const char* NameOf(ErrorClass cls) {
  switch (cls) {
    case ErrorClass::kFormat:
      return "FormatError";
    case ErrorClass::kTruncatedFile:
      return "TruncatedFileError";
    case ErrorClass::kLimit:
      return "LimitError";
    case ErrorClass::kUnsupported:
      return "UnsupportedError";
    case ErrorClass::kModel:
      return "ModelError";
    case ErrorClass::kFileChanged:
      return "FileChangedError";
    case ErrorClass::kShape:
      return "ShapeError";
    case ErrorClass::kDType:
      return "DTypeError";
    case ErrorClass::kValue:
      return "ArgumentError";
    case ErrorClass::kContextOverflow:
      return "ContextOverflowError";
    case ErrorClass::kNumerical:
      return "NumericalError";
    case ErrorClass::kOutOfMemory:
      return "OutOfMemoryError";
    case ErrorClass::kOs:
      return "OSError";
  }
  return "Error";
}

Error::Error(ErrorClass cls, ErrorInfo info)
    : cls_(cls), info_(std::move(info)), message_(Compose(info_)) {}

Error::Error(ErrorClass cls, std::string message)
    : cls_(cls), message_(std::move(message)) {}

Error Error::WithPath(std::string path) const {
  Error e = *this;
  e.info_.path = std::move(path);
  e.message_ = e.info_.code.empty() && e.info_.kind.empty()
                   ? FileName(e.info_.path) + ": " + message_
                   : Compose(e.info_);
  return e;
}

void ThrowOsError(int os_errno, const std::string& path) {
  ErrorInfo info;
  info.path = path;
  info.os_errno = os_errno;
  info.subject = strerror(os_errno);
  throw Error(ErrorClass::kOs, std::move(info));
}

namespace {

void AppendHex(std::string_view bytes, std::string& out) {
  for (const char byte : bytes) {
    char hex[5];
    snprintf(hex, sizeof(hex), "\\x%02X", static_cast<unsigned char>(byte));
    out += hex;
  }
}

// Of characters above U+007F those that a terminal obeys instead of showing: C1
// controls (U+0080..9F), marks of direction and width that can make a text look like
// another (U+200B..0F, U+2028..2E, U+2060..6F), and the byte order mark.
bool IsInvisible(std::string_view c) {
  const auto at = [&c](size_t i) { return static_cast<unsigned char>(c[i]); };
  if (c.size() == 2) return at(0) == 0xC2 && at(1) < 0xA0;
  if (c.size() != 3) return false;
  if (at(0) == 0xEF) return at(1) == 0xBB && at(2) == 0xBF;
  if (at(0) != 0xE2) return false;
  if (at(1) == 0x81) return at(2) >= 0xA0 && at(2) <= 0xAF;
  return at(1) == 0x80 &&
         ((at(2) >= 0x8B && at(2) <= 0x8F) || (at(2) >= 0xA8 && at(2) <= 0xAE));
}

}  // namespace

std::string Escape(std::string_view text, size_t max_chars) {
  std::string out;
  size_t chars = 0;
  for (size_t i = 0; i < text.size(); ++chars) {
    if (chars == max_chars) return out + "...";
    const size_t len = Utf8Length(text.substr(i));
    const auto byte = static_cast<unsigned char>(text[i]);
    const std::string_view c = text.substr(i, len == 0 ? 1 : len);
    if (len == 0 || byte < 0x20 || byte == 0x7F || IsInvisible(c)) {
      AppendHex(c, out);
    } else {
      out += c;
    }
    i += c.size();
  }
  return out;
}

}  // namespace halfbyte
