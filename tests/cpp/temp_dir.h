// tests/cpp/temp_dir.h
// A directory that is gone after the test.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_TEST_TEMP_DIR_H_
#define HALFBYTE_TEST_TEMP_DIR_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace halfbyte {

class TempDirTest : public testing::Test {
 protected:
  TempDirTest() {
    std::string name =
        (std::filesystem::temp_directory_path() / "halfbyte-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp: " + name);
    dir_ = name;
  }
  ~TempDirTest() override { std::filesystem::remove_all(dir_); }

  // Returns the path; folders on the way are made.
  std::string Write(const std::string& name, std::string_view content) const {
    const std::filesystem::path path = dir_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
    return path.string();
  }

  std::filesystem::path dir_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_TEST_TEMP_DIR_H_
