# python/halfbyte/reference.py
# SPDX-License-Identifier: Apache-2.0
"""Every public operation again, in slow NumPy.

Each function is called as its twin in `halfbyte` and says with a few lines of
arithmetic what that one computes: documentation, oracle of the tests, and a fallback.
(`dequantize` takes no `out`; `recover` takes no quantizer, and returns a pair, as
`repair` does.)
Sums are taken in float64 and rounded to float32 once. Nothing here is compiled or fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfbyte.errors import ArgumentError, DTypeError, ShapeError
from halfbyte.kv_codes import KvCodes

__all__ = [
    "PackedWeight",
    "Weight",
    "attention",
    "dequantize",
    "dequantize_kv",
    "embedding_rows",
    "formats",
    "gelu_mul",
    "linear",
    "linear_codes",
    "quantize",
    "quantize_kv",
    "recover",
    "repair",
    "rms_norm",
    "rope",
    "softmax",
]

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Activations = Literal["auto", "f32"]


class PackedWeight(Protocol):
    """What the functions here need of a weight."""

    @property
    def format(self) -> str:
        """Lower-case name of the format, such as ``"q4_0"``."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows N and weights per row K."""

    @property
    def data(self) -> Bytes:
        """The bytes of the N rows, in any shape."""

    @property
    def scales(self) -> F32Array | None:
        """The scale of each row, where blocks have none."""


@dataclass(frozen=True)
class Weight:
    """Packed weights that `quantize` of this module returns.

    Attributes
    ----------
    format : str
        Lower-case name of the format.
    shape : tuple of int
        (N, K).
    data : uint8 array, shape (N, bytes per row)
        As stored in a file.
    scales : float32 array, shape (N,), optional
        Of the rows, in the formats that keep them apart.
    """

    format: str
    shape: tuple[int, int]
    data: Bytes
    scales: F32Array | None = None


# ---- formats: blocks of bytes, shape (B, block bytes), to weights, shape (B, block len)


def _f16(b: Bytes, at: int) -> F32Array:
    """Half-precision column of the blocks, shape (B, 1)."""
    return _widen_f16(np.ascontiguousarray(b[:, at : at + 2]))


def _widen_f16(raw: Bytes) -> F32Array:
    out = raw.view("<f2").astype(np.float32)
    bits = out.view(np.uint32)
    bits[np.isnan(out)] |= np.uint32(0x400000)  # quiet, as the hardware makes it
    return out


def _u32(b: Bytes, at: int) -> NDArray[np.uint32]:
    return np.ascontiguousarray(b[:, at : at + 4]).view("<u4")


def _float(codes: NDArray[Any]) -> F32Array:
    return codes.astype(np.float32)


def _nibbles(qs: Bytes) -> NDArray[np.int32]:
    """First the low halves of all bytes, then the high halves."""
    return np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.int32)


def _fifth_bits(qh: NDArray[np.uint32]) -> NDArray[np.int32]:
    bits = qh >> np.arange(32, dtype=np.uint32) & np.uint32(1)
    return bits.astype(np.int32) << 4


def _decode_f32(b: Bytes) -> F32Array:
    return b.view("<f4").astype(np.float32)


def _decode_f16(b: Bytes) -> F32Array:
    return _widen_f16(b)


