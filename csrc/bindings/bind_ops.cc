// csrc/bindings/bind_ops.cc
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <stddef.h>
#include <stdint.h>

#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "bindings/array.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "ops/attention.h"
#include "ops/kv_rows.h"
#include "ops/onednn.h"
#include "ops/rowwise.h"

namespace py = pybind11;

namespace halfbyte {
namespace {

// Up to here the angle of a position keeps its precision.
constexpr size_t kMaxPosition = size_t{1} << 24;

void RmsNormOf(const py::array& x, const py::object& weight, float eps, py::array& out,
               size_t threads) {
  const Mat<const float> xm = AsMatrix(x, "x");
  const Mat<float> y = AsOutMatrix(out, "out", xm.rows, xm.cols);
  CheckApartOrSame(y, xm, "x");
  std::span<const float> w;
  if (!weight.is_none()) w = AsVector(weight.cast<py::array>(), "weight", xm.cols);
  CheckApart(y, w, "weight");
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  RmsNorm(context, xm, w, eps, y);
}

void RopeOf(const py::array& x, size_t heads, const py::array& positions, size_t pairs,
            double base, double factor, py::array& out, size_t threads) {
  const Mat<const float> xm = AsMatrix(x, "x");
  const Mat<float> y = AsOutMatrix(out, "out", xm.rows, xm.cols);
  CheckApartOrSame(y, xm, "x");
  Require(heads != 0, "heads: expected one at least");
  const std::vector<int32_t> ids = AsIds(positions, "positions", kMaxPosition + 1);
  Require(ids.size() == xm.rows, "positions: expected one a row");
  const std::vector<uint64_t> at(ids.begin(), ids.end());
  Require(xm.cols % heads == 0 && pairs <= xm.cols / heads / 2, "rope: too many pairs");
  const RopeTable table = RopeTable::Make(xm.cols / heads, pairs, base, factor);
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  CopyRows(context, xm, y);
  Rope(context, y, heads, RopeTurns::Make(context, table, at));
}

void SoftmaxOf(const py::array& x, py::array& out, size_t threads) {
  const Mat<const float> xm = AsMatrix(x, "x");
  const Mat<float> y = AsOutMatrix(out, "out", xm.rows, xm.cols);
  CheckApartOrSame(y, xm, "x");
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  Softmax(context, xm, y);
}

void GeluMulOf(const py::array& gate, const py::array& up, py::array& out,
               size_t threads) {
  const Mat<const float> g = AsMatrix(gate, "gate"), u = AsMatrix(up, "up");
  const Mat<float> y = AsOutMatrix(out, "out", g.rows, g.cols);
  CheckApartOrSame(y, g, "gate");
  CheckApartOrSame(y, u, "up");
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  GeluMul(context, g, u, y);
}

// Keys or values, float32, or int8 with the steps of their rows; apart from `out`.
KvHeads AsKv(const py::array& rows, const py::object& steps, const char* name,
             const HeadRows<float>& out) {
  if (steps.is_none()) {
    const HeadRows<const float> x = AsHeadRows(rows, name);
    CheckApart(out, x, name);
    return x;
  }
  const HeadRows<const int8_t> codes = AsHeadCodes(rows, name);
  const HeadRows<const float> x = AsHeadRows(steps.cast<py::array>(), "steps");
  CheckApart(out, codes, name);
  CheckApart(out, x, "steps");
  return {codes, x};
}

void AttentionOf(const py::array& q, const py::array& k, const py::array& v,
                 const py::object& k_steps, const py::object& v_steps, bool rotated,
                 const py::object& mask, float scale, bool causal, size_t window,
                 py::array& out, size_t threads) {
  const HeadRows<float> to = AsOutHeadRows(out, "out");
  AttentionArgs args = {.q = AsHeadRows(q, "q"),
                        .k = AsKv(k, k_steps, "k", to),
                        .v = AsKv(v, v_steps, "v", to),
                        .mask = {},
                        .scale = scale,
                        .causal = causal,
                        .window = window,
                        .rotated = rotated,
                        .out = to};
  if (!mask.is_none()) args.mask = AsMask(mask.cast<py::array>(), "mask");
  CheckApart(to, args.mask, "mask");
  CheckApart(to, args.q, "q");
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  Attention(context, args);
}

void EncodeI8Of(const py::array& x, bool rotate, float step, py::array& codes,
                py::array& steps, size_t threads) {
  const HeadRows<const float> rows = AsHeadRows(x, "x");
  const HeadRows<int8_t> to = AsOutHeadCodes(codes, "codes");
  const HeadRows<float> to_steps = AsOutHeadRows(steps, "steps");
  CheckApart(to, rows, "x");
  CheckApart(to_steps, rows, "x");
  CheckApart(to_steps, to, "codes");
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  EncodeI8(context, rows, rotate, step, to, to_steps);
}

void DecodeI8Of(const py::array& codes, const py::array& steps, bool rotated,
                py::array& out, size_t threads) {
  const HeadRows<const int8_t> from = AsHeadCodes(codes, "codes");
  const HeadRows<const float> from_steps = AsHeadRows(steps, "steps");
  const HeadRows<float> to = AsOutHeadRows(out, "out");
  CheckApart(to, from, "codes");
  CheckApart(to, from_steps, "steps");
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  DecodeI8(context, from, from_steps, rotated, to);
}

std::optional<std::tuple<std::string, py::str, bool>> Onednn() {
  const std::optional<OnednnStatus> state = OnednnState();
  if (!state) return std::nullopt;
  return std::tuple(state->version, FsText(state->path), state->on);
}

}  // namespace

void RegisterOps(py::module_& m) {
  m.def("rms_norm", &RmsNormOf, py::arg("x"), py::arg("weight"), py::arg("eps"),
        py::arg("out"), py::arg("threads"));
  m.def("rope", &RopeOf, py::arg("x"), py::arg("heads"), py::arg("positions"),
        py::arg("pairs"), py::arg("base"), py::arg("factor"), py::arg("out"),
        py::arg("threads"));
  m.def("softmax", &SoftmaxOf, py::arg("x"), py::arg("out"), py::arg("threads"));
  m.def("gelu_mul", &GeluMulOf, py::arg("gate"), py::arg("up"), py::arg("out"),
        py::arg("threads"));
  m.def("attention", &AttentionOf, py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("k_steps"), py::arg("v_steps"), py::arg("rotated"), py::arg("mask"),
        py::arg("scale"), py::arg("causal"), py::arg("window"), py::arg("out"),
        py::arg("threads"));
  m.def("encode_i8", &EncodeI8Of, py::arg("x"), py::arg("rotate"), py::arg("step"),
        py::arg("codes"), py::arg("steps"), py::arg("threads"));
  m.def("decode_i8", &DecodeI8Of, py::arg("codes"), py::arg("steps"),
        py::arg("rotated"), py::arg("out"), py::arg("threads"));
  m.def("open_onednn", &OpenOnednn, py::arg("path"));
  m.def("use_onednn", &UseOnednn, py::arg("on"));
  m.def("onednn", &Onednn);
  m.def("from_dlpack", &FromDLPack, py::arg("capsule"));
}

}  // namespace halfbyte
