// tests/cpp/ops/linear_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/linear.h"

#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "base/error.h"
#include "kernels/format_kernels.h"
#include "runtime/pages.h"
#include "test_floats.h"

namespace halfbyte {
namespace {

constexpr size_t kN = 301, kK = 512, kM = 3;

struct Weights {
  explicit Weights(Format format) : bytes(kN * RowBytes(format, kK)) {
    const std::vector<float> values = Normal(kN * kK, 21);
    for (size_t n = 0; n < kN; ++n) {
      KernelsFor(format).encode_row_ref(&values[n * kK], kK,
                                        &bytes[n * RowBytes(format, kK)]);
    }
    view = {format, kN, kK, bytes.data()};
    panels = PageBuffer(view.packed_bytes());
    PackPanels({.num_threads = 2, .poll = {}}, view, panels.data());
  }

  WeightView Repacked() const {
    WeightView w = view;
    w.panels = panels.data();
    return w;
  }

  std::vector<uint8_t> bytes;
  PageBuffer panels;
  WeightView view;
};

std::vector<float> Product(const WeightView& w, const std::vector<float>& x,
                           size_t threads, ActivationMode mode) {
  const Context context = {.num_threads = threads, .poll = {}};
  const size_t M = x.size() / w.K;
  std::vector<float> y(M * w.N);
  LinearInput input(context, Mat<const float>(x.data(), M, w.K), mode);
  Linear(input, w, Mat<float>(y.data(), M, w.N));
  return y;
}

TEST(LinearTest, AnyNumberOfThreadsGivesTheSameBits) {
  const std::vector<float> x = Normal(kM * kK, 22);
  for (Format format : {Format::kQ4_0, Format::kQ6_K}) {
    const Weights w(format);
    for (ActivationMode mode : {ActivationMode::kAuto, ActivationMode::kF32}) {
      const auto want = Product(w.view, x, 1, mode);
      for (size_t threads : {2, 3, 7}) {
        EXPECT_EQ(want, Product(w.view, x, threads, mode)) << threads;
      }
    }
  }
}

TEST(LinearTest, RepackedWeightsGiveTheSameBits) {
  const std::vector<float> x = Normal(kM * kK, 24);
  for (Format format : {Format::kQ4_0, Format::kQ8_0, Format::kQ6_K}) {
    const Weights w(format);
    for (size_t threads : {1, 3}) {
      EXPECT_EQ(Product(w.view, x, threads, ActivationMode::kAuto),
                Product(w.Repacked(), x, threads, ActivationMode::kAuto));
    }
  }
}

// So long that the codes of packed rows are spread to bytes, with rows and tokens that
// fill no tile, against weights that nobody has packed.
TEST(LinearTest, LongPromptsGiveTheSameBits) {
  constexpr size_t M = 101;
  const std::vector<float> x = Normal(M * kK, 27);
  for (Format format : {Format::kQ4_0, Format::kQ8_0, Format::kQ6_K}) {
    const Weights w(format);
    const auto want = Product(w.view, x, 1, ActivationMode::kAuto);
    for (size_t threads : {1, 3}) {
      EXPECT_EQ(want, Product(w.Repacked(), x, threads, ActivationMode::kAuto));
    }
  }
}

// Codes in and out: the tokens left over have sums and scales of their own.
TEST(LinearTest, LongPromptsOfCodesGiveTheSameCodes) {
  constexpr size_t M = 101;
  std::vector<int8_t> x(M * kK);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int8_t>(i * 29 + i / 127);
  const std::vector<float> scale(kN, 0.25f);
  for (Format format : {Format::kW4, Format::kW2}) {
    std::vector<uint8_t> bytes(kN * RowBytes(format, kK));
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 37);
    WeightView w = {.format = format, .N = kN, .K = kK, .data = bytes.data()};
    w.row_scale = scale.data();
    PageBuffer panels(w.packed_bytes());
    PackPanels({.num_threads = 1, .poll = {}}, w, panels.data());
    std::vector<int8_t> want(M * kN), got(M * kN);
    const Mat<const int8_t> in(x.data(), M, kK);
    LinearCodes({.num_threads = 1, .poll = {}}, in, 0.5f, w, 64.0f,
                Mat<int8_t>(want.data(), M, kN));
    w.panels = panels.data();
    LinearCodes({.num_threads = 3, .poll = {}}, in, 0.5f, w, 64.0f,
                Mat<int8_t>(got.data(), M, kN));
    EXPECT_EQ(want, got);
  }
}

TEST(LinearTest, SlicesAddUpToTheWholeProduct) {
  const std::vector<float> x = Normal(kM * kK, 24);
  std::vector<Q8Block> codes(x.size() / Q8Block::kLen);
  QuantizeQ8(x.data(), x.size(), codes.data());
  const Weights w(Format::kQ4_0);
  std::vector<float> want(kM * kN);
  KernelsFor(Format::kQ4_0)
      .linear({.w = w.panels.data(),
               .w_row_bytes = w.view.panel_bytes(),
               .x = codes.data(),
               .x_ld = kK / Q8Block::kLen,
               .y = want.data(),
               .y_ld = kN,
               .row_begin = 0,
               .row_end = kN,
               .M = kM,
               .K = kK});
  EXPECT_EQ(want, Product(w.Repacked(), x, 3, ActivationMode::kAuto));
}

// Views of rows keep the panels only where a panel begins.
TEST(LinearTest, RowsOfAViewGiveTheirPartOfTheProduct) {
  const std::vector<float> x = Normal(kM * kK, 25);
  const Weights w(Format::kQ4_0);
  const auto whole = Product(w.Repacked(), x, 2, ActivationMode::kAuto);
  for (size_t begin : {0, 16, 160, 5}) {
    const WeightView rows = w.Repacked().Rows(begin, 100);
    EXPECT_EQ(begin % 16 == 0, rows.panels != nullptr);
    const auto part = Product(rows, x, 2, ActivationMode::kAuto);
    for (size_t m = 0; m < kM; ++m) {
      for (size_t n = 0; n < 100; ++n) {
        ASSERT_EQ(whole[m * kN + begin + n], part[m * 100 + n]);
      }
    }
  }
}

// f32 activations: only the sums round, at most K times.
TEST(LinearTest, FloatActivationsAreExactUpToRounding) {
  const std::vector<float> x = Normal(kM * kK, 23);
  const Weights w(Format::kQ4_0);
  const auto y = Product(w.view, x, 2, ActivationMode::kF32);
  std::vector<float> row(kK);
  for (size_t n = 0; n < kN; ++n) {
    KernelsFor(Format::kQ4_0).decode_row_ref(w.view.Rows(n, 1).data, kK, row.data());
    for (size_t m = 0; m < kM; ++m) {
      double sum = 0.0, magnitude = 0.0;
      for (size_t k = 0; k < kK; ++k) {
        sum += double{row[k]} * x[m * kK + k];
        magnitude += fabs(double{row[k]} * x[m * kK + k]);
      }
      ASSERT_NEAR(sum, y[m * kN + n], kK * kU * magnitude);
    }
  }
}

TEST(LinearTest, RowsAreWhatTheFormatDecodesTo) {
  const Weights w(Format::kQ8_0);
  const std::vector<int32_t> ids = {300, 0, 7, 7};
  std::vector<float> y(ids.size() * kK), want(kK);
  EmbeddingRows({.num_threads = 2, .poll = {}}, w.view, ids,
                Mat<float>(y.data(), ids.size(), kK));
  for (size_t i = 0; i < ids.size(); ++i) {
    KernelsFor(Format::kQ8_0)
        .decode_row_ref(w.view.Rows(static_cast<size_t>(ids[i]), 1).data, kK,
                        want.data());
    EXPECT_EQ(want, std::vector<float>(&y[i * kK], &y[i * kK] + kK)) << i;
  }
}

// Blocks of 4 bits taken apart: neighbours' codes together, and scales of 16 bits.
struct Apart {
  explicit Apart(const Weights& w) {
    const size_t num_blocks = w.bytes.size() / 18;
    for (size_t b = 0; b < num_blocks; ++b) {
      const uint8_t* block = &w.bytes[b * 18];
      scales.insert(scales.end(), block, block + 2);
      for (size_t i = 0; i < 32; i += 2) {
        const int low = Code(w.view.format, block + 2, i);
        const int high = Code(w.view.format, block + 2, i + 1);
        codes.push_back(static_cast<uint8_t>(low | high << 4));
      }
    }
    view = w.view;
    view.data = codes.data();
    view.stored = Stored::kApart;
    view.group_scale = scales.data();
    view.group_len = 32;
  }

