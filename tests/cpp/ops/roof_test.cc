// tests/cpp/ops/roof_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/roof.h"

#include <gtest/gtest.h>
#include <stddef.h>
#include <stdint.h>

#include <span>
#include <stdexcept>
#include <vector>

#include "base/error.h"

namespace halfbyte {
namespace {

// How fast is for benchmarks to say; what was done is certain.
TEST(RoofTest, CountsWhatItDid) {
  const std::vector<uint8_t> data(100'001);
  for (size_t num_threads : {1, 3, 64}) {
    const Context context = {.num_threads = num_threads, .poll = {}};
    for (size_t bytes : {size_t{1}, size_t{4095}, data.size()}) {
      for (size_t num_streams : {1, 2, 4}) {
        const Rate read =
            MeasureRead(context, std::span(data).first(bytes), num_streams);
        EXPECT_EQ(static_cast<double>(bytes), read.count);
        EXPECT_GT(read.seconds, 0.0);
      }
    }
  }
  const Rate one = MeasureFmas({.num_threads = 1, .poll = {}}),
             two = MeasureFmas({.num_threads = 2, .poll = {}});
  EXPECT_EQ(2 * one.count, two.count);
  EXPECT_EQ(2 * MeasureDots({.num_threads = 1, .poll = {}}).count,
            MeasureDots({.num_threads = 2, .poll = {}}).count);
  EXPECT_GT(one.seconds, 0.0);
}

TEST(RoofTest, RefusesWhatItCannotRead) {
  const Context context = {.num_threads = 2, .poll = {}};
  const std::vector<uint8_t> data(64);
  EXPECT_THROW(MeasureRead(context, {}, 1), Error);
  EXPECT_THROW(MeasureRead(context, data, 0), Error);
  EXPECT_THROW(MeasureRead(context, data, 3), Error);
}

TEST(RoofTest, CanBeCancelled) {
  // One thread: of two, the one that asks may come too late to take a task.
  const Context context = {.num_threads = 1,
                           .poll = [] { throw std::runtime_error("cancelled"); }};
  EXPECT_THROW(MeasureDots(context), std::runtime_error);
}

}  // namespace
}  // namespace halfbyte
