// csrc/kernels/format_tu.cc
// Built once per line of formats/list.inc; the build defines HALFBYTE_FMT (the type)
// and HALFBYTE_FMT_HEADER.
// SPDX-License-Identifier: Apache-2.0

#include "base/targets.h"  // before any Highway header
#include "kernels/fast_dot.h"
#include "kernels/format_kernels.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/format_tu.cc"  // this file, re-included per target
// clang-format on
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h
#include HALFBYTE_FMT_HEADER
#include "kernels/channel-inl.h"
#include "kernels/dequantize-inl.h"
#include "kernels/rows-inl.h"
#include "kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace {  // two formats' copies of these must not meet at link time

using Block = HALFBYTE_FMT::Block;

void DecodeRowRef(const uint8_t* w, size_t K, float* out) noexcept {
  const auto* blocks = reinterpret_cast<const Block*>(w);
  for (size_t b = 0; b < K / HALFBYTE_FMT::kBlockLen; ++b) {
    HALFBYTE_FMT::DecodeRef(blocks[b], out + b * HALFBYTE_FMT::kBlockLen);
  }
}

template <class Fmt>
constexpr auto EncodeRowRef() -> void (*)(const float*, size_t, uint8_t*) noexcept {
  if constexpr (requires(const float* in, Block* row) {
                  Fmt::EncodeRowRef(in, 1, row);
                }) {
    return [](const float* in, size_t K, uint8_t* w) noexcept {
      Fmt::EncodeRowRef(in, K / Fmt::kBlockLen, reinterpret_cast<Block*>(w));
    };
  } else {
    return nullptr;
  }
}

template <class Fmt>
constexpr auto JoinRow()
    -> void (*)(const uint8_t*, const uint8_t*, size_t, size_t, uint8_t*) noexcept {
  if constexpr (requires(const uint8_t* in, Block& b) { Fmt::Join(in, in, b); }) {
    return [](const uint8_t* codes, const uint8_t* scales, size_t group_len, size_t K,
              uint8_t* w) noexcept {
      constexpr size_t kCodeBytes = Fmt::kBlockLen * (Fmt::kMaxCode > 15 ? 8 : 4) / 8;
      auto* blocks = reinterpret_cast<Block*>(w);
      for (size_t b = 0; b < K / Fmt::kBlockLen; ++b) {
        const uint8_t* scale = scales;
        if constexpr (!kHasRowScale<Fmt>) scale += b * Fmt::kBlockLen / group_len * 2;
        Fmt::Join(codes + b * kCodeBytes, scale, blocks[b]);
      }
    };
  } else {
    return nullptr;
  }
}

template <class Fmt>
constexpr auto EncodeRowScaledRef() {
  return [](const float* in, size_t K, uint8_t* w) noexcept {
    return Fmt::EncodeRowScaledRef(in, K / Fmt::kBlockLen, reinterpret_cast<Block*>(w));
  };
}

// What multiplies panels whose codes have been spread to bytes.
template <class Fmt, class Dot>
constexpr void AddSpread(FormatKernels& table) {
  if constexpr (Panel<Fmt>::kBits < 8) {
    table.spread_bytes = &Panel<Spread<Fmt>>::Bytes;
    table.spread_panel = &SpreadPanel<Fmt>;
    if constexpr (kHasRowScale<Fmt>) {
      table.spread_tokens = ChannelTiles<Fmt, Dot>::kT;
      table.linear_channels_spread = &LinearSpreadChannels<Fmt, Dot>;
    } else {
      table.spread_tokens = BlockTiles<Fmt, Dot>::kT;
      table.linear_spread = &LinearSpreadPanels<Fmt, Dot>;
    }
  }
}

template <class Fmt, class Dot>
constexpr FormatKernels MakeTable() {
  FormatKernels table = {};
  table.target = HWY_TARGET;
  table.dot = Dot::kName;
  table.decode_row = &DecodeRow<Fmt>;
  table.decode_row_ref = &DecodeRowRef;
  table.encode_row_ref = EncodeRowRef<Fmt>();
  table.join_row = JoinRow<Fmt>();
  if constexpr (kIsFloat<Fmt>) {
    table.activations = Activations::kF32;
    table.linear = &LinearRows<Fmt>;
  } else {
    if constexpr (kHasRowScale<Fmt>) {
      table.activations = Activations::kI8;
      table.linear_channels = &LinearChannels<Fmt, Dot>;
      table.encode_row_scaled_ref = EncodeRowScaledRef<Fmt>();
    } else {
      table.activations = Activations::kQ8;
      table.linear = &LinearPanels<Fmt, Dot>;
    }
    table.panel_bytes = &Panel<Fmt>::Bytes;
    table.pack_panel = &PackPanel<Fmt>;
    AddSpread<Fmt, Dot>(table);
  }
  return table;
}

const FormatKernels* Table() {
  static constexpr FormatKernels kTable = MakeTable<HALFBYTE_FMT, BaseDot>();
#if HALFBYTE_HAVE_FAST_DOT
  static constexpr FormatKernels kFastTable = MakeTable<HALFBYTE_FMT, FastDot>();
  if (UseFastDot(HWY_TARGET)) return &kFastTable;
#endif
  return &kTable;
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfbyte {

HWY_EXPORT(Table);

#define HALFBYTE_CONCAT_(a, b) a##b
#define HALFBYTE_CONCAT(a, b) HALFBYTE_CONCAT_(a, b)

// The line in the list and the type in the header agree.
constexpr FormatInfo kInfo = InfoOf(Format::HALFBYTE_CONCAT(k, HALFBYTE_FMT));
static_assert(kInfo.block_len == HALFBYTE_FMT::kBlockLen);
static_assert(kInfo.block_bytes == sizeof(HALFBYTE_FMT::Block));

const FormatKernels& HALFBYTE_CONCAT(Kernels_, HALFBYTE_FMT)() {
  return *HWY_DYNAMIC_DISPATCH(Table)();
}

}  // namespace halfbyte
#endif  // HWY_ONCE
