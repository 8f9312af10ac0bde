// tests/cpp/io/safetensors_test.cc
// The safetensors reader: valid files, one refusal of every code, every small damage.
// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <gtest/gtest.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "io/safetensors_check.h"
#include "temp_dir.h"

namespace halfbyte {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kA = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";

std::string WithLength(uint64_t length, std::string_view rest) {
  std::string file(sizeof(length), '\0');
  memcpy(file.data(), &length, sizeof(length));
  return file.append(rest);
}

// Length, header, and as many bytes of data.
std::string Pack(std::string_view header, size_t data) {
  std::string file = WithLength(header.size(), header);
  for (size_t i = 0; i < data; ++i) file += static_cast<char>(i);
  return file;
}

std::span<const uint8_t> Bytes(const std::string& file) {
  return {reinterpret_cast<const uint8_t*>(file.data()), file.size()};
}

std::optional<Error> ErrorOf(const std::string& file,
                             const SafetensorsLimits& limits = {}) {
  const std::vector<uint8_t> exact(file.begin(), file.end());  // for the sanitizers
  try {
    ParseSafetensors(exact, limits);
    return std::nullopt;
  } catch (const Error& e) {
    return e;
  }
}

class SafetensorsDir : public TempDirTest {
 protected:
  std::string Dir() const { return dir_.string(); }
  void WriteIndex(std::string_view map) {
    Write(
        "model.safetensors.index.json",
        "{\"metadata\":{\"total_size\":1},\"weight_map\":{" + std::string(map) + "}}");
  }
  std::optional<Error> Refusal(const SafetensorsLimits& limits = {}) {
    try {
      OpenSafetensorsDir(Dir(), limits);
      return std::nullopt;
    } catch (const Error& e) {
      return e;
    }
  }
};

TEST(Safetensors, SaysWhatTheFileSays) {
  const std::string file =
      Pack(R"({"__metadata__":{"z":"1","a":"\u00e9"},)"
           R"("b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},)"
           R"("s":{"dtype":"F64","shape":[],"data_offsets":[20,28]},)"
           R"("e":{"dtype":"I8","shape":[4,0],"data_offsets":[28,28]},)"
           R"("a":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}   )",
           28);
  const SafetensorsHeader h = ParseSafetensors(Bytes(file));
  EXPECT_EQ(BrokenInvariant(Bytes(file), h), "");
  EXPECT_EQ(h.data_start, file.size() - 28);
  const SafetensorsMetadata metadata = {{"z", "1"}, {"a", "\xC3\xA9"}};
  EXPECT_EQ(h.metadata, metadata);

  ASSERT_EQ(h.tensors.size(), 4u);
  const TensorView& b = h.tensors[0];
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.type, "BF16");
  EXPECT_EQ(b.format, Format::kBF16);
  EXPECT_EQ(b.shape, (std::vector<uint64_t>{2, 3}));
  EXPECT_EQ(b.bytes, 12u);
  EXPECT_EQ(b.file_offset, h.data_start + 8);
  EXPECT_EQ(b.data[0], 8) << "the ninth byte of data";
  EXPECT_EQ(h.tensors[1].format, std::nullopt);
  EXPECT_TRUE(h.tensors[1].shape.empty());
  EXPECT_EQ(h.tensors[2].bytes, 0u);
  EXPECT_EQ(h.tensors[3].name, "a");
  EXPECT_EQ(h.tensors[3].format, Format::kF32);
}

