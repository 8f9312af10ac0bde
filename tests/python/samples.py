# tests/python/samples.py
# SPDX-License-Identifier: Apache-2.0
"""Arrays and blocks that several test modules start from, and what `gguf` decodes."""

from __future__ import annotations

import gguf
import numpy as np
from halfbyte import reference
from numpy.typing import NDArray

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# Where each format keeps its 16-bit float fields: steps, then minima.
FIELDS: dict[str, tuple[list[int], list[int]]] = {
    "q4_0": ([0], []),
    "q4_1": ([0], [2]),
    "q5_0": ([0], []),
    "q5_1": ([0], [2]),
    "q8_0": ([0], []),
    "q2_k": ([80], [82]),
    "q3_k": ([108], []),
    "q4_k": ([0], [2]),
    "q5_k": ([0], [2]),
    "q6_k": ([208], []),
    "w4g32": ([0], []),
}

# Formats that GGUF does not have: levels of so many bits, one scale a row; and levels of
# four bits after a bf16.
BF16_STEPS = ("w4g32",)
ROW_BITS = {"w8": 8, "w4": 4, "w2": 2}

# float16 bits: zeros, smallest and largest subnormal, smallest normal, one, the largest,
# infinities, quiet and signalling NaN.
EXTREME_F16 = [
    0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x8400, 0x3C00, 0x7BFF, 0xFBFF,
    0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFDFF,
]  # fmt: skip

# CRC-32 of the little-endian weights of `golden_block`.
GOLDEN_CRC = {
    "q4_0": 0xFEF3C770,
    "q4_1": 0xEC504156,
    "q5_0": 0xDC349C3F,
    "q5_1": 0x9A7F6E67,
    "q8_0": 0xCE689365,
    "q2_k": 0xB57CBE35,
    "q3_k": 0x96B0FBF8,
    "q4_k": 0xBE455E17,
    "q5_k": 0xCA21F113,
    "q6_k": 0x4F2DDBFC,
}
# The block that a quantizer makes of `golden_row`.
GOLDEN_PACKED = {
    "q4_0": "80b35f0ad5803cf7a35f1ad5803cf8b36f1a",
    "q8_0": "8f2397e4327fbc0a5794e12f7cb9065491de2b79b603508edb2875b3004d8bd82572",
}
GOLDEN_Q6_K_CRC = 0x37543203


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> F32Array:
    """Return normally distributed float32 numbers."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def tricky_rows(k: int) -> F32Array:
    """Return 96 rows of many scales, with ties, zeros, equal extremes, subnormals."""
    rng = np.random.default_rng(2)
    scale = 10.0 ** rng.integers(-6, 4, (96, 1))
    rows = (rng.standard_normal((96, k)) * scale).astype(np.float32)
    rows[0] = 0
    rows[1] = -0.0
    rows[2] = np.float32(0.25) * np.rint(rows[2])  # ties
    rows[3] = np.where(np.arange(k) % 2, 3.5, -3.5)
    rows[4, : k // 2] = 0
    rows[5] = 1e-30
    rows[6] = 6e4
    return rows


def qtype(fmt: str) -> gguf.GGMLQuantizationType:
    """Return the `gguf` package's name of a format."""
    return gguf.GGMLQuantizationType[fmt.upper()]


def sizes(fmt: str) -> tuple[int, int]:
    """Return weights and bytes of a block, as the `gguf` package has them."""
    if fmt in ROW_BITS:
        return 32, 4 * ROW_BITS[fmt]
    if fmt in BF16_STEPS:
        return 32, 18
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[qtype(fmt)]
    return int(block_len), int(block_bytes)


def gguf_dequantize(data: Bytes, fmt: str) -> F32Array:
    """Decode rows of bytes with the `gguf` package."""
    if fmt == "f32":
        return data.view("<f4")
    if fmt in ROW_BITS:
        return unpacked(data, ROW_BITS[fmt])
    if fmt in BF16_STEPS:
        blocks = data.reshape(-1, 18)
        step = widened_bf16(blocks[:, :2])
        with np.errstate(all="ignore"):
            weights = step * unpacked(blocks[:, 2:], 4)
        return weights.reshape(*data.shape[:-1], -1)
    with np.errstate(all="ignore"):
        out: F32Array = gguf.quants.dequantize(data, qtype(fmt))
    return out


def widened_bf16(data: Bytes) -> F32Array:
    """Pairs of bytes as the upper halves of float32 numbers."""
    bits = np.ascontiguousarray(data).view("<u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32)


def unpacked(data: Bytes, bits: int) -> F32Array:
    """Levels of `bits` bits, read as one number that runs through the row's bits."""
    if bits == 8:
        return data.view(np.int8).astype(np.float32)
    stream = np.unpackbits(data, axis=-1, bitorder="little")
    parts = stream.reshape(*data.shape[:-1], -1, bits)
    codes = (parts << np.arange(bits, dtype=np.uint8)).sum(axis=-1, dtype=np.int32)
    return (codes - (1 << (bits - 1))).astype(np.float32)


def extreme_rows(fmt: str, rows: int, blocks: int, seed: int) -> Bytes:
    """Return blocks of random bytes; their scales meet every extreme, in all pairs."""
    _, block_bytes = sizes(fmt)
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows * blocks, block_bytes), np.uint8)
    steps, minima = FIELDS.get(fmt, ([], []))
    for number, row in enumerate(data[: len(EXTREME_F16) ** 2]):
        first, second = divmod(number, len(EXTREME_F16))
        for at in steps:
            row[at : at + 2] = np.array([EXTREME_F16[first]], "<u2").view(np.uint8)
        for at in minima:
            row[at : at + 2] = np.array([EXTREME_F16[second]], "<u2").view(np.uint8)
    return data.reshape(rows, blocks * block_bytes)


def sane_rows(fmt: str, n: int, k: int, seed: int = 5) -> Bytes:
    """Return rows of random codes under ordinary scales."""
    block_len, block_bytes = sizes(fmt)
    if block_len == 1:
        return reference.quantize(normal(n, k, seed=seed), fmt).data
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (n * k // block_len, block_bytes), np.uint8)
    steps, minima = FIELDS.get(fmt, ([], []))
    for at in [*steps, *minima]:
        values = rng.uniform(-0.02, 0.02, len(data))
        half = values.astype("<f2")
        if fmt in BF16_STEPS:
            half = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
        data[:, at : at + 2] = half[:, None].view(np.uint8)
    return data.reshape(n, k // block_len * block_bytes)


def golden_block(fmt: str) -> Bytes:
    """Return the block whose byte p is 37 p + 11, with steps 0.5 and minima 0.25."""
    block = ((37 * np.arange(sizes(fmt)[1]) + 11) & 255).astype(np.uint8)
    steps, minima = FIELDS[fmt]
    for at in steps:
        block[at : at + 2] = [0x00, 0x38]
    for at in minima:
        block[at : at + 2] = [0x00, 0x34]
    return block


def golden_row(num: int) -> F32Array:
    """Return the row of weights that the recorded packed blocks are made of."""
    i = np.arange(num)
    return (((73 * i + 29) % 257 - 128) / 64).astype(np.float32)[None, :]


def assert_same_bits(got: F32Array, want: F32Array) -> None:
    """Demand equal bits, except that any NaN equals any NaN."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    real = ~np.isnan(want)
    np.testing.assert_array_equal(got[real].view(np.uint32), want[real].view(np.uint32))
