// csrc/io/mmap.cc
// SPDX-License-Identifier: Apache-2.0
#include "io/mmap.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/magic.h>
#include <sys/vfs.h>
#endif

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "io/limits.h"

namespace halfbyte {
namespace {

constexpr uint64_t kPiece = 64 * kMiB;  // of a file that is read at once

[[noreturn]] void ThrowNotOpened(int error, const std::string& path) {
  struct stat st;
  if (error != ENOENT || lstat(path.c_str(), &st) != 0) ThrowOsError(error, path);
  ErrorInfo info;
  info.path = path;
  info.os_errno = error;
  info.subject = "a link that leads nowhere";
  throw Error(ErrorClass::kOs, std::move(info));
}

int OpenReadOnly(const std::string& path) {
  if (path.find('\0') != std::string::npos) {
    ErrorInfo info;
    info.path = path;
    info.kind = "file";
    info.code = "FILE_NAME";
    info.found = "a zero byte in the name";
    info.expected = "none";
    throw Error(ErrorClass::kValue, std::move(info));
  }
  int fd;
  do {
    // Non-blocking: opening a pipe that nobody writes to would wait forever.
    fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) ThrowNotOpened(errno, path);
  return fd;
}

void RequireRegular(const struct stat& st, const std::string& path) {
  if (S_ISREG(st.st_mode)) return;
  if (S_ISDIR(st.st_mode)) ThrowOsError(EISDIR, path);
  ErrorInfo info;
  info.path = path;
  info.kind = "file";
  info.code = "FILE_NOT_REGULAR";
  info.found = S_ISFIFO(st.st_mode)   ? "a pipe"
               : S_ISSOCK(st.st_mode) ? "a socket"
                                      : "a device";
  info.expected = "a regular file";
  throw Error(ErrorClass::kUnsupported, std::move(info));
}

timespec ModifiedAt(const struct stat& st) {
#ifdef __APPLE__
  return st.st_mtimespec;
#else
  return st.st_mtim;
#endif
}

// Where another machine or program can take pages away under a mapping.
bool IsRemote([[maybe_unused]] int fd) {
#ifdef __linux__
  constexpr uint64_t kCifs = 0xFF534D42, kSmb2 = 0xFE534D42, kFuse = 0x65735546,
                     kCeph = 0x00C36400, kLustre = 0x0BD00BD0, kGpfs = 0x47504653;
  struct statfs fs;
  if (fstatfs(fd, &fs) != 0) return false;
  const auto type = static_cast<uint64_t>(fs.f_type) & 0xFFFFFFFF;
  for (uint64_t remote :
       {uint64_t{NFS_SUPER_MAGIC}, uint64_t{V9FS_MAGIC}, uint64_t{SMB_SUPER_MAGIC},
        uint64_t{AFS_SUPER_MAGIC}, kCifs, kSmb2, kFuse, kCeph, kLustre, kGpfs}) {
    if (type == remote) return true;
  }
#endif
  return false;
}

[[noreturn]] void ThrowTooLargeToCopy(const std::string& path, uint64_t bytes,
                                      const std::string& most = "") {
  ErrorInfo info;
  info.path = path;
  info.kind = "file";
  info.code = "FILE_TOO_LARGE_TO_COPY";
  info.requested_bytes = bytes;
  info.found = std::to_string(bytes) + " bytes";
  info.expected = "a file that fits into memory" + most;
  info.hint = "map it instead: load=\"mmap\"";
  throw Error(ErrorClass::kOutOfMemory, std::move(info));
}

[[noreturn]] void ThrowChanged(const std::string& path, std::string found,
                               std::string expected) {
  ErrorInfo info;
  info.path = path;
  info.kind = "file";
  info.code = "FILE_CHANGED";
  info.found = std::move(found);
  info.expected = std::move(expected);
  info.hint = "it was changed in place while open: open it again";
  throw Error(ErrorClass::kFileChanged, std::move(info));
}

// Reads as pread does. The system keeps what it had in memory before, and no more.
ssize_t ReadUncached(int fd, std::span<uint8_t> to, off_t offset) {
#ifdef RWF_HIPRI                    // a C library with preadv2
  constexpr int kDontCache = 0x80;  // Linux 6.14: newer than most headers
  const iovec part = {to.data(), to.size()};
  const ssize_t got = preadv2(fd, &part, 1, offset, kDontCache);
  if (got >= 0) return got;  // whatever is wrong, the other call knows it as well
#endif
  return pread(fd, to.data(), to.size(), offset);
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::Open(const std::string& path,
                                                   const Reading& reading) {
  // The object owns the descriptor before anything can throw.
  const std::shared_ptr<MappedFile> file(new MappedFile(path));
  file->fd_ = OpenReadOnly(path);
  struct stat st;
  if (fstat(file->fd_, &st) != 0) ThrowOsError(errno, path);
  RequireRegular(st, path);
  file->size_ = static_cast<uint64_t>(st.st_size);
  file->modified_ = ModifiedAt(st);
  if (file->size_ == 0) return file;  // mmap refuses a length of 0
  if (reading.mode == LoadMode::kCopy ||
      (reading.mode == LoadMode::kAuto && IsRemote(file->fd_))) {
    file->Copy(reading);
  } else {
    file->Map();
  }
  return file;
}

void MappedFile::Map() {
  void* p = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd_, 0);
  if (p == MAP_FAILED) ThrowOsError(errno, path_);
  data_ = static_cast<const uint8_t*>(p);
}

void MappedFile::Copy(const Reading& reading) {
  if (size_ > reading.most_bytes) {
    ThrowTooLargeToCopy(path_, size_,
                        ", " + std::to_string(reading.most_bytes) + " bytes at most");
  }
  void* p =
      mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) ThrowTooLargeToCopy(path_, size_);
  data_ = static_cast<const uint8_t*>(p);
  const std::span<uint8_t> copy(static_cast<uint8_t*>(p), size_);
  for (uint64_t done = 0; done < size_;) {
    const uint64_t piece = std::min(size_ - done, kPiece);
    ReadAt(done, copy.subspan(done, piece), Caching::kAsUsual);
    done += piece;
    if (reading.progress) reading.progress(done, size_);
  }
  if (mprotect(p, size_, PROT_READ) != 0) ThrowOsError(errno, path_);
  CheckUnchanged();  // or the copy may be half of one file and half of another
  is_copy_ = true;
  close(fd_);
  fd_ = -1;
}

void MappedFile::ReadAt(uint64_t offset, std::span<uint8_t> to, Caching caching) const {
  while (!to.empty()) {
    const auto piece = to.first(std::min<uint64_t>(to.size(), kPiece));
    const auto at = static_cast<off_t>(offset);
    const ssize_t got = caching == Caching::kNone
                            ? ReadUncached(fd_, piece, at)
                            : pread(fd_, piece.data(), piece.size(), at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) ThrowOsError(errno, path_);
    if (got == 0) {
      ThrowChanged(path_, std::to_string(offset) + " bytes",
                   std::to_string(size_) + " bytes");
    }
    offset += static_cast<uint64_t>(got);
    to = to.subspan(static_cast<size_t>(got));
  }
}

void MappedFile::Read(std::span<const uint8_t> part, uint8_t* to,
                      Caching caching) const {
  if (is_copy_) {
    std::copy(part.begin(), part.end(), to);
  } else {
    ReadAt(static_cast<uint64_t>(part.data() - data_), {to, part.size()}, caching);
  }
}

Reading MappedFile::Rest(Reading reading) const {
  if (is_copy_) reading.most_bytes -= size_;
  return reading;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
  if (fd_ >= 0) close(fd_);
}

void MappedFile::Forget(std::span<const uint8_t> part) const noexcept {
  if (is_copy_ || part.empty()) return;
  // Whole pages only: the first and the last may hold something else as well.
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(part.data());
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = (begin + part.size()) / page * page;
  if (first < last)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

void MappedFile::CheckUnchanged() const {
  if (is_copy_) return;
  struct stat st;
  if (fstat(fd_, &st) != 0) ThrowOsError(errno, path_);
  const auto size = static_cast<uint64_t>(st.st_size);
  if (size < size_) {
    ThrowChanged(path_, std::to_string(size) + " bytes",
                 std::to_string(size_) + " bytes");
  }
  const timespec now = ModifiedAt(st);
  const bool same = now.tv_sec == modified_.tv_sec && now.tv_nsec == modified_.tv_nsec;
  if (size == size_ && !same) {
    ThrowChanged(path_, "a new modification time", "the one it was opened with");
  }
}

}  // namespace halfbyte