TEST(Safetensors, EachCodeIsGivenWithItsPlace) {
  struct Case {
    const char* code;
    ErrorClass cls;
    std::string header;  // '^' stands before the byte that is pointed at
    size_t data;
  };
  const std::string a(kA);
  const ErrorClass format = ErrorClass::kFormat;
  const ErrorClass cut = ErrorClass::kTruncatedFile;
  const ErrorClass limit = ErrorClass::kLimit;
  const std::vector<Case> cases = {
      {"ST_UTF8", format, "{\"^\xFF\":1}", 0},
      {"ST_UTF8", format, "^\xEF\xBB\xBF{}", 0},
      {"ST_HEADER_START", format, "  ^[]", 0},
      {"ST_HEADER_START", format, "    ^", 0},
      {"ST_PADDING", format, "{}  ^\x01", 0},
      {"ST_PADDING", format, "^\x01{}", 0},
      {"ST_JSON", format, "{\"a\":" + a + ",^}", 8},
      {"ST_JSON", format, "{}^{}", 0},
      {"ST_JSON", limit, "{\"a\":[[[[[[[^[]]]]]]]]}", 0},
      {"ST_DUPLICATE", format, "{\"a\":" + a + ",^\"\\u0061\":" + a + "}", 8},
      {"ST_METADATA", format, "{\"__metadata__\":{\"k\":^1}}", 0},
      {"ST_FIELDS", format, "{\"a\":^{\"dtype\":\"F32\",\"shape\":[2]}}", 8},
      {"ST_FIELDS", format, "{\"a\":" + a.substr(0, a.size() - 1) + ",^\"x\":0}}", 8},
      {"ST_DTYPE", format, R"({"a":{"dtype":^"F31","shape":[2],"data_offsets":[0,8]}})",
       8},
      {"ST_SUBBYTE", format,
       R"({"a":{"dtype":"F4","shape":^[3],"data_offsets":[0,1]}})", 1},
      {"ST_INTEGER", format,
       R"({"a":{"dtype":"F32","shape":[^2.0],"data_offsets":[0,8]}})", 8},
      {"ST_INTEGER", format,
       R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,^9223372036854775808]}})",
       8},
      {"ST_OVERFLOW", format,
       R"({"a":{"dtype":"F32","shape":[0,4294967296,^4294967296],"data_offsets":[0,0]}})",
       0},
      {"ST_OVERFLOW", limit,
       R"({"a":{"dtype":"U8","shape":^[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],)"
       R"("data_offsets":[0,1]}})",
       1},
      {"ST_OFFSETS", format,
       R"({"a":{"dtype":"F32","shape":[2],"data_offsets":^[8,0]}})", 8},
      {"ST_SIZE", format, R"({"a":{"dtype":"F32","shape":[2],"data_offsets":^[0,9]}})",
       9},
      {"ST_OVERLAP", format,
       "{\"a\":" + a + R"(,"b":{"dtype":"U8","shape":[2],"data_offsets":[^7,9]}})", 9},
      {"ST_HOLE", format,
       "{\"a\":" + a + R"(,"b":{"dtype":"U8","shape":[2],"data_offsets":[^9,11]}})",
       11},
      {"ST_DATA_TRUNCATED", cut,
       R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,^8]}})", 7},
      {"ST_NAME", format, "{^\"\":" + a + "}", 8},
      {"ST_NAME", format, "{^\"a\\u001b\":" + a + "}", 8},
  };
  for (Case c : cases) {
    const size_t at = c.header.find('^');
    c.header.erase(at, 1);
    const std::optional<Error> e = ErrorOf(Pack(c.header, c.data));
    ASSERT_TRUE(e) << c.header;
    EXPECT_EQ(e->info().code, c.code) << c.header;
    EXPECT_EQ(e->cls(), c.cls) << c.header;
    EXPECT_EQ(e->info().offset, 8 + at) << c.header;
  }
}

TEST(Safetensors, TheLengthIsCheckedFirst) {
  const std::string valid = Pack("{\"a\":" + std::string(kA) + "}", 8);
  struct Case {
    std::string file;
    const char* code;
    ErrorClass cls;
  };
  for (const Case& c :
       {Case{"", "ST_TOO_SHORT", ErrorClass::kTruncatedFile},
        Case{valid.substr(0, 7), "ST_TOO_SHORT", ErrorClass::kTruncatedFile},
        Case{valid.substr(0, 8), "ST_HEADER_LENGTH", ErrorClass::kTruncatedFile},
        Case{WithLength(0, ""), "ST_HEADER_LENGTH", ErrorClass::kFormat},
        Case{WithLength(1, "{}"), "ST_HEADER_LENGTH", ErrorClass::kFormat},
        Case{WithLength(3, "{}"), "ST_HEADER_LENGTH", ErrorClass::kTruncatedFile},
        Case{WithLength(100'000'001, "{}"), "ST_HEADER_TOO_LARGE", ErrorClass::kLimit},
        Case{WithLength(UINT64_MAX, "{}"), "ST_HEADER_TOO_LARGE", ErrorClass::kLimit},
        Case{"<html><body>404", "ST_HEADER_TOO_LARGE", ErrorClass::kFormat}}) {
    const std::optional<Error> e = ErrorOf(c.file);
    ASSERT_TRUE(e) << c.code;
    EXPECT_EQ(e->info().code, c.code);
    EXPECT_EQ(e->cls(), c.cls) << e->what();
    EXPECT_EQ(e->info().offset, 0u);
  }
}

