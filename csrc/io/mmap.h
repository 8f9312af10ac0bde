// csrc/io/mmap.h
// A regular file as read-only bytes. Whoever hands out pointers into it keeps a
// reference to it.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_IO_MMAP_H_
#define HALFBYTE_IO_MMAP_H_

#include <stdint.h>
#include <time.h>

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

namespace halfbyte {

enum class LoadMode {
  kMap,   // pages come from the file when touched
  kCopy,  // read once; later changes of the file do not matter
  kAuto,  // kCopy on network and FUSE file systems, else kMap
};

// How the bytes of files come into memory.
struct Reading {
  LoadMode mode = LoadMode::kMap;
  // What copies may take together, of one file or of all shards of a model.
  uint64_t most_bytes = UINT64_MAX;
  // Called while a file is copied, with its bytes so far and in all; may throw.
  std::function<void(uint64_t done, uint64_t total)> progress = nullptr;
};

// What the system keeps in memory of the bytes that are read.
enum class Caching {
  kAsUsual,
  kNone,  // nothing more than before, where it can: for what is not read again
};

class MappedFile {
 public:
  // Directories, pipes and devices are refused without waiting for them. An empty file
  // opens and has no bytes: each format says what that means. Throws Error of class
  // kOs, kUnsupported or kOutOfMemory, naming `path`.
  static std::shared_ptr<const MappedFile> Open(const std::string& path,
                                                const Reading& reading = {});

  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const uint8_t> bytes() const noexcept { return {data_, size_}; }
  const std::string& path() const noexcept { return path_; }
  // `reading` for the next file of the same model: with what this one's copy leaves.
  Reading Rest(Reading reading) const;

  // Copies `part` of bytes() to `to` by reading the file, which leaves the mapping
  // alone: a page that is touched there can bring 2 MiB of its neighbours into this
  // process's memory. Throws Error of class kOs, or kFileChanged where the file ends
  // before it.
  void Read(std::span<const uint8_t> part, uint8_t* to,
            Caching caching = Caching::kAsUsual) const;

  // Lets go of the memory that `part` of the file takes here; it is read again when it
  // is next needed. A copy stays.
  void Forget(std::span<const uint8_t> part) const noexcept;

  // Throws Error of class kFileChanged if the file is shorter than when it was opened,
  // or as long but modified since. Growth is harmless. One fstat: call it before each
  // batch of accesses. A copy never changes.
  void CheckUnchanged() const;

 private:
  explicit MappedFile(std::string path) : path_(std::move(path)) {}

  void Map();
  void Copy(const Reading& reading);
  void ReadAt(uint64_t offset, std::span<uint8_t> to, Caching caching) const;

  std::string path_;
  int fd_ = -1;
  const uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
  timespec modified_ = {};
  bool is_copy_ = false;
};

}  // namespace halfbyte
#endif  // HALFBYTE_IO_MMAP_H_
