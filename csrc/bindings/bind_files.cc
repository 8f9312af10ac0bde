// csrc/bindings/bind_files.cc
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"
#include "bindings/array.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "formats/format.h"
#include "io/gguf.h"
#include "io/json.h"
#include "io/limits.h"
#include "io/mmap.h"
#include "io/safetensors.h"
#include "io/tensor.h"
#include "runtime/topology.h"
#include "text/tokenizer.h"

namespace py = pybind11;

namespace halfbyte {

LoadMode AsLoadMode(const std::string& name) {
  if (name == "mmap") return LoadMode::kMap;
  if (name == "copy") return LoadMode::kCopy;
  if (name == "auto") return LoadMode::kAuto;
  throw Error(ErrorClass::kValue,
              "load: found '" + Escape(name) + "'; expected mmap, copy or auto");
}

FileLimits AsLimits(const std::map<std::string, uint64_t>& limits) {
  struct NamedLimit {
    std::string_view name;
    void (*set)(GgufLimits& gguf, SafetensorsLimits& safetensors, uint64_t value);
  };
  using G = GgufLimits;
  using S = SafetensorsLimits;
  static constexpr NamedLimit kKnown[] = {
      {"header_bytes",
       [](G& g, S& s, uint64_t v) { g.header_bytes = s.header_bytes = v; }},
      {"string_bytes", [](G& g, S&, uint64_t v) { g.string_bytes = v; }},
      {"array_elements", [](G& g, S&, uint64_t v) { g.array_elements = v; }},
      {"keys", [](G& g, S&, uint64_t v) { g.keys = v; }},
      {"tensors", [](G& g, S& s, uint64_t v) { g.tensors = s.tensors = v; }},
      {"rank", [](G&, S& s, uint64_t v) { s.rank = v; }},
      {"alignment", [](G& g, S&, uint64_t v) { g.alignment = v; }},
      {"shards", [](G& g, S& s, uint64_t v) { g.shards = s.shards = v; }},
      {"strict", [](G& g, S&, uint64_t v) { g.strict = v != 0; }},
      {"strict_paths", [](G&, S& s, uint64_t v) { s.strict_paths = v != 0; }},
  };
  FileLimits out;
  for (const auto& [name, value] : limits) {
    const auto known = std::ranges::find(kKnown, name, &NamedLimit::name);
    if (known == std::end(kKnown)) {
      std::string names;
      for (const NamedLimit& limit : kKnown) {
        names += names.empty() ? "" : ", ";
        names += limit.name;
      }
      throw Error(ErrorClass::kValue,
                  "limits: found '" + Escape(name) + "'; expected some of " + names);
    }
    known->set(out.gguf, out.safetensors, value);
  }
  return out;
}

namespace {

// Lets Ctrl-C end a copy between two pieces of a file.
Reading ReadingAs(const std::string& load) {
  const uint64_t memory = TotalMemory().bytes;
  return {.mode = AsLoadMode(load),
          .most_bytes = memory != 0 ? memory : UINT64_MAX,
          .progress = [poll = MakeContext(1).poll](uint64_t, uint64_t) { poll(); }};
}

// What both readers give: the maps, kept alive by whatever points into them.
struct File {
  std::vector<std::shared_ptr<const MappedFile>> files;
  std::vector<TensorView> tensors;
  std::vector<std::string> warnings;
  GgufMetadata gguf;                // of a GGUF file
  SafetensorsMetadata safetensors;  // of a safetensors file

