// csrc/io/gguf_file.cc
// Opens a GGUF file by name, with its shards.
// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "io/gguf.h"
#include "io/unique.h"

namespace halfbyte {
namespace {

// "-00001-of-00003.gguf"
std::string ShardSuffix(uint64_t number, uint64_t count) {
  char text[64];
  snprintf(text, sizeof(text), "-%05llu-of-%05llu.gguf",
           static_cast<unsigned long long>(number + 1),
           static_cast<unsigned long long>(count));
  return text;
}

Gguf Parse(const MappedFile& file, const GgufLimits& limits) {
  try {
    Gguf gguf = ParseGguf(file.bytes(), limits);
    gguf.metadata.set_path(file.path());
    return gguf;
  } catch (const Error& e) {
    throw e.WithPath(file.path());
  }
}

// The path up to the shard's number. The others' names are made from it, never read
// from a file.
std::string PrefixOf(const std::string& path, const Gguf& gguf) {
  const std::string suffix = ShardSuffix(gguf.split->number, gguf.split->count);
  if (!path.ends_with(suffix)) {
    throw gguf.metadata.ErrorAt("split.no", ErrorClass::kFormat, "GGUF_SPLIT",
                                "a file name of another form",
                                "a file name that ends in '" + suffix + "'");
  }
  return path.substr(0, path.size() - suffix.size());
}

std::shared_ptr<const MappedFile> OpenSibling(const std::string& path,
                                              const Gguf& given,
                                              const Reading& reading) {
  try {
    return MappedFile::Open(path, reading);
  } catch (const Error& e) {
    if (e.cls() != ErrorClass::kOs || e.info().os_errno != ENOENT) throw;
    const std::string name = path.substr(path.find_last_of('/') + 1);
    throw given.metadata.ErrorAt("split.count", ErrorClass::kFormat, "GGUF_SPLIT",
                                 std::to_string(given.split->count),
                                 "the shard '" + Escape(name, 255) + "' beside it");
  }
}

void CheckShard(const Gguf& shard, const GgufSplit& whole, uint64_t number) {
  const auto check = [&shard](const char* key, uint64_t found, uint64_t want) {
    if (found == want) return;
    throw shard.metadata.ErrorAt(key, ErrorClass::kFormat, "GGUF_SPLIT",
                                 std::to_string(found),
                                 std::to_string(want) + ", as the other shards say");
  };
  if (!shard.split) {
    ErrorInfo info;
    info.path = shard.metadata.path();
    info.kind = "gguf";
    info.code = "GGUF_SPLIT";
    info.subject = "header";
    info.field = "metadata";
    info.offset = 16;  // the number of keys
    info.found = "no split keys";
    info.expected = "a shard of the same model";
    throw Error(ErrorClass::kFormat, std::move(info));
  }
  check("split.no", shard.split->number, number);
  check("split.count", shard.split->count, whole.count);
  check("split.tensors.count", shard.split->num_tensors, whole.num_tensors);
}

void Append(GgufFile* out, std::shared_ptr<const MappedFile> file, Gguf gguf) {
  const auto shard = static_cast<uint32_t>(out->files.size());
  for (TensorView& tensor : gguf.tensors) tensor.shard = shard;
  std::move(gguf.tensors.begin(), gguf.tensors.end(), std::back_inserter(out->tensors));
  std::move(gguf.warnings.begin(), gguf.warnings.end(),
            std::back_inserter(out->warnings));
  if (shard == 0) {
    out->version = gguf.version;
    out->metadata = std::move(gguf.metadata);
  }
  out->files.push_back(std::move(file));
}

// A tensor that two shards hold.
[[noreturn]] void FailRepeated(const GgufFile& file, uint32_t i,
                               uint64_t entry_offset) {
  const TensorView& tensor = file.tensors[i];
  ErrorInfo info;
  info.path = file.files[tensor.shard]->path();
  info.kind = "gguf";
  info.code = "GGUF_SPLIT";
  info.tensor = Escape(tensor.name);
  info.subject = "tensor '" + info.tensor + "'";
  info.field = "entry";
  info.offset = entry_offset;
  info.found = "a tensor that another shard holds too";
  info.expected = "each tensor once";
  throw Error(ErrorClass::kFormat, std::move(info));
}

void IndexNames(GgufFile* file, const std::vector<uint64_t>& entry_offsets) {
  const auto name = [file](size_t i) -> std::string_view {
    return file->tensors[i].name;
  };
  file->by_name = SortedByName(file->tensors.size(), name);
  if (const auto i = FirstRepeated(file->by_name, name)) {
    FailRepeated(*file, *i, entry_offsets[*i]);
  }
}

}  // namespace

GgufFile OpenGguf(const std::string& path, const GgufLimits& limits,
                  const Reading& reading) {
  std::shared_ptr<const MappedFile> given_file = MappedFile::Open(path, reading);
  Gguf given = Parse(*given_file, limits);
  const GgufSplit whole = given.split.value_or(
      GgufSplit{.number = 0, .count = 1, .num_tensors = given.tensors.size()});
  const std::string prefix = whole.count > 1 ? PrefixOf(path, given) : "";
  GgufFile out;
  std::vector<uint64_t> entry_offsets;
  // Opens the siblings before anything is moved out of `given`: errors refer to it.
  std::vector<std::shared_ptr<const MappedFile>> files(whole.count);
  Reading rest = given_file->Rest(reading);
  for (uint64_t i = 0; i < whole.count; ++i) {
    if (i == whole.number) {
      files[i] = given_file;
      continue;
    }
    files[i] = OpenSibling(prefix + ShardSuffix(i, whole.count), given, rest);
    rest = files[i]->Rest(rest);
  }
  for (uint64_t i = 0; i < whole.count; ++i) {
    Gguf shard = i == whole.number ? std::move(given) : Parse(*files[i], limits);
    if (whole.count > 1) CheckShard(shard, whole, i);
    entry_offsets.insert(entry_offsets.end(), shard.entry_offsets.begin(),
                         shard.entry_offsets.end());
    Append(&out, std::move(files[i]), std::move(shard));
  }
  if (out.tensors.size() != whole.num_tensors) {
    throw out.metadata.ErrorAt(
        "split.tensors.count", ErrorClass::kFormat, "GGUF_SPLIT",
        std::to_string(whole.num_tensors),
        std::to_string(out.tensors.size()) + ", the tensors of all shards");
  }
  IndexNames(&out, entry_offsets);
  return out;
}

const TensorView* GgufFile::FindTensor(std::string_view name) const {
  const auto it = std::lower_bound(
      by_name.begin(), by_name.end(), name,
      [this](uint32_t i, std::string_view n) { return tensors[i].name < n; });
  if (it == by_name.end() || tensors[*it].name != name) return nullptr;
  return &tensors[*it];
}

}  // namespace halfbyte
