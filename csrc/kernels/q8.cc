// csrc/kernels/q8.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/q8.h"

#include "base/targets.h"  // before any Highway header

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/q8.cc"
// clang-format on
#include <limits>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The largest |x| of a block, or NaN if one of them is not finite. Compared as bits:
// what Max does with NaN differs between instruction sets.
float MaxMagnitude(const float* x) {
  const hn::CappedTag<float, 16> df;
  const hn::RebindToSigned<decltype(df)> di32;
  auto max = hn::Zero(di32);
  for (size_t i = 0; i < Q8Block::kLen; i += hn::Lanes(df)) {
    max = hn::Max(max, hn::BitCast(di32, hn::Abs(hn::LoadU(df, x + i))));
  }
  const int32_t bits = hn::ReduceMax(di32, max);
  return bits >= 0x7F800000 ? std::numeric_limits<float>::quiet_NaN()
                            : hwy::BitCastScalar<float>(bits);
}

void NegativeSums(Q8Block& b) {
  for (size_t i = 0; i < Q8Block::kLen / 4; ++i) {
    const int8_t* q = b.q + 4 * i;
    b.neg_sum[i] = static_cast<int16_t>(-(q[0] + q[1] + q[2] + q[3]));
  }
}

void QuantizeBlock(const float* x, Q8Block& b) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int8_t, decltype(df)> di8;
  b.d = MaxMagnitude(x) / 127.0f;
  if (!(b.d > 0.0f)) {  // zeros, or not finite: codes 0
    for (int8_t& q : b.q) q = 0;
    for (int16_t& sum : b.neg_sum) sum = 0;
    return;
  }
  const auto d = hn::Set(df, b.d);
  const auto limit = hn::Set(df, 127.0f);
  for (size_t i = 0; i < Q8Block::kLen; i += hn::Lanes(df)) {
    // A subnormal d is coarse: the quotient may pass 127.
    const auto level = hn::Div(hn::LoadU(df, x + i), d);
    const auto clamped = hn::Max(hn::Min(level, limit), hn::Neg(limit));
    hn::StoreU(hn::DemoteTo(di8, hn::NearestInt(clamped)), di8, b.q + i);
  }
  NegativeSums(b);
}

void QuantizeQ8Target(const float* x, size_t K, Q8Block* out) {
  for (size_t b = 0; b < K / Q8Block::kLen; ++b) {
    QuantizeBlock(x + b * Q8Block::kLen, out[b]);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfbyte {

HWY_EXPORT(QuantizeQ8Target);

void QuantizeQ8(const float* x, size_t K, Q8Block* out) noexcept {
  HWY_DYNAMIC_DISPATCH(QuantizeQ8Target)(x, K, out);
}

}  // namespace halfbyte
#endif  // HWY_ONCE
