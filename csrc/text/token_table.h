// csrc/text/token_table.h
// The two look-ups of a tokenizer, as open-addressing hash tables: spelling to id, and
// pair of ids to merge. Seeded, so that no file can be made to collide.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_TEXT_TOKEN_TABLE_H_
#define HALFBYTE_TEXT_TOKEN_TABLE_H_

#include <stddef.h>
#include <stdint.h>

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace halfbyte {

// Owns all spellings, one behind the other.
class TokenTable {
 public:
  // Of equal spellings the last one is found. At most 2^31 - 1 tokens.
  explicit TokenTable(std::span<const std::string_view> tokens);

  size_t num_tokens() const { return begin_.size() - 1; }
  // `id` is in range.
  std::string_view Text(int32_t id) const {
    const size_t i = static_cast<size_t>(id);
    return std::string_view(text_).substr(begin_[i], begin_[i + 1] - begin_[i]);
  }
  int32_t Find(std::string_view text) const;

 private:
  struct Slot {
    uint32_t tag = 0;  // high half of the hash: most misses never touch the text
    int32_t id = -1;   // -1: free
  };
  uint64_t Hash(std::string_view text) const;

  uint64_t seed_;
  std::string text_;
  std::vector<uint64_t> begin_;  // (num_tokens + 1)
  size_t longest_ = 0;
  std::vector<Slot> slots_;  // a power of two, at most half full
};

class PairTable {
 public:
  struct Merge {
    uint32_t rank;  // 0 is the best
    int32_t token;  // -1: this pair does not merge
  };

  PairTable();
  void Reserve(size_t num_pairs);  // discards what is in the table
  // The first rank given to a pair stays. Not more pairs than reserved.
  void Insert(int32_t left, int32_t right, Merge merge);
  Merge Find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    int32_t left = 0, right = 0;
    Merge merge = {0, -1};  // -1: free
  };
  size_t SlotOf(int32_t left, int32_t right) const;

  uint64_t seed_;
  std::vector<Slot> slots_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_TEXT_TOKEN_TABLE_H_
