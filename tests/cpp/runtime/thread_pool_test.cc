// tests/cpp/runtime/thread_pool_test.cc
// SPDX-License-Identifier: Apache-2.0
#include "runtime/thread_pool.h"

#include <fenv.h>
#include <gtest/gtest.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace halfbyte {
namespace {

// Long enough for every sleeping thread to come.
void Nap() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

size_t ThreadsThatWork(size_t num_threads) {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  Context{.num_threads = num_threads, .poll = {}}.ParallelFor(20, [&](size_t) {
    Nap();
    const std::lock_guard lock(mutex);
    seen.insert(std::this_thread::get_id());
  });
  return seen.size();
}

TEST(ThreadPoolTest, EveryTaskRunsOnce) {
  for (size_t threads : {0, 1, 2, 3, 16}) {
    for (size_t n : {0, 1, 2, 3, 100, 10000}) {
      const Context context = {.num_threads = threads, .poll = {}};
      std::vector<std::atomic<int>> runs(n);
      context.ParallelFor(n, [&](size_t i) { ++runs[i]; });
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(1, runs[i]) << i;
    }
  }
}

TEST(ThreadPoolTest, NeverMoreThreadsThanAskedFor) {
  Context{.num_threads = 8, .poll = {}}.ParallelFor(64, [](size_t) {});  // 8 exist now
  for (int repeat = 0; repeat < 20; ++repeat) ASSERT_LE(ThreadsThatWork(2), 2u);
  EXPECT_EQ(ThreadsThatWork(0), 1u);
}

TEST(ThreadPoolTest, ALoopInsideATaskRunsInline) {
  const Context context = {.num_threads = 3, .poll = {}};
  std::atomic<int> total{0};
  context.ParallelFor(8, [&](size_t) {
    const auto outer = std::this_thread::get_id();
    context.ParallelFor(5, [&](size_t) {
      if (std::this_thread::get_id() == outer) ++total;
    });
  });
  EXPECT_EQ(40, total);
}

TEST(ThreadPoolTest, LoopsOfSeveralCallersDoNotMix) {
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (size_t c = 0; c < 4; ++c) {
    callers.emplace_back([&wrong, c] {
      const Context context = {.num_threads = 3, .poll = {}};
      for (int repeat = 0; repeat < 300; ++repeat) {
        std::vector<size_t> out(40);
        context.ParallelFor(40, [&](size_t i) { out[i] = i * (c + 1); });
        for (size_t i = 0; i < 40; ++i) wrong += out[i] != i * (c + 1);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(0, wrong);
}

TEST(ThreadPoolTest, AnExceptionReachesTheCallerAndStopsTheLoop) {
  for (size_t threads : {1, 2, 3}) {
    const Context context = {.num_threads = threads, .poll = {}};
    std::atomic<int> runs{0};
    const auto loop = [&] {
      context.ParallelFor(100000, [&](size_t) {
        if (++runs > 5) throw std::runtime_error("task");
      });
    };
    EXPECT_THROW(loop(), std::runtime_error);
    EXPECT_LT(runs, 1000);
    context.ParallelFor(3, [&](size_t) { runs = 0; });  // usable afterwards
    EXPECT_EQ(0, runs);
  }
}

TEST(ThreadPoolTest, OfSeveralExceptionsTheLowestTasksIsThrown) {
  // Task 0 throws once task 1 runs, task 1 some time after task 0 threw.
  std::atomic<bool> one_runs{false}, zero_threw{false};
  try {
    Context{.num_threads = 2, .poll = {}}.ParallelFor(2, [&](size_t i) {
      if (i == 1) {
        one_runs = true;
        while (!zero_threw) Nap();
        Nap();
        throw std::runtime_error("task 1");
      }
      while (!one_runs) Nap();
      zero_threw = true;
      throw std::runtime_error("task 0");
    });
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& e) {
    EXPECT_EQ(std::string("task 0"), e.what());
  }
}

TEST(ThreadPoolTest, PollMayCancel) {
  for (size_t threads : {1, 2}) {
    std::atomic<int> runs{0};
    std::atomic<bool> cancelled{false};
    const auto caller = std::this_thread::get_id();
    const Context context = {.num_threads = threads, .poll = [&] {
                               EXPECT_EQ(caller, std::this_thread::get_id());
                               if (runs <= 10) return;
                               cancelled = true;
                               throw std::runtime_error("cancelled");
                             }};
    const auto loop = [&] {
      context.ParallelFor(1000000, [&](size_t) {
        // Or the other thread does all of them while the caller's core is taken away.
        if (++runs <= 10 || std::this_thread::get_id() == caller) return;
        while (!cancelled) Nap();
      });
    };
    EXPECT_THROW(loop(), std::runtime_error);
    EXPECT_LT(runs, 1000000);
  }
}

TEST(ThreadPoolTest, AForkedChildStartsItsOwnThreads) {
  EXPECT_EQ(3u, ThreadsThatWork(3));
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);  // a loop that waits for threads of the parent would never end
    _exit(ThreadsThatWork(3) == 3 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(ThreadPoolTest, AForkWithinALoopIsAnErrorInTheChild) {
  // As a signal's handler in Python may do, which a poll runs.
  pid_t child = -1;
  const Context context = {.num_threads = 3, .poll = [&] {
                             if (child != -1) return;
                             child = fork();
                             if (child == 0) alarm(10);
                           }};
  bool failed = false;
  try {
    context.ParallelFor(20, [](size_t) { Nap(); });
  } catch (const std::runtime_error&) {
    failed = true;
  }
  if (child == 0) _exit(failed ? 0 : 1);
  EXPECT_FALSE(failed);
  int status = 0;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(ThreadPoolTest, TheCallersFloatingPointModeIsNotTheTasks) {
  // As a caller has it that flushes subnormals, or rounds otherwise, for speed.
  for (size_t threads : {1, 2}) {
    ASSERT_EQ(0, fesetround(FE_UPWARD));
    const volatile float one = 1.0f, little = 1e-10f;
    std::vector<float> sums(64);
    Context{.num_threads = threads, .poll = {}}.ParallelFor(64, [&](size_t i) {
      Nap();
      sums[i] = one + little;
    });
    const float above = one + little;
    fesetround(FE_TONEAREST);
    EXPECT_LT(1.0f, above);
    EXPECT_EQ(std::vector<float>(64, 1.0f), sums);
  }
}

}  // namespace
}  // namespace halfbyte
