// tests/cpp/kernels/attention_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <memory>
#include <vector>

#include "base/half.h"
#include "guarded.h"
#include "test_floats.h"
#include "test_targets.h"

namespace halfbyte {
namespace {

class AttentionTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(AttentionTest);

// A cache of `len` positions, cut into spans that each touch a guard page.
class Cache {
 public:
  Cache(size_t len, size_t head_dim, KvType type, uint32_t seed, float k_scale = 1.0f)
      : len_(len), head_dim_(head_dim), type_(type) {
    k_ = Rounded(Normal(len * head_dim, seed, k_scale));
    v_ = Rounded(Normal(len * head_dim, seed + 1));
  }

  // Runs Attend for the queries that `q` consists of, as many for each token, with the
  // spans ending at `cuts` and at the end. One token, if `sees` is empty, sees all.
  std::vector<float> Attend(const std::vector<float>& q, float scale,
                            const std::vector<size_t>& cuts, Guard guard,
                            std::vector<KvRange> sees = {}) const {
    if (sees.empty()) sees.push_back({0, len_});
    std::vector<std::unique_ptr<Stored>> keep;
    std::vector<KvSpan> spans;
    size_t begin = 0;
    const auto span = [&](size_t end) {
      Stored& k = *keep.emplace_back(Store(k_, begin, end, guard));
      Stored& v = *keep.emplace_back(Store(v_, begin, end, guard));
      spans.push_back({.k = k.rows.data(),
                       .v = v.rows.data(),
                       .len = end - begin,
                       .k_steps = k.steps.data(),
                       .v_steps = v.steps.data()});
      begin = end;
    };
    for (size_t cut : cuts) span(cut);
    span(len_);
    const size_t num = q.size() / head_dim_ / sees.size();
    const size_t num_scores = NumScores(sees.size(), num, len_);
    Guarded<float> query(q, guard), scores(num_scores, guard), out(q.size(), guard);
    Guarded<float> rows(NumDecoded(head_dim_), guard);
    for (size_t i = 0; i < NumDecoded(head_dim_); ++i) rows.Set(i, kNaN);
    for (size_t i = 0; i < q.size(); ++i) out.Set(i, kNaN);  // must not be read
    for (size_t i = 0; i < num_scores; ++i) scores.Set(i, kNaN);
    halfbyte::Attend({.q = query.data(),
                      .num_tokens = sees.size(),
                      .q_token_ld = num * head_dim_,
                      .num_queries = num,
                      .q_ld = head_dim_,
                      .head_dim = head_dim_,
                      .scale = scale,
                      .spans = spans.data(),
                      .num_spans = spans.size(),
                      .sees = sees.data(),
                      .k_ld = head_dim_,
                      .v_ld = head_dim_,
                      .type = type_,
                      .rows = rows.data(),
                      .scores = scores.data(),
                      .out = out.data(),
                      .out_token_ld = num * head_dim_,
                      .out_ld = head_dim_});
    EXPECT_TRUE(query.Intact() && scores.Intact() && rows.Intact() && out.Intact());
    std::vector<float> result(q.size());
    for (size_t i = 0; i < q.size(); ++i) result[i] = out.At(i);
    return result;
  }

  std::vector<float>& k() { return k_; }
  std::vector<float>& v() { return v_; }

 private:
  // Rows as they are kept, and the steps of 8-bit codes.
  struct Stored {
    Stored(size_t bytes, size_t num_steps, Guard guard)
        : rows(bytes, guard), steps(num_steps, guard) {}
    Guarded<uint8_t> rows;
    Guarded<float> steps;
  };

  static float Step(const float* row, size_t n) {
    float max = 0.0f;
    for (size_t i = 0; i < n; ++i) max = fmaxf(max, fabsf(row[i]));
    return max / 127.0f;
  }

  std::vector<float> Rounded(std::vector<float> x) const {
    for (size_t i = 0; i < x.size() && type_ == KvType::kF16; ++i) {
      x[i] = F32FromF16(F16FromF32(x[i]));
    }
    for (size_t i = 0; i < x.size() && type_ == KvType::kI8; i += head_dim_) {
      const float step = Step(&x[i], head_dim_);
      for (size_t j = i; j < i + head_dim_; ++j) x[j] = roundf(x[j] / step) * step;
    }
    return x;
  }

