// csrc/kernels/simd-inl.h
// What differs between instruction sets: how products of bytes are summed. The only
// file with `#if HWY_TARGET`.
//
// A policy sums u8 codes times i8 activations, four products a 32-bit lane, over a run
// of at most kRun groups of four: Begin, then Add for each group g, with what Load
// gives of the activations, then End. Between Begin and End the sum may live in 16
// bits, where that is what the multiplier gives. kField: the bits of a byte that a code
// may be anywhere in, whatever a format's largest is; 0 where that does not pay.
// kSigns<Fmt>: the format's codes are taken as signed, less 128.
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_SIMD_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_SIMD_INL_TOGGLE
#undef HALFBYTE_KERNELS_SIMD_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_SIMD_INL_TOGGLE
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "formats/traits.h"
#include "hwy/highway.h"
#include "kernels/prefetch.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The largest byte that is multiplied as a code.
template <class Fmt>
inline constexpr int kLargestCode = Fmt::kMaxCode;

// A run without end.
inline constexpr size_t kEndless = ~size_t{0};

// The four activations of group g in every lane.
struct LoadQuad {
  template <size_t g, class DI8>
  static HWY_INLINE hn::Vec<DI8> Load(DI8 di8, const int8_t* q) {
    int32_t quad;
    memcpy(&quad, q + 4 * g, sizeof(quad));
    return hn::BitCast(di8, hn::Set(hn::Repartition<int32_t, DI8>(), quad));
  }
};

// One instruction multiplies unsigned with signed bytes and adds to 32 bits.
struct DotQuads : LoadQuad {
  static constexpr const char* kName = "VNNI";
  template <class Fmt>
  static constexpr size_t kRun = kEndless;
  static constexpr size_t kField = 8;
  template <class Fmt>
  static constexpr bool kSigns = false;

  template <class Fmt, class DI32>
  static HWY_INLINE hn::Vec<DI32> Begin(DI32 /*di32*/, hn::Vec<DI32> sum) {
    return sum;
  }
  template <class Fmt, size_t g, class DI32, class VU8, class VI8>
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
#if HWY_TARGET <= HWY_AVX2
// The same in assembly. Beside AVX3 and AVX2 the intrinsic needs a target attribute
// that is not set here: AVX-512 VNNI came before Ice Lake's other extensions, and
// AVX-VNNI without AVX-512. Beside the others GCC 12 copies sums from register to
// register around the intrinsic: 43 of the 275 instructions of W8's largest tile.
struct DotVnni : DotQuads {
  template <class Fmt, size_t g, class DI32, class VU8, class VI8>
  static HWY_INLINE hn::Vec<DI32> Add(DI32 /*di32*/, VU8 codes, VI8 q,
                                      hn::Vec<DI32> sum) {
#if HWY_TARGET <= HWY_AVX3
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(codes.raw), "v"(q.raw));
#else
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.raw) : "x"(codes.raw), "x"(q.raw));
#endif
    return sum;
  }
};
#endif

