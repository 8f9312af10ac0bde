// tests/cpp/io/gguf_test.cc
// The GGUF parser on bytes in memory: getters, limits, and a sweep over every small
// change to valid files. The table of refusals is tests/hostile/gguf_cases.py.
// SPDX-License-Identifier: Apache-2.0
#include "io/gguf.h"

#include <gtest/gtest.h>
#include <string.h>
#include <time.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"

namespace halfbyte {
namespace {

using Bytes = std::vector<uint8_t>;

// Writes fields one after the other and remembers where each begins.
class Writer {
 public:
  Writer& Raw(const void* data, size_t n) {
    fields_.push_back(bytes_.size());
    const auto* p = static_cast<const uint8_t*>(data);
    bytes_.insert(bytes_.end(), p, p + n);
    return *this;
  }
  template <class T>
  Writer& Number(T value) {
    return Raw(&value, sizeof(T));
  }
  Writer& Text(const std::string& s) {
    return Number(uint64_t{s.size()}).Raw(s.data(), s.size());
  }
  Writer& Header(uint64_t num_tensors, uint64_t num_keys, uint32_t version = 3) {
    return Raw("GGUF", 4).Number(version).Number(num_tensors).Number(num_keys);
  }
  template <class T>
  Writer& Key(const std::string& key, GgufType type, T value) {
    return Text(key).Number(static_cast<uint32_t>(type)).Number(value);
  }
  Writer& Key(const std::string& key, const std::string& value) {
    return Text(key).Number(uint32_t{8}).Text(value);
  }
  template <class T>
  Writer& Array(const std::string& key, GgufType type, const std::vector<T>& values) {
    Text(key).Number(uint32_t{9}).Number(static_cast<uint32_t>(type));
    Number(uint64_t{values.size()});
    for (const T& value : values) {
      if constexpr (std::is_same_v<T, std::string>) {
        Text(value);
      } else {
        Number(value);
      }
    }
    return *this;
  }
  Writer& Tensor(const std::string& name, const std::vector<uint64_t>& dims,
                 uint32_t type, uint64_t offset) {
    Text(name).Number(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) Number(dim);
    return Number(type).Number(offset);
  }
  Writer& Pad(size_t alignment = 32) {
    header_bytes_ = bytes_.size();
    while (bytes_.size() % alignment != 0) bytes_.push_back(0);
    return *this;
  }
  Writer& Data(size_t n) {
    for (size_t i = 0; i < n; ++i) bytes_.push_back(static_cast<uint8_t>(i * 37));
    return *this;
  }

  const Bytes& bytes() const { return bytes_; }
  size_t header_bytes() const { return header_bytes_ ? header_bytes_ : bytes_.size(); }
  const std::vector<size_t>& fields() const { return fields_; }

