// tests/cpp/io/gguf_file_test.cc
// GGUF files on disk: lookup by name, shards, and changes under a live mapping.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/gguf.h"
#include "temp_dir.h"

namespace halfbyte {
namespace {

namespace fs = std::filesystem;

template <class T>
std::string Raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}

std::string Text(const std::string& s) { return Raw(uint64_t{s.size()}) + s; }

// Shard `number` of `count` with the given tensors of 8 floats each.
std::string Shard(uint16_t number, uint16_t count, int32_t total,
                  const std::vector<std::string>& names) {
  std::string s = "GGUF" + Raw(uint32_t{3}) + Raw(uint64_t{names.size()});
  s += Raw(uint64_t{3});
  s += Text("split.no") + Raw(uint32_t{2}) + Raw(number);
  s += Text("split.count") + Raw(uint32_t{2}) + Raw(count);
  s += Text("split.tensors.count") + Raw(uint32_t{5}) + Raw(total);
  for (uint64_t i = 0; i < names.size(); ++i) {
    s += Text(names[i]) + Raw(uint32_t{1}) + Raw(uint64_t{8}) + Raw(uint32_t{0});
    s += Raw(32 * i);
  }
  s.resize((s.size() + 31) / 32 * 32);
  for (size_t i = 0; i < names.size(); ++i) s += std::string(32, names[i][0]);
  return s;
}

class GgufFileTest : public TempDirTest {
 protected:
  GgufFileTest() {
    first_ = Write("m-00001-of-00002.gguf", Shard(0, 2, 3, {"b", "a"}));
    second_ = Write("m-00002-of-00002.gguf", Shard(1, 2, 3, {"c"}));
  }

  std::string first_, second_;
};

TEST_F(GgufFileTest, JoinsShardsWhicheverIsNamed) {
  for (const std::string& path : {first_, second_}) {
    const GgufFile file = OpenGguf(path);
    ASSERT_EQ(file.files.size(), 2u);
    EXPECT_EQ(file.files[0]->path(), first_);
    EXPECT_EQ(file.metadata.GetU64("split.no"), 0u);
    ASSERT_EQ(file.tensors.size(), 3u);
    for (const TensorView& t : file.tensors) {
      EXPECT_EQ(t.shard, t.name == "c" ? 1u : 0u);
      EXPECT_EQ(t.data, file.files[t.shard]->bytes().data() + t.file_offset);
      EXPECT_EQ(t.data[0], t.name[0]);
      EXPECT_EQ(t.data[31], t.name[0]);
    }
  }
}

TEST_F(GgufFileTest, FindsTensorsByName) {
  const GgufFile file = OpenGguf(first_);
  for (const TensorView& t : file.tensors) EXPECT_EQ(file.FindTensor(t.name), &t);
  for (const char* name : {"", "A", "aa", "bb", "d"}) {
    EXPECT_EQ(file.FindTensor(name), nullptr);
  }
}

TEST_F(GgufFileTest, OpensCopies) {
  const GgufFile file = OpenGguf(first_, {}, {.mode = LoadMode::kCopy});
  fs::resize_file(second_, 1);
  for (const auto& f : file.files) EXPECT_NO_THROW(f->CheckUnchanged());
  EXPECT_EQ(file.FindTensor("c")->data[0], 'c');
}

TEST_F(GgufFileTest, ErrorsOfGettersNameTheFile) {
  const GgufFile file = OpenGguf(second_);
  try {
    file.metadata.GetString("split.no");
    ADD_FAILURE() << "a number came as a string";
  } catch (const Error& e) {
    EXPECT_EQ(e.info().path, first_);
    EXPECT_EQ(e.info().key, "split.no");
  }
}

TEST_F(GgufFileTest, OtherRefusalsOfTheSystemPassThrough) {
  fs::remove(second_);
  fs::create_directory(second_);
  try {
    OpenGguf(first_);
    ADD_FAILURE() << "a directory served as a shard";
  } catch (const Error& e) {
    EXPECT_EQ(e.cls(), ErrorClass::kOs);
    EXPECT_EQ(e.info().path, second_);
  }
}

}  // namespace
}  // namespace halfbyte
