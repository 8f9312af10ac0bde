// csrc/text/token_table.cc
// Hash tables of a tokenizer.
// SPDX-License-Identifier: Apache-2.0
#include "text/token_table.h"

#include <string.h>

#include <algorithm>
#include <bit>
#include <chrono>

namespace halfbyte {
namespace {

uint64_t Mix(uint64_t a, uint64_t b) {
  const auto p = static_cast<unsigned __int128>(a ^ 0x9E3779B97F4A7C15u) *
                 (b ^ 0xD1B54A32D192ED03u);
  return static_cast<uint64_t>(p) ^ static_cast<uint64_t>(p >> 64);
}

// Differs between processes and objects. Where an entry lies in its table depends on
// it, what a look-up returns does not.
uint64_t NewSeed(const void* object) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  return Mix(static_cast<uint64_t>(now), reinterpret_cast<uintptr_t>(object));
}

}  // namespace

TokenTable::TokenTable(std::span<const std::string_view> tokens)
    : seed_(NewSeed(this)) {
  size_t bytes = 0;
  for (const std::string_view t : tokens) bytes += t.size();
  text_.reserve(bytes);
  begin_.reserve(tokens.size() + 1);
  begin_.push_back(0);
  for (const std::string_view t : tokens) {
    text_ += t;
    begin_.push_back(text_.size());
    longest_ = std::max(longest_, t.size());
  }

  slots_.resize(std::bit_ceil(2 * tokens.size() + 1));
  const size_t mask = slots_.size() - 1;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const uint64_t hash = Hash(tokens[i]);
    const auto tag = static_cast<uint32_t>(hash >> 32);
    size_t s = hash & mask;
    while (slots_[s].id >= 0 &&
           (slots_[s].tag != tag || Text(slots_[s].id) != tokens[i])) {
      s = (s + 1) & mask;
    }
    slots_[s] = {tag, static_cast<int32_t>(i)};
  }
}

// A word of the text is mixed with the seed, or one that makes a product of Mix zero
// would have the rest of all texts hash alike.
uint64_t TokenTable::Hash(std::string_view text) const {
  uint64_t hash = Mix(seed_, text.size());
  while (text.size() >= 8) {
    uint64_t word;
    memcpy(&word, text.data(), 8);
    hash = Mix(hash, word ^ seed_);
    text.remove_prefix(8);
  }
  uint64_t word = 0;
  if (!text.empty()) memcpy(&word, text.data(), text.size());
  return Mix(hash, word ^ seed_);
}

int32_t TokenTable::Find(std::string_view text) const {
  if (text.size() > longest_) return -1;
  const uint64_t hash = Hash(text);
  const auto tag = static_cast<uint32_t>(hash >> 32);
  const size_t mask = slots_.size() - 1;
  for (size_t s = hash & mask; slots_[s].id >= 0; s = (s + 1) & mask) {
    if (slots_[s].tag == tag && Text(slots_[s].id) == text) return slots_[s].id;
  }
  return -1;
}

PairTable::PairTable() : seed_(NewSeed(this)), slots_(1) {}

void PairTable::Reserve(size_t num_pairs) {
  slots_.assign(std::bit_ceil(2 * num_pairs + 1), Slot());
}

// The slot that holds the pair, or the free one where it belongs.
size_t PairTable::SlotOf(int32_t left, int32_t right) const {
  const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 |
                       static_cast<uint32_t>(right);
  const size_t mask = slots_.size() - 1;
  size_t s = Mix(Mix(seed_, key), seed_) & mask;
  while (slots_[s].merge.token >= 0 &&
         (slots_[s].left != left || slots_[s].right != right)) {
    s = (s + 1) & mask;
  }
  return s;
}

void PairTable::Insert(int32_t left, int32_t right, Merge merge) {
  Slot& slot = slots_[SlotOf(left, right)];
  if (slot.merge.token < 0) slot = {left, right, merge};
}

PairTable::Merge PairTable::Find(int32_t left, int32_t right) const {
  return slots_[SlotOf(left, right)].merge;
}

}  // namespace halfbyte
