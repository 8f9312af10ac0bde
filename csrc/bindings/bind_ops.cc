// csrc/bindings/bind_ops.cc
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <string.h>

#include <optional>
#include <string>
#include <tuple>

#include "bindings/array.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "ops/attention.h"
#include "ops/onednn.h"
#include "ops/rowwise.h"

namespace py = pybind11;

namespace halfbyte {
namespace {

// Up to here the angle of a position keeps its precision.
constexpr size_t kMaxPosition = size_t{1} << 24;

void CopyRows(Mat<const float> from, Mat<float> to) {
  if (from.data == to.data || from.cols == 0) return;
  for (size_t row = 0; row < from.rows; ++row) {
    memcpy(to.Row(row), from.Row(row), from.cols * sizeof(float));
  }
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
        CheckApart(y, w, "weight");
        const Context context = MakeContext(threads);
        const GilRelease nogil;
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
        Require(heads != 0, "heads: expected one at least");
        std::vector<uint64_t> at;
        for (const int32_t p : AsIds(positions, "positions", kMaxPosition + 1)) {
          at.push_back(static_cast<uint64_t>(p));
        }
        const RopeTable table = RopeTable::Make(xm.cols / heads, pairs, base, factor);
        const Context context = MakeContext(threads);
        const GilRelease nogil;
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
        const GilRelease nogil;
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
        const GilRelease nogil;
        GeluMul(context, g, u, y);
      },
      py::arg("gate"), py::arg("up"), py::arg("out"), py::arg("threads"));
}

void BindAttention(py::module_& m) {
  m.def(
      "attention",
      [](const py::array& q, const py::array& k, const py::array& v,
         const py::object& mask, float scale, bool causal, size_t window,
         py::array& out, size_t threads) {
        AttentionArgs args = {.q = AsHeadRows(q, "q"),
                              .k = AsHeadRows(k, "k"),
                              .v = AsHeadRows(v, "v"),
                              .mask = {},
                              .scale = scale,
                              .causal = causal,
                              .window = window,
                              .out = AsOutHeadRows(out, "out")};
        if (!mask.is_none()) args.mask = AsMask(mask.cast<py::array>(), "mask");
        CheckApart(args.out, args.mask, "mask");
        CheckApart(args.out, args.q, "q");
        CheckApart(args.out, args.k, "k");
        CheckApart(args.out, args.v, "v");
        const Context context = MakeContext(threads);
        const GilRelease nogil;
        Attention(context, args);
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("mask"), py::arg("scale"),
      py::arg("causal"), py::arg("window"), py::arg("out"), py::arg("threads"));
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
  BindAttention(m);
  BindOnednn(m);
  BindRowwise(m);
  m.def("from_dlpack", &FromDLPack, py::arg("capsule"));
}

}  // namespace halfbyte
