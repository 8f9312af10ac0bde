// csrc/runtime/thread_pool.h
// Threads that wait for work: started at the first parallel loop, never at import.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_RUNTIME_THREAD_POOL_H_
#define HALFBYTE_RUNTIME_THREAD_POOL_H_

#include <stddef.h>
#include <stdint.h>

#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace halfbyte {

class ThreadPool {
 public:
  // The pool of the process. It is never destroyed: at exit its threads sleep, hold no
  // lock, and end with the process.
  static ThreadPool& Global();

  using Task = void (*)(void* data, size_t index);
  using Poll = std::function<void()>;

  // Runs task(data, i) for every i in [0, num_tasks) on at most max_threads threads,
  // the caller among them whatever that is, in any order; returns when all are done.
  // `poll`, if set, is called on the caller's thread between its tasks; if it throws,
  // no new task starts and the exception leaves from here. So does the exception of the
  // first task that threw. While the pool is busy, and inside a task, the loop runs on
  // the caller alone. Tasks compute in the default floating-point mode, whatever the
  // caller's is. If a task or `poll` forks, the child gets a std::runtime_error: what
  // the other threads had begun is not done there.
  void Run(size_t num_tasks, size_t max_threads, Task task, void* data,
           const Poll& poll);

 private:
  struct Job {
    Job(Task t, void* d, size_t n) : task(t), data(d), num_tasks(n) {}

    const Task task;
    void* const data;
    const size_t num_tasks;
    std::atomic<size_t> next{0};
    std::mutex mutex;  // guards the two below
    size_t error_index = 0;
    std::exception_ptr error;

    void Work(const Poll* poll);
    void Fail(size_t index);
  };

  ThreadPool();
  void Grow(size_t num_workers);
  void WorkerLoop(uint32_t seen);
  bool Enter();
  void Leave();
  void ForgetThreads() noexcept;

  // From the lowest bit: whether the job is open to more workers, how many are inside
  // (15 bits), and how many may be while it is open. In one word, so that nobody enters
  // a job under the limit of the one before.
  std::atomic<uint32_t> gate_{0};
  std::atomic<uint32_t> generation_{0};  // of the job; what sleeping workers watch
  std::atomic<bool> busy_{false};
  std::atomic<uint32_t> forks_{0};  // this process is so many forks away
  Job* job_ = nullptr;              // valid while the gate is open or someone is inside
  std::vector<std::thread> workers_;
};

// What an operation needs to know about where it runs.
struct Context {
  size_t num_threads = 1;
  // Called by the thread that waits, after each of its tasks; may throw to cancel.
  ThreadPool::Poll poll;

  // Calls f(i) for every i in [0, n).
  template <class F>
  void ParallelFor(size_t n, const F& f) const {
    const auto task = [](void* data, size_t i) { (*static_cast<const F*>(data))(i); };
    ThreadPool::Global().Run(n, num_threads, task, const_cast<F*>(&f), poll);
  }
};

}  // namespace halfbyte
#endif  // HALFBYTE_RUNTIME_THREAD_POOL_H_
