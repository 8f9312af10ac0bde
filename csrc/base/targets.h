// csrc/base/targets.h
// The one place that says which instruction sets are compiled. Include it before
// any Highway header. The build's baseline always stays enabled.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_BASE_TARGETS_H_
#define HALFBYTE_BASE_TARGETS_H_

#include "hwy/detect_compiler_arch.h"

// Opt-in before Highway 1.3: without it Ice Lake runs AVX3, whose byte dot product is
// ten instructions instead of one.
#define HWY_WANT_AVX3_DL

#if HWY_ARCH_ARM && HALFBYTE_ALL_TARGETS
// Tiles are arrays of registers, and SVE's have no size. CPUs with SVE run NEON's.
#define HWY_DISABLED_TARGETS (HWY_ALL_SVE | HWY_SCALAR)
#elif HWY_ARCH_ARM
// And no kernel uses what NEON's better targets add: AES, and arithmetic on f16 and
// bf16. SDOT is a policy of the baseline, as compilers before GCC 13.2 lack NEON_BF16.
#define HWY_DISABLED_TARGETS (HWY_ALL_SVE | HWY_NEON_BF16 | HWY_NEON | HWY_SCALAR)
#elif HALFBYTE_ALL_TARGETS  // tests and fuzzers: whatever this compiler can build
#if HWY_COMPILER_GCC_ACTUAL
// Byte-to-int repartition does not exist on HWY_SCALAR, which GCC falls back to.
#define HWY_DISABLED_TARGETS HWY_SCALAR
#endif
#elif HWY_ARCH_X86
// CPUs between the baseline and AVX2 are over ten years old: the baseline serves them.
// Sapphire Rapids adds arithmetic on f16 to AVX3_DL, and AMX: no kernel uses either.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_SPR | HWY_SCALAR)
#elif HWY_COMPILER_GCC_ACTUAL
#define HWY_DISABLED_TARGETS HWY_SCALAR
#endif

#endif  // HALFBYTE_BASE_TARGETS_H_