  void CheckUnchanged() const {
    for (const auto& file : files) file->CheckUnchanged();
  }
};

// Text where the bytes are text, else the bytes: never altered.
py::object TextOrBytes(std::string_view s) {
  PyObject* text =
      PyUnicode_DecodeUTF8(s.data(), static_cast<Py_ssize_t>(s.size()), "strict");
  if (text != nullptr) return py::reinterpret_steal<py::object>(text);
  PyErr_Clear();
  return py::bytes(s.data(), s.size());
}

py::object ToPython(const GgufScalar& scalar) {
  return std::visit(
      [](const auto& v) -> py::object {
        if constexpr (std::is_same_v<std::decay_t<decltype(v)>, std::string_view>) {
          return TextOrBytes(v);
        } else {
          return py::cast(v);
        }
      },
      scalar);
}

py::object ToPython(const GgufValue& value) {
  if (!value.is_array()) return ToPython(value.At(0));
  py::list list(value.count);
  for (uint64_t i = 0; i < value.count; ++i) list[i] = ToPython(value.At(i));
  return list;
}

py::dict Metadata(const File& file) {
  file.CheckUnchanged();
  py::dict metadata;
  for (const GgufEntry& entry : file.gguf.entries()) {
    metadata[py::str(std::string(entry.key))] = ToPython(entry.value);
  }
  for (const auto& [key, value] : file.safetensors) {
    metadata[TextOrBytes(key)] = TextOrBytes(value);
  }
  return metadata;
}

// (key, type, value as one line) of each entry.
py::list Rendered(const File& file) {
  file.CheckUnchanged();
  py::list lines;
  for (const GgufEntry& entry : file.gguf.entries()) {
    lines.append(py::make_tuple(std::string(entry.key), NameOf(entry.value.type),
                                Render(entry.value)));
  }
  for (const auto& [key, value] : file.safetensors) {
    lines.append(py::make_tuple(Escape(key), "string", Escape(value)));
  }
  return lines;
}

py::tuple Describe(const TensorView& t) {
  return py::make_tuple(t.name, t.type, py::tuple(py::cast(t.shape)), t.bytes,
                        t.file_offset, t.shard,
                        t.format ? py::cast(InfoOf(*t.format).stem) : py::none());
}

// The bytes of tensor `index`, read-only, keeping the file mapped.
py::array TensorBytes(const std::shared_ptr<File>& file, size_t index) {
  file->CheckUnchanged();
  const TensorView& t = file->tensors.at(index);
  py::array bytes(py::dtype::of<uint8_t>(), {static_cast<py::ssize_t>(t.bytes)}, {},
                  t.data, OwnerOf(std::make_unique<std::shared_ptr<File>>(file)));
  bytes.attr("setflags")(py::arg("write") = false);
  return bytes;
}

// Fills `out` with the bytes of tensor `index` from `begin` on, by reading the file: no
// page of the mapping is touched, and a file that has become shorter is an error here
// where it would be a signal there.
void ReadTensor(const File& file, size_t index, uint64_t begin, py::array& out,
                bool once) {
  const TensorView& t = file.tensors.at(index);
  const std::span<const uint8_t> to = AsBytes(out, "out");
  if (!out.writeable()) throw Error(ErrorClass::kValue, "out: it is read-only");
  if (begin > t.bytes || to.size() > t.bytes - begin) {
    throw Error(ErrorClass::kShape,
                "out: expected at most " +
                    std::to_string(begin > t.bytes ? 0 : t.bytes - begin) +
                    " bytes, got " + std::to_string(to.size()));
  }
  auto* data = static_cast<uint8_t*>(out.mutable_data());
  const GilRelease nogil;
  const MappedFile& in = *file.files.at(t.shard);
  in.CheckUnchanged();
  in.Read({t.data + begin, to.size()}, data, once ? Caching::kNone : Caching::kAsUsual);
}

py::list Tensors(const File& file) {
  py::list tensors;
  for (const TensorView& t : file.tensors) tensors.append(Describe(t));
  return tensors;
}

py::list Paths(const File& file) {
  py::list paths;
  for (const auto& f : file.files) paths.append(FsText(f->path()));
  return paths;
}

uint64_t FileBytes(const File& file) {
  uint64_t bytes = 0;
  for (const auto& f : file.files) bytes += f->bytes().size();
  return bytes;
}

using Limits = std::map<std::string, uint64_t>;

std::shared_ptr<File> OpenGgufAs(const std::string& path, const std::string& load,
                                 const Limits& limits) {
  const GgufLimits allowed = AsLimits(limits).gguf;
  const Reading reading = ReadingAs(load);
  const GilRelease nogil;
  GgufFile g = OpenGguf(path, allowed, reading);
  return std::make_shared<File>(File{.files = std::move(g.files),
                                     .tensors = std::move(g.tensors),
                                     .warnings = std::move(g.warnings),
                                     .gguf = std::move(g.metadata),
                                     .safetensors = {}});
}

std::shared_ptr<File> OpenSafetensorsAs(const std::string& path,
                                        const std::string& load, const Limits& limits) {
  const SafetensorsLimits allowed = AsLimits(limits).safetensors;
  const Reading reading = ReadingAs(load);
  const GilRelease nogil;
  SafetensorsFile s = OpenSafetensors(path, allowed, reading);
  return std::make_shared<File>(File{.files = std::move(s.files),
                                     .tensors = std::move(s.tensors),
                                     .warnings = std::move(s.warnings),
                                     .gguf = {},
                                     .safetensors = std::move(s.metadata)});
}

void BindFile(py::module_& m) {
  py::class_<File, std::shared_ptr<File>>(m, "File")
      .def_property_readonly("tensors", &Tensors)
      .def_property_readonly("metadata", &Metadata)
      .def_property_readonly("rendered_metadata", &Rendered)
      .def_property_readonly("warnings", [](const File& f) { return f.warnings; })
      .def_property_readonly("paths", &Paths)
      .def_property_readonly("file_bytes", &FileBytes)
      .def("tensor_bytes", &TensorBytes, py::arg("index"))
      .def("read", &ReadTensor, py::arg("index"), py::arg("begin"), py::arg("out"),
           py::arg("once"));
  m.def("open_gguf", &OpenGgufAs, py::arg("path"), py::arg("load"), py::arg("limits"));
  m.def(
      "whole_of", [](const std::string& path) { return FsText(WholeOf(path)); },
      py::arg("path"));
  m.def("open_safetensors", &OpenSafetensorsAs, py::arg("path"), py::arg("load"),
        py::arg("limits"));
}

std::shared_ptr<Tokenizer> TokenizerFromJson(const std::string& path) {
  const JsonDocument document = ReadJsonFile(path);
  try {
    return std::make_shared<Tokenizer>(
        Tokenizer::FromJson(document.root(), nullptr, nullptr));
  } catch (const Error& e) {
    throw e.WithPath(path);
  }
}

void BindTokenizer(py::module_& m) {
  py::class_<Tokenizer, std::shared_ptr<Tokenizer>>(m, "Tokenizer")
      .def_static(
          "from_gguf",
          [](const std::string& path) {
            const GilRelease nogil;
            return std::make_shared<Tokenizer>(Tokenizer::FromGguf(OpenGguf(path)));
          },
          py::arg("path"))
      .def_static(
          "from_json",
          [](const std::string& path) {
            const GilRelease nogil;
            return TokenizerFromJson(path);
          },
          py::arg("path"))
      .def(
          "encode",
          [](const Tokenizer& t, const py::bytes& text, bool special) {
            const std::string_view view = text;
            const auto poll = MakeContext(1).poll;
            const GilRelease nogil;
            return t.Encode(view, special, poll);
          },
          py::arg("text"), py::arg("special"))
      .def(
          "decode",
          [](const Tokenizer& t, const std::vector<int32_t>& ids, bool special) {
            std::string text;
            {
              const GilRelease nogil;
              text = t.Decode(ids, special);
            }
            return py::bytes(text);
          },
          py::arg("ids"), py::arg("special"))
      .def(
          "piece",
          [](const Tokenizer& t, int32_t id) {
            const std::string_view piece = t.Piece(id);
            return py::bytes(piece.data(), piece.size());
          },
          py::arg("id"))
      .def("find", &Tokenizer::FindToken, py::arg("text"))
      .def("is_control", &Tokenizer::IsControl, py::arg("id"))
      .def("is_eog", &Tokenizer::IsEog, py::arg("id"))
      .def_property_readonly("num_tokens", &Tokenizer::num_tokens)
      .def_property_readonly("bos", &Tokenizer::bos)
      .def_property_readonly("eos", &Tokenizer::eos)
      .def_property_readonly("unk", &Tokenizer::unk)
      .def_property_readonly("pad", &Tokenizer::pad)
      .def_property_readonly("add_bos", &Tokenizer::add_bos)
      .def_property_readonly("eog", &Tokenizer::eog)
      .def_property_readonly("chat_template", [](const Tokenizer& t) {
        return TextOrBytes(t.chat_template());
      });
  // The tokenizer outlives its decoders.
  py::class_<StreamDecoder>(m, "StreamDecoder")
      .def(py::init<const Tokenizer&, bool>(), py::arg("tokenizer"), py::arg("special"),
           py::keep_alive<1, 2>())
      .def("push", &StreamDecoder::Push, py::arg("id"))
      .def("finish", &StreamDecoder::Finish);
}

}  // namespace

void RegisterFiles(py::module_& m) {
  BindFile(m);
  BindTokenizer(m);
}

}  // namespace halfbyte
