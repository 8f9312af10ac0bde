// csrc/model/sampler.h
// Chooses the next token.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_SAMPLER_H_
#define HALFBYTE_MODEL_SAMPLER_H_

#include <stddef.h>
#include <stdint.h>

#include <span>
#include <vector>

namespace halfbyte {

// Applied in this order: suppressed ids, repetition penalty, temperature, top-k, top-p,
// min-p; then one draw.
struct SamplingParams {
  float temperature = 0.0f;  // 0: the likeliest token, the lowest id on a tie
  size_t top_k = 0;          // 0: all
  float top_p = 1.0f;        // (0, 1]
  float min_p = 0.0f;        // [0, 1): share of the likeliest token's probability
  float repetition_penalty = 1.0f;  // above 0; 1: none
};

class Sampler {
 public:
  // Throws Error(kValue) naming the parameter that is out of its range. The same seed
  // gives the same tokens for the same logits: draw i is a function of seed and i.
  Sampler(const SamplingParams& params, uint64_t seed);

  // `history` is what the repetition penalty applies to. Logits are overwritten. Throws
  // Error(kNumerical) if one of them is NaN or +infinity.
  int32_t Sample(std::span<float> logits, std::span<const int32_t> history,
                 std::span<const int32_t> suppressed);

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };

  void Filter(std::span<const float> logits);
  int32_t Draw();
  double NextUniform();  // [0, 1)

  SamplingParams params_;
  uint64_t seed_, draws_ = 0;
  std::vector<Candidate> candidates_;
  std::vector<double> weights_;
};

struct TokenLogprob {
  int32_t id;
  double logprob;
};

// The natural logarithm of a token's probability under the softmax of `logits`: of
// `id`, then of the `top` likeliest, the lower id first where two are alike. Logits as
// the model gave them: a sampler overwrites its own.
std::vector<TokenLogprob> Logprobs(std::span<const float> logits, int32_t id,
                                   size_t top);

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_SAMPLER_H_
