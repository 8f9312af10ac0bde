// tests/cpp/kernels/channel_test.cc
// Weights with one scale a row: integer sums are exact, on every target, for every
// tile.
// SPDX-License-Identifier: Apache-2.0

#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <random>
#include <vector>

#include "guarded.h"
#include "kernels/format_kernels.h"
#include "kernels/q8.h"
#include "test_floats.h"
#include "test_targets.h"

namespace halfbyte {
namespace {

class ChannelTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(ChannelTest);

std::vector<FormatInfo> RowScaledFormats() {
  std::vector<FormatInfo> infos;
  for (const FormatInfo& info : kFormats) {
    if (KernelsFor(info.format).linear_channels != nullptr) infos.push_back(info);
  }
  return infos;
}

// A problem whose weights, activations and scales are drawn, or all at one end;
// opposed, the codes at the upper and the activations at the lower.
struct Problem {
  enum Kind { kRandom, kLowest, kHighest, kOpposed };

  Problem(const FormatInfo& info, size_t m, size_t n, size_t k, Kind kind)
      : M(m), N(n), K(k), kernels(KernelsFor(info.format)), rng(m + 31 * n + k) {
    const size_t row_bytes = RowBytes(info.format, K);
    std::vector<uint8_t> rows(N * row_bytes);
    // 0x80 is the lowest w8; codes of 0 and 3 or 15 are the ends of w2 and w4.
    const bool wide = info.block_bytes == 32;
    const uint8_t low = wide ? 0x80 : 0x00, high = wide ? 0x7F : 0xFF;
    for (uint8_t& b : rows) {
      b = kind == kRandom ? static_cast<uint8_t>(rng()) : kind == kLowest ? low : high;
    }
    for (size_t i = 0; i < M * K; ++i) {
      const int8_t end = kind == kHighest ? 127 : -128;
      x.push_back(kind == kRandom ? static_cast<int8_t>(rng()) : end);
    }
    panel_bytes = kernels.panel_bytes(K);
    panels.resize((N + kPanelRows - 1) / kPanelRows * panel_bytes + 64);
    aligned = panels.data() + (64 - reinterpret_cast<uintptr_t>(panels.data()) % 64);
    for (size_t i = 0; i < N; i += kPanelRows) {
      kernels.pack_panel(&rows[i * row_bytes], row_bytes, std::min(kPanelRows, N - i),
                         K, aligned + i / kPanelRows * panel_bytes);
    }
    std::vector<float> levels(K);
    for (size_t j = 0; j < N; ++j) {
      kernels.decode_row_ref(&rows[j * row_bytes], K, levels.data());
      for (size_t i = 0; i < M; ++i) {
        int64_t sum = 0;
        for (size_t l = 0; l < K; ++l) {
          sum += static_cast<int64_t>(levels[l]) * x[i * K + l];
        }
        sums.push_back(sum);  // [N, M]
      }
      w_scale.push_back(0.25f * static_cast<float>(1 + j % 5));
    }
    for (size_t i = 0; i < M; ++i) {
      int32_t sum = 0;
      for (size_t l = 0; l < K; ++l) sum += x[i * K + l];
      neg_sum.push_back(-sum);
      x_scale.push_back(0.5f * static_cast<float>(1 + i % 3));
    }
  }

  ChannelArgs Args(float y_step, float* y, int8_t* codes) {
    return {.w = aligned,
            .w_row_bytes = panel_bytes,
            .w_scale = w_scale.data(),
            .x = x.data(),
            .x_ld = K,
            .x_neg_sum = neg_sum.data(),
            .x_scale = x_scale.data(),
            .y_step = y_step,
            .y = y,
            .y_codes = codes,
            .y_ld = N,
            .row_begin = 0,
            .row_end = N,
            .M = M,
            .K = K};
  }

  // The definition: the exact sum, in float32, times the product of the two scales.
  float Want(size_t m, size_t n) const {
    const auto sum = static_cast<float>(static_cast<int32_t>(sums[n * M + m]));
    return sum * (w_scale[n] * x_scale[m]);
  }

