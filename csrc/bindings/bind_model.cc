// csrc/bindings/bind_model.cc
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/array.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "kernels/format_kernels.h"
#include "kernels/softmax.h"
#include "model/model.h"
#include "model/sampler.h"
#include "model/session.h"

namespace py = pybind11;

namespace halfbyte {
namespace {

// A session that notices a second thread instead of racing with it.
class GuardedSession {
 public:
  GuardedSession(std::shared_ptr<const Model> model,
                 std::shared_ptr<const Model> drafter)
      : session_(std::move(model), std::move(drafter)) {}
  explicit GuardedSession(const Session& session) : session_(session) {}

  // Keeps everybody else out while it lives. Throws if somebody is inside.
  class Hold {
   public:
    explicit Hold(GuardedSession& guarded) : guarded_(&guarded) {
      if (!guarded.busy_.exchange(true)) return;
      throw std::runtime_error(
          "this session is in use by another thread; make one session a thread");
    }
    Hold(Hold&& other) noexcept : guarded_(std::exchange(other.guarded_, nullptr)) {}
    ~Hold() {
      if (guarded_ != nullptr) guarded_->busy_ = false;
    }

    Session& session() const { return guarded_->session_; }

   private:
    GuardedSession* guarded_;
  };

  // f(session), if nobody else is inside.
  template <class F>
  auto Use(const F& f) {
    const Hold hold(*this);
    return f(session_);
  }

 private:
  std::atomic<bool> busy_{false};
  Session session_;
};

size_t VocabSize(const Session& s) { return s.model().config().vocab_size; }

py::array_t<float> Run(GuardedSession& guarded, const py::array& ids, size_t rows,
                       size_t threads) {
  return guarded.Use([&](Session& s) {
    const size_t vocab = VocabSize(s);
    const std::vector<int32_t> tokens = AsIds(ids, "ids", vocab);
    s.Check(tokens);  // before memory is asked for in vain
    rows = std::min(rows, tokens.size());
    py::array_t<float> logits({rows, vocab});
    const Mat<float> out(logits.mutable_data(), rows, vocab);
    const Context context = MakeContext(threads);
    const GilRelease nogil;
    s.Run(context, tokens, out);
    return logits;
  });
}

// A token, and how likely the model held it and the likeliest ones, if that was asked.
struct Chosen {
  int32_t id;
  std::vector<TokenLogprob> scored;
};

// What follows a session's tokens, by the logits behind them, which are overwritten.
// `top`: how many of the likeliest to tell of. The GIL is not needed.
Chosen Choose(const Session& s, Sampler& sampler, std::span<float> logits,
              std::optional<size_t> top) {
  std::vector<float> kept;
  if (top) kept.assign(logits.begin(), logits.end());
  const int32_t id = sampler.Sample(logits, s.tokens(), s.model().suppressed());
  return {id, top ? Logprobs(kept, id, *top) : std::vector<TokenLogprob>()};
}

py::tuple AsTuple(const Chosen& chosen) {
  py::list pairs;
  for (const TokenLogprob& x : chosen.scored) {
    pairs.append(py::make_tuple(x.id, x.logprob));
  }
  return py::make_tuple(chosen.id, pairs);
}

// Appends `ids`, then chooses the token that follows, guessing up to `draft` of those
// behind it. History is the whole sequence.
py::tuple Step(GuardedSession& guarded, const py::array& ids, Sampler& sampler,
               size_t threads, size_t draft, std::optional<size_t> top) {
  return AsTuple(guarded.Use([&](Session& s) {
    const std::vector<int32_t> tokens = AsIds(ids, "ids", VocabSize(s));
    if (tokens.empty()) throw Error(ErrorClass::kValue, "ids: expected at least one");
    const Context context = MakeContext(threads);
    const GilRelease nogil;
    std::vector<float> logits(VocabSize(s));
    s.Step(context, tokens, draft, logits);
    return Choose(s, sampler, logits, top);
  }));
}

using Sessions = std::vector<std::shared_ptr<GuardedSession>>;

// Sessions of one model, held together, and what one more token of each makes.
class SessionBatch {
 public:
  SessionBatch(const Sessions& sessions, const py::array& ids) {
    for (const auto& guarded : sessions) {
      Require(guarded != nullptr, "sessions: found None");
      holds_.emplace_back(*guarded);
      sessions_.push_back(&holds_.back().session());
    }
    if (sessions_.empty()) return;
    vocab_ = VocabSize(*sessions_[0]);
    ids_ = AsIds(ids, "ids", vocab_);
  }

