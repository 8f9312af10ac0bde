// csrc/text/tokenizer_json.cc
// A tokenizer from Hugging Face's tokenizer.json and the files beside it.
// SPDX-License-Identifier: Apache-2.0
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "io/json.h"
#include "text/tokenizer.h"

namespace halfbyte {
namespace {

[[noreturn]] void Fail(ErrorClass cls, const char* code, const char* subject,
                       const std::optional<JsonValue>& at, std::string found,
                       std::string expected) {
  ErrorInfo info;
  info.kind = "tokenizer";
  info.code = code;
  info.subject = subject;
  if (at) {
    info.path = at->path();
    info.offset = at->offset();
  }
  info.found = std::move(found);
  info.expected = std::move(expected);
  throw Error(cls, std::move(info));
}

std::optional<JsonValue> Get(const std::optional<JsonValue>& object,
                             std::string_view key) {
  return object ? object->Get(key) : std::nullopt;
}

bool IsString(const std::optional<JsonValue>& value, std::string_view text) {
  return value && value->IsString() && value->AsString() == text;
}

bool IsTrue(const std::optional<JsonValue>& value) {
  return value && value->kind() == JsonKind::kTrue;
}

std::string Quoted(std::string_view text) {
  std::string out = "'";
  out += Escape(text, 24);
  out += '\'';
  return out;
}

std::string Named(const std::optional<JsonValue>& value) {
  if (!value) return "nothing";
  return value->IsString() ? Quoted(value->AsString()) : value->Describe();
}

bool ReplacesSpace(const JsonValue& normalizer) {
  return IsString(Get(normalizer, "type"), "Replace") &&
         IsString(Get(Get(normalizer, "pattern"), "String"), " ") &&
         IsString(Get(normalizer, "content"), kSpace);
}

// Nothing is split off before merging, as spaces have become U+2581 by then; or runs of
// newlines are, which Tokenizer does to every vocabulary of this kind.
bool SplitsAsWeDo(const JsonValue& split) {
  if (!IsString(Get(split, "type"), "Split") || IsTrue(Get(split, "invert"))) {
    return false;
  }
  const auto pattern = Get(split, "pattern");
  return IsString(Get(pattern, "String"), " ") ||
         (IsString(Get(pattern, "Regex"), "\\n+") &&
          IsString(Get(split, "behavior"), "Isolated"));
}

// The one pipeline we reproduce: spaces become U+2581, and merging is BPE.
void CheckPipeline(const JsonValue& root, const std::optional<JsonValue>& model) {
  const auto type = Get(model, "type");
  if (!model || (type && !IsString(type, "BPE"))) {
    Fail(ErrorClass::kUnsupported, "TOK_MODEL", "model type", type, Named(type), "BPE");
  }
  for (const char* option : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto value = Get(model, option);
    if (value && !IsString(value, "")) {
      Fail(ErrorClass::kUnsupported, "TOK_MODEL", option, value, Named(value), "null");
    }
  }
  const auto ignores = Get(model, "ignore_merges");
  if (IsTrue(ignores)) {
    Fail(ErrorClass::kUnsupported, "TOK_MODEL", "ignore_merges", ignores, "true",
         "false");
  }
  const auto fuses = Get(model, "fuse_unk");
  if (fuses && !IsTrue(fuses) && !IsTrue(Get(model, "byte_fallback"))) {
    Fail(ErrorClass::kUnsupported, "TOK_MODEL", "fuse_unk", fuses, "false",
         "true, or byte_fallback");
  }
  const auto normalizer = Get(root, "normalizer");
  bool replaces = normalizer && ReplacesSpace(*normalizer);
  if (const auto list = Get(normalizer, "normalizers"); list && list->IsArray()) {
    replaces = list->size() == 1 && ReplacesSpace(*list->Elements().begin());
  }
  if (!replaces) {
    Fail(ErrorClass::kUnsupported, "TOK_NORMALIZER", "normalizer", normalizer,
         Named(Get(normalizer, "type")), "Replace of a space by U+2581");
  }
  const auto split = Get(root, "pre_tokenizer");
  if (split && !SplitsAsWeDo(*split)) {
    Fail(ErrorClass::kUnsupported, "TOK_PRE_TOKENIZER", "pre_tokenizer", split,
         Named(Get(split, "type")), "none, or Split at a space or at newlines");
  }
}

// Puts a spelling at its id. Of vocabulary and added tokens, both may name one.
void Place(const JsonValue& id_value, std::string_view spelling, TokenType type,
           TokenizerData& data) {
  const uint64_t id = id_value.AsUint64();
  if (id >= data.tokens.size()) {
    Fail(ErrorClass::kModel, "TOK_ID_RANGE", "vocabulary", id_value, std::to_string(id),
         "ids without gaps");
  }
  if (data.types[id] != 0 && data.tokens[id] != spelling) {
    Fail(ErrorClass::kModel, "TOK_DUPLICATE_ID", "vocabulary", id_value,
         Quoted(data.tokens[id]) + " and " + Quoted(spelling), "one spelling an id");
  }
  data.tokens[id] = spelling;
  data.types[id] = type;
}

// What an added token must have.
JsonValue Need(const JsonValue& token, std::string_view key) {
  const auto value = Get(token, key);
  if (!value) {
    Fail(ErrorClass::kModel, "TOK_NO_VOCAB", "added token", token, "one without it",
         Quoted(key));
  }
  return *value;
}

// Ids have no gaps, so the highest says how many there are; the text bounds it.
uint64_t CountTokens(const JsonValue& vocab, const std::optional<JsonValue>& added) {
  const uint64_t most = vocab.size() + (added ? added->size() : 0);
  uint64_t num_tokens = 0;
  const auto count = [&num_tokens, most](const JsonValue& id) {
    num_tokens = std::max(num_tokens, std::min(id.AsUint64(), most) + 1);
  };
  for (const JsonMember& m : vocab.Members()) count(m.value);
  if (added) {
    for (const JsonValue t : added->Elements()) count(Need(t, "id"));
  }
  return num_tokens;
}

void PlaceAdded(const JsonValue& token, TokenizerData& data) {
  for (const char* option : {"lstrip", "rstrip", "single_word"}) {
    if (IsTrue(Get(token, option))) {
      Fail(ErrorClass::kUnsupported, "TOK_ADDED_TOKEN", option, token, "true", "false");
    }
  }
  Place(Need(token, "id"), Need(token, "content").AsString(),
        IsTrue(Get(token, "special")) ? kControlType : kUserDefinedType, data);
}

void ReadTokens(const JsonValue& root, const JsonValue& model, TokenizerData& data) {
  const auto vocab = Get(model, "vocab");
  if (!vocab || !vocab->IsObject()) {
    Fail(ErrorClass::kModel, "TOK_NO_VOCAB", "vocab", vocab, Named(vocab), "an object");
  }
  const auto added = Get(root, "added_tokens");
  const uint64_t num_tokens = CountTokens(*vocab, added);
  data.tokens.resize(num_tokens);
  data.types.resize(num_tokens);  // 0: nothing placed yet
  // Only what is spelled as a byte becomes one.
  const TokenType type = IsTrue(Get(model, "byte_fallback")) ? kByteType : kNormalType;
  for (const JsonMember& m : vocab->Members()) Place(m.value, m.key, type, data);
  if (added) {
    for (const JsonValue t : added->Elements()) PlaceAdded(t, data);
  }
  const auto gap = std::find(data.types.begin(), data.types.end(), 0);
  if (gap != data.types.end()) {
    Fail(ErrorClass::kModel, "TOK_ID_RANGE", "vocabulary", vocab,
         "no token " + std::to_string(gap - data.types.begin()), "ids without gaps");
  }
}

void ReadMerges(const JsonValue& model, TokenizerData& data) {
  const auto merges = Get(model, "merges");
  if (!merges) return;
  data.merges.reserve(merges->size());
  for (const JsonValue m : merges->Elements()) {
    if (m.IsArray() && m.size() == 2) {
      auto it = m.Elements().begin();
      const std::string_view left = (*it).AsString();
      data.merges.emplace_back(left, (*++it).AsString());
      continue;
    }
    const std::string_view pair = m.IsString() ? m.AsString() : std::string_view();
    const size_t space = pair.find(' ', 1);
    if (space == pair.npos) {
      Fail(ErrorClass::kModel, "TOK_MERGE", "merge", m, Named(m), "two pieces");
    }
    data.merges.emplace_back(pair.substr(0, space), pair.substr(space + 1));
  }
}

// Calls body(value, id) for one id or each of a list of them.
template <class Body>
void ForIds(const std::optional<JsonValue>& ids, const Body& body) {
  if (!ids) return;
  if (!ids->IsArray()) return body(*ids, ids->AsUint64());
  for (const JsonValue id : ids->Elements()) body(id, id.AsUint64());
}

void ReadEnds(const std::optional<JsonValue>& ids, TokenizerData& data) {
  ForIds(ids, [&data](const JsonValue& value, uint64_t id) {
    if (id >= data.tokens.size()) {
      Fail(ErrorClass::kModel, "TOK_ID_RANGE", "end token", value, std::to_string(id),
           "an id below " + std::to_string(data.tokens.size()));
    }
    data.eog.push_back(static_cast<int32_t>(id));
  });
}

// What the tokenizer does not know is never sampled anyway.
void ReadSuppressed(const std::optional<JsonValue>& ids, TokenizerData& data) {
  ForIds(ids, [&data](const JsonValue& /*value*/, uint64_t id) {
    if (id < data.tokens.size()) data.suppress.push_back(static_cast<int32_t>(id));
  });
}

// The id of the token that the configuration calls `name`, or else of `usual`.
int32_t SpecialId(const std::optional<JsonValue>& config, const char* name,
                  std::string_view usual, const TokenizerData& data) {
  auto value = Get(config, name);
  if (value && value->IsObject()) value = Get(value, "content");
  const std::string_view text = value && value->IsString() ? value->AsString() : usual;
  const auto at = std::find(data.tokens.begin(), data.tokens.end(), text);
  return at == data.tokens.end() ? -1 : static_cast<int32_t>(at - data.tokens.begin());
}

// One template, or a list of named ones.
std::string ChatTemplate(const std::optional<JsonValue>& config) {
  const auto value = Get(config, "chat_template");
  if (!value) return {};
  if (!value->IsArray()) return std::string(value->AsString());
  for (const JsonValue t : value->Elements()) {
    const auto text = Get(t, "template");
    if (text && IsString(Get(t, "name"), "default")) {
      return std::string(text->AsString());
    }
  }
  return {};
}

}  // namespace

Tokenizer Tokenizer::FromJson(const JsonValue& tokenizer,
                              const JsonValue* tokenizer_config,
                              const JsonValue* generation_config) {
  const auto optional = [](const JsonValue* value) {
    return value ? std::optional<JsonValue>(*value) : std::nullopt;
  };
  const auto config = optional(tokenizer_config);
  const auto generation = optional(generation_config);
  const auto model = Get(tokenizer, "model");
  CheckPipeline(tokenizer, model);

  TokenizerData data;
  data.kind = TokenizerData::Kind::kMergeRank;
  ReadTokens(tokenizer, *model, data);
  ReadMerges(*model, data);
  data.bos = SpecialId(config, "bos_token", "<bos>", data);
  data.eos = SpecialId(config, "eos_token", "<eos>", data);
  data.unk = SpecialId(config, "unk_token", "<unk>", data);
  data.pad = SpecialId(config, "pad_token", "<pad>", data);
  ReadEnds(Get(generation, "eos_token_id"), data);
  ReadSuppressed(Get(generation, "suppress_tokens"), data);
  const auto add_bos = Get(config, "add_bos_token");
  data.add_bos = !add_bos || IsTrue(add_bos);
  data.chat_template = ChatTemplate(config);
  return Tokenizer(data);
}

}  // namespace halfbyte
