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
#include "kernels/lane_sums-inl.h"
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
inline constexpr size_t kScoreKeys = 4;
inline constexpr size_t kMixQueries = HALFBYTE_REGISTERS == 32 ? 4 : 2;

// Positions whose keys, or values, stay near while one token after the other passes
// over them: 64 KiB of heads of 512.
inline constexpr size_t kBlockLen = 32;

// The first queries that meet a key or value ask for the ones 8 KiB further on, a line
// where each vector is loaded: one token's come from memory, and a pass over few rows
// is too short for a prefetcher to see what follows. Measured on Zen 5; 4 KiB are less.
template <class T>
HWY_INLINE void PrefetchRows(const T* row) {
  Prefetch<1>(reinterpret_cast<const uint8_t*>(row) + 8192);
}

// dot[R n + r] = scale * q[n] . k[r]
template <class Row, size_t N, size_t R>
HWY_INLINE void DotRows(const float* q, size_t q_ld, const typename Row::T* k,
                        size_t k_ld, size_t head_dim, float scale, bool first,
                        float* dot) {
  const hn::ScalableTag<float> df;
  hn::Vec<decltype(df)> sum[N * R];
  HALFBYTE_UNROLL
  for (size_t i = 0; i < N * R; ++i) sum[i] = hn::Zero(df);
  ForVectors(df, 0, head_dim, [&](size_t i, auto io) HWY_ATTR {
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
      for (size_t r = 0; r < R; ++r) {
        sum[n * R + r] = hn::MulAdd(query, key[r], sum[n * R + r]);
      }
    }
  });
  StoreLaneSums<N * R>(df, sum, scale, dot);
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

// One token's positions of a block: rows [offset, offset + len) of `span`, of which the
// first is the position `at`.
struct Run {
  size_t token;
  const KvSpan& span;
  size_t offset, at, len;
  bool first;  // of those that read the block
};

// Calls body(run) for all that the tokens see, in the order of positions.
template <class Body>
HWY_INLINE void ForRuns(const AttendArgs& a, const Body& body) {
  size_t at = 0;  // the block's first position
  for (size_t s = 0; s < a.num_spans; ++s) {
    const KvSpan& span = a.spans[s];
    for (size_t offset = 0; offset < span.len; offset += kBlockLen) {
      const size_t len = HWY_MIN(kBlockLen, span.len - offset);
      bool first = true;
      for (size_t t = 0; t < a.num_tokens; ++t) {
        const size_t begin = HWY_MAX(at, a.sees[t].begin);
        const size_t end = HWY_MIN(at + len, a.sees[t].end);
        if (begin >= end) continue;
        body(Run{t, span, offset + begin - at, begin, end - begin, first});
        first = false;
      }
      at += len;
    }
  }
}

// Where the scores of a query are, at position 0.
HWY_INLINE float* ScoresOf(const AttendArgs& a, size_t ld, size_t token, size_t query) {
  return a.scores + (token * a.num_queries + query) * ld;
}

// score[n, r] = scale * q[n] . k[r] for R keys and queries from n on, N at a time while
// there are as many; rows of scores are `ld` apart.
template <class Row, size_t N, size_t R>
HWY_INLINE void ScoreKeys(const AttendArgs& a, const float* q, const typename Row::T* k,
                          bool first, size_t n, size_t ld, float* score) {
  for (; n + N <= a.num_queries; n += N) {
    float dot[N * R];
    DotRows<Row, N, R>(q + n * a.q_ld, a.q_ld, k, a.k_ld, a.head_dim, a.scale,
                       first && n == 0, dot);
    for (size_t i = 0; i < N; ++i) {
      memcpy(score + (n + i) * ld, dot + i * R, R * sizeof(float));
    }
  }
  if constexpr (N > 1) ScoreKeys<Row, N / 2, R>(a, q, k, first, n, ld, score);
}

