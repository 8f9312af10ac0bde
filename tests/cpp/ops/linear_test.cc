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
  std::vector<float> y(kM * w.N);
  LinearInput input(context, Mat<const float>(x.data(), kM, w.K), mode);
  Linear(input, w, Mat<float>(y.data(), kM, w.N));
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
