// csrc/kernels/softmax-inl.h
// The two passes that softmax, log-sum-exp and attention have in common.
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_SOFTMAX_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_SOFTMAX_INL_TOGGLE
#undef HALFBYTE_KERNELS_SOFTMAX_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_SOFTMAX_INL_TOGGLE
#endif

#include <stddef.h>

#include <limits>

#include "hwy/highway.h"
#include "kernels/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The largest element, -inf of none. NaN may or may not be seen: whoever sums the
// exponentials afterwards sees it.
HWY_INLINE float MaxOf(const float* x, size_t n) {
  const hn::ScalableTag<float> df;
  const auto none = hn::Set(df, -std::numeric_limits<float>::infinity());
  auto max = none;
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    max = hn::Max(max, io.LoadOr(none, df, x + i));
  });
  return hn::ReduceMax(df, max);
}

// Returns the sum of exp(x[i] - max), in double, and gives use(i, io, e) each vector of
// them. Sums in f32 would lose up to n ulp: a row can have 262 144 elements.
template <class Use>
HWY_INLINE double SumOfExp(const float* x, size_t n, float max, const Use& use) {
  const hn::ScalableTag<float> df;
  const hn::Repartition<double, decltype(df)> dd;
  const auto none = hn::Set(df, -std::numeric_limits<float>::infinity());
  const auto shift = hn::Set(df, max);
  auto sum0 = hn::Zero(dd), sum1 = hn::Zero(dd);
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    const auto e = Exp(df, hn::Sub(io.LoadOr(none, df, x + i), shift));
    AccumulateDouble(df, e, sum0, sum1);
    use(i, io, e);
  });
  return hn::ReduceSum(dd, hn::Add(sum0, sum1));
}

// True if any element is NaN.
HWY_INLINE bool AnyNaN(const float* x, size_t n) {
  const hn::ScalableTag<float> df;
  bool any = false;
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    any |= !hn::AllFalse(df, hn::IsNaN(io.Load(df, x + i)));
  });
  return any;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
