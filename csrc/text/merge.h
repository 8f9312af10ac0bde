// csrc/text/merge.h
// The core of byte pair encoding: join neighbours, best pair first, until none is left.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_TEXT_MERGE_H_
#define HALFBYTE_TEXT_MERGE_H_

#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <map>
#include <vector>

namespace halfbyte {

// 32-bit positions: Tokenizer::Encode refuses texts that need more.
struct Symbol {
  static constexpr uint32_t kNone = UINT32_MAX;
  uint32_t begin, len;  // in bytes; len 0: joined to the one before
  int32_t id;           // -1: no token
  uint32_t prev, next;  // indices of the neighbours that are left, or kNone
};

// What joining two neighbours would give.
struct Join {
  uint32_t priority;  // the lowest is joined first
  int32_t token;      // -1: these two do not join
};

// A join that was possible when it was found.
struct Candidate {
  uint32_t priority, left, len;
  int32_t token;
};

// The order of joins: by priority, leftmost first among equals.
inline bool ComesAfter(const Candidate& a, const Candidate& b) {
  return a.priority != b.priority ? a.priority > b.priority : a.left > b.left;
}

// A binary heap, for as many candidates as the cache holds.
class HeapQueue {
 public:
  bool empty() const { return heap_.empty(); }
  void Push(const Candidate& c) {
    heap_.push_back(c);
    std::push_heap(heap_.begin(), heap_.end(), ComesAfter);
  }
  const Candidate& Top() const { return heap_.front(); }
  Candidate Pop() {
    std::pop_heap(heap_.begin(), heap_.end(), ComesAfter);
    const Candidate c = heap_.back();
    heap_.pop_back();
    return c;
  }

 private:
  std::vector<Candidate> heap_;
};

// For long segments, which are long because they repeat themselves: few priorities with
// many candidates each, which come nearly in order. So one lane a priority; what comes
// in order is appended to it, only the rest goes through a heap.
class LaneQueue {
 public:
  bool empty() const { return lanes_.empty(); }
  void Push(const Candidate& c) {
    Lane& lane = lanes_[c.priority];
    if (lane.sorted.empty() || lane.sorted.back().left <= c.left) {
      lane.sorted.push_back(c);
    } else {
      lane.rest.Push(c);
    }
  }
  Candidate Pop() {
    const auto best = lanes_.begin();
    Lane& lane = best->second;
    const bool from_rest =
        !lane.rest.empty() && (lane.next == lane.sorted.size() ||
                               ComesAfter(lane.sorted[lane.next], lane.rest.Top()));
    const Candidate c = from_rest ? lane.rest.Pop() : lane.sorted[lane.next++];
    if (lane.next == lane.sorted.size()) {
      lane.sorted.clear();
      lane.next = 0;
      if (lane.rest.empty()) lanes_.erase(best);
    }
    return c;
  }

 private:
  struct Lane {
    std::vector<Candidate> sorted;  // from `next` on
    size_t next = 0;
    HeapQueue rest;
  };
  std::map<uint32_t, Lane> lanes_;
};

// Joins over a linked list of symbols: O(n log n). `rule(left, right)` returns a Join
// that depends on the two symbols only. `queue` is empty before and after.
template <class Queue, class Rule>
class Merger {
 public:
  Merger(std::vector<Symbol>& symbols, Queue& queue, const Rule& rule)
      : symbols_(symbols), queue_(queue), rule_(rule) {}

  // The symbols left over are those whose len is not 0.
  void Run() {
    for (uint32_t i = 0; i + 1 < symbols_.size(); ++i) Consider(i);
    while (!queue_.empty()) {
      const Candidate c = queue_.Pop();
      if (IsCurrent(c)) JoinAt(c);
    }
  }

 private:
  void Consider(uint32_t left) {
    const Symbol& l = symbols_[left];
    const Symbol& r = symbols_[l.next];
    const Join join = rule_(l, r);
    if (join.token < 0) return;
    queue_.Push({join.priority, left, l.len + r.len, join.token});
  }

  // A symbol only ever grows to the right, over whole neighbours. So if the two still
  // cover as many bytes as they did, they are the same two.
  bool IsCurrent(const Candidate& c) const {
    const Symbol& l = symbols_[c.left];
    return l.len != 0 && l.next != Symbol::kNone &&
           l.len + symbols_[l.next].len == c.len;
  }

  void JoinAt(const Candidate& c) {
    Symbol& l = symbols_[c.left];
    Symbol& r = symbols_[l.next];
    l.len += r.len;
    l.id = c.token;
    r.len = 0;
    l.next = r.next;
    if (l.next != Symbol::kNone) symbols_[l.next].prev = c.left;
    if (l.prev != Symbol::kNone) Consider(l.prev);
    if (l.next != Symbol::kNone) Consider(c.left);
  }

  std::vector<Symbol>& symbols_;
  Queue& queue_;
  const Rule& rule_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_TEXT_MERGE_H_
