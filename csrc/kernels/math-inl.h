// csrc/kernels/math-inl.h
// What several kernels share: exp and tanh of a vector, and the loop over a row with
// its tail.
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_MATH_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_MATH_INL_TOGGLE
#undef HALFBYTE_KERNELS_MATH_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_MATH_INL_TOGGLE
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// How the body of ForVectors touches memory: a whole vector, or the first `len` lanes,
// no byte further. Pointers are aligned to their element, not to a vector.
struct WholeIo {
  template <class D>
  HWY_INLINE hn::Vec<D> Load(D d, const hn::TFromD<D>* p) const {
    return hn::LoadU(d, p);
  }
  // `other` fills the lanes behind the end.
  template <class D>
  HWY_INLINE hn::Vec<D> LoadOr(hn::Vec<D> /*other*/, D d,
                               const hn::TFromD<D>* p) const {
    return hn::LoadU(d, p);
  }
  template <class D>
  HWY_INLINE void Store(hn::Vec<D> v, D d, hn::TFromD<D>* p) const {
    hn::StoreU(v, d, p);
  }
  // The same for elements at any byte address.
  template <class D>
  HWY_INLINE hn::Vec<D> LoadBytes(D d, const uint8_t* p) const {
    return hn::BitCast(d, hn::LoadU(hn::Repartition<uint8_t, D>(), p));
  }
  template <class D>
  HWY_INLINE void StoreBytes(hn::Vec<D> v, D /*d*/, uint8_t* p) const {
    const hn::Repartition<uint8_t, D> du8;
    hn::StoreU(hn::BitCast(du8, v), du8, p);
  }
};

struct PartIo {
  template <class D>
  HWY_INLINE hn::Vec<D> Load(D d, const hn::TFromD<D>* p) const {
    return hn::LoadN(d, p, len);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> LoadOr(hn::Vec<D> other, D d, const hn::TFromD<D>* p) const {
    return hn::LoadNOr(other, d, p, len);
  }
  template <class D>
  HWY_INLINE void Store(hn::Vec<D> v, D d, hn::TFromD<D>* p) const {
    hn::StoreN(v, d, p, len);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> LoadBytes(D d, const uint8_t* p) const {
    const hn::Repartition<uint8_t, D> du8;
    return hn::BitCast(d, hn::LoadN(du8, p, len * sizeof(hn::TFromD<D>)));
  }
  template <class D>
  HWY_INLINE void StoreBytes(hn::Vec<D> v, D /*d*/, uint8_t* p) const {
    const hn::Repartition<uint8_t, D> du8;
    hn::StoreN(hn::BitCast(du8, v), du8, p, len * sizeof(hn::TFromD<D>));
  }
  size_t len;
};

// Calls body(i, io) for the vectors that begin at i = begin, begin + Lanes(d), … below
// n; the last may be partial.
template <class D, class Body>
HWY_INLINE void ForVectors(D d, size_t begin, size_t n, const Body& body) {
  const size_t lanes = hn::Lanes(d);
  size_t i = begin;
  for (; i + lanes <= n; i += lanes) body(i, WholeIo());
  if (i < n) body(i, PartIo{n - i});
}

// 2^k for integers k in [-126, 127].
template <class D, class VI>
HWY_INLINE hn::Vec<D> PowerOfTwo(D d, VI k) {
  const hn::RebindToSigned<D> di;
  return hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(k, hn::Set(di, 127))));
}

