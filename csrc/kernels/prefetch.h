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
// prefetching pays on every CPU, or costs nothing.
inline constexpr size_t kPrefetchTokens = 3;

// Cores that want to be asked in a way of their own. Intel's hold too few waiting
// instructions to look further ahead than some lines: computing and reading would take
// turns. Zen 5 computes twice as fast as Zen 4, whose core and prefetcher do well alone
// for one token and for two. Before Zen 4, AMD's prefetchers are too slow for one
// stream of weights, and do well with several.
enum class Core { kOther, kIntel, kZen3, kZen5 };
Core ThisCore();

// Always inlined, and so are its callers: a function that only prefetches has no
// effect, thinks GCC 12, and drops calls of it that it has not inlined by then. kBytes
// from `data` on, into the first cache or the second.
template <int kCache, size_t kBytes = kLineBytes>
[[gnu::always_inline]] inline void Prefetch(const uint8_t* data) {
#pragma GCC unroll 16
  for (size_t i = 0; i < kBytes; i += kLineBytes) {
    __builtin_prefetch(data + i, 0, kCache == 1 ? 3 : 2);
  }
}

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_PREFETCH_H_
