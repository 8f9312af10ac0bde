// csrc/kernels/simd-inl.h
// What differs between instruction sets: how products of bytes are summed. The only
// file with `#if HWY_TARGET`.
//
// A policy sums u8 codes times i8 activations, four products a 32-bit lane, over a run
// of kRun groups of four: Begin, then Add for each group, then End. Between Begin and
// End the sum may live in 16 bits, where that is what the multiplier gives.
// kTakesBytes: any u8 will do, whatever a format's largest code is. kSignsWide: codes
// above 127 are taken as signed, less 128. SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_SIMD_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_SIMD_INL_TOGGLE
#undef HALFBYTE_KERNELS_SIMD_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_SIMD_INL_TOGGLE
#endif

#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes above 127 are no signed bytes. Where both factors must be signed they are taken
// as code - 128, which needs no start value.
template <class Fmt>
inline constexpr bool kIsWide = Fmt::kMaxCode > 127;

// One instruction multiplies unsigned with signed bytes and adds to 32 bits.
struct DotQuads {
  static constexpr const char* kName = "VNNI";
  template <class Fmt>
  static constexpr size_t kRun = 8;
  static constexpr bool kTakesBytes = true;
  static constexpr bool kSignsWide = false;

  template <class Fmt, class DI32>
  static HWY_INLINE hn::Vec<DI32> Begin(DI32 /*di32*/, hn::Vec<DI32> sum) {
    return sum;
  }
  template <class Fmt, class DI32, class VU8, class VI8>
  static HWY_INLINE hn::Vec<DI32> Add(DI32 di32, VU8 codes, VI8 q, hn::Vec<DI32> sum) {
    return hn::SumOfMulQuadAccumulate(di32, codes, q, sum);
  }
  template <class Fmt, class DI32>
  static HWY_INLINE hn::Vec<DI32> End(DI32 /*di32*/, hn::Vec<DI32> run,
                                      hn::Vec<DI32> /*sum*/) {
    return run;
  }
};

#if HWY_ARCH_X86
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
// The same where Highway's target does not promise the instruction but the CPU has it:
// AVX-512 VNNI before Ice Lake's other extensions, AVX-VNNI beside AVX2. Assembly, as
// the intrinsic needs a target attribute that is not set here.
struct DotVnni : DotQuads {
  template <class Fmt, class DI32, class VU8, class VI8>
  static HWY_INLINE hn::Vec<DI32> Add(DI32 /*di32*/, VU8 codes, VI8 q,
                                      hn::Vec<DI32> sum) {
#if HWY_TARGET == HWY_AVX3
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(codes.raw), "v"(q.raw));
#else
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.raw) : "x"(codes.raw), "x"(q.raw));
#endif
    return sum;
  }
};
#endif

// Pairs of products are summed in 16 bits, with saturation: a run is as long as the
// largest codes allow, 2 * kMaxCode * 128 * kRun < 2^15. Codes above 127 allow none:
// their products are widened to 32 bits at once.
struct DotPairs {
  static constexpr const char* kName = "MADD";
  template <class Fmt>
  static constexpr size_t kRun = Fmt::kMaxCode <= 15   ? 8
                                 : Fmt::kMaxCode <= 31 ? 4
                                 : Fmt::kMaxCode <= 63 ? 2
                                                       : 8;
  static constexpr bool kTakesBytes = false;
  static constexpr bool kSignsWide = false;

  template <class Fmt, class DI32>
  using Run =
      hn::Vec<std::conditional_t<kIsWide<Fmt>, DI32, hn::Repartition<int16_t, DI32>>>;

