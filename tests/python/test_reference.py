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
from samples import (
    GOLDEN_CRC,
    GOLDEN_PACKED,
    GOLDEN_Q6_K_CRC,
    F32Array,
    assert_same_bits,
    extreme_rows,
    gguf_dequantize,
    golden_block,
    golden_row,
    normal,
    qtype,
    sane_rows,
    sizes,
    tricky_rows,
)


@pytest.mark.parametrize("fmt", reference.formats())
def test_decoders_equal_gguf(fmt: str) -> None:
    block_len, _ = sizes(fmt)
    blocks = 16 if block_len > 1 else 4096
    rows = 40
    data = extreme_rows(fmt, rows, blocks, seed=1)
    weight = reference.Weight(fmt, (rows, blocks * block_len), data)
    got = reference.dequantize(weight)
    want = gguf_dequantize(data, fmt)
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


def golden_weights(fmt: str) -> F32Array:
    block = golden_block(fmt)
    return reference.dequantize(reference.Weight(fmt, (1, sizes(fmt)[0]), block))[0]


@pytest.mark.parametrize("fmt", GOLDEN_CRC)
def test_decoders_reproduce_the_golden_checksums(fmt: str) -> None:
    values = golden_weights(fmt)
    assert zlib.crc32(values.astype("<f4").tobytes()) == GOLDEN_CRC[fmt]


def test_single_golden_values() -> None:
    q4_0 = golden_weights("q4_0")
    assert q4_0[[0, 1, 2, 3, 16, 31]].tolist() == [-1.5, 1, 3.5, -2, -1.5, 0]
    assert golden_weights("q4_k")[[0, 32, 255]].tolist() == [157.75, 4, 24.25]
    q6_k = golden_weights("q6_k")
    assert q6_k[[0, 1, 64, 255]].tolist() == [-715.5, 848, -1520, -30]


def test_quantizers_reproduce_the_golden_blocks() -> None:
    for fmt, packed in GOLDEN_PACKED.items():
        assert reference.quantize(golden_row(32), fmt).data.tobytes().hex() == packed
    q6_k = reference.quantize(golden_row(256), "q6_k")
    assert zlib.crc32(q6_k.data.tobytes()) == GOLDEN_Q6_K_CRC


def test_the_naive_quantizer_damages_a_lattice_as_recorded() -> None:
    levels = np.array(
        [7, -3, 2, 7, -4, 1, 6, -5, 0, 5, -6, -1, 4, -7, -2, 3,
         -7, -3, 2, 7, -4, 1, 6, -5, 0, 5, -6, -1, 4, -7, -2, 3]
    )  # fmt: skip
    exact = torch.from_numpy(levels * np.float32(0.0123)).to(torch.bfloat16)
    packed = reference.quantize(exact.float().numpy()[None, :], "q4_0")
    assert packed.data.tobytes().hex() == "80a1f0bb6600dd7711ee8822ff9933ffaa55"


@pytest.mark.parametrize("fmt", ["f16", "bf16", "q4_0", "q8_0"])
def test_quantizers_equal_gguf(fmt: str) -> None:
    rows = tricky_rows(64)
    got = reference.quantize(rows, fmt)
    if fmt == "q4_0":  # the package gives a block that begins with -0 a step of +0
        rows += np.float32(0)
    with np.errstate(all="ignore"):
        want = gguf.quants.quantize(rows, qtype(fmt))
    assert got.shape == rows.shape
    np.testing.assert_array_equal(got.data, want.view(np.uint8).reshape(got.data.shape))


def test_q6_k_is_close_and_never_worse_than_its_step() -> None:
    rows = tricky_rows(512)
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
    dense = wide(gguf_dequantize(weight.data, fmt))
    assert_rounded(got, wide(x) @ dense.T + wide(bias))


def sane_weight(fmt: str, n: int, k: int) -> reference.Weight:
    return reference.Weight(fmt, (n, k), sane_rows(fmt, n, k))


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
