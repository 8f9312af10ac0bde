// csrc/bindings/bind_stages.cc
// A model's stages one at a time, and its matrices. For tests: rounding to codes is
// chaotic at ties, so a whole model cannot be compared with another implementation's,
// and each stage from the same input can.
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/array.h"
#include "bindings/bindings.h"
#include "kv/layer.h"
#include "model/forward.h"
#include "ops/linear.h"
#include "ops/rowwise.h"

namespace py = pybind11;

namespace halfbyte {
namespace {

using Array = py::array_t<float>;

Mat<float> Out(Array& a) {
  return Mat<float>(a.mutable_data(), static_cast<size_t>(a.shape(0)),
                    static_cast<size_t>(a.shape(1)));
}

// One thread uses it at a time: no call lets go of the GIL.
class BoundStages {
 public:
  explicit BoundStages(std::shared_ptr<const Model> model)
      : model_(std::move(model)),
        kv_(MakeKv(*model_)),
        stages_(context_, *model_, kv_, workspace_) {}

  py::tuple Inputs(const py::array& ids) {
    const std::vector<int32_t> tokens = AsIds(ids, "ids", config().vocab_size);
    CheckRows(tokens.size());
    Array h({tokens.size(), config().hidden_size});
    Array ple({tokens.size(), config().layers.size() * config().ple_len});
    stages_.Inputs(tokens, Out(h), Out(ple));
    return py::make_tuple(h, ple);
  }

  Array Layer(size_t layer, const py::array& h, const py::array& ple) {
    CheckLayer(layer);
    const Mat<const float> in = AsMatrix(h, "h"), part = AsMatrix(ple, "ple");
    CheckRows(in.rows);
    Require(in.cols == config().hidden_size, "h: not hidden_size wide");
    Require(part.rows == in.rows && part.cols == config().ple_len,
            "ple: not a row of the layer's part for each of h");
    Array out({in.rows, in.cols});
    CopyRows(context_, in, Out(out));
    stages_.Layer(layer, part, Out(out));
    return out;
  }

  Array Head(const py::array& h) {
    const Mat<const float> in = AsMatrix(h, "h");
    CheckRows(in.rows);
    Require(in.cols == config().hidden_size, "h: not hidden_size wide");
    Array logits({in.rows, config().vocab_size});
    stages_.Head(in, Out(logits));
    return logits;
  }

  Array Product(size_t layer, const std::string& name, const py::array& x) {
    const WeightView& w = Matrix(layer, name);
    LinearInput in(context_, AsMatrix(x, "x"), model_->options().activations);
    Array y({in.x().rows, w.N});
    Linear(in, w, Out(y));
    return y;
  }

 private:
  const ModelConfig& config() const { return model_->config(); }

  static void CheckRows(size_t rows) {
    Require(rows != 0 && rows <= Model::kChunk, "expected 1 to 256 rows");
  }
  void CheckLayer(size_t layer) const {
    Require(layer < config().layers.size(), "layer: none of that number");
  }

  const WeightView& Matrix(size_t layer, const std::string& name) const {
    CheckLayer(layer);
    const LayerWeights& w = model_->weights().layers[layer];
    const std::pair<const char*, const WeightView*> kMatrices[] = {
        {"q", &w.q},
        {"k", &w.k},
        {"v", &w.v},
        {"o", &w.o},
        {"gate", &w.gate},
        {"up", &w.up},
        {"down", &w.down},
        {"ple_gate", &w.ple_gate},
        {"ple_proj", &w.ple_proj}};
    for (const auto& [known, view] : kMatrices) {
      if (name == known && view->data != nullptr) return *view;
    }
    throw Error(ErrorClass::kValue, "name: the layer has no '" + Escape(name) + "'");
  }

  const std::shared_ptr<const Model> model_;
  const Context context_;
  KvLayers kv_;
  Workspace workspace_;
  const Stages stages_;
};

}  // namespace

void RegisterStages(py::module_& m) {
  py::class_<BoundStages>(m, "Stages")
      .def(py::init([](const ModelHandle& h) {
             return std::make_unique<BoundStages>(h.model);
           }),
           py::arg("model"))
      .def("inputs", &BoundStages::Inputs, py::arg("ids"))
      .def("layer", &BoundStages::Layer, py::arg("layer"), py::arg("h"), py::arg("ple"))
      .def("head", &BoundStages::Head, py::arg("h"))
      .def("product", &BoundStages::Product, py::arg("layer"), py::arg("name"),
           py::arg("x"));
}

}  // namespace halfbyte
