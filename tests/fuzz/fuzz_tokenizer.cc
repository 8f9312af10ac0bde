// tests/fuzz/fuzz_tokenizer.cc
// The first half of the input makes a vocabulary, the second is a text. What is encoded
// decodes to itself, and streams as valid UTF-8.
// SPDX-License-Identifier: Apache-2.0
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/utf8.h"
#include "io/json.h"
#include "text/tokenizer.h"

namespace {

using halfbyte::Error;
using halfbyte::StreamDecoder;
using halfbyte::Tokenizer;
using halfbyte::TokenizerData;

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  bool empty() const { return bytes_.empty(); }
  uint8_t Byte() {
    if (bytes_.empty()) return 0;
    const auto b = static_cast<uint8_t>(bytes_[0]);
    bytes_.remove_prefix(1);
    return b;
  }
  std::string_view Text(size_t len) {
    const std::string_view text = bytes_.substr(0, len);
    bytes_.remove_prefix(text.size());
    return text;
  }

 private:
  std::string_view bytes_;
};

// Byte tokens, then tokens as spelled in the input and joins of two earlier tokens.
Tokenizer MakeVocabulary(Reader in, TokenizerData::Kind kind) {
  std::vector<std::string> tokens;
  std::vector<std::pair<size_t, size_t>> merges;
  TokenizerData data;
  data.kind = kind;
  const auto add = [&](std::string text, int32_t type, float score) {
    tokens.push_back(std::move(text));
    data.types.push_back(type);
    data.scores.push_back(score);
  };
  for (unsigned b = 0; b < 256; ++b) {
    char text[8];
    snprintf(text, sizeof(text), "<0x%02X>", b);
    add(text, 6, 0);
  }
  add(std::string(kSpace), 1, 0);
  while (!in.empty()) {
    const uint8_t op = in.Byte();
    const float score = static_cast<float>(op >> 4);
    if (op & 8) {
      const size_t n = tokens.size() - 256;
      const size_t left = 256 + in.Byte() % n, right = 256 + in.Byte() % n;
      if (tokens[left].size() + tokens[right].size() > 200) continue;
      merges.emplace_back(left, right);
      add(tokens[left] + tokens[right], 1, score);
    } else {
      add(std::string(in.Text(in.Byte() % 9)), op & 7, score);
    }
  }
  data.tokens.assign(tokens.begin(), tokens.end());
  for (const auto& [l, r] : merges) data.merges.emplace_back(tokens[l], tokens[r]);
  return Tokenizer(data);
}

// U+2581 as a space: it decodes so, whether the text had it or a token did.
std::string Normalized(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const bool space = text.substr(i).starts_with(kSpace);
    out += space ? ' ' : text[i];
    i += space ? kSpace.size() : 1;
  }
  return out;
}

void Check(bool ok) {
  if (!ok) abort();
}

void CheckText(const Tokenizer& t, std::string_view text, bool special, bool exact) {
  const std::vector<int32_t> ids = t.Encode(text, special);
  const std::string decoded = t.Decode(ids, true);
  if (exact) Check(Normalized(decoded) == Normalized(text));
  for (const int32_t id : ids) {
    if (exact && !special) Check(!t.IsControl(id));
  }
  StreamDecoder stream(t, true);
  std::string streamed;
  for (const int32_t id : ids) {
    const std::string piece = stream.Push(id);
    Check(halfbyte::FirstInvalidUtf8(piece) == piece.size());
    streamed += piece;
  }
  streamed += stream.Finish();
  Check(halfbyte::FirstInvalidUtf8(streamed) == streamed.size());
  if (halfbyte::FirstInvalidUtf8(decoded) == decoded.size()) Check(streamed == decoded);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string_view first = input.substr(0, input.size() / 2);
  const std::string_view text = input.substr(first.size());
  const bool json = data[0] % 3 == 2;
  std::optional<Tokenizer> tokenizer;
  try {
    if (json) {
      const auto document = halfbyte::ParseJson(first);
      tokenizer = Tokenizer::FromJson(document.root(), nullptr, nullptr);
    } else {
      tokenizer = MakeVocabulary(Reader(first), data[0] % 3 == 0
                                                    ? TokenizerData::Kind::kMergeRank
                                                    : TokenizerData::Kind::kScore);
    }
  } catch (const Error& e) {
    Check(!e.info().code.empty());
    return 0;
  }
  CheckText(*tokenizer, text, false, !json);
  CheckText(*tokenizer, text, true, !json);
  return 0;
}