  size_t size() const { return sessions_.size(); }
  size_t vocab() const { return vocab_; }
  const Session& operator[](size_t i) const { return *sessions_[i]; }
  void Run(const Context& context, float* logits) {
    Session::RunEach(context, sessions_, ids_, Mat<float>(logits, size(), vocab_));
  }

 private:
  std::vector<GuardedSession::Hold> holds_;
  std::vector<Session*> sessions_;
  std::vector<int32_t> ids_;
  size_t vocab_ = 0;
};

py::array_t<float> RunEach(const Sessions& sessions, const py::array& ids,
                           size_t threads) {
  SessionBatch batch(sessions, ids);
  py::array_t<float> logits({batch.size(), batch.vocab()});
  float* out = logits.mutable_data();
  const Context context = MakeContext(threads);
  const GilRelease nogil;
  batch.Run(context, out);
  return logits;
}

py::list StepEach(const Sessions& sessions, const py::array& ids,
                  const std::vector<std::shared_ptr<Sampler>>& samplers, size_t threads,
                  std::optional<size_t> top) {
  SessionBatch batch(sessions, ids);
  const std::set<std::shared_ptr<Sampler>> distinct(samplers.begin(), samplers.end());
  Require(distinct.size() == batch.size() && samplers.size() == batch.size() &&
              !distinct.contains(nullptr),
          "samplers: not one of its own for each session");
  std::vector<Chosen> chosen(batch.size());
  {
    const Context context = MakeContext(threads);
    const GilRelease nogil;
    std::vector<float> logits(batch.size() * batch.vocab());
    batch.Run(context, logits.data());
    context.ParallelFor(batch.size(), [&](size_t i) {
      const std::span<float> row(&logits[i * batch.vocab()], batch.vocab());
      chosen[i] = Choose(batch[i], *samplers[i], row, top);
    });
  }
  py::list tuples;
  for (const Chosen& one : chosen) tuples.append(AsTuple(one));
  return tuples;
}

// For tests and benchmarks: what a Step of `id` would guess behind it.
std::vector<int32_t> Guess(GuardedSession& guarded, int64_t id, size_t threads,
                           size_t most) {
  return guarded.Use([&](Session& s) {
    Require(id >= 0 && id < static_cast<int64_t>(VocabSize(s)),
            "id: not in the vocabulary");
    const std::vector<int32_t> one = {static_cast<int32_t>(id)};
    s.Check(one);
    const Context context = MakeContext(threads);
    const GilRelease nogil;
    return s.Guess(context, one[0], most);
  });
}

// log p(ids[i + 1] | ids[0..i]) for every i, appended to the sequence a few at a time.
// `next` follows the last of `ids`; below 0 if nothing does.
py::array_t<double> Score(GuardedSession& guarded, const py::array& ids, int64_t next,
                          size_t threads) {
  constexpr size_t kRows = 32;  // of logits held at once
  return guarded.Use([&](Session& s) {
    const size_t vocab = VocabSize(s);
    std::vector<int32_t> tokens = AsIds(ids, "ids", vocab);
    const size_t count = tokens.size();
    Require(next < static_cast<int64_t>(vocab), "next: not in the vocabulary");
    s.Check(tokens);  // before any of them is appended
    if (next >= 0) tokens.push_back(static_cast<int32_t>(next));
    py::array_t<double> scores(
        static_cast<py::ssize_t>(tokens.empty() ? 0 : tokens.size() - 1));
    double* out = scores.mutable_data();
    const Context context = MakeContext(threads);
    const GilRelease nogil;
    std::vector<float> logits(std::min(kRows, count) * vocab);
    for (size_t begin = 0; begin < count; begin += kRows) {
      const size_t rows = std::min(kRows, count - begin);
      s.Run(context, std::span(tokens).subspan(begin, rows),
            Mat<float>(logits.data(), rows, vocab));
      context.ParallelFor(rows, [&](size_t i) {
        if (begin + i + 1 >= tokens.size()) return;
        const float* row = &logits[i * vocab];
        const auto target = static_cast<size_t>(tokens[begin + i + 1]);
        out[begin + i] = static_cast<double>(row[target]) - LogSumExp(row, vocab);
      });
    }
    return scores;
  });
}

Repack RepackNamed(const std::string& name) {
  if (name == "auto") return Repack::kAuto;
  if (name == "always") return Repack::kAlways;
  if (name == "never") return Repack::kNever;
  throw Error(ErrorClass::kValue,
              "repack: found '" + Escape(name) + "'; expected auto, always or never");
}

void SetActivations(const std::string& name, ModelOptions& options) {
  if (name == "f32") {
    options.activations = ActivationMode::kF32;
  } else if (name == "static") {
    options.steps = TrainedSteps::kRequire;
  } else if (name == "dynamic") {
    options.steps = TrainedSteps::kDrop;
  } else if (name != "auto") {
    throw Error(ErrorClass::kValue, "activations: found '" + Escape(name) +
                                        "'; expected auto, static, dynamic or f32");
  }
}

// A format of blocks that a row of floats can be rounded to by itself.
Format FormatToRoundTo(const std::string& name) {
  std::string known;
  for (const FormatInfo& info : kFormats) {
    if (info.block_len == 1 || KernelsFor(info.format).encode_row_ref == nullptr)
      continue;
    if (name == info.stem) return info.format;
    known += known.empty() ? "" : ", ";
    known += info.stem;
  }
  throw Error(ErrorClass::kValue,
              "quantize: found '" + Escape(name) + "'; expected one of " + known);
}

KvType AsKvType(const std::string& name) {
  if (name == "f32") return KvType::kF32;
  if (name == "f16") return KvType::kF16;
  if (name == "int8") return KvType::kI8;
  throw Error(ErrorClass::kValue,
              "kv: found '" + Escape(name) + "'; expected f32, f16 or int8");
}

ModelHandle LoadModel(const std::string& path, size_t context, const std::string& kv,
                      const std::string& activations, const std::string& repack,
                      const std::optional<std::string>& quantize,
                      const std::string& load,
                      const std::map<std::string, uint64_t>& limits,
                      const py::object& progress, size_t threads, bool runs,
                      bool must_quantize, bool drafter) {
  ModelOptions options;
  options.runs = runs;
  options.must_quantize = must_quantize;
  options.drafter = drafter;
  options.context = context;
  options.kv = AsKvType(kv);
  SetActivations(activations, options);
  options.repack = RepackNamed(repack);
  options.load = AsLoadMode(load);
  options.limits = AsLimits(limits);
  if (quantize) options.quantize = FormatToRoundTo(*quantize);
  if (quantize && options.repack == Repack::kNever) {
    throw Error(ErrorClass::kValue,
                "repack: found 'never' with quantize; expected auto or always: weights "
                "are rounded as they are repacked");
  }
  LoadProgress report;
  if (!progress.is_none()) {
    report = [&progress](uint64_t done, uint64_t total) {
      const GilAcquire gil;
      progress(done, total);
    };
  }
  const Context run = MakeContext(threads);
  const GilRelease nogil;
  return {Model::Load(run, path, options, report)};
}

py::dict ConfigDict(const Model& model) {
  const ModelConfig& c = model.config();
  py::dict d;
  d["architecture"] = c.family->name;
  d["vocab_size"] = c.vocab_size;
  d["hidden_size"] = c.hidden_size;
  d["num_layers"] = c.layers.size();
  d["num_heads"] = c.num_heads;
  d["context_length"] = c.context_length;
  d["sliding_window"] = c.sliding_window;
  d["norm_eps"] = c.norm_eps;
  d["logit_softcap"] = c.softcap;
  d["rope_base_sliding"] = c.rope_base_sliding;
  d["rope_base_full"] = c.rope_base_full;
  d["rope_factor_full"] = c.rope_factor_full;
  d["attention_scale"] = c.attention_scale;
  d["per_layer_embedding"] = c.ple_len;
  d["num_experts"] = c.num_experts;
  d["num_experts_used"] = c.num_experts_used;
  d["expert_ffn_len"] = c.expert_ffn_len;
  d["untied_head"] = model.weights().own_head;
  py::list layers;
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const LayerConfig& layer = c.layers[i];
    py::dict l;
    l["sliding"] = layer.sliding;
    l["head_dim"] = layer.head_dim;
    l["num_kv_heads"] = layer.num_kv_heads;
    l["ffn_len"] = layer.ffn_len;
    l["kv_source"] = layer.kv_source;
    // Not in every config: a GGUF says it by having no such tensor.
    l["value_is_key"] = c.OwnsKv(i) && model.weights().layers[i].v.data == nullptr;
    layers.append(l);
  }
  d["layers"] = layers;
  return d;
}

// Of each layer, the trained steps of its keys and values, or None. Layers that share
// have their source's.
py::list KvScales(const Model& model) {
  py::list steps;
  if (model.config().IsDrafter()) return steps;
  for (const LayerConfig& layer : model.config().layers) {
    const LayerWeights& w = model.weights().layers[layer.kv_source];
    if (w.k_cache_step == 0.0f && w.v_cache_step == 0.0f) {
      steps.append(py::none());
    } else {
      steps.append(py::make_tuple(w.k_cache_step, w.v_cache_step));
    }
  }
  return steps;
}

py::list Types(const Model& model) {
  py::list types;
  for (const TypeUse& use : model.types()) {
    types.append(py::make_tuple(use.type, use.tensors, use.bytes));
  }
  return types;
}

// A property of the model: `get` takes a const Model&.
template <class F>
auto Property(F get) {
  return [get](const ModelHandle& handle) { return get(*handle.model); };
}

void BindModel(py::module_& m) {
  py::class_<ModelHandle>(m, "Model")
      .def_static("load", &LoadModel, py::arg("path"), py::arg("context"),
                  py::arg("kv"), py::arg("activations"), py::arg("repack"),
                  py::arg("quantize"), py::arg("load"), py::arg("limits"),
                  py::arg("progress"), py::arg("threads"), py::arg("runs"),
                  py::arg("must_quantize"), py::arg("drafter"))
      .def_property_readonly("config", Property(&ConfigDict))
      .def_property_readonly("types", Property(&Types))
      .def_property_readonly("kv_scales", Property(&KvScales))
      .def_property_readonly(
          "unread_tensors", Property([](const Model& x) { return x.weights().unread; }))
      .def_property_readonly("num_quantized",
                             Property([](const Model& x) { return x.num_quantized(); }))
      .def_property_readonly("has_steps",
                             Property([](const Model& x) { return x.has_steps(); }))
      .def_property_readonly(
          "context", Property([](const Model& x) { return x.options().context; }))
      .def_property_readonly("sampling",
                             Property([](const Model& x) { return x.sampling(); }))
      .def_property_readonly("file_bytes",
                             Property([](const Model& x) { return x.file_bytes(); }))
      .def_property_readonly(
          "repacked_bytes", Property([](const Model& x) { return x.repacked_bytes(); }))
      .def_property_readonly("bytes_per_token", Property([](const Model& x) {
                               return x.bytes_per_token();
                             }))
      // Searched, never rendered: bytes that are not UTF-8 may be lost.
      .def_property_readonly(
          "chat_template", Property([](const Model& x) {
            const std::string& t = x.chat_template();
            return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(
                t.data(), static_cast<Py_ssize_t>(t.size()), "replace"));
          }))
      .def(
          "kv_bytes",
          [](const ModelHandle& h, size_t positions) {
            return h.model->KvBytes(positions);
          },
          py::arg("positions"))
      // Part of the model, which this keeps alive. None if there is none.
      .def_property_readonly("tokenizer", [](const ModelHandle& h) {
        return std::shared_ptr<Tokenizer>(h.model,
                                          const_cast<Tokenizer*>(h.model->tokenizer()));
      });
}

