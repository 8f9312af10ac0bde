// csrc/bindings/bind_roof.cc
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <span>
#include <utility>

#include "bindings/array.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "ops/roof.h"
#include "runtime/pages.h"

namespace py = pybind11;

namespace halfbyte {
namespace {

// 10^9 a second.
double Giga(const Rate& rate) { return rate.count / rate.seconds / 1e9; }

py::array_t<uint8_t> MakeHugeBuffer(size_t bytes, size_t threads) {
  const Context context = MakeContext(threads);
  PageBuffer buffer;
  {
    const GilRelease nogil;
    buffer = PageBuffer(bytes);
    // Memory that was only asked for reads as one page of zeros, out of the cache.
    constexpr size_t kStep = size_t{2} << 20;
    context.ParallelFor((bytes + kStep - 1) / kStep, [&](size_t i) {
      memset(buffer.data() + i * kStep, 1, std::min(kStep, bytes - i * kStep));
    });
  }
  return ArrayOf(std::move(buffer));
}

}  // namespace

void RegisterRoof(py::module_& m) {
  m.def("huge_buffer", &MakeHugeBuffer, py::arg("bytes"), py::arg("threads"));
  m.def(
      "read_bandwidth",
      [](const py::array& data, size_t streams, size_t threads) {
        const std::span<const uint8_t> bytes = AsBytes(data, "data");
        const Context context = MakeContext(threads);
        const GilRelease nogil;
        return Giga(MeasureRead(context, bytes, streams));
      },
      py::arg("data"), py::arg("streams"), py::arg("threads"));
  m.def(
      "dot_peak",
      [](size_t threads) {
        const Context context = MakeContext(threads);
        const GilRelease nogil;
        return Giga(MeasureDots(context));
      },
      py::arg("threads"));
  m.def(
      "fma_peak",
      [](size_t threads) {
        const Context context = MakeContext(threads);
        const GilRelease nogil;
        return Giga(MeasureFmas(context));
      },
      py::arg("threads"));
}

}  // namespace halfbyte
