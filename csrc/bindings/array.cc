// csrc/bindings/array.cc
// SPDX-License-Identifier: Apache-2.0
#include "bindings/array.h"

#include <limits.h>
#include <string.h>

#include <algorithm>
#include <array>
#include <functional>
#include <string>
#include <utility>

#include "base/error.h"

namespace py = pybind11;

namespace halfbyte {
namespace {

std::string ShapeText(const py::array& a) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < a.ndim(); ++i) {
    text += (i ? ", " : "") + std::to_string(a.shape(i));
  }
  return text + (a.ndim() == 1 ? ",)" : ")");
}

[[noreturn]] void WrongShape(const char* name, const std::string& expected,
                             const py::array& a) {
  throw Error(ErrorClass::kShape, std::string(name) + ": expected " + expected +
                                      ", got shape " + ShapeText(a));
}

// NumPy makes arrays whose elements lie between two addresses that C++ may read from.
template <class T>
void CheckElements(const py::array& a, const char* name, const char* expected) {
  if (!py::isinstance<py::array_t<T>>(a)) {
    const std::string got = py::str(a.dtype());
    throw Error(ErrorClass::kDType,
                std::string(name) + ": expected dtype " + expected + ", got " + got);
  }
  if ((a.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0) {
    throw Error(ErrorClass::kShape,
                std::string(name) + ": expected elements aligned to " +
                    std::to_string(alignof(T)) + " bytes; pass a copy");
  }
}

// Rows whose elements lie side by side, and whose distance is a whole number of them.
template <class T>
size_t LeadingDimension(const py::array& a, const char* name) {
  constexpr auto kItem = static_cast<py::ssize_t>(sizeof(T));
  // The strides of an empty array mean nothing: NumPy makes them 0.
  if (a.size() == 0) return static_cast<size_t>(a.shape(1));
  const bool inner = a.shape(1) <= 1 || a.strides(1) == kItem;
  const bool outer =
      a.shape(0) <= 1 || (a.strides(0) >= 0 && a.strides(0) % kItem == 0);
  if (!inner || !outer) WrongShape(name, "rows of contiguous elements", a);
  if (a.shape(0) <= 1) return static_cast<size_t>(a.shape(1));
  return static_cast<size_t>(a.strides(0) / kItem);
}

template <class T>
std::span<const T> AsContiguous(const py::array& a, const char* name) {
  const bool contiguous =
      a.ndim() == 1 && (a.shape(0) <= 1 || a.strides(0) == sizeof(T));
  if (!contiguous) WrongShape(name, "a contiguous vector", a);
  return {static_cast<const T*>(a.data()), static_cast<size_t>(a.shape(0))};
}

template <class T>
Mat<const T> AsMatrixOf(const py::array& a, const char* name, const char* type) {
  CheckElements<T>(a, name, type);
  if (a.ndim() != 2) WrongShape(name, "a matrix", a);
  const size_t ld = LeadingDimension<T>(a, name);
  return {static_cast<const T*>(a.data()), static_cast<size_t>(a.shape(0)),
          static_cast<size_t>(a.shape(1)), ld};
}

// Elements from one item of dimension `dim` to the next; 0 where there is no next.
template <class T>
size_t Distance(const py::array& a, py::ssize_t dim, const char* name) {
  constexpr auto kItem = static_cast<py::ssize_t>(sizeof(T));
  if (a.size() == 0 || a.shape(dim) <= 1) return 0;
  if (a.strides(dim) < 0 || a.strides(dim) % kItem != 0) {
    WrongShape(name, "strides of whole elements, forwards", a);
  }
  return static_cast<size_t>(a.strides(dim) / kItem);
}

template <class T, class Stored>
HeadRows<const T> AsHeadRowsOf(const py::array& a, const char* name, const char* type) {
  CheckElements<Stored>(a, name, type);
  if (a.ndim() != 4) WrongShape(name, "four dimensions", a);
  const auto size = [&](py::ssize_t dim) { return static_cast<size_t>(a.shape(dim)); };
  if (a.size() != 0 && size(3) > 1 && Distance<T>(a, 3, name) != 1) {
    WrongShape(name, "rows of contiguous elements", a);
  }
  return {static_cast<const T*>(a.data()),
          size(0),
          size(1),
          size(2),
          size(3),
          Distance<T>(a, 0, name),
          Distance<T>(a, 1, name),
          Distance<T>(a, 2, name)};
}

bool AreApart(Extent a, Extent b) {
  const std::less<const void*> less;
  return a.begin == a.end || b.begin == b.end || !less(a.begin, b.end) ||
         !less(b.begin, a.end);
}

// Whether no element belongs to two rows: each distance is as long as what it repeats.
template <class T>
bool RowsAreApart(const HeadRows<T>& a) {
  std::array<std::pair<size_t, size_t>, 3> dims = {
      {{a.batch_ld, a.batch}, {a.head_ld, a.heads}, {a.token_ld, a.tokens}}};
  std::sort(dims.begin(), dims.end());
  size_t extent = a.row_len;
  for (const auto& [ld, count] : dims) {
    if (count <= 1) continue;
    if (ld < extent) return false;
    extent += ld * (count - 1);
  }
  return true;
}

// Rows of `a` that may be written.
template <class T>
HeadRows<T> Writable(const HeadRows<const T>& in, py::array& a, const char* name) {
  if (!a.writeable()) {
    throw Error(ErrorClass::kShape, std::string(name) + ": expected a writable array");
  }
  const HeadRows<T> out = in.Over(const_cast<T*>(in.data));
  if (a.size() != 0 && !RowsAreApart(out))
    WrongShape(name, "rows that do not overlap", a);
  return out;
}

template <class T>
Mat<T> ToBeWritten(Mat<const T> m, const py::array& a, const char* name, size_t rows,
                   size_t cols) {
  if (m.rows != rows || m.cols != cols) {
    WrongShape(name, "(" + std::to_string(rows) + ", " + std::to_string(cols) + ")", a);
  }
  if (!a.writeable()) {
    throw Error(ErrorClass::kShape, std::string(name) + ": expected a writable array");
  }
  if (m.rows > 1 && m.ld < m.cols) WrongShape(name, "rows that do not overlap", a);
  return {const_cast<T*>(m.data), m.rows, m.cols, m.ld};
}

}  // namespace

