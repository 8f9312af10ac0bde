// csrc/base/checked.h
// Arithmetic on numbers that a file or a caller chose: it overflows visibly or not at
// all. Nullopt means "does not fit".
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_BASE_CHECKED_H_
#define HALFBYTE_BASE_CHECKED_H_

#include <stdint.h>

#include <bit>
#include <optional>

namespace halfbyte {

[[nodiscard]] constexpr std::optional<uint64_t> CheckedAdd(uint64_t a,
                                                           uint64_t b) noexcept {
  const uint64_t sum = a + b;
  if (sum < a) return std::nullopt;
  return sum;
}

[[nodiscard]] constexpr std::optional<uint64_t> CheckedMul(uint64_t a,
                                                           uint64_t b) noexcept {
  if (a != 0 && b > UINT64_MAX / a) return std::nullopt;
  return a * b;
}

// The smallest multiple of `alignment` (a power of two) that is at least `a`.
[[nodiscard]] constexpr std::optional<uint64_t> CheckedAlignUp(
    uint64_t a, uint64_t alignment) noexcept {
  if (!std::has_single_bit(alignment) || a > UINT64_MAX - (alignment - 1)) {
    return std::nullopt;
  }
  return (a + (alignment - 1)) & ~(alignment - 1);
}

// An integer as a file states it. It compares but does not compute: whoever wants
// arithmetic asks for `value()` and passes it to the functions above.
class Untrusted {
 public:
  constexpr Untrusted() = default;
  constexpr explicit Untrusted(uint64_t value) noexcept : value_(value) {}

  constexpr uint64_t value() const noexcept { return value_; }

  constexpr bool operator==(uint64_t other) const noexcept { return value_ == other; }
  constexpr auto operator<=>(uint64_t other) const noexcept { return value_ <=> other; }

 private:
  uint64_t value_ = 0;
};

}  // namespace halfbyte
#endif  // HALFBYTE_BASE_CHECKED_H_
