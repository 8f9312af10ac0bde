// csrc/kernels/attention.h
// Attention of a few queries to the same keys and values.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_ATTENTION_H_
#define HALFBYTE_KERNELS_ATTENTION_H_

#include <stddef.h>

namespace halfbyte {

// How keys and values are kept: f32, IEEE binary16, or 8-bit codes with a step for each
// position.
enum class KvType { kF32, kF16, kI8 };

constexpr size_t ElementBytes(KvType type) {
  return type == KvType::kI8 ? 1 : type == KvType::kF16 ? 2 : sizeof(float);
}

// Consecutive positions that lie evenly in memory: `len` rows of head_dim elements.
struct KvSpan {
  const void* k;
  const void* v;
  size_t len;
  // kI8: element i of position j is codes[j, i] * steps[j].
  const float* k_steps = nullptr;
  const float* v_steps = nullptr;
};

// Positions [begin, end) of those that the spans hold, counted from the first.
struct KvRange {
  size_t begin, end;
};

struct AttendArgs {
  // num_tokens x num_queries rows of head_dim; elements from a token's to the next, and
  // from a query's.
  const float* q;
  size_t num_tokens, q_token_ld;
  size_t num_queries, q_ld;
  size_t head_dim;
  float scale;
  const KvSpan* spans;  // num_spans, oldest position first
  size_t num_spans;
  const KvRange* sees;  // of each token
  size_t k_ld, v_ld;    // elements from one position of a span to the next
  KvType type;
  float* rows;    // scratch of NumDecoded
  float* scores;  // scratch of NumScores
  float* out;     // like q, and may be q; overlaps nothing else
  size_t out_token_ld, out_ld;
};

// Floats that so many queries need for so many positions.
constexpr size_t NumScores(size_t tokens, size_t queries, size_t positions) {
  return tokens * queries * (positions + 1);
}

// Positions that are decoded once for all that see them, and stay near while one token
// after the other passes over them: 64 KiB of heads of 512.
inline constexpr size_t kAttendBlock = 32;

// Floats that they take.
constexpr size_t NumDecoded(size_t head_dim) { return kAttendBlock * head_dim; }

// Tokens that are best taken together: scores of more than 4 MB would be read and
// written in memory, where the keys are by then.
constexpr size_t TokensTogether(size_t tokens, size_t queries, size_t positions) {
  const size_t most = (size_t{1} << 20) / NumScores(1, queries, positions);
  return tokens <= most ? tokens : most != 0 ? most : 1;
}

// For each query of each token: out = sum of p[j] v[j], p = softmax(scale * q . k[j])
// over the positions j that the token sees; zeros if there are none. The bits of a
// query depend on it and on the sequence of positions it sees alone: not on the other
// queries and tokens, nor on where the spans are cut, so a ring buffer may wrap and
// pages may end anywhere. Keys and values are fetched, and decoded, once into a near
// cache, and used by every query of every token while they are there.
void Attend(const AttendArgs& args) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_ATTENTION_H_
