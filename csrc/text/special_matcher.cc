// csrc/text/special_matcher.cc
// A trie built level by level from sorted spellings, so without recursion.
// SPDX-License-Identifier: Apache-2.0
#include "text/special_matcher.h"

#include <algorithm>

namespace halfbyte {

SpecialMatcher::SpecialMatcher(
    std::vector<std::pair<std::string_view, int32_t>> tokens) {
  std::sort(tokens.begin(), tokens.end());
  // Tokens [begin, end) share the prefix that leads to the node of the same index.
  struct Range {
    size_t begin, end, depth;
  };
  std::vector<Range> ranges = {{0, tokens.size(), 0}};
  nodes_.emplace_back();
  labels_.push_back(0);
  for (size_t n = 0; n < nodes_.size(); ++n) {
    auto [i, end, depth] = ranges[n];
    // Those that end here come first; of equal ones the last has the highest id.
    for (; i < end && tokens[i].first.size() == depth; ++i) {
      if (depth > 0) nodes_[n].id = tokens[i].second;
    }
    nodes_[n].first_child = static_cast<uint32_t>(nodes_.size());
    while (i < end) {
      const char byte = tokens[i].first[depth];
      size_t next = i + 1;
      while (next < end && tokens[next].first[depth] == byte) ++next;
      ranges.push_back({i, next, depth + 1});
      nodes_.emplace_back();
      labels_.push_back(static_cast<uint8_t>(byte));
      ++nodes_[n].num_children;
      i = next;
    }
  }
}

SpecialMatcher::Match SpecialMatcher::At(std::string_view text, size_t pos) const {
  Match best;
  if (nodes_.empty()) return best;
  const Node* node = &nodes_[0];
  for (size_t i = pos; i < text.size(); ++i) {
    const auto begin = labels_.begin() + node->first_child;
    const auto end = begin + node->num_children;
    const auto byte = static_cast<uint8_t>(text[i]);
    const auto child = std::lower_bound(begin, end, byte);
    if (child == end || *child != byte) break;
    node = &nodes_[static_cast<size_t>(child - labels_.begin())];
    if (node->id >= 0) best = {i + 1 - pos, node->id};
  }
  return best;
}

}  // namespace halfbyte
