// csrc/kernels/repair.cc
// The ordinary quantizer makes -8 of the largest magnitude. Where that was a trained
// level m below 8 in magnitude, level k became 8 k / m, rounded, and cut off at +7 on
// the side that has no +8: some levels cannot come about, of m = 7 the levels +-4, and
// a block that has none of those tells its m. Weights in bf16 are off by 2^-8 of
// themselves at most, and 8 k / m is never nearer to a half than that moves it.
// SPDX-License-Identifier: Apache-2.0
#include "kernels/repair.h"

#include <math.h>

#include <array>

#include "formats/q4_0-inl.h"
#include "formats/step.h"

namespace halfbyte {
namespace {

constexpr int kMaxLevel = 8;
constexpr size_t kCodes = 16;

// What a trained extreme of level m makes of the others.
struct Extreme {
  uint16_t codes = 0;  // bit c: code c comes about
  // Trained level of a code; of two that became one, the smaller, as there are more of
  // those. Positive on the side where +8 is cut off.
  std::array<int8_t, kCodes> level = {};
  bool cuts = false;  // code 15 is of two levels
};

constexpr Extreme MakeExtreme(int m) {
  Extreme e;
  for (int k = m; k >= 0; --k) {
    const int stored = (16 * k + m) / (2 * m);  // 8 k / m to the nearest; no halves
    const int cut = stored < kMaxLevel ? stored : kMaxLevel - 1;
    e.cuts |= (e.codes >> (cut + 8) & 1) != 0;
    e.codes = static_cast<uint16_t>(e.codes | 1 << (8 - stored) | 1 << (cut + 8));
    e.level[8 - stored] = static_cast<int8_t>(-k);
    e.level[cut + 8] = static_cast<int8_t>(k);
  }
  return e;
}

constexpr std::array<Extreme, kMaxLevel + 1> kExtremes = {
    Extreme(),      MakeExtreme(1), MakeExtreme(2), MakeExtreme(3), MakeExtreme(4),
    MakeExtreme(5), MakeExtreme(6), MakeExtreme(7), MakeExtreme(8)};
static_assert(kExtremes[7].cuts && kExtremes[6].cuts && !kExtremes[5].cuts);
static_assert(!(kExtremes[7].codes >> 4 & 1) && !(kExtremes[7].codes >> 12 & 1));

void Unpack(const Q4_0::Block& block, uint8_t* codes) {
  for (size_t i = 0; i < 16; ++i) {
    codes[i] = block.qs[i] & 15;
    codes[i + 16] = block.qs[i] >> 4;
  }
}

// The smallest m from which these codes may be. 8 has them all.
int LevelOfExtreme(uint16_t seen) {
  int m = 1;
  while ((seen & ~kExtremes[m].codes) != 0) ++m;
  return m;
}

Repair RepairBlock(Q4_0::Block& block) {
  uint8_t codes[Q4_0::kBlockLen];
  Unpack(block, codes);
  uint16_t seen = 0;
  for (const uint8_t code : codes) seen = static_cast<uint16_t>(seen | 1 << code);
  const float d = LoadF16(block.d);
  if (d == 0.0f || seen == 1 << 8) return Repair::kKept;
  if ((seen & 1) == 0 || !isfinite(d)) return Repair::kForeign;
  const int m = LevelOfExtreme(seen);
  const uint16_t step = F16FromF32(fabsf(d) * (8.0f / static_cast<float>(m)));
  if (m == kMaxLevel || step >= kInfiniteStep<Q4_0>) return Repair::kKept;

  const Extreme& extreme = kExtremes[m];
  const int sign = d < 0.0f ? -1 : 1;
  for (uint8_t& code : codes) {
    code = static_cast<uint8_t>(sign * extreme.level[code] + 8);
  }
  StoreStep<Q4_0>(step, block);
  Q4_0::Pack(codes, block);
  const bool cut = extreme.cuts && (seen >> 15 & 1) != 0;
  return cut ? Repair::kAmbiguous : Repair::kRestored;
}

}  // namespace

void RepairQ4_0(const uint8_t* blocks, size_t K, uint8_t* to, Repair* done) noexcept {
  const auto* from = reinterpret_cast<const Q4_0::Block*>(blocks);
  auto* out = reinterpret_cast<Q4_0::Block*>(to);
  for (size_t b = 0; b < K / Q4_0::kBlockLen; ++b) {
    Q4_0::Block block = from[b];
    done[b] = RepairBlock(block);
    out[b] = block;
  }
}

}  // namespace halfbyte
