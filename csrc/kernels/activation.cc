// csrc/kernels/activation.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation.h"

#include "base/targets.h"  // before any Highway header

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/activation.cc"  // this file, re-included per target
// clang-format on
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h
#include "kernels/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

void GeluMul(const float* gate, const float* up, size_t n, float* y) {
  const hn::ScalableTag<float> df;
  const auto one = hn::Set(df, 1.0f);
  // 0.5 (1 + tanh(u)) = sigmoid(2u), 2u = g (c + d g^2): c = 2 sqrt(2 / pi),
  // d = 0.044715 c. Not through tanh: 1 + tanh cancels for negative u.
  const auto c = hn::Set(df, 1.59576912f), d = hn::Set(df, 0.0713548163f);
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    const auto g = io.Load(df, gate + i);
    const auto two_u = hn::Mul(g, hn::MulAdd(hn::Mul(g, g), d, c));
    // exp of a negative argument only: it never overflows, and its smallest values
    // survive as they are.
    const auto e = Exp(df, hn::Neg(hn::Abs(two_u)));
    const auto above = hn::IfThenElse(hn::Lt(two_u, hn::Zero(df)), e, one);
    const auto gelu = hn::Mul(g, hn::Div(above, hn::Add(one, e)));
    io.Store(hn::Mul(gelu, io.Load(df, up + i)), df, y + i);
  });
}

void Softcap(float* x, size_t n, float cap) {
  const hn::ScalableTag<float> df;
  const auto scale = hn::Set(df, cap), inverse = hn::Set(df, 1.0f / cap);
  ForVectors(df, 0, n, [&](size_t i, auto io) HWY_ATTR {
    const auto t = Tanh(df, hn::Mul(io.Load(df, x + i), inverse));
    io.Store(hn::Mul(scale, t), df, x + i);
  });
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfbyte {

HWY_EXPORT(GeluMul);
HWY_EXPORT(Softcap);

void GeluMul(const float* gate, const float* up, size_t n, float* y) noexcept {
  HWY_DYNAMIC_DISPATCH(GeluMul)(gate, up, n, y);
}

void Softcap(float* x, size_t n, float cap) noexcept {
  HWY_DYNAMIC_DISPATCH(Softcap)(x, n, cap);
}

}  // namespace halfbyte
#endif  // HWY_ONCE
