// csrc/base/view.h
// Borrowed memory with its shape. A vector is a std::span.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_BASE_VIEW_H_
#define HALFBYTE_BASE_VIEW_H_

#include <stddef.h>

#include <type_traits>

namespace halfbyte {

// Row-major; never owns.
template <class T>
struct Mat {
  T* data = nullptr;
  size_t rows = 0, cols = 0;
  size_t ld = 0;  // elements from one row to the next

  Mat() = default;
  Mat(T* d, size_t r, size_t c) : data(d), rows(r), cols(c), ld(c) {}
  Mat(T* d, size_t r, size_t c, size_t l) : data(d), rows(r), cols(c), ld(l) {}

  T* Row(size_t r) const { return data + r * ld; }
  // Rows [begin, begin + count).
  Mat Slice(size_t begin, size_t count) const {
    return Mat(data + begin * ld, count, cols, ld);
  }
  // NOLINTNEXTLINE(google-explicit-constructor): a view may always be read
  operator Mat<const T>() const requires(!std::is_const_v<T>) {
    return Mat<const T>(data, rows, cols, ld);
  }
};

// [batch, heads, tokens, row_len] anywhere in memory: only the elements of a row lie
// side by side. Never owns. A distance of 0 repeats what is there.
template <class T>
struct HeadRows {
  T* data = nullptr;
  size_t batch = 0, heads = 0, tokens = 0, row_len = 0;
  size_t batch_ld = 0, head_ld = 0, token_ld = 0;  // elements from one to the next

  T* Row(size_t b, size_t h, size_t t) const {
    return data + b * batch_ld + h * head_ld + t * token_ld;
  }
  bool HasShape(size_t b, size_t h, size_t t, size_t len) const {
    return batch == b && heads == h && tokens == t && row_len == len;
  }
  // The same sizes and distances, of elements from `d` on.
  template <class U>
  HeadRows<U> Over(U* d) const {
    return {d, batch, heads, tokens, row_len, batch_ld, head_ld, token_ld};
  }
  // NOLINTNEXTLINE(google-explicit-constructor): a view may always be read
  operator HeadRows<const T>() const requires(!std::is_const_v<T>) {
    return Over<const T>(data);
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_BASE_VIEW_H_