Mat<const float> AsMatrix(const py::array& a, const char* name) {
  return AsMatrixOf<float>(a, name, "float32");
}

Mat<float> AsOutMatrix(py::array& a, const char* name, size_t rows, size_t cols) {
  return ToBeWritten(AsMatrix(a, name), a, name, rows, cols);
}

Mat<const int8_t> AsCodes(const py::array& a, const char* name) {
  return AsMatrixOf<int8_t>(a, name, "int8");
}

Mat<int8_t> AsOutCodes(py::array& a, const char* name, size_t rows, size_t cols) {
  return ToBeWritten(AsCodes(a, name), a, name, rows, cols);
}

Mat<const uint16_t> AsHalves(const py::array& a, const char* name) {
  return AsMatrixOf<uint16_t>(a, name, "uint16");
}

std::span<const float> AsVector(const py::array& a, const char* name, size_t want) {
  CheckElements<float>(a, name, "float32");
  const std::span<const float> v = AsContiguous<float>(a, name);
  if (v.size() != want) WrongShape(name, "(" + std::to_string(want) + ",)", a);
  return v;
}

std::span<const uint8_t> AsBytes(const py::array& a, const char* name) {
  CheckElements<uint8_t>(a, name, "uint8");
  return AsContiguous<uint8_t>(a, name);
}

