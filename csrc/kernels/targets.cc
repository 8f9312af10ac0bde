// csrc/kernels/targets.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/targets.h"

#include <stdint.h>

#include "base/error.h"
#include "base/targets.h"  // before any Highway header
#include "hwy/highway.h"
#include "hwy/targets.h"
#include "kernels/format_kernels.h"

namespace halfbyte {
std::vector<std::string> CpuTargets() {
  const int64_t in_use = hwy::SupportedTargets();
  hwy::SetSupportedTargetsForTest(0);
  std::vector<std::string> names;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    names.push_back(hwy::TargetName(target));
  }
  hwy::SetSupportedTargetsForTest(in_use);
  return names;
}

std::string CpuTarget() { return hwy::TargetName(KernelsFor(Format::kF32).target); }

void SetCpuTarget(std::string_view name) {
  hwy::SetSupportedTargetsForTest(0);
  if (!name.empty()) {
    int64_t found = 0;
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      if (name == hwy::TargetName(target)) found = target;
    }
    if (found == 0) {
      std::string known;
      for (const std::string& n : CpuTargets())
        known += (known.empty() ? "" : ", ") + n;
      throw Error(ErrorClass::kValue,
                  "target: found '" + Escape(name) + "'; expected one of " + known);
    }
    hwy::SetSupportedTargetsForTest(found);
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace halfbyte
