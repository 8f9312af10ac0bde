// csrc/text/detokenizer.cc
// Streamed decoding: no piece of text ends inside a character.
// SPDX-License-Identifier: Apache-2.0
#include <stddef.h>
#include <stdint.h>

#include <string>
#include <string_view>

#include "base/utf8.h"
#include "text/tokenizer.h"

namespace halfbyte {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Bytes at the start of `s`, which starts no character, that further bytes could still
// make one of: at most 3.
size_t PrefixLength(std::string_view s) {
  // For any valid prefix some completion is valid too, and these reach the ends of the
  // ranges that a second byte may have.
  constexpr std::string_view kTails[] = {"\x80\x80\x80", "\xBF\xBF\xBF"};
  for (size_t len = s.size() < 3 ? s.size() : 3; len > 0; --len) {
    for (const std::string_view tail : kTails) {
      std::string whole(s.substr(0, len));
      whole += tail;
      if (Utf8Length(whole) > len) return len;
    }
  }
  return 0;
}

}  // namespace

std::string StreamDecoder::Push(int32_t id) {
  tokenizer_->CheckId(id, 0);
  tokenizer_->AppendDecoded(id, special_, pending_);
  std::string out;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const size_t len = Utf8Length(rest);
    if (len > 0) {
      out += rest.substr(0, len);
      rest.remove_prefix(len);
      continue;
    }
    const size_t prefix = PrefixLength(rest);
    if (prefix == rest.size()) break;  // more may come
    out += kReplacement;
    rest.remove_prefix(prefix > 0 ? prefix : 1);
  }
  pending_ = std::string(rest);
  return out;
}

std::string StreamDecoder::Finish() {
  const bool incomplete = !pending_.empty();
  pending_.clear();
  return std::string(incomplete ? kReplacement : "");
}

}  // namespace halfbyte
