// csrc/ops/rows.h
// Row-wise work, shared out when there is enough of it.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_ROWS_H_
#define HALFBYTE_OPS_ROWS_H_

#include <stddef.h>

#include <algorithm>

#include "runtime/thread_pool.h"

namespace halfbyte {

// Calls f(row) for every row in [0, rows). A task takes at least 16384 elements: about
// what one thread does in the time it takes to wake another.
template <class F>
void ForEachRow(const Context& context, size_t rows, size_t cols, const F& f) {
  constexpr size_t kGrain = 16384;
  const size_t step = std::max<size_t>(1, kGrain / std::max<size_t>(cols, 1));
  context.ParallelFor((rows + step - 1) / step, [&](size_t task) {
    const size_t end = std::min((task + 1) * step, rows);
    for (size_t row = task * step; row < end; ++row) f(row);
  });
}

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_ROWS_H_
