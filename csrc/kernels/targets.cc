// csrc/kernels/targets.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/targets.h"

#include <stdint.h>

#include "base/error.h"
#include "base/targets.h"  // before any Highway header
#include "hwy/highway.h"
#include "hwy/targets.h"
#include "kernels/fast_dot.h"
#include "kernels/format_kernels.h"

namespace halfbyte {
namespace {

// "AVX3+MADD": the target without the byte dot product that this CPU has beside it;
// "AVX3+VNNI" is the same as "AVX3".
#if HWY_ARCH_ARM
constexpr std::string_view kFast = "+SDOT", kPlain = "+SMULL";
#else
constexpr std::string_view kFast = "+VNNI", kPlain = "+MADD";
#endif

std::string NameOf(int64_t target, bool fast) {
  std::string name = hwy::TargetName(target);
  if (CpuHasFastDot(target)) name += fast ? kFast : kPlain;
  return name;
}

struct Choice {
  int64_t target;
  bool fast;
};

std::vector<Choice> Choices() {
  const int64_t in_use = hwy::SupportedTargets();
  hwy::SetSupportedTargetsForTest(0);
  std::vector<Choice> choices;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    choices.push_back({target, true});
    if (CpuHasFastDot(target)) choices.push_back({target, false});
  }
  hwy::SetSupportedTargetsForTest(in_use);
  return choices;
}

Choice ChoiceNamed(std::string_view name) {
  const std::vector<Choice> choices = Choices();
  for (const Choice& c : choices) {
    const bool is_short = c.fast && name == hwy::TargetName(c.target);
    if (is_short || name == NameOf(c.target, c.fast)) return c;
  }
  std::string known;
  for (const Choice& c : choices) {
    known += (known.empty() ? "" : ", ") + NameOf(c.target, c.fast);
  }
  throw Error(ErrorClass::kValue, "target: found '" + Escape(name) +
                                      "'; expected what this CPU has: " + known);
}

}  // namespace

std::vector<std::string> CpuTargets() {
  std::vector<std::string> names;
  for (const Choice& c : Choices()) names.push_back(NameOf(c.target, c.fast));
  return names;
}

std::string CpuTarget() {
  const int64_t target = KernelsFor(Format::kF32).target;
  return NameOf(target, UseFastDot(target));
}

std::string CpuDot() { return KernelsFor(Format::kQ4_0).dot; }

void SetCpuTarget(std::string_view name) {
  const Choice choice = name.empty() ? Choice{0, true} : ChoiceNamed(name);
  AllowFastDot(choice.fast);
  hwy::SetSupportedTargetsForTest(choice.target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace halfbyte
