// csrc/ops/slices.h
// Which rows of a matrix each task of a product takes.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_OPS_SLICES_H_
#define HALFBYTE_OPS_SLICES_H_

#include <stddef.h>

#include <algorithm>
#include <vector>

#include "kernels/format_kernels.h"

namespace halfbyte {

// Rows [0, N), whole tiles at a time, dealt out in rounds of a slice for each thread.
// The first rounds take most, since memory makes a slice wait at its beginning, and the
// last ones little, so that a thread that woke late or was held up does not hold up the
// others. Of a small matrix each thread takes its share at once.
class Slices {
 public:
  // Rows that a tile of a longer prompt takes.
  static constexpr size_t kTileRows = 2 * kPanelRows;

  Slices(size_t N, size_t K, size_t row_bytes, size_t num_tokens, size_t num_threads) {
    constexpr size_t kLeastBytes = 16 * 1024, kSmallShare = 128 * 1024;
    // Ctrl-C waits for the end of a slice.
    constexpr size_t kMostMacs = 1024 * 1024 * 1024;
    // A round leaves one row of so many for the next. Few tokens read for longer than
    // they compute: to begin costs what 8 to 40 KB cost, and threads read at one speed.
    // Computing, two cores may differ by a factor of two.
    constexpr size_t kFewTokens = 8;
    const size_t leaves = num_tokens <= kFewTokens ? 8 : 2;
    const size_t bytes = std::max<size_t>(row_bytes, 1);
    const size_t most = kMostMacs / std::max<size_t>(K * num_tokens, 1);
    const size_t share = (N + num_threads - 1) / num_threads;
    const bool at_once = num_threads == 1 || share <= kSmallShare / bytes;
    ends_.reserve(32);
    size_t part = share;
    for (size_t begin = 0; begin < N; begin = ends_.back()) {
      if (!at_once && ends_.size() % num_threads == 0) {
        part = (N - begin) / leaves * (leaves - 1) / num_threads;
      }
      const size_t rows = std::max(std::min(part, most), kLeastBytes / bytes);
      const size_t tiles = std::max<size_t>((rows + kTileRows - 1) / kTileRows, 1);
      ends_.push_back(std::min(begin + tiles * kTileRows, N));
    }
  }

  size_t size() const { return ends_.size(); }
  size_t begin(size_t i) const { return i == 0 ? 0 : ends_[i - 1]; }
  size_t end(size_t i) const { return ends_[i]; }

 private:
  std::vector<size_t> ends_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_OPS_SLICES_H_
