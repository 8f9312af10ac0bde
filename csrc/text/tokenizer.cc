// csrc/text/tokenizer.cc
// Checks a vocabulary, then encodes and decodes with it.
// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer.h"

#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"
#include "io/limits.h"
#include "text/merge.h"

namespace halfbyte {
namespace {

// Merging works with 32-bit positions, and escaping triples a space.
constexpr size_t kMaxTextBytes = size_t{1} << 30;

// Symbols from which on the candidates outgrow the cache.
constexpr size_t kLongSegment = size_t{1} << 16;

// Control tokens that end an answer. A model's own list is added to these.
constexpr std::string_view kEogTokens[] = {"<eos>", "<end_of_turn>", "<turn|>",
                                           "<|tool_response>"};

ErrorInfo Info(const char* code, std::string subject, std::string found,
               std::string expected) {
  ErrorInfo info;
  info.kind = "tokenizer";
  info.code = code;
  info.subject = std::move(subject);
  info.found = std::move(found);
  info.expected = std::move(expected);
  return info;
}

[[noreturn]] void Fail(const char* code, std::string subject, std::string found,
                       std::string expected,
                       std::optional<uint64_t> index = std::nullopt) {
  ErrorInfo info =
      Info(code, std::move(subject), std::move(found), std::move(expected));
  info.index = index;
  throw Error(ErrorClass::kModel, std::move(info));
}

std::string At(const char* what, size_t index) {
  return std::string(what) + " (#" + std::to_string(index) + ")";
}

void CheckLength(const char* what, size_t found, size_t num_tokens) {
  if (found == 0 || found == num_tokens) return;
  Fail("TOK_LENGTH", what, std::to_string(found) + " entries",
       std::to_string(num_tokens) + ", one a token");
}

void CheckLimit(const char* what, uint64_t found, uint64_t limit) {
  if (found <= limit) return;
  throw Error(ErrorClass::kLimit, Info("TOK_LIMIT", what, std::to_string(found),
                                       "at most " + std::to_string(limit)));
}

// The array lengths, before anything is sized by them.
const TokenizerData& Checked(const TokenizerData& data) {
  const size_t n = data.tokens.size();
  if (n == 0) {
    Fail("TOK_NO_VOCAB", "tokens", std::to_string(n) + " entries", "at least 1");
  }
  size_t bytes = 0;
  for (const std::string_view token : data.tokens) bytes += token.size();
  CheckLimit("tokens", n, kMaxVocabulary);
  CheckLimit("bytes of tokens", bytes, kMaxVocabularyBytes);
  CheckLength("scores", data.scores.size(), n);
  CheckLength("token types", data.types.size(), n);
  if (data.kind == TokenizerData::Kind::kScore && data.scores.empty()) {
    Fail("TOK_LENGTH", "scores", "none", "one a token");
  }
  return data;
}

// The byte that a token stands for, or -1. The spelling is exact: <0xE9>.
int ByteOf(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const char *const begin = &token[3], *const end = &token[5];
  uint8_t byte = 0;
  return std::from_chars(begin, end, byte, 16).ptr == end ? byte : -1;
}

// Tokens that frame turns, thoughts and tool calls. Some files call them user-defined,
// which would let the text of a message open a turn.
bool IsTurnMarker(std::string_view token) {
  return token.starts_with("<|") || token.ends_with("|>");
}

void ReplaceAll(std::string_view from, std::string_view to, std::string& text,
                std::string_view in) {
  size_t pos = 0;
  for (size_t hit; (hit = in.find(from, pos)) != in.npos; pos = hit + from.size()) {
    text.append(in.substr(pos, hit - pos));
    text.append(to);
  }
  text.append(in.substr(pos));
}

// Calls `use(before, after)` for each two characters of `text` that are neighbours.
template <class Use>
void ForEachBoundary(std::string_view text, const Use& use) {
  std::string_view before;
  while (!text.empty()) {
    const size_t valid = Utf8Length(text);
    const std::string_view c = text.substr(0, valid);
    if (valid > 0 && !before.empty()) use(before, c);
    before = c;
    text.remove_prefix(std::max(valid, size_t{1}));
  }
}

// The last character of `text`, which is not empty, or nothing if it is not UTF-8.
std::string_view LastCharacter(std::string_view text) {
  for (size_t len = 1; len <= std::min<size_t>(4, text.size()); ++len) {
    const std::string_view tail = text.substr(text.size() - len);
    if (Utf8Length(tail) == len) return tail;
  }
  return {};
}

}  // namespace

// Counts bytes that are looked at and pairs that are considered.
class Tokenizer::Pulse {
 public:
  explicit Pulse(const std::function<void()>& poll) : poll_(poll) {}