 private:
  Bytes bytes_;
  std::vector<size_t> fields_;
  size_t header_bytes_ = 0;
};

Writer EveryScalar() {
  Writer w;
  w.Header(1, 13);
  w.Key("u8", GgufType::kU8, uint8_t{255}).Key("i8", GgufType::kI8, int8_t{-128});
  w.Key("u16", GgufType::kU16, uint16_t{65535});
  w.Key("i16", GgufType::kI16, int16_t{-32768});
  w.Key("u32", GgufType::kU32, UINT32_MAX).Key("i32", GgufType::kI32, INT32_MIN);
  w.Key("u64", GgufType::kU64, UINT64_MAX).Key("i64", GgufType::kI64, INT64_MIN);
  w.Key("f32", GgufType::kF32, 0.1f).Key("f64", GgufType::kF64, 1e300);
  w.Key("yes", GgufType::kBool, uint8_t{1}).Key("no", GgufType::kBool, uint8_t{0});
  w.Key("text", "a \xC3\xA9 \x1B[31m");
  return w.Tensor("t", {5}, 0, 0).Pad().Data(20);
}

Writer EveryArray() {
  Writer w;
  w.Header(2, 9);
  w.Array<uint8_t>("u8", GgufType::kU8, {1, 2, 3});
  w.Array<int32_t>("i32", GgufType::kI32, {-1, 0, 7});
  w.Array<uint32_t>("u32", GgufType::kU32, {8, 16});
  w.Array<int64_t>("i64", GgufType::kI64, {4, 4});
  w.Array<float>("f32", GgufType::kF32, {0.5f, -1.5f});
  w.Array<double>("f64", GgufType::kF64, {1e300});
  w.Array<uint8_t>("bool", GgufType::kBool, {1, 0, 1});
  w.Array<std::string>("text", GgufType::kString, {"", "ab", "\xFF"});
  w.Array<std::string>("none", GgufType::kString, {});
  w.Tensor("w", {64, 2}, 8, 0).Tensor("n", {3}, 0, 160);
  return w.Pad().Data(160 + 12);
}

Writer Aligned(uint32_t alignment) {
  Writer w;
  w.Header(3, 1).Key("general.alignment", GgufType::kU32, alignment);
  w.Tensor("a", {32}, 2, 0);  // 18 bytes
  const uint64_t b = (18 + alignment - 1) / alignment * alignment;
  w.Tensor("b", {8}, 0, b);
  const uint64_t c = (b + 32 + alignment - 1) / alignment * alignment;
  w.Tensor("c", {4, 1, 2}, 30, c);
  return w.Pad(alignment).Data(c + 16);
}

std::vector<Writer> Seeds() {
  std::vector<Writer> seeds = {EveryScalar(), EveryArray()};
  for (const uint32_t alignment : {1u, 8u, 32u, 128u}) {
    seeds.push_back(Aligned(alignment));
  }
  Writer v2;
  seeds.push_back(v2.Header(1, 0, 2).Tensor("x", {2, 2, 2, 2}, 1, 0).Pad().Data(32));
  Writer scalar;
  scalar.Header(2, 0).Tensor("s", {}, 0, 0).Tensor("t", {256}, 14, 32);
  seeds.push_back(scalar.Pad().Data(32 + 210));
  Writer split;
  split.Header(1, 3).Key("split.no", GgufType::kU16, uint16_t{1});
  split.Key("split.count", GgufType::kU16, uint16_t{3});
  split.Key("split.tensors.count", GgufType::kI32, int32_t{5});
  seeds.push_back(split.Tensor("x", {1}, 24, 0).Pad().Data(1));
  return seeds;
}

// An error as a file may cause it: a class, a code and a place inside the file.
void ExpectFileError(const Error& e, size_t file_bytes, const std::string& what) {
  const bool family =
      e.cls() == ErrorClass::kFormat || e.cls() == ErrorClass::kTruncatedFile ||
      e.cls() == ErrorClass::kLimit || e.cls() == ErrorClass::kUnsupported;
  EXPECT_TRUE(family && e.info().code.starts_with("GGUF_") &&
              e.info().code != "GGUF_INTERNAL")
      << what << ": " << e.what();
  EXPECT_TRUE(e.info().offset && *e.info().offset <= file_bytes)
      << what << ": " << e.what();
}

// Reads whatever the result points to.
uint64_t Touch(const Gguf& gguf) {
  uint64_t sum = 0;
  for (const GgufEntry& entry : gguf.metadata.entries()) {
    sum += Render(entry.value, 1000).size() + entry.key.size();
  }
  for (const TensorView& t : gguf.tensors) {
    for (uint64_t i = 0; i < t.bytes; ++i) sum += t.data[i];
  }
  return sum;
}

// True if `bytes` opens, then with all invariants; false if it is properly refused.
bool Opens(const Bytes& bytes, const std::string& what) {
  // On the heap with its exact size: a sanitizer sees any byte read behind it.
  const Bytes exact(bytes.begin(), bytes.end());
  try {
    const Gguf gguf = ParseGguf(exact);
    CheckInvariants(gguf, exact);
    Touch(gguf);
    return true;
  } catch (const Error& e) {
    ExpectFileError(e, exact.size(), what);
    return false;
  }
}

TEST(GgufSweep, SeedsOpen) {
  size_t i = 0;
  for (const Writer& seed : Seeds()) {
    EXPECT_TRUE(Opens(seed.bytes(), "seed")) << "seed " << i++;
  }
}

TEST(GgufSweep, EveryTruncationIsRefused) {
  for (const Writer& seed : Seeds()) {
    for (size_t n = 0; n < seed.bytes().size(); ++n) {
      const Bytes cut(seed.bytes().begin(), seed.bytes().begin() + n);
      EXPECT_FALSE(Opens(cut, "cut to " + std::to_string(n)));
    }
  }
}

TEST(GgufSweep, EveryFlippedHeaderBit) {
  size_t refused = 0, opened = 0;
  for (const Writer& seed : Seeds()) {
    Bytes bytes = seed.bytes();
    for (size_t bit = 0; bit < 8 * seed.header_bytes(); ++bit) {
      bytes[bit / 8] ^= 1u << bit % 8;
      ++(Opens(bytes, "bit " + std::to_string(bit)) ? opened : refused);
      bytes[bit / 8] ^= 1u << bit % 8;
    }
  }
  EXPECT_GT(refused, opened / 4);  // names and values may change, structure may not
  EXPECT_GT(opened, 0u);
}

template <class T>
void SweepBoundaries(const Writer& seed) {
  constexpr uint64_t kValues[] = {0,
                                  1,
                                  2,
                                  7,
                                  8,
                                  31,
                                  32,
                                  33,
                                  255,
                                  65535,
                                  65536,
                                  (1ull << 31) - 1,
                                  1ull << 31,
                                  (1ull << 32) - 1,
                                  1ull << 32,
                                  1ull << 62,
                                  (1ull << 63) - 1,
                                  1ull << 63,
                                  0 - 8ull,
                                  0 - 1ull};
  Bytes bytes = seed.bytes();
  for (size_t at = 0; at + sizeof(T) <= seed.header_bytes(); ++at) {
    for (const uint64_t value : kValues) {
      const auto narrow = static_cast<T>(value);
      memcpy(bytes.data() + at, &narrow, sizeof(T));
      Opens(bytes, std::to_string(value) + " at byte " + std::to_string(at));
    }
    memcpy(bytes.data() + at, seed.bytes().data() + at, sizeof(T));
  }
}

TEST(GgufSweep, BoundaryIntegersAtEveryHeaderByte) {
  for (const Writer& seed : Seeds()) {
    SweepBoundaries<uint32_t>(seed);
    SweepBoundaries<uint64_t>(seed);
  }
}

TEST(GgufSweep, FieldsDeletedDoubledAndSwapped) {
  for (const Writer& seed : Seeds()) {
    const Bytes& b = seed.bytes();
    std::vector<size_t> ends = seed.fields();
    ends.push_back(seed.header_bytes());
    for (size_t i = 0; i + 1 < ends.size(); ++i) {
      const auto from = b.begin() + ends[i], to = b.begin() + ends[i + 1];
      const std::string what = "field at byte " + std::to_string(ends[i]);
      Bytes deleted(b.begin(), from);
      deleted.insert(deleted.end(), to, b.end());
      Opens(deleted, what + " deleted");
      Bytes doubled(b.begin(), to);
      doubled.insert(doubled.end(), from, b.end());
      Opens(doubled, what + " doubled");
      if (i + 2 == ends.size()) continue;
      const auto next = b.begin() + ends[i + 2];
      Bytes swapped(b.begin(), from);
      swapped.insert(swapped.end(), to, next);
      swapped.insert(swapped.end(), from, to);
      swapped.insert(swapped.end(), next, b.end());
      Opens(swapped, what + " swapped");
    }
  }
}

// The error that `run` throws, or a failure and a made-up one.
Error ErrorOf(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Error(ErrorClass::kValue, "");
}

void ExpectKeyType(const std::function<void()>& run) {
  const Error e = ErrorOf(run);
  EXPECT_EQ(e.cls(), ErrorClass::kFormat);
  EXPECT_EQ(e.info().code, "GGUF_KEY_TYPE") << e.what();
  EXPECT_TRUE(e.info().offset && e.info().index && !e.info().key.empty());
}

TEST(GgufMetadata, ScalarsConvertWhenTheyFit) {
  const Writer w = EveryScalar();
  const Gguf gguf = ParseGguf(w.bytes());
  const GgufMetadata& m = gguf.metadata;
  EXPECT_EQ(m.GetU64("u8"), 255u);
  EXPECT_EQ(m.GetU64("u16"), 65535u);
  EXPECT_EQ(m.GetU64("u32"), UINT32_MAX);
  EXPECT_EQ(m.GetU64("u64"), UINT64_MAX);
  EXPECT_EQ(m.GetI64("i8"), -128);
  EXPECT_EQ(m.GetI64("i16"), -32768);
  EXPECT_EQ(m.GetI64("i32"), INT32_MIN);
  EXPECT_EQ(m.GetI64("i64"), INT64_MIN);
  EXPECT_EQ(m.GetI64("u32"), int64_t{UINT32_MAX});
  EXPECT_EQ(m.GetF32("f32"), 0.1f);
  EXPECT_TRUE(m.GetBool("yes"));
  EXPECT_FALSE(m.GetBool("no"));
  EXPECT_EQ(m.GetString("text"), "a \xC3\xA9 \x1B[31m");
  ExpectKeyType([&] { m.GetU64("i8"); });   // negative
  ExpectKeyType([&] { m.GetI64("u64"); });  // above 2^63
  ExpectKeyType([&] { m.GetU64("f32"); });
  ExpectKeyType([&] { m.GetU64("yes"); });
  ExpectKeyType([&] { m.GetU64("text"); });
  ExpectKeyType([&] { m.GetF32("u8"); });
  ExpectKeyType([&] { m.GetF32("f64"); });  // beyond the range of f32
  ExpectKeyType([&] { m.GetBool("u8"); });
  ExpectKeyType([&] { m.GetString("u8"); });
  ExpectKeyType([&] { m.GetStringArray("text"); });
}

TEST(GgufMetadata, MissingKeysFallBackOrThrow) {
  const Writer w = EveryScalar();
  Gguf gguf = ParseGguf(w.bytes());
  gguf.metadata.set_path("/models/m.gguf");
  const GgufMetadata& m = gguf.metadata;
  EXPECT_FALSE(m.Has("absent"));
  EXPECT_FALSE(m.Has("u"));
  EXPECT_TRUE(m.Has("u8"));
  EXPECT_EQ(m.GetU64("absent", 7), 7u);
  EXPECT_EQ(m.GetU64("u8", 7), 255u);
  EXPECT_EQ(m.GetI64("absent", -7), -7);
  EXPECT_EQ(m.GetF32("absent", 0.5f), 0.5f);
  EXPECT_TRUE(m.GetBool("absent", true));
  EXPECT_EQ(m.GetString("absent", "x"), "x");
  ExpectKeyType([&] { m.GetU64("text", 7); });  // present but wrong: no fallback
  const Error e = ErrorOf([&] { m.GetU64("absent"); });
  EXPECT_EQ(e.cls(), ErrorClass::kModel);
  EXPECT_EQ(e.info().code, "GGUF_MISSING_KEY");
  EXPECT_TRUE(std::string(e.what()).starts_with("m.gguf: gguf: key 'absent'"));
}

TEST(GgufMetadata, ArraysConvertElementByElement) {
  const Writer w = EveryArray();
  const Gguf gguf = ParseGguf(w.bytes());
  const GgufMetadata& m = gguf.metadata;
  EXPECT_EQ(m.GetU64Array("u8"), (std::vector<uint64_t>{1, 2, 3}));
  EXPECT_EQ(m.GetU64Array("u32", 2), (std::vector<uint64_t>{8, 16}));
  EXPECT_EQ(m.GetU64Array("i64"), (std::vector<uint64_t>{4, 4}));
  EXPECT_EQ(m.GetI64Array("i32"), (std::vector<int64_t>{-1, 0, 7}));
  EXPECT_EQ(m.GetF32Array("f32"), (std::vector<float>{0.5f, -1.5f}));
  EXPECT_EQ(m.GetBoolArray("bool"), (std::vector<bool>{true, false, true}));
  const auto text = m.GetStringArray("text", 3);
  ASSERT_EQ(text.size(), 3u);
  EXPECT_EQ(text[0], "");
  EXPECT_EQ(text[1], "ab");
  EXPECT_EQ(text[2], "\xFF");
  EXPECT_TRUE(m.GetStringArray("none").empty());
  ExpectKeyType([&] { m.GetU64Array("i32"); });  // one is negative
  ExpectKeyType([&] { m.GetF32Array("u8"); });   // never reinterpreted
  ExpectKeyType([&] { m.GetF32Array("f64"); });
  ExpectKeyType([&] { m.GetBoolArray("u8"); });
  ExpectKeyType([&] { m.GetStringArray("u8"); });
  ExpectKeyType([&] { m.GetU64Array("text"); });
  ExpectKeyType([&] { m.GetU64("u8"); });           // an array is no scalar
  ExpectKeyType([&] { m.GetU64Array("u32", 3); });  // another length
  ExpectKeyType([&] { m.GetStringArray("text", 2); });
}

TEST(GgufMetadata, ScalarsStandForArraysOfNumbers) {
  const Writer w = EveryScalar();
  const Gguf gguf = ParseGguf(w.bytes());
  EXPECT_EQ(gguf.metadata.GetU64Array("u8"), (std::vector<uint64_t>{255}));
  EXPECT_EQ(gguf.metadata.GetU64Array("u8", 3), (std::vector<uint64_t>(3, 255)));
  EXPECT_EQ(gguf.metadata.GetBoolArray("yes", 2), (std::vector<bool>{true, true}));
  EXPECT_TRUE(gguf.metadata.GetU64Array("u8", 0).empty());
}

TEST(GgufMetadata, RendersForPeople) {
  const Writer scalars = EveryScalar(), arrays = EveryArray();
  const Gguf s = ParseGguf(scalars.bytes()), a = ParseGguf(arrays.bytes());
  EXPECT_EQ(Render(*s.metadata.Find("f32")), "0.1");
  EXPECT_EQ(Render(*s.metadata.Find("f64")), "1e+300");
  EXPECT_EQ(Render(*s.metadata.Find("i64")), "-9223372036854775808");
  EXPECT_EQ(Render(*s.metadata.Find("yes")), "true");
  EXPECT_EQ(Render(*s.metadata.Find("text")), "\"a \xC3\xA9 \\x1B[31m\"");
  EXPECT_EQ(Render(*a.metadata.Find("i32")), "[-1, 0, 7]");
  EXPECT_EQ(Render(*a.metadata.Find("i32"), 1), "[-1, ... (3 x i32)]");
  EXPECT_EQ(Render(*a.metadata.Find("text")), "[\"\", \"ab\", \"\\xFF\"]");
  EXPECT_EQ(Render(*a.metadata.Find("none")), "[]");
}

TEST(Gguf, KeepsFileOrderAndTurnsShapes) {
  const Writer w = EveryArray();
  const Gguf gguf = ParseGguf(w.bytes());
  ASSERT_EQ(gguf.metadata.entries().size(), 9u);
  EXPECT_EQ(gguf.metadata.entries()[1].key, "i32");
  ASSERT_EQ(gguf.tensors.size(), 2u);
  const TensorView& t = gguf.tensors[0];
  EXPECT_EQ(t.name, "w");
  EXPECT_EQ(t.type, "Q8_0");
  EXPECT_EQ(t.format, Format::kQ8_0);
  EXPECT_EQ(t.shape, (std::vector<uint64_t>{2, 64}));
  EXPECT_EQ(t.bytes, 2u * 2 * 34);
  EXPECT_EQ(t.file_offset, gguf.data_start);
  EXPECT_EQ(t.data, w.bytes().data() + gguf.data_start);
  EXPECT_EQ(gguf.tensors[1].file_offset, gguf.data_start + 160);
  EXPECT_EQ(gguf.header_bytes, w.header_bytes());
}

TEST(Gguf, KnowsTypesItDoesNotDecode) {
  Writer w;
  w.Header(1, 0).Tensor("q", {256, 2}, 22, 0).Pad().Data(164);
  const Gguf gguf = ParseGguf(w.bytes());
  EXPECT_EQ(gguf.tensors[0].type, "IQ2_S");
  EXPECT_EQ(gguf.tensors[0].bytes, 164u);
  EXPECT_FALSE(gguf.tensors[0].format);
}

TEST(Gguf, TrailingBytesWarnOrFail) {
  Writer w = EveryArray();
  const size_t end = w.bytes().size();
  w.Data(32);  // one alignment: may be padding
  EXPECT_TRUE(ParseGguf(w.bytes()).warnings.empty());
  w.Data(1);
  EXPECT_EQ(ParseGguf(w.bytes()).warnings.size(), 1u);
  const Error e = ErrorOf([&] { ParseGguf(w.bytes(), {.strict = true}); });
  EXPECT_EQ(e.info().code, "GGUF_TRAILING");
  EXPECT_EQ(e.info().offset, end);
}

TEST(Gguf, SmallAlignmentWarns) {
  EXPECT_EQ(ParseGguf(Aligned(1).bytes()).warnings.size(), 1u);
  EXPECT_TRUE(ParseGguf(Aligned(8).bytes()).warnings.empty());
}

TEST(Gguf, EachLimitIsEnforcedAndCanBeRaised) {
  const Bytes scalars = EveryScalar().bytes(), arrays = EveryArray().bytes();
  const Bytes aligned = Aligned(128).bytes(), split = Seeds().back().bytes();
  const auto code = [](const Bytes& bytes, const GgufLimits& limits) {
    const Error e = ErrorOf([&] { ParseGguf(bytes, limits); });
    EXPECT_EQ(e.cls(), ErrorClass::kLimit) << e.what();
    return e.info().code;
  };
  EXPECT_EQ(code(scalars, {.header_bytes = 100}), "GGUF_HEADER_TOO_LARGE");
  EXPECT_EQ(code(scalars, {.header_bytes = 10}), "GGUF_HEADER_TOO_LARGE");
  EXPECT_EQ(code(scalars, {.string_bytes = 9}), "GGUF_STRING_LENGTH");
  EXPECT_EQ(code(arrays, {.string_bytes = 1}), "GGUF_STRING_LENGTH");
  EXPECT_EQ(code(arrays, {.array_elements = 2}), "GGUF_ARRAY_LENGTH");
  EXPECT_EQ(code(arrays, {.keys = 8}), "GGUF_KV_COUNT");
  EXPECT_EQ(code(arrays, {.tensors = 1}), "GGUF_TENSOR_COUNT");
  EXPECT_EQ(code(aligned, {.alignment = 64}), "GGUF_ALIGNMENT");
  EXPECT_EQ(code(split, {.shards = 2}), "GGUF_SPLIT");
  EXPECT_NO_THROW(ParseGguf(
      arrays, {.string_bytes = 2, .array_elements = 3, .keys = 9, .tensors = 2}));
}

TEST(Gguf, ReportsTheFirstErrorOfTheFile) {
  // A repeated name, then a bad type: the name comes first in the file.
  Writer w;
  w.Header(3, 0)
      .Tensor("a", {1}, 0, 0)
      .Tensor("a", {1}, 0, 32)
      .Tensor("b", {1}, 99, 64);
  w.Pad().Data(96);
  const Error e = ErrorOf([&] { ParseGguf(w.bytes()); });
  EXPECT_EQ(e.info().code, "GGUF_DUPLICATE_TENSOR");
  EXPECT_EQ(e.info().tensor, "a");
  EXPECT_EQ(e.info().index, 1u);
}

TEST(Gguf, NamesSubjectFieldAndValues) {
  Writer w;
  w.Header(1, 0).Tensor("w\xC3\xA9", {33}, 2, 0).Pad().Data(64);
  const Error e = ErrorOf([&] { ParseGguf(w.bytes()); });
  EXPECT_STREQ(
      e.WithPath("/a/m.gguf").what(),
      "m.gguf: gguf: tensor 'w\xC3\xA9' (#0): dimension 0 at byte 39: found 33; "
      "expected a multiple of 32 for Q4_0 [GGUF_ROW_BLOCK]");
}

TEST(Gguf, InvariantCheckSeesDamage) {
  const Bytes bytes = EveryArray().bytes();
  const auto damaged = [&](const std::function<void(Gguf&)>& damage) {
    Gguf gguf = ParseGguf(bytes);
    damage(gguf);
    return ErrorOf([&] { CheckInvariants(gguf, bytes); }).info().code;
  };
  EXPECT_EQ(damaged([](Gguf& g) { g.tensors[1].bytes += 21; }), "GGUF_INTERNAL");
  EXPECT_EQ(damaged([](Gguf& g) { g.tensors[0].bytes = UINT64_MAX; }), "GGUF_INTERNAL");
  EXPECT_EQ(damaged([](Gguf& g) { g.tensors[0].bytes += 161; }), "GGUF_INTERNAL");
  EXPECT_EQ(damaged([](Gguf& g) { g.tensors[1].data -= 1; }), "GGUF_INTERNAL");
  EXPECT_EQ(damaged([](Gguf& g) { g.tensors[1].name = "w"; }), "GGUF_INTERNAL");
  EXPECT_EQ(damaged([](Gguf& g) { g.header_bytes = 1 << 20; }), "GGUF_INTERNAL");
}

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// At most 2 s on an idle machine. Processor time, and five times that: other processes
// slow the caches down too, and a build without optimisation takes three times longer.
TEST(Gguf, AMillionKeysAndTensorsTakeSeconds) {
  constexpr uint64_t kCount = 1'000'000;
  Writer keys, tensors;
  keys.Header(0, kCount);
  tensors.Header(kCount, 0);
  for (uint64_t i = 0; i < kCount; ++i) {
    const std::string name = "block." + std::to_string(i * 7919 % kCount);
    keys.Key(name, GgufType::kU8, uint8_t{0});
    tensors.Tensor(name, {8}, 0, 32 * i);
  }
  tensors.Pad().Data(32 * kCount);
  for (const Writer* w : {&keys, &tensors}) {
    const double begin = CpuSeconds();
    const Gguf gguf = ParseGguf(w->bytes());
    const double took = CpuSeconds() - begin;
    EXPECT_EQ(gguf.tensors.size() + gguf.metadata.entries().size(), kCount);
    EXPECT_LT(took, 60.0);  // 10 with sanitizers on a busy core; hours if quadratic
  }
}

}  // namespace
}  // namespace halfbyte
