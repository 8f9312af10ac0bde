// csrc/kernels/lane_sums-inl.h
// The sums over the lanes of several vectors at once: halves of two vectors are added
// in one vector, then quarters of two of those, and so on, which takes three
// instructions a sum where one vector alone takes ten. Lanes meet in the same order
// however many there are, so the bits are the same.
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_LANE_SUMS_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_LANE_SUMS_INL_TOGGLE
#undef HALFBYTE_KERNELS_LANE_SUMS_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_LANE_SUMS_INL_TOGGLE
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Of each 2 * kHalf lanes, the lower half plus the upper half: of `a` in the lower half
// of the result, of `b` in its upper half.
template <size_t kHalf, class D>
HWY_INLINE hn::Vec<D> AddHalves(D d, hn::Vec<D> a, hn::Vec<D> b) {
  if constexpr (2 * kHalf == HWY_MAX_LANES_D(D)) {
    return hn::Add(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a));
  } else if constexpr (kHalf == 4) {
    return hn::Add(hn::OddEvenBlocks(b, a),
                   hn::SwapAdjacentBlocks(hn::OddEvenBlocks(a, b)));
  } else if constexpr (kHalf == 2) {
    const hn::Repartition<uint64_t, D> d64;
    const auto a64 = hn::BitCast(d64, a), b64 = hn::BitCast(d64, b);
    return hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, a64, b64)),
                   hn::BitCast(d, hn::InterleaveUpper(d64, a64, b64)));
  } else {
    static_assert(kHalf == 1);
    return hn::Add(hn::OddEven(b, a), hn::Reverse2(d, hn::OddEven(a, b)));
  }
}

// v[0] becomes the sums of groups of 2 * kHalf lanes of M vectors, of which each has a
// part of every group; M is a power of two.
template <size_t M, size_t kHalf, class D, class V>
HWY_INLINE void FoldLanes(D d, V* v) {
  constexpr size_t kLeft = HWY_MAX(M / 2, size_t{1});
  HALFBYTE_UNROLL
  for (size_t i = 0; i < kLeft; ++i) {
    v[i] = AddHalves<kHalf>(d, v[i], v[M == 1 ? i : i + kLeft]);
  }
  if constexpr (kHalf > 1) FoldLanes<kLeft, kHalf / 2>(d, v);
}

// out[i] = scale * the sum of the lanes of v[i], for M vectors. They are overwritten.
template <size_t M, class D, class V>
HWY_INLINE void StoreLaneSums(D d, V* v, float scale, float* out) {
  constexpr size_t kLanes = HWY_MAX_LANES_D(D), kNow = HWY_MIN(M, kLanes);
  FoldLanes<kNow, kLanes / 2>(d, v);
  const auto sums = hn::Mul(v[0], hn::Set(d, scale));
  if constexpr (kNow == kLanes) {
    hn::StoreU(sums, d, out);
  } else {
    HWY_ALIGN float lanes[kLanes];
    hn::Store(sums, d, lanes);
    for (size_t i = 0; i < M; ++i) out[i] = lanes[i * (kLanes / M)];
  }
  if constexpr (M > kNow) StoreLaneSums<M - kNow>(d, v + kNow, scale, out + kNow);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
