// csrc/text/boundary_set.h
// Which two characters some merge joins across. Where none does, a text can be cut
// without changing its tokens: words merge on their own, in the cache.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_TEXT_BOUNDARY_SET_H_
#define HALFBYTE_TEXT_BOUNDARY_SET_H_

#include <stddef.h>
#include <stdint.h>

#include <string_view>
#include <vector>

namespace halfbyte {

// One bit a pair, by hash. A collision only leaves a text uncut.
class BoundarySet {
 public:
  // Each character is one UTF-8 sequence, or empty where there is none.
  void Insert(std::string_view before, std::string_view after) {
    const uint32_t bit = BitOf(before, after);
    bits_[bit / 64] |= uint64_t{1} << (bit % 64);
  }
  bool MayContain(std::string_view before, std::string_view after) const {
    const uint32_t bit = BitOf(before, after);
    return (bits_[bit / 64] >> (bit % 64)) & 1;
  }

 private:
  // 512 KiB: Gemma's 10^5 pairs fill a few percent of it.
  static constexpr int kLogBits = 22;

  static uint32_t BitOf(std::string_view before, std::string_view after) {
    const uint64_t key = uint64_t{Word(before)} << 32 | Word(after);
    return static_cast<uint32_t>((key * 0x9E3779B97F4A7C15u) >> (64 - kLogBits));
  }
  static uint32_t Word(std::string_view c) {
    uint32_t word = 0;
    for (const char byte : c) word = word << 8 | static_cast<uint8_t>(byte);
    return word;
  }

  std::vector<uint64_t> bits_ = std::vector<uint64_t>((size_t{1} << kLogBits) / 64);
};

}  // namespace halfbyte
#endif  // HALFBYTE_TEXT_BOUNDARY_SET_H_
