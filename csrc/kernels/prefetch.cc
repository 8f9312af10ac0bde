// csrc/kernels/prefetch.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/prefetch.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace halfbyte {

bool IntelCore() {
#if defined(__x86_64__) || defined(__i386__)
  static const bool is_intel = [] {
    unsigned max = 0, ebx = 0, ecx = 0, edx = 0;
    __get_cpuid(0, &max, &ebx, &ecx, &edx);
    return ebx == signature_INTEL_ebx && edx == signature_INTEL_edx &&
           ecx == signature_INTEL_ecx;
  }();
  return is_intel;
#else
  return false;
#endif
}

}  // namespace halfbyte
