// csrc/base/error.h
// The one way this library fails: an Error that says what, where, what was found and
// what was expected. Bindings turn each class into the Python exception of that name.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_BASE_ERROR_H_
#define HALFBYTE_BASE_ERROR_H_

#include <stdint.h>

#include <exception>
#include <optional>
#include <string>
#include <string_view>

namespace halfbyte {

enum class ErrorClass {
  kFormat,           // bytes break the format's rules
  kTruncatedFile,    // the file ends before what it declares
  kLimit,            // valid, but above a safety limit
  kUnsupported,      // well formed, but nothing we handle
  kModel,            // well formed, but no model we can run
  kFileChanged,      // the file shrank or was rewritten under a live mapping
  kShape,            // shapes, strides, aliasing
  kDType,            // element type, byte order
  kValue,            // any other argument out of its range
  kContextOverflow,  // more tokens than the context holds
  kNumerical,        // non-finite values where checking was asked for
  kOutOfMemory,      // an allocation failed, or would
  kOs,               // the operating system refused; `os_errno` and `path` are set
};

// The name of the Python exception.
const char* NameOf(ErrorClass cls);

// What an error knows. Empty strings and nullopt mean "does not apply".
struct ErrorInfo {
  std::string path;     // as the user gave it
  std::string kind;     // "gguf", "safetensors", "index", "json", "tokenizer", "model"
  std::string code;     // stable, upper case: GGUF_BAD_MAGIC
  std::string subject;  // header | key 'k' (#3) | tensor 't' (#41)
  std::string field;    // what of the subject: "length", "dimension 1"
  std::optional<uint64_t> offset;  // absolute byte of the first byte of that field
  std::string tensor, key;         // escaped names, if the subject is one
  std::optional<uint64_t> index;   // their position in the file
  std::string found, expected;     // already escaped
  std::string hint;                // what to do next, one sentence
  uint64_t requested_bytes = 0;    // kOutOfMemory
  int os_errno = 0;                // kOs
};

class Error : public std::exception {
 public:
  // The message is composed from the parts that are set:
  // <file>: <kind>: <subject>: <field> at byte <n>: found <f>; expected <e> - <hint>
  // [CODE]
  Error(ErrorClass cls, ErrorInfo info);
  // For errors that concern an argument, not a file: the message stands as it is.
  Error(ErrorClass cls, std::string message);

  const char* what() const noexcept override { return message_.c_str(); }
  ErrorClass cls() const noexcept { return cls_; }
  const ErrorInfo& info() const noexcept { return info_; }

  // The same error, naming the file. Parsers see bytes; whoever opened the file adds
  // its name while the error passes by.
  Error WithPath(std::string path) const;

 private:
  ErrorClass cls_;
  ErrorInfo info_;
  std::string message_;
};

// Throws Error(kShape, message) unless `ok`. For checks of arguments on entry.
inline void Require(bool ok, const char* message) {
  if (!ok) throw Error(ErrorClass::kShape, message);
}

// errno as an Error of class kOs.
[[noreturn]] void ThrowOsError(int os_errno, const std::string& path);

// Text from a file made safe to print: control characters, non-printing bytes and
// invalid UTF-8 as \xNN, at most `max_chars` characters, then "...".
std::string Escape(std::string_view text, size_t max_chars = 64);

}  // namespace halfbyte
#endif  // HALFBYTE_BASE_ERROR_H_
