// csrc/io/limits.h
// Every safety limit on files, each with its reason. A caller may raise one by name;
// a file never can.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_IO_LIMITS_H_
#define HALFBYTE_IO_LIMITS_H_

#include <stdint.h>

namespace halfbyte {

inline constexpr uint64_t kMiB = uint64_t{1} << 20;

// The hint of an error about what a caller may raise.
inline constexpr char kRaiseLimit[] = "limits= raises it, if you trust the file";

// ------------------------------------------------------------------------- GGUF
// Metadata and tensor table together; a vocabulary of 262,144 with merges is 16 MiB.
inline constexpr uint64_t kGgufMaxHeaderBytes = 256 * kMiB;
// The format's own rule.
inline constexpr uint64_t kGgufMaxKeyBytes = 65535;
// An embedded tokenizer.json has some 30 MB.
inline constexpr uint64_t kGgufMaxStringBytes = 64 * kMiB;
// Vocabularies and merges stay below 2^20.
inline constexpr uint64_t kGgufMaxArrayElements = uint64_t{1} << 24;
// Real files have some 50 keys and at most a few thousand tensors.
inline constexpr uint64_t kGgufMaxKeys = uint64_t{1} << 20;
inline constexpr uint64_t kGgufMaxTensors = uint64_t{1} << 20;
// The format's own rules.
inline constexpr uint64_t kGgufMaxNameBytes = 64;
inline constexpr uint32_t kGgufMaxRank = 4;
// Writers use 32; page alignment, the largest with a use, is 64 KiB at most.
inline constexpr uint64_t kGgufMaxAlignment = kMiB;
inline constexpr uint64_t kGgufDefaultAlignment = 32;

// ------------------------------------------------------------------ safetensors
// The same as the reference reader.
inline constexpr uint64_t kSafetensorsMaxHeaderBytes = 100'000'000;
// As for GGUF.
inline constexpr uint64_t kSafetensorsMaxTensors = uint64_t{1} << 20;
// Nothing a model holds has more than five dimensions; NumPy stops at 64.
inline constexpr uint64_t kSafetensorsMaxRank = 16;
// Names are module paths.
inline constexpr uint64_t kSafetensorsMaxNameBytes = 4096;
// A key or a short value, and one value of __metadata__ (a whole config may sit there).
inline constexpr uint64_t kSafetensorsMaxStringBytes = 64 * 1024;
inline constexpr uint64_t kSafetensorsMaxMetadataBytes = 16 * kMiB;

// ------------------------------------------------------------------ JSON, shards
// A safetensors header needs 3 levels, a config or tokenizer about 10.
inline constexpr uint32_t kJsonMaxHeaderDepth = 8;
inline constexpr uint32_t kJsonMaxSidecarDepth = 32;
// config.json, tokenizer.json (30 MB), model.safetensors.index.json.
inline constexpr uint64_t kMaxSidecarBytes = 256 * kMiB;
// chat_template.jinja; the longest in use have some 20 KB.
inline constexpr uint64_t kMaxTemplateBytes = kMiB;
// The largest public checkpoints have a few hundred.
inline constexpr uint64_t kMaxShards = 4096;
// What a file system takes as one name.
inline constexpr uint64_t kMaxBaseNameBytes = 255;

// -------------------------------------------------------------------- tokenizer
// Eight times the largest vocabulary in use.
inline constexpr uint64_t kMaxVocabulary = uint64_t{1} << 21;
inline constexpr uint64_t kMaxVocabularyBytes = 64 * kMiB;
// Four times the merges of the largest.
inline constexpr uint64_t kMaxMerges = uint64_t{1} << 21;
// Spellings of control and user-defined tokens; real ones have some 100 KiB together.
inline constexpr uint64_t kMaxSpecialBytes = kMiB;

// What OpenGguf enforces, with the defaults above.
struct GgufLimits {
  uint64_t header_bytes = kGgufMaxHeaderBytes;
  uint64_t string_bytes = kGgufMaxStringBytes;
  uint64_t array_elements = kGgufMaxArrayElements;
  uint64_t keys = kGgufMaxKeys;
  uint64_t tensors = kGgufMaxTensors;
  uint64_t alignment = kGgufMaxAlignment;
  uint64_t shards = kMaxShards;
  bool strict = false;  // bytes after the last tensor are an error, not a warning
};

// What OpenSafetensors enforces, likewise.
struct SafetensorsLimits {
  uint64_t header_bytes = kSafetensorsMaxHeaderBytes;
  uint64_t tensors = kSafetensorsMaxTensors;  // of one file
  uint64_t rank = kSafetensorsMaxRank;
  uint64_t shards = kMaxShards;
  bool strict_paths = false;  // a shard's real path must lie in the index's directory
};

struct FileLimits {
  GgufLimits gguf;
  SafetensorsLimits safetensors;
};

}  // namespace halfbyte
#endif  // HALFBYTE_IO_LIMITS_H_
