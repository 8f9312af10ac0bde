// csrc/kernels/fast_dot.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/fast_dot.h"

#include <atomic>

#include "base/targets.h"  // before any Highway header
#include "hwy/highway.h"

#if HWY_ARCH_X86
#include <cpuid.h>
#elif HWY_ARCH_ARM_A64 && HWY_OS_LINUX
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace halfbyte {
namespace {

std::atomic<bool> is_allowed{true};

#if HWY_ARCH_X86
struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// CPUID leaf 7. That the operating system saves the vector registers, Highway has found
// out for the target.
Registers Leaf7(unsigned subleaf) {
  Registers r;
  __get_cpuid_count(7, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}
#endif

}  // namespace

bool CpuHasFastDot([[maybe_unused]] int64_t target) {
#if HWY_ARCH_X86
  static const bool avx512_vnni = (Leaf7(0).ecx >> 11 & 1) != 0;
  static const bool avx_vnni = (Leaf7(1).eax >> 4 & 1) != 0;
  if (target == HWY_AVX3) return avx512_vnni;
  if (target == HWY_AVX2) return avx_vnni;
#elif HWY_ARCH_ARM_A64 && HWY_OS_LINUX
  static const bool dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  if (target == HWY_NEON || target == HWY_NEON_WITHOUT_AES) return dotprod;
#endif
  return false;
}

bool UseFastDot(int64_t target) {
  return is_allowed.load(std::memory_order_relaxed) && CpuHasFastDot(target);
}

void AllowFastDot(bool allowed) { is_allowed = allowed; }

}  // namespace halfbyte