  size_t M, N, K;
  const FormatKernels& kernels;
  std::mt19937 rng;
  std::vector<int8_t> x;
  std::vector<uint8_t> panels;
  uint8_t* aligned;
  size_t panel_bytes;
  std::vector<int64_t> sums;
  std::vector<float> w_scale, x_scale;
  std::vector<int32_t> neg_sum;
};

TEST_P(ChannelTest, EveryTileGivesTheExactSum) {
  for (const FormatInfo& info : RowScaledFormats()) {
    for (size_t K : {32, 64, 96, 1024}) {
      for (size_t M : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19}) {
        Problem p(info, M, 37, K, Problem::kRandom);
        Guarded<float> y(M * p.N);
        p.kernels.linear_channels(p.Args(0.0f, y.data(), nullptr));
        for (size_t m = 0; m < M; ++m) {
          for (size_t n = 0; n < p.N; ++n) {
            ASSERT_EQ(BitsOf(p.Want(m, n)), BitsOf(y.At(m * p.N + n)))
                << info.name << " M " << M << " K " << K;
          }
        }
        EXPECT_TRUE(y.Intact());
      }
    }
  }
}

// Whole blocks of rows, and only as many tokens as fill tiles.
TEST_P(ChannelTest, CodesSpreadToBytesGiveTheExactSum) {
  for (const FormatInfo& info : RowScaledFormats()) {
    const FormatKernels& kernels = KernelsFor(info.format);
    if (kernels.linear_channels_spread == nullptr) continue;
    for (size_t K : {32, 96, 1024}) {
      const size_t num = 2 * kernels.spread_tokens;
      Problem p(info, num + 1, 2 * kPanelRows, K, Problem::kRandom);
      const size_t bytes = kernels.spread_bytes(K);
      Guarded<uint8_t> spread(2 * bytes);
      for (size_t i : {0, 1}) {
        kernels.spread_panel(p.aligned + i * p.panel_bytes, K,
                             spread.data() + i * bytes);
      }
      Guarded<float> y(num * p.N);
      ChannelArgs args = p.Args(0.0f, y.data(), nullptr);
      args.w = spread.data();
      args.w_row_bytes = bytes;
      kernels.linear_channels_spread(args);
      for (size_t i = 0; i < num * p.N; ++i) {
        ASSERT_EQ(BitsOf(p.Want(i / p.N, i % p.N)), BitsOf(y.At(i)))
            << info.name << " K " << K;
      }
      EXPECT_TRUE(spread.Intact() && y.Intact());
    }
  }
}

// A few tokens, whose slice is read in two or three streams: panels that they share,
// some that are left over, a part of one, and a slice that begins behind others.
TEST_P(ChannelTest, StreamsFarApartGiveTheExactSum) {
  constexpr size_t N = 8 * kPanelRows + 3, K = 10 * 1024;
  for (const FormatInfo& info : RowScaledFormats()) {
    for (size_t M : {1, 2, 5, 8}) {
      Problem p(info, M, N, K, Problem::kRandom);
      for (size_t begin : {size_t{0}, 2 * kPanelRows}) {
        Guarded<float> y(M * N);
        ChannelArgs args = p.Args(0.0f, y.data(), nullptr);
        args.row_begin = begin;
        p.kernels.linear_channels(args);
        for (size_t i = 0; i < M * N; ++i) {
          if (i % N < begin) continue;
          ASSERT_EQ(BitsOf(p.Want(i / N, i % N)), BitsOf(y.At(i)))
              << info.name << " M " << M << " row " << i % N;
        }
        EXPECT_TRUE(y.Intact());
      }
    }
  }
}

// Codes and activations at the ends of their ranges, over the longest row there is.
TEST_P(ChannelTest, NoSumOverflowsAtTheExtremes) {
  for (const FormatInfo& info : RowScaledFormats()) {
    for (Problem::Kind kind :
         {Problem::kLowest, Problem::kHighest, Problem::kOpposed}) {
      for (size_t M : {1, 3, 9}) {
        Problem p(info, M, 17, 65536, kind);
        std::vector<float> y(M * p.N);
        p.kernels.linear_channels(p.Args(0.0f, y.data(), nullptr));
        for (size_t i = 0; i < y.size(); ++i) {
          ASSERT_EQ(BitsOf(p.Want(i / p.N, i % p.N)), BitsOf(y[i])) << info.name;
        }
      }
    }
  }
}

TEST_P(ChannelTest, OutputsAreRoundedToTheirCodes) {
  for (const FormatInfo& info : RowScaledFormats()) {
    for (size_t M : {1, 5, 17}) {
      Problem p(info, M, 37, 256, Problem::kRandom);
      constexpr float kStep = 96.0f;  // some sums clip
      std::vector<float> y(M * p.N);
      Guarded<int8_t> codes(M * p.N);
      p.kernels.linear_channels(p.Args(kStep, y.data(), nullptr));
      p.kernels.linear_channels(p.Args(kStep, nullptr, codes.data()));
      for (size_t i = 0; i < y.size(); ++i) {
        const float level = nearbyintf(p.Want(i / p.N, i % p.N) / kStep);
        const float want = std::clamp(level, -128.0f, 127.0f);
        ASSERT_EQ(want, static_cast<float>(codes.At(i))) << info.name;
        ASSERT_EQ(want * kStep, y[i]) << info.name;
      }
      EXPECT_TRUE(codes.Intact());
    }
  }
}

TEST_P(ChannelTest, RowsOfActivationsAreRoundedAsDefined) {
  for (size_t K : kLengths) {
    const auto x = Normal(K, 31, 40.0f);
    Guarded<int8_t> codes(K);
    const int32_t neg_sum = QuantizeI8(x.data(), K, 0.5f, codes.data());
    int32_t sum = 0;
    for (size_t i = 0; i < K; ++i) {
      const float level = std::clamp(nearbyintf(x[i] / 0.5f), -128.0f, 127.0f);
      ASSERT_EQ(level, static_cast<float>(codes.At(i)));
      sum += codes.At(i);
    }
    EXPECT_EQ(-sum, neg_sum);
    EXPECT_TRUE(codes.Intact());
    float largest = 0.0f;
    for (float v : x) largest = std::max(largest, fabsf(v));
    EXPECT_EQ(largest, MaxMagnitude(x.data(), K));
  }
}

}  // namespace
}  // namespace halfbyte
