// csrc/bindings/bind_weight.cc
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/array.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "formats/named.h"
#include "kernels/format_kernels.h"
#include "kernels/search.h"
#include "ops/cast.h"
#include "ops/lattice.h"
#include "ops/linear.h"
#include "ops/quantize.h"
#include "ops/rowwise.h"
#include "runtime/pages.h"

namespace py = pybind11;

namespace halfbyte {
namespace {

const FormatInfo& FormatNamed(std::string_view name) {
  if (const FormatInfo* info = FindFormatNamed(name)) return *info;
  std::string known;
  for (const FormatInfo& info : kFormats) {
    known += known.empty() ? "" : ", ";
    known += info.stem;
  }
  throw Error(ErrorClass::kValue,
              "format: found '" + Escape(name) + "'; expected one of " + known);
}

ActivationMode ModeNamed(std::string_view name) {
  if (name == "auto") return ActivationMode::kAuto;
  if (name == "f32") return ActivationMode::kF32;
  throw Error(ErrorClass::kValue,
              "activations: found '" + Escape(name) + "'; expected auto or f32");
}

// A weight as products take it, checked once, and the arrays that it lies in.
struct Weight {
  WeightView view;
  py::array data;
  py::object scales, panels;
};

void Check(const FormatInfo& info, size_t N, size_t K, size_t num_bytes) {
  if (K % info.block_len != 0) {
    throw Error(ErrorClass::kShape, "w: expected K a multiple of " +
                                        std::to_string(info.block_len) + " for " +
                                        info.stem + ", got " + std::to_string(K));
  }
  size_t row_bytes = 0, want = 0;
  if (__builtin_mul_overflow(K / info.block_len, info.block_bytes, &row_bytes) ||
      __builtin_mul_overflow(N, row_bytes, &want) || want != num_bytes) {
    throw Error(ErrorClass::kShape, "w: expected " + std::to_string(N) + " rows of " +
                                        std::to_string(K) + " weights, got " +
                                        std::to_string(num_bytes) + " bytes");
  }
}

// Null where products read the data as it is.
const uint8_t* AsPanels(const py::object& panels, const WeightView& w) {
  const std::span<const uint8_t> bytes = AsBytes(panels.cast<py::array>(), "panels");
  if (bytes.empty() && w.packed_bytes() == 0) return nullptr;
  if (bytes.size() != w.packed_bytes() ||
      reinterpret_cast<uintptr_t>(bytes.data()) % 64 != 0) {
    throw Error(ErrorClass::kShape, "panels: expected those of w, aligned to 64 bytes");
  }
  return bytes.data();
}

Weight MakeWeight(py::array data, const std::string& format, size_t N, size_t K,
                  py::object scales, py::object panels, float x_step, float y_step) {
  const FormatInfo& info = FormatNamed(format);
  const std::span<const uint8_t> bytes = AsBytes(data, "w");
  Check(info, N, K, bytes.size());
  WeightView w = {.format = info.format, .N = N, .K = K, .data = bytes.data()};
  if (!scales.is_none()) {
    w.row_scale = AsVector(scales.cast<py::array>(), "scales", N).data();
  }
  if (!panels.is_none()) w.panels = AsPanels(panels, w);
  w.x_step = x_step;
  w.y_step = y_step;
  return {w, std::move(data), std::move(scales), std::move(panels)};
}

py::array_t<uint8_t> MakePanels(const Weight& w, size_t threads) {
  const Context context = MakeContext(threads);
  PageBuffer pages;
  {
    const GilRelease nogil;
    pages = PageBuffer(w.view.packed_bytes());
    if (pages.bytes() != 0) PackPanels(context, w.view, pages.data());
  }
  return ArrayOf(std::move(pages));
}

// Others may be reading the weight.
void CheckApartFrom(const WeightView& w, Extent out) {
  CheckApart(out, {w.data, w.data + w.bytes()}, "w");
  if (w.row_scale != nullptr)
    CheckApart(out, {w.row_scale, w.row_scale + w.N}, "scales");
}

// y = x w^T + bias, f32 throughout.
void Multiply(const Context& context, Mat<const float> x, const WeightView& w,
              std::span<const float> bias, ActivationMode mode, Mat<float> y) {
  LinearInput in(context, x, mode);
  Linear(in, w, y);
  if (!bias.empty()) AddRows(context, {bias.data(), y.rows, w.N, 0}, y);
}

void LinearOf(const Weight& self, const py::array& x, const py::object& bias,
              py::array& out, const std::string& activations, size_t threads) {
  const WeightView& w = self.view;
  const Mat<const float> xm = AsMatrix(x, "x");
  const Mat<float> y = AsOutMatrix(out, "out", xm.rows, w.N);
  CheckApart(y, xm, "x");
  CheckApartFrom(self.view, ExtentOf(y));
  const ActivationMode mode = ModeNamed(activations);
  std::span<const float> b;
  if (!bias.is_none()) b = AsVector(bias.cast<py::array>(), "bias", w.N);
  CheckApart(y, b, "bias");
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  Multiply(context, xm, w, b, mode, y);
}

// The product without a bias of what most callers have, at once: `out` or a new array.
// Nothing if x or out is anything else than an ordinary array.
std::optional<py::array_t<float>> LinearAtOnce(const Weight& self, const py::object& x,
                                               const py::object& out, size_t threads) {
  const WeightView& w = self.view;
  auto rows = AsOrdinaryRows<float>(x, w.K, out, w.N);
  if (!rows) return std::nullopt;
  CheckApartFrom(self.view, ExtentOf(rows->y));
  const Context context = MakeContext(threads);
  {
    const GilRelease nogil;
    Multiply(context, rows->x, w, {}, ActivationMode::kAuto, rows->y);
  }
  return std::move(rows->out);
}

// Addresses in place of arrays: `rows` rows of `type` (f32, f16, bf16), x_ld elements
// apart, into rows without gaps. `bias` is f32 or 0. Whoever calls has checked all but
// the alignment: tensors may begin anywhere in a buffer of bytes.
void LinearAt(const Weight& self, uintptr_t x, const std::string& type, size_t rows,
              size_t x_ld, uintptr_t bias, uintptr_t out,
              const std::string& activations, size_t threads) {
  const WeightView& w = self.view;
  const Format format = FormatNamed(type).format;
  const ActivationMode mode = ModeNamed(activations);
  const std::span<const float> b(reinterpret_cast<const float*>(bias),
                                 bias == 0 ? 0 : w.N);
  Require(x % (format == Format::kF32 ? alignof(float) : alignof(uint16_t)) == 0,
          "x: expected elements aligned to their size; pass a copy");
  Require(bias % alignof(float) == 0,
          "bias: expected elements aligned to 4 bytes; pass a copy");
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  if (format == Format::kF32) {
    const Mat<const float> xm(reinterpret_cast<const float*>(x), rows, w.K, x_ld);
    return Multiply(context, xm, w, b, mode,
                    {reinterpret_cast<float*>(out), rows, w.N});
  }
  const auto memory = std::make_unique_for_overwrite<float[]>(rows * (w.K + w.N));
  const Mat<float> xm(memory.get(), rows, w.K), y(xm.Row(rows), rows, w.N);
  Widen(context, {reinterpret_cast<const uint16_t*>(x), rows, w.K, x_ld}, format, xm);
  Multiply(context, xm, w, b, mode, y);
  Narrow(context, y, format, {reinterpret_cast<uint16_t*>(out), rows, w.N});
}

std::optional<py::array_t<int8_t>> LinearCodesAtOnce(const Weight& self,
                                                     const py::object& x, float x_step,
                                                     float y_step,
                                                     const py::object& out,
                                                     size_t threads) {
  auto rows = AsOrdinaryRows<int8_t>(x, self.view.K, out, self.view.N);
  if (!rows) return std::nullopt;
  CheckApartFrom(self.view, ExtentOf(rows->y));
  const Context context = MakeContext(threads);
  {
    const GilRelease nogil;
    LinearCodes(context, rows->x, x_step, self.view, y_step, rows->y);
  }
  return std::move(rows->out);
}

void LinearCodesOf(const Weight& self, const py::array& x, float x_step, float y_step,
                   py::array& out, size_t threads) {
  const Mat<const int8_t> xm = AsCodes(x, "x");
  const Mat<int8_t> y = AsOutCodes(out, "out", xm.rows, self.view.N);
  CheckApart(y, xm, "x");
  CheckApartFrom(self.view, ExtentOf(y));
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  LinearCodes(context, xm, x_step, self.view, y_step, y);
}

// For benchmarks: products with many matrices that lie on top of each other, as a model
// runs them, without a call from Python for each. Calls f(matrix, its rows of `out`)
// for matrices [begin, begin + count) of out.cols rows; `out` is used from the top
// again when it is full.
template <class T, class F>
void ForEachMatrix(const WeightView& stack, size_t M, Mat<T> out, size_t begin,
                   size_t count, const F& f) {
  const size_t N = out.cols, room = M == 0 ? 0 : out.rows / M;
  Require(N != 0 && room != 0, "out: no room for a product");
  Require(begin <= stack.N / N && count <= stack.N / N - begin, "count: too many");
  for (size_t i = 0; i < count; ++i) {
    f(stack.Rows((begin + i) * N, N), out.Slice(i % room * M, M));
  }
}

size_t Size(const py::array& a, py::ssize_t axis) {
  return a.ndim() == 2 ? static_cast<size_t>(a.shape(axis)) : 0;
}

void LinearEach(const Weight& self, const py::array& x, py::array& out, size_t begin,
                size_t count, size_t threads) {
  const Mat<const float> xm = AsMatrix(x, "x");
  const Mat<float> y = AsOutMatrix(out, "out", Size(out, 0), Size(out, 1));
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  ForEachMatrix(self.view, xm.rows, y, begin, count,
                [&](const WeightView& w, Mat<float> part) {
                  Multiply(context, xm, w, {}, ActivationMode::kAuto, part);
                });
}

void LinearCodesEach(const Weight& self, const py::array& x, float x_step, float y_step,
                     py::array& out, size_t begin, size_t count, size_t threads) {
  const Mat<const int8_t> xm = AsCodes(x, "x");
  const Mat<int8_t> y = AsOutCodes(out, "out", Size(out, 0), Size(out, 1));
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  ForEachMatrix(self.view, xm.rows, y, begin, count,
                [&](const WeightView& w, Mat<int8_t> part) {
                  LinearCodes(context, xm, x_step, w, y_step, part);
                });
}

void RowsOf(const Weight& self, const py::array& ids, py::array& out, size_t threads) {
  const WeightView& w = self.view;
  Require(w.N <= INT32_MAX, "w: more rows than a 32-bit id can name");
  const std::vector<int32_t> rows = AsIds(ids, "ids", w.N);
  const Mat<float> y = AsOutMatrix(out, "out", rows.size(), w.K);
  CheckApartFrom(self.view, ExtentOf(y));
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  EmbeddingRows(context, w, rows, y);
}

py::list Formats() {
  py::list formats;
  for (const FormatInfo& info : kFormats) {
    const FormatKernels& kernels = KernelsFor(info.format);
    const bool writable =
        kernels.encode_row_ref != nullptr || kernels.encode_row_scaled_ref != nullptr;
    formats.append(py::make_tuple(info.stem, static_cast<uint32_t>(info.format),
                                  info.block_len, info.block_bytes, writable,
                                  HasRowScale(info.format), HasSearch(info.format)));
  }
  return formats;
}

Quantizer QuantizerNamed(std::string_view name) {
  if (name == "rtn") return Quantizer::kOrdinary;
  if (name == "mse" || name == "imatrix") return Quantizer::kSearch;
  throw Error(ErrorClass::kValue,
              "quantizer: expected rtn, mse or imatrix, got '" + Escape(name) + "'");
}

// Bytes for N rows of K weights, and scales if the format has one a row.
std::pair<py::array_t<uint8_t>, py::array_t<float>> NewRows(Format format, size_t N,
                                                            size_t K) {
  return {py::array_t<uint8_t>(static_cast<py::ssize_t>(N * RowBytes(format, K))),
          py::array_t<float>(static_cast<py::ssize_t>(HasRowScale(format) ? N : 0))};
}

std::span<float> AsSpan(py::array_t<float>& a) {
  return {a.mutable_data(), static_cast<size_t>(a.size())};
}

py::tuple QuantizeRows(const py::array& x, const std::string& format,
                       const std::string& quantizer, const py::object& importance,
                       size_t threads) {
  const Mat<const float> xm = AsMatrix(x, "x");
  const Format to = FormatNamed(format).format;
  const Quantizer how = QuantizerNamed(quantizer);
  std::span<const float> factors;
  if (!importance.is_none()) {
    factors = AsVector(importance.cast<py::array>(), "importance", xm.cols);
  }
  auto [w, scales] = NewRows(to, xm.rows, xm.cols);
  uint8_t* data = w.mutable_data();
  const std::span<float> scale = AsSpan(scales);
  const Context context = MakeContext(threads);
  {
    const GilRelease nogil;
    Quantize(context, xm, to, how, factors, data, scale);
  }
  return py::make_tuple(w, scales);
}

// Blocks of bf16 weights, the scales of rows, and what each group turned out to be.
py::tuple RecoverRows(const py::array& bits, const std::string& format,
                      size_t threads) {
  const Mat<const uint16_t> w = AsHalves(bits, "bits");
  const Format to = FormatNamed(format).format;
  const size_t groups = w.cols / LatticeGroup(to, w.cols);
  auto [blocks, scales] = NewRows(to, w.rows, w.cols);
  py::array_t<uint8_t> found({w.rows, groups});
  uint8_t* data = blocks.mutable_data();
  const std::span<float> scale = AsSpan(scales);
  const Mat<OnLattice> kinds(reinterpret_cast<OnLattice*>(found.mutable_data()), w.rows,
                             groups);
  const Context context = MakeContext(threads);
  {
    const GilRelease nogil;
    RecoverLattice(context, w, to, data, scale, kinds);
  }
  return py::make_tuple(blocks, scales, found);
}

// Q4_0 blocks of rows of K weights, repaired, and what was done with each.
py::tuple RepairRows(const py::array& blocks, size_t K, size_t threads) {
  const std::span<const uint8_t> from = AsBytes(blocks, "blocks");
  const size_t row_bytes = RowBytes(Format::kQ4_0, K);
  Check(InfoOf(Format::kQ4_0), row_bytes == 0 ? 0 : from.size() / row_bytes, K,
        from.size());
  py::array_t<uint8_t> repaired(static_cast<py::ssize_t>(from.size()));
  py::array_t<uint8_t> done({row_bytes == 0 ? 0 : from.size() / row_bytes, K / 32});
  uint8_t* to = repaired.mutable_data();
  const Mat<Repair> kinds(reinterpret_cast<Repair*>(done.mutable_data()),
                          static_cast<size_t>(done.shape(0)), K / 32);
  const Context context = MakeContext(threads);
  {
    const GilRelease nogil;
    RepairLattice(context, from.data(), to, kinds);
  }
  return py::make_tuple(repaired, done);
}

}  // namespace

void RegisterWeight(py::module_& m) {
  m.def("formats", &Formats);
  m.def("quantize", &QuantizeRows, py::arg("x"), py::arg("format"),
        py::arg("quantizer"), py::arg("importance"), py::arg("threads"));
  m.def("recover_lattice", &RecoverRows, py::arg("bits"), py::arg("format"),
        py::arg("threads"));
  m.def("repair_lattice", &RepairRows, py::arg("blocks"), py::arg("k"),
        py::arg("threads"));
  py::class_<Weight>(m, "Weight")
      .def(py::init(&MakeWeight), py::arg("data"), py::arg("format"), py::arg("n"),
           py::arg("k"), py::arg("scales"), py::arg("panels"), py::arg("x_step"),
           py::arg("y_step"))
      .def_property_readonly("packed_bytes",
                             [](const Weight& w) { return w.view.packed_bytes(); })
      .def("panels", &MakePanels, py::arg("threads"))
      .def("linear", &LinearOf, py::arg("x"), py::arg("bias"), py::arg("out"),
           py::arg("activations"), py::arg("threads"))
      .def("linear_at_once", &LinearAtOnce, py::arg("x"), py::arg("out"),
           py::arg("threads"))
      .def("linear_at", &LinearAt, py::arg("x"), py::arg("type"), py::arg("rows"),
           py::arg("x_ld"), py::arg("bias"), py::arg("out"), py::arg("activations"),
           py::arg("threads"))
      .def("linear_codes_at_once", &LinearCodesAtOnce, py::arg("x"), py::arg("x_step"),
           py::arg("y_step"), py::arg("out"), py::arg("threads"))
      .def("linear_codes", &LinearCodesOf, py::arg("x"), py::arg("x_step"),
           py::arg("y_step"), py::arg("out"), py::arg("threads"))
      .def("linear_each", &LinearEach, py::arg("x"), py::arg("out"), py::arg("begin"),
           py::arg("count"), py::arg("threads"))
      .def("linear_codes_each", &LinearCodesEach, py::arg("x"), py::arg("x_step"),
           py::arg("y_step"), py::arg("out"), py::arg("begin"), py::arg("count"),
           py::arg("threads"))
      .def("rows", &RowsOf, py::arg("ids"), py::arg("out"), py::arg("threads"));
}

}  // namespace halfbyte