  template <class Fmt, class DI32>
  static HWY_INLINE Run<Fmt, DI32> Begin(DI32 /*di32*/, hn::Vec<DI32> sum) {
    if constexpr (kIsWide<Fmt>) {
      return sum;
    } else {
      return hn::Zero(hn::Repartition<int16_t, DI32>());
    }
  }
  template <class Fmt, class DI32, class VU8, class VI8>
  static HWY_INLINE Run<Fmt, DI32> Add(DI32 di32, VU8 codes, VI8 q,
                                       Run<Fmt, DI32> run) {
    const hn::Repartition<int16_t, DI32> di16;
    if constexpr (kIsWide<Fmt>) {
      const auto c = hn::BitCast(di16, codes), x = hn::BitCast(di16, q);
      const auto even_c = hn::And(c, hn::Set(di16, int16_t{255}));
      const auto odd_c = hn::BitCast(
          di16,
          hn::ShiftRight<8>(hn::BitCast(hn::RebindToUnsigned<decltype(di16)>(), c)));
      const auto even_x = hn::ShiftRight<8>(hn::ShiftLeft<8>(x));
      const auto odd_x = hn::ShiftRight<8>(x);
      run = hn::Add(run, hn::WidenMulPairwiseAdd(di32, even_c, even_x));
      run = hn::Add(run, hn::WidenMulPairwiseAdd(di32, odd_c, odd_x));
    } else {
      run = hn::Add(run, hn::SatWidenMulPairwiseAdd(di16, codes, q));
    }
#if HWY_COMPILER_GCC_ACTUAL
    // Or GCC hoists the products of a whole block and spills dozens of registers.
    asm("" : "+v"(run.raw));
#endif
    return run;
  }
  template <class Fmt, class DI32>
  static HWY_INLINE hn::Vec<DI32> End(DI32 di32, Run<Fmt, DI32> run,
                                      hn::Vec<DI32> sum) {
    const hn::Repartition<int16_t, DI32> di16;
    if constexpr (kIsWide<Fmt>) {
      return run;
    } else {
      const auto ones = hn::Set(di16, int16_t{1});
      return hn::Add(sum, hn::WidenMulPairwiseAdd(di32, run, ones));
    }
  }
};
#else
// Signed bytes times signed bytes: codes up to 127 are valid ones.
struct DotSigned : DotQuads {
  static constexpr const char* kName = "SDOT";
  static constexpr bool kTakesBytes = false;
  static constexpr bool kSignsWide = true;

  template <class Fmt, class DI32, class VU8, class VI8>
  static HWY_INLINE hn::Vec<DI32> Add(DI32 di32, VU8 codes, VI8 q, hn::Vec<DI32> sum) {
    const hn::Repartition<uint8_t, DI32> du8;
    const hn::Repartition<int8_t, DI32> di8;
    if constexpr (kIsWide<Fmt>) codes = hn::Xor(codes, hn::Set(du8, uint8_t{128}));
    return hn::SumOfMulQuadAccumulate(di32, hn::BitCast(di8, codes), q, sum);
  }
};
#endif

// The policies of this target: the one every CPU of it can run, and the better one that
// only some can.
#undef HALFBYTE_HAVE_FAST_DOT
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
using BaseDot = DotQuads;
#define HALFBYTE_HAVE_FAST_DOT 0
#elif HWY_ARCH_X86 && (HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2)
using BaseDot = DotPairs;
using FastDot = DotVnni;
#define HALFBYTE_HAVE_FAST_DOT 1
#elif HWY_ARCH_X86
using BaseDot = DotPairs;
#define HALFBYTE_HAVE_FAST_DOT 0
#else
using BaseDot = DotSigned;
#define HALFBYTE_HAVE_FAST_DOT 0
#endif

// Makes the compiler believe that `v` has just changed, and costs nothing. A loop
// that measures needs it: sums of equal terms are all one otherwise, and what does not
// change leaves the loop.
template <class V>
HWY_INLINE V Hide(V& v) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_EMU128
  asm volatile("" : "+v"(v.raw));
#elif HWY_TARGET_IS_NEON
  asm volatile("" : "+w"(v.raw));
#elif HWY_TARGET_IS_SVE
  asm volatile("" : "+w"(v));
#else
  asm volatile("" : "+m"(v));
#endif
  return v;
}

// Before a loop over registers: if it stays a loop, they become memory.
#undef HALFBYTE_UNROLL
#if HWY_COMPILER_CLANG
#define HALFBYTE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HALFBYTE_UNROLL _Pragma("GCC unroll 16")
#endif

// Vector registers: how many sums a tile may keep.
#undef HALFBYTE_REGISTERS
#if HWY_ARCH_ARM_A64 || (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3)
#define HALFBYTE_REGISTERS 32
#else
#define HALFBYTE_REGISTERS 16
#endif

// The cache that a stream of weights is prefetched into: see prefetch.h. Measured.
#if HWY_TARGET == HWY_AVX3_ZEN4
inline constexpr int kPrefetchLocality = 3;
#else
inline constexpr int kPrefetchLocality = 2;
#endif

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
