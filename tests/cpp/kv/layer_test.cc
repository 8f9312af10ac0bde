// tests/cpp/kv/layer_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "kv/layer.h"

#include <gtest/gtest.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/hadamard.h"
#include "test_floats.h"

namespace halfbyte {
namespace {

constexpr size_t kHeads = 2, kQueryHeads = 4, kDim = 16, kWidth = kHeads * kDim;

constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kI8};

// Keys and values of a whole sequence, and queries for every position.
struct Sequence {
  explicit Sequence(size_t len)
      : k(Normal(len * kWidth, 31)),
        v(Normal(len * kWidth, 32)),
        q(Normal(len * kQueryHeads * kDim, 33)) {}

  void AppendTo(KvLayer& layer, size_t begin, size_t end) const {
    layer.Append({.num_threads = 2, .poll = {}}, begin,
                 Mat<const float>(&k[begin * kWidth], end - begin, kWidth),
                 Mat<const float>(&v[begin * kWidth], end - begin, kWidth));
  }

  std::vector<float> Attend(const KvLayer& layer, size_t begin, size_t end) const {
    const size_t width = kQueryHeads * kDim;
    std::vector<float> out((end - begin) * width);
    const KvQueries queries = {&layer, begin};
    Attention({.num_threads = 2, .poll = {}}, {&queries, 1},
              Mat<const float>(&q[begin * width], end - begin, width), kQueryHeads,
              0.25f, Mat<float>(out.data(), end - begin, width));
    return out;
  }

