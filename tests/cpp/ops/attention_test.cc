// tests/cpp/ops/attention_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"

#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "base/error.h"
#include "guarded.h"
#include "test_floats.h"

namespace halfbyte {
namespace {

// One batch of `heads`, laid out as [heads, tokens, row_len].
template <class T>
HeadRows<T> View(T* data, size_t heads, size_t tokens, size_t row_len) {
  return {.data = data,
          .batch = 1,
          .heads = heads,
          .tokens = tokens,
          .row_len = row_len,
          .batch_ld = heads * tokens * row_len,
          .head_ld = tokens * row_len,
          .token_ld = row_len};
}

TEST(AttentionTest, TilesCoverTheGridOnceWhateverTheThreads) {
  for (size_t threads : {1, 2, 3, 8, 100}) {
    for (const HeadGrid& g :
         {HeadGrid{2, 3, 17, 4, 4}, HeadGrid{1, 1, 1, 8, 8}, HeadGrid{1, 2, 9, 3, 1},
          HeadGrid{1, 1, 8, 7, 7}, HeadGrid{0, 1, 8, 7, 7}, HeadGrid{1, 1, 0, 7, 7}}) {
      std::vector<std::atomic<int>> seen(g.batch * g.kv_heads * g.group * g.tokens);
      ForEachTile({.num_threads = threads, .poll = {}}, g, [&](const HeadTile& t) {
        EXPECT_LE(t.num_heads, g.together);
        for (size_t h = t.head; h < t.head + t.num_heads; ++h) {
          EXPECT_EQ(t.kv_head, h / g.group);
          for (size_t token = t.begin; token < t.end; ++token) {
            ++seen[(t.batch * g.kv_heads * g.group + h) * g.tokens + token];
          }
        }
      });
      for (const auto& times : seen) EXPECT_EQ(1, times.load());
    }
  }
}

TEST(AttentionTest, OneTokenStillHasWorkForEveryThread) {
  std::atomic<size_t> tasks = 0;
  ForEachTile({.num_threads = 4, .poll = {}}, {1, 1, 1, 8, 8},
              [&](const HeadTile&) { ++tasks; });
  EXPECT_EQ(4u, tasks.load());
}

// A mask, and everything else, ends at a page that must not be touched.
TEST(AttentionTest, NoByteOutsideIsRead) {
  constexpr size_t kDim = 5;
  for (size_t kv_tokens : {0, 1, 7, 8, 9, 16, 31}) {
    for (Guard guard : kGuards) {
      Guarded<float> q(Normal(2 * 3 * kDim, 1), guard);
      Guarded<float> k(Normal(kv_tokens * kDim, 2), guard);
      Guarded<float> v(Normal(kv_tokens * kDim, 3), guard);
      Guarded<float> out(2 * 3 * kDim, guard);
      for (uint32_t bits = 0; bits < 64; ++bits) {
        Guarded<uint8_t> mask(3 * kv_tokens, guard);
        for (size_t i = 0; i < 3 * kv_tokens; ++i) mask.Set(i, bits >> i % 6 & 1);
        HeadRows<const uint8_t> seen =
            View<const uint8_t>(mask.data(), 1, 3, kv_tokens);
        seen.heads = 2, seen.head_ld = 0;
        Attention({.num_threads = 1, .poll = {}},
                  {.q = View<const float>(q.data(), 2, 3, kDim),
                   .k = View<const float>(k.data(), 1, kv_tokens, kDim),
                   .v = View<const float>(v.data(), 1, kv_tokens, kDim),
                   .mask = seen,
                   .scale = 1.0f,
                   .causal = bits % 5 == 0,
                   .window = 0,
                   .rotated = false,
                   .out = View<float>(out.data(), 2, 3, kDim)});
        EXPECT_TRUE(mask.Intact() && out.Intact());
      }
    }
  }
}

// Keys and values that no query sees are NaN.
void ExpectBitsOfEachAlone(size_t heads, size_t tokens, size_t kv_tokens, bool causal,
                           size_t window) {
  constexpr size_t kDim = 9;
  const std::vector<float> q = Normal(heads * tokens * kDim, 1);
  std::vector<float> k = Normal(kv_tokens * kDim, 2), v = Normal(kv_tokens * kDim, 3);
  const size_t seen = window == 0 ? kv_tokens : tokens - 1 + window;
  for (size_t i = 0; i + seen * kDim < k.size(); ++i) k[i] = v[i] = kNaN;
  std::vector<float> together(q.size(), kNaN), alone(q.size(), kNaN);
  const AttentionArgs all = {.q = View<const float>(q.data(), heads, tokens, kDim),
                             .k = View<const float>(k.data(), 1, kv_tokens, kDim),
                             .v = View<const float>(v.data(), 1, kv_tokens, kDim),
                             .mask = {},
                             .scale = 0.3f,
                             .causal = causal,
                             .window = window,
                             .rotated = false,
                             .out = View<float>(together.data(), heads, tokens, kDim)};
  const Context context = {.num_threads = 1, .poll = {}};
  Attention(context, all);
  for (size_t token = 0; token < tokens; ++token) {
    AttentionArgs one = all;
    one.out.data = alone.data();
    one.q.data += token * kDim, one.out.data += token * kDim;
    one.q.tokens = one.out.tokens = 1;
    const size_t later = causal ? tokens - 1 - token : 0;
    one.k.rows.tokens = one.v.rows.tokens = kv_tokens - std::min(kv_tokens, later);
    Attention(context, one);
  }
  for (float x : together) ASSERT_FALSE(isnan(x));
  EXPECT_EQ(0, memcmp(together.data(), alone.data(), alone.size() * sizeof(float)))
      << heads << " heads, " << tokens << " of " << kv_tokens << ", window " << window;
}

TEST(AttentionTest, TokensTogetherHaveTheBitsOfEachAlone) {
  for (size_t tokens : {1, 7, 8, 9, 20}) {
    for (size_t kv_tokens : {0, 3, 19, 20, 100}) {  // fewer: some see none
      ExpectBitsOfEachAlone(3, tokens, kv_tokens, false, 0);
      for (size_t window : {0, 1, 5, 8, 40}) {
        ExpectBitsOfEachAlone(3, tokens, kv_tokens, true, window);
      }
    }
  }
}

// Where the scores of 8 tokens are too many, a tile takes a few of them at a time.
TEST(AttentionTest, TilesOfALongContextAreTakenInParts) {
  ASSERT_LT(TokensTogether(8, 64, 3000), 8u);
  for (size_t window : {0, 2900}) ExpectBitsOfEachAlone(64, 13, 3000, true, window);
  ExpectBitsOfEachAlone(64, 13, 3000, false, 0);
}

TEST(AttentionTest, SoManyTokensTogetherThatScoresStayNear) {
  constexpr size_t kMost = size_t{1} << 20;
  for (size_t queries : {1, 8, 64}) {
    for (size_t positions : {0, 1, 2047, 2048, 131072, 1 << 26}) {
      const size_t tokens = TokensTogether(8, queries, positions);
      const auto fits = [&](size_t n) {
        return NumScores(n, queries, positions) <= kMost;
      };
      EXPECT_TRUE(tokens == 1 || fits(tokens)) << queries << " x " << positions;
      EXPECT_TRUE(tokens == 8 || !fits(tokens + 1)) << queries << " x " << positions;
    }
  }
}

TEST(AttentionTest, ShapesThatDoNotFitAreRefused) {
  std::vector<float> x(1000);
  std::vector<uint8_t> mask(1000);
  const AttentionArgs good = {.q = View<const float>(x.data(), 4, 3, 8),
                              .k = View<const float>(x.data(), 2, 6, 8),
                              .v = View<const float>(x.data(), 2, 6, 8),
                              .mask = View<const uint8_t>(mask.data(), 4, 3, 6),
                              .scale = 1.0f,
                              .causal = false,
                              .window = 0,
                              .rotated = false,
                              .out = View<float>(&x[500], 4, 3, 8)};
  const Context context = {.num_threads = 1, .poll = {}};
  EXPECT_NO_THROW(Attention(context, good));
  const auto refuses = [&](auto change) {
    AttentionArgs args = good;
    change(args);
    EXPECT_THROW(Attention(context, args), Error);
  };
  refuses([](AttentionArgs& a) { a.q.row_len = 7; });
  refuses([](AttentionArgs& a) { a.k.rows.batch = 2; });
  refuses([](AttentionArgs& a) { a.v.rows.tokens = 5; });
  refuses([](AttentionArgs& a) { a.k.rows.heads = a.v.rows.heads = 3; });
  refuses([](AttentionArgs& a) { a.k.rows.heads = a.v.rows.heads = 0; });
  refuses([](AttentionArgs& a) { a.mask.row_len = 3; });
  refuses([](AttentionArgs& a) { a.out.tokens = 2; });
  refuses([](AttentionArgs& a) { a.window = 2; });
}

}  // namespace
}  // namespace halfbyte
