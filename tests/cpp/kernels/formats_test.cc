// tests/cpp/kernels/formats_test.cc
// Every format of formats/list.inc: decoding equals its definition, products stay
// inside their bound, and neither touches a byte outside its buffers.
// SPDX-License-Identifier: Apache-2.0

#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <optional>
#include <random>
#include <vector>

#include "guarded.h"
#include "kernels/format_kernels.h"
#include "test_floats.h"
#include "test_targets.h"

namespace halfbyte {
namespace {

class FormatsTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(FormatsTest);

// A target that was not compiled falls back to another, and every test would pass.
TEST_P(FormatsTest, RunsTheTargetItWasAskedFor) {
  EXPECT_EQ(GetParam(), CpuTarget());
  for (const FormatInfo& info : kFormats) {
    EXPECT_EQ(0u, GetParam().find(hwy::TargetName(KernelsFor(info.format).target)));
  }
}

std::vector<float> DecodeRef(const FormatInfo& info, const uint8_t* w, size_t K) {
  std::vector<float> out(K);
  KernelsFor(info.format).decode_row_ref(w, K, out.data());
  return out;
}

// Random bytes are legal blocks of every format; their scales reach every f16 and f32,
// subnormal, infinite and NaN ones too.
std::vector<uint8_t> RandomBytes(size_t num, std::mt19937& rng) {
  std::vector<uint8_t> bytes(num);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(rng());
  return bytes;
}

// N rows of K random weights, all of them finite and below 100.
std::vector<uint8_t> SaneRows(const FormatInfo& info, size_t N, size_t K) {
  std::mt19937 rng(static_cast<uint32_t>(N * 1000 + K));
  std::vector<uint8_t> rows;
  while (rows.size() < N * RowBytes(info.format, K)) {
    const std::vector<uint8_t> block = RandomBytes(info.block_bytes, rng);
    const auto w = DecodeRef(info, block.data(), info.block_len);
    const bool sane =
        std::all_of(w.begin(), w.end(), [](float v) { return fabsf(v) < 100.0f; });
    if (sane) rows.insert(rows.end(), block.begin(), block.end());
  }
  return rows;
}

// Row lengths: around every vector length for float weights, blocks for the others.
std::vector<size_t> LengthsOf(const FormatInfo& info) {
  if (info.block_len == 1) return {std::begin(kLengths), std::end(kLengths)};
  return {0, info.block_len, 2 * info.block_len, 3 * info.block_len, 1024};
}

TEST_P(FormatsTest, DecodingEqualsTheDefinitionBitForBit) {
  for (const FormatInfo& info : kFormats) {
    for (size_t K : LengthsOf(info)) {
      for (Guard guard : kGuards) {
        for (size_t skew : {0, 1, 4}) {
          std::mt19937 rng(static_cast<uint32_t>(K + skew));
          Guarded<uint8_t> w(RandomBytes(RowBytes(info.format, K), rng), guard, skew);
          Guarded<float> out(K, guard, skew);
          KernelsFor(info.format).decode_row(w.data(), K, out.data());
          const auto want = DecodeRef(info, w.data(), K);
          for (size_t i = 0; i < K; ++i) {
            if (isnan(want[i]) && isnan(out.At(i))) continue;  // payloads may differ
            ASSERT_EQ(BitsOf(want[i]), BitsOf(out.At(i)))
                << info.name << " K " << K << " at " << i;
          }
          EXPECT_TRUE(w.Intact() && out.Intact()) << info.name;
        }
      }
    }
  }
}

// ---- products

// Those with one scale a row are multiplied by another function: channel_test.cc.
bool HasBlockScales(const FormatInfo& info) {
  return KernelsFor(info.format).linear != nullptr;
}

// X as the kernel reads it, and the values that those bytes stand for.
struct Input {
  Input(const FormatKernels& kernels, size_t M, size_t K)
      : q8(kernels.activations == Activations::kQ8), values(Normal(M * K, 7)) {
    if (!q8) return;
    blocks.resize(M * K / Q8Block::kLen);
    QuantizeQ8(values.data(), M * K, blocks.data());
    for (size_t i = 0; i < M * K; ++i) {
      const Q8Block& b = blocks[i / Q8Block::kLen];
      values[i] = b.d * static_cast<float>(b.q[i % Q8Block::kLen]);
    }
  }

  const void* Row(size_t m, size_t K) const {
    if (q8) return &blocks[m * K / Q8Block::kLen];
    return &values[m * K];
  }