  std::vector<float> k, v, q;
};

// The definition, in double, over what the layer says that it keeps.
std::vector<double> Want(const Sequence& s, const KvLayer& layer, size_t position,
                         size_t h) {
  const KvLayerShape& shape = layer.shape();
  const bool cut = shape.window != 0 && position + 1 > shape.window;
  const size_t first = cut ? position + 1 - shape.window : 0;
  std::vector<float> k((position + 1 - first) * kDim), v(k.size());
  layer.Read(h / (kQueryHeads / kHeads), first,
             Mat<float>(k.data(), position + 1 - first, kDim),
             Mat<float>(v.data(), position + 1 - first, kDim));
  const float* q = &s.q[(position * kQueryHeads + h) * kDim];
  double total = 0.0;
  std::vector<double> out(kDim);
  for (size_t row = 0; row < k.size(); row += kDim) {
    double score = 0.0;
    for (size_t i = 0; i < kDim; ++i) score += q[i] * double{k[row + i]};
    const double weight = exp(0.25 * score);
    total += weight;
    for (size_t i = 0; i < kDim; ++i) out[i] += weight * v[row + i];
  }
  for (double& o : out) o /= total;
  return out;
}

// Scores are below 8 in magnitude here: a rounding of u (kDim + 4) relative to |q||k|
// (at most 32) changes a weight by 2^-24 * 20 * 32 < 4e-5 relative; the two sums over
// at most 700 positions add 700 u each. |v| is below 5.
constexpr double kBound = 5.0 * (2 * 4e-5 + 2 * 700 * kU);

void ExpectAttention(const Sequence& s, const KvLayer& layer, size_t begin,
                     size_t end) {
  const auto got = s.Attend(layer, begin, end);
  for (size_t p = begin; p < end; ++p) {
    for (size_t h = 0; h < kQueryHeads; ++h) {
      const auto want = Want(s, layer, p, h);
      for (size_t i = 0; i < kDim; ++i) {
        const size_t at = ((p - begin) * kQueryHeads + h) * kDim + i;
        ASSERT_NEAR(want[i], got[at], kBound) << p;
      }
    }
  }
}

TEST(KvLayerTest, AttentionOverPagesAndRingsEqualsTheDefinition) {
  constexpr size_t kLen = 1400;
  const Sequence s(kLen);
  for (KvType type : kTypes) {
    for (size_t window : {0, 1, 8, 256, 300, 600}) {
      for (size_t chunk : {1, 7, 64, 256}) {
        KvLayer layer({kHeads, kDim, kLen, window, chunk, type});
        for (size_t begin = 0; begin < kLen; begin += chunk) {
          const size_t end = std::min(begin + chunk, kLen);
          s.AppendTo(layer, begin, end);
          // Where rings wrap, and everywhere once in a while.
          if (begin % 256 < chunk || end == kLen) {
            ExpectAttention(s, layer, begin, std::min(begin + 2, end));
            ExpectAttention(s, layer, end - 1, end);
          }
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Tiles of 8 tokens, which share a pass over the pages, begin anywhere in a page.
TEST(KvLayerTest, QueriesTogetherHaveTheBitsOfEachAlone) {
  constexpr size_t kLen = 832, kChunk = 64;
  const Sequence s(kLen);
  for (KvType type : kTypes) {
    for (size_t window : {0, 1, 5, 8, 300}) {
      KvLayer layer({kHeads, kDim, kLen, window, kChunk, type});
      for (size_t begin = 0; begin < kLen; begin += kChunk) {
        s.AppendTo(layer, begin, begin + kChunk);
        for (size_t first : {begin, begin + 5}) {
          const size_t end = begin + kChunk;
          const std::vector<float> together = s.Attend(layer, first, end);
          for (size_t p = first; p < end; ++p) {
            const std::vector<float> alone = s.Attend(layer, p, p + 1);
            ASSERT_EQ(0, memcmp(&together[(p - first) * alone.size()], alone.data(),
                                alone.size() * sizeof(float)))
                << "window " << window << ", position " << p;
          }
        }
      }
    }
  }
}

// Where the scores of 8 tokens are too many, a tile takes a few of them at a time.
TEST(KvLayerTest, TilesOfALongContextAreTakenInParts) {
  constexpr size_t kMany = 64, kLen = 3000, kRows = 13, kFirst = kLen - kRows;
  ASSERT_LT(TokensTogether(8, kMany, kFirst), 8u);
  for (size_t window : {size_t{0}, kLen - 100}) {
    KvLayer layer({1, kDim, kLen, window, kLen, KvType::kF32});
    const std::vector<float> k = Normal(kLen * kDim, 41), v = Normal(kLen * kDim, 42);
    const std::vector<float> q = Normal(kRows * kMany * kDim, 43);
    // One thread, or the heads would be shared out.
    const Context context = {.num_threads = 1, .poll = {}};
    layer.Append(context, 0, Mat<const float>(k.data(), kLen, kDim),
                 Mat<const float>(v.data(), kLen, kDim));
    std::vector<float> together(q.size()), alone(q.size());
    const auto attend = [&](size_t row, size_t rows, std::vector<float>& out) {
      constexpr size_t kRow = kMany * kDim;
      const KvQueries queries = {&layer, kFirst + row};
      Attention(context, {&queries, 1}, Mat<const float>(&q[row * kRow], rows, kRow),
                kMany, 0.25f, Mat<float>(&out[row * kRow], rows, kRow));
    };
    attend(0, kRows, together);
    for (size_t row = 0; row < kRows; ++row) attend(row, 1, alone);
    EXPECT_EQ(0, memcmp(together.data(), alone.data(), alone.size() * sizeof(float)))
        << "window " << window;
  }
}

// Rows of several sequences, as many of each: the bits of each alone.
TEST(KvLayerTest, SequencesSideBySideHaveTheirOwnBits) {
  constexpr size_t kRow = kQueryHeads * kDim, kLengths[] = {30, 9, 300, 600};
  for (const size_t window : {size_t{0}, size_t{64}}) {
    for (const size_t rows : {size_t{1}, size_t{3}}) {
      std::vector<KvLayer> layers;
      std::vector<KvQueries> queries;
      std::vector<float> q, alone;
      for (const size_t length : kLengths) {
        const Sequence s(length);
        layers.emplace_back(KvLayerShape{kHeads, kDim, 600, window, 600, KvType::kF32});
        s.AppendTo(layers.back(), 0, length);
        const std::vector<float> one = s.Attend(layers.back(), length - rows, length);
        alone.insert(alone.end(), one.begin(), one.end());
        q.insert(q.end(), s.q.end() - static_cast<ptrdiff_t>(rows * kRow), s.q.end());
      }
      for (size_t i = 0; i < layers.size(); ++i) {
        queries.push_back({&layers[i], kLengths[i] - rows});
      }
      std::vector<float> together(q.size());
      const size_t all = rows * layers.size();
      for (const size_t threads : {size_t{1}, size_t{3}}) {
        const Context context = {.num_threads = threads, .poll = {}};
        Attention(context, queries, Mat<const float>(q.data(), all, kRow), kQueryHeads,
                  0.25f, Mat<float>(together.data(), all, kRow));
        EXPECT_EQ(together, alone) << window << " " << rows << " " << threads;
      }
      EXPECT_THROW(Attention({.num_threads = 1, .poll = {}}, queries,
                             Mat<const float>(q.data(), all - 1, kRow), kQueryHeads,
                             0.25f, Mat<float>(together.data(), all - 1, kRow)),
                   Error);
    }
  }
}

// The keys and values of a head, as they are kept.
std::vector<float> Kept(const KvLayer& layer, size_t head, size_t len, bool values) {
  std::vector<float> k(len * kDim), v(len * kDim);
  layer.Read(head, 0, Mat<float>(k.data(), len, kDim), Mat<float>(v.data(), len, kDim));
  return values ? v : k;
}

// In the rotated head each element is off by half a step, but for the rounding of the
// transforms: so is the length of the error, times sqrt(kDim), in the head itself.
TEST(KvLayerTest, EightBitsAreOffByHalfAStep) {
  constexpr size_t kLen = 300;
  Sequence s(kLen);
  s.k[5 * kWidth + 3] = 40.0f;  // without a rotation, a step for the others of 40 / 127
  KvLayer layer({kHeads, kDim, kLen, 0, kLen, KvType::kI8});
  s.AppendTo(layer, 0, kLen);
  for (bool values : {false, true}) {
    for (size_t h = 0; h < kHeads; ++h) {
      const std::vector<float> kept = Kept(layer, h, kLen, values);
      for (size_t p = 0; p < kLen; ++p) {
        const float* x = &(values ? s.v : s.k)[p * kWidth + h * kDim];
        std::vector<float> turned(x, x + kDim);
        Hadamard(turned.data(), kDim);
        double max = 0.0, error = 0.0;
        for (size_t i = 0; i < kDim; ++i) {
          max = fmax(max, fabs(double{turned[i]}));
          const double off = double{x[i]} - double{kept[p * kDim + i]};
          error += off * off;
        }
        const double bound = sqrt(double{kDim}) * max * (0.5 / 127.0 + 16 * kU);
        ASSERT_LE(sqrt(error), bound) << p;
      }
    }
  }
}

TEST(KvLayerTest, TrainedStepsRoundAndClamp) {
  constexpr size_t kLen = 40;
  Sequence s(kLen);
  s.k[0] = 100.0f, s.k[1] = -100.0f;
  KvLayer layer({kHeads, kDim, kLen, 0, kLen, KvType::kI8, 0.05f, 0.01f});
  s.AppendTo(layer, 0, kLen);
  for (bool values : {false, true}) {
    const float step = values ? 0.01f : 0.05f;
    for (size_t h = 0; h < kHeads; ++h) {
      const std::vector<float> kept = Kept(layer, h, kLen, values);
      for (size_t i = 0; i < kept.size(); ++i) {
        const float x = (values ? s.v : s.k)[i / kDim * kWidth + h * kDim + i % kDim];
        const float code = fminf(fmaxf(nearbyintf(x / step), -128.0f), 127.0f);
        ASSERT_EQ(code * step, kept[i]) << i;
      }
    }
  }
}

TEST(KvLayerTest, EightBitsOfZerosAndOfWhatIsNotFinite) {
  Sequence s(3);
  std::fill_n(s.k.begin(), kDim, 0.0f);
  std::fill_n(&s.k[kWidth], kDim, 1e-40f);
  s.k[2 * kWidth + 3] = kInf;
  KvLayer layer({kHeads, kDim, 3, 0, 3, KvType::kI8});
  s.AppendTo(layer, 0, 3);
  const std::vector<float> kept = Kept(layer, 0, 3, false);
  for (size_t i = 0; i < 2 * kDim; ++i) EXPECT_EQ(0.0f, kept[i]);
  for (size_t i = 2 * kDim; i < 3 * kDim; ++i) EXPECT_TRUE(isnan(kept[i]));
}

TEST(KvLayerTest, OnlyWhatIsKeptIsRead) {
  constexpr size_t kLen = 1024;
  const Sequence s(kLen);
  KvLayer layer({kHeads, kDim, kLen, 8, 64, KvType::kF32});
  for (size_t begin = 0; begin < 640; begin += 64) s.AppendTo(layer, begin, begin + 64);
  std::vector<float> k(kDim), v(kDim);
  const auto read = [&](size_t at) {
    layer.Read(1, at, Mat<float>(k.data(), 1, kDim), Mat<float>(v.data(), 1, kDim));
  };
  EXPECT_NO_THROW(read(639));
  EXPECT_EQ(0, memcmp(&s.v[639 * kWidth + kDim], v.data(), kDim * sizeof(float)));
  EXPECT_THROW(read(0), Error) << "written over";
  EXPECT_THROW(read(640), Error) << "not written yet";
}

TEST(KvLayerTest, EightBitsTakeAQuarter) {
  const KvLayerShape f32 = {kHeads, 512, 4096, 0, 64, KvType::kF32};
  const KvLayerShape i8 = {kHeads, 512, 4096, 0, 64, KvType::kI8};
  const uint64_t steps = 2 * kHeads * 4096 * sizeof(float);
  EXPECT_EQ(KvLayer::BytesFor(f32, 4096) / 4 + steps, KvLayer::BytesFor(i8, 4096));
}

TEST(KvLayerTest, SlidingLayersStaySmall) {
  constexpr size_t kLen = 4096;
  const Sequence s(kLen);
  KvLayer sliding({kHeads, kDim, kLen, 512, 64, KvType::kF32});
  KvLayer full({kHeads, kDim, kLen, 0, 64, KvType::kF32});
  for (size_t begin = 0; begin < kLen; begin += 64) {
    s.AppendTo(sliding, begin, begin + 64);
    s.AppendTo(full, begin, begin + 64);
  }
  const size_t page = 2 * KvLayer::kPageLen * kWidth * sizeof(float);
  // 512 - 1 + 64 positions touch four pages at the worst alignment.
  EXPECT_EQ(4 * page, sliding.allocated_bytes());
  EXPECT_EQ(16 * page, full.allocated_bytes());
  EXPECT_EQ(sliding.allocated_bytes(), KvLayer::BytesFor(sliding.shape(), kLen));
  EXPECT_EQ(full.allocated_bytes(), KvLayer::BytesFor(full.shape(), kLen));
  EXPECT_EQ(2 * page, KvLayer::BytesFor(full.shape(), 300));
}

// What a cut sequence needs is either all there, or the layer says that it is not.
TEST(KvLayerTest, ACutSequenceResumesOnlyWhereItsWindowSurvives) {
  constexpr size_t kLen = 2048;
  const Sequence s(kLen);
  for (size_t window : {0, 5, 300}) {
    KvLayer layer({kHeads, kDim, kLen, window, 64, KvType::kF32});
    for (size_t begin = 0; begin < 1920; begin += 64)
      s.AppendTo(layer, begin, begin + 64);
    EXPECT_TRUE(layer.CanResumeAt(1920));
    EXPECT_FALSE(layer.CanResumeAt(1921)) << "never written";
    EXPECT_EQ(window == 0, layer.CanResumeAt(100)) << "written over";
    for (size_t length = 1920; length > 1000 && layer.CanResumeAt(length);
         length -= 13) {
      ExpectAttention(s, layer, length - 1, length);
    }
    layer.Reset();
    EXPECT_TRUE(layer.CanResumeAt(0));
    EXPECT_FALSE(layer.CanResumeAt(1));
  }
}

// Pages that an append has begun to write over are gone, whether it came to its end.
TEST(KvLayerTest, ACancelledAppendHasWrittenOverWhatItsPagesHeld) {
  constexpr size_t kLen = 1024;
  const Sequence s(kLen);
  KvLayer layer({kHeads, kDim, kLen, 300, 64, KvType::kF32});
  for (size_t begin = 0; begin < 768; begin += 64) s.AppendTo(layer, begin, begin + 64);
  ASSERT_TRUE(layer.CanResumeAt(400));
  struct Cancelled {};
  const Context context = {.num_threads = 1, .poll = [] { throw Cancelled(); }};
  EXPECT_THROW(layer.Append(context, 768, Mat<const float>(s.k.data(), 64, kWidth),
                            Mat<const float>(s.v.data(), 64, kWidth)),
               Cancelled);
  EXPECT_FALSE(layer.CanResumeAt(400)) << "its first page has other positions now";
  ASSERT_TRUE(layer.CanResumeAt(768));
  s.AppendTo(layer, 768, 832);
  ExpectAttention(s, layer, 768, 832);
}

TEST(KvLayerTest, ACopyIsItsOwn) {
  constexpr size_t kLen = 700;
  const Sequence s(kLen);
  for (size_t window : {0, 300}) {
    KvLayer layer({kHeads, kDim, kLen, window, 64, KvType::kF32});
    for (size_t begin = 0; begin < 640; begin += 64)
      s.AppendTo(layer, begin, begin + 64);
    const KvLayer copy(layer);
    EXPECT_EQ(layer.allocated_bytes(), copy.allocated_bytes());
    // The original's last positions again, with the keys and values of the first.
    layer.Append({.num_threads = 2, .poll = {}}, 576,
                 Mat<const float>(s.k.data(), 64, kWidth),
                 Mat<const float>(s.v.data(), 64, kWidth));
    EXPECT_TRUE(copy.CanResumeAt(640));
    ExpectAttention(s, copy, 576, 640);
  }
}

TEST(KvLayerTest, GapsAndOverflowsAreRefused) {
  const Sequence s(64);
  KvLayer layer({kHeads, kDim, 32, 8, 16, KvType::kF32});
  EXPECT_THROW(s.AppendTo(layer, 1, 2), Error) << "a gap";
  EXPECT_THROW(s.AppendTo(layer, 0, 17), Error) << "more than one append may bring";
  s.AppendTo(layer, 0, 16);
  s.AppendTo(layer, 16, 32);
  EXPECT_THROW(s.AppendTo(layer, 32, 33), Error) << "beyond the capacity";
}

TEST(KvLayerTest, APositionThatWasNotAppendedIsNotAttendedTo) {
  const Sequence s(20);
  KvLayer layer({kHeads, kDim, 64, 0, 64, KvType::kF32});
  EXPECT_THROW(s.Attend(layer, 0, 1), Error);
  s.AppendTo(layer, 0, 10);
  EXPECT_NO_THROW(s.Attend(layer, 8, 10));
  EXPECT_THROW(s.Attend(layer, 8, 11), Error);
}

}  // namespace
}  // namespace halfbyte
