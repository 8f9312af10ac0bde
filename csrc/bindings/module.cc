// csrc/bindings/module.cc
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <stddef.h>

#include <algorithm>
#include <chrono>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "kernels/targets.h"
#include "runtime/topology.h"

namespace py = pybind11;

namespace halfbyte {

Context MakeContext(size_t num_threads) {
  constexpr size_t kMaxThreads = 1024;  // targets.py says so to whoever asks for more
  using Clock = std::chrono::steady_clock;
  Context context;
  context.num_threads = std::clamp<size_t>(num_threads, 1, kMaxThreads);
  context.poll = [last = Clock::now()]() mutable {
    const Clock::time_point now = Clock::now();
    if (now - last < std::chrono::milliseconds(50)) return;
    last = now;
    const GilAcquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  };
  return context;
}

namespace {

void RegisterSystem(py::module_& m) {
  m.def("cpu_target", &CpuTarget);
  m.def("cpu_dot", &CpuDot);
  m.def("cpu_targets", &CpuTargets);
  m.def("set_cpu_target", &SetCpuTarget, py::arg("name"));
  m.def("default_threads", [] {
    const ThreadBudget budget = DefaultThreads();
    return py::make_tuple(budget.num_threads, budget.reason);
  });
  m.def("cpu_quota", &CpuQuota, py::arg("root"));
  m.def("memory_limit", &MemoryLimit, py::arg("root"));
  m.def("peak_rss", &PeakRss);
  m.def("memory_holds", &MemoryHolds, py::arg("bytes"));
}

}  // namespace
}  // namespace halfbyte

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of halfbyte. Use the functions of `halfbyte` instead.";
  m.attr("__version__") = HALFBYTE_VERSION;
  halfbyte::RegisterErrors();
  halfbyte::RegisterSystem(m);
  halfbyte::RegisterOps(m);
  halfbyte::RegisterWeight(m);
  halfbyte::RegisterFiles(m);
  halfbyte::RegisterModel(m);
  halfbyte::RegisterStages(m);
  halfbyte::RegisterRoof(m);
}
