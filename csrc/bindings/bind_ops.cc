// csrc/bindings/bind_ops.cc
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <string.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "base/error.h"
#include "bindings/array.h"
#include "bindings/bindings.h"
#include "kernels/format_kernels.h"
#include "ops/linear.h"
#include "ops/onednn.h"
#include "ops/rows.h"
#include "ops/rowwise.h"
#include "runtime/pages.h"

namespace py = pybind11;

namespace halfbyte {
namespace {

// Up to here the angle of a position keeps its precision.
constexpr size_t kMaxPosition = size_t{1} << 24;

const FormatInfo& FormatNamed(std::string_view name) {
  std::string known;
  for (const FormatInfo& info : kFormats) {
    if (name == info.stem) return info;
    known += (known.empty() ? "" : ", ") + std::string(info.stem);
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

bool HasRowScale(Format format) {
  return KernelsFor(format).linear_channels != nullptr;
}

// The view of N rows of K weights in `data`, after checking that they are there.
WeightView AsWeight(const py::array& data, const std::string& format, size_t N,
                    size_t K, const py::object& scales) {
  const FormatInfo& info = FormatNamed(format);
  const std::span<const uint8_t> bytes = AsBytes(data, "w");
  if (K % info.block_len != 0) {
    throw Error(ErrorClass::kShape, "w: expected K a multiple of " +
                                        std::to_string(info.block_len) + " for " +
                                        info.stem + ", got " + std::to_string(K));
  }
  size_t want = 0;
  const size_t row_bytes = RowBytes(info.format, K);
  if (__builtin_mul_overflow(N, row_bytes, &want) || want != bytes.size()) {
    throw Error(ErrorClass::kShape, "w: expected " + std::to_string(N) + " rows of " +
                                        std::to_string(row_bytes) + " bytes, got " +
                                        std::to_string(bytes.size()) + " bytes");
  }
  WeightView w = {.format = info.format, .N = N, .K = K, .data = bytes.data()};
  if (!scales.is_none()) {
    w.row_scale = AsVector(scales.cast<py::array>(), "scales", N).data();
  }
  return w;
}

void CheckApart(Mat<const float> out, Mat<const float> in, const char* name) {
  if (Overlaps(out, in)) {
    throw Error(ErrorClass::kShape,
                std::string("out: overlaps ") + name + " in memory");
  }
}

Mat<const float> AsRow(std::span<const float> v) { return {v.data(), 1, v.size()}; }

// In place is fine, half in place is not.
void CheckApartOrSame(Mat<const float> out, Mat<const float> in, const char* name) {
  if (out.data != in.data || (out.ld != in.ld && out.rows > 1)) {
    CheckApart(out, in, name);
  }
}

void CopyRows(Mat<const float> from, Mat<float> to) {
  if (from.data == to.data || from.cols == 0) return;
  for (size_t row = 0; row < from.rows; ++row) {
    memcpy(to.Row(row), from.Row(row), from.cols * sizeof(float));
  }
}

// A weight's copy in kernel order.
struct Panels {
  Format format;
  size_t N, K;
  PageBuffer memory;
};

Panels MakePanels(const py::array& w, const std::string& format, size_t N, size_t K,
                  size_t threads) {
  const WeightView view = AsWeight(w, format, N, K, py::none());
  const Context context = MakeContext(threads);
  const py::gil_scoped_release nogil;
  Panels panels = {view.format, N, K, PageBuffer(view.packed_bytes())};
  if (panels.memory.bytes() != 0) PackPanels(context, view, panels.memory.data());
  return panels;
}

void UsePanels(const py::object& object, WeightView& w) {
  if (object.is_none()) return;
  const auto& panels = object.cast<const Panels&>();
  if (panels.format != w.format || panels.N != w.N || panels.K != w.K) {
    throw Error(ErrorClass::kShape, "panels: expected those of w");
  }
  w.panels = panels.memory.data();
}

void BindLinear(py::module_& m) {
  py::class_<Panels>(m, "Panels").def_property_readonly("nbytes", [](const Panels& p) {
    return p.memory.bytes();
  });
  m.def("pack_panels", &MakePanels, py::arg("w"), py::arg("format"), py::arg("n"),
        py::arg("k"), py::arg("threads"));
  m.def(
      "linear",
      [](const py::array& x, const py::array& w, const std::string& format, size_t N,
         const py::object& scales, const py::object& panels, const py::object& bias,
         py::array& out, const std::string& activations, size_t threads) {
        const Mat<const float> xm = AsMatrix(x, "x");
        WeightView wv = AsWeight(w, format, N, xm.cols, scales);
        UsePanels(panels, wv);
        const Mat<float> y = AsOutMatrix(out, "out", xm.rows, N);
        CheckApart(y, xm, "x");
        const ActivationMode mode = ModeNamed(activations);
        std::span<const float> b;
        if (!bias.is_none()) b = AsVector(bias.cast<py::array>(), "bias", N);
        CheckApart(y, AsRow(b), "bias");
        const Context context = MakeContext(threads);
        const py::gil_scoped_release nogil;
        LinearInput in(context, xm, mode);
        Linear(in, wv, y);
        if (b.empty()) return;
        const Mat<const float> row(b.data(), y.rows, N, 0);
        AddRows(context, row, y);
      },
      py::arg("x"), py::arg("w"), py::arg("format"), py::arg("n"), py::arg("scales"),
      py::arg("panels"), py::arg("bias"), py::arg("out"), py::arg("activations"),
      py::arg("threads"));
  m.def(
      "linear_codes",
      [](const py::array& x, float x_step, const py::array& w,
         const std::string& format, size_t N, const py::object& scales,
         const py::object& panels, float y_step, py::array& out, size_t threads) {
        const Mat<const int8_t> xm = AsCodes(x, "x");
        WeightView wv = AsWeight(w, format, N, xm.cols, scales);
        UsePanels(panels, wv);
        const Mat<int8_t> y = AsOutCodes(out, "out", xm.rows, N);
        const Context context = MakeContext(threads);
        const py::gil_scoped_release nogil;
        LinearCodes(context, xm, x_step, wv, y_step, y);
      },
      py::arg("x"), py::arg("x_step"), py::arg("w"), py::arg("format"), py::arg("n"),
      py::arg("scales"), py::arg("panels"), py::arg("y_step"), py::arg("out"),
      py::arg("threads"));
  m.def(
      "embedding_rows",
      [](const py::array& w, const std::string& format, size_t N, size_t K,
         const py::object& scales, const py::array& ids, py::array& out,
         size_t threads) {
        const WeightView wv = AsWeight(w, format, N, K, scales);
        const std::vector<int32_t> rows = AsIds(ids, "ids", N);
        const Mat<float> y = AsOutMatrix(out, "out", rows.size(), K);
        const Context context = MakeContext(threads);
        const py::gil_scoped_release nogil;
        EmbeddingRows(context, wv, rows, y);
      },
      py::arg("w"), py::arg("format"), py::arg("n"), py::arg("k"), py::arg("scales"),
      py::arg("ids"), py::arg("out"), py::arg("threads"));
}

void BindFormats(py::module_& m) {
  m.def("formats", [] {
    py::list formats;
    for (const FormatInfo& info : kFormats) {
      const FormatKernels& kernels = KernelsFor(info.format);
      const bool writable =
          kernels.encode_row_ref != nullptr || kernels.encode_row_scaled_ref != nullptr;
      formats.append(py::make_tuple(info.stem, static_cast<uint32_t>(info.format),
                                    info.block_len, info.block_bytes, writable,
                                    HasRowScale(info.format)));
    }
    return formats;
  });
  m.def(
      "quantize",
      [](const py::array& x, const std::string& format, size_t threads) -> py::tuple {
        const Mat<const float> xm = AsMatrix(x, "x");
        const FormatInfo& info = FormatNamed(format);
        const FormatKernels& kernels = KernelsFor(info.format);
        if (kernels.encode_row_ref == nullptr &&
            kernels.encode_row_scaled_ref == nullptr) {
          throw Error(ErrorClass::kValue, "format: " + format + " can only be read");
        }
        if (xm.cols % info.block_len != 0) {
          throw Error(ErrorClass::kShape,
                      "x: expected a last dimension that is a "
                      "multiple of " +
                          std::to_string(info.block_len) + " for " + format + ", got " +
                          std::to_string(xm.cols));
        }
        const size_t row_bytes = RowBytes(info.format, xm.cols);
        py::array_t<uint8_t> w(static_cast<py::ssize_t>(xm.rows * row_bytes));
        uint8_t* data = w.mutable_data();
        py::array_t<float> scales(
            static_cast<py::ssize_t>(HasRowScale(info.format) ? xm.rows : 0));
        float* scale = scales.mutable_data();
        const Context context = MakeContext(threads);
        {
          const py::gil_scoped_release nogil;
          ForEachRow(context, xm.rows, xm.cols, [&](size_t row) {
            uint8_t* to = data + row * row_bytes;
            if (kernels.encode_row_ref != nullptr) {
              kernels.encode_row_ref(xm.Row(row), xm.cols, to);
            } else {
              scale[row] = kernels.encode_row_scaled_ref(xm.Row(row), xm.cols, to);
            }
          });
        }
        return py::make_tuple(w, scales);
      },
      py::arg("x"), py::arg("format"), py::arg("threads"));
}

void BindRowwise(py::module_& m) {
  m.def(
      "rms_norm",
      [](const py::array& x, const py::object& weight, float eps, py::array& out,
         size_t threads) {
        const Mat<const float> xm = AsMatrix(x, "x");
        const Mat<float> y = AsOutMatrix(out, "out", xm.rows, xm.cols);
        CheckApartOrSame(y, xm, "x");
        std::span<const float> w;
        if (!weight.is_none()) {
          w = AsVector(weight.cast<py::array>(), "weight", xm.cols);
        }
        CheckApart(y, AsRow(w), "weight");
        const Context context = MakeContext(threads);
        const py::gil_scoped_release nogil;
        RmsNorm(context, xm, w, eps, y);
      },
      py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("out"),
      py::arg("threads"));
  m.def(
      "rope",
      [](const py::array& x, size_t heads, const py::array& positions, size_t pairs,
         double base, double factor, py::array& out, size_t threads) {
        const Mat<const float> xm = AsMatrix(x, "x");
        const Mat<float> y = AsOutMatrix(out, "out", xm.rows, xm.cols);
        CheckApartOrSame(y, xm, "x");
        std::vector<uint64_t> at;
        for (const int32_t p : AsIds(positions, "positions", kMaxPosition + 1)) {
          at.push_back(static_cast<uint64_t>(p));
        }
        const RopeTable table = RopeTable::Make(xm.cols / heads, pairs, base, factor);
        const Context context = MakeContext(threads);
        const py::gil_scoped_release nogil;
        CopyRows(xm, y);
        Rope(context, y, heads, RopeTurns::Make(context, table, at));
      },
      py::arg("x"), py::arg("heads"), py::arg("positions"), py::arg("pairs"),
      py::arg("base"), py::arg("factor"), py::arg("out"), py::arg("threads"));
  m.def(
      "softmax",
      [](const py::array& x, py::array& out, size_t threads) {
        const Mat<const float> xm = AsMatrix(x, "x");
        const Mat<float> y = AsOutMatrix(out, "out", xm.rows, xm.cols);
        CheckApartOrSame(y, xm, "x");
        const Context context = MakeContext(threads);
        const py::gil_scoped_release nogil;
        Softmax(context, xm, y);
      },
      py::arg("x"), py::arg("out"), py::arg("threads"));
  m.def(
      "gelu_mul",
      [](const py::array& gate, const py::array& up, py::array& out, size_t threads) {
        const Mat<const float> g = AsMatrix(gate, "gate"), u = AsMatrix(up, "up");
        const Mat<float> y = AsOutMatrix(out, "out", g.rows, g.cols);
        CheckApartOrSame(y, g, "gate");
        CheckApartOrSame(y, u, "up");
        const Context context = MakeContext(threads);
        const py::gil_scoped_release nogil;
        GeluMul(context, g, u, y);
      },
      py::arg("gate"), py::arg("up"), py::arg("out"), py::arg("threads"));
}

void BindOnednn(py::module_& m) {
  m.def("open_onednn", &OpenOnednn, py::arg("path"));
  m.def("use_onednn", &UseOnednn, py::arg("on"));
  m.def("onednn", []() -> std::optional<std::tuple<std::string, py::str, bool>> {
    const std::optional<OnednnStatus> state = OnednnState();
    if (!state) return std::nullopt;
    return std::tuple(state->version, FsText(state->path), state->on);
  });
}

}  // namespace

void RegisterOps(py::module_& m) {
  BindFormats(m);
  BindLinear(m);
  BindOnednn(m);
  BindRowwise(m);
  m.def("from_dlpack", &FromDLPack, py::arg("capsule"));
}

}  // namespace halfbyte
