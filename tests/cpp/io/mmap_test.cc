// tests/cpp/io/mmap_test.cc
// Opening files of every kind, and noticing that they change.
// SPDX-License-Identifier: Apache-2.0
#include "io/mmap.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "base/error.h"
#include "io/limits.h"
#include "temp_dir.h"

namespace halfbyte {
namespace {

namespace fs = std::filesystem;

class MappedFileTest : public TempDirTest {
 protected:
  // What opening `path` fails with.
  static ErrorInfo Refusal(const std::string& path, ErrorClass want) {
    try {
      MappedFile::Open(path);
    } catch (const Error& e) {
      EXPECT_EQ(e.cls(), want) << e.what();
      EXPECT_EQ(e.info().path, path);
      return e.info();
    }
    ADD_FAILURE() << path << " opened";
    return {};
  }

  static void ExpectChanged(const MappedFile& file) {
    try {
      file.CheckUnchanged();
      ADD_FAILURE() << "the change went unnoticed";
    } catch (const Error& e) {
      EXPECT_EQ(e.cls(), ErrorClass::kFileChanged);
      EXPECT_EQ(e.info().path, file.path());
    }
  }
};

std::string Text(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

size_t OpenDescriptors() {
  size_t n = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator("/proc/self/fd"))
    ++n;
  return n;
}

// "r--p" for a private mapping that nobody can write to.
std::string PermissionsOf(const void* address) {
  std::ifstream maps("/proc/self/maps");
  std::string line;
  while (std::getline(maps, line)) {
    unsigned long begin, end;
    char permissions[5];
    if (sscanf(line.c_str(), "%lx-%lx %4s", &begin, &end, permissions) != 3) continue;
    const auto at = reinterpret_cast<unsigned long>(address);
    if (at >= begin && at < end) return permissions;
  }
  return "unmapped";
}

TEST_F(MappedFileTest, MapsAndCopies) {
  const std::string path = Write("f", "some bytes");
  for (const LoadMode mode : {LoadMode::kMap, LoadMode::kCopy, LoadMode::kAuto}) {
    const auto file = MappedFile::Open(path, {.mode = mode});
    EXPECT_EQ(Text(*file), "some bytes");
    EXPECT_EQ(file->path(), path);
    EXPECT_NO_THROW(file->CheckUnchanged());
    EXPECT_EQ(PermissionsOf(file->bytes().data()), "r--p");
  }
}

TEST_F(MappedFileTest, ReadsParts) {
  const std::string path = Write("f", "some bytes");
  for (const LoadMode mode : {LoadMode::kMap, LoadMode::kCopy}) {
    const auto file = MappedFile::Open(path, {.mode = mode});
    for (const Caching caching : {Caching::kAsUsual, Caching::kNone}) {
      uint8_t part[6] = {};
      file->Read(file->bytes().subspan(5, 5), part, caching);
      EXPECT_STREQ(reinterpret_cast<const char*>(part), "bytes");
      EXPECT_NO_THROW(file->Read(file->bytes().subspan(10), part, caching));
    }
  }
}

// Where touching the mapping would end the process.
TEST_F(MappedFileTest, ReadingWhatHasBeenCutOffThrows) {
  const std::string path = Write("f", std::string(100000, 'x'));
  const auto file = MappedFile::Open(path);
  fs::resize_file(path, 50000);
  std::string part(20, ' ');
  auto* to = reinterpret_cast<uint8_t*>(part.data());
  EXPECT_NO_THROW(file->Read(file->bytes().subspan(49980, 20), to));
  for (const auto& [begin, caching] :
       {std::pair{size_t{49990}, Caching::kAsUsual}, {90000, Caching::kNone}}) {
    try {
      file->Read(file->bytes().subspan(begin, 20), to, caching);
      ADD_FAILURE() << begin << " was read";
    } catch (const Error& e) {
      EXPECT_EQ(e.cls(), ErrorClass::kFileChanged);
      EXPECT_EQ(e.info().path, path);
      EXPECT_EQ(e.info().expected, "100000 bytes");
    }
  }
}

TEST_F(MappedFileTest, EmptyFileHasNoBytes) {
  EXPECT_TRUE(MappedFile::Open(Write("empty", ""))->bytes().empty());
}

TEST_F(MappedFileTest, FollowsLinksToRegularFiles) {
  fs::create_symlink(Write("f", "linked"), dir_ / "link");
  EXPECT_EQ(Text(*MappedFile::Open((dir_ / "link").string())), "linked");
}

TEST_F(MappedFileTest, MissingFileIsAnOsError) {
  EXPECT_EQ(Refusal((dir_ / "none").string(), ErrorClass::kOs).os_errno, ENOENT);
}

TEST_F(MappedFileTest, DirectoryIsAnOsError) {
  EXPECT_EQ(Refusal(dir_.string(), ErrorClass::kOs).os_errno, EISDIR);
}

// Hangs here if the pipe is opened in blocking mode.
TEST_F(MappedFileTest, PipeIsRefusedAtOnce) {
  const std::string path = (dir_ / "pipe").string();
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(Refusal(path, ErrorClass::kUnsupported).code, "FILE_NOT_REGULAR");
}

TEST_F(MappedFileTest, DeviceIsRefused) {
  EXPECT_EQ(Refusal("/dev/zero", ErrorClass::kUnsupported).found, "a device");
}

TEST_F(MappedFileTest, SocketIsAnOsError) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const std::string path = (dir_ / "socket").string();
  ASSERT_LT(path.size(), sizeof(address.sun_path));
  memcpy(address.sun_path, path.data(), path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(Refusal(path, ErrorClass::kOs).os_errno, ENXIO);
  close(fd);
}

TEST_F(MappedFileTest, NothingIsLeftOpen) {
  const std::string path = Write("f", "x");
  const size_t before = OpenDescriptors();
  for (int i = 0; i < 3; ++i) {
    Refusal(dir_.string(), ErrorClass::kOs);
    Refusal("/dev/null", ErrorClass::kUnsupported);
    MappedFile::Open(path);
    MappedFile::Open(path, {.mode = LoadMode::kCopy});
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(MappedFileTest, DescriptorsAreClosedOnExec) {
  const int lowest = open("/dev/null", O_RDONLY);  // what the next open will get
  close(lowest);
  const auto file = MappedFile::Open(Write("f", "x"));
  EXPECT_NE(fcntl(lowest, F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(MappedFileTest, ShrinkingIsNoticed) {
  const std::string path = Write("f", std::string(10000, 'x'));
  const auto file = MappedFile::Open(path);
  fs::resize_file(path, 9999);
  ExpectChanged(*file);
}

TEST_F(MappedFileTest, RewritingIsNoticed) {
  const std::string path = Write("f", "before");
  const auto file = MappedFile::Open(path);
  fs::last_write_time(path, fs::last_write_time(path) + std::chrono::seconds(1));
  ExpectChanged(*file);
}

TEST_F(MappedFileTest, GrowthIsHarmless) {
  const std::string path = Write("f", "before");
  const auto file = MappedFile::Open(path);
  fs::resize_file(path, 10000);
  EXPECT_NO_THROW(file->CheckUnchanged());
  EXPECT_EQ(Text(*file), "before");
}

TEST_F(MappedFileTest, ReplacementAndRemovalAreHarmless) {
  const std::string path = Write("f", "before");
  const auto file = MappedFile::Open(path);
  fs::rename(Write("g", "after!"), path);
  EXPECT_NO_THROW(file->CheckUnchanged());
  fs::remove(path);
  EXPECT_NO_THROW(file->CheckUnchanged());
  EXPECT_EQ(Text(*file), "before");
}

TEST_F(MappedFileTest, ACopyIsUnaffected) {
  const std::string path = Write("f", "before");
  const auto file = MappedFile::Open(path, {.mode = LoadMode::kCopy});
  fs::resize_file(path, 1);
  EXPECT_NO_THROW(file->CheckUnchanged());
  EXPECT_EQ(Text(*file), "before");
}

TEST_F(MappedFileTest, AFileThatChangesWhileItIsCopiedIsRefused) {
  const std::string path = Write("f", std::string(100, 'a'));
  const auto change = [&](uint64_t /*done*/, uint64_t /*total*/) {
    std::ofstream(path, std::ios::binary) << std::string(100, 'b');
    fs::last_write_time(path, fs::last_write_time(path) + std::chrono::seconds(1));
  };
  const size_t before = OpenDescriptors();
  try {
    MappedFile::Open(path, {.mode = LoadMode::kCopy, .progress = change});
    ADD_FAILURE() << "copied";
  } catch (const Error& e) {
    EXPECT_EQ(e.cls(), ErrorClass::kFileChanged);
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(MappedFileTest, AFileLargerThanMemoryIsNotCopied) {
  const std::string path = Write("large", "0123456789");
  const Reading reading = {.mode = LoadMode::kCopy, .most_bytes = 9};
  EXPECT_EQ(MappedFile::Open(path, {.most_bytes = 9})->bytes().size(), 10u);
  try {
    MappedFile::Open(path, reading);
    ADD_FAILURE() << "copied";
  } catch (const Error& e) {
    EXPECT_EQ(e.cls(), ErrorClass::kOutOfMemory);
    EXPECT_EQ(e.info().code, "FILE_TOO_LARGE_TO_COPY");
    EXPECT_EQ(e.info().requested_bytes, 10u);
    EXPECT_EQ(e.info().expected, "a file that fits into memory, 9 bytes at most");
  }
}

TEST_F(MappedFileTest, CopiesOfSeveralFilesCountTogether) {
  const std::string path = Write("f", "0123456789");
  for (const auto& [mode, left] :
       {std::pair(LoadMode::kCopy, 5u), {LoadMode::kMap, 15u}}) {
    const Reading reading = {.mode = mode, .most_bytes = 15};
    const auto file = MappedFile::Open(path, reading);
    EXPECT_EQ(file->Rest(reading).most_bytes, left);
  }
}

}  // namespace
}  // namespace halfbyte
