// csrc/io/cursor.h
// The one place that does pointer arithmetic on file bytes: a bounds-checked,
// little-endian reader. It never throws; the caller knows what the field was.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_IO_CURSOR_H_
#define HALFBYTE_IO_CURSOR_H_

#include <stdint.h>
#include <string.h>

#include <bit>
#include <span>
#include <string_view>
#include <type_traits>

namespace halfbyte {

// Headers and weights are little-endian and read in place.
static_assert(std::endian::native == std::endian::little,
              "halfbyte runs on little-endian machines only");

class Cursor {
 public:
  Cursor() = default;
  explicit Cursor(std::span<const uint8_t> bytes) noexcept : bytes_(bytes) {}

  uint64_t pos() const noexcept { return pos_; }  // <= size()
  uint64_t size() const noexcept { return bytes_.size(); }
  uint64_t remaining() const noexcept { return bytes_.size() - pos_; }

  // Each of these moves on and returns true, or leaves everything as it was and
  // returns false because fewer than the wanted bytes remain.
  template <class T>
  [[nodiscard]] bool Read(T* out) noexcept {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    if (sizeof(T) > remaining()) return false;
    memcpy(out, bytes_.data() + pos_, sizeof(T));
    pos_ += sizeof(T);
    return true;
  }

  [[nodiscard]] bool Take(uint64_t n, std::span<const uint8_t>* out) noexcept {
    if (n > remaining()) return false;
    *out = bytes_.subspan(pos_, n);
    pos_ += n;
    return true;
  }

  [[nodiscard]] bool Take(uint64_t n, std::string_view* out) noexcept {
    if (n > remaining()) return false;
    *out = {reinterpret_cast<const char*>(bytes_.data()) + pos_, n};
    pos_ += n;
    return true;
  }

 private:
  std::span<const uint8_t> bytes_;
  uint64_t pos_ = 0;
};

// A number from the middle of bytes whose length was checked before; any alignment.
template <class T>
T LoadLE(const uint8_t* p) noexcept {
  static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
  T value;
  memcpy(&value, p, sizeof(T));
  return value;
}

}  // namespace halfbyte
#endif  // HALFBYTE_IO_CURSOR_H_
