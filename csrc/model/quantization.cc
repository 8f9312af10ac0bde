// csrc/model/quantization.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/quantization.h"

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "formats/named.h"
#include "model/checkpoint.h"

namespace halfbyte {
namespace {

constexpr const char* kKey = "quantization_config";

[[noreturn]] void Bad(ErrorClass cls, const char* code, const std::string& key,
                      std::string found, std::string expected) {
  ErrorInfo info;
  info.kind = "model";
  info.code = code;
  info.key = kKey + (key.empty() ? "" : "." + key);
  info.subject = "key '" + info.key + "'";
  info.found = std::move(found);
  info.expected = std::move(expected);
  throw Error(cls, std::move(info));
}

// What a message calls a value: its text if it is one.
std::string Shown(const std::optional<JsonValue>& v) {
  if (!v) return "none";
  return v->IsString() ? "'" + Escape(v->AsString()) + "'" : v->Describe();
}

// The members of `value`, which `key` has in the config.
JsonMembers MembersOf(const JsonValue& value, const std::string& key) {
  if (value.IsObject()) return value.Members();
  Bad(ErrorClass::kModel, "MODEL_HPARAM", key, Shown(value), "an object");
}

// The bits that `object` names, 2, 4 or 8; `fallback` if it names none.
unsigned WidthOf(const JsonValue& object, const std::string& key, unsigned fallback) {
  const std::optional<JsonValue> v = object.Get("num_bits");
  if (!v) return fallback;
  const int64_t bits = v->IsInteger() ? v->AsInt64() : 0;
  if (bits != 2 && bits != 4 && bits != 8) {
    Bad(ErrorClass::kModel, "MODEL_HPARAM", key, v->Describe(), "2, 4 or 8");
  }
  return static_cast<unsigned>(bits);
}

Quantization ReadGemma(const JsonValue& config) {
  constexpr unsigned kDefaultBits = 4;  // of transformers
  const unsigned bits = WidthOf(config, "num_bits", kDefaultBits);
  Quantization q = {.method = QuantMethod::kGemma, .widths = bits};
  if (const auto modules = config.Get("module_quant_configs")) {
    for (const JsonMember& member : MembersOf(*modules, "module_quant_configs")) {
      q.widths |= WidthOf(member.value, "module_quant_configs.num_bits", bits);
    }
  }
  return q;
}

// ---- compressed-tensors

std::string_view Text(const JsonValue& object, std::string_view key) {
  const auto v = object.Get(key);
  return v ? v->AsString() : std::string_view();
}

[[noreturn]] void Unsupported(const std::string& key, const JsonValue& object,
                              std::string_view member, std::string expected) {
  Bad(ErrorClass::kUnsupported, "MODEL_QUANTIZATION",
      (key.empty() ? "" : key + ".") + std::string(member), Shown(object.Get(member)),
      std::move(expected));
}

// Integers around zero; what else there is, floats and zero points, is refused.
unsigned IntegerWidth(const std::string& key, const JsonValue& args) {
  if (Text(args, "type") != "int") Unsupported(key, args, "type", "'int'");
  const auto symmetric = args.Get("symmetric");
  if (symmetric && !symmetric->AsBool()) {
    Unsupported(key, args, "symmetric", "true: weights without zero points");
  }
  return WidthOf(args, key + ".num_bits", 8);  // the library's default
}

void CheckFormat(const std::string& key, const JsonValue& object) {
  if (!object.Get("format")) return;
  const std::string_view format = Text(object, "format");
  for (const char* known : {"pack-quantized", "int-quantized", "naive-quantized",
                            "mixed-precision", "dense"}) {
    if (format == known) return;
  }
  Unsupported(key, object, "format", "pack-quantized or int-quantized");
}

Quantization ReadCompressedTensors(const JsonValue& config) {
  Quantization q = {.method = QuantMethod::kCompressedTensors};
  CheckFormat("", config);
  const auto groups = config.Get("config_groups");
  if (!groups) return q;
  for (const JsonMember& member : MembersOf(*groups, "config_groups")) {
    const JsonValue& group = member.value;
    CheckFormat("config_groups", group);
    if (const auto weights = group.Get("weights")) {
      q.widths |= IntegerWidth("config_groups.weights", *weights);
    }
    for (const std::string side : {"input_activations", "output_activations"}) {
      const auto args = group.Get(side);
      if (args && IntegerWidth("config_groups." + side, *args) != 8) {
        Unsupported("config_groups." + side, *args, "num_bits", "8");
      }
    }
  }
  return q;
}

// ---- halfbyte

Format FormatNamedBy(const JsonValue& value, const std::string& key) {
  const FormatInfo* info =
      value.IsString() ? FindFormatNamed(value.AsString()) : nullptr;
  if (info != nullptr) return info->format;
  Bad(value.IsString() ? ErrorClass::kUnsupported : ErrorClass::kModel,
      value.IsString() ? "MODEL_QUANTIZATION" : "MODEL_HPARAM", key, Shown(value),
      "a format of halfbyte, such as 'q4_0'");
}

Quantization ReadHalfbyte(const JsonValue& config) {
  const std::string key = "module_formats";
  const auto modules = config.Get(key);
  if (!modules) {
    Bad(ErrorClass::kModel, "MODEL_HPARAM", key, "none",
        "the packed modules and their formats, as save_pretrained writes them");
  }
  Quantization q = {.method = QuantMethod::kHalfbyte};
  for (const JsonMember& member : MembersOf(*modules, key)) {
    const std::string module = key + "." + Escape(member.key);
    const Format format = FormatNamedBy(member.value, module);
    const auto [at, is_new] = q.formats.emplace(WithoutRoot(member.key), format);
    // Two names of one module differ by their roots.
    if (is_new || at->second == format) continue;
    Bad(ErrorClass::kModel, "MODEL_HPARAM", module,
        Shown(member.value) + ", and '" + InfoOf(at->second).stem + "' by another name",
        "one format of a module");
  }
  return q;
}

}  // namespace

Quantization QuantizationFromJson(const JsonValue& root) {
  std::optional<JsonValue> config = root.Get(kKey);
  if (const auto text = root.Get("text_config"); !config && text) {
    config = text->Get(kKey);
  }
  if (!config) return {};
  if (!config->IsObject()) {
    Bad(ErrorClass::kModel, "MODEL_HPARAM", "", Shown(config), "an object");
  }
  const auto method = config->Get("quant_method");
  const std::string_view name =
      method && method->IsString() ? method->AsString() : std::string_view();
  if (name == "gemma") return ReadGemma(*config);
  if (name == "compressed-tensors") return ReadCompressedTensors(*config);
  if (name == "halfbyte") return ReadHalfbyte(*config);
  Bad(ErrorClass::kUnsupported, "MODEL_QUANTIZATION", "quant_method", Shown(method),
      "gemma, compressed-tensors or halfbyte");
}

}  // namespace halfbyte
