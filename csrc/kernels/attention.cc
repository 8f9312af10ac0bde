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
#include "kernels/prefetch.h"
#include "kernels/simd-inl.h"
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

// Queries that share a load of a key or value, and keys that share one of a query, as
// registers allow.
inline constexpr size_t kScoreQueries = HALFBYTE_REGISTERS == 32 ? 4 : 2;
inline constexpr size_t kScoreKeys = 2;
inline constexpr size_t kMixQueries = HALFBYTE_REGISTERS == 32 ? 4 : 2;

// The first queries that meet a key or value ask for the ones 8 KiB further on, a line
// where each vector is loaded: one token's come from memory, and a pass over few rows
// is too short for a prefetcher to see what follows. Measured on Zen 5; 4 KiB are less.
template <class T>
HWY_INLINE void PrefetchRows(const T* row) {
  Prefetch<1>(reinterpret_cast<const uint8_t*>(row) + 8192);
}

// dot[n][r] = q[n] . k[r]. Each is made of two sums, whatever N and R are.
template <class Row, size_t N, size_t R>
HWY_INLINE void DotRows(const float* q, size_t q_ld, const typename Row::T* k,
                        size_t k_ld, size_t head_dim, bool first, float (&dot)[N][R]) {
  const hn::ScalableTag<float> df;
  const size_t lanes = hn::Lanes(df);
  hn::Vec<decltype(df)> sums[2][N][R];
  HALFBYTE_UNROLL
  for (size_t i = 0; i < 2 * N * R; ++i) {
    sums[i / (N * R)][i / R % N][i % R] = hn::Zero(df);
  }
  const auto add = [&](size_t i, auto io, auto& sum) HWY_ATTR {
    hn::Vec<decltype(df)> key[R];
    HALFBYTE_UNROLL
    for (size_t r = 0; r < R; ++r) {
      key[r] = Row::Load(df, k + r * k_ld + i, io);
      if (first) PrefetchRows(k + r * k_ld + i);
    }
    HALFBYTE_UNROLL
    for (size_t n = 0; n < N; ++n) {
      const auto query = io.Load(df, q + n * q_ld + i);
      HALFBYTE_UNROLL
      for (size_t r = 0; r < R; ++r) sum[n][r] = hn::MulAdd(query, key[r], sum[n][r]);
    }
  };
  size_t i = 0;
  for (; i + 2 * lanes <= head_dim; i += 2 * lanes) {
    add(i, WholeIo(), sums[0]);
    add(i + lanes, WholeIo(), sums[1]);
  }
  ForVectors(df, i, head_dim,
             [&](size_t at, auto io) HWY_ATTR { add(at, io, sums[0]); });
  HALFBYTE_UNROLL
  for (size_t n = 0; n < N; ++n) {
    HALFBYTE_UNROLL
    for (size_t r = 0; r < R; ++r) {
      dot[n][r] = hn::ReduceSum(df, hn::Add(sums[0][n][r], sums[1][n][r]));
    }
  }
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

// Four rows for one load and store of `out`, which would otherwise bound the loop; and
// N queries, p_ld weights and out_ld floats apart, for one load of a row.
template <class Row, size_t N>
HWY_INLINE void Add4Rows(const float* p, size_t p_ld, const typename Row::T* v,
                         size_t ld, size_t head_dim, bool first, float* out,
                         size_t out_ld) {
  const hn::ScalableTag<float> df;
  hn::Vec<decltype(df)> weight[N][4];
  HALFBYTE_UNROLL
  for (size_t i = 0; i < 4 * N; ++i) {
    weight[i / 4][i % 4] = hn::Set(df, p[i / 4 * p_ld + i % 4]);
  }
  ForVectors(df, 0, head_dim, [&](size_t i, auto io) HWY_ATTR {
    hn::Vec<decltype(df)> sum[N];
    HALFBYTE_UNROLL
    for (size_t n = 0; n < N; ++n) sum[n] = io.Load(df, out + n * out_ld + i);
    HALFBYTE_UNROLL
    for (size_t r = 0; r < 4; ++r) {
      const auto row = Row::Load(df, v + r * ld + i, io);
      if (first) PrefetchRows(v + r * ld + i);
      HALFBYTE_UNROLL
      for (size_t n = 0; n < N; ++n) sum[n] = hn::MulAdd(weight[n][r], row, sum[n]);
    }
    HALFBYTE_UNROLL
    for (size_t n = 0; n < N; ++n) io.Store(sum[n], df, out + n * out_ld + i);
  });
}

// scores[n, j] = scale * q[n] . k[j] for R keys j, N queries n at a time.
template <class Row, size_t N, size_t R>
HWY_INLINE void ScoreKeys(const AttendArgs& a, const typename Row::T* k, size_t ld,
                          float* score) {
  size_t n = 0;
  for (; n + N <= a.num_queries; n += N) {
    float dot[N][R];
    DotRows<Row>(a.q + n * a.q_ld, a.q_ld, k, a.k_ld, a.head_dim, n == 0, dot);
    for (size_t i = 0; i < N * R; ++i) {
      score[(n + i / R) * ld + i % R] = a.scale * dot[i / R][i % R];
    }
  }
  for (; n < a.num_queries; ++n) {
    float dot[1][R];
    DotRows<Row>(a.q + n * a.q_ld, a.q_ld, k, a.k_ld, a.head_dim, n == 0, dot);
    for (size_t r = 0; r < R; ++r) score[n * ld + r] = a.scale * dot[0][r];
  }
}

// All scores.
template <class Row>
HWY_INLINE void Score(const AttendArgs& a, size_t ld) {
  float* score = a.scores;
  for (size_t s = 0; s < a.num_spans; ++s) {
    const auto* k = static_cast<const typename Row::T*>(a.spans[s].k);
    size_t left = a.spans[s].len;
    for (; left >= kScoreKeys; left -= kScoreKeys) {
      ScoreKeys<Row, kScoreQueries, kScoreKeys>(a, k, ld, score);
      k += kScoreKeys * a.k_ld;
      score += kScoreKeys;
    }
    for (; left != 0; --left, ++score, k += a.k_ld) {
      ScoreKeys<Row, kScoreQueries, 1>(a, k, ld, score);
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
      size_t n = 0;
      for (; n + kMixQueries <= a.num_queries; n += kMixQueries) {
        Add4Rows<Row, kMixQueries>(p + n * ld, ld, v, a.v_ld, a.head_dim, n == 0,
                                   a.out + n * a.out_ld, a.out_ld);
      }
      for (; n < a.num_queries; ++n) {
        Add4Rows<Row, 1>(p + n * ld, ld, v, a.v_ld, a.head_dim, n == 0,
                         a.out + n * a.out_ld, a.out_ld);
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
