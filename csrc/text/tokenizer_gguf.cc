// csrc/text/tokenizer_gguf.cc
// A tokenizer from the tokenizer.* keys of a GGUF file.
// SPDX-License-Identifier: Apache-2.0
#include <stddef.h>
#include <stdint.h>

#include <string>
#include <string_view>

#include "base/error.h"
#include "io/gguf.h"
#include "text/tokenizer.h"

namespace halfbyte {
namespace {

constexpr std::string_view kPrefix = "tokenizer.ggml.";

std::string Key(std::string_view name) {
  return std::string(kPrefix) + std::string(name);
}

// Throws TOK_KEY_TYPE unless `key` is an array of `element`.
void CheckArray(const GgufMetadata& meta, const std::string& key, GgufType element) {
  const GgufValue* value = meta.Find(key);
  if (value == nullptr || (value->is_array() && value->element == element)) return;
  throw meta.ErrorAt(key, ErrorClass::kModel, "TOK_KEY_TYPE",
                     value->is_array()
                         ? std::string("array of ") + NameOf(value->element)
                         : NameOf(value->type),
                     std::string("an array of ") + NameOf(element));
}

int32_t TokenId(const GgufMetadata& meta, std::string_view name) {
  const std::string key = Key(name);
  if (!meta.Has(key)) return -1;
  const uint64_t id = meta.GetU64(key);
  if (id > INT32_MAX) {
    throw meta.ErrorAt(key, ErrorClass::kModel, "TOK_ID_RANGE", std::to_string(id),
                       "the id of a token");
  }
  return static_cast<int32_t>(id);
}

TokenizerData::Kind ReadKind(const GgufMetadata& meta) {
  const std::string key = Key("model");
  const std::string_view model = meta.GetString(key);
  const bool ranked = model == "gemma4" ||
                      (model == "llama" && meta.GetString(Key("pre"), "") == "gemma4");
  if (ranked) return TokenizerData::Kind::kMergeRank;
  if (model == "llama") return TokenizerData::Kind::kScore;
  throw meta.ErrorAt(key, ErrorClass::kUnsupported, "TOK_MODEL",
                     "'" + Escape(model) + "'", "gemma4 or llama");
}

// A merge is two pieces with a space between them. No piece holds a space, but one may
// begin with it.
void ReadMerges(const GgufMetadata& meta, TokenizerData& data) {
  const std::string key = Key("merges");
  CheckArray(meta, key, GgufType::kString);
  const auto merges = meta.GetStringArray(key);
  data.merges.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    const size_t space = merges[i].find(' ', 1);
    if (space == std::string_view::npos) {
      throw meta.ErrorAt(
          key, ErrorClass::kModel, "TOK_MERGE",
          "'" + Escape(merges[i], 24) + "' as entry " + std::to_string(i),
          "two pieces with a space between them");
    }
    data.merges.emplace_back(merges[i].substr(0, space), merges[i].substr(space + 1));
  }
}

TokenizerData ReadData(const GgufMetadata& meta) {
  TokenizerData data;
  data.kind = ReadKind(meta);
  const std::string tokens = Key("tokens"), scores = Key("scores"),
                    types = Key("token_type");
  CheckArray(meta, tokens, GgufType::kString);
  CheckArray(meta, scores, GgufType::kF32);
  CheckArray(meta, types, GgufType::kI32);
  const auto spellings = meta.GetStringArray(tokens);
  data.tokens.assign(spellings.begin(), spellings.end());
  if (meta.Has(scores)) data.scores = meta.GetF32Array(scores);
  if (meta.Has(types)) {
    for (const int64_t t : meta.GetI64Array(types)) {
      data.types.push_back(static_cast<int32_t>(t));
    }
  }
  if (data.kind == TokenizerData::Kind::kMergeRank) ReadMerges(meta, data);

  const std::string prefix = Key("add_space_prefix");
  if (meta.GetBool(prefix, false)) {
    throw meta.ErrorAt(prefix, ErrorClass::kUnsupported, "TOK_SPACE_PREFIX", "true",
                       "false");
  }
  data.bos = TokenId(meta, "bos_token_id");
  data.eos = TokenId(meta, "eos_token_id");
  data.unk = TokenId(meta, "unknown_token_id");
  data.pad = TokenId(meta, "padding_token_id");
  for (const std::string_view name : {"eot_token_id", "eom_token_id"}) {
    if (const int32_t id = TokenId(meta, name); id >= 0) data.eog.push_back(id);
  }
  const std::string suppress = Key("suppress_tokens");
  if (meta.Has(suppress)) {
    for (const uint64_t id : meta.GetU64Array(suppress)) {
      data.suppress.push_back(id > INT32_MAX ? INT32_MAX : static_cast<int32_t>(id));
    }
  }
  data.add_bos = meta.GetBool(Key("add_bos_token"), true);
  data.chat_template = std::string(meta.GetString("tokenizer.chat_template", ""));
  return data;
}

}  // namespace

Tokenizer Tokenizer::FromGguf(const GgufFile& file) { return FromGguf(file.metadata); }

Tokenizer Tokenizer::FromGguf(const GgufMetadata& metadata) {
  try {
    return Tokenizer(ReadData(metadata));
  } catch (const Error& e) {
    if (metadata.path().empty() || !e.info().path.empty()) throw;
    throw e.WithPath(metadata.path());
  }
}

}  // namespace halfbyte