std::vector<int32_t> AsIds(const py::array& a, const char* name, size_t below) {
  CheckElements<int64_t>(a, name, "int64");
  std::vector<int32_t> ids;
  for (const int64_t id : AsContiguous<int64_t>(a, name)) {
    if (id < 0 || static_cast<uint64_t>(id) >= below) {
      ErrorInfo info;
      info.code = "TOK_ID_RANGE";
      info.subject = name;
      info.field = "position " + std::to_string(ids.size());
      info.found = std::to_string(id);
      info.expected = "0 to " + std::to_string(below) + ", exclusive";
      throw Error(ErrorClass::kValue, std::move(info));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

HeadRows<const float> AsHeadRows(const py::array& a, const char* name) {
  return AsHeadRowsOf<float, float>(a, name, "float32");
}

HeadRows<const int8_t> AsHeadCodes(const py::array& a, const char* name) {
  return AsHeadRowsOf<int8_t, int8_t>(a, name, "int8");
}

HeadRows<float> AsOutHeadRows(py::array& a, const char* name) {
  return Writable(AsHeadRows(a, name), a, name);
}

HeadRows<int8_t> AsOutHeadCodes(py::array& a, const char* name) {
  return Writable(AsHeadCodes(a, name), a, name);
}

HeadRows<const uint8_t> AsMask(const py::array& a, const char* name) {
  return AsHeadRowsOf<uint8_t, bool>(a, name, "bool");
}

namespace {

// Null if it is no ordinary array with `cols` in its last dimension.
template <class T>
const py::array* AsOrdinary(const py::object& object, size_t cols) {
  constexpr int kFlags = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ |
                         py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  // Not a subclass: those of masked arrays mean something else.
  if (Py_TYPE(object.ptr()) != py::detail::npy_api::get().PyArray_Type_) return nullptr;
  const auto* a = static_cast<const py::array*>(&object);
  const py::ssize_t dims = a->ndim();
  const bool fits = dims != 0 && static_cast<size_t>(a->shape(dims - 1)) == cols &&
                    a->size() != 0 && (a->flags() & kFlags) == kFlags &&
                    a->dtype().is(py::dtype::of<T>());
  return fits ? a : nullptr;
}

template <class T>
Mat<const T> RowsOf(const py::array& a, size_t cols) {
  return {static_cast<const T*>(a.data()), static_cast<size_t>(a.size()) / cols, cols};
}

}  // namespace

template <class T>
std::optional<OrdinaryRows<T>> AsOrdinaryRows(const py::object& x, size_t K,
                                              const py::object& out, size_t N) {
  const py::array* in = AsOrdinary<T>(x, K);
  if (in == nullptr) return std::nullopt;
  const py::ssize_t dims = in->ndim();
  py::object result = out;
  if (out.is_none()) {
    std::vector<py::ssize_t> shape(in->shape(), in->shape() + dims);
    shape.back() = static_cast<py::ssize_t>(N);
    result = py::array_t<T>(std::move(shape));
  }
  const py::array* to = AsOrdinary<T>(result, N);
  if (to == nullptr || !to->writeable() || to->ndim() != dims ||
      !std::equal(in->shape(), in->shape() + dims - 1, to->shape())) {
    return std::nullopt;
  }
  const Mat<const T> xm = RowsOf<T>(*in, K), ym = RowsOf<T>(*to, N);
  if (!AreApart(ExtentOf(xm), ExtentOf(ym))) return std::nullopt;
  Mat<T> y(const_cast<T*>(ym.data), ym.rows, N);
  return OrdinaryRows<T>{xm, y, py::reinterpret_borrow<py::array_t<T>>(result)};
}

template std::optional<OrdinaryRows<float>> AsOrdinaryRows(const py::object&, size_t,
                                                           const py::object&, size_t);
template std::optional<OrdinaryRows<int8_t>> AsOrdinaryRows(const py::object&, size_t,
                                                            const py::object&, size_t);

void CheckApart(Extent out, Extent in, const char* name) {
  if (!AreApart(out, in)) {
    throw Error(ErrorClass::kShape,
                std::string("out: overlaps ") + name + " in memory");
  }
}

namespace {

// Columns of one buffer, whose rows are equally far apart: no row of one begins or ends
// within a row of the other.
bool AreColumnsApart(Mat<const float> a, Mat<const float> b) {
  if (a.rows < 2 || b.rows < 2 || a.ld != b.ld || a.ld == 0) return false;
  const auto ld = static_cast<intptr_t>(a.ld * sizeof(float));
  const auto from_a =
      reinterpret_cast<intptr_t>(b.data) - reinterpret_cast<intptr_t>(a.data);
  const auto at = static_cast<size_t>((from_a % ld + ld) % ld);
  return at >= a.cols * sizeof(float) &&
         at + b.cols * sizeof(float) <= static_cast<size_t>(ld);
}

}  // namespace

void CheckApartOrSame(Mat<const float> out, Mat<const float> in, const char* name) {
  const bool same = out.data == in.data && (out.ld == in.ld || out.rows <= 1);
  if (!same && !AreColumnsApart(out, in)) CheckApart(out, in, name);
}

py::array_t<uint8_t> ArrayOf(PageBuffer pages) {
  const auto num_bytes = static_cast<py::ssize_t>(pages.bytes());
  const uint8_t* data = pages.data();
  return py::array_t<uint8_t>(num_bytes, data,
                              OwnerOf(std::make_unique<PageBuffer>(std::move(pages))));
}

// ---- DLPack, as its specification lays it out (version 1; the old form is a prefix).

namespace {

struct DLDevice {
  int32_t device_type, device_id;
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor*);
};
struct DLManagedTensorVersioned {
  uint32_t major, minor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensorVersioned*);
  uint64_t flags;
  DLTensor tensor;
};

constexpr int32_t kCpu = 1;
constexpr uint8_t kSigned = 0, kFloat = 2, kBfloat = 4;

const char* NumpyType(const DLDataType& t) {
  if (t.lanes != 1) return nullptr;
  if (t.code == kFloat && t.bits == 32) return "float32";
  if (t.code == kFloat && t.bits == 16) return "float16";
  if (t.code == kBfloat && t.bits == 16) return "uint16";
  if (t.code == kSigned && t.bits == 64) return "int64";
  if (t.code == kSigned && t.bits == 32) return "int32";
  if (t.code == kFloat && t.bits == 64) return "float64";  // to be refused by its name
  return nullptr;
}

py::tuple ToArray(const DLTensor& t, const py::capsule& owner, bool read_only) {
  const char* type = NumpyType(t.dtype);
  if (t.device.device_type != kCpu || type == nullptr) {
    throw Error(
        ErrorClass::kDType,
        "expected float32, float16 or bfloat16 in CPU memory, got DLPack's type "
        "code " +
            std::to_string(t.dtype.code) + " of " + std::to_string(t.dtype.bits) +
            " bits on device " + std::to_string(t.device.device_type));
  }
  const py::dtype dtype(type);
  std::vector<py::ssize_t> shape(t.shape, t.shape + t.ndim), strides;
  if (t.strides != nullptr) {
    for (int32_t i = 0; i < t.ndim; ++i)
      strides.push_back(t.strides[i] * dtype.itemsize());
  }
  auto* data = static_cast<uint8_t*>(t.data) + t.byte_offset;
  py::array array(dtype, std::move(shape), std::move(strides), data, owner);
  if (read_only) array.attr("setflags")(py::arg("write") = false);
  return py::make_tuple(array, t.dtype.code == kBfloat);
}

// Takes the tensor out of `capsule`, as a consumer must, and frees it with the array.
template <class Managed>
py::tuple Consume(const py::capsule& capsule, const char* used_name, bool read_only) {
  auto* managed = capsule.get_pointer<Managed>();
  const py::capsule owner(managed, [](void* p) {
    auto* m = static_cast<Managed*>(p);
    if (m->deleter != nullptr) m->deleter(m);
  });
  PyCapsule_SetName(capsule.ptr(), used_name);
  return ToArray(managed->tensor, owner, read_only);
}

}  // namespace

py::tuple FromDLPack(const py::capsule& capsule) {
  const char* name = capsule.name();
  if (name != nullptr && strcmp(name, "dltensor_versioned") == 0) {
    const auto* managed = capsule.get_pointer<DLManagedTensorVersioned>();
    if (managed->major != 1) {
      throw Error(ErrorClass::kDType, "dlpack: expected major version 1, got " +
                                          std::to_string(managed->major));
    }
    const bool read_only = (managed->flags & 1) != 0;
    return Consume<DLManagedTensorVersioned>(capsule, "used_dltensor_versioned",
                                             read_only);
  }
  if (name == nullptr || strcmp(name, "dltensor") != 0) {
    throw Error(ErrorClass::kDType, "dlpack: expected a capsule not used before");
  }
  return Consume<DLManagedTensor>(capsule, "used_dltensor", false);
}

}  // namespace halfbyte
