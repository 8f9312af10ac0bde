// csrc/base/utf8.h
// UTF-8, strictly: no overlong forms, no surrogates, nothing above U+10FFFF.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_BASE_UTF8_H_
#define HALFBYTE_BASE_UTF8_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <string_view>

namespace halfbyte {

// Bytes of the valid sequence that `s` starts with, or 0 if it starts with none.
inline size_t Utf8Length(std::string_view s) noexcept {
  if (s.empty()) return 0;
  const auto at = [s](size_t i) { return static_cast<uint8_t>(s[i]); };
  const uint8_t b0 = at(0);
  if (b0 < 0x80) return 1;
  const size_t len = b0 >= 0xF0 ? 4 : b0 >= 0xE0 ? 3 : 2;
  if (b0 < 0xC2 || b0 > 0xF4 || s.size() < len) return 0;
  // The second byte's range excludes overlong forms, surrogates and > U+10FFFF.
  const uint8_t lo = b0 == 0xE0 ? 0xA0 : b0 == 0xF0 ? 0x90 : 0x80;
  const uint8_t hi = b0 == 0xED ? 0x9F : b0 == 0xF4 ? 0x8F : 0xBF;
  if (at(1) < lo || at(1) > hi) return 0;
  for (size_t i = 2; i < len; ++i) {
    if ((at(i) & 0xC0) != 0x80) return 0;
  }
  return len;
}

// Offset of the first byte that is not valid UTF-8, or s.size().
inline size_t FirstInvalidUtf8(std::string_view s) noexcept {
  size_t i = 0;
  while (i < s.size()) {
    uint64_t ascii;  // eight at a time: most text has no other bytes
    while (s.size() - i >= sizeof(ascii)) {
      memcpy(&ascii, s.data() + i, sizeof(ascii));
      if ((ascii & 0x8080808080808080u) != 0) break;
      i += sizeof(ascii);
    }
    const size_t len = Utf8Length(s.substr(i));
    if (len == 0) break;  // invalid, or nothing left
    i += len;
  }
  return i;
}

// Offset of the first byte that has no place in a name (invalid UTF-8, NUL, C0 and C1
// controls, DEL), or s.size().
inline size_t FirstUnclean(std::string_view s) noexcept {
  const size_t end = FirstInvalidUtf8(s);
  for (size_t i = 0; i < end; ++i) {
    const auto b = static_cast<uint8_t>(s[i]);
    const bool c1 = b == 0xC2 && static_cast<uint8_t>(s[i + 1]) < 0xA0;
    if (b < 0x20 || b == 0x7F || c1) return i;
  }
  return end;
}

}  // namespace halfbyte
#endif  // HALFBYTE_BASE_UTF8_H_