  static int Code(Format format, const uint8_t* qs, size_t i) {
    if (format == Format::kW4G32) return (qs[i / 2] >> (4 * (i % 2))) & 15;
    return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
  }

  std::vector<uint8_t> codes, scales;
  WeightView view;
};

// Products, rows of a view, panels and gathered rows: the bits of the blocks.
void ExpectSame(const WeightView& blocks, const WeightView& other) {
  const std::vector<float> x = Normal(kM * kK, 26);
  for (ActivationMode mode : {ActivationMode::kAuto, ActivationMode::kF32}) {
    const auto want = Product(blocks, x, 2, mode);
    EXPECT_EQ(want, Product(other, x, 2, mode));
    EXPECT_EQ(Product(blocks.Rows(5, 100), x, 1, mode),
              Product(other.Rows(5, 100), x, 1, mode));
  }
  PageBuffer panels(other.packed_bytes());
  PackPanels({.num_threads = 2, .poll = {}}, other, panels.data());
  WeightView packed = other;
  packed.panels = panels.data();
  EXPECT_EQ(Product(blocks, x, 1, ActivationMode::kAuto),
            Product(packed, x, 1, ActivationMode::kAuto));
  const std::vector<int32_t> ids = {300, 0, 7, 7};
  std::vector<float> want(ids.size() * kK), got(ids.size() * kK);
  EmbeddingRows({.num_threads = 2, .poll = {}}, blocks, ids,
                Mat<float>(want.data(), ids.size(), kK));
  EmbeddingRows({.num_threads = 2, .poll = {}}, other, ids,
                Mat<float>(got.data(), ids.size(), kK));
  EXPECT_EQ(want, got);
}

TEST(LinearTest, CodesApartFromTheirScalesGiveTheBitsOfBlocks) {
  for (Format format : {Format::kW4G32, Format::kQ4_0}) {
    const Weights w(format);
    const Apart apart(w);
    ExpectSame(w.view, apart.view);
  }
}

TEST(LinearTest, AScaleMayServeSeveralBlocks) {
  Weights w(Format::kW4G32);
  Apart apart(w);
  constexpr size_t kGroup = 128;
  std::vector<uint8_t> scales;
  for (size_t b = 0; b < w.bytes.size() / 18; ++b) {
    const size_t first = b / (kGroup / 32) * (kGroup / 32);
    for (size_t i : {0, 1}) {
      w.bytes[b * 18 + i] = apart.scales[2 * first + i];
      if (b == first) scales.push_back(apart.scales[2 * first + i]);
    }
  }
  apart.view.group_scale = scales.data();
  apart.view.group_len = kGroup;
  ExpectSame(w.view, apart.view);
}

// Unsigned bytes become the signed ones of W8.
TEST(LinearTest, UnsignedBytesGiveTheBitsOfSignedOnes) {
  const std::vector<float> scale(kN, 0.25f);
  std::vector<uint8_t> plain(kN * kK), biased(kN * kK);
  for (size_t i = 0; i < plain.size(); ++i) {
    plain[i] = static_cast<uint8_t>(i * 37 + i / 251);
    biased[i] = plain[i] ^ 0x80;
  }
  WeightView w = {.format = Format::kW8, .N = kN, .K = kK, .data = plain.data()};
  w.row_scale = scale.data();
  WeightView other = w;
  other.data = biased.data();
  other.stored = Stored::kApart;
  ExpectSame(w, other);
}

TEST(LinearTest, FloatsAreRoundedAsTheFormatDoesIt) {
  const std::vector<float> values = Normal(kN * kK, 21);  // those of Weights
  for (Format format : {Format::kQ4_0, Format::kQ6_K}) {
    const Weights w(format);
    WeightView floats = w.view;
    floats.data = reinterpret_cast<const uint8_t*>(values.data());
    floats.stored = Stored::kFloats;
    floats.floats = Format::kF32;
    EXPECT_EQ(kK * sizeof(float), floats.stored_row_bytes());
    ExpectSame(w.view, floats);
  }
}

TEST(LinearTest, ShapesThatDoNotFitAreRefused) {
  const Weights w(Format::kQ4_0);
  const Context context;
  std::vector<float> x(kM * kK), y(kM * kN);
  LinearInput wide(context, Mat<const float>(x.data(), kM, kK - 32),
                   ActivationMode::kAuto);
  EXPECT_THROW(Linear(wide, w.view, Mat<float>(y.data(), kM, kN)), Error);
  LinearInput right(context, Mat<const float>(x.data(), kM, kK), ActivationMode::kAuto);
  EXPECT_THROW(Linear(right, w.view, Mat<float>(y.data(), kM, kN - 1)), Error);
  EXPECT_THROW(Linear(right, w.view, Mat<float>(y.data(), kM - 1, kN)), Error);
}

}  // namespace
}  // namespace halfbyte
