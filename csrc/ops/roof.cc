// csrc/ops/roof.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/roof.h"

#include <atomic>
#include <chrono>
#include <string>

#include "base/error.h"
#include "kernels/roof.h"

namespace halfbyte {
namespace {

// Seconds that f(i) for every i in [0, n) takes.
template <class F>
double Seconds(const Context& context, size_t n, const F& f) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  context.ParallelFor(n, f);
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Tasks of some 20 us, and so many of them that neither waking the threads nor waiting
// for the last one shows.
Rate MeasureCounts(const Context& context, uint64_t (*count)(size_t) noexcept,
                   size_t rounds) {
  constexpr size_t kTasksPerThread = 512;
  std::atomic<uint64_t> total{0};
  Rate rate;
  rate.seconds = Seconds(context, context.num_threads * kTasksPerThread, [&](size_t) {
    total.fetch_add(count(rounds), std::memory_order_relaxed);
  });
  rate.count = static_cast<double>(total);
  return rate;
}

}  // namespace

Rate MeasureRead(const Context& context, std::span<const uint8_t> data,
                 size_t num_streams) {
  Require(!data.empty(), "data: expected at least one byte");
  if (num_streams != 1 && num_streams != 2 && num_streams != 4) {
    throw Error(ErrorClass::kValue,
                "streams: expected 1, 2 or 4, got " + std::to_string(num_streams));
  }
  constexpr size_t kPage = 4096;  // no piece begins inside of one
  const size_t n = context.num_threads, piece = data.size() / n / kPage * kPage;
  std::atomic<uint64_t> checksum{0};  // somebody has to want what is read
  const double seconds = Seconds(context, n, [&](size_t i) {
    const size_t bytes = i + 1 == n ? data.size() - i * piece : piece;
    checksum ^= ReadAll(data.data() + i * piece, bytes, num_streams);
  });
  return {.count = static_cast<double>(data.size()), .seconds = seconds};
}

Rate MeasureDots(const Context& context) {
  return MeasureCounts(context, &CountDots, 1024);
}

Rate MeasureFmas(const Context& context) {
  return MeasureCounts(context, &CountFmas, 8192);
}

}  // namespace halfbyte