  // Of rows that are rounded, so that nothing is rounded again, but for NaN: there a
  // step is what can be NaN.
  std::unique_ptr<Stored> Store(const std::vector<float>& x, size_t begin, size_t end,
                                Guard guard) const {
    const size_t item = type_ == KvType::kF32 ? 4 : type_ == KvType::kF16 ? 2 : 1;
    const bool has_steps = type_ == KvType::kI8;
    auto stored = std::make_unique<Stored>((end - begin) * head_dim_ * item,
                                           has_steps ? end - begin : 0, guard);
    for (size_t row = begin; row < end; ++row) {
      const float* from = &x[row * head_dim_];
      const float step = isnan(from[0]) ? kNaN : Step(from, head_dim_);
      if (has_steps) stored->steps.Set(row - begin, step);
      for (size_t i = 0; i < head_dim_; ++i) {
        const uint16_t half = F16FromF32(from[i]);
        const auto code =
            static_cast<int8_t>(isnan(step) ? 0.0f : roundf(from[i] / step));
        const void* bytes = item == 4   ? static_cast<const void*>(&from[i])
                            : item == 2 ? static_cast<const void*>(&half)
                                        : &code;
        memcpy(stored->rows.data() + ((row - begin) * head_dim_ + i) * item, bytes,
               item);
      }
    }
    return stored;
  }

