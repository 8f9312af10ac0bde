// csrc/kernels/attention.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include <stdint.h>
#include <string.h>

#include "base/targets.h"  // before any Highway header

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention.cc"  // this file, re-included per target
// clang-format on
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h
#include "formats/half-inl.h"
#include "kernels/math-inl.h"
#include "kernels/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Elements of a cached row, and how a vector of them becomes f32.
struct F32Row {
  using T = float;
  template <class DF, class Io>
  static HWY_INLINE hn::Vec<DF> Load(DF df, const T* p, Io io) {
    return io.Load(df, p);
  }
};

struct F16Row {
  using T = uint16_t;
  template <class DF, class Io>
  static HWY_INLINE hn::Vec<DF> Load(DF df, const T* p, Io io) {
    return PromoteF16(df, io.Load(HalfBits<DF>(), p));
  }
};

// Two sums: the chain of FMAs is short and the next row is independent, so the core
// overlaps rows by itself.
template <class Row>
HWY_INLINE float DotRow(const float* q, const typename Row::T* k, size_t head_dim) {
  const hn::ScalableTag<float> df;
  const size_t lanes = hn::Lanes(df);
  auto sum0 = hn::Zero(df), sum1 = hn::Zero(df);
  size_t i = 0;
  for (; i + 2 * lanes <= head_dim; i += 2 * lanes) {
    const WholeIo io;
    sum0 = hn::MulAdd(hn::LoadU(df, q + i), Row::Load(df, k + i, io), sum0);
    sum1 = hn::MulAdd(hn::LoadU(df, q + i + lanes), Row::Load(df, k + i + lanes, io),
                      sum1);
  }
  ForVectors(df, i, head_dim, [&](size_t at, auto io) HWY_ATTR {
    sum0 = hn::MulAdd(io.Load(df, q + at), Row::Load(df, k + at, io), sum0);
  });
  return hn::ReduceSum(df, hn::Add(sum0, sum1));
}

// out += p[0] v[0] + p[1] v[1] + …, one after the other for each element: whoever calls
// it for 1 row or for 4 gets the same bits.
template <class Row>
HWY_INLINE void AddRow(float p, const typename Row::T* v, size_t head_dim, float* out) {
  const hn::ScalableTag<float> df;
  const auto weight = hn::Set(df, p);
  ForVectors(df, 0, head_dim, [&](size_t i, auto io) HWY_ATTR {
    const auto sum = io.Load(df, out + i);
    io.Store(hn::MulAdd(weight, Row::Load(df, v + i, io), sum), df, out + i);
  });
}

// Four rows for one load and store of `out`, which would otherwise bound the loop.
template <class Row>
HWY_INLINE void Add4Rows(const float* p, const typename Row::T* v, size_t ld,
                         size_t head_dim, float* out) {
  const hn::ScalableTag<float> df;
  const auto p0 = hn::Set(df, p[0]), p1 = hn::Set(df, p[1]);
  const auto p2 = hn::Set(df, p[2]), p3 = hn::Set(df, p[3]);
  ForVectors(df, 0, head_dim, [&](size_t i, auto io) HWY_ATTR {
    const auto* at = v + i;
    auto sum = io.Load(df, out + i);
    sum = hn::MulAdd(p0, Row::Load(df, at, io), sum);
    sum = hn::MulAdd(p1, Row::Load(df, at + ld, io), sum);
    sum = hn::MulAdd(p2, Row::Load(df, at + 2 * ld, io), sum);
    sum = hn::MulAdd(p3, Row::Load(df, at + 3 * ld, io), sum);
    io.Store(sum, df, out + i);
  });
}

// scores[n, j] = scale * q[n] . k[j]
template <class Row>
HWY_INLINE void Score(const AttendArgs& a, size_t ld) {
  float* score = a.scores;
  for (size_t s = 0; s < a.num_spans; ++s) {
    const auto* k = static_cast<const typename Row::T*>(a.spans[s].k);
    for (size_t j = 0; j < a.spans[s].len; ++j, ++score, k += a.k_ld) {
      for (size_t n = 0; n < a.num_queries; ++n) {
        score[n * ld] = a.scale * DotRow<Row>(a.q + n * a.q_ld, k, a.head_dim);
      }
    }
  }
}

// scores[j] becomes exp(scores[j] - max); returns 1 / their sum.
HWY_INLINE float Weigh(float* scores, size_t num) {
  const hn::ScalableTag<float> df;
  const auto store = [&](size_t i, auto io, auto e)
                         HWY_ATTR { io.Store(e, df, scores + i); };
  const double sum = SumOfExp(scores, num, MaxOf(scores, num), store);
  return static_cast<float>(1.0 / sum);
}

// out = scale * out
HWY_INLINE void Scale(float scale, size_t head_dim, float* out) {
  const hn::ScalableTag<float> df;
  ForVectors(df, 0, head_dim, [&](size_t i, auto io) HWY_ATTR {
    io.Store(hn::Mul(hn::Set(df, scale), io.Load(df, out + i)), df, out + i);
  });
}

// out[n] += sum of scores[n, j] v[j].
template <class Row>
HWY_INLINE void Mix(const AttendArgs& a, size_t ld) {
  const float* p = a.scores;
  for (size_t s = 0; s < a.num_spans; ++s) {
    const auto* v = static_cast<const typename Row::T*>(a.spans[s].v);
    size_t left = a.spans[s].len;
    for (; left >= 4; left -= 4, p += 4, v += 4 * a.v_ld) {
      for (size_t n = 0; n < a.num_queries; ++n) {
        Add4Rows<Row>(p + n * ld, v, a.v_ld, a.head_dim, a.out + n * a.out_ld);
      }
    }
    for (; left != 0; --left, ++p, v += a.v_ld) {
      for (size_t n = 0; n < a.num_queries; ++n) {
        AddRow<Row>(p[n * ld], v, a.head_dim, a.out + n * a.out_ld);
      }
    }
  }
}

template <class Row>
void AttendTo(const AttendArgs& a) {
  size_t num = 0;
  for (size_t s = 0; s < a.num_spans; ++s) num += a.spans[s].len;
  for (size_t n = 0; n < a.num_queries; ++n) {
    memset(a.out + n * a.out_ld, 0, a.head_dim * sizeof(float));
  }
  if (num == 0) return;
  const size_t ld = num + 1;  // behind a query's scores stands what divides its sum
  Score<Row>(a, ld);
  for (size_t n = 0; n < a.num_queries; ++n) {
    float* scores = a.scores + n * ld;
    scores[num] = Weigh(scores, num);
  }
  Mix<Row>(a, ld);
  // Divided out at the end: head_dim products instead of one a position.
  for (size_t n = 0; n < a.num_queries; ++n) {
    Scale(a.scores[n * ld + num], a.head_dim, a.out + n * a.out_ld);
  }
}

void Attend(const AttendArgs& args) {
  if (args.f16) {
    AttendTo<F16Row>(args);
  } else {
    AttendTo<F32Row>(args);
  }
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfbyte {

HWY_EXPORT(Attend);

void Attend(const AttendArgs& args) noexcept { HWY_DYNAMIC_DISPATCH(Attend)(args); }

}  // namespace halfbyte
#endif  // HWY_ONCE
