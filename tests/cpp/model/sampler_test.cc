// tests/cpp/model/sampler_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/sampler.h"

#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "test_floats.h"

namespace halfbyte {
namespace {

std::vector<float> Log(std::vector<float> p) {
  for (float& v : p) v = logf(v);
  return p;
}

constexpr int kDraws = 20000;

std::map<int32_t, int> Counts(const SamplingParams& params,
                              const std::vector<float>& logits,
                              std::vector<int32_t> history = {},
                              std::vector<int32_t> suppressed = {}) {
  Sampler sampler(params, 42);
  std::map<int32_t, int> counts;
  for (int i = 0; i < kDraws; ++i) {
    std::vector<float> copy = logits;
    ++counts[sampler.Sample(copy, history, suppressed)];
  }
  return counts;
}

// Every count is binomial: five standard deviations miss a right sampler in one of 1.7
// million counts, and the seed is fixed. What has no probability is never drawn.
void ExpectDistribution(const std::vector<double>& want, std::map<int32_t, int> got) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double p = want[i], mean = kDraws * p;
    EXPECT_NEAR(mean, got[static_cast<int32_t>(i)], 5.0 * sqrt(mean * (1.0 - p)))
        << "token " << i;
  }
}

const std::vector<float> kFour = Log({0.1f, 0.4f, 0.2f, 0.3f});

TEST(SamplerTest, APenaltyThatOverflowsIsNoInfinity) {
  const std::vector<float> logits = {1.0f, 2.0f, 3.0f};
  const SamplingParams params = {.temperature = 1.0f, .repetition_penalty = 1e-38f};
  const std::map<int32_t, int> all = {{1, kDraws}};
  EXPECT_EQ(all, Counts(params, logits, {1}));
}

TEST(SamplerTest, ZeroTemperatureTakesTheLargestAndTheLowestIdOnATie) {
  Sampler sampler({}, 1);
  std::vector<float> logits = {1.0f, 7.0f, -2.0f, 7.0f};
  EXPECT_EQ(1, sampler.Sample(logits, {}, {}));
}

TEST(SamplerTest, DrawsFollowTheSoftmaxAtItsTemperature) {
  ExpectDistribution({0.1, 0.4, 0.2, 0.3}, Counts({.temperature = 1.0f}, kFour));
  // At temperature 1/2 probabilities are squared.
  ExpectDistribution({1 / 30.0, 16 / 30.0, 4 / 30.0, 9 / 30.0},
                     Counts({.temperature = 0.5f}, kFour));
}

TEST(SamplerTest, TopKKeepsTheKLikeliest) {
  ExpectDistribution({0, 4 / 7.0, 0, 3 / 7.0},
                     Counts({.temperature = 1.0f, .top_k = 2}, kFour));
  EXPECT_EQ((std::map<int32_t, int>{{1, kDraws}}),
            Counts({.temperature = 1.0f, .top_k = 1}, kFour));
}

TEST(SamplerTest, TopPKeepsTheFewestThatReachIt) {
  // 0.4 + 0.3 reach 0.65; 0.75 wants the third too.
  ExpectDistribution({0, 4 / 7.0, 0, 3 / 7.0},
                     Counts({.temperature = 1.0f, .top_p = 0.65f}, kFour));
  ExpectDistribution({0, 4 / 9.0, 2 / 9.0, 3 / 9.0},
                     Counts({.temperature = 1.0f, .top_p = 0.75f}, kFour));
}

TEST(SamplerTest, MinPDropsWhatIsFarBelowTheLikeliest) {
  ExpectDistribution({0, 4 / 7.0, 0, 3 / 7.0},
                     Counts({.temperature = 1.0f, .min_p = 0.6f}, kFour));
}

TEST(SamplerTest, FiltersApplyOneAfterTheOther) {
  // Top 3 leaves 4 : 3 : 2 of 9; 0.7 of that wants two; half of 0.4 keeps both.
  ExpectDistribution(
      {0, 4 / 7.0, 0, 3 / 7.0},
      Counts({.temperature = 1.0f, .top_k = 3, .top_p = 0.7f, .min_p = 0.5f}, kFour));
}

