// csrc/kernels/roof.h
// Loops that do one thing and nothing else: what the speed of a kernel is compared
// with.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_KERNELS_ROOF_H_
#define HALFBYTE_KERNELS_ROOF_H_

#include <stddef.h>
#include <stdint.h>

namespace halfbyte {

// Reads every byte once: from front to back with one stream, halves or quarters side by
// side with two or four. Which of them is fastest depends on the prefetchers of the
// CPU. Returns the exclusive or of the 64-bit words, the last one filled up with zeros.
// Any alignment.
uint64_t ReadAll(const uint8_t* data, size_t bytes, size_t num_streams) noexcept;

// Of the two functions below: the accumulators count in i32, and in f32.
inline constexpr size_t kMaxRoofRounds = size_t{1} << 16;

// Dot products of bytes on registers alone, as the products of packed weights do them;
// and fused multiply-adds of f32. Both return how many multiply-adds that was: every
// product is 1, and the accumulators have counted them.
uint64_t CountDots(size_t rounds) noexcept;
uint64_t CountFmas(size_t rounds) noexcept;

}  // namespace halfbyte
#endif  // HALFBYTE_KERNELS_ROOF_H_
