// csrc/formats/traits.h
// What code that serves every format asks of one.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_FORMATS_TRAITS_H_
#define HALFBYTE_FORMATS_TRAITS_H_

#include <stddef.h>

namespace halfbyte {

template <class Fmt>
inline constexpr bool kIsFloat = Fmt::kBlockLen == 1;

// Weights are levels, to be multiplied by an f32 scale of their row that lies apart.
template <class Fmt>
inline constexpr bool kHasRowScale = requires {
  Fmt::kRowScale;
};

// The scale of a block is a bf16 instead of an f16.
template <class Fmt>
inline constexpr bool kHasBF16Scale = requires {
  Fmt::kBF16Scale;
};

// Groups of a block: weights that share a scale.
template <class Fmt>
inline constexpr size_t kGroups = Fmt::kBlockLen / Fmt::kGroupLen;

// Codes above 127 are no signed bytes. Where both factors must be signed they are taken
// as code - 128, which needs no start value.
template <class Fmt>
inline constexpr bool kIsWide = Fmt::kMaxCode > 127;

}  // namespace halfbyte
#endif  // HALFBYTE_FORMATS_TRAITS_H_
