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

// Compared as bits: what Max does with NaN differs between instruction sets.
float MaxMagnitudeTarget(const float* x, size_t K) {
  const hn::CappedTag<float, 16> df;
  const hn::RebindToSigned<decltype(df)> di32;
  const size_t lanes = hn::Lanes(df);
  auto max = hn::Zero(di32);
  size_t i = 0;
  for (; i + lanes <= K; i += lanes) {
    max = hn::Max(max, hn::BitCast(di32, hn::Abs(hn::LoadU(df, x + i))));
  }
  if (i < K) {
    max = hn::Max(max, hn::BitCast(di32, hn::Abs(hn::LoadN(df, x + i, K - i))));
  }
  const int32_t bits = hn::ReduceMax(di32, max);
  return bits >= 0x7F800000 ? std::numeric_limits<float>::quiet_NaN()
                            : hwy::BitCastScalar<float>(bits);
}

int32_t QuantizeI8Target(const float* x, size_t K, float step, int8_t* codes) {
  const hn::CappedTag<float, 16> df;
  const hn::RebindToSigned<decltype(df)> di32;
  const hn::Rebind<int8_t, decltype(df)> di8;
  const size_t lanes = hn::Lanes(df);
  const auto d = hn::Set(df, step);
  const auto low = hn::Set(df, -128.0f), high = hn::Set(df, 127.0f);
  auto sum = hn::Zero(di32);
  for (size_t i = 0; i < K; i += lanes) {
    const size_t n = HWY_MIN(lanes, K - i);
    const auto v = n == lanes ? hn::LoadU(df, x + i) : hn::LoadN(df, x + i, n);
    const auto level = hn::Div(v, d);
    const auto number = hn::IfThenElseZero(hn::Eq(level, level), level);
    const auto code = hn::NearestInt(hn::Min(hn::Max(number, low), high));
    sum = hn::Add(sum, code);
    hn::StoreN(hn::DemoteTo(di8, code), di8, codes + i, n);
  }
  return -hn::ReduceSum(di32, sum);
}

int32_t NegativeSumTarget(const int8_t* codes, size_t K) {
  const hn::CappedTag<int8_t, 64> di8;
  const hn::RebindToUnsigned<decltype(di8)> du8;
  const hn::Repartition<int32_t, decltype(di8)> di32;
  const auto ones = hn::Set(du8, uint8_t{1});
  const size_t lanes = hn::Lanes(di8);
  auto sum = hn::Zero(di32);
  for (size_t i = 0; i < K; i += lanes) {
    const size_t n = HWY_MIN(lanes, K - i);
    const auto v =
        n == lanes ? hn::LoadU(di8, codes + i) : hn::LoadN(di8, codes + i, n);
    sum = hn::SumOfMulQuadAccumulate(di32, ones, v, sum);
  }
  return -hn::ReduceSum(di32, sum);
}

// The sum of 16 codes: of bytes without a sign, 128 more each.
int32_t SumOf16(const int8_t* q) {
  const hn::Full128<uint8_t> du8;
  const auto codes = hn::LoadU(du8, reinterpret_cast<const uint8_t*>(q));
  const auto sums = hn::SumsOf8(hn::Xor(codes, hn::Set(du8, uint8_t{128})));
  const uint64_t sum = hn::GetLane(sums) + hn::ExtractLane(sums, 1);
  return static_cast<int32_t>(sum) - 16 * 128;
}

void NegativeSums(Q8Block& b) {
  b.neg_sum_last = -SumOf16(b.q + Q8Block::kLen / 2);
  b.neg_sum = b.neg_sum_last - SumOf16(b.q);
  b.biased_start = kSumBiasBits + 8 * b.neg_sum;
}

void QuantizeBlock(const float* x, Q8Block& b) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int8_t, decltype(df)> di8;
  b.d = MaxMagnitudeTarget(x, Q8Block::kLen) / 127.0f;
  if (!(b.d > 0.0f)) {  // zeros, or not finite: codes 0
    for (int8_t& q : b.q) q = 0;
    return NegativeSums(b);
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
HWY_EXPORT(MaxMagnitudeTarget);
HWY_EXPORT(QuantizeI8Target);
HWY_EXPORT(NegativeSumTarget);

float MaxMagnitude(const float* x, size_t K) noexcept {
  return HWY_DYNAMIC_DISPATCH(MaxMagnitudeTarget)(x, K);
}

int32_t QuantizeI8(const float* x, size_t K, float step, int8_t* codes) noexcept {
  return HWY_DYNAMIC_DISPATCH(QuantizeI8Target)(x, K, step, codes);
}

int32_t NegativeSum(const int8_t* codes, size_t K) noexcept {
  return HWY_DYNAMIC_DISPATCH(NegativeSumTarget)(codes, K);
}

void QuantizeQ8(const float* x, size_t K, Q8Block* out) noexcept {
  HWY_DYNAMIC_DISPATCH(QuantizeQ8Target)(x, K, out);
}

}  // namespace halfbyte
#endif  // HWY_ONCE
