// csrc/kernels/panel-inl.h
// Weights in the order in which a product reads them: panels of 16 rows. A panel is a
// sequence of superblocks along K, each of them
//
//   head   f16 (or bf16) d of 16 rows, a set each 32 weights; then f16 minima likewise;
//   or, for
//          formats with sub-scales, one set for the superblock and 16 bytes a group;
//          nothing where a row has one scale, kept elsewhere
//   units  the codes of 16 rows x 32 weights: `kBits` chunks of 64 bytes
//
// In a chunk row r owns bytes 4r .. 4r + 3, so a chunk is one register of 512 bits, two
// of 256 or four of 128, a lane is a row, and no sum ever runs across lanes. Codes are
// cut into planes of 8, 4, 2 and 1 bits; byte i of a row's dword in chunk c holds, from
// the lowest bits,
//
//   8 bits  k = 4c + i            2 bits  k = 4c + i + 8p,  p = 0 .. 3
//   4 bits  k = 4c + i, + 16      1 bit   k = i + 4p,       p = 0 .. 7
//
// 6 bits have no planes: of 16 weights, three quarters are the low bits of a chunk
// each, and the last quarter is in the bits above, two in each. Packing changes no
// value.
// SPDX-License-Identifier: Apache-2.0

#if defined(HALFBYTE_KERNELS_PANEL_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFBYTE_KERNELS_PANEL_INL_TOGGLE
#undef HALFBYTE_KERNELS_PANEL_INL_TOGGLE
#else
#define HALFBYTE_KERNELS_PANEL_INL_TOGGLE
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"
#include "formats/traits.h"
#include "hwy/highway.h"
#include "kernels/format_kernels.h"  // kPanelRows
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfbyte {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A format with the same values, each code in a byte of its own: what the tiles of a
// long prompt multiply without unpacking.
template <class Fmt>
struct Spread : Fmt {
  static constexpr bool kSpread = true;
};
template <class Fmt>
inline constexpr bool kIsSpread = requires {
  Fmt::kSpread;
};

template <class Fmt>
struct Panel {
  static constexpr size_t kChunk = 4 * kPanelRows;  // bytes
  static constexpr size_t kBits = kIsSpread<Fmt> || Fmt::kMaxCode > 63 ? 8
                                  : Fmt::kMaxCode > 31                 ? 6
                                  : Fmt::kMaxCode > 15                 ? 5
                                  : Fmt::kMaxCode > 7                  ? 4
                                  : Fmt::kMaxCode > 3                  ? 3
                                                                       : 2;
  static constexpr size_t kUnitBytes = kBits * kChunk;
  // Two units at least, so that 16 f16 scales a unit fill whole chunks.
  static constexpr size_t kUnits =
      kHasRowScale<Fmt> ? 1 : HWY_MAX(Fmt::kBlockLen / kUnitLen, size_t{2});
  static constexpr size_t kHalfBytes = 2 * kPanelRows;  // an f16 of every row

  // Scales; minima.
  static constexpr size_t kSets = kHasRowScale<Fmt> ? 0 : Fmt::kHasMin ? 2 : 1;
  // Formats with sub-scales: d and dmin, padded to a chunk; then a byte a row and
  // group.
  static constexpr size_t kHeadBytes = Fmt::kSubScales
                                           ? kChunk + kSets * kGroups<Fmt> * kPanelRows
                                           : kSets * kUnits * kHalfBytes;
  static constexpr size_t kBytes = kHeadBytes + kUnits * kUnitBytes;
  static_assert(kHeadBytes % kChunk == 0, "chunks are aligned");

  static size_t Bytes(size_t K) noexcept {
    const size_t units = K / kUnitLen;
    return (units + kUnits - 1) / kUnits * kBytes;
  }

  // Where things are in a superblock. `group` counts sub-scales from its beginning.
  static constexpr size_t ScaleAt(size_t unit) {
    return Fmt::kSubScales ? 0 : unit * kHalfBytes;
  }
  static constexpr size_t MinAt(size_t unit) {
    return Fmt::kSubScales ? kHalfBytes : (kUnits + unit) * kHalfBytes;
  }
  static constexpr size_t SubScaleAt(size_t group) {
    return kChunk + group * kPanelRows;
  }
  static constexpr size_t SubMinAt(size_t group) {
    return kChunk + (kGroups<Fmt> + group) * kPanelRows;
  }
  static constexpr size_t UnitAt(size_t unit) { return kHeadBytes + unit * kUnitBytes; }
};

// ---- packing

// Writes one row's dwords of a plane, a chunk apart.
template <class Fmt>
HWY_INLINE void StoreDwords(const void* dwords, size_t num, uint8_t* to) {
  for (size_t c = 0; c < num; ++c) {
    memcpy(to + c * Panel<Fmt>::kChunk, static_cast<const uint8_t*>(dwords) + 4 * c, 4);
  }
}

// 16 codes of 6 bits.
template <class Fmt>
HWY_INLINE void PackSixBits(hn::Vec<hn::Full128<uint8_t>> codes, uint8_t* to) {
  uint32_t quarters[4];
  hn::StoreU(hn::BitCast(hn::Full128<uint32_t>(), codes), hn::Full128<uint32_t>(),
             quarters);
  for (size_t j = 0; j < 3; ++j) {
    quarters[j] |= (quarters[3] >> 2 * j & 0x03030303u) << 6;
  }
  StoreDwords<Fmt>(quarters, 3, to);
}

// Adds codes [k, k + 16) and [k + 16, k + 32), a byte each, to one row of a unit.
template <class Fmt>
HWY_INLINE void PackCodes(hn::Vec<hn::Full128<uint8_t>> low,
                          hn::Vec<hn::Full128<uint8_t>> high, uint8_t* to) {
  constexpr size_t kBits = Panel<Fmt>::kBits, kChunk = Panel<Fmt>::kChunk;
  const hn::Full128<uint8_t> d;
  alignas(16) uint8_t bytes[32];
  if constexpr (kBits == 8) {
    hn::Store(low, d, bytes);
    hn::Store(high, d, bytes + 16);
    return StoreDwords<Fmt>(bytes, 8, to);
  }
  if constexpr (kBits == 6) {
    PackSixBits<Fmt>(low, to);
    return PackSixBits<Fmt>(high, to + 3 * kChunk);
  }
  if constexpr (kBits >= 4) {
    const auto mask = hn::Set(d, uint8_t{15});
    const auto upper = hn::And(high, mask);
    hn::Store(hn::Or(hn::And(low, mask), ShiftBytesLeft<4>(d, upper)), d, bytes);
    StoreDwords<Fmt>(bytes, 4, to);
    to += 4 * kChunk;
    low = BitField<15>(d, low, 4);
    high = BitField<15>(d, high, 4);
  }
  if constexpr (kBits == 4) return;
  // The bits above, of 16 weights in the low half of each byte, of the others in the
  // high half.
  uint64_t half[2];
  hn::Store(hn::Or(low, ShiftBytesLeft<4>(d, high)), d, bytes);
  memcpy(half, bytes, sizeof(half));
  if constexpr (kBits % 4 >= 2) {
    const uint64_t pairs = half[0] & 0x3333333333333333u;
    const uint64_t plane = pairs | (half[1] & 0x3333333333333333u) << 2;
    StoreDwords<Fmt>(&plane, 2, to);
    to += 2 * kChunk;
    half[0] = (half[0] >> 2) & 0x3333333333333333u;
    half[1] = (half[1] >> 2) & 0x3333333333333333u;
  }
  if constexpr (kBits % 2 == 1) {
    const uint64_t bits = half[0] | half[1] << 2;  // k = i, i + 8, i + 16, i + 24
    const uint32_t plane = static_cast<uint32_t>(bits | (bits >> 32) << 1);
    StoreDwords<Fmt>(&plane, 1, to);
  }
}

// The scales of row r's block. `unit` is its place in the superblock.
template <class Fmt>
HWY_INLINE void PackScales([[maybe_unused]] const typename Fmt::Block& b,
                           [[maybe_unused]] size_t unit, [[maybe_unused]] size_t r,
                           [[maybe_unused]] uint8_t* super) {
  using P = Panel<Fmt>;
  if constexpr (!kHasRowScale<Fmt>) memcpy(super + P::ScaleAt(unit) + 2 * r, b.d, 2);
  if constexpr (Fmt::kHasMin) {
    const uint16_t min = Fmt::MinBits(b);
    memcpy(super + P::MinAt(unit) + 2 * r, &min, 2);
  }
  if constexpr (Fmt::kSubScales) {
    int8_t scale[16], min[16];
    Fmt::SubScales(b, scale, min);
    for (size_t g = 0; g < kGroups<Fmt>; ++g) {
      super[P::SubScaleAt(g) + r] = static_cast<uint8_t>(scale[g]);
      if constexpr (Fmt::kHasMin) {
        super[P::SubMinAt(g) + r] = static_cast<uint8_t>(min[g]);
      }
    }
  }
}

// One panel from `num_rows` (at most 16) rows of K weights; the others become zero.
template <class Fmt>
void PackPanel(const uint8_t* rows, size_t row_bytes, size_t num_rows, size_t K,
               uint8_t* panel) noexcept {
  using P = Panel<Fmt>;
  const hn::Full128<uint8_t> d;
  constexpr size_t kBlocks = P::kUnits * kUnitLen / Fmt::kBlockLen;
  constexpr size_t kBlockUnits = Fmt::kBlockLen / kUnitLen;
  const size_t num_blocks = K / Fmt::kBlockLen;
  if (num_rows < kPanelRows || num_blocks % kBlocks != 0) {
    memset(panel, 0, P::Bytes(K));
  }
  for (size_t i = 0; i < num_blocks; ++i) {
    uint8_t* super = panel + i / kBlocks * P::kBytes;
    const size_t unit = i % kBlocks * kBlockUnits;
    for (size_t r = 0; r < num_rows; ++r) {
      const auto& b =
          reinterpret_cast<const typename Fmt::Block*>(rows + r * row_bytes)[i];
      PackScales<Fmt>(b, unit, r, super);
      for (size_t u = 0; u < kBlockUnits; ++u) {
        const auto low = Codes(Fmt(), d, b, u * kUnitLen);
        const auto high = Codes(Fmt(), d, b, u * kUnitLen + 16);
        PackCodes<Fmt>(low, high, super + P::UnitAt(unit + u) + 4 * r);
      }
    }
  }
}

// ---- unpacking

// Bytes moved up by kUp bits, or down by -kUp. Bits that cross into another byte are
// for the caller to mask.
template <int kUp, class DU8>
HWY_INLINE hn::Vec<DU8> MoveBits(DU8 du8, hn::Vec<DU8> bytes) {
  const hn::RepartitionToWide<DU8> du16;
  if constexpr (kUp > 0) {
    return hn::BitCast(du8, hn::ShiftLeft<kUp>(hn::BitCast(du16, bytes)));
  } else if constexpr (kUp < 0) {
    return hn::BitCast(du8, hn::ShiftRight<-kUp>(hn::BitCast(du16, bytes)));
  }
  return bytes;
}

// kLen bits of each byte, from bit kFrom on.
template <int kFrom, int kLen, class DU8>
HWY_INLINE hn::Vec<DU8> Field(DU8 du8, hn::Vec<DU8> bytes) {
  if constexpr (kShiftsBytes && kFrom + kLen == 8) return hn::ShiftRight<kFrom>(bytes);
  constexpr uint8_t kMask = (1 << kLen) - 1;
  return hn::And(MoveBits<-kFrom>(du8, bytes), hn::Set(du8, kMask));
}

// The bits of kMask of `bytes` after such a move, and those of `below`.
template <int kUp, int kMask, class DU8>
HWY_INLINE hn::Vec<DU8> AddBits(DU8 du8, hn::Vec<DU8> below, hn::Vec<DU8> bytes) {
  return hn::OrAnd(below, MoveBits<kUp>(du8, bytes), hn::Set(du8, uint8_t{kMask}));
}

// A quarter of 16 codes of 6 bits.
template <class Fmt, size_t kQuarter, class DU8>
HWY_INLINE hn::Vec<DU8> SixBits(DU8 du8, const uint8_t* HWY_RESTRICT half) {
  constexpr size_t kChunk = Panel<Fmt>::kChunk;
  if constexpr (kQuarter < 3) {
    return Field<0, 6>(du8, hn::Load(du8, half + kQuarter * kChunk));
  } else {
    const auto low = Field<6, 2>(du8, hn::Load(du8, half));
    const auto middle = AddBits<-4, (3 << 2)>(du8, low, hn::Load(du8, half + kChunk));
    return AddBits<-2, (3 << 4)>(du8, middle, hn::Load(du8, half + 2 * kChunk));
  }
}

// Codes of weights [4g, 4g + 4) of a unit's rows, those of the register at `unit`.
template <class Fmt, size_t g, class DU8>
HWY_INLINE hn::Vec<DU8> UnitCodes(DU8 du8, const uint8_t* HWY_RESTRICT unit) {
  constexpr size_t kBits = Panel<Fmt>::kBits, kChunk = Panel<Fmt>::kChunk;
  constexpr int kGroup = static_cast<int>(g);
  if constexpr (kBits == 8) return hn::Load(du8, unit + g * kChunk);
  if constexpr (kBits == 6) {
    return SixBits<Fmt, g % 4>(du8, unit + g / 4 * 3 * kChunk);
  }
  auto codes = hn::Zero(du8);
  if constexpr (kBits >= 4) {
    const auto nibbles = hn::Load(du8, unit + g % 4 * kChunk);
    codes = Field<g / 4 * 4, 4>(du8, nibbles);
    unit += 4 * kChunk;
  }
  if constexpr (kBits % 4 >= 2) {
    constexpr int kFrom = kGroup / 2 * 2;
    const auto pairs = hn::Load(du8, unit + g % 2 * kChunk);
    if constexpr (kBits > 4) {
      codes = AddBits<4 - kFrom, (3 << 4)>(du8, codes, pairs);
    } else {
      codes = Field<kFrom, 2>(du8, pairs);
    }
    unit += 2 * kChunk;
  }
  if constexpr (kBits % 2 == 1) {
    constexpr int kAt = static_cast<int>(kBits) - 1;
    codes = AddBits<kAt - kGroup, (1 << kAt)>(du8, codes, hn::Load(du8, unit));
  }
  return codes;
}

// The codes of groups [g, 8) of a unit, a byte each.
template <class Fmt, size_t g = 0>
HWY_INLINE void SpreadUnit(const uint8_t* HWY_RESTRICT unit, uint8_t* HWY_RESTRICT to) {
  const hn::CappedTag<uint8_t, Panel<Fmt>::kChunk> du8;
  HALFBYTE_UNROLL
  for (size_t at = 0; at < Panel<Fmt>::kChunk; at += HWY_MAX_LANES_D(decltype(du8))) {
    hn::Store(UnitCodes<Fmt, g>(du8, unit + at), du8, to + at);
  }
  if constexpr (g + 1 < kUnitLen / 4) {
    SpreadUnit<Fmt, g + 1>(unit, to + Panel<Fmt>::kChunk);
  }
}

// A panel of K weights as one of Spread<Fmt>.
template <class Fmt>
void SpreadPanel(const uint8_t* panel, size_t K, uint8_t* spread) noexcept {
  using P = Panel<Fmt>;
  using S = Panel<Spread<Fmt>>;
  static_assert(P::kHeadBytes == S::kHeadBytes && P::kUnits == S::kUnits);
  for (size_t left = P::Bytes(K) / P::kBytes; left != 0; --left) {
    memcpy(spread, panel, P::kHeadBytes);
    for (size_t unit = 0; unit < P::kUnits; ++unit) {
      SpreadUnit<Fmt>(panel + P::UnitAt(unit), spread + S::UnitAt(unit));
    }
    panel += P::kBytes;
    spread += S::kBytes;
  }
}

// Codes that stay where they are in fields of kField bits: 2^(kBits * plane) times as
// large, and one shift, or none, for all planes of a field. Their sums are shifted in
// the end, so each plane needs its own.
template <class Fmt, size_t kField>
struct InPlace : Fmt {};
template <class Fmt>
inline constexpr size_t kPlanes = 1;
template <class Fmt, size_t kField>
inline constexpr size_t kPlanes<InPlace<Fmt, kField>> = HWY_MAX(kField /
                                                                    Panel<Fmt>::kBits,
                                                                size_t{1});
template <class Fmt, size_t kField>
inline constexpr int kLargestCode<InPlace<Fmt, kField>> =
    Fmt::kMaxCode << Panel<Fmt>::kBits * (kPlanes<InPlace<Fmt, kField>> - 1);

// The plane of a field that group g of a unit is in.
template <class Fmt>
constexpr size_t PlaneOf(size_t g) {
  return g / Panel<Fmt>::kBits % kPlanes<Fmt>;
}

template <class Fmt, size_t g, class DU8>
HWY_INLINE hn::Vec<DU8> UnitCodesInPlace(DU8 du8, const uint8_t* HWY_RESTRICT unit) {
  constexpr size_t kBits = Panel<Fmt>::kBits, kChunk = Panel<Fmt>::kChunk;
  constexpr size_t kPlane = PlaneOf<Fmt>(g);
  constexpr int kShift = static_cast<int>(kBits * (g / kBits - kPlane));
  constexpr uint8_t kMask = ((1 << kBits) - 1) << (kBits * kPlane);
  const auto bytes = hn::Load(du8, unit + g % kBits * kChunk);
  return hn::And(MoveBits<-kShift>(du8, bytes), hn::Set(du8, kMask));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace halfbyte
HWY_AFTER_NAMESPACE();
#endif  // toggle
