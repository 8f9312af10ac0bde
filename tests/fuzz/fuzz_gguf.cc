// tests/fuzz/fuzz_gguf.cc
// Any bytes either parse, and then hold all invariants, or are refused with an error
// that has a code and an offset inside the file.
// SPDX-License-Identifier: Apache-2.0
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <random>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "io/gguf.h"

#ifdef HALFBYTE_FUZZ
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);
#endif

namespace {

using halfbyte::Gguf;
using halfbyte::GgufEntry;

void Check(bool ok) {
  if (!ok) abort();
}

// Reads everything that the result points to, and asks each key for each type.
void Walk(const Gguf& gguf) {
  volatile uint8_t sink = 0;
  for (const GgufEntry& entry : gguf.metadata.entries()) {
    Check(gguf.metadata.Find(entry.key) == &entry.value);
    sink = sink + static_cast<uint8_t>(Render(entry.value, 100).size());
    const auto attempt = [&](const auto& get) {
      try {
        get(entry.key);
      } catch (const halfbyte::Error& e) {
        Check(e.info().code == "GGUF_KEY_TYPE" && e.info().offset.has_value());
      }
    };
    const auto& m = gguf.metadata;
    attempt([&m](std::string_view key) { m.GetU64(key); });
    attempt([&m](std::string_view key) { m.GetF32(key); });
    attempt([&m](std::string_view key) { m.GetI64Array(key); });
    attempt([&m](std::string_view key) { m.GetF32Array(key); });
    attempt([&m](std::string_view key) { m.GetStringArray(key); });
  }
  for (const auto& tensor : gguf.tensors) {
    if (tensor.bytes == 0) continue;
    sink = sink + tensor.data[0];
    sink = sink + tensor.data[tensor.bytes - 1];
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<uint8_t> bytes(data, data + size);  // of exact size
  try {
    const Gguf gguf = halfbyte::ParseGguf(bytes);
    halfbyte::CheckInvariants(gguf, bytes);
    Walk(gguf);
  } catch (const halfbyte::Error& e) {
    using enum halfbyte::ErrorClass;
    Check(e.cls() == kFormat || e.cls() == kTruncatedFile || e.cls() == kLimit ||
          e.cls() == kUnsupported);
    Check(e.info().code.starts_with("GGUF_") && e.info().code != "GGUF_INTERNAL");
    Check(e.info().offset && *e.info().offset <= size);
    // No byte of a file reaches a terminal as a control character.
    const std::string_view message = e.what();
    Check(std::none_of(message.begin(), message.end(), [](char c) {
      return static_cast<uint8_t>(c) < 0x20 || c == 0x7F;
    }));
  }
  return 0;
}

// Bytes flipped blindly mostly break the first length. Two in three mutations instead
// put a number that matters where a field begins, or move whole fields about.
#ifdef HALFBYTE_FUZZ
namespace {

// The fields of a header as far as it makes sense: (begin, bytes) of each number, of
// each text, and the beginnings of keys and tensors.
class Fields {
 public:
  struct Field {
    size_t begin;
    size_t bytes;
  };

  Fields(const uint8_t* data, size_t size) : data_(data), size_(size) {
    if (size < 24) return;
    pos_ = 4;
    Number(4);
    const uint64_t num_tensors = Number(8), num_keys = Number(8);
    for (uint64_t i = 0; i < num_keys && pos_ < size_; ++i) Key();
    for (uint64_t i = 0; i < num_tensors && pos_ < size_; ++i) Tensor();
  }

  const std::vector<Field>& numbers() const { return numbers_; }
  const std::vector<Field>& entries() const { return entries_; }

 private:
  uint64_t Number(size_t bytes) {
    if (bytes > size_ - pos_) {
      pos_ = size_;
      return 0;
    }
    uint64_t value = 0;
    memcpy(&value, data_ + pos_, bytes);
    numbers_.push_back({pos_, bytes});
    pos_ += bytes;
    return value;
  }
  void Skip(uint64_t bytes) { pos_ += std::min<uint64_t>(bytes, size_ - pos_); }
  void Text() { Skip(Number(8)); }

  void Value(uint64_t type) {
    constexpr size_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == 8) return Text();
    if (type != 9) return void(type < 13 ? Number(kBytes[type]) : 0);
    const uint64_t element = Number(4), count = Number(8);
    for (uint64_t i = 0; i < count && pos_ < size_ && element != 9; ++i) {
      if (element > 12) return;
      Value(element);
    }
  }
  void Key() {
    const size_t begin = pos_;
    Text();
    Value(Number(4));
    entries_.push_back({begin, pos_ - begin});
  }
  void Tensor() {
    const size_t begin = pos_;
    Text();
    const uint64_t rank = Number(4);
    for (uint64_t i = 0; i < rank && i < 8; ++i) Number(8);
    Number(4);
    Number(8);
    entries_.push_back({begin, pos_ - begin});
  }

  const uint8_t* data_;
  size_t size_;
  size_t pos_ = 0;
  std::vector<Field> numbers_, entries_;
};

uint64_t Boundary(std::minstd_rand& random, uint64_t old, size_t size) {
  constexpr uint64_t kValues[] = {
      0,  1,  2,  3,  4,  7,  8,  9,   12,  13,  14,    30,    31,       32,
      33, 42, 43, 63, 64, 65, 96, 128, 255, 256, 65535, 65536, 1u << 20, 1u << 31};
  switch (random() % 6) {
    case 0:
      return old + 1;
    case 1:
      return old - 1;
    case 2:
      return uint64_t{1} << random() % 64;
    case 3:
      return (uint64_t{1} << random() % 64) - 1 - random() % 64;
    case 4:
      return random() % (size + 2);
    default:
      return kValues[random() % (sizeof(kValues) / sizeof(kValues[0]))];
  }
}

void ChangeNumber(const Fields& fields, std::minstd_rand& random, uint8_t* data,
                  size_t size) {
  const auto& numbers = fields.numbers();
  const Fields::Field field = numbers[random() % numbers.size()];
  uint64_t value = 0;
  memcpy(&value, data + field.begin, field.bytes);
  value = Boundary(random, value, size);
  memcpy(data + field.begin, &value, field.bytes);
}

// Repeats, removes or moves one entry. Returns the new size.
size_t ChangeEntries(const Fields& fields, std::minstd_rand& random, uint8_t* data,
                     size_t size, size_t max_size) {
  const auto& entries = fields.entries();
  const Fields::Field from = entries[random() % entries.size()];
  const Fields::Field to = entries[random() % entries.size()];
  const std::vector<uint8_t> entry(data + from.begin, data + from.begin + from.bytes);
  std::vector<uint8_t> out(data, data + size);
  const uint32_t what = random() % 3;
  if (what != 0) out.insert(out.begin() + to.begin, entry.begin(), entry.end());
  if (what != 1) {
    const size_t begin =
        from.begin + (what == 2 && to.begin <= from.begin ? entry.size() : 0);
    out.erase(out.begin() + begin, out.begin() + begin + entry.size());
  }
  size = std::min(out.size(), max_size);
  memcpy(data, out.data(), size);
  return size;
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  std::minstd_rand random(seed);
  const Fields fields(data, size);
  if (fields.numbers().empty() || random() % 3 == 0) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  if (!fields.entries().empty() && random() % 4 == 0) {
    return ChangeEntries(fields, random, data, size, max_size);
  }
  const uint32_t changes = 1 + random() % 3;
  for (uint32_t i = 0; i < changes; ++i) ChangeNumber(fields, random, data, size);
  return size;
}
#endif