  void Beat() {
    if ((++beats_ & 0xFFFF) == 0 && poll_) poll_();
  }

 private:
  const std::function<void()>& poll_;
  uint32_t beats_ = 0;
};

// Neighbouring characters that some merge may join, with what joining them needs.
struct Tokenizer::Segment {
  std::string_view run;
  Pulse& pulse;
  std::vector<Symbol> symbols;
  HeapQueue heap;
  bool after_unknown = false;  // the last id emitted is the unknown token

  void Append(size_t begin, size_t len, int32_t id) {
    const auto i = static_cast<uint32_t>(symbols.size());
    symbols.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(len), id,
                       i == 0 ? Symbol::kNone : i - 1, i + 1});
  }
};

Tokenizer::Tokenizer(const TokenizerData& data)
    : kind_(Checked(data).kind),
      table_(data.tokens),
      add_bos_(data.add_bos),
      chat_template_(data.chat_template) {
  SetSpecialIds(data);
  SetRoles(data);
  if (kind_ == TokenizerData::Kind::kScore) {
    SetPriorities(data);
  } else {
    SetMerges(data);
  }
  SetMatchers();
  for (const std::string_view text : kEogTokens) {
    const int32_t id = FindToken(text);
    if (id >= 0 && IsControl(id)) eog_.push_back(id);
  }
  std::sort(eog_.begin(), eog_.end());
  eog_.erase(std::unique(eog_.begin(), eog_.end()), eog_.end());
}

void Tokenizer::SetSpecialIds(const TokenizerData& data) {
  const auto check = [this](const char* what, int32_t id) {
    if (id < 0 || static_cast<size_t>(id) >= num_tokens()) {
      Fail("TOK_ID_RANGE", what, std::to_string(id),
           "an id below " + std::to_string(num_tokens()));
    }
    return id;
  };
  if (data.bos != -1) bos_ = check("bos token", data.bos);
  if (data.eos != -1) eos_ = check("eos token", data.eos);
  if (data.unk != -1) unk_ = check("unknown token", data.unk);
  if (data.pad != -1) pad_ = check("padding token", data.pad);
  for (const int32_t id : data.eog) eog_.push_back(check("end token", id));
  for (const int32_t id : data.suppress) {
    suppress_.push_back(check("suppressed token", id));
  }
  if (eos_ >= 0) eog_.push_back(eos_);
}

void Tokenizer::SetRoles(const TokenizerData& data) {
  roles_.resize(num_tokens(), Role::kText);
  byte_ids_.fill(-1);
  for (size_t i = 0; i < roles_.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    const std::string_view text = data.tokens[i];
    const int byte = ByteOf(text);
    int32_t type =
        data.types.empty() ? (byte >= 0 ? kByteType : kNormalType) : data.types[i];
    if (type < kNormalType || type > kByteType) {
      Fail("TOK_TYPE", At("token type", i), std::to_string(type), "1 to 6", i);
    }
    if (data.types.empty() &&
        (id == bos_ || id == eos_ || id == unk_ || id == pad_ || IsTurnMarker(text))) {
      type = kControlType;
    }
    if (type == kUserDefinedType && IsTurnMarker(text)) type = kControlType;
    if (type == kControlType || type == kUnknownType) roles_[i] = Role::kControl;
    if (type == kUserDefinedType) roles_[i] = Role::kUser;
    if (type == kByteType && byte >= 0) {
      roles_[i] = Role::kByte;
      byte_ids_[static_cast<size_t>(byte)] = id;
    }
  }
  const bool all_bytes =
      std::find(byte_ids_.begin(), byte_ids_.end(), -1) == byte_ids_.end();
  if (!all_bytes && unk_ < 0) {
    Fail("TOK_NO_FALLBACK", "tokens", "neither all byte tokens nor an unknown token",
         "a token for every text");
  }
}

void Tokenizer::SetPriorities(const TokenizerData& data) {
  std::vector<float> scores = data.scores;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (std::isnan(scores[i])) Fail("TOK_SCORE", At("score", i), "NaN", "a number", i);
  }
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  priority_.reserve(data.scores.size());
  for (const float score : data.scores) {
    const auto at =
        std::lower_bound(scores.begin(), scores.end(), score, std::greater<>());
    priority_.push_back(static_cast<uint32_t>(at - scores.begin()));
  }
  for (size_t i = 0; i < roles_.size(); ++i) {
    if (FindText(data.tokens[i]) < 0) continue;
    ForEachBoundary(data.tokens[i], [this](std::string_view a, std::string_view b) {
      boundaries_.Insert(a, b);
    });
  }
}

