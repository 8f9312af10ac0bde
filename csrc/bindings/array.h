// csrc/bindings/array.h
// NumPy arrays as views. Every message names the argument, what came and what was
// wanted. Nothing is cast or copied unasked: that is for the Python side to do.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_BINDINGS_ARRAY_H_
#define HALFBYTE_BINDINGS_ARRAY_H_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/view.h"
#include "runtime/pages.h"

namespace halfbyte {

// A float32 matrix whose rows are contiguous; rows may be any distance apart.
Mat<const float> AsMatrix(const pybind11::array& a, const char* name);
// The same to be written: writable, rows not overlapping one another.
Mat<float> AsOutMatrix(pybind11::array& a, const char* name, size_t rows, size_t cols);
// The same two of int8 codes.
Mat<const int8_t> AsCodes(const pybind11::array& a, const char* name);
Mat<int8_t> AsOutCodes(pybind11::array& a, const char* name, size_t rows, size_t cols);
// Of bits of 16-bit floats.
Mat<const uint16_t> AsHalves(const pybind11::array& a, const char* name);
// A contiguous float32 vector of `want` elements.
std::span<const float> AsVector(const pybind11::array& a, const char* name,
                                size_t want);
// Four dimensions, of which only the last has to be contiguous: float32, int8, the same
// two to be written, and bool.
HeadRows<const float> AsHeadRows(const pybind11::array& a, const char* name);
HeadRows<const int8_t> AsHeadCodes(const pybind11::array& a, const char* name);
HeadRows<float> AsOutHeadRows(pybind11::array& a, const char* name);
HeadRows<int8_t> AsOutHeadCodes(pybind11::array& a, const char* name);
HeadRows<const uint8_t> AsMask(const pybind11::array& a, const char* name);
// A contiguous array of bytes.
std::span<const uint8_t> AsBytes(const pybind11::array& a, const char* name);
// A contiguous int64 vector, copied: callers may change theirs meanwhile.
std::vector<int32_t> AsIds(const pybind11::array& a, const char* name, size_t below);

// Input and output of a product, where both are ordinary: numpy.ndarray itself, of T,
// in one piece, apart in memory, no dimension 0, the output like the input but for its
// last dimension. `out` is made if it is None. Nothing if anything is otherwise: the
// other functions of this file are slower and say what it is. T is float or int8_t.
template <class T>
struct OrdinaryRows {
  Mat<const T> x;
  Mat<T> y;
  pybind11::array_t<T> out;
};
template <class T>
std::optional<OrdinaryRows<T>> AsOrdinaryRows(const pybind11::object& x, size_t K,
                                              const pybind11::object& out, size_t N);

// The memory of a view, from its first element to one past its last.
struct Extent {
  const void *begin, *end;
};
template <class T>
Extent ExtentOf(Mat<T> a) {
  return {a.data, a.rows * a.cols == 0 ? a.data : a.Row(a.rows - 1) + a.cols};
}
template <class T>
Extent ExtentOf(const HeadRows<T>& a) {
  if (a.batch * a.heads * a.tokens * a.row_len == 0) return {a.data, a.data};
  return {a.data, a.Row(a.batch - 1, a.heads - 1, a.tokens - 1) + a.row_len};
}
template <class T>
Extent ExtentOf(std::span<T> a) {
  return {a.data(), a.data() + a.size()};
}

// Refuses an output that shares memory with the input `name`; the last allows both to
// be the same rows: in place is fine, half in place is not.
void CheckApart(Extent out, Extent in, const char* name);
template <class Out, class In>
void CheckApart(const Out& out, const In& in, const char* name) {
  CheckApart(ExtentOf(out), ExtentOf(in), name);
}
void CheckApartOrSame(Mat<const float> out, Mat<const float> in, const char* name);

// What an array over memory of `held` keeps, which is deleted with it.
template <class T>
pybind11::capsule OwnerOf(std::unique_ptr<T> held) {
  pybind11::capsule owner(held.get(), [](void* p) { delete static_cast<T*>(p); });
  held.release();
  return owner;
}
// Pages as bytes.
pybind11::array_t<uint8_t> ArrayOf(PageBuffer pages);

// Reads a DLPack capsule of CPU memory: an array that keeps the producer alive.
// bfloat16 comes as uint16; the second item says so.
pybind11::tuple FromDLPack(const pybind11::capsule& capsule);

}  // namespace halfbyte
#endif  // HALFBYTE_BINDINGS_ARRAY_H_
