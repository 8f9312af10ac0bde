// csrc/text/special_matcher.h
// Finds the tokens that are cut out of a text before anything else: at each position,
// the longest one that starts there.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_TEXT_SPECIAL_MATCHER_H_
#define HALFBYTE_TEXT_SPECIAL_MATCHER_H_

#include <stddef.h>
#include <stdint.h>

#include <string_view>
#include <utility>
#include <vector>

namespace halfbyte {

// A trie in two arrays. Matching a text of n bytes takes at most
// n * kMaxLength * 8 steps, for any set of tokens.
class SpecialMatcher {
 public:
  struct Match {
    size_t len = 0;  // 0: nothing starts here
    int32_t id = -1;
  };

  // The longest token, in bytes. Real ones have up to 40.
  static constexpr size_t kMaxLength = 128;

  SpecialMatcher() = default;
  // Spellings with ids, in the order of ids: of equal ones the last wins. Empty
  // spellings are left out. Each has at most kMaxLength bytes.
  explicit SpecialMatcher(std::vector<std::pair<std::string_view, int32_t>> tokens);

  Match At(std::string_view text, size_t pos) const;

 private:
  struct Node {
    uint32_t first_child = 0;  // children are neighbours, sorted by their byte
    uint16_t num_children = 0;
    int32_t id = -1;  // of the token that ends here
  };
  std::vector<Node> nodes_;      // nodes_[0] is the root
  std::vector<uint8_t> labels_;  // the byte that leads to each node
};

}  // namespace halfbyte
#endif  // HALFBYTE_TEXT_SPECIAL_MATCHER_H_
