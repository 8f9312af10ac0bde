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

// True if it pays from one token on. Intel's cores hold too few waiting instructions to
// look further ahead than some lines: computing and reading would take turns. On Zen 4
// it costs: its core and its prefetcher do well alone.
bool PrefetchOneToken();

// A function that does nothing else has no effect, thinks GCC 12, and drops calls of it
// that it has not inlined by then.
#define HALFBYTE_PREFETCH [[gnu::always_inline]] inline

// Into the second cache.
HALFBYTE_PREFETCH void PrefetchLine(const uint8_t* line) {
  __builtin_prefetch(line, 0, 2);
}

// kBytes of a stream, 4 KiB ahead. Locality 2: into the second cache, which is enough
// of a head start; 3: into the first.
template <size_t kBytes, int kLocality>
HALFBYTE_PREFETCH void PrefetchAhead(const uint8_t* stream) {
  constexpr size_t kAhead = 4096;
#pragma GCC unroll 16
  for (size_t i = 0; i < kBytes; i += kLineBytes) {
    __builtin_prefetch(stream + kAhead + i, 0, kLocality);
  }
}

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_PREFETCH_H_