TEST(Safetensors, BytesAfterTheLastTensorAreRefused) {
  const std::string valid = Pack("{\"a\":" + std::string(kA) + "}", 8);
  const std::optional<Error> e = ErrorOf(valid + "PK\x05\x06");
  ASSERT_TRUE(e);
  EXPECT_EQ(e->info().code, "ST_TRAILING");
  EXPECT_EQ(e->info().offset, valid.size());
}

TEST(Safetensors, ATruncatedFileSaysHowMuchIsMissing) {
  const std::string valid = Pack("{\"a\":" + std::string(kA) + "}", 8);
  for (size_t n = 0; n < valid.size(); ++n) {
    const std::optional<Error> e = ErrorOf(valid.substr(0, n));
    ASSERT_TRUE(e) << n;
    EXPECT_EQ(e->cls(), ErrorClass::kTruncatedFile) << n;
    const uint64_t until = n < 8                  ? 8
                           : n < valid.size() - 8 ? valid.size() - 8
                                                  : valid.size();
    const std::string missing = std::to_string(until - n) + " bytes missing";
    EXPECT_NE(std::string(e->what()).find(missing), std::string::npos) << e->what();
  }
}

TEST(Safetensors, LimitsMoveOnlyWhenTheCallerMovesThem) {
  std::string header = "{\"a\":" + std::string(kA) + "}";
  SafetensorsLimits limits;
  limits.header_bytes = header.size();
  EXPECT_FALSE(ErrorOf(Pack(header, 8), limits));
  limits.header_bytes = header.size() - 1;
  EXPECT_EQ(ErrorOf(Pack(header, 8), limits)->info().code, "ST_HEADER_TOO_LARGE");

  header = R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],)"
           R"("data_offsets":[0,1]}})";
  limits = {};
  limits.rank = 17;
  EXPECT_FALSE(ErrorOf(Pack(header, 1), limits));

  limits = {};
  limits.tensors = 1;
  header = "{\"a\":" + std::string(kA) +
           R"(,"b":{"dtype":"U8","shape":[0],"data_offsets":[8,8]}})";
  const std::optional<Error> e = ErrorOf(Pack(header, 8), limits);
  ASSERT_TRUE(e);
  EXPECT_EQ(e->cls(), ErrorClass::kLimit);
  EXPECT_EQ(e->info().field, "tensors");
  EXPECT_EQ(e->info().found, "2");
  // Neither a tensor's three fields nor what __metadata__ says are tensors.
  header = "{\"a\":" + std::string(kA) +
           R"(,"__metadata__":{"a":"1","b":"2","c":"3","d":"4"}})";
  EXPECT_FALSE(ErrorOf(Pack(header, 8), limits));
}