def _decode_bf16(b: Bytes) -> F32Array:
    return (b.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _decode_q4_0(b: Bytes) -> F32Array:
    return _float(_nibbles(b[:, 2:]) - 8) * _f16(b, 0)


def _decode_q4_1(b: Bytes) -> F32Array:
    return _float(_nibbles(b[:, 4:])) * _f16(b, 0) + _f16(b, 2)


def _decode_q5_0(b: Bytes) -> F32Array:
    return _float((_nibbles(b[:, 6:]) | _fifth_bits(_u32(b, 2))) - 16) * _f16(b, 0)


def _decode_q5_1(b: Bytes) -> F32Array:
    codes = _nibbles(b[:, 8:]) | _fifth_bits(_u32(b, 4))
    return _float(codes) * _f16(b, 0) + _f16(b, 2)


def _decode_q8_0(b: Bytes) -> F32Array:
    return _float(b[:, 2:].view(np.int8)) * _f16(b, 0)


# Element i of a 256-block, as its description counts: half, quarter of it, place there.
_I = np.arange(256)
_H, _J, _L = _I // 128, _I % 128 // 32, _I % 32


def _two_bits(qs: Bytes) -> NDArray[np.int32]:
    return (qs[:, 32 * _H + _L] >> (2 * _J).astype(np.uint8) & 3).astype(np.int32)


def _decode_q2_k(b: Bytes) -> F32Array:
    scales = b[:, :16][:, 8 * _H + 2 * _J + _L // 16]
    step = _f16(b, 80) * _float(scales & 15)
    low = _f16(b, 82) * _float(scales >> 4)
    return step * _float(_two_bits(b[:, 16:80])) - low


def _decode_q3_k(b: Bytes) -> F32Array:
    packed, t = b[:, 96:108].astype(np.int32), np.arange(16)
    low = np.where(t < 8, packed[:, t % 8] & 15, packed[:, t % 8] >> 4)
    high = packed[:, 8 + t % 4] >> 2 * (t // 4) & 3
    scales = (low | high << 4) - 32
    step = _f16(b, 108) * _float(scales[:, 8 * _H + 2 * _J + _L // 16])
    kept = b[:, :32][:, _L] >> (4 * _H + _J).astype(np.uint8) & 1
    codes = _two_bits(b[:, 32:96]) - np.where(kept, 0, 4)
    return step * _float(codes)


def _six_bit_pairs(packed: Bytes) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Scales and minima of the eight groups of Q4_K and Q5_K, from 12 bytes."""
    s = packed.astype(np.int32)
    first, second, third = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    scales = [first & 63, third & 15 | (first >> 6) << 4]
    minima = [second & 63, third >> 4 | (second >> 6) << 4]
    return np.concatenate(scales, axis=1), np.concatenate(minima, axis=1)


def _group_nibbles(qs: Bytes) -> NDArray[np.int32]:
    shift = (4 * (_I // 32 % 2)).astype(np.uint8)
    return (qs[:, 32 * (_I // 64) + _L] >> shift & 15).astype(np.int32)


def _affine_k(b: Bytes, codes: NDArray[np.int32]) -> F32Array:
    scales, minima = _six_bit_pairs(b[:, 4:16])
    step = _f16(b, 0) * _float(scales)
    low = _f16(b, 2) * _float(minima)
    return step[:, _I // 32] * _float(codes) - low[:, _I // 32]


def _decode_q4_k(b: Bytes) -> F32Array:
    return _affine_k(b, _group_nibbles(b[:, 16:]))


def _decode_q5_k(b: Bytes) -> F32Array:
    fifth = (b[:, 16:48][:, _L] >> (_I // 32).astype(np.uint8) & 1).astype(np.int32)
    return _affine_k(b, _group_nibbles(b[:, 48:]) | fifth << 4)


def _decode_q6_k(b: Bytes) -> F32Array:
    ql = b[:, :128][:, 64 * _H + 32 * (_J & 1) + _L]
    low = (ql >> np.where(_J < 2, 0, 4).astype(np.uint8) & 15).astype(np.int32)
    codes = (low | _two_bits(b[:, 128:192]) << 4) - 32
    scales = _float(b[:, 192:208].view(np.int8))
    step = _f16(b, 208) * scales
    return step[:, _I // 16] * _float(codes)


# ---- the other way: weights, shape (B, block len), to blocks


def _store_f16(d: F32Array) -> Bytes:
    with np.errstate(over="ignore"):
        return d.astype("<f2").view(np.uint8)


def _inverse(d: F32Array) -> F32Array:
    """1 / d in float32, and 0 for 0."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(d == 0, np.float32(0), np.float32(1) / d)


def _pack_nibbles(codes: Bytes) -> Bytes:
    half = codes.shape[1] // 2
    return codes[:, :half] | codes[:, half:] << np.uint8(4)


def _encode_f32(x: F32Array) -> Bytes:
    return x.astype("<f4").view(np.uint8)


def _encode_f16(x: F32Array) -> Bytes:
    return _store_f16(x)


def _encode_bf16(x: F32Array) -> Bytes:
    bits = x.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    bits = np.where(np.isnan(x), bits | np.uint32(0x400000), rounded)
    return (bits >> np.uint32(16)).astype("<u2").view(np.uint8)


def _encode_q4_0(x: F32Array) -> Bytes:
    extreme = _extremes(x)
    d = extreme / np.float32(-8)
    level = np.trunc(x * _inverse(d) + np.float32(8.5))
    codes = np.clip(level, 0, 15).astype(np.uint8)
    return np.concatenate([_store_f16(d), _pack_nibbles(codes)], axis=1)


def _encode_q8_0(x: F32Array) -> Bytes:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    away = np.copysign(np.floor(np.abs(scaled).astype(np.float64) + 0.5), scaled)
    codes = np.clip(away, -128, 127).astype(np.int8)
    return np.concatenate([_store_f16(d), codes.view(np.uint8)], axis=1)


def _extremes(x: F32Array) -> F32Array:
    """The element of largest magnitude with its sign, the first of equals: (B, 1).

    That of a block of zeros is +0, whatever their signs.
    """
    at = np.abs(x).argmax(axis=1)
    return np.take_along_axis(x, at[:, None], axis=1) + np.float32(0)


_NEGLIGIBLE = np.float32(1e-15)


def _levels(scaled: F32Array) -> F32Array:
    return np.clip(np.rint(scaled), np.float32(-32), np.float32(31))


def _best_steps(x: F32Array) -> F32Array:
    """Search the step of each group of 16 that fits levels -32 to 31 best.

    Of 19 trial steps around extreme / -32, each replaced by its least-squares fit with
    the weights x^2, the one that explains most. Sums run in float32 and in order, so
    that every implementation finds the same.
    """
    extreme = _extremes(x)[:, 0]
    live = np.abs(extreme) >= _NEGLIGIBLE
    safe = np.where(live, extreme, np.float32(1))
    steps = np.zeros_like(extreme)
    best = np.zeros_like(extreme)
    for tenths in [0, *range(-9, 0), *range(1, 10)]:
        width = np.float32(32) + np.float32(0.1) * np.float32(tenths)
        inverse = -width / safe
        sum_lx, sum_l2 = np.zeros_like(extreme), np.zeros_like(extreme)
        for column in x.T:
            level, weight = _levels(inverse * column), column * column
            sum_lx += weight * column * level
            sum_l2 += weight * level * level
        better = (sum_l2 > 0) & ((tenths == 0) | (sum_lx * sum_lx > best * sum_l2))
        fit = sum_lx / np.where(sum_l2 > 0, sum_l2, np.float32(1))
        steps = np.where(better, fit, steps)
        best = np.where(better, fit * sum_lx, best)
    return np.where(live, steps, np.float32(0))


def _pack_q6_k(codes: Bytes) -> Bytes:
    """Low nibbles to 128 bytes, high two bits to 64."""
    ql = np.zeros((len(codes), 128), np.uint8)
    qh = np.zeros((len(codes), 64), np.uint8)
    for h in range(2):
        for j in range(4):
            part = codes[:, 128 * h + 32 * j :][:, :32]
            low = slice(64 * h + 32 * (j & 1), 64 * h + 32 * (j & 1) + 32)
            ql[:, low] |= (part & 15) << (0 if j < 2 else 4)
            qh[:, 32 * h : 32 * h + 32] |= part >> 4 << 2 * j
    return np.concatenate([ql, qh], axis=1)


def _encode_q6_k(x: F32Array) -> Bytes:
    steps = _best_steps(x.reshape(-1, 16)).reshape(-1, 16)
    extreme = _extremes(steps)
    live = np.abs(extreme) >= _NEGLIGIBLE
    inverse = np.float32(-128) / np.where(live, extreme, np.float32(1))
    stored = _store_f16(np.where(live, np.float32(1) / inverse, np.float32(0)))
    scales = np.clip(np.rint(inverse * steps), -128, 127)
    scales = np.where(live, scales, np.float32(0)).astype(np.int8)

    step = np.repeat(_f16(stored, 0) * _float(scales), 16, axis=1)
    safe = _float(np.where(step == 0, 1, step))
    levels = np.where(step == 0, np.float32(0), _levels(x / safe))
    codes = np.where(live, levels + np.float32(32), np.float32(0)).astype(np.uint8)
    return np.concatenate([_pack_q6_k(codes), scales.view(np.uint8), stored], axis=1)


def _levels_of(b: Bytes, bits: int) -> F32Array:
    """Levels of 2, 4 or 8 bits, the first in the lowest bits of a byte."""
    if bits == 8:
        return _float(b.view(np.int8))
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (b[:, :, None] >> shifts) & ((1 << bits) - 1)
    levels = codes.astype(np.int32) - (1 << (bits - 1))
    return _float(levels.reshape(len(b), b.shape[1] * len(shifts)))


def _decode_w4g32(b: Bytes) -> F32Array:
    return _levels_of(b[:, 2:], 4) * _decode_bf16(np.ascontiguousarray(b[:, :2]))


def _encode_w4g32(x: F32Array) -> Bytes:
    stored = _encode_bf16(np.abs(x).max(axis=1, keepdims=True) / np.float32(7.5))
    d = _decode_bf16(stored)
    levels = np.rint(x / np.where(d == 0, np.float32(1), d))
    codes = (np.clip(np.where(d == 0, 0, levels), -8, 7) + 8).astype(np.uint8)
    return np.concatenate([stored, codes[:, ::2] | codes[:, 1::2] << 4], axis=1)


def _quantize_rows(x: F32Array, bits: int) -> tuple[Bytes, F32Array]:
    """Bytes of rows, and their scales."""
    top = np.float32((1 << (bits - 1)) - 1)
    scales = (np.abs(x).max(axis=1, initial=0) / top).astype(np.float32)
    with np.errstate(all="ignore"):
        levels = np.rint(x / np.where(scales == 0, np.float32(1), scales)[:, None])
    levels = np.clip(levels, -top - 1, top).astype(np.int8)
    if bits == 8:
        return levels.view(np.uint8), scales
    codes = (levels + (1 << (bits - 1))).astype(np.uint8)
    parts = codes.reshape(len(x), x.shape[1] * bits // 8, 8 // bits)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(parts << shifts, axis=2), scales


# ---- the search for steps: groups of weights, shape (B, length), one step each


@dataclass(frozen=True)
class _Steps:
    """Which steps a format has, and which are tried first."""

    half: int  # levels are -half to half - 1
    first: np.float32
    ratio: np.float32
    between: np.float32 | None  # None where steps have both signs
    store: Callable[[F32Array], F32Array]  # the nearest step that is stored

    def levels(self, x: F32Array, step: F32Array) -> F32Array:
        nearest = np.rint(x * _inverse(step))
        low, high = np.float32(-self.half), np.float32(self.half - 1)
        return _float(np.clip(nearest, low, high))

    def storable(self, step: F32Array) -> F32Array:
        stored = self.store(step)
        vanishes = np.abs(stored) < np.finfo(np.float32).tiny
        return _float(np.where(vanishes, np.float32(0), stored))


def _nearest_f16(step: F32Array) -> F32Array:
    return np.clip(step, -65504, 65504).astype(np.float16).astype(np.float32)


def _nearest_bf16(step: F32Array) -> F32Array:
    largest = np.array([0x7F7F], np.uint16)
    most = _decode_bf16(largest[None].view(np.uint8))[0, 0]
    stored = _decode_bf16(_encode_bf16(np.ascontiguousarray(step)))
    return np.clip(stored.reshape(step.shape), -most, most)


_BLOCKS = (np.float32(0.4), np.float32(1.0373))
_ROWS = (np.float32(0.08), np.float32(1.0945), np.float32(1.0462))
_STEPS = {
    "q4_0": _Steps(8, *_BLOCKS, None, _nearest_f16),
    "q8_0": _Steps(128, *_BLOCKS, None, _nearest_f16),
    "w4g32": _Steps(8, *_BLOCKS, np.float32(1.0185), _nearest_bf16),
    "w2": _Steps(2, *_ROWS, lambda step: step),
    "w4": _Steps(8, *_ROWS, lambda step: step),
    "w8": _Steps(128, *_ROWS, lambda step: step),
}


def _unit(x: F32Array) -> F32Array:
    """The power of two that brings the largest of each row near 1, (B, 1)."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    exponent = np.where(largest > 0, np.frexp(largest)[1] - 1, 0)
    return _float(np.ldexp(np.float32(1), -np.clip(exponent, -126, 126)))


def _errors(kind: _Steps, x: F32Array, w: F32Array, steps: F32Array) -> F32Array:
    """Sum of w * (x - step * level)^2 for steps (B, T), in order, 32 weights apart.

    In units of a power of two near the largest x, or squares of tiny ones would vanish.
    """
    unit = _unit(x)
    total = np.zeros(steps.shape, np.float32)
    for begin in range(0, x.shape[1], 32):
        part = np.zeros(steps.shape, np.float32)
        for i in range(begin, begin + 32):
            value = x[:, i : i + 1]
            off = (value - steps * kind.levels(value, steps)) * unit
            part += off * off * w[:, i : i + 1]
        total += part
    return np.where(np.isnan(total), np.float32(np.inf), total)


def _fit(kind: _Steps, x: F32Array, w: F32Array, step: F32Array) -> F32Array:
    """The steps that fit the levels of `step` by least squares, (B, 1)."""
    levels = kind.levels(x, step).astype(np.float64)
    weighted = levels * w
    along = np.cumsum(weighted * x, axis=1)[:, -1:]  # in order, unlike sum()
    square = np.cumsum(weighted * levels, axis=1)[:, -1:]
    fit = (along / np.where(square > 0, square, 1)).astype(np.float32)
    return np.where(square > 0, kind.storable(fit), step)


def _search(kind: _Steps, x: F32Array, w: F32Array, ordinary: F32Array) -> F32Array:
    """The step of least error of each group, (B, 1), of those that are tried."""
    half, near = np.float32(kind.half), np.float32((kind.ratio - np.float32(1)) / 8)
    trial = np.abs(x).max(axis=1, keepdims=True) / half * kind.first
    steps: list[F32Array] = []
    for _ in range(31):
        stored = kind.storable(trial)
        between = kind.between
        other = -stored if between is None else kind.storable(trial * between)
        steps += [stored, other]
        trial = trial * kind.ratio
    tried = [np.concatenate([*steps, kind.storable(ordinary)], axis=1)]
    middle, least = _pick(kind, x, w, tried[0], kind.storable(ordinary), np.inf)
    aways = [np.float32(1) + np.float32(k - 8) * near for k in range(1, 16)]
    nearer = [kind.storable(middle * away) for away in aways]
    steps = [_fit(kind, x, w, middle), *nearer]
    best, least = _pick(kind, x, w, np.concatenate(steps, axis=1), middle, least)
    return _pick(kind, x, w, _fit(kind, x, w, best), best, least)[0]


def _pick(
    kind: _Steps,
    x: F32Array,
    w: F32Array,
    steps: F32Array,
    best: F32Array,
    least: F32Array | float,
) -> tuple[F32Array, F32Array]:
    """The first of the steps with the least error, if that is below `least`."""
    errors = _errors(kind, x, w, steps)
    at = errors.argmin(axis=1)[:, None]
    error = np.take_along_axis(errors, at, axis=1)
    better = error < least
    step = np.where(better, np.take_along_axis(steps, at, axis=1), best)
    return step, np.where(better, error, np.float32(least)).astype(np.float32)


def _quantize_searched(x: F32Array, format: str, importance: F32Array | None) -> Weight:
    ordinary, kind, (n, k) = quantize(x, format), _STEPS[format], x.shape
    if x.size == 0:
        return ordinary
    length = k if ordinary.scales is not None else 32
    groups = x.reshape(-1, length)
    w = np.ones_like(groups)
    if importance is not None:
        given = np.broadcast_to(importance, x.shape).reshape(groups.shape)
        w = np.where((given > 0).any(axis=1, keepdims=True), given * _unit(given), w)
    blocks, usual = ordinary.data.reshape(n * k // 32, -1), ordinary.scales
    if usual is None:
        raw = np.ascontiguousarray(blocks[:, :2])
        usual = (_decode_bf16(raw) if format == "w4g32" else _widen_f16(raw))[:, 0]
    # What is not finite stays with the ordinary quantizer.
    finite = np.isfinite(groups).reshape(len(groups), -1).min(axis=1, initial=True)
    safe = np.where(finite[:, None], groups, np.float32(0))
    steps = _search(kind, safe, w, np.where(finite, usual, np.float32(0))[:, None])
    codes = (kind.levels(safe, steps) + np.float32(kind.half)).astype(np.uint8)
    found = _join(format, codes.reshape(-1, 32), steps[:, 0])
    keep = np.repeat(finite, length // 32)[:, None]
    data = np.where(keep, found, blocks).reshape(n, -1)
    if ordinary.scales is None:
        return Weight(format, (n, k), data)
    return Weight(format, (n, k), data, np.where(finite, steps[:, 0], usual))


def _join(format: str, codes: Bytes, steps: F32Array) -> Bytes:
    """Blocks of codes (B, 32), of q4_0 and its like with the steps in them."""
    half = _STEPS[format].half
    if half == 128:
        packed = codes ^ np.uint8(128)
    elif format == "q4_0":
        packed = _pack_nibbles(codes)
    else:
        each = 4 if half == 2 else 2  # codes a byte
        shifts = np.arange(each, dtype=np.uint8) * np.uint8(8 // each)
        parts = codes.reshape(len(codes), 32 // each, each)
        packed = np.bitwise_or.reduce(parts << shifts, axis=2)
    if format.startswith("w") and format != "w4g32":
        return packed
    stored = (_encode_bf16 if format == "w4g32" else _store_f16)(steps[:, None].copy())
    return np.concatenate([stored, packed], axis=1)


@dataclass(frozen=True)
class _Format:
    block_len: int
    block_bytes: int
    decode: Callable[[Bytes], F32Array]
    encode: Callable[[F32Array], Bytes] | None = None
    row_bits: int = 0  # of a level, where a row has one scale that lies elsewhere

    @property
    def packed(self) -> bool:
        return self.block_len > 1


_FORMATS = {
    "f32": _Format(1, 4, _decode_f32, _encode_f32),
    "f16": _Format(1, 2, _decode_f16, _encode_f16),
    "q4_0": _Format(32, 18, _decode_q4_0, _encode_q4_0),
    "q4_1": _Format(32, 20, _decode_q4_1),
    "q5_0": _Format(32, 22, _decode_q5_0),
    "q5_1": _Format(32, 24, _decode_q5_1),
    "q8_0": _Format(32, 34, _decode_q8_0, _encode_q8_0),
    "q2_k": _Format(256, 84, _decode_q2_k),
    "q3_k": _Format(256, 110, _decode_q3_k),
    "q4_k": _Format(256, 144, _decode_q4_k),
    "q5_k": _Format(256, 176, _decode_q5_k),
    "q6_k": _Format(256, 210, _decode_q6_k, _encode_q6_k),
    "bf16": _Format(1, 2, _decode_bf16, _encode_bf16),
    "w2": _Format(32, 8, lambda b: _levels_of(b, 2), row_bits=2),
    "w4": _Format(32, 16, lambda b: _levels_of(b, 4), row_bits=4),
    "w8": _Format(32, 32, lambda b: _levels_of(b, 8), row_bits=8),
    "w4g32": _Format(32, 18, _decode_w4g32, _encode_w4g32),
}


def formats() -> list[str]:
    """Names of the formats that `dequantize` reads.

    Returns
    -------
    list of str
    """
    return list(_FORMATS)


# ---- arguments


def _format_named(name: str) -> _Format:
    if name not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise ArgumentError(f"format: expected one of {known}, got {name!r}")
    return _FORMATS[name]


_FLOATS = ("float32", "float16", "bfloat16")


def _as_f32(x: ArrayLike, name: str) -> F32Array:
    """A float32, float16 or bfloat16 array as float32."""
    array = np.asarray(x)
    if array.dtype.name not in _FLOATS or not array.dtype.isnative:
        expected = " or ".join(_FLOATS)
        raise DTypeError(f"{name}: expected dtype {expected}, got {array.dtype}")
    return array.astype(np.float32)


def _give(y: NDArray[Any], out: F32Array | None) -> F32Array:
    """`y` in float32, in `out` if there is one."""
    with np.errstate(over="ignore"):
        result = y.astype(np.float32)
    if out is None:
        return result
    if out.shape != result.shape:
        raise ShapeError(f"out: expected shape {result.shape}, got {out.shape}")
    out[...] = result
    return out


def _rows_of(w: PackedWeight) -> Bytes:
    """The packed rows, shape (N, row bytes)."""
    form, (n, k) = _format_named(w.format), w.shape
    if k % form.block_len != 0:
        raise ShapeError(
            f"w: expected K a multiple of {form.block_len} for {w.format}, got {k}"
        )
    row_bytes = k // form.block_len * form.block_bytes
    data = np.ascontiguousarray(w.data).reshape(-1)
    if data.size != n * row_bytes:
        raise ShapeError(
            f"w: expected {n} rows of {row_bytes} bytes, got {data.size} bytes"
        )
    return data.reshape(n, row_bytes)


def _decode_rows(rows: Bytes, name: str, k: int) -> F32Array:
    form = _format_named(name)
    blocks = np.ascontiguousarray(rows).reshape(-1, form.block_bytes)
    with np.errstate(all="ignore"):
        return form.decode(blocks).reshape(len(rows), k)


def _as_indices(ids: ArrayLike, name: str, below: int) -> NDArray[np.int64]:
    array = np.asarray(ids)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{name}: expected integers, got {array.dtype}")
    if array.size and (array.min() < 0 or array.max() >= below):
        raise ArgumentError(f"{name}: expected 0 to {below}, exclusive")
    return array.astype(np.int64)


# ---- the operations


def quantize(
    x: ArrayLike,
    format: str,
    *,
    quantizer: str = "rtn",
    importance: ArrayLike | None = None,
) -> Weight:
    """Pack a matrix.

    Parameters
    ----------
    x : float32, float16 or bfloat16 array, shape (N, K)
        K is a multiple of the format's block length.
    format : str
        ``"f32"``, ``"f16"``, ``"bf16"``, ``"q4_0"``, ``"q8_0"``, ``"q6_k"``, ``"w8"``,
        ``"w4"``, ``"w2"`` or ``"w4g32"``.
    quantizer : {"rtn", "mse", "imatrix"}
    importance : array, shape (K,), optional
        Of ``"imatrix"``.

    Returns
    -------
    Weight, shape (N, K)

    Raises
    ------
    ArgumentError
        If the format is unknown, can only be read, or has no such quantizer.
    DTypeError, ShapeError
        If `x` does not fit; the message says how.

    Notes
    -----
    ``q4_0``: d = (element of largest magnitude) / -8, code = min(15, trunc(x / d + 8.5)).
    ``q8_0``: d = max |x| / 127, code = x / d rounded half away from zero. The codes use
    the float32 d, the block stores it as float16. ``w4g32``: d = max |x| / 7.5 as it is
    stored, in bfloat16, level = x / d rounded half to even. ``w8``, ``w4``, ``w2``:
    scale = max |row| / 127, 7 or 1, level = x / scale rounded half to even. ``q6_k``
    searches a step for every 16 weights and stores it as an 8-bit multiple of a
    float16.

    ``"mse"`` and ``"imatrix"`` try the step of the above; then 0.4 to 1.2 times
    (largest magnitude) / (lowest level), for rows 0.08 to 1.2 times, in 31 steps of equal
    ratio, with both signs for ``q4_0`` and ``q8_0`` and else in 62; then 15 near the
    best, and the step that fits the levels of the best one by least squares; and that
    once more. Each is rounded to what the format stores, with level = x / step rounded
    half to even.
    """
    values, form = _as_f32(x, "x"), _format_named(format)
    if form.encode is None and form.row_bits == 0:
        raise ArgumentError(f"format: {format} can only be read")
    if values.ndim != 2:
        raise ShapeError(f"x: expected shape (N, K), got {values.shape}")
    n, k = values.shape
    if k % form.block_len != 0:
        raise ShapeError(
            f"x: expected K a multiple of {form.block_len} for {format}, got {k}"
        )
    if quantizer != "rtn":
        if format not in _STEPS:
            raise ArgumentError(f"quantizer: {format} has no other than rtn")
        factors = None if importance is None else _as_f32(importance, "importance")
        with np.errstate(all="ignore"):
            return _quantize_searched(values, format, factors)
    row_bytes = k // form.block_len * form.block_bytes
    if form.row_bits:
        return Weight(format, (n, k), *_quantize_rows(values, form.row_bits))
    if values.size == 0 or form.encode is None:
        return Weight(format, (n, k), np.zeros((n, row_bytes), np.uint8))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        blocks = form.encode(np.ascontiguousarray(values).reshape(-1, form.block_len))
    return Weight(format, (n, k), blocks.reshape(n, row_bytes))


def dequantize(w: PackedWeight, *, rows: ArrayLike | None = None) -> F32Array:
    """Unpack a weight, or some of its rows.

    Parameters
    ----------
    w : Weight, shape (N, K)
    rows : integers, shape (R,), optional
        Which rows, in this order; all of them by default.

    Returns
    -------
    float32 array, shape (N, K) or (R, K)
        Exactly the values that the format defines.

    Raises
    ------
    ArgumentError
        If a row does not exist.
    ShapeError
        If the bytes of `w` are not N rows of K weights.
    """
    packed = _rows_of(w)
    ids = np.arange(len(packed))
    if rows is not None:
        ids = _as_indices(rows, "rows", len(packed))
    weights = _decode_rows(packed[ids], w.format, w.shape[1])
    return weights if w.scales is None else weights * w.scales[ids][:, None]


def _recover_group(w: F32Array, format: str) -> tuple[F32Array, np.float32, int]:
    """Levels, step and kind of 32 weights; kind 1: none found."""
    none = np.zeros(32, np.float32), np.float32(0)
    magnitude = np.abs(w)
    if not np.isfinite(w).all():
        return *none, 0
    if not w.any():
        return *none, 4
    bits = magnitude.view(np.uint32)
    low = np.where(w == 0, np.float32(0), (bits - 0x8000).view(np.float32))
    largest = np.finfo(np.float32).max
    high = np.where(w == 0, largest, (bits + 0x8000).view(np.float32))
    for m in range(1, 9):
        levels = np.rint(w * (np.float32(m) / magnitude.max()))
        by = np.maximum(np.abs(levels), np.float32(1))
        least, most = (low / by).max(), (high / by).min()
        signs = (levels == 8).any() + (levels == -8).any()
        meet = least <= most * np.float32(1 + 2**-22)
        if signs == 2 or not meet or ((levels == 0) != (w == 0)).any():
            continue
        steps = _stored_near(np.float32(0.5) * least + np.float32(0.5) * most, format)
        back = _to_bf16(steps[:, np.newaxis] * levels)
        apart = np.abs(back.view(np.int32) - w.view(np.int32)).max(axis=1)
        # A step that 16 bits do not hold moves weights by more than an ulp of bfloat16.
        exact = np.where(apart > 0x10000, 0, (back == w).sum(axis=1))
        if not exact.any():
            break
        best = int(exact.argmax())
        few = np.count_nonzero(w) < 4
        sign = np.float32(-1 if (levels == 8).any() else 1)
        return sign * levels, sign * steps[best], 2 if few else 3 + (exact[best] == 32)
    return *none, 1


def _to_bf16(x: F32Array) -> F32Array:
    return _decode_bf16(_encode_bf16(x))


def _stored_near(step: np.float32, format: str) -> F32Array:
    """The nearest 16-bit step, and those below and above it, if there are any."""
    wide = format == "w4g32"
    store = _encode_bf16 if wide else _store_f16
    middle = int(store(np.array([[step]], np.float32)).view(np.uint16)[0, 0])
    tried = middle + np.array([0, -1, 1])
    bits = tried[(tried > 0) & (tried < (0x7F80 if wide else 0x7C00))].astype(np.uint16)
    raw = np.ascontiguousarray(bits[:, np.newaxis]).view(np.uint8)
    return (_decode_bf16(raw) if wide else _widen_f16(raw))[:, 0]


def _recover_row(w: F32Array, half: int) -> tuple[np.float32, int]:
    """Step and kind of a row with levels from -half to half - 1, in float32."""
    if not np.isfinite(w).all():
        return np.float32(0), 0
    values = np.unique(np.abs(w[w != 0]))
    if not values.size:
        return np.float32(0), 4
    if values.size > half:
        return np.float32(0), 1
    bits = values.view(np.uint32)
    low = (bits - 0x8000).view(np.float32).astype(np.float64) * (1 - 2**-23)
    high = (bits + 0x8000).view(np.float32).astype(np.float64) * (1 + 2**-23)
    both = (w == values[-1]).any() and (w == -values[-1]).any()
    for m in range(1, half + 1 - int(both)):
        for interval in _row_steps(low, high, m):
            step = _exact_step(values, *interval)
            if step is not None:
                negative = m == half and (w == values[-1]).any()
                few = np.count_nonzero(w) < (32 if half == 128 else 4)
                return np.float32(-step if negative else step), 2 if few else 4
    return np.float32(0), 1


def _row_steps(
    low: NDArray[np.float64], high: NDArray[np.float64], m: int
) -> list[tuple[float, float]]:
    """Intervals of the steps with which the last magnitude is level m; large first."""
    steps = [(float(low[-1]) / m, float(high[-1]) / m)]
    for least, most in zip(low[:-1].tolist(), high[:-1].tolist(), strict=True):
        steps = [
            meet
            for below, above in steps
            for level in range(
                max(1, math.ceil(least / above)), min(m, math.floor(most / below)) + 1
            )
            if (meet := (max(below, least / level), min(above, most / level)))[0]
            <= meet[1]
        ]
    return steps


def _exact_step(values: F32Array, low: float, high: float) -> np.float32 | None:
    """A step near the middle that gives all values back, or None."""
    below = above = np.float32(0.5 * (low + high))
    for _ in range(16):
        for step in (below, above):
            product = step * np.rint(values / step)
            if (_to_bf16(product[:, np.newaxis])[:, 0] == values).all():
                return step
        below = np.nextafter(below, np.float32(0))
        above = np.nextafter(above, np.float32(np.inf))
    return None


def recover(x: ArrayLike, format: str = "q4_0") -> tuple[Weight, NDArray[np.uint8]]:
    """Find the lattice of a bfloat16 matrix; see `halfbyte.lattice.recover`.

    Parameters
    ----------
    x : array of bfloat16 values, shape (N, K)
    format : str

    Returns
    -------
    weight : Weight, shape (N, K)
        In that format; groups off the lattice as `quantize` packs them.
    groups : uint8 array, shape (N, K / 32) or (N, 1)
        0 not finite, 1 off the lattice, 2 too few weights to tell, 3 levels, 4 exact.
    """
    values = _as_f32(x, "x")
    n, k = values.shape
    packed = quantize(values, format)
    length = k if packed.scales is not None else 32
    groups = values.reshape(-1, length)
    levels, steps = np.zeros_like(groups), np.zeros(len(groups), np.float32)
    kinds = np.empty(len(groups), np.uint8)
    half = np.float32(_STEPS[format].half)
    for i, group in enumerate(groups):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if packed.scales is None:
                levels[i], steps[i], kinds[i] = _recover_group(group, format)
            else:
                steps[i], kinds[i] = _recover_row(group, int(half))
                step = np.float32(np.inf) if steps[i] == 0 else steps[i]
                levels[i] = np.rint(group / step)
    codes = (levels + half).astype(np.uint8).reshape(-1, 32)
    found = _join(format, codes, steps)
    on = kinds > 1
    blocks = packed.data.reshape(found.shape)
    data = np.where(np.repeat(on, length // 32)[:, None], found, blocks).reshape(n, -1)
    scales = None if packed.scales is None else np.where(on, steps, packed.scales)
    return Weight(format, (n, k), data, scales), kinds.reshape(n, k // length)


def repair(w: PackedWeight) -> tuple[Weight, NDArray[np.uint8]]:
    """Put Q4_0 back on its lattice; see `halfbyte.lattice.repair`.

    Parameters
    ----------
    w : Weight, shape (N, K)

    Returns
    -------
    weight : Weight, shape (N, K)
    groups : uint8 array, shape (N, K / 32)
        0 of another quantizer, 1 kept, 2 ambiguous, 3 restored.
    """
    blocks, (n, k) = _rows_of(w).reshape(-1, 18).copy(), w.shape
    done = np.empty(len(blocks), np.uint8)
    for i, block in enumerate(blocks):
        levels = _nibbles(block[np.newaxis, 2:])[0] - 8
        d = _f16(block[np.newaxis], 0)[0, 0]
        found = None
        if d == 0 or not levels.any():
            done[i] = 1
        elif levels.min() > -8 or not np.isfinite(d):
            done[i] = 0
        else:
            done[i], found = _repair_levels(levels, d)
        if found is not None:
            trained, step = found
            block[:2] = np.array([step], np.float16).view(np.uint8)
            codes = (trained + 8).astype(np.uint8)
            block[2:] = codes[:16] | codes[16:] << 4
    weight = Weight("q4_0", (n, k), blocks.reshape(n, k // 32 * 18))
    return weight, done.reshape(n, k // 32)


def _repair_levels(
    levels: NDArray[np.int32], d: np.float32
) -> tuple[int, tuple[NDArray[np.int64], np.float16] | None]:
    """What can be done with a block; and its trained levels and step, if they differ."""
    for m in range(1, 9):
        k = np.arange(m + 1)
        stored = np.floor(8 * k / m + 0.5).astype(np.int64)
        # From stored level to trained ones, on the side of -8 and on the one of +7.
        trained: dict[int, list[int]] = {}
        for level, became in zip(k.tolist(), stored.tolist(), strict=True):
            trained.setdefault(-became, []).append(-level)
            trained.setdefault(min(became, 7), []).append(level)
        if set(levels.tolist()) <= trained.keys():
            break
    with np.errstate(over="ignore"):
        step = np.float16(np.abs(d) * (np.float32(8) / np.float32(m)))
    if m == 8 or not np.isfinite(step):
        return 1, None
    smallest = [min(trained[level], key=abs) for level in levels.tolist()]
    cut = 7 in levels and len(trained[7]) > 1
    return 2 if cut else 3, (np.array(smallest) * (1 if d > 0 else -1), step)


def _activation_codes(x: F32Array) -> NDArray[np.float64]:
    """`x` after its rounding to 8-bit codes, 32 of which share a step.

    d = max |x| / 127 in float32 and codes x / d, divided in float32 and rounded to
    nearest even. A block that holds NaN or infinity becomes NaN.
    """
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // 32, 32)
    d = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    with np.errstate(all="ignore"):
        scaled = blocks / np.where(d > 0, d, np.float32(1))
        codes = np.clip(np.rint(scaled), -127, 127).astype(np.float64)
        values = np.where(d > 0, codes * d.astype(np.float64), 0.0)
    return np.where(np.isfinite(d), values, np.nan).reshape(x.shape)


def _row_codes(x: F32Array) -> NDArray[np.float64]:
    """`x` after its rounding to 8-bit codes, one step a row: max |x| / 127."""
    step = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    with np.errstate(all="ignore"):
        codes = np.clip(np.rint(x / np.where(step > 0, step, np.float32(1))), -128, 127)
        values = np.where(step > 0, codes.astype(np.float64) * step, 0.0)
    return np.where(np.isfinite(step), values, np.nan)


def linear_codes(
    x: NDArray[np.int8],
    w: PackedWeight,
    *,
    x_step: float,
    y_step: float,
    out: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Multiply 8-bit codes by a weight with one scale a row, into 8-bit codes.

    Parameters
    ----------
    x : int8 array, shape (..., K)
    w : Weight, shape (N, K)
        Of format ``"w8"``, ``"w4"`` or ``"w2"``.
    x_step, y_step : float
        What a code stands for.
    out : int8 array, shape (..., N), optional
        Written and returned.

    Returns
    -------
    int8 array, shape (..., N)
        The integer sum, in float32, times x_step * scale, over y_step: rounded half to
        even.
    """
    levels = _decode_rows(_rows_of(w), w.format, w.shape[1]).astype(np.int64)
    sums = (x.astype(np.int64) @ levels.T).astype(np.float32)
    scales = np.ones(w.shape[0], np.float32) if w.scales is None else w.scales
    y = sums * (scales * np.float32(x_step)) / np.float32(y_step)
    codes = np.clip(np.rint(y), -128, 127).astype(np.int8)
    if out is None:
        return codes
    out[...] = codes
    return out


def linear(
    x: ArrayLike,
    w: PackedWeight,
    *,
    bias: ArrayLike | None = None,
    out: F32Array | None = None,
    activations: Activations = "auto",
) -> F32Array:
    """Multiply by a packed weight: ``y = x @ w.T + bias``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 array, shape (..., K)
    w : Weight, shape (N, K)
    bias : array, shape (N,), optional
    out : float32 array, shape (..., N), optional
        Written and returned.
    activations : {"auto", "f32"}
        ``"auto"`` rounds `x` to 8-bit codes if `w` is quantized: 32 neighbours share a
        step, or all of a row if `w` has one scale a row. ``"f32"`` never does.

    Returns
    -------
    float32 array, shape (..., N)

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.
    """
    values, (n, k) = _as_f32(x, "x"), w.shape
    if activations not in ("auto", "f32"):
        raise ArgumentError(f"activations: expected auto or f32, got {activations!r}")
    if values.ndim == 0 or values.shape[-1] != k:
        raise ShapeError(f"x: expected shape (..., {k}), got {values.shape}")
    weights, form = dequantize(w).astype(np.float64), _format_named(w.format)
    if activations == "auto" and form.packed and values.size:
        wide = _row_codes(values) if form.row_bits else _activation_codes(values)
    else:
        wide = values.astype(np.float64)
    with np.errstate(all="ignore"):
        y = wide @ weights.T
    if bias is not None:
        added = _as_f32(bias, "bias")
        if added.shape != (n,):
            raise ShapeError(f"bias: expected shape ({n},), got {added.shape}")
        y = y + added
    return _give(y, out)


def embedding_rows(
    w: PackedWeight, ids: ArrayLike, *, out: F32Array | None = None
) -> F32Array:
    """Look up rows of a packed table.

    Parameters
    ----------
    w : Weight, shape (N, K)
    ids : integers, any shape
        Rows, 0 to N - 1.
    out : float32 array, shape (*ids.shape, K), optional
        Written and returned.

    Returns
    -------
    float32 array, shape (*ids.shape, K)

    Raises
    ------
    ArgumentError
        If an id is out of range.
    DTypeError, ShapeError
        If an argument does not fit.
    """
    indices = _as_indices(ids, "ids", w.shape[0])
    rows = dequantize(w, rows=indices.reshape(-1))
    return _give(rows.reshape(*indices.shape, w.shape[1]), out)


def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    eps: float = 1e-6,
    out: F32Array | None = None,
) -> F32Array:
    """Divide each row by its root mean square: ``x / sqrt(mean(x**2) + eps) * weight``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 array, shape (..., K)
    weight : array, shape (K,), optional
        Ones if missing.
    eps : float
        Inside the root.
    out : float32 array, shape of `x`, optional
        Written and returned; may be `x`.

    Returns
    -------
    float32 array, shape of `x`
        Zeros for a row of zeros; NaN for a row that holds NaN or infinity.

    Raises
    ------
    DTypeError, ShapeError
        If an argument does not fit.
    """
    values = _as_f32(x, "x").astype(np.float64)
    if values.ndim == 0:
        raise ShapeError("x: expected at least one dimension, got shape ()")
    if weight is None:
        factor: F32Array = np.ones(values.shape[-1], np.float32)
    else:
        factor = _as_f32(weight, "weight")
    if factor.shape != values.shape[-1:]:
        want = values.shape[-1:]
        raise ShapeError(f"weight: expected shape {want}, got {factor.shape}")
    if values.size == 0:
        return _give(values, out)
    mean = np.mean(values**2, axis=-1, keepdims=True) + np.float64(np.float32(eps))
    inverse = np.where(mean == 0, 0.0, 1.0 / np.sqrt(np.where(mean == 0, 1.0, mean)))
    inverse = np.where(np.isfinite(mean), inverse, np.nan)
    with np.errstate(invalid="ignore"):
        return _give(values * inverse * factor, out)


def rope(
    x: ArrayLike,
    positions: ArrayLike,
    *,
    freq_base: float = 10000.0,
    rotary_dims: int | None = None,
    freq_scale: float = 1.0,
    out: F32Array | None = None,
) -> F32Array:
    """Rotate pairs of elements by their position.

    Element i of a head makes a pair with element i + head_dim / 2, which is turned by
    ``position * freq_scale * freq_base ** (-2 * i / head_dim)``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 array, shape (T, heads, head_dim)
        head_dim is even.
    positions : integers, shape (T,)
    freq_base : float
    rotary_dims : int, optional
        Only the first ``rotary_dims // 2`` pairs turn; all by default.
    freq_scale : float
        Above 0: what positions are multiplied by, 1 over the factor of linear scaling.
    out : float32 array, shape of `x`, optional
        Written and returned; may be `x`.

    Returns
    -------
    float32 array, shape of `x`

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit.
    """
    values = _as_f32(x, "x")
    if values.ndim != 3 or values.shape[-1] % 2 != 0:
        raise ShapeError(
            f"x: expected shape (T, heads, even head_dim), got {values.shape}"
        )
    at = _as_indices(positions, "positions", 2**24 + 1)
    if at.shape != values.shape[:1]:
        raise ShapeError(
            f"positions: expected shape {values.shape[:1]}, got {at.shape}"
        )
    head_dim = values.shape[-1]
    dims = head_dim if rotary_dims is None else rotary_dims
    if dims % 2 != 0 or not 0 <= dims <= head_dim:
        raise ArgumentError(
            f"rotary_dims: expected an even number up to {head_dim}, got {dims}"
        )
    half, pairs = head_dim // 2, dims // 2
    frequency = freq_scale * freq_base ** (-2.0 * np.arange(pairs) / head_dim)
    angle = at[:, None, None] * frequency
    cos, sin = np.cos(angle), np.sin(angle)
    y = values.astype(np.float64)
    a, b = y[..., :pairs].copy(), y[..., half : half + pairs].copy()
    with np.errstate(invalid="ignore"):
        y[..., :pairs] = a * cos - b * sin
        y[..., half : half + pairs] = b * cos + a * sin
    return _give(y, out)


def softmax(x: ArrayLike, *, out: F32Array | None = None) -> F32Array:
    """Softmax over the last axis.

    Parameters
    ----------
    x : float32, float16 or bfloat16 array, shape (..., K)
    out : float32 array, shape of `x`, optional
        Written and returned; may be `x`.

    Returns
    -------
    float32 array, shape of `x`
        Zeros for a row of -inf; NaN for a row that holds NaN or +inf.

    Raises
    ------
    DTypeError, ShapeError
        If an argument does not fit.
    """
    values = _as_f32(x, "x").astype(np.float64)
    if values.ndim == 0:
        raise ShapeError("x: expected at least one dimension, got shape ()")
    if values.size == 0:
        return _give(values, out)
    largest = values.max(axis=-1, keepdims=True)
    masked = largest == -np.inf
    with np.errstate(invalid="ignore", under="ignore"):
        powers = np.exp(values - np.where(masked, 0.0, largest))
        y = powers / np.where(masked, 1.0, powers.sum(axis=-1, keepdims=True))
    return _give(y, out)


def gelu_mul(
    gate: ArrayLike, up: ArrayLike, *, out: F32Array | None = None
) -> F32Array:
    """Gate by GELU in its tanh form: ``gelu(gate) * up``.

    Parameters
    ----------
    gate, up : float32, float16 or bfloat16 arrays of one shape
    out : float32 array of that shape, optional
        Written and returned; may be `gate` or `up`.

    Returns
    -------
    float32 array of that shape

    Raises
    ------
    DTypeError, ShapeError
        If an argument does not fit.

    Notes
    -----
    ``0.5 * (1 + tanh(u))`` is written as ``1 / (1 + exp(-2 * u))``, which does not cancel
    for negative u.
    """
    g = _as_f32(gate, "gate").astype(np.float64)
    factor = _as_f32(up, "up")
    if factor.shape != g.shape:
        raise ShapeError(f"up: expected shape {g.shape}, got {factor.shape}")
    with np.errstate(all="ignore"):
        u = math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)
        small = np.exp(-2 * np.abs(u))
        y = g * np.where(u < 0, small, 1.0) / (1.0 + small)
        y = np.where(g == -np.inf, np.nan, y) * factor
    return _give(y, out)


def attention(
    q: ArrayLike,
    k: ArrayLike | KvCodes,
    v: ArrayLike | KvCodes,
    *,
    mask: ArrayLike | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    out: F32Array | None = None,
) -> F32Array:
    """Attend to keys and values: ``softmax(scale * q @ k.T) @ v`` for each head.

    Parameters
    ----------
    q : float32, float16 or bfloat16 array, shape (batch, heads, tokens, head_dim)
    k, v : the same, shape (batch, kv_heads, kv_tokens, head_dim)
        `heads` is a multiple of `kv_heads`; query head h uses key head
        ``h // (heads // kv_heads)``. Or both in 8 bits.
    mask : bool array that broadcasts to (batch, heads, tokens, kv_tokens), optional
        True where a query sees a key.
    causal : bool
        A query does not see later keys. The last query stands at the last key.
    window : int, optional
        With `causal`: how many keys a query sees, its own included.
    scale : float, optional
        ``head_dim ** -0.5`` if missing.
    out : float32 array, shape of `q`, optional
        Written and returned.

    Returns
    -------
    float32 array, shape of `q`
        Zeros for a query that sees no key.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit.
    """
    queries, keys, values = (
        _as_heads(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v"))
    )
    batch, heads, tokens, head_dim = queries.shape
    kv_heads, kv_tokens = keys.shape[1:3]
    if keys.shape != (batch, kv_heads, kv_tokens, head_dim):
        want = f"({batch}, kv_heads, kv_tokens, {head_dim})"
        raise ShapeError(f"k: expected shape {want}, got {keys.shape}")
    if values.shape != keys.shape:
        raise ShapeError(f"v: expected shape {keys.shape}, got {values.shape}")
    if heads and (kv_heads == 0 or heads % kv_heads):
        raise ShapeError(f"k: {kv_heads} heads do not divide the {heads} of q")
    seen = _visible(mask, (batch, heads, tokens, kv_tokens), causal, window)
    factor = np.float32(max(head_dim, 1) ** -0.5 if scale is None else scale)
    if not np.isfinite(factor):
        raise ArgumentError(f"scale: expected a finite number, got {factor}")
    y = np.zeros(queries.shape)
    for b, h, t in np.ndindex(batch, heads, tokens):
        at, kv = np.flatnonzero(seen[b, h, t]), h * kv_heads // heads
        if at.size:
            scores = np.float64(factor) * (keys[b, kv, at] @ queries[b, h, t])
            powers = np.exp(scores - scores.max())
            y[b, h, t] = powers @ values[b, kv, at] / powers.sum()
    return _give(y, out)


def _as_heads(x: ArrayLike | KvCodes, name: str) -> NDArray[np.float64]:
    values = _decoded(x) if isinstance(x, KvCodes) else _as_f32(x, name)
    if values.ndim != 4:
        raise ShapeError(
            f"{name}: expected shape (batch, heads, tokens, head_dim), got {values.shape}"
        )
    return values.astype(np.float64)


def quantize_kv(
    x: ArrayLike,
    *,
    step: float | None = None,
    rotate: bool | None = None,
    out: KvCodes | None = None,
) -> KvCodes:
    """Round keys or values to 8 bits.

    Parameters
    ----------
    x : float32, float16 or bfloat16 array, shape (batch, kv_heads, tokens, head_dim)
    step : float, optional
        One for all; by default each row of a head has its own.
    rotate : bool, optional
        Transform each row before. On by default, unless there is a `step`.
    out : KvCodes of that shape, optional
        Written and returned.

    Returns
    -------
    KvCodes

    Raises
    ------
    DTypeError, ShapeError
        If an argument does not fit.
    """
    rows = _as_heads(x, "x").astype(np.float32)
    rotated = step is None if rotate is None else rotate
    if rotated:
        rows = _hadamard(rows)
    if step is None:
        finite = np.isfinite(rows).all(axis=-1)
        with np.errstate(invalid="ignore"):
            largest = np.abs(rows).max(axis=-1, initial=0)
        steps = np.where(finite, largest / np.float32(127), np.float32(np.nan))
    else:
        steps = np.full(rows.shape[:3], step, np.float32)
    usable = steps >= np.finfo(np.float32).tiny
    with np.errstate(all="ignore"):
        levels = rows / np.where(usable, steps, 1)[..., None]
    codes = np.clip(np.rint(np.nan_to_num(levels, nan=0.0)), -128, 127)
    codes = np.where(usable[..., None], codes, 0).astype(np.int8)
    steps = np.where(usable | np.isnan(steps), steps, 0).astype(np.float32)
    if out is None:
        return KvCodes(codes, steps, rotated)
    if out.shape != rows.shape or out.rotated != rotated:
        raise ShapeError(f"out: expected shape {rows.shape}, got {out.shape}")
    out.codes[...], out.steps[...] = codes, steps
    return out


def dequantize_kv(x: KvCodes, *, out: F32Array | None = None) -> F32Array:
    """Give back what `quantize_kv` made of keys or values.

    Parameters
    ----------
    x : KvCodes
    out : float32 array, shape ``x.shape``, optional
        Written and returned.

    Returns
    -------
    float32 array, shape (batch, kv_heads, tokens, head_dim)
    """
    return _give(_decoded(x), out)


def _decoded(x: KvCodes) -> F32Array:
    rows = x.codes.astype(np.float32) * x.steps[..., None]
    return _hadamard(rows) if x.rotated else rows


def _hadamard(x: F32Array) -> F32Array:
    """Apply the orthonormal Walsh-Hadamard transform, in blocks that divide a row."""
    n = x.shape[-1]
    size = min(n & -n, 512)
    if size < 2:
        return x
    blocks = x.reshape(*x.shape[:-1], n // size, size)
    with np.errstate(all="ignore"):
        for _ in range(size.bit_length() - 1):
            even, odd = blocks[..., ::2], blocks[..., 1::2]
            blocks = np.concatenate([even + odd, even - odd], axis=-1)
        return (blocks * np.float32(size**-0.5)).reshape(x.shape)


def _visible(
    mask: ArrayLike | None, shape: tuple[int, ...], causal: bool, window: int | None
) -> NDArray[np.bool_]:
    """Which keys each query sees."""
    seen = np.asarray(True if mask is None else mask)
    if seen.dtype != np.bool_:
        raise DTypeError(f"mask: expected dtype bool, got {seen.dtype}")
    if window is not None and (window < 1 or not causal):
        raise ArgumentError(f"window: expected 1 or more, and causal, got {window}")
    try:
        seen = np.broadcast_to(seen, shape)
    except ValueError:
        raise ShapeError(
            f"mask: expected what broadcasts to {shape}, got shape {seen.shape}"
        ) from None
    if causal:
        tokens, kv_tokens = shape[2:]
        age = np.arange(tokens)[:, None] + kv_tokens - tokens - np.arange(kv_tokens)
        seen = seen & (age >= 0)
        if window is not None:
            seen = seen & (age < window)
    return seen
