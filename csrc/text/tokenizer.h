// csrc/text/tokenizer.h
// Text to token ids and back. Two kinds of vocabulary share one merging core: merges
// ranked by a list (Gemma 4) and pieces ranked by their score (SentencePiece).
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_TEXT_TOKENIZER_H_
#define HALFBYTE_TEXT_TOKENIZER_H_

#include <stddef.h>
#include <stdint.h>

#include <array>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/boundary_set.h"
#include "text/special_matcher.h"
#include "text/token_table.h"

namespace halfbyte {

struct GgufFile;
class GgufMetadata;
class JsonValue;

// How vocabularies write a space.
inline constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581

// GGUF's numbers for the types of tokens.
enum TokenType : int32_t {
  kNormalType = 1,
  kUnknownType = 2,
  kControlType = 3,
  kUserDefinedType = 4,
  kUnusedType = 5,
  kByteType = 6,
};

// A vocabulary as any file spells it. The views borrow from that file: they are read
// while a Tokenizer is made and not kept.
struct TokenizerData {
  enum class Kind { kMergeRank, kScore };

  Kind kind = Kind::kMergeRank;
  std::vector<std::string_view> tokens;  // by id
  std::vector<float> scores;             // by id; needed by kScore
  std::vector<int32_t> types;            // by id, a TokenType; empty: by spelling
  std::vector<std::pair<std::string_view, std::string_view>> merges;  // best first
  int32_t bos = -1, eos = -1, unk = -1, pad = -1;                     // -1: none
  std::vector<int32_t> eog;       // ids that end a generation, besides `eos`
  std::vector<int32_t> suppress;  // ids that must never be generated
  bool add_bos = true;
  std::string chat_template;  // data: shown, never rendered
};

// Immutable, so any number of threads may use one.
class Tokenizer {
 public:
  // Throws Error(kModel) with a TOK_ code if the vocabulary contradicts itself.
  explicit Tokenizer(const TokenizerData& data);

  static Tokenizer FromGguf(const GgufFile& file);
  static Tokenizer FromGguf(const GgufMetadata& metadata);
  // `tokenizer` is tokenizer.json; the other two files add what it lacks and may be
  // null: tokenizer_config.json and generation_config.json.
  static Tokenizer FromJson(const JsonValue& tokenizer,
                            const JsonValue* tokenizer_config,
                            const JsonValue* generation_config);

  // No bos is added. Any bytes are accepted: what is not UTF-8 becomes byte tokens.
  // With `special`, spellings of control tokens become those tokens; without, they are
  // ordinary text, as the contents of messages must be. `poll`, if set, is called every
  // few milliseconds and may throw to cancel.
  std::vector<int32_t> Encode(std::string_view text, bool special,
                              const std::function<void()>& poll = {}) const;

  // The bytes that `ids` stand for, which need not be UTF-8. Control tokens give their
  // spelling with `special`, else nothing. Throws TOK_ID_RANGE.
  std::string Decode(std::span<const int32_t> ids, bool special) const;

  // The id spelled `text`, or -1.
  int32_t FindToken(std::string_view text) const { return table_.Find(text); }
  // The spelling of a token, as in the vocabulary. Throws TOK_ID_RANGE.
  std::string_view Piece(int32_t id) const;
  bool IsControl(int32_t id) const;
  // Whether generation ends with this token.
  bool IsEog(int32_t id) const;

  size_t num_tokens() const { return table_.num_tokens(); }
  int32_t bos() const { return bos_; }
  int32_t eos() const { return eos_; }
  int32_t unk() const { return unk_; }
  int32_t pad() const { return pad_; }
  bool add_bos() const { return add_bos_; }
  const std::vector<int32_t>& eog() const { return eog_; }  // ascending
  const std::vector<int32_t>& suppress() const { return suppress_; }
  const std::string& chat_template() const { return chat_template_; }

 private:
  // What a token is to the encoder. Every GGUF type is one of these.
  enum class Role : uint8_t { kText, kUser, kControl, kByte };

  void SetRoles(const TokenizerData& data);
  void SetSpecialIds(const TokenizerData& data);
  void SetPriorities(const TokenizerData& data);
  void SetMerges(const TokenizerData& data);
  void SetMatchers();

  // Whether plain text may become this token.
  bool IsText(int32_t id) const;
  // The id spelled `text` if plain text may become it, else -1.
  int32_t FindText(std::string_view text) const;
  class Pulse;
  void EncodeFragment(std::string_view text, Pulse& pulse,
                      std::vector<int32_t>& ids) const;
  struct Segment;
  void EncodeRun(std::string_view run, Pulse& pulse, std::vector<int32_t>& ids) const;
  void FinishSegment(Segment& segment, std::vector<int32_t>& ids) const;
  void JoinSymbols(Segment& segment) const;
  // False, and nothing emitted, if one of the bytes has no token.
  bool EmitBytes(std::string_view symbol, std::vector<int32_t>& ids) const;
  void AppendDecoded(int32_t id, bool special, std::string& out) const;
  Role RoleOf(int32_t id) const;
  void CheckId(int32_t id, size_t position) const;

  TokenizerData::Kind kind_;
  TokenTable table_;
  std::vector<Role> roles_;
  std::array<int32_t, 256> byte_ids_;
  std::vector<uint32_t> priority_;  // kScore: by id, 0 is the best score
  PairTable merges_;                // kMergeRank
  BoundarySet boundaries_;          // where two symbols may be joined
  SpecialMatcher user_tokens_;      // matched in all text
  SpecialMatcher all_tokens_;       // matched where control tokens are asked for
  int32_t bos_ = -1, eos_ = -1, unk_ = -1, pad_ = -1;
  bool add_bos_ = true;
  std::vector<int32_t> eog_, suppress_;
  std::string chat_template_;

  friend class StreamDecoder;
};

// Turns ids into text as they are generated. A character whose bytes come from several
// tokens is held back until it is whole, so each piece, and all of them together, is
// valid UTF-8. What can never become valid is replaced by U+FFFD.
class StreamDecoder {
 public:
  // `tokenizer` outlives the decoder.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool special = false)
      : tokenizer_(&tokenizer), special_(special) {}

  std::string Push(int32_t id);
  // What was held back, as U+FFFD. The decoder is then as new.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool special_;
  std::string pending_;  // a proper prefix of one character
};

}  // namespace halfbyte
#endif  // HALFBYTE_TEXT_TOKENIZER_H_
