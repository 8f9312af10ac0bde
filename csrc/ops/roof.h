// csrc/ops/roof.h
// What this machine can do at best, measured: the read bandwidth that bounds one token,
// and the arithmetic that bounds many.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_ROOF_H_
#define HALFBYTE_OPS_ROOF_H_

#include <stddef.h>
#include <stdint.h>

#include <span>

#include "runtime/thread_pool.h"

namespace halfbyte {

// What one measurement did, and how long it took.
struct Rate {
  double count = 0;  // bytes, or multiply-adds
  double seconds = 0;
};

// Reads `data` once, a contiguous piece a thread, with one, two or four streams a
// thread. Throws ShapeError if there is nothing to read.
Rate MeasureRead(const Context& context, std::span<const uint8_t> data,
                 size_t num_streams);

// Dot products of bytes, and fused multiply-adds of f32, on registers alone: some
// milliseconds of nothing else on every thread.
Rate MeasureDots(const Context& context);
Rate MeasureFmas(const Context& context);

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_ROOF_H_