  size_t len_, head_dim_;
  KvType type_;
  std::vector<float> k_, v_;
};

constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kI8};

// With D = head_dim and L positions, u = 2^-24:
// score j is off by at most e_j = (D + 2) u |scale| sum |q k_j| (products, sum, scale);
// s - max adds u |s - max|, exp 4u: p_j is off by delta_j = e_j + e_max + u |s_j - max|
// + 4u, relative to first order. Then sum p v rounds L times, the scale twice: |error|
// <= sum_j p_j (delta_j + mean delta + (L + 3) u) |v_j|, and 1 % for the second order
// where the deltas reach 1e-2.
void Check(size_t len, size_t head_dim, KvType type, float scale, Guard guard) {
  Cache cache(len, head_dim, type, 7);
  const std::vector<float> q = Normal(head_dim, 3);
  const std::vector<float> got = cache.Attend(q, scale, {}, guard);

  std::vector<double> score(len), err(len), p(len);
  double max = -HUGE_VAL, max_err = 0.0;
  for (size_t j = 0; j < len; ++j) {
    double magnitude = 0.0;
    for (size_t i = 0; i < head_dim; ++i) {
      const double product = double{q[i]} * double{cache.k()[j * head_dim + i]};
      score[j] += product * double{scale};
      magnitude += fabs(product * double{scale});
    }
    err[j] = (static_cast<double>(head_dim) + 2.0) * kU * magnitude;
    max = fmax(max, score[j]);
    max_err = fmax(max_err, err[j]);
  }
  double sum = 0.0, mean_delta = 0.0;
  for (size_t j = 0; j < len; ++j) {
    err[j] += max_err + kU * (max - score[j]) + 4.0 * kU;
    p[j] = exp(score[j] - max);
    sum += p[j];
    mean_delta += p[j] * err[j];
  }
  mean_delta /= sum;
  for (size_t i = 0; i < head_dim; ++i) {
    double want = 0.0, bound = 1e-37;
    for (size_t j = 0; j < len; ++j) {
      const double term = p[j] / sum * double{cache.v()[j * head_dim + i]};
      want += term;
      bound += 1.01 * fabs(term) *
               (err[j] + mean_delta + (static_cast<double>(len) + 3.0) * kU);
    }
    ASSERT_NEAR(got[i], want, bound) << "len " << len << " dim " << head_dim;
  }
}

TEST_P(AttentionTest, StaysInsideTheBound) {
  for (KvType type : kTypes) {
    for (Guard guard : kGuards) {
      for (size_t head_dim : {2, 6, 8, 10, 16, 24, 30, 34, 48, 64, 80, 98, 128}) {
        for (size_t len : {0, 1, 2, 3, 4, 5, 7, 8, 9, 17, 33, 65}) {
          Check(len, head_dim, type, 1.0f, guard);
        }
      }
      Check(300, 256, type, 0.0625f, guard);
      Check(70, 512, type, 1.0f, guard);
    }
  }
}

TEST_P(AttentionTest, BitsDoNotDependOnTheCuts) {
  for (KvType type : kTypes) {
    for (size_t head_dim : {8, 34, 256}) {
      const size_t len = 23;
      const Cache cache(len, head_dim, type, 11);
      const std::vector<float> q = Normal(head_dim, 5);
      const std::vector<float> whole = cache.Attend(q, 0.3f, {}, Guard::kAfter);
      std::vector<std::vector<size_t>> cuts = {
          {1, 2, 3, 4, 5}, {4, 8, 12}, {0, 7, 7, 23}};
      for (size_t cut = 0; cut <= len; ++cut) cuts.push_back({cut});
      for (const auto& at : cuts) {
        const std::vector<float> got = cache.Attend(q, 0.3f, at, Guard::kBefore);
        EXPECT_EQ(0, memcmp(whole.data(), got.data(), head_dim * sizeof(float)))
            << "first cut " << at[0];
      }
    }
  }
}

TEST_P(AttentionTest, QueriesTogetherHaveTheBitsOfEachAlone) {
  for (KvType type : kTypes) {
    for (size_t head_dim : {8, 34, 256}) {
      const Cache cache(23, head_dim, type, 11);
      const std::vector<float> q = Normal(5 * head_dim, 5);
      for (size_t num : {2, 3, 5}) {
        const std::vector<float> some(q.begin(), q.begin() + num * head_dim);
        const auto together = cache.Attend(some, 0.3f, {9, 14}, Guard::kAfter);
        for (size_t n = 0; n < num; ++n) {
          const float* begin = &q[n * head_dim];
          const auto alone =
              cache.Attend({begin, begin + head_dim}, 0.3f, {9, 14}, Guard::kAfter);
          EXPECT_EQ(0, memcmp(&together[n * head_dim], alone.data(),
                              head_dim * sizeof(float)))
              << n << " of " << num;
        }
      }
    }
  }
}

// What a token does not see is NaN for it.
TEST_P(AttentionTest, TokensTogetherHaveTheBitsOfEachAlone) {
  const std::vector<KvRange> sees = {{0, 71}, {0, 0},   {3, 72},  {31, 33}, {32, 64},
                                     {5, 74}, {74, 74}, {40, 75}, {74, 75}};
  for (KvType type : kTypes) {
    for (size_t head_dim : {8, 34, 256}) {
      for (size_t num : {1, 3, 5}) {
        const size_t len = 75, token_len = num * head_dim;
        const std::vector<float> q = Normal(sees.size() * token_len, 5);
        const auto together = Cache(len, head_dim, type, 11)
                                  .Attend(q, 0.3f, {9, 40}, Guard::kAfter, sees);
        for (size_t t = 0; t < sees.size(); ++t) {
          Cache cache(len, head_dim, type, 11);
          for (size_t i = 0; i < len * head_dim; ++i) {
            const size_t at = i / head_dim;
            if (sees[t].begin <= at && at < sees[t].end) continue;
            cache.k()[i] = cache.v()[i] = kNaN;
          }
          const float* begin = &q[t * token_len];
          const auto alone = cache.Attend({begin, begin + token_len}, 0.3f, {20},
                                          Guard::kBefore, {sees[t]});
          EXPECT_EQ(0, memcmp(&together[t * token_len], alone.data(),
                              token_len * sizeof(float)))
              << t << " of " << num << " queries, head_dim " << head_dim;
        }
      }
    }
  }
}

TEST_P(AttentionTest, NoPositionsGiveZeros) {
  const Cache cache(0, 40, KvType::kF32, 1);
  EXPECT_EQ(std::vector<float>(40, 0.0f),
            cache.Attend(Normal(40, 2), 1.0f, {}, Guard::kAfter));
}

TEST_P(AttentionTest, HugeScoresPickTheLargest) {
  Cache cache(9, 16, KvType::kF32, 1, 1e18f);
  const std::vector<float> q(16, 1e18f);
  size_t best = 0;
  double best_score = -HUGE_VAL;
  for (size_t j = 0; j < 9; ++j) {
    double score = 0.0;
    for (size_t i = 0; i < 16; ++i) score += double{cache.k()[j * 16 + i]};
    if (score > best_score) best = j, best_score = score;
  }
  const std::vector<float> got = cache.Attend(q, 1.0f, {}, Guard::kAfter);
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(cache.v()[best * 16 + i], got[i]);
}

TEST_P(AttentionTest, NonFiniteInputsPropagate) {
  for (float bad : {kNaN, kInf}) {
    Cache cache(6, 24, KvType::kF32, 1);
    cache.v()[3 * 24 + 7] = bad;
    const std::vector<float> got = cache.Attend(Normal(24, 2), 1.0f, {}, Guard::kAfter);
    for (size_t i = 0; i < 24; ++i)
      EXPECT_EQ(i != 7, static_cast<bool>(isfinite(got[i])));
  }
  Cache cache(6, 24, KvType::kF32, 1);
  cache.k()[3 * 24 + 7] = kNaN;
  for (float v : cache.Attend(Normal(24, 2), 1.0f, {}, Guard::kAfter)) {
    EXPECT_TRUE(isnan(v));
  }
}

}  // namespace
}  // namespace halfbyte
