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

// Queries that share a load of a key or value, and keys that share one of a query, as
// registers allow.
inline constexpr size_t kScoreQueries = HALFBYTE_REGISTERS == 32 ? 4 : 2;
inline constexpr size_t kScoreKeys = 4;
inline constexpr size_t kMixQueries = HALFBYTE_REGISTERS == 32 ? 4 : 2;

// Rows of f32, `ld` apart.
struct Rows {
  const float* data;
  size_t ld;
  bool ahead = false;  // whoever reads them asks for those behind

  Rows From(size_t row) const { return {data + row * ld, ld, ahead}; }
};

// 8 KiB further on, a line where each vector is loaded: what is read where it lies
// comes from memory, and a pass over few rows is too short for a prefetcher to see what
// follows. Measured on Zen 5; 4 KiB are less.
HWY_INLINE void PrefetchRows(const float* row) {
  Prefetch<1>(reinterpret_cast<const uint8_t*>(row) + 8192);
}

// dot[R n + r] = scale * q[n] . k[r]
template <size_t N, size_t R>
HWY_INLINE void DotRows(Rows q, Rows k, size_t head_dim, float scale, float* dot) {
  const hn::ScalableTag<float> df;
  hn::Vec<decltype(df)> sum[N * R];
  HALFBYTE_UNROLL
  for (size_t i = 0; i < N * R; ++i) sum[i] = hn::Zero(df);
  ForVectors(df, 0, head_dim, [&](size_t i, auto io) HWY_ATTR {
    hn::Vec<decltype(df)> key[R];
    HALFBYTE_UNROLL
    for (size_t r = 0; r < R; ++r) {
      key[r] = io.Load(df, k.data + r * k.ld + i);
      if (k.ahead) PrefetchRows(k.data + r * k.ld + i);
    }
    HALFBYTE_UNROLL
    for (size_t n = 0; n < N; ++n) {
      const auto query = io.Load(df, q.data + n * q.ld + i);
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
HWY_INLINE void AddRow(float p, const float* v, size_t head_dim, float* out) {
  const hn::ScalableTag<float> df;
  const auto weight = hn::Set(df, p);
  ForVectors(df, 0, head_dim, [&](size_t i, auto io) HWY_ATTR {
    const auto sum = io.Load(df, out + i);
    io.Store(hn::MulAdd(weight, io.Load(df, v + i), sum), df, out + i);
  });
}

// Four rows for one load and store of `out`, which would otherwise bound the loop; and
// N queries, p_ld weights and out_ld floats apart, for one load of a row.
template <size_t N>
HWY_INLINE void Add4Rows(const float* p, size_t p_ld, Rows v, size_t head_dim,
                         float* out, size_t out_ld) {
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
      const auto row = io.Load(df, v.data + r * v.ld + i);
      if (v.ahead) PrefetchRows(v.data + r * v.ld + i);
      HALFBYTE_UNROLL
      for (size_t n = 0; n < N; ++n) sum[n] = hn::MulAdd(weight[n][r], row, sum[n]);
    }
    HALFBYTE_UNROLL
    for (size_t n = 0; n < N; ++n) io.Store(sum[n], df, out + n * out_ld + i);
  });
}

// Rows [offset, offset + len) of `span`: what tokens see of a block. The first is the
// position `at`.
struct Block {
  const KvSpan& span;
  size_t offset, at, len;
};

// One token's rows of a block, [row, row + len); the first is the position `at`.
struct Run {
  size_t token, row, at, len;
  bool first;  // of those that read the block
};

// Calls body(block) for all that the tokens see, in the order of positions.
template <class Body>
HWY_INLINE void ForBlocks(const AttendArgs& a, const Body& body) {
  size_t at = 0;  // the block's first position
  for (size_t s = 0; s < a.num_spans; ++s) {
    const KvSpan& span = a.spans[s];
    for (size_t offset = 0; offset < span.len; offset += kAttendBlock) {
      const size_t len = HWY_MIN(kAttendBlock, span.len - offset);
      size_t begin = at + len, end = at;  // what any token sees
      for (size_t t = 0; t < a.num_tokens; ++t) {
        const KvRange sees = a.sees[t];
        if (sees.begin >= at + len || sees.end <= at) continue;
        begin = HWY_MIN(begin, HWY_MAX(at, sees.begin));
        end = HWY_MAX(end, HWY_MIN(at + len, sees.end));
      }
      if (begin < end) body(Block{span, offset + begin - at, begin, end - begin});
      at += len;
    }
  }
}

// Calls body(run) for every token that sees some of the block.
template <class Body>
HWY_INLINE void ForRuns(const AttendArgs& a, const Block& block, const Body& body) {
  bool first = true;
  for (size_t t = 0; t < a.num_tokens; ++t) {
    const size_t begin = HWY_MAX(block.at, a.sees[t].begin);
    const size_t end = HWY_MIN(block.at + block.len, a.sees[t].end);
    if (begin >= end) continue;
    body(Run{t, begin - block.at, begin, end - begin, first});
    first = false;
  }
}

// How a vector of a row's elements becomes f32.
struct F32Row {
  using T = float;
  template <class DF, class Io>
  static HWY_INLINE hn::Vec<DF> Load(DF df, const T* p, float /*step*/, Io io) {
    return io.Load(df, p);
  }
};

struct F16Row {
  using T = uint16_t;
  template <class DF, class Io>
  static HWY_INLINE hn::Vec<DF> Load(DF df, const T* p, float /*step*/, Io io) {
    return PromoteF16(df, io.Load(HalfBits<DF>(), p));
  }
};

struct I8Row {
  using T = int8_t;
  template <class DF, class Io>
  static HWY_INLINE hn::Vec<DF> Load(DF df, const T* p, float step, Io io) {
    const hn::RebindToSigned<DF> di32;
    const auto codes = io.Load(hn::Rebind<int8_t, DF>(), p);
    return hn::Mul(hn::ConvertTo(df, hn::PromoteTo(di32, codes)), hn::Set(df, step));
  }
};

// Rows of a block, in memory and decoded.
template <class Row>
struct Decode {
  const typename Row::T* rows;
  size_t ld;
  const float* steps;  // null: none
  size_t head_dim;
  float* to;

  // Rows `row`, `row` + apart, and so on: R of them.
  template <size_t R>
  HWY_INLINE void RowsApart(size_t row, size_t apart) const {
    const hn::ScalableTag<float> df;
    ForVectors(df, 0, head_dim, [&](size_t i, auto io) HWY_ATTR {
      HALFBYTE_UNROLL
      for (size_t r = row; r < row + R * apart; r += apart) {
        const float step = steps == nullptr ? 1.0f : steps[r];
        io.Store(Row::Load(df, rows + r * ld + i, step, io), df, to + r * head_dim + i);
      }
    });
  }

  // Memory is read in four streams, which keep it busy where one does not.
  HWY_INLINE void operator()(size_t len) const {
    const size_t apart = len / 4;
    for (size_t row = 0; row < apart; ++row) RowsApart<4>(row, apart);
    for (size_t row = 4 * apart; row < len; ++row) RowsApart<1>(row, 1);
  }
};

// Decodes a block of keys or values, which are rows `ld` apart, to a.rows.
template <class Row>
HWY_INLINE void DecodeBlock(const AttendArgs& a, const Block& block, const void* keys,
                            const float* steps, size_t ld) {
  const auto* rows = static_cast<const typename Row::T*>(keys) + block.offset * ld;
  if (steps != nullptr) steps += block.offset;
  Decode<Row>{rows, ld, steps, a.head_dim, a.rows}(block.len);
}

// A block of keys or values: decoded, or where it lies. f32 is only copied for the many
// queries of one token, which read it from memory: to tokens that follow, and to those
// with a mask of their own, it is near already, and one or two queries ask ahead.
HWY_INLINE Rows RowsOf(const AttendArgs& a, const Block& block, const void* keys,
                       const float* steps, size_t ld) {
  switch (a.type) {
    case KvType::kF32:
      if (a.num_tokens > 1 || a.num_queries <= 2) {
        return Rows{static_cast<const float*>(keys), ld, true}.From(block.offset);
      }
      DecodeBlock<F32Row>(a, block, keys, nullptr, ld);
      break;
    case KvType::kF16:
      DecodeBlock<F16Row>(a, block, keys, nullptr, ld);
      break;
    case KvType::kI8:
      DecodeBlock<I8Row>(a, block, keys, steps, ld);
      break;
  }
  return {a.rows, a.head_dim};
}

// Where the scores of a query are, at position 0.
HWY_INLINE float* ScoresOf(const AttendArgs& a, size_t ld, size_t token, size_t query) {
  return a.scores + (token * a.num_queries + query) * ld;
}

// score[n, r] = scale * q[n] . k[r] for R keys and queries from n on, N at a time while
// there are as many; rows of scores are `ld` apart.
template <size_t N, size_t R>
HWY_INLINE void ScoreKeys(const AttendArgs& a, Rows q, Rows k, size_t n, size_t ld,
                          float* score) {
  for (; n + N <= a.num_queries; n += N) {
    float dot[N * R];
    k.ahead = k.ahead && n == 0;
    DotRows<N, R>(q.From(n), k, a.head_dim, a.scale, dot);
    for (size_t i = 0; i < N; ++i) {
      memcpy(score + (n + i) * ld, dot + i * R, R * sizeof(float));
    }
  }
  if constexpr (N > 1) ScoreKeys<N / 2, R>(a, q, k, n, ld, score);
}

// All scores.
HWY_INLINE void Score(const AttendArgs& a, size_t ld) {
  ForBlocks(a, [&](const Block& block) HWY_ATTR {
    const Rows rows = RowsOf(a, block, block.span.k, block.span.k_steps, a.k_ld);
    ForRuns(a, block, [&](const Run& run) HWY_ATTR {
      const Rows q = {a.q + run.token * a.q_token_ld, a.q_ld};
      float* score = ScoresOf(a, ld, run.token, 0) + run.at;
      Rows k = rows.From(run.row);
      k.ahead = k.ahead && run.first;
      size_t left = run.len;
      for (; left >= kScoreKeys; left -= kScoreKeys) {
        ScoreKeys<kScoreQueries, kScoreKeys>(a, q, k, 0, ld, score);
        k = k.From(kScoreKeys);
        score += kScoreKeys;
      }
      for (; left != 0; --left, ++score, k = k.From(1)) {
        ScoreKeys<kScoreQueries, 1>(a, q, k, 0, ld, score);
      }
    });
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
template <size_t N>
HWY_INLINE void MixRows(const AttendArgs& a, const float* p, size_t ld, Rows v,
                        size_t n, float* out) {
  for (; n + N <= a.num_queries; n += N) {
    v.ahead = v.ahead && n == 0;
    Add4Rows<N>(p + n * ld, ld, v, a.head_dim, out + n * a.out_ld, a.out_ld);
  }
  if constexpr (N > 1) MixRows<N / 2>(a, p, ld, v, n, out);
}

// out[n] += sum of scores[n, j] v[j].
HWY_INLINE void Mix(const AttendArgs& a, size_t ld) {
  ForBlocks(a, [&](const Block& block) HWY_ATTR {
    const Rows rows = RowsOf(a, block, block.span.v, block.span.v_steps, a.v_ld);
    ForRuns(a, block, [&](const Run& run) HWY_ATTR {
      const float* p = ScoresOf(a, ld, run.token, 0) + run.at;
      float* out = a.out + run.token * a.out_token_ld;
      Rows v = rows.From(run.row);
      v.ahead = v.ahead && run.first;
      size_t left = run.len;
      for (; left >= 4; left -= 4, p += 4, v = v.From(4)) {
        MixRows<kMixQueries>(a, p, ld, v, 0, out);
      }
      for (; left != 0; --left, ++p, v = v.From(1)) {
        for (size_t n = 0; n < a.num_queries; ++n) {
          AddRow(p[n * ld], v.data, a.head_dim, out + n * a.out_ld);
        }
      }
    });
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

void Attend(const AttendArgs& a) {
  size_t num = 0;
  for (size_t s = 0; s < a.num_spans; ++s) num += a.spans[s].len;
  const size_t ld = num + 1;  // behind a query's scores stands what divides its sum
  Score(a, ld);
  ForQueries(a, [&](size_t t, size_t n, float* out) HWY_ATTR {
    const KvRange sees = a.sees[t];
    float* scores = ScoresOf(a, ld, t, n);
    memset(out, 0, a.head_dim * sizeof(float));
    scores[num] = 0.0f;
    if (sees.begin < sees.end) {
      scores[num] = Weigh(scores + sees.begin, sees.end - sees.begin);
    }
  });
  Mix(a, ld);
  // Divided out at the end: head_dim products instead of one a position.
  ForQueries(a, [&](size_t t, size_t n, float* out)
                    HWY_ATTR { Scale(ScoresOf(a, ld, t, n)[num], a.head_dim, out); });
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
