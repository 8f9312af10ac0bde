// csrc/bindings/gil.h
// Letting go of the GIL and taking it back, also when the interpreter ends meanwhile.
// SPDX-License-Identifier: Apache-2.0
// A daemon thread may be in a kernel while the process ends. When it asks for the GIL,
// Python before 3.14 ends it by pthread_exit, which glibc does by unwinding its stack:
// through destructors and catch blocks, which ends the process by abort. Here such a
// thread stays where it is, as in Python 3.14, and ends with the process.

#ifndef HALFBYTE_BINDINGS_GIL_H_
#define HALFBYTE_BINDINGS_GIL_H_

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <utility>

namespace halfbyte {

// What this thread was to Python when it let go of the GIL; null while it holds it.
inline PyThreadState*& ReleasedState() {
  static thread_local PyThreadState* state = nullptr;
  return state;
}

// Does not come back if there is no interpreter any more. Nothing is asked of it
// before: what pybind11's own guard looks up may be gone.
inline void TakeGil() {
  PyThreadState* const state = std::exchange(ReleasedState(), nullptr);
  try {
    PyEval_RestoreThread(state);
  } catch (...) {  // nothing but that unwinding; it is no object to be caught by name
    for (;;) pause();
  }
}

inline void ReleaseGil() { ReleasedState() = PyEval_SaveThread(); }

// Lets other threads run Python while it lives. Make it with the GIL held.
struct GilRelease {
  GilRelease() { ReleaseGil(); }
  ~GilRelease() { TakeGil(); }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;
};

// Holds the GIL while it lives, on a thread that let go of it by a GilRelease.
struct GilAcquire {
  GilAcquire() { TakeGil(); }
  ~GilAcquire() { ReleaseGil(); }
  GilAcquire(const GilAcquire&) = delete;
  GilAcquire& operator=(const GilAcquire&) = delete;
};

}  // namespace halfbyte
#endif  // HALFBYTE_BINDINGS_GIL_H_
