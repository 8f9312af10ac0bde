// csrc/kernels/prefetch.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/prefetch.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace halfbyte {

#if defined(__x86_64__) || defined(__i386__)
namespace {

Core DetectCore() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  __get_cpuid(0, &eax, &ebx, &ecx, &edx);
  if (ebx == signature_INTEL_ebx && edx == signature_INTEL_edx &&
      ecx == signature_INTEL_ecx) {
    return Core::kIntel;
  }
  if (ebx != signature_AMD_ebx) return Core::kOther;
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);
  const unsigned family = (eax >> 8 & 15) + (eax >> 20 & 255);
  if (family >= 0x1A) return Core::kZen5;
  // Zen 3 and 4 share a family, and the models of either are not in a row.
  const bool leaf7 = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0;
  return leaf7 && (ebx & bit_AVX512F) != 0 ? Core::kOther : Core::kZen3;
}

}  // namespace
#endif

Core ThisCore() {
#if defined(__x86_64__) || defined(__i386__)
  static const Core core = DetectCore();
  return core;
#else
  return Core::kOther;
#endif
}

}  // namespace halfbyte