// All scores.
template <class Row>
HWY_INLINE void Score(const AttendArgs& a, size_t ld) {
  ForRuns(a, [&](const Run& run) HWY_ATTR {
    const float* q = a.q + run.token * a.q_token_ld;
    float* score = ScoresOf(a, ld, run.token, 0) + run.at;
    const auto* k =
        static_cast<const typename Row::T*>(run.span.k) + run.offset * a.k_ld;
    size_t left = run.len;
    for (; left >= kScoreKeys; left -= kScoreKeys) {
      ScoreKeys<Row, kScoreQueries, kScoreKeys>(a, q, k, run.first, 0, ld, score);
      k += kScoreKeys * a.k_ld;
      score += kScoreKeys;
    }
    for (; left != 0; --left, ++score, k += a.k_ld) {
      ScoreKeys<Row, kScoreQueries, 1>(a, q, k, run.first, 0, ld, score);
    }
  });
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

// out[n] += p[n, 0] v[0] + … + p[n, 3] v[3] for queries from n on, N at a time while
// there are as many.
template <class Row, size_t N>
HWY_INLINE void MixRows(const AttendArgs& a, const float* p, size_t ld,
                        const typename Row::T* v, bool first, size_t n, float* out) {
  for (; n + N <= a.num_queries; n += N) {
    Add4Rows<Row, N>(p + n * ld, ld, v, a.v_ld, a.head_dim, first && n == 0,
                     out + n * a.out_ld, a.out_ld);
  }
  if constexpr (N > 1) MixRows<Row, N / 2>(a, p, ld, v, first, n, out);
}

// out[n] += sum of scores[n, j] v[j].
template <class Row>
HWY_INLINE void Mix(const AttendArgs& a, size_t ld) {
  ForRuns(a, [&](const Run& run) HWY_ATTR {
    const float* p = ScoresOf(a, ld, run.token, 0) + run.at;
    float* out = a.out + run.token * a.out_token_ld;
    const auto* v =
        static_cast<const typename Row::T*>(run.span.v) + run.offset * a.v_ld;
    size_t left = run.len;
    for (; left >= 4; left -= 4, p += 4, v += 4 * a.v_ld) {
      MixRows<Row, kMixQueries>(a, p, ld, v, run.first, 0, out);
    }
    for (; left != 0; --left, ++p, v += a.v_ld) {
      for (size_t n = 0; n < a.num_queries; ++n) {
        AddRow<Row>(p[n * ld], v, a.head_dim, out + n * a.out_ld);
      }
    }
  });
}

// Calls body(token, query, out) for every query.
template <class Body>
HWY_INLINE void ForQueries(const AttendArgs& a, const Body& body) {
  for (size_t t = 0; t < a.num_tokens; ++t) {
    for (size_t n = 0; n < a.num_queries; ++n) {
      body(t, n, a.out + t * a.out_token_ld + n * a.out_ld);
    }
  }
}

template <class Row>
void AttendTo(const AttendArgs& a) {
  size_t num = 0;
  for (size_t s = 0; s < a.num_spans; ++s) num += a.spans[s].len;
  const size_t ld = num + 1;  // behind a query's scores stands what divides its sum
  Score<Row>(a, ld);
  ForQueries(a, [&](size_t t, size_t n, float* out) HWY_ATTR {
    const KvRange sees = a.sees[t];
    float* scores = ScoresOf(a, ld, t, n);
    memset(out, 0, a.head_dim * sizeof(float));
    scores[num] = 0.0f;
    if (sees.begin < sees.end) {
      scores[num] = Weigh(scores + sees.begin, sees.end - sees.begin);
    }
  });
  Mix<Row>(a, ld);
  // Divided out at the end: head_dim products instead of one a position.
  ForQueries(a, [&](size_t t, size_t n, float* out)
                    HWY_ATTR { Scale(ScoresOf(a, ld, t, n)[num], a.head_dim, out); });
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