void Tokenizer::SetMerges(const TokenizerData& data) {
  CheckLimit("merges", data.merges.size(), kMaxMerges);
  merges_.Reserve(data.merges.size());
  std::string joined;
  for (size_t i = 0; i < data.merges.size(); ++i) {
    const auto& [left_text, right_text] = data.merges[i];
    joined.assign(left_text).append(right_text);
    const int32_t left = FindToken(left_text);
    const int32_t right = FindToken(right_text);
    const int32_t token = FindToken(joined);
    if (left < 0 || right < 0 || token < 0 || left_text.empty() || right_text.empty()) {
      Fail("TOK_MERGE", At("merge", i),
           "'" + Escape(left_text, 24) + "' + '" + Escape(right_text, 24) + "'",
           "two tokens that make a third", i);
    }
    // Text must not grow into a token that means more than its letters.
    if (!IsText(token)) continue;
    merges_.Insert(left, right, {static_cast<uint32_t>(i), token});
    boundaries_.Insert(LastCharacter(left_text),
                       right_text.substr(0, Utf8Length(right_text)));
  }
}

void Tokenizer::SetMatchers() {
  std::vector<std::pair<std::string_view, int32_t>> user, all;
  uint64_t bytes = 0;
  for (size_t i = 0; i < roles_.size(); ++i) {
    if (roles_[i] != Role::kUser && roles_[i] != Role::kControl) continue;
    const auto id = static_cast<int32_t>(i);
    const std::string_view text = table_.Text(id);
    if (text.size() > SpecialMatcher::kMaxLength) {
      Fail("TOK_SPECIAL_LENGTH", At("token", i), std::to_string(text.size()) + " bytes",
           "at most " + std::to_string(SpecialMatcher::kMaxLength) +
               " in a control or user-defined token",
           i);
    }
    CheckLimit("bytes of control and user-defined tokens", bytes += text.size(),
               kMaxSpecialBytes);
    all.emplace_back(text, id);
    if (roles_[i] == Role::kUser) user.emplace_back(text, id);
  }
  user_tokens_ = SpecialMatcher(std::move(user));
  all_tokens_ = SpecialMatcher(std::move(all));
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool special,
                                       const std::function<void()>& poll) const {
  if (text.size() > kMaxTextBytes) {
    throw Error(ErrorClass::kLimit, "text: found " + std::to_string(text.size()) +
                                        " bytes; expected at most 2^30 [TOK_TEXT]");
  }
  const SpecialMatcher& matcher = special ? all_tokens_ : user_tokens_;
  Pulse pulse(poll);
  std::vector<int32_t> ids;
  size_t begin = 0;  // of the ordinary text before `pos`
  for (size_t pos = 0; pos < text.size();) {
    pulse.Beat();
    const SpecialMatcher::Match match = matcher.At(text, pos);
    if (match.len == 0) {
      ++pos;
      continue;
    }
    EncodeFragment(text.substr(begin, pos - begin), pulse, ids);
    ids.push_back(match.id);
    begin = pos += match.len;
  }
  EncodeFragment(text.substr(begin), pulse, ids);
  return ids;
}

void Tokenizer::EncodeFragment(std::string_view text, Pulse& pulse,
                               std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  std::string escaped;
  escaped.reserve(text.size());
  ReplaceAll(" ", kSpace, escaped, text);
  const std::string_view s = escaped;
  if (kind_ == TokenizerData::Kind::kScore) return EncodeRun(s, pulse, ids);

  for (size_t begin = 0; begin < s.size();) {
    const bool newlines = s[begin] == '\n';
    const size_t end = std::min(
        newlines ? s.find_first_not_of('\n', begin) : s.find('\n', begin), s.size());
    const std::string_view run = s.substr(begin, end - begin);
    const int32_t whole = newlines ? FindText(run) : -1;
    if (whole >= 0) {
      ids.push_back(whole);
    } else {
      EncodeRun(run, pulse, ids);
    }
    begin = end;
  }
}

