# tests/python/test_reference.py
# SPDX-License-Identifier: Apache-2.0
"""The slow NumPy operations against other implementations.

They are the oracle of the compiled ones, so nothing of ours checks them: block formats
meet the `gguf` package and recorded checksums, the rest meets float64 torch.
"""

from __future__ import annotations

import zlib
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from halfbyte import reference
from halfbyte.errors import ArgumentError, DTypeError, ShapeError
from numpy.typing import NDArray

# Where each format keeps its float16 fields: steps, then minima.
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
}

# float16 bits: zeros, smallest and largest subnormal, smallest normal, one, the largest,
# infinities, quiet and signalling NaN.
EXTREME_F16 = [
    0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x8400, 0x3C00, 0x7BFF, 0xFBFF,
    0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFDFF,
]  # fmt: skip


def qtype(fmt: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[fmt.upper()]


def sizes(fmt: str) -> tuple[int, int]:
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[qtype(fmt)]
    return int(block_len), int(block_bytes)


def assert_same_bits(got: NDArray[np.float32], want: NDArray[np.float32]) -> None:
    """Equal bit for bit, except that any NaN equals any NaN."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    real = ~np.isnan(want)
    np.testing.assert_array_equal(got[real].view(np.uint32), want[real].view(np.uint32))


def random_rows(fmt: str, rows: int, blocks: int, seed: int) -> NDArray[np.uint8]:
    """Blocks of random bytes whose scales include every extreme, in all pairs."""
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


def gguf_dequantize(data: NDArray[np.uint8], fmt: str) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        out: NDArray[np.float32] = gguf.quants.dequantize(data, qtype(fmt))
    return out


@pytest.mark.parametrize("fmt", reference.formats())
def test_decoders_equal_gguf(fmt: str) -> None:
    block_len, _ = sizes(fmt)
    blocks = 16 if block_len > 1 else 4096
    rows = 40
    data = random_rows(fmt, rows, blocks, seed=1)
    weight = reference.Weight(fmt, (rows, blocks * block_len), data)
    got = reference.dequantize(weight)
    # The F32 view of gguf needs its own type; its decoder is the identity.
    want = data.view("<f4") if fmt == "f32" else gguf_dequantize(data, fmt)
    assert_same_bits(got, want)
    picked = [rows - 1, 0, 0, 7]
    assert_same_bits(reference.dequantize(weight, rows=picked), want[picked])


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_every_16_bit_float_decodes(dtype: str) -> None:
    bits = np.arange(65536, dtype="<u2")
    weight = reference.Weight(dtype, (1, 65536), bits.view(np.uint8))
    kind = torch.float16 if dtype == "f16" else torch.bfloat16
    want = torch.from_numpy(bits.view(np.int16).copy()).view(kind).float().numpy()
    assert_same_bits(reference.dequantize(weight)[0], want)


# CRC-32 of the little-endian output of one block whose byte p is 37 p + 11 modulo 256,
# with steps of 0.5 and minima of 0.25.
GOLDEN_BLOCKS = {
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


def golden_block(fmt: str) -> NDArray[np.float32]:
    block_len, block_bytes = sizes(fmt)
    block = ((37 * np.arange(block_bytes) + 11) & 255).astype(np.uint8)
    steps, minima = FIELDS[fmt]
    for at in steps:
        block[at : at + 2] = [0x00, 0x38]
    for at in minima:
        block[at : at + 2] = [0x00, 0x34]
    return reference.dequantize(reference.Weight(fmt, (1, block_len), block))[0]


@pytest.mark.parametrize("fmt", GOLDEN_BLOCKS)
def test_decoders_reproduce_the_golden_checksums(fmt: str) -> None:
    values = golden_block(fmt)
    assert zlib.crc32(values.astype("<f4").tobytes()) == GOLDEN_BLOCKS[fmt]


def test_single_golden_values() -> None:
    q4_0 = golden_block("q4_0")
    assert q4_0[[0, 1, 2, 3, 16, 31]].tolist() == [-1.5, 1, 3.5, -2, -1.5, 0]
    assert golden_block("q4_k")[[0, 32, 255]].tolist() == [157.75, 4, 24.25]
    q6_k = golden_block("q6_k")
    assert q6_k[[0, 1, 64, 255]].tolist() == [-715.5, 848, -1520, -30]


def golden_row(num: int) -> NDArray[np.float32]:
    i = np.arange(num)
    return (((73 * i + 29) % 257 - 128) / 64).astype(np.float32)[None, :]


def test_quantizers_reproduce_the_golden_blocks() -> None:
    q4_0 = reference.quantize(golden_row(32), "q4_0")
    assert q4_0.data.tobytes().hex() == "80b35f0ad5803cf7a35f1ad5803cf8b36f1a"
    q8_0 = reference.quantize(golden_row(32), "q8_0")
    assert q8_0.data.tobytes().hex() == (
        "8f2397e4327fbc0a5794e12f7cb9065491de2b79b603508edb2875b3004d8bd82572"
    )
    q6_k = reference.quantize(golden_row(256), "q6_k")
    assert zlib.crc32(q6_k.data.tobytes()) == 0x37543203


def test_the_naive_quantizer_damages_a_lattice_as_recorded() -> None:
    levels = np.array(
        [7, -3, 2, 7, -4, 1, 6, -5, 0, 5, -6, -1, 4, -7, -2, 3,
         -7, -3, 2, 7, -4, 1, 6, -5, 0, 5, -6, -1, 4, -7, -2, 3]
    )  # fmt: skip
    exact = torch.from_numpy(levels * np.float32(0.0123)).to(torch.bfloat16)
    packed = reference.quantize(exact.float().numpy()[None, :], "q4_0")
    assert packed.data.tobytes().hex() == "80a1f0bb6600dd7711ee8822ff9933ffaa55"


def tricky_rows(block_len: int) -> NDArray[np.float32]:
    """Rows of several scales, with ties, zeros, equal extremes and subnormals."""
    rng = np.random.default_rng(2)
    k = max(block_len, 32) * 2
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


@pytest.mark.parametrize("fmt", ["f16", "bf16", "q4_0", "q8_0"])
def test_quantizers_equal_gguf(fmt: str) -> None:
    rows = tricky_rows(32)
    got = reference.quantize(rows, fmt)
    with np.errstate(all="ignore"):
        want = gguf.quants.quantize(rows, qtype(fmt))
    assert got.shape == rows.shape
    np.testing.assert_array_equal(got.data, want.view(np.uint8).reshape(got.data.shape))


def test_q6_k_is_close_and_never_worse_than_its_step() -> None:
    rows = tricky_rows(256)[:, :512]
    back = reference.dequantize(reference.quantize(rows, "q6_k"))
    groups = rows.reshape(-1, 16)
    extreme = np.abs(groups).max(axis=1, keepdims=True)
    # The search starts from steps of extreme / 32, and steps are 8-bit multiples of the
    # block's: half a step, and half of 1/128 of the block's largest step times 32 levels.
    block = np.abs(rows.reshape(-1, 256)).max(axis=1)
    largest = np.repeat(block, 16)[:, None]
    # float16 keeps the block's step to 2^-11, or to 2^-25 below its normal range.
    bound = extreme / 31 + largest / 32 / 128 / 2 * 32 * 1.1 + largest * 2**-11
    bound += 128 * 32 * 2.0**-25
    error = np.abs(back.reshape(-1, 16) - groups)
    assert (error <= bound).all()


def test_f32_keeps_every_bit() -> None:
    bits = np.random.default_rng(3).integers(0, 2**32, (3, 40), np.uint32)
    packed = reference.quantize(bits.view(np.float32), "f32")
    assert packed.data.tobytes() == bits.astype("<u4").tobytes()


# ---- operations against torch in float64, rounded once: half a unit of float32, plus
# what float64 itself loses, far below that.


def assert_rounded(got: NDArray[np.float32], want: torch.Tensor) -> None:
    exact = want.numpy()
    assert got.shape == exact.shape
    assert got.dtype == np.float32
    bound = np.abs(exact) * 2.0**-24 * (1 + 1e-6) + 2.0**-149
    assert (np.abs(got - exact) <= bound).all()


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def wide(x: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float64))


def test_rms_norm() -> None:
    x, w = normal(3, 4, 70, scale=3), normal(70, seed=1)
    eps = float(np.float32(1e-5))
    norm = torch.nn.functional.rms_norm
    assert_rounded(reference.rms_norm(x, eps=eps), norm(wide(x), (70,), None, eps))
    want = norm(wide(x), (70,), wide(w), eps)
    assert_rounded(reference.rms_norm(x, w, eps=eps), want)
    huge = np.full((1, 8), np.finfo(np.float32).max, np.float32)
    np.testing.assert_array_equal(reference.rms_norm(huge, eps=0), np.ones((1, 8)))
    np.testing.assert_array_equal(
        reference.rms_norm(np.zeros((2, 8), np.float32), eps=0), np.zeros((2, 8))
    )
    x[1, 2, 3] = np.inf
    bad = np.isnan(reference.rms_norm(x))
    assert bad[1, 2].all()
    assert bad.sum() == 70


def test_softmax() -> None:
    x = normal(5, 33, scale=20)
    assert_rounded(reference.softmax(x), torch.softmax(wide(x), -1))
    x[0] = -np.inf
    x[1, 4] = np.nan
    x[2, 5] = np.inf
    x[3, 6] = -np.inf
    y = reference.softmax(x)
    assert (y[0] == 0).all()
    assert np.isnan(y[1:3]).all()
    assert_rounded(y[3:], torch.softmax(wide(x[3:]), -1))


def test_gelu_mul() -> None:
    gate, up = normal(7, 50, scale=4), normal(7, 50, seed=1)
    exact = torch.nn.functional.gelu(wide(gate), approximate="tanh") * wide(up)
    # torch's own form cancels for negative gates: 1 + tanh(u) keeps 2^-53 of 1.
    got = reference.gelu_mul(gate, up)
    bound = np.abs(exact.numpy()) * 2.0**-24 + np.abs(gate * up) * 2.0**-52
    assert (np.abs(got - exact.numpy()) <= bound + 2.0**-149).all()
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)
    y = reference.gelu_mul(edges, np.ones(5, np.float32))
    assert y[0] == 0
    assert np.signbit(y[1])
    assert y[2] == np.inf
    assert np.isnan(y[3:]).all()


@pytest.mark.parametrize("rotary_dims", [None, 64, 16, 0])
def test_rope_is_a_complex_product(rotary_dims: int | None) -> None:
    x = normal(6, 3, 64)
    positions = np.array([0, 1, 5, 511, 100_000, 2**24])
    got = reference.rope(
        x, positions, freq_base=1e6, rotary_dims=rotary_dims, freq_scale=0.125
    )
    pairs = 32 if rotary_dims is None else rotary_dims // 2
    exponent = -2 * torch.arange(pairs, dtype=torch.float64) / 64
    angle = torch.from_numpy(positions)[:, None, None] * 0.125 * 1e6**exponent
    turn = torch.polar(torch.ones_like(angle), angle)
    z = torch.complex(wide(x)[..., :32], wide(x)[..., 32:])
    z[..., :pairs] = z[..., :pairs] * turn
    want = torch.cat([z.real, z.imag], -1).numpy()
    # Angles of either side are within 2^24 * 2^-52 of each other.
    size = np.abs(z.numpy())
    bound = np.concatenate([size, size], -1) * (2.0**-24 + 2.0**-26)
    assert (np.abs(got - want) <= bound).all()


@pytest.mark.parametrize("fmt", reference.formats())
def test_linear_in_f32_is_a_product_with_the_decoded_weights(fmt: str) -> None:
    block_len, _ = sizes(fmt)
    k = max(block_len, 8) * 2
    weight = sane_weight(fmt, 5, k)
    x, bias = normal(2, 3, k), normal(5, seed=4)
    got = reference.linear(x, weight, bias=bias, activations="f32")
    dense = wide(
        gguf_dequantize(weight.data, fmt) if block_len > 1 else dense_of(weight)
    )
    assert_rounded(got, wide(x) @ dense.T + wide(bias))


def dense_of(weight: reference.Weight) -> NDArray[np.float32]:
    n, k = weight.shape
    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    raw = torch.from_numpy(weight.data.reshape(-1).copy())
    dense: NDArray[np.float32] = raw.view(kind[weight.format]).float().numpy()
    return dense.reshape(n, k)


def sane_weight(fmt: str, n: int, k: int) -> reference.Weight:
    """Random codes with ordinary scales."""
    block_len, block_bytes = sizes(fmt)
    if block_len == 1:
        return reference.quantize(normal(n, k, seed=9), fmt)
    rng = np.random.default_rng(10)
    data = rng.integers(0, 256, (n * k // block_len, block_bytes), np.uint8)
    for at in [*FIELDS[fmt][0], *FIELDS[fmt][1]]:
        values = rng.uniform(0.01, 0.02, len(data)).astype("<f2")
        data[:, at : at + 2] = values[:, None].view(np.uint8)
    return reference.Weight(fmt, (n, k), data.reshape(n, -1))


def test_linear_rounds_activations_to_8_bits_in_blocks_of_32() -> None:
    weight = sane_weight("q4_0", 4, 64)
    x = normal(3, 64)
    x[0, :32] = 0
    x[2, :32] *= 1e4
    # The same rounding, written with exact fractions of the block's largest element.
    coded = np.zeros((3, 64))
    for row in range(3):
        for block in range(2):
            part = x[row, 32 * block : 32 * block + 32]
            d = np.float32(np.abs(part).max() / np.float32(127))
            if d > 0:
                coded[row, 32 * block : 32 * block + 32] = [
                    round(float(v / d)) * float(d) for v in part
                ]
    want = wide(coded) @ wide(gguf_dequantize(weight.data, "q4_0")).T
    assert_rounded(reference.linear(x, weight), want)
    exact = reference.linear(x, weight, activations="f32")
    assert (reference.linear(x, weight) != exact).any()


def test_linear_propagates_what_is_not_finite_to_its_row_alone() -> None:
    weight = sane_weight("q8_0", 4, 64)
    x = normal(3, 64)
    clean = reference.linear(x, weight)
    for bad in (np.nan, np.inf, -np.inf):
        x[1, 7] = bad
        y = reference.linear(x, weight)
        assert np.isnan(y[1]).all()
        np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])


def test_embedding_rows_are_rows() -> None:
    weight = sane_weight("q6_k", 9, 256)
    ids = np.array([[3, 0], [8, 3]])
    want = gguf_dequantize(weight.data, "q6_k")[ids]
    assert_same_bits(reference.embedding_rows(weight, ids), want)
    assert reference.embedding_rows(weight, []).shape == (0, 256)


def test_out_is_written_and_returned() -> None:
    x = normal(3, 32)
    for op in (reference.softmax, reference.rms_norm):
        out = np.empty_like(x)
        assert op(x, out=out) is out
        np.testing.assert_array_equal(out, op(x))
    with pytest.raises(ShapeError, match=r"out: expected shape \(3, 32\)"):
        reference.softmax(x, out=np.empty((3, 31), np.float32))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: reference.softmax(np.zeros(4)), DTypeError, "x: expected dtype"),
        (
            lambda: reference.softmax(np.zeros(4, ">f4")),
            DTypeError,
            "x: expected dtype",
        ),
        (
            lambda: reference.rms_norm(normal(2, 4), normal(5)),
            ShapeError,
            r"weight: expected shape \(4,\), got \(5,\)",
        ),
        (
            lambda: reference.rope(normal(2, 1, 5), [0, 1]),
            ShapeError,
            "x: expected shape",
        ),
        (
            lambda: reference.rope(normal(2, 1, 4), [0]),
            ShapeError,
            r"positions: expected shape \(2,\)",
        ),
        (
            lambda: reference.rope(normal(1, 1, 4), [0], rotary_dims=6),
            ArgumentError,
            "rotary_dims",
        ),
        (
            lambda: reference.gelu_mul(normal(4), normal(5)),
            ShapeError,
            r"up: expected shape \(4,\)",
        ),
        (
            lambda: reference.linear(normal(2, 33), sane_weight("q4_0", 1, 32)),
            ShapeError,
            r"x: expected shape \(..., 32\), got \(2, 33\)",
        ),
        (
            lambda: reference.quantize(normal(2, 33), "q4_0"),
            ShapeError,
            "x: expected K a multiple of 32",
        ),
        (lambda: reference.quantize(normal(1, 32), "q5_0"), ArgumentError, "q5_0"),
        (lambda: reference.quantize(normal(1, 32), "q9"), ArgumentError, "'q9'"),
        (
            lambda: reference.embedding_rows(sane_weight("q4_0", 2, 32), [2]),
            ArgumentError,
            "ids: expected 0 to 2",
        ),
    ],
)
def test_wrong_arguments_are_named(
    call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