  bool q8;
  std::vector<float> values;
  std::vector<Q8Block> blocks;
};

// W as the kernel reads it: rows as they are, or panels that end at a guard page.
struct Packed {
  Packed(const FormatInfo& info, const uint8_t* rows, size_t N, size_t K)
      : data(rows), row_bytes(RowBytes(info.format, K)) {
    const FormatKernels& kernels = KernelsFor(info.format);
    if (kernels.panel_bytes == nullptr) return;
    const size_t stored = row_bytes;
    row_bytes = kernels.panel_bytes(K);
    const size_t num = (N + kPanelRows - 1) / kPanelRows;
    panels.emplace(num * row_bytes);
    for (size_t i = 0; i < num; ++i) {
      kernels.pack_panel(rows + i * kPanelRows * stored, stored,
                         std::min(kPanelRows, N - i * kPanelRows), K,
                         panels->data() + i * row_bytes);
    }
    data = panels->data();
  }

  bool Intact() const { return !panels || panels->Intact(); }

  std::optional<Guarded<uint8_t>> panels;
  const uint8_t* data;
  size_t row_bytes;
};

LinearArgs ArgsFor(const Packed& w, const Input& x, float* y, size_t M, size_t N,
                   size_t K) {
  return {.w = w.data,
          .w_row_bytes = w.row_bytes,
          .x = x.q8 ? static_cast<const void*>(x.blocks.data()) : x.values.data(),
          .x_ld = x.q8 ? K / Q8Block::kLen : K,
          .y = y,
          .y_ld = N,
          .row_begin = 0,
          .row_end = N,
          .M = M,
          .K = K};
}

// The sum in double, and a bound on what f32 may add to it.
//
// Each of at most K accumulations rounds a partial sum that is no larger than the sum
// of the magnitudes of the terms: K u. The scaled sum of a group, the decoded weight
// and the activation are rounded once each, and the last sum over lanes adds four more:
// 8 u.
//
// The terms are w x, except where a format has a minimum: there they are s n x and m x
// with w = s n - m. Of 16 random codes some two are half the range apart (the chance
// that none are is below 1e-4 for 2-bit codes), so s n_max <= 4 max|w| over the 16 and
// |m| <= s n + |w| <= 5 max|w|: together 9 max|w||x|. Taken for every format.
void Expect(const FormatInfo& info, const std::vector<float>& w, const float* x,
            size_t K, float y, size_t n) {
  double sum = 0.0, magnitude = 0.0;
  for (size_t k = 0; k < K; ++k) {
    const size_t group = k / 16 * 16;
    float largest = 0.0f;
    for (size_t i = group; i < std::min(group + 16, K); ++i) {
      largest = std::max(largest, fabsf(w[i]));
    }
    const bool is_float = info.block_len == 1;
    sum += double{w[k]} * double{x[k]};
    magnitude += (is_float ? fabs(w[k]) : 9.0 * largest) * fabs(double{x[k]});
  }
  const double bound = (static_cast<double>(K) + 8.0) * kU * magnitude + kTiny;
  ASSERT_NEAR(sum, y, bound) << info.name << " K " << K << " row " << n;
}

// Rows: a panel and some; tokens: every tile, and two of them with a rest.
TEST_P(FormatsTest, ProductsStayInsideTheBound) {
  for (const FormatInfo& info : kFormats) {
    if (!HasBlockScales(info)) continue;
    for (size_t K : LengthsOf(info)) {
      for (size_t M : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 17}) {
        const size_t N = M % 2 == 0 ? 19 : 37;
        const Guard guard = M % 2 == 0 ? Guard::kAfter : Guard::kBefore;
        Guarded<uint8_t> rows(SaneRows(info, N, K), guard, M % 3);
        const Packed w(info, rows.data(), N, K);
        const Input x(KernelsFor(info.format), M, K);
        Guarded<float> y(M * N, guard);
        KernelsFor(info.format).linear(ArgsFor(w, x, y.data(), M, N, K));
        for (size_t n = 0; n < N; ++n) {
          const auto row =
              DecodeRef(info, rows.data() + n * RowBytes(info.format, K), K);
          for (size_t m = 0; m < M; ++m) {
            Expect(info, row, x.values.data() + m * K, K, y.At(m * N + n), n);
            if (HasFatalFailure()) return;
          }
        }
        EXPECT_TRUE(rows.Intact() && w.Intact() && y.Intact()) << info.name;
      }
    }
  }
}

TEST_P(FormatsTest, ARowOfABatchEqualsThatRowAloneBitForBit) {
  constexpr size_t N = 85, K = 512;
  for (const FormatInfo& info : kFormats) {
    if (!HasBlockScales(info)) continue;
    const auto rows = SaneRows(info, N, K);
    const Packed w(info, rows.data(), N, K);
    const FormatKernels& kernels = KernelsFor(info.format);
    for (size_t M : {2, 3, 4, 5, 6, 7, 8, 11, 16, 21}) {
      const Input x(kernels, M, K);
      std::vector<float> batch(M * N), alone(N);
      kernels.linear(ArgsFor(w, x, batch.data(), M, N, K));
      for (size_t m = 0; m < M; ++m) {
        LinearArgs args = ArgsFor(w, x, alone.data(), 1, N, K);
        args.x = x.Row(m, K);
        kernels.linear(args);
        for (size_t n = 0; n < N; ++n) {
          ASSERT_EQ(BitsOf(alone[n]), BitsOf(batch[m * N + n]))
              << info.name << " " << m;
        }
      }
    }
  }
}

// Rows so long that a block of them, 384 KiB, holds a dozen: two blocks and a rest.
TEST_P(FormatsTest, FloatRowsOfSeveralBlocksEqualEachRowAlone) {
  constexpr size_t N = 29;
  for (const FormatInfo& info : kFormats) {
    if (info.block_len != 1) continue;
    const size_t K = (size_t{36} << 10) / info.block_bytes + 3;
    const auto rows = SaneRows(info, N, K);
    const Packed w(info, rows.data(), N, K);
    const FormatKernels& kernels = KernelsFor(info.format);
    for (size_t M : {1, 5, 8}) {
      const Input x(kernels, M, K);
      std::vector<float> all(M * N), alone(M * N);
      kernels.linear(ArgsFor(w, x, all.data(), M, N, K));
      for (size_t n = 0; n < N; ++n) {
        LinearArgs args = ArgsFor(w, x, alone.data(), M, N, K);
        args.row_begin = n;
        args.row_end = n + 1;
        kernels.linear(args);
      }
      for (size_t i = 0; i < M * N; ++i) {
        ASSERT_EQ(BitsOf(alone[i]), BitsOf(all[i]))
            << info.name << " " << M << " " << i;
      }
    }
  }
}

// Whole blocks of rows, and only as many tokens as fill tiles.
TEST_P(FormatsTest, CodesSpreadToBytesGiveTheSameBits) {
  constexpr size_t N = 4 * kPanelRows;
  for (const FormatInfo& info : kFormats) {
    const FormatKernels& kernels = KernelsFor(info.format);
    if (kernels.linear_spread == nullptr) continue;
    for (size_t K : LengthsOf(info)) {
      const auto rows = SaneRows(info, N, K);
      const Packed w(info, rows.data(), N, K);
      const size_t bytes = kernels.spread_bytes(K);
      Guarded<uint8_t> spread(N / kPanelRows * bytes);
      for (size_t i = 0; i < N / kPanelRows; ++i) {
        kernels.spread_panel(w.data + i * w.row_bytes, K, spread.data() + i * bytes);
      }
      const size_t num = 2 * kernels.spread_tokens, M = num + 1;
      const Input x(kernels, M, K);
      std::vector<float> want(M * N);
      kernels.linear(ArgsFor(w, x, want.data(), M, N, K));
      Guarded<float> y(num * N);
      LinearArgs args = ArgsFor(w, x, y.data(), M, N, K);
      args.w = spread.data();
      args.w_row_bytes = bytes;
      kernels.linear_spread(args);
      for (size_t i = 0; i < num * N; ++i) {
        ASSERT_EQ(BitsOf(want[i]), BitsOf(y.At(i))) << info.name << " K " << K;
      }
      EXPECT_TRUE(spread.Intact() && y.Intact()) << info.name;
    }
  }
}

// One token with so many activations that the slice is read in two streams.
TEST_P(FormatsTest, TwoStreamsGiveTheBitsOfOne) {
  constexpr size_t N = 5 * kPanelRows + 3, K = 16384;
  for (const FormatInfo& info : kFormats) {
    if (!HasBlockScales(info)) continue;
    const auto rows = SaneRows(info, N, K);
    const Packed w(info, rows.data(), N, K);
    const FormatKernels& kernels = KernelsFor(info.format);
    const Input x(kernels, 1, K);
    std::vector<float> whole(N), parts(N);
    kernels.linear(ArgsFor(w, x, whole.data(), 1, N, K));
    for (size_t begin = 0; begin < N; begin += kPanelRows) {
      LinearArgs args = ArgsFor(w, x, parts.data(), 1, N, K);
      args.row_begin = begin;
      args.row_end = std::min(begin + kPanelRows, N);
      kernels.linear(args);
    }
    for (size_t n = 0; n < N; ++n) {
      ASSERT_EQ(BitsOf(whole[n]), BitsOf(parts[n])) << info.name << " " << n;
    }
  }
}

TEST_P(FormatsTest, ASliceWritesItsRowsOnlyAndTheSameBits) {
  constexpr size_t N = 37, M = 5, K = 256;
  for (const FormatInfo& info : kFormats) {
    if (!HasBlockScales(info)) continue;
    const auto rows = SaneRows(info, N, K);
    const Packed w(info, rows.data(), N, K);
    const FormatKernels& kernels = KernelsFor(info.format);
    const Input x(kernels, M, K);
    std::vector<float> whole(M * N);
    kernels.linear(ArgsFor(w, x, whole.data(), M, N, K));
    for (const auto& [begin, end] :
         {std::pair<size_t, size_t>{0, 1}, {16, 16}, {16, 31}, {32, 37}}) {
      std::vector<float> part(M * N, 123.0f);
      LinearArgs args = ArgsFor(w, x, part.data(), M, N, K);
      args.row_begin = begin;
      args.row_end = end;
      kernels.linear(args);
      for (size_t i = 0; i < M * N; ++i) {
        const bool inside = i % N >= begin && i % N < end;
        ASSERT_EQ(BitsOf(inside ? whole[i] : 123.0f), BitsOf(part[i])) << info.name;
      }
    }
  }
}

// True for the bytes of a block that hold codes: a scale moves at least 16 weights.
std::vector<bool> CodeBytes(const FormatInfo& info) {
  std::vector<uint8_t> block = SaneRows(info, 1, info.block_len);
  const auto before = DecodeRef(info, block.data(), info.block_len);
  std::vector<bool> is_code;
  for (uint8_t& byte : block) {
    byte = static_cast<uint8_t>(~byte);
    const auto after = DecodeRef(info, block.data(), info.block_len);
    byte = static_cast<uint8_t>(~byte);
    size_t moved = 0;
    for (size_t i = 0; i < info.block_len; ++i) {
      moved += BitsOf(before[i]) != BitsOf(after[i]);
    }
    is_code.push_back(moved < 16);
  }
  return is_code;
}

// No sum may overflow where it is kept in 16 bits: all codes at an end of their range,
// and activations at theirs, over the longest row of a released model. One product lost
// to saturation is far more than the bound: |sum of roundings| as in Expect, with the
// weights of the lowest and highest codes, 2 |low| + |high|, above scale and minimum.
TEST_P(FormatsTest, CodesAndActivationsAtTheirExtremes) {
  constexpr size_t N = 3, M = 9, K = 21504;
  constexpr uint8_t kFills[] = {0x00, 0xFF, 0x5A};
  for (const FormatInfo& info : kFormats) {
    if (info.block_len == 1 || !HasBlockScales(info)) continue;
    const auto is_code = CodeBytes(info);
    const auto sane = SaneRows(info, 1, K);
    std::vector<uint8_t> rows;
    for (uint8_t fill : kFills) {
      for (size_t i = 0; i < sane.size(); ++i) {
        rows.push_back(is_code[i % info.block_bytes] ? fill : sane[i]);
      }
    }
    const Packed w(info, rows.data(), N, K);
    Input x(KernelsFor(info.format), M, K);
    for (size_t i = 0; i < x.values.size(); ++i) {
      x.values[i] = i / Q8Block::kLen % 3 == 2 && i % 2 == 1 ? -127.0f : 127.0f;
    }
    QuantizeQ8(x.values.data(), x.values.size(), x.blocks.data());
    std::vector<float> y(M * N);
    KernelsFor(info.format).linear(ArgsFor(w, x, y.data(), M, N, K));
    const auto low = DecodeRef(info, rows.data(), K);
    const auto high = DecodeRef(info, rows.data() + sane.size(), K);
    for (size_t n = 0; n < N; ++n) {
      const auto row = DecodeRef(info, rows.data() + n * sane.size(), K);
      for (size_t m = 0; m < M; ++m) {
        double sum = 0.0, magnitude = 0.0;
        for (size_t k = 0; k < K; ++k) {
          sum += double{row[k]} * x.values[m * K + k];
          magnitude += (2.0 * fabs(low[k]) + fabs(high[k])) * 127.0;
        }
        // A group of 16 at least is one term: K / 16 sums are rounded, and each term
        // four times at most.
        ASSERT_NEAR(sum, y[m * N + n], (K / 16.0 + 8.0) * kU * magnitude)
            << info.name << " fill " << int{kFills[n]};
      }
    }
  }
}

// The step of a block that is not finite is NaN: it reaches every output.
TEST_P(FormatsTest, AnActivationThatIsNotFiniteShowsInTheOutput) {
  constexpr size_t N = 5, K = 256;
  for (const FormatInfo& info : kFormats) {
    if (!HasBlockScales(info)) continue;
    const auto rows = SaneRows(info, N, K);
    const Packed w(info, rows.data(), N, K);
    const FormatKernels& kernels = KernelsFor(info.format);
    Input x(kernels, 1, K);
    x.values[70] = kNaN;
    if (x.q8) QuantizeQ8(x.values.data(), K, x.blocks.data());
    std::vector<float> y(N);
    kernels.linear(ArgsFor(w, x, y.data(), 1, N, K));
    for (float v : y) EXPECT_TRUE(isnan(v)) << info.name;
  }
}

}  // namespace
}  // namespace halfbyte
