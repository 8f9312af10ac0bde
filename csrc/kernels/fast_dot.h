// csrc/kernels/fast_dot.h
// Byte dot products that only some CPUs of an instruction set have.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_FAST_DOT_H_
#define HALFBYTE_KERNELS_FAST_DOT_H_

#include <stdint.h>

namespace halfbyte {

// True if this CPU has one beside `target` (an HWY_TARGET): AVX-512 VNNI on Cascade
// Lake beside AVX3, AVX-VNNI on Alder Lake beside AVX2, SDOT on Armv8.2 beside NEON.
bool CpuHasFastDot(int64_t target);

// True if kernels compiled for `target` are to use it: it is there and not switched
// off.
bool UseFastDot(int64_t target);

// For tests and measurements; part of the choice of a target.
void AllowFastDot(bool allowed);

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_FAST_DOT_H_