TEST(SamplerTest, RepetitionPenaltyAppliesOncePerToken) {
  // 2 becomes 1, -1 becomes -2, however often they came before.
  const std::vector<float> logits = {2.0f, -1.0f, 0.5f};
  const double a = exp(1.0), b = exp(-2.0), c = exp(0.5), sum = a + b + c;
  ExpectDistribution(
      {a / sum, b / sum, c / sum},
      Counts({.temperature = 1.0f, .repetition_penalty = 2.0f}, logits, {0, 1, 0, 0}));
}

TEST(SamplerTest, SuppressedTokensAreNotDrawn) {
  ExpectDistribution({1 / 3.0, 0, 2 / 3.0, 0},
                     Counts({.temperature = 1.0f}, kFour, {}, {1, 3}));
}

TEST(SamplerTest, TheSeedDecidesTheDraws) {
  const std::vector<float> logits(1000, 0.0f);
  const auto draw = [&](uint64_t seed) {
    Sampler sampler({.temperature = 1.0f}, seed);
    std::vector<int32_t> ids;
    for (int i = 0; i < 20; ++i) {
      std::vector<float> copy = logits;
      ids.push_back(sampler.Sample(copy, {}, {}));
    }
    return ids;
  };
  EXPECT_EQ(draw(5), draw(5));
  EXPECT_NE(draw(5), draw(6));
}

TEST(SamplerTest, LogitsThatAreNotFiniteAreRefused) {
  for (float bad : {kNaN, kInf}) {
    for (float temperature : {0.0f, 1.0f}) {
      Sampler sampler({.temperature = temperature}, 1);
      std::vector<float> logits = {0.0f, 1.0f, bad, 0.5f};
      EXPECT_THROW(sampler.Sample(logits, {}, {}), Error);
    }
  }
}

TEST(SamplerTest, ParametersOutOfRangeAreNamed) {
  const auto name = [](const SamplingParams& params) {
    try {
      Sampler sampler(params, 1);
    } catch (const Error& e) {
      return std::string(e.what()).substr(0, std::string(e.what()).find(':'));
    }
    return std::string("accepted");
  };
  EXPECT_EQ("temperature", name({.temperature = -0.1f}));
  EXPECT_EQ("temperature", name({.temperature = kNaN}));
  EXPECT_EQ("top_p", name({.top_p = 0.0f}));
  EXPECT_EQ("top_p", name({.top_p = 1.1f}));
  EXPECT_EQ("min_p", name({.min_p = 1.0f}));
  EXPECT_EQ("min_p", name({.min_p = -0.1f}));
  EXPECT_EQ("repetition_penalty", name({.repetition_penalty = 0.0f}));
  EXPECT_EQ("repetition_penalty", name({.repetition_penalty = kInf}));
}

// LogSumExp is within (4 + mean |d|) u of the logarithm of the sum (softmax_test.cc), d
// being how far a logit is below the largest: 10 at most here, and u is 2^-24.
TEST(LogprobsTest, AreTheLogarithmsOfTheSoftmaxTheLowerIdFirstOnATie) {
  const std::vector<float> logits = {-3.0f, 7.0f, -INFINITY, 7.0f, 1.0f};
  const double log_sum = log(exp(-3.0) + 2.0 * exp(7.0) + exp(1.0));
  for (size_t top : {0, 1, 3, 9}) {
    const std::vector<TokenLogprob> found = Logprobs(logits, 4, top);
    const std::vector<int32_t> want = {4, 1, 3, 4, 0, 2};
    ASSERT_EQ(1 + std::min<size_t>(top, 5), found.size());
    for (size_t i = 0; i < found.size(); ++i) {
      const double logit = double{logits[static_cast<size_t>(want[i])]};
      EXPECT_EQ(want[i], found[i].id);
      if (logit == -INFINITY) {
        EXPECT_EQ(logit, found[i].logprob);
      } else {
        EXPECT_NEAR(logit - log_sum, found[i].logprob, 14.0 * 0x1p-24);
      }
    }
  }
}

}  // namespace
}  // namespace halfbyte
