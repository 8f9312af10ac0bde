// tests/cpp/guarded.h
// Buffers between two inaccessible pages: one byte read or written outside ends the
// test with SIGSEGV.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_TEST_GUARDED_H_
#define HALFBYTE_TEST_GUARDED_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <span>
#include <stdexcept>
#include <type_traits>

namespace halfbyte {

// Which inaccessible page the buffer touches. A buffer shorter than a page leaves room
// at the other side, so tests run with both.
enum class Guard { kAfter, kBefore };
inline constexpr Guard kGuards[] = {Guard::kAfter, Guard::kBefore};

// `len` elements of T against a guard page. `skew` bytes are left between the buffer
// and that page, for misaligned pointers: whatever is in them must survive (Intact()).
template <class T>
class Guarded {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit Guarded(size_t len, Guard guard = Guard::kAfter, size_t skew = 0)
      : len_(len) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = len * sizeof(T) + skew;
    body_bytes_ = (bytes + page - 1) / page * page;
    if (body_bytes_ == 0) body_bytes_ = page;
    map_bytes_ = body_bytes_ + 2 * page;
    void* map =
        mmap(nullptr, map_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::runtime_error("mmap");
    map_ = static_cast<uint8_t*>(map);
    body_ = map_ + page;
    if (mprotect(body_, body_bytes_, PROT_READ | PROT_WRITE) != 0) {
      throw std::runtime_error("mprotect");
    }
    memset(body_, kFill, body_bytes_);
    bytes_ = guard == Guard::kAfter ? body_ + body_bytes_ - bytes : body_ + skew;
  }

  template <class Range>
  Guarded(const Range& from, Guard guard,
          size_t skew = 0) requires(!std::is_integral_v<Range>)
      : Guarded(from.size(), guard, skew) {
    if (len_ != 0) memcpy(bytes_, from.data(), len_ * sizeof(T));
  }

  ~Guarded() { munmap(map_, map_bytes_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  // Misaligned if `skew` is no multiple of T: kernels get the pointer, tests use At and
  // Set.
  T* data() { return reinterpret_cast<T*>(bytes_); }
  size_t size() const { return len_; }

  T At(size_t i) const {
    T value;
    memcpy(&value, bytes_ + i * sizeof(T), sizeof(T));
    return value;
  }
  void Set(size_t i, T value) { memcpy(bytes_ + i * sizeof(T), &value, sizeof(T)); }

  // Nothing was written in the accessible bytes around the buffer.
  bool Intact() const {
    for (size_t i = 0; i < body_bytes_; ++i) {
      const uint8_t* p = body_ + i;
      const bool inside = p >= bytes_ && p < bytes_ + len_ * sizeof(T);
      if (!inside && *p != kFill) return false;
    }
    return true;
  }

 private:
  static constexpr uint8_t kFill = 0xA5;

  size_t len_;
  size_t body_bytes_ = 0, map_bytes_ = 0;
  uint8_t* map_ = nullptr;
  uint8_t* body_ = nullptr;   // the accessible pages
  uint8_t* bytes_ = nullptr;  // the buffer
};

}  // namespace halfbyte
#endif  // HALFBYTE_TEST_GUARDED_H_