void BindSession(py::module_& m) {
  py::class_<Sampler, std::shared_ptr<Sampler>>(m, "Sampler")
      .def(py::init([](float temperature, size_t top_k, float top_p, float min_p,
                       float repetition_penalty, uint64_t seed) {
             return Sampler({.temperature = temperature,
                             .top_k = top_k,
                             .top_p = top_p,
                             .min_p = min_p,
                             .repetition_penalty = repetition_penalty},
                            seed);
           }),
           py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("min_p"),
           py::arg("repetition_penalty"), py::arg("seed"))
      .def(
          "sample",
          [](Sampler& sampler, const py::array& logits,
             const std::vector<int32_t>& seen) {
            const auto size = static_cast<size_t>(logits.size());
            const std::span<const float> in = AsVector(logits, "logits", size);
            if (size == 0) throw Error(ErrorClass::kShape, "logits: expected some");
            AsIds(py::array_t<int64_t>(py::cast(seen)), "history", size);
            std::vector<float> copy(in.begin(), in.end());
            return sampler.Sample(copy, seen, {});
          },
          py::arg("logits"), py::arg("history"));
  py::class_<GuardedSession, std::shared_ptr<GuardedSession>>(m, "Session")
      .def(py::init([](const ModelHandle& h, const ModelHandle* drafter) {
             return std::make_shared<GuardedSession>(
                 h.model, drafter != nullptr ? drafter->model : nullptr);
           }),
           py::arg("model"), py::arg("drafter").none(true))
      .def("run", &Run, py::arg("ids"), py::arg("rows"), py::arg("threads"))
      .def("step", &Step, py::arg("ids"), py::arg("sampler"), py::arg("threads"),
           py::arg("draft"), py::arg("top").none(true))
      .def("guess", &Guess, py::arg("id"), py::arg("threads"), py::arg("most"))
      .def("score", &Score, py::arg("ids"), py::arg("next"), py::arg("threads"))
      .def("copy",
           [](GuardedSession& g) {
             return g.Use([](Session& s) {
               const GilRelease nogil;
               return std::make_shared<GuardedSession>(s);
             });
           })
      .def(
          "truncate",
          [](GuardedSession& g, size_t length) {
            return g.Use([=](Session& s) { return s.Truncate(length); });
          },
          py::arg("length"))
      .def_property_readonly("tokens",
                             [](GuardedSession& g) {
                               return g.Use([](Session& s) { return s.tokens(); });
                             })
      .def_property_readonly("drafts",
                             [](GuardedSession& g) {
                               return g.Use([](Session& s) {
                                 return py::make_tuple(s.drafted(), s.accepted());
                               });
                             })
      .def_property_readonly("kv_bytes", [](GuardedSession& g) {
        return g.Use([](Session& s) { return s.kv_bytes(); });
      });
  m.def("run_each", &RunEach, py::arg("sessions"), py::arg("ids"), py::arg("threads"));
  m.def("step_each", &StepEach, py::arg("sessions"), py::arg("ids"),
        py::arg("samplers"), py::arg("threads"), py::arg("top").none(true));
}

}  // namespace

void RegisterModel(py::module_& m) {
  BindModel(m);
  BindSession(m);
}

}  // namespace halfbyte
