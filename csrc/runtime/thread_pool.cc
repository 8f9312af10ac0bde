// csrc/runtime/thread_pool.cc
// SPDX-License-Identifier: Apache-2.0
#include "runtime/thread_pool.h"

#include <fenv.h>
#include <pthread.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace halfbyte {
namespace {

// While it lives, floating point as results are defined: subnormals kept, rounded to
// nearest. Other libraries change that for a thread; which thread takes a task must
// not change our bits. Reading the mode takes a few cycles, so it is written only where
// it differs.
class DefaultFloats {
 public:
#if defined(__x86_64__)
  DefaultFloats() : mode_(_mm_getcsr() & ~kFlags) {
    if (mode_ != kDefault) _mm_setcsr(kDefault);
  }
  ~DefaultFloats() {
    if (mode_ != kDefault) _mm_setcsr(mode_);
  }

 private:
  static constexpr unsigned kFlags = 0x3F, kDefault = 0x1F80;
  const unsigned mode_;
#elif defined(__aarch64__)
  DefaultFloats() {
    asm volatile("mrs %0, fpcr" : "=r"(mode_));
    if (mode_ != 0) asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~DefaultFloats() {
    if (mode_ != 0) asm volatile("msr fpcr, %0" : : "r"(mode_));
  }

 private:
  uint64_t mode_;
#else
  DefaultFloats() {
    fegetenv(&mode_);
    fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloats() { fesetenv(&mode_); }

 private:
  fenv_t mode_;
#endif
};

// Parts of the gate.
constexpr uint32_t kOpen = 1, kOneInside = 2, kInside = 0xFFFE, kOneAllowed = 1 << 16;
constexpr size_t kMaxWorkers = kInside / kOneInside;

// About 50 us: longer than the pause between two loops of a decode step, short enough
// to be no burden on a machine that has other work.
constexpr int kSpins = 2000;

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` differs from `old`: spins first, then sleeps.
uint32_t AwaitChange(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    Pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool& ThreadPool::Global() {
  static ThreadPool* const pool = new ThreadPool;
  return *pool;
}

ThreadPool::ThreadPool() {
  // A forked child has none of the threads: forget them, start new ones on demand. Not
  // by Global, which another thread may have been inside of as the process forked.
  static ThreadPool* pool;
  pool = this;
  pthread_atfork(nullptr, nullptr, [] { pool->ForgetThreads(); });
}

void ThreadPool::ForgetThreads() noexcept {
  // Dropped, not destroyed: destroying a thread that is not there is an error.
  new std::vector<std::thread>(std::move(workers_));
  workers_.clear();
  gate_ = 0;
  busy_ = false;
  ++forks_;
}

void ThreadPool::Job::Fail(size_t index) {
  const std::lock_guard lock(mutex);
  if (!error || index < error_index) {
    error = std::current_exception();
    error_index = index;
  }
  next = num_tasks;
}

void ThreadPool::Job::Work(const Poll* poll) {
  for (;;) {
    const size_t i = next.fetch_add(1, std::memory_order_relaxed);
    if (i >= num_tasks) return;
    try {
      task(data, i);
      if (poll != nullptr && *poll) (*poll)();
    } catch (...) {
      Fail(i);
      return;
    }
  }
}

bool ThreadPool::Enter() {
  uint32_t gate = gate_.load(std::memory_order_acquire);
  while ((gate & kOpen) != 0 && (gate & kInside) / kOneInside < gate / kOneAllowed) {
    if (gate_.compare_exchange_weak(gate, gate + kOneInside,
                                    std::memory_order_acq_rel)) {
      return true;
    }
  }
  return false;
}

void ThreadPool::Leave() {
  // The caller waits for zero: closed, and nobody inside.
  const uint32_t gate = gate_.fetch_sub(kOneInside, std::memory_order_acq_rel);
  if (gate == kOneInside) gate_.notify_all();
}

void ThreadPool::WorkerLoop(uint32_t seen) {
  const DefaultFloats floats;  // a thread inherits the mode of the one that started it
  for (;;) {
    seen = AwaitChange(generation_, seen);
    if (!Enter()) continue;
    job_->Work(nullptr);
    Leave();
  }
}

void ThreadPool::Grow(size_t num_workers) {
  while (workers_.size() < num_workers) {
    workers_.emplace_back(&ThreadPool::WorkerLoop, this, generation_.load());
  }
}

void ThreadPool::Run(size_t num_tasks, size_t max_threads, Task task, void* data,
                     const Poll& poll) {
  Job job(task, data, num_tasks);
  if (num_tasks == 0) return;
  const size_t num_workers =
      std::min({std::max<size_t>(max_threads, 1) - 1, num_tasks - 1, kMaxWorkers});
  const DefaultFloats floats;
  if (num_workers == 0 || busy_.exchange(true, std::memory_order_acquire)) {
    job.Work(&poll);
    if (job.error) std::rethrow_exception(job.error);
    return;
  }
  try {
    Grow(num_workers);
  } catch (const std::exception&) {
    // No more threads to be had: what there is will do.
  }
  const uint32_t forks = forks_;
  job_ = &job;
  gate_.store(static_cast<uint32_t>(num_workers) * kOneAllowed + kOpen,
              std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();

  job.Work(&poll);
  uint32_t gate = gate_.fetch_and(kInside, std::memory_order_acq_rel) & kInside;
  while (gate != 0) gate = AwaitChange(gate_, gate);
  busy_.store(false, std::memory_order_release);
  if (job.error) std::rethrow_exception(job.error);
  if (forks_ != forks) {
    throw std::runtime_error(
        "the process forked within a call, whose other threads are not in the child: "
        "call again there");
  }
}

}  // namespace halfbyte