void Tokenizer::EncodeRun(std::string_view run, Pulse& pulse,
                          std::vector<int32_t>& ids) const {
  Segment segment{.run = run, .pulse = pulse, .symbols = {}, .heap = {}};
  std::string_view before;  // the character before `pos`, if it is one
  for (size_t pos = 0; pos < run.size();) {
    pulse.Beat();
    const size_t valid = Utf8Length(run.substr(pos));
    const std::string_view c = run.substr(pos, std::max(valid, size_t{1}));
    if (valid == 0 || before.empty() || !boundaries_.MayContain(before, c)) {
      FinishSegment(segment, ids);
    }
    segment.Append(pos, c.size(), valid > 0 ? FindText(c) : -1);
    before = valid > 0 ? c : std::string_view();
    pos += c.size();
  }
  FinishSegment(segment, ids);
}

void Tokenizer::FinishSegment(Segment& segment, std::vector<int32_t>& ids) const {
  if (segment.symbols.size() > 1) {
    segment.symbols.back().next = Symbol::kNone;
    JoinSymbols(segment);
  }
  for (const Symbol& s : segment.symbols) {
    if (s.len == 0) continue;
    bool known = true;
    if (s.id >= 0) {
      ids.push_back(s.id);
    } else {
      known = EmitBytes(segment.run.substr(s.begin, s.len), ids);
    }
    // One unknown token for any number of neighbours.
    if (!known && !segment.after_unknown) ids.push_back(unk_);
    segment.after_unknown = !known;
  }
  segment.symbols.clear();
}

void Tokenizer::JoinSymbols(Segment& segment) const {
  const auto run = [&segment](const auto& rule) {
    if (segment.symbols.size() > kLongSegment) {
      LaneQueue lanes;
      Merger(segment.symbols, lanes, rule).Run();
    } else {
      Merger(segment.symbols, segment.heap, rule).Run();
    }
  };
  if (kind_ == TokenizerData::Kind::kMergeRank) {
    run([this, &segment](const Symbol& l, const Symbol& r) {
      segment.pulse.Beat();
      if (l.id < 0 || r.id < 0) return Join{0, -1};
      const PairTable::Merge merge = merges_.Find(l.id, r.id);
      return Join{merge.rank, merge.token};
    });
  } else {
    run([this, &segment](const Symbol& l, const Symbol& r) {
      segment.pulse.Beat();
      const int32_t token =
          FindText(segment.run.substr(l.begin, size_t{l.len} + r.len));
      return Join{token < 0 ? 0 : priority_[static_cast<size_t>(token)], token};
    });
  }
}

bool Tokenizer::EmitBytes(std::string_view symbol, std::vector<int32_t>& ids) const {
  const auto id_of = [this](char c) { return byte_ids_[static_cast<uint8_t>(c)]; };
  for (const char c : symbol) {
    if (id_of(c) < 0) return false;
  }
  for (const char c : symbol) ids.push_back(id_of(c));
  return true;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool special) const {
  for (size_t i = 0; i < ids.size(); ++i) CheckId(ids[i], i);
  std::string out;
  for (const int32_t id : ids) AppendDecoded(id, special, out);
  return out;
}

void Tokenizer::AppendDecoded(int32_t id, bool special, std::string& out) const {
  const std::string_view text = table_.Text(id);
  switch (RoleOf(id)) {
    case Role::kControl:
      if (special) out += text;
      return;
    case Role::kByte:
      out += static_cast<char>(ByteOf(text));
      return;
    case Role::kText:
    case Role::kUser:
      ReplaceAll(kSpace, " ", out, text);
  }
}

std::string_view Tokenizer::Piece(int32_t id) const {
  CheckId(id, 0);
  return table_.Text(id);
}

bool Tokenizer::IsControl(int32_t id) const {
  CheckId(id, 0);
  return RoleOf(id) == Role::kControl;
}

bool Tokenizer::IsEog(int32_t id) const {
  return std::binary_search(eog_.begin(), eog_.end(), id);
}

int32_t Tokenizer::FindText(std::string_view text) const {
  const int32_t id = table_.Find(text);
  return id >= 0 && IsText(id) ? id : -1;
}

bool Tokenizer::IsText(int32_t id) const {
  return RoleOf(id) == Role::kText || RoleOf(id) == Role::kUser;
}

Tokenizer::Role Tokenizer::RoleOf(int32_t id) const {
  return roles_[static_cast<size_t>(id)];
}

void Tokenizer::CheckId(int32_t id, size_t position) const {
  if (id >= 0 && static_cast<size_t>(id) < num_tokens()) return;
  ErrorInfo info = Info("TOK_ID_RANGE", At("token id", position), std::to_string(id),
                        "0 to " + std::to_string(num_tokens() - 1));
  info.index = position;
  throw Error(ErrorClass::kValue, std::move(info));
}

}  // namespace halfbyte
