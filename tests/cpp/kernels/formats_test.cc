// tests/cpp/kernels/formats_test.cc
// Every format of formats/list.inc: decoding equals its definition, products stay
// inside their bound, and neither touches a byte outside its buffers.
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
#include "test_floats.h"
#include "test_targets.h"

namespace halfbyte {
namespace {

class FormatsTest : public TargetTest {};
HALFBYTE_INSTANTIATE_TARGETS(FormatsTest);

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

LinearArgs ArgsFor(const FormatInfo& info, const uint8_t* w, const Input& x, float* y,
                   size_t M, size_t N, size_t K) {
  return {.w = w,
          .w_row_bytes = RowBytes(info.format, K),
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
// of the magnitudes of the terms: K u. Scale times d, the decoded weight and the
// activation are rounded once each, and the last sum over lanes adds four more: 8 u.
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

TEST_P(FormatsTest, ProductsStayInsideTheBound) {
  for (const FormatInfo& info : kFormats) {
    for (size_t K : LengthsOf(info)) {
      for (size_t M : {0, 1, 2, 4, 5, 9}) {
        constexpr size_t N = 19;  // a tile of 16, and three left over
        const Guard guard = M % 2 == 0 ? Guard::kAfter : Guard::kBefore;
        Guarded<uint8_t> w(SaneRows(info, N, K), guard, M % 3);
        const Input x(KernelsFor(info.format), M, K);
        Guarded<float> y(M * N, guard);
        KernelsFor(info.format).linear(ArgsFor(info, w.data(), x, y.data(), M, N, K));
        for (size_t n = 0; n < N; ++n) {
          const auto row = DecodeRef(info, w.data() + n * RowBytes(info.format, K), K);
          for (size_t m = 0; m < M; ++m) {
            Expect(info, row, &x.values[m * K], K, y.At(m * N + n), n);
            if (HasFatalFailure()) return;
          }
        }
        EXPECT_TRUE(w.Intact() && y.Intact()) << info.name;
      }
    }
  }
}

TEST_P(FormatsTest, ARowOfABatchEqualsThatRowAloneBitForBit) {
  constexpr size_t N = 21, M = 11, K = 512;
  for (const FormatInfo& info : kFormats) {
    const auto w = SaneRows(info, N, K);
    const FormatKernels& kernels = KernelsFor(info.format);
    const Input x(kernels, M, K);
    std::vector<float> batch(M * N), alone(N);
    kernels.linear(ArgsFor(info, w.data(), x, batch.data(), M, N, K));
    for (size_t m = 0; m < M; ++m) {
      LinearArgs args = ArgsFor(info, w.data(), x, alone.data(), 1, N, K);
      args.x = x.Row(m, K);
      kernels.linear(args);
      for (size_t n = 0; n < N; ++n) {
        ASSERT_EQ(BitsOf(alone[n]), BitsOf(batch[m * N + n])) << info.name << " " << m;
      }
    }
  }
}

TEST_P(FormatsTest, ASliceWritesItsRowsOnlyAndTheSameBits) {
  constexpr size_t N = 37, M = 5, K = 256;
  for (const FormatInfo& info : kFormats) {
    const auto w = SaneRows(info, N, K);
    const FormatKernels& kernels = KernelsFor(info.format);
    const Input x(kernels, M, K);
    std::vector<float> whole(M * N);
    kernels.linear(ArgsFor(info, w.data(), x, whole.data(), M, N, K));
    for (const auto& [begin, end] :
         {std::pair<size_t, size_t>{0, 1}, {3, 3}, {5, 30}}) {
      std::vector<float> part(M * N, 123.0f);
      LinearArgs args = ArgsFor(info, w.data(), x, part.data(), M, N, K);
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

// The step of a block that is not finite is NaN: it reaches every output.
TEST_P(FormatsTest, AnActivationThatIsNotFiniteShowsInTheOutput) {
  constexpr size_t N = 5, K = 256;
  for (const FormatInfo& info : kFormats) {
    const auto w = SaneRows(info, N, K);
    const FormatKernels& kernels = KernelsFor(info.format);
    Input x(kernels, 1, K);
    x.values[70] = kNaN;
    if (x.q8) QuantizeQ8(x.values.data(), K, x.blocks.data());
    std::vector<float> y(N);
    kernels.linear(ArgsFor(info, w.data(), x, y.data(), 1, N, K));
    for (float v : y) EXPECT_TRUE(isnan(v)) << info.name;
  }
}

}  // namespace
}  // namespace halfbyte