TEST(Safetensors, ReadsAHundredThousandTensors) {
  std::string header = "{";
  const size_t n = 100'000;
  for (size_t i = 0; i < n; ++i) {  // last data first: the layout has to be sorted
    const size_t at = n - 1 - i;
    header += (i > 0 ? ",\"t" : "\"t") + std::to_string(i) +
              R"(":{"dtype":"U8","shape":[1],"data_offsets":[)" + std::to_string(at) +
              "," + std::to_string(at + 1) + "]}";
  }
  const std::string file = Pack(header + "}", n);
  const SafetensorsHeader h = ParseSafetensors(Bytes(file));
  EXPECT_EQ(h.tensors.size(), n);
  EXPECT_EQ(BrokenInvariant(Bytes(file), h), "");
}

// --------------------------------------------------------------- every small damage

std::vector<std::string> Seeds() {
  const std::string a(kA);
  return {
      Pack("{}", 0),
      Pack("{\"a\":" + a + "}", 8),
      Pack(" {\"a\" : " + a + " } \n", 8),
      Pack(R"({"__metadata__":{"format":"pt","n":"\u00e9\n"},"a":)" + a + "}", 8),
      Pack("{\"a\":" + a +
               R"(,"b":{"dtype":"BF16","shape":[3,1],"data_offsets":[8,14]}})",
           14),
      Pack(R"({"b":{"dtype":"I64","shape":[1],"data_offsets":[8,16]},"a":)" + a + "}",
           16),
      Pack(R"({"s":{"dtype":"F64","shape":[],"data_offsets":[0,8]}})", 8),
      Pack(R"({"e":{"dtype":"U16","shape":[0,7],"data_offsets":[0,0]}})", 0),
      Pack(R"({"q":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]}})", 3),
      Pack(R"({"q":{"dtype":"F6_E3M2","shape":[4],"data_offsets":[0,3]}})", 3),
      Pack(R"({"\u0061\/\ud83d\ude00":)" + a + "}", 8),
      Pack(R"({"a":{"data_offsets":[0,255],"dtype":"U8","shape":[5,51]}})", 255),
  };
}

class Sweep {
 public:
  // Opens with all invariants, or is refused in a documented way.
  void Try(const std::string& file) {
    ++count_;
    const std::vector<uint8_t> exact(file.begin(), file.end());
    std::string broken;
    try {
      broken = BrokenInvariant(exact, ParseSafetensors(exact));
      ++opened_;
    } catch (const Error& e) {
      const bool documented = e.cls() == ErrorClass::kFormat ||
                              e.cls() == ErrorClass::kTruncatedFile ||
                              e.cls() == ErrorClass::kLimit;
      if (!documented || !e.info().code.starts_with("ST_")) broken = e.what();
      if (!e.info().offset || *e.info().offset > file.size()) broken = e.what();
    }
    ASSERT_EQ(broken, "") << testing::PrintToString(file);
  }
  size_t count() const { return count_; }
  size_t opened() const { return opened_; }

 private:
  size_t count_ = 0, opened_ = 0;
};

constexpr uint64_t kBoundaries[] = {0,
                                    1,
                                    2,
                                    7,
                                    8,
                                    31,
                                    32,
                                    33,
                                    255,
                                    0xFFFF,
                                    0x10000,
                                    0x7FFFFFFF,
                                    0x80000000,
                                    0xFFFFFFFF,
                                    0x100000000,
                                    1ull << 62,
                                    INT64_MAX,
                                    1ull << 63,
                                    UINT64_MAX - 7,
                                    UINT64_MAX};

size_t HeaderEnd(const std::string& file) {
  uint64_t length;
  memcpy(&length, file.data(), sizeof(length));
  return 8 + length;
}

TEST(SafetensorsSweep, CutsAndFlippedBits) {
  Sweep sweep;
  for (const std::string& seed : Seeds()) {
    for (size_t n = 0; n < seed.size(); ++n) sweep.Try(seed.substr(0, n));
    for (size_t bit = 0; bit < 8 * HeaderEnd(seed); ++bit) {
      std::string file = seed;
      file[bit / 8] = static_cast<char>(file[bit / 8] ^ (1 << bit % 8));
      sweep.Try(file);
    }
  }
  EXPECT_GT(sweep.count(), 8'000u);
  EXPECT_GT(sweep.opened(), 0u) << "a flipped bit in a name is another name";
}

TEST(SafetensorsSweep, BoundaryIntegersInEveryWindow) {
  Sweep sweep;
  for (const std::string& seed : Seeds()) {
    for (size_t at = 0; at < HeaderEnd(seed); ++at) {
      for (const uint64_t value : kBoundaries) {
        for (const size_t width : {4, 8}) {
          if (at + width > HeaderEnd(seed)) continue;
          std::string file = seed;
          memcpy(file.data() + at, &value, width);
          sweep.Try(file);
        }
      }
    }
  }
  EXPECT_GT(sweep.count(), 30'000u);
}

// The same numbers as text, in place of every run of digits.
TEST(SafetensorsSweep, BoundaryIntegersInEveryNumber) {
  Sweep sweep;
  constexpr std::string_view kDigits = "0123456789";
  for (const std::string& seed : Seeds()) {
    const std::string header = seed.substr(8, HeaderEnd(seed) - 8);
    const size_t data = seed.size() - HeaderEnd(seed);
    for (size_t at = 0; (at = header.find_first_of(kDigits, at)) != header.npos;) {
      const size_t end = std::min(header.find_first_not_of(kDigits, at), header.size());
      for (const uint64_t value : kBoundaries) {
        for (const char* sign : {"", "-"}) {
          std::string changed = header;
          changed.replace(at, end - at, sign + std::to_string(value));
          sweep.Try(Pack(changed, data));
        }
      }
      at = end;
    }
  }
  EXPECT_GT(sweep.count(), 2'000u);
  EXPECT_GT(sweep.opened(), 0u) << "one of the numbers is the one that was there";
}

TEST(SafetensorsSweep, PiecesDeletedDoubledAndSwapped) {
  Sweep sweep;
  for (const std::string& seed : Seeds()) {
    const std::string header = seed.substr(8, HeaderEnd(seed) - 8);
    const size_t data = seed.size() - HeaderEnd(seed);
    std::vector<size_t> cuts = {0};  // between tokens
    for (size_t i = 0; i < header.size(); ++i) {
      if (std::string_view("{}[],:\"").find(header[i]) == std::string_view::npos)
        continue;
      cuts.push_back(i);
      cuts.push_back(i + 1);
    }
    cuts.push_back(header.size());
    for (size_t i = 0; i < cuts.size(); ++i) {
      for (size_t j = i + 1; j < std::min(cuts.size(), i + 24); ++j) {
        const std::string piece = header.substr(cuts[i], cuts[j] - cuts[i]);
        std::string file = header;
        sweep.Try(Pack(file.erase(cuts[i], piece.size()), data));
        file = header;
        sweep.Try(Pack(file.insert(cuts[i], piece), data));
        file = header;
        file.erase(cuts[i], piece.size());
        sweep.Try(Pack(file.insert(file.size() / 2, piece), data));
      }
    }
  }
  EXPECT_GT(sweep.count(), 20'000u);
}

// ------------------------------------------------------------------ files, shards

TEST_F(SafetensorsDir, OneFileByItsNameOrByItsDirectory) {
  const std::string path =
      Write("model.safetensors", Pack("{\"a\":" + std::string(kA) + "}", 8));
  for (const std::string& p : {path, Dir()}) {
    const SafetensorsFile f = OpenSafetensors(p);
    ASSERT_EQ(f.tensors.size(), 1u);
    EXPECT_EQ(f.files[0]->path(), path);
    EXPECT_EQ(f.tensors[0].data, f.files[0]->bytes().data() + f.tensors[0].file_offset);
    EXPECT_EQ(memcmp(f.tensors[0].data, "\0\1\2\3\4\5\6\7", 8), 0);
  }
}

TEST_F(SafetensorsDir, TheOnlyFileMayHaveAnyName) {
  Write("x.safetensors", Pack("{\"a\":" + std::string(kA) + "}", 8));
  EXPECT_EQ(OpenSafetensorsDir(Dir()).tensors.size(), 1u);
  Write("y.safetensors", Pack("{}", 0));
  EXPECT_EQ(Refusal()->info().code, "IDX_MISSING");
}

TEST_F(SafetensorsDir, AnEmptyDirectoryHasNoModel) {
  const std::optional<Error> e = Refusal();
  ASSERT_TRUE(e);
  EXPECT_EQ(e->cls(), ErrorClass::kOs);
  EXPECT_EQ(e->info().os_errno, ENOENT);
  fs::remove_all(Dir());
  EXPECT_EQ(Refusal()->info().os_errno, ENOENT);
}

TEST_F(SafetensorsDir, ShardsBecomeOneFile) {
  Write("m-2.safetensors",
        Pack(R"({"__metadata__":{"format":"pt","x":"2"},"a":)" + std::string(kA) + "}",
             8));
  Write("m-1.safetensors",
        Pack(R"({"__metadata__":{"format":"np"},"b":)" + std::string(kA) +
                 R"(,"extra":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}})",
             9));
  WriteIndex(R"("a":"m-2.safetensors","b":"m-1.safetensors")");
  for (const std::string& p : {Dir(), Dir() + "/model.safetensors.index.json"}) {
    const SafetensorsFile f = OpenSafetensors(p);
    ASSERT_EQ(f.files.size(), 2u);
    ASSERT_EQ(f.tensors.size(), 3u);
    for (const TensorView& t : f.tensors) {
      EXPECT_EQ(t.shard, t.name == "a" ? 1u : 0u);
      EXPECT_EQ(t.data, f.files[t.shard]->bytes().data() + t.file_offset);
    }
    const SafetensorsMetadata metadata = {{"format", "np"}, {"x", "2"}};
    EXPECT_EQ(f.metadata, metadata);
    ASSERT_EQ(f.warnings.size(), 1u);
    EXPECT_NE(f.warnings[0].find("'extra' in 'm-1.safetensors'"), std::string::npos)
        << f.warnings[0];
  }
}

TEST_F(SafetensorsDir, IndexAndShardsAgree) {
  const std::string a = Pack("{\"a\":" + std::string(kA) + "}", 8);
  Write("m-1.safetensors", a);
  Write("m-2.safetensors", Pack("{\"b\":" + std::string(kA) + "}", 8));
  WriteIndex(R"("a":"m-2.safetensors","b":"m-1.safetensors")");
  EXPECT_EQ(Refusal()->info().code, "IDX_TENSOR_MISSING");
  WriteIndex(R"("a":"m-1.safetensors","c":"m-2.safetensors")");
  EXPECT_EQ(Refusal()->info().code, "IDX_TENSOR_MISSING");
  WriteIndex(R"("a":"m-1.safetensors","b":"m-3.safetensors")");
  EXPECT_EQ(Refusal()->info().code, "IDX_SHARD_MISSING");
  EXPECT_EQ(Refusal()->cls(), ErrorClass::kTruncatedFile);

  Write("m-2.safetensors", a);
  WriteIndex(R"("a":"m-1.safetensors","b":"m-2.safetensors")");
  EXPECT_EQ(Refusal()->info().code, "IDX_DUPLICATE_TENSOR");
  EXPECT_EQ(Refusal()->info().tensor, "a");
}

TEST_F(SafetensorsDir, AShardOfEncodersAloneMayBeAbsent) {
  Write("m-1.safetensors", Pack("{\"a\":" + std::string(kA) + "}", 8));
  WriteIndex(R"("a":"m-1.safetensors","x.vision_tower.b":"m-2.safetensors",)"
             R"("embed_audio.c":"m-2.safetensors")");
  const SafetensorsFile f = OpenSafetensorsDir(Dir());
  EXPECT_EQ(f.tensors.size(), 1u);
  EXPECT_EQ(f.files.size(), 1u);
  ASSERT_EQ(f.warnings.size(), 1u);
  EXPECT_NE(f.warnings[0].find("'m-2.safetensors'"), std::string::npos);

  // Not if there is anything else in it, or the word is only part of one.
  WriteIndex(R"("a":"m-1.safetensors","vision_tower.b":"m-2.safetensors",)"
             R"("vision_tower_b":"m-2.safetensors")");
  EXPECT_EQ(Refusal()->info().code, "IDX_SHARD_MISSING");
  WriteIndex(R"("vision_tower.b":"m-2.safetensors")");
  EXPECT_EQ(Refusal()->info().code, "IDX_SHARD_MISSING");

  Write("m-2.safetensors", Pack("{\"vision_tower.b\":" + std::string(kA) + "}", 8));
  WriteIndex(R"("a":"m-1.safetensors","vision_tower.b":"m-2.safetensors")");
  EXPECT_EQ(OpenSafetensorsDir(Dir()).tensors.size(), 2u);
}

TEST_F(SafetensorsDir, ADamagedShardIsTheOneNamed) {
  Write("m-1.safetensors", Pack("{\"a\":" + std::string(kA) + "}", 7));
  WriteIndex(R"("a":"m-1.safetensors")");
  const std::optional<Error> e = Refusal();
  ASSERT_TRUE(e);
  EXPECT_EQ(e->info().code, "ST_DATA_TRUNCATED");
  EXPECT_EQ(e->info().path, Dir() + "/m-1.safetensors");
}

TEST_F(SafetensorsDir, ShardNamesNeverLeaveTheDirectory) {
  fs::create_directory(Dir() + "/sub");
  const std::string file = Pack("{\"a\":" + std::string(kA) + "}", 8);
  Write("sub/s.safetensors", file);
  Write("s.safetensors", file);
  for (const char* name :
       {"sub/s.safetensors", "./s.safetensors", "../s.safetensors", "sub\\\\s", "", ".",
        "..", "C:s.safetensors", "s.safetensors\\u0000", "s\\n"}) {
    WriteIndex(std::string("\"a\":\"") + name + "\"");
    const std::optional<Error> e = Refusal();
    ASSERT_TRUE(e) << name;
    EXPECT_EQ(e->info().code, "IDX_SHARD_NAME") << name;
    EXPECT_EQ(e->info().path, Dir() + "/model.safetensors.index.json");
  }
  WriteIndex(R"("a":"s.safetensors")");
  EXPECT_FALSE(Refusal());
}

TEST_F(SafetensorsDir, LinksAreFollowedUnlessPathsAreStrict) {
  const std::string store = Dir() + "/store";
  const std::string home = Dir() + "/home";
  fs::create_directory(store);
  fs::create_directory(home);
  const std::string file = Pack("{\"a\":" + std::string(kA) + "}", 8);
  Write("store/blob", file);
  Write("home/inside", file);
  Write("home/model.safetensors.index.json", R"({"weight_map":{"a":"link"}})");
  SafetensorsLimits strict;
  strict.strict_paths = true;

  fs::create_symlink("../store/blob", home + "/link");
  EXPECT_EQ(OpenSafetensorsDir(home).tensors.size(), 1u);
  try {
    OpenSafetensorsDir(home, strict);
    FAIL() << "a link out of the directory was followed";
  } catch (const Error& e) {
    EXPECT_EQ(e.info().code, "IDX_SHARD_PATH");
    EXPECT_EQ(e.info().offset, 19u);
  }
  fs::remove(home + "/link");
  fs::create_symlink("inside", home + "/link");
  EXPECT_EQ(OpenSafetensorsDir(home, strict).tensors.size(), 1u);
}

TEST_F(SafetensorsDir, AShardThatIsNoFileIsRefusedAtOnce) {
  WriteIndex(R"("a":"pipe")");
  ASSERT_EQ(mkfifo((Dir() + "/pipe").c_str(), 0600), 0);
  ASSERT_TRUE(Refusal());
  EXPECT_EQ(Refusal()->cls(), ErrorClass::kUnsupported);
}

TEST_F(SafetensorsDir, AFailedOpenLeavesNoDescriptor) {
  const auto descriptors = [] {
    size_t n = 0;
    for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
      n += !entry.path().empty();
    }
    return n;
  };
  Write("m-1.safetensors", Pack("{\"a\":" + std::string(kA) + "}", 8));
  Write("m-2.safetensors", Pack("{\"b\":" + std::string(kA) + "}", 7));
  WriteIndex(R"("a":"m-1.safetensors","b":"m-2.safetensors")");
  const size_t before = descriptors();
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(Refusal());
  EXPECT_EQ(descriptors(), before);
}

TEST_F(SafetensorsDir, ATebibyteOpensByItsHeaderAlone) {
  const uint64_t data = uint64_t{1} << 40;
  const std::string path = Write(
      "model.safetensors",
      Pack(
          R"({"a":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}})",
          0));
  const uint64_t header = fs::file_size(path);
  if (truncate(path.c_str(), static_cast<off_t>(header + data)) != 0) {
    GTEST_SKIP() << "no sparse file of this size here";
  }
  const SafetensorsFile f = OpenSafetensors(path);
  EXPECT_EQ(f.tensors[0].bytes, data);
  EXPECT_EQ(f.tensors[0].data[data - 1], 0);
}

TEST_F(SafetensorsDir, TheLastByteMayEndTheLastPage) {
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[4000],"data_offsets":[0,4000]}})";
  const std::string path =
      Write("model.safetensors",
            Pack(header + std::string(4096 - 4000 - 8 - header.size(), ' '), 4000));
  ASSERT_EQ(fs::file_size(path), 4096u);
  const SafetensorsFile f = OpenSafetensors(path);
  EXPECT_EQ(f.tensors[0].data[3999], 3999 % 256);
}

}  // namespace
}  // namespace halfbyte