// With x = k ln 2 + r, |r| <= ln 2 / 2: returns exp(r) - 1 and sets k. For |x| < 2^15.
// The error relative to exp(r) is below 0.1 u by the polynomial (u = 2^-24, fitted on
// 1.02 times the interval) plus the rounding of the last operations.
template <class D, class VI>
HWY_INLINE hn::Vec<D> ReducedExpM1(D d, hn::Vec<D> x, VI& k) {
  const hn::RebindToSigned<D> di;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
  const auto big = hn::Set(d, 0x1.8p23f);
  const auto shifted = hn::MulAdd(x, hn::Set(d, 1.44269504f), big);
  k = hn::Sub(hn::BitCast(di, shifted), hn::BitCast(di, big));
  const auto kf = hn::Sub(shifted, big);
  // ln 2 in two parts. The upper has 15 bits, so that its product with k is exact where
  // there is no fused multiply-add.
  auto r = hn::NegMulAdd(kf, hn::Set(d, 0x1.62e4p-1f), x);
  r = hn::NegMulAdd(kf, hn::Set(d, 1.42860682e-6f), r);

  auto p = hn::MulAdd(r, hn::Set(d, 0x1.6a108ep-10f), hn::Set(d, 0x1.1245cep-7f));
  p = hn::MulAdd(r, p, hn::Set(d, 0x1.55593cp-5f));
  p = hn::MulAdd(r, p, hn::Set(d, 0x1.555482p-3f));
  p = hn::MulAdd(r, p, hn::Set(d, 0x1.fffffcp-2f));
  return hn::MulAdd(hn::Mul(r, r), p, r);
}

// exp(x) within 2 ulp, subnormal results included; exp(0) = 1 exactly. Below the
// smallest subnormal 0, above FLT_MAX infinity, NaN for NaN.
template <class D>
HWY_INLINE hn::Vec<D> Exp(D d, hn::Vec<D> x) {
  const hn::RebindToSigned<D> di;
  // Compare and select, because Min and Max of NaN differ between targets.
  const auto hi = hn::Set(d, 89.0f), lo = hn::Set(d, -104.0f);
  auto clamped = hn::IfThenElse(hn::Lt(x, hi), x, hi);
  clamped = hn::IfThenElse(hn::Gt(clamped, lo), clamped, lo);

  auto k = hn::Zero(di);
  const auto e = hn::Add(hn::Set(d, 1.0f), ReducedExpM1(d, clamped, k));
  // In two factors: k reaches -150 and 128, and one rounding makes the subnormals.
  const auto k0 = hn::ShiftRight<1>(k);
  const auto scaled =
      hn::Mul(hn::Mul(e, PowerOfTwo(d, k0)), PowerOfTwo(d, hn::Sub(k, k0)));
  return hn::IfThenElse(hn::IsNaN(x), x, scaled);
}

// tanh(x) within 4 ulp, also near 0, where it is built from exp(2 |x|) - 1 without ever
// adding 1. The sign of zero is kept; NaN for NaN.
template <class D>
HWY_INLINE hn::Vec<D> Tanh(D d, hn::Vec<D> x) {
  const hn::RebindToSigned<D> di;
  const auto one = hn::Set(d, 1.0f);
  const auto limit = hn::Set(d, 20.0f);  // tanh(10) rounds to 1
  const auto twice = hn::Abs(hn::Add(x, x));
  const auto t = hn::IfThenElse(hn::Lt(twice, limit), twice, limit);

  auto k = hn::Zero(di);
  const auto m1 = ReducedExpM1(d, t, k);
  const auto scale = PowerOfTwo(d, k);
  const auto exp_m1 = hn::MulAdd(scale, m1, hn::Sub(scale, one));
  const auto y = hn::Div(exp_m1, hn::Add(exp_m1, hn::Set(d, 2.0f)));
  return hn::IfThenElse(hn::IsNaN(x), x, hn::CopySign(y, x));
}

// Adds the lanes of `v`, as doubles, to the lanes of `sum0` and `sum1`.
template <class DF, class VD>
HWY_INLINE void AccumulateDouble(DF /*df*/, hn::Vec<DF> v, VD& sum0, VD& sum1) {
  const hn::Repartition<double, DF> dd;
  sum0 = hn::Add(sum0, hn::PromoteLowerTo(dd, v));
  sum1 = hn::Add(sum1, hn::PromoteUpperTo(dd, v));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
