// csrc/io/sniff.cc
// SPDX-License-Identifier: Apache-2.0
#include "io/sniff.h"

#include <stddef.h>

#include <algorithm>
#include <string_view>

#include "io/cursor.h"

namespace halfbyte {
namespace {

bool LooksLikeHtml(std::string_view text) {
  text.remove_prefix(
      std::min(text.find_first_not_of(" \t\r\n\xEF\xBB\xBF"), text.size()));
  std::string lower(text.substr(0, 16));
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower.starts_with("<!doctype html") || lower.starts_with("<html") ||
         lower.starts_with("<?xml") || lower.starts_with("<head");
}

// Pickle protocol 2 and later: PROTO, version, then mostly EMPTY_DICT, FRAME, MARK, ...
bool LooksLikePickle(std::string_view text) {
  return text.size() >= 2 && text[0] == '\x80' && text[1] >= 2 && text[1] <= 5;
}

}  // namespace

bool LooksLikeSafetensors(std::span<const uint8_t> bytes) {
  return bytes.size() > 9 && bytes[8] == '{' &&
         LoadLE<uint64_t>(bytes.data()) <= bytes.size() - 8;
}

std::string SniffHint(std::span<const uint8_t> bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()),
                              std::min<size_t>(bytes.size(), 512));
  if (text.starts_with("version https://git-lfs.github.com/spec/")) {
    return "this is a Git LFS pointer, not the file it stands for: run `git lfs pull`";
  }
  if (LooksLikeHtml(text)) {
    return "this is a web page, saved in place of the file: download it again";
  }
  if (text.starts_with("PK\x03\x04")) {
    return "this is a zip archive, perhaps a PyTorch pickle; pickles are never opened: "
           "convert it to safetensors elsewhere";
  }
  if (LooksLikePickle(text)) {
    return "this is a Python pickle; pickles are never opened: convert it to "
           "safetensors elsewhere";
  }
  if (text.starts_with("GGUF")) return "this is a GGUF file";
  if (LooksLikeSafetensors(bytes)) return "this is a safetensors file";
  if (text.starts_with("FUGG")) return "this is GGUF with swapped bytes";
  for (std::string_view old : {"lmgg", "ggml", "fmgg", "tjgg", "algg"}) {
    if (text.starts_with(old)) {
      return "this is a GGML file from before GGUF: convert it with an older llama.cpp";
    }
  }
  if (text.starts_with("\x1F\x8B")) return "this is gzip-compressed: unpack it first";
  if (text.starts_with("Entry not found") || text.starts_with("Not Found")) {
    return "this is a server's answer that it has no such file";
  }
  return "";
}

}  // namespace halfbyte
