// csrc/kernels/targets.h
// Which of the compiled instruction sets runs.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_TARGETS_H_
#define HALFBYTE_KERNELS_TARGETS_H_

#include <string>
#include <string_view>
#include <vector>

namespace halfbyte {

// Compiled in and known to this CPU, best first: "AVX3_ZEN4", "AVX2", "SSE2". A target
// beside which this CPU has a byte dot product is there with it and without:
// "AVX3+VNNI", "AVX3+MADD"; "NEON+SDOT", "NEON+SMULL".
std::vector<std::string> CpuTargets();
// The one in use.
std::string CpuTarget();
// How it multiplies bytes: "VNNI", "MADD"; on Arm "SDOT", "SMULL"; "SIGNED" elsewhere.
std::string CpuDot();
// All kernels use this one from now on; an empty name means the best again. Not while
// other threads are inside the library. "AVX3" alone is the better of its two. Throws
// Error(kValue) if it is not in CpuTargets.
void SetCpuTarget(std::string_view name);

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_TARGETS_H_