// Pairs of products are summed in 16 bits, with saturation: a run is as long as the
// largest codes allow, 2 * kLargestCode * 128 * kRun < 2^15. Codes above 127 allow
// none: their products are widened to 32 bits at once. Signed, a pair of them fits, if
// the activations can take over the signs: a step for each block leaves out -128.
struct DotPairs : LoadQuad {
  static constexpr const char* kName = "MADD";
  template <class Fmt>
  static constexpr size_t kRun = kIsWide<Fmt> ? kEndless
                                              : 32767 / (2 * 128 * kLargestCode<Fmt>);
  static constexpr size_t kField = 4;
  template <class Fmt>
  static constexpr bool kSigns =
      kIsWide<Fmt> && !kHasRowScale<Fmt> && HWY_TARGET <= HWY_SSSE3;

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
  template <class Fmt, size_t g, class DI32, class VU8, class VI8>
  static HWY_INLINE Run<Fmt, DI32> Add(DI32 di32, VU8 codes, VI8 q,
                                       Run<Fmt, DI32> run) {
    const hn::Repartition<int16_t, DI32> di16;
    if constexpr (kSigns<Fmt>) {
      const hn::Repartition<int8_t, DI32> di8;
      const auto level = hn::Xor(hn::BitCast(di8, codes), hn::Set(di8, int8_t{-128}));
      const auto magnitude =
          hn::BitCast(hn::Repartition<uint8_t, DI32>(), hn::Abs(level));
      // Anything will do where the level is 0.
      const auto x = hn::IfNegativeThenNegOrUndefIfZero(level, q);
      const auto pairs = hn::SatWidenMulPairwiseAdd(di16, magnitude, x);
      run =
          hn::Add(run, hn::WidenMulPairwiseAdd(di32, pairs, hn::Set(di16, int16_t{1})));
    } else if constexpr (kIsWide<Fmt>) {
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
// Both factors signed: codes up to 127 are valid ones as they are.
struct DotSigned : DotQuads {
  static constexpr const char* kName = "SIGNED";
  static constexpr size_t kField = 0;
  template <class Fmt>
  static constexpr bool kSigns = kIsWide<Fmt>;

  template <class Fmt, class DI32, class VU8>
  static HWY_INLINE auto Signed(DI32 /*di32*/, VU8 codes) {
    const hn::Repartition<uint8_t, DI32> du8;
    const hn::Repartition<int8_t, DI32> di8;
    if constexpr (kIsWide<Fmt>) codes = hn::Xor(codes, hn::Set(du8, uint8_t{128}));
    return hn::BitCast(di8, codes);
  }
  template <class Fmt, size_t g, class DI32, class VU8, class VI8>
  static HWY_INLINE hn::Vec<DI32> Add(DI32 di32, VU8 codes, VI8 q, hn::Vec<DI32> sum) {
    return hn::SumOfMulQuadAccumulate(di32, Signed<Fmt>(di32, codes), q, sum);
  }
};
#endif

#if HWY_TARGET_IS_NEON && HWY_ARCH_ARM_A64
// Four instructions where Highway takes fourteen: products in 16 bits, pairs of them,
// pairs of pairs added to 32 bits.
struct DotSmull : DotSigned {
  static constexpr const char* kName = "SMULL";

  template <class Fmt, size_t g, class DI32, class VU8, class VI8>
  static HWY_INLINE hn::Vec<DI32> Add(DI32 di32, VU8 codes, VI8 q, hn::Vec<DI32> sum) {
    const int8x16_t c = Signed<Fmt>(di32, codes).raw;
    const int16x8_t low = vmull_s8(vget_low_s8(c), vget_low_s8(q.raw));
    const int16x8_t high = vmull_high_s8(c, q.raw);
    if constexpr (kIsWide<Fmt>) {  // -128 * -128 * 2 does not fit
      const int32x4_t quads = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
      return hn::Vec<DI32>(vaddq_s32(sum.raw, quads));
    } else {
      return hn::Vec<DI32>(vpadalq_s16(sum.raw, vpaddq_s16(low, high)));
    }
  }
};

// What the assembler has to be told before it takes the instruction. Nothing else in
// kernels needs more than this: it stays told until the next target.
#undef HALFBYTE_ARCH_DOTPROD
#if HWY_TARGET == HWY_NEON_BF16 || defined(__ARM_FEATURE_DOTPROD)
#define HALFBYTE_ARCH_DOTPROD ""
#else
#define HALFBYTE_ARCH_DOTPROD ".arch armv8.2-a+dotprod\n\t"
#endif

// One instruction, from Armv8.2 on, if the CPU has it. It takes four activations out of
// a register of sixteen: a load serves four groups, and none is a broadcast, which
// would take a slot of the multipliers. Assembly, as the intrinsic needs a target
// attribute, and Highway's op does not use it before 1.3.
struct DotSdot : DotSigned {
  static constexpr const char* kName = "SDOT";

  template <size_t g, class DI8>
  static HWY_INLINE hn::Vec<DI8> Load(DI8 di8, const int8_t* q) {
    return hn::LoadU(di8, q + g / 4 * 16);
  }
  template <class Fmt, size_t g, class DI32, class VU8, class VI8>
  static HWY_INLINE hn::Vec<DI32> Add(DI32 di32, VU8 codes, VI8 q, hn::Vec<DI32> sum) {
    asm(HALFBYTE_ARCH_DOTPROD "sdot %0.4s, %1.16b, %2.4b[%3]"
        : "+w"(sum.raw)
        : "w"(Signed<Fmt>(di32, codes).raw), "w"(q.raw), "i"(g % 4));
    return sum;
  }
};
#endif

// The policies of this target: the one every CPU of it can run, and the better one that
// only some can.
#undef HALFBYTE_HAVE_FAST_DOT
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
using BaseDot = DotVnni;
#define HALFBYTE_HAVE_FAST_DOT 0
#elif HWY_ARCH_X86 && (HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2)
using BaseDot = DotPairs;
using FastDot = DotVnni;
#define HALFBYTE_HAVE_FAST_DOT 1
#elif HWY_ARCH_X86
using BaseDot = DotPairs;
#define HALFBYTE_HAVE_FAST_DOT 0
#elif HWY_TARGET == HWY_NEON_BF16
using BaseDot = DotSdot;
#define HALFBYTE_HAVE_FAST_DOT 0
#elif HWY_TARGET_IS_NEON && HWY_ARCH_ARM_A64
using BaseDot = DotSmull;
using FastDot = DotSdot;
#define HALFBYTE_HAVE_FAST_DOT 1
#else
using BaseDot = DotSigned;
#define HALFBYTE_HAVE_FAST_DOT 0
#endif

// True if one instruction shifts bytes. Elsewhere wider lanes are shifted, and their
// bits masked: on Zen 4 too, where that instruction takes the slot of a dot product,
// and a shift and a mask take none.
inline constexpr bool kShiftsBytes =
    HWY_TARGET_IS_NEON ||
    (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL && HWY_TARGET != HWY_AVX3_ZEN4);

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

// kBytes of a stream of weights, some KiB ahead: into the first cache on Zen 4 and 5,
// else into the second. Intel's cores fetch them from there into the first, which has
// too few buffers for lines that come from memory. Measured; with AVX2 on Zen 3 the
// second.
template <size_t kBytes>
HWY_INLINE void PrefetchAhead(const uint8_t* stream, Core core) {
  constexpr bool kZen4 = HWY_TARGET == HWY_AVX3_ZEN4;
  if (core == Core::kZen5) {
    Prefetch<1, kBytes>(stream + 8192);
  } else if (kZen4) {
    Prefetch<1, kBytes>(stream + 4096);
  } else if (core == Core::kIntel) {
    Prefetch<2, kBytes>(stream + 4096);
    Prefetch<1, kBytes>(stream + 1024);
  } else {
    Prefetch<2, kBytes>(stream + 8192);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
