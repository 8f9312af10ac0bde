// csrc/kernels/row_lattice.cc
// A row of 8-bit levels has at most 128 magnitudes, so that few other rows need a
// second look. A magnitude that was rounded from step * level pins the step to an
// interval for each level it may be of; together they leave some intervals, or none.
// Of 8 bits a largest magnitude alone does not tell the levels of the others, as half
// an ulp of bf16 is up to half a step: hence the sets of intervals.
// SPDX-License-Identifier: Apache-2.0
#include <math.h>

#include <algorithm>
#include <bit>

#include "formats/step.h"
#include "formats/w2-inl.h"
#include "formats/w4-inl.h"
#include "formats/w8-inl.h"
#include "kernels/lattice.h"

namespace halfbyte {
namespace {

constexpr size_t kBlock = 32;
constexpr size_t kMost = 128;  // magnitudes that W8 tells apart

// Weights apart from 0 that do not fit by chance. With 2 and 4 bits each further one
// divides the chance by ten or more. With 8 bits every second bf16 above half of the
// largest magnitude is on some lattice: 2^-32, times the 2^13 or so lattices that can
// be told apart.
template <class Fmt>
constexpr size_t kFewest = Fmt::kMaxCode > 15 ? 32 : 4;

// The magnitudes of a row, each once and ascending, without 0.
struct Magnitudes {
  float value[kMost];
  size_t count = 0;
  bool top_is_positive = false, top_is_negative = false;  // the largest of them
  size_t nonzero = 0;                                     // weights
};

struct Interval {
  double low, high;
};

// Steps, the largest first. Each magnitude adds two borders at most to what a range of
// half an ulp of the largest holds.
struct Intervals {
  Interval at[2 * kMost];
  size_t count = 0;
};

bool AllFinite(const uint16_t* w, size_t K) {
  return std::all_of(w, w + K, [](uint16_t bits) { return (~bits & 0x7F80) != 0; });
}

// False if there are more than `most`.
bool Collect(const uint16_t* w, size_t K, size_t most, Magnitudes& out) {
  uint64_t seen[0x8000 / 64] = {};
  for (size_t i = 0; i < K; ++i) seen[(w[i] & 0x7FFF) / 64] |= 1ull << (w[i] % 64);
  seen[0] &= ~1ull;  // 0 is a level of every lattice
  uint16_t top = 0;
  for (size_t word = 0; word < std::size(seen); ++word) {
    for (uint64_t rest = seen[word]; rest != 0; rest &= rest - 1) {
      if (out.count == most) return false;
      top = static_cast<uint16_t>(64 * word + std::countr_zero(rest));
      out.value[out.count++] = F32FromBF16(top);
    }
  }
  for (size_t i = 0; i < K; ++i) {
    out.nonzero += (w[i] & 0x7FFF) != 0;
    out.top_is_positive |= w[i] == top;
    out.top_is_negative |= w[i] == (top | 0x8000);
  }
  return true;
}

// What rounds to a magnitude: half an ulp on either side, and half an ulp of the f32
// product that was rounded.
Interval Rounding(float magnitude) {
  uint32_t bits;
  memcpy(&bits, &magnitude, sizeof(bits));
  const uint32_t low_bits = bits - 0x8000, high_bits = bits + 0x8000;
  float low, high;
  memcpy(&low, &low_bits, sizeof(low));
  memcpy(&high, &high_bits, sizeof(high));
  return {low * (1.0 - 0x1p-23), high * (1.0 + 0x1p-23)};
}

// The steps of `from` with which a magnitude is some level up to `most`.
void Narrow(const Intervals& from, float magnitude, int most, Intervals& to) {
  const Interval r = Rounding(magnitude);
  to.count = 0;
  for (size_t i = 0; i < from.count; ++i) {
    const Interval steps = from.at[i];
    const double first = fmax(1.0, ceil(r.low / steps.high));
    const double last = fmin(most, floor(r.high / steps.low));
    for (double level = first; level <= last; ++level) {
      const Interval meet = {fmax(steps.low, r.low / level),
                             fmin(steps.high, r.high / level)};
      if (meet.low > meet.high || to.count == std::size(to.at)) continue;
      to.at[to.count++] = meet;
    }
  }
}

// Steps with which the largest magnitude is level m and the others are levels too.
// They are in one of the two `sets`.
const Intervals& StepsOf(const Magnitudes& row, int m, Intervals (&sets)[2]) {
  const Interval top = Rounding(row.value[row.count - 1]);
  Intervals *steps = &sets[0], *narrower = &sets[1];
  steps->at[0] = {top.low / m, top.high / m};
  steps->count = 1;
  for (size_t i = 0; i + 1 < row.count && steps->count != 0; ++i) {
    Narrow(*steps, row.value[i], m, *narrower);
    std::swap(steps, narrower);
  }
  return *steps;
}

bool IsExact(const Magnitudes& row, float step) {
  return std::all_of(row.value, row.value + row.count, [step](float magnitude) {
    const float product = step * rintf(magnitude / step);
    return F32FromBF16(BF16FromF32(product)) == magnitude;
  });
}

// A step that gives every weight, nearest to the middle of an interval; 0 if none does.
// Where an interval is wider than the f32 numbers that are tried, its middle is one.
float ExactStep(const Magnitudes& row, const Interval& steps) {
  constexpr int kTries = 16;
  const auto middle = static_cast<float>(0.5 * (steps.low + steps.high));
  float below = middle, above = middle;
  for (int i = 0; i < kTries; ++i) {
    if (IsExact(row, below)) return below;
    if (IsExact(row, above)) return above;
    below = nextafterf(below, 0.0f);
    above = nextafterf(above, INFINITY);
  }
  return 0.0f;
}

// The largest step that gives every weight, negative if a level asks for it; 0 if there
// is none. `half`: the lowest level is -half, and no level is +half.
float StepOf(const Magnitudes& row, int half) {
  Intervals sets[2];
  const bool both = row.top_is_positive && row.top_is_negative;
  for (int m = 1; m <= half - both; ++m) {
    const Intervals& steps = StepsOf(row, m, sets);
    for (size_t i = 0; i < steps.count; ++i) {
      const float step = ExactStep(row, steps.at[i]);
      if (step != 0.0f) return m == half && row.top_is_positive ? -step : step;
    }
  }
  return 0.0f;
}

template <class Fmt>
void PackRow(const uint16_t* w, size_t K, float step, uint8_t* blocks) {
  auto* to = reinterpret_cast<typename Fmt::Block*>(blocks);
  uint8_t codes[kBlock];
  for (size_t b = 0; b < K / kBlock; ++b, w += kBlock) {
    for (size_t i = 0; i < kBlock; ++i) {
      const float level = step == 0.0f ? 0.0f : rintf(F32FromBF16(w[i]) / step);
      codes[i] = static_cast<uint8_t>(level - kLowestLevel<Fmt>);
    }
    Fmt::Pack(codes, to[b]);
  }
}

template <class Fmt>
OnLattice Recover(const uint16_t* w, size_t K, uint8_t* blocks, float* scale) {
  constexpr int kHalf = -kLowestLevel<Fmt>;
  if (!AllFinite(w, K)) return OnLattice::kNotFinite;
  Magnitudes row;
  if (!Collect(w, K, kHalf, row)) return OnLattice::kNo;
  const float step = row.count == 0 ? 0.0f : StepOf(row, kHalf);
  if (row.count != 0 && step == 0.0f) return OnLattice::kNo;
  PackRow<Fmt>(w, K, step, blocks);
  *scale = step;
  const bool few = row.count != 0 && row.nonzero < kFewest<Fmt>;
  return few ? OnLattice::kTooFew : OnLattice::kExact;
}

using Recoverer = OnLattice (*)(const uint16_t*, size_t, uint8_t*, float*);

Recoverer RecovererOf(Format format) {
  switch (format) {
    case Format::kW2:
      return &Recover<W2>;
    case Format::kW4:
      return &Recover<W4>;
    case Format::kW8:
      return &Recover<W8>;
    default:
      return nullptr;
  }
}

}  // namespace

bool HasRowLattice(Format format) noexcept { return RecovererOf(format) != nullptr; }

OnLattice RecoverRow(Format format, const uint16_t* w, size_t K, uint8_t* blocks,
                     float* scale) noexcept {
  return RecovererOf(format)(w, K, blocks, scale);
}

}  // namespace halfbyte
