// csrc/kernels/prefetch.h
// Asking memory for weights before they are read.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_PREFETCH_H_
#define HALFBYTE_KERNELS_PREFETCH_H_

#include <stddef.h>
#include <stdint.h>

namespace halfbyte {

inline constexpr size_t kLineBytes = 64;

// From so many tokens on, a pass over weights computes for longer than it reads, and
// prefetching pays on every CPU.
inline constexpr size_t kPrefetchTokens = 3;

// Here it pays from one token on. Intel's cores hold too few waiting instructions to
// look further ahead than some lines: computing and reading would take turns. On Zen 4
// it costs: its core and its prefetcher do well alone.
bool IntelCore();

// Into the second cache. Always inlined: a function that only prefetches has no effect,
// thinks GCC 12, and drops calls of it that it has not inlined by then.
[[gnu::always_inline]] inline void PrefetchLine(const uint8_t* line) {
  __builtin_prefetch(line, 0, 2);
}

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_PREFETCH_H_
