# tests/python/test_ops.py
# SPDX-License-Identifier: Apache-2.0
"""The compiled operations against their slow twins, on every target of this machine.

u = 2**-24 is the unit roundoff of float32. The references work in float64 and round
once, so each bound is that of the kernel plus u times the result.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import halfbyte
import ml_dtypes
import numpy as np
import pytest
import torch
from halfbyte import _core, reference
from halfbyte.errors import ArgumentError, DTypeError, ShapeError
from halfbyte.formats import format_info
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from samples import (
    FIELDS,
    Bytes,
    F32Array,
    assert_same_bits,
    extreme_rows,
    normal,
    sane_rows,
    sizes,
    tricky_rows,
)

U = 2.0**-24
TINY = 2.0**-149  # the smallest subnormal: what underflow costs
# Around every vector width of every target, and around unrolled loops.
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129, 257]

FORMATS = reference.formats()
every_target = pytest.mark.usefixtures("target")


def weight(data: Bytes, fmt: str, n: int, k: int) -> halfbyte.Weight:
    return halfbyte.Weight(data, fmt, (n, k))


def magnitude(data: Bytes, fmt: str, n: int, k: int) -> NDArray[np.float64]:
    """|step * code| + |minimum| of every weight: the terms that a kernel sums."""
    steps, minima = FIELDS.get(fmt, ([], []))
    total = np.zeros((n, k))
    for gone in [minima, steps] if minima else [[]]:
        blocks = data.reshape(-1, sizes(fmt)[1]).copy()
        for at in gone:
            blocks[:, at : at + 2] = 0
        part = reference.Weight(fmt, (n, k), blocks.reshape(n, -1))
        total += np.abs(reference.dequantize(part).astype(np.float64))
    return total


def gamma(n: float) -> float:
    return n * U / (1 - n * U)


def assert_close(got: F32Array, want: F32Array, bound: Any) -> None:
    assert isinstance(got, np.ndarray)
    assert got.dtype == np.float32
    assert got.shape == want.shape
    error = np.abs(got.astype(np.float64) - want.astype(np.float64))
    limit = np.broadcast_to(np.asarray(bound, np.float64), want.shape)
    np.testing.assert_array_less(error, limit + TINY / 2)


# ---- formats


def test_every_format_of_the_reference_is_there() -> None:
    assert set(FORMATS) <= set(halfbyte.formats())


@every_target
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("rows", [0, 1, 2, 17])
def test_dequantize(fmt: str, rows: int) -> None:
    blocks = 3 if sizes(fmt)[0] > 1 else 33
    data = extreme_rows(fmt, rows, blocks, seed=1)
    k = blocks * sizes(fmt)[0]
    w = weight(data, fmt, rows, k)
    want = reference.dequantize(reference.Weight(fmt, (rows, k), data))
    assert_same_bits(halfbyte.dequantize(w), want)
    assert_same_bits(w.dequantize(), want)
    picked = [rows - 1, 0, rows // 2] if rows else []
    assert_same_bits(w.dequantize(rows=picked), want[picked])
    out = np.empty((len(picked), k), np.float32)
    assert halfbyte.dequantize(w, rows=picked, out=out) is out
    assert_same_bits(out, want[picked])


@every_target
@pytest.mark.parametrize("fmt", [f for f in FORMATS if format_info(f).writable])
def test_quantize(fmt: str) -> None:
    x = tricky_rows(512)
    got, want = halfbyte.quantize(x, fmt), reference.quantize(x, fmt)
    assert got.format == fmt
    assert got.shape == x.shape
    assert got.data.tobytes() == want.data.tobytes()
    for name, view in views(x).items():
        again = halfbyte.quantize(view, fmt)
        assert again.data.tobytes() == got.data.tobytes(), name
    assert halfbyte.quantize(x[:0], fmt).shape == (0, 512)


# ---- linear


def check_linear(fmt: str, n: int, k: int, m: int) -> None:
    data = sane_rows(fmt, n, k)
    w, ref = weight(data, fmt, n, k), reference.Weight(fmt, (n, k), data)
    x, bias = normal(m, k, seed=7), normal(n, seed=8)
    size = np.abs(x).astype(np.float64) @ magnitude(data, fmt, n, k).T
    # K products and K - 1 sums in any order and grouping, scale products of a block, a
    # sum with the minimum and the bias: no term is rounded more than K + 8 times, and
    # the reference rounds the weights and the result once. An 8-bit code is off by half
    # a step, the largest x / 254, so the terms may be larger by as much.
    coded = size + np.abs(x).max() / 254 * magnitude(data, fmt, n, k).sum(axis=1)
    frame = np.full((m + 2, n + 5), 7, np.float32)
    out = frame[1 : m + 1, 3 : 3 + n]
    assert halfbyte.linear(x, w, bias=bias, out=out) is out
    assert_close(
        out,
        reference.linear(x, ref, bias=bias),
        gamma(k + 10) * (coded + np.abs(bias)),
    )
    out[...] = 7
    np.testing.assert_array_equal(frame, 7)  # nothing beside `out` was written
    assert_close(
        halfbyte.linear(x, w, activations="f32"),
        reference.linear(x, ref, activations="f32"),
        gamma(k + 4) * size,
    )


@every_target
@pytest.mark.parametrize("fmt", FORMATS)
def test_linear(fmt: str) -> None:
    block_len = sizes(fmt)[0]
    lengths = LENGTHS if block_len == 1 else [1, 2, 3, 5]
    for blocks in lengths:
        for m in (1, 2, 3, 5, 33):
            check_linear(fmt, 7, blocks * block_len, m)
    for n in (1, 2, 3, 4, 15, 16, 17, 33, 67):
        check_linear(fmt, n, 2 * max(block_len, 24), 3)


@every_target
@pytest.mark.parametrize("fmt", ["f32", "bf16", "q4_0", "q6_k"])
def test_linear_of_nothing(fmt: str) -> None:
    block_len = sizes(fmt)[0]
    w = weight(sane_rows(fmt, 5, 2 * block_len), fmt, 5, 2 * block_len)
    assert halfbyte.linear(np.zeros((0, 2 * block_len), np.float32), w).shape == (0, 5)
    empty = halfbyte.quantize(np.zeros((0, block_len), np.float32), fmt)
    assert halfbyte.linear(np.ones((3, block_len), np.float32), empty).shape == (3, 0)
    flat = halfbyte.quantize(np.zeros((4, 0), np.float32), fmt)
    bias = normal(4)
    y = halfbyte.linear(np.zeros((2, 0), np.float32), flat, bias=bias)
    assert_same_bits(y, np.stack([bias, bias]))


@every_target
def test_linear_keeps_leading_dimensions() -> None:
    w, x = weight(sane_rows("q8_0", 6, 64), "q8_0", 6, 64), normal(2, 3, 64)
    flat = halfbyte.linear(x.reshape(6, 64), w)
    assert_same_bits(halfbyte.linear(x, w), flat.reshape(2, 3, 6))
    assert halfbyte.linear(x[0, 0], w).shape == (6,)


@every_target
@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "q4_0", "q4_k", "q6_k", "q8_0"])
def test_what_is_not_finite_stays_in_its_row(fmt: str) -> None:
    k = 2 * max(sizes(fmt)[0], 32)
    data = sane_rows(fmt, 5, k)
    w = weight(data, fmt, 5, k)
    x = normal(7, k)
    clean = halfbyte.linear(x, w)
    for bad in (np.nan, np.inf, -np.inf):
        x[3, k - 2] = bad
        y = halfbyte.linear(x, w)
        assert not np.isfinite(y[3]).any()
        assert_same_bits(np.delete(y, 3, 0), np.delete(clean, 3, 0))


@pytest.mark.parametrize("fmt", ["f32", "bf16", "q4_0", "q4_k", "q6_k"])
def test_the_number_of_threads_changes_no_bit(fmt: str) -> None:
    k = 2 * max(sizes(fmt)[0], 128)
    w = weight(sane_rows(fmt, 700, k), fmt, 700, k)
    for m in (1, 3, 9):
        x = normal(m, k)
        with halfbyte.threads(1):
            want = halfbyte.linear(x, w)
        for count in (2, 3, 7):
            with halfbyte.threads(count):
                assert_same_bits(halfbyte.linear(x, w), want)


@every_target
@pytest.mark.parametrize("fmt", FORMATS)
def test_embedding_rows(fmt: str) -> None:
    k = 3 * sizes(fmt)[0]
    data = sane_rows(fmt, 9, k)
    w, ref = weight(data, fmt, 9, k), reference.Weight(fmt, (9, k), data)
    for ids in ([], [0], [8, 0, 8], np.array([[1, 2], [3, 4]])):
        assert_same_bits(
            halfbyte.embedding_rows(w, ids), reference.embedding_rows(ref, ids)
        )


@pytest.mark.parametrize("bad", [[9], [-1], [0, 2**40]])
def test_ids_outside_the_table_are_refused(bad: list[int]) -> None:
    w = weight(sane_rows("q8_0", 9, 32), "q8_0", 9, 32)
    with pytest.raises(ArgumentError, match="ids"):
        halfbyte.embedding_rows(w, bad)


# ---- operations over rows


@every_target
@pytest.mark.parametrize("k", LENGTHS)
def test_rms_norm(k: int) -> None:
    x, w = normal(3, k, scale=3), normal(k, seed=1)
    x[1] = 0
    x[2] *= 1e-3  # eps counts
    # Both sides work in float64 and round once: u each.
    for factor in (None, w):
        want = reference.rms_norm(x, factor)
        assert_close(halfbyte.rms_norm(x, factor), want, 2.01 * U * np.abs(want))
    want = reference.rms_norm(x, eps=0.0)
    assert_close(halfbyte.rms_norm(x, eps=0.0), want, 2.01 * U * np.abs(want))
    huge = np.full((1, k), 3e38, np.float32)
    np.testing.assert_array_equal(halfbyte.rms_norm(huge), np.ones((1, k)))


@every_target
@pytest.mark.parametrize("k", LENGTHS)
def test_softmax(k: int) -> None:
    for scale in (0.1, 5.0, 300.0):
        x = normal(3, k, scale=scale)
        want = reference.softmax(x)
        # exp is within 2 ulp = 4u and its argument rounds by u |x - max|, each term and
        # the sum alike; scale, product and the reference's rounding add 3u.
        depth = x.max(axis=-1, keepdims=True).astype(np.float64) - x
        mean = (want * depth).sum(axis=-1, keepdims=True)
        assert_close(
            halfbyte.softmax(x), want, want * (11.01 + depth + mean) * U + 2 * TINY
        )
    np.testing.assert_array_equal(
        halfbyte.softmax(np.full((2, k), -np.inf, np.float32)), np.zeros((2, k))
    )
    equal = halfbyte.softmax(np.full((1, k), 7.5, np.float32))
    np.testing.assert_array_equal(equal, np.float32(1) / np.float32(k))


@every_target
@pytest.mark.parametrize("k", LENGTHS)
def test_gelu_mul(k: int) -> None:
    gate, up = normal(3, k, scale=4), normal(3, k, seed=1)
    want = reference.gelu_mul(gate, up)
    # 2u has 5.5 roundings, which exp turns into 5.5 |2u| of them; exp itself 4, the sum,
    # the quotient, two products and the reference's rounding 5.
    wide = gate.astype(np.float64)
    twice_u = np.abs(1.5957691216 * (wide + 0.044715 * wide**3))
    bound = np.abs(want) * (9.01 + 5.51 * twice_u) * U
    bound += 2 * TINY * (1 + np.abs(gate)) * (1 + np.abs(up))
    assert_close(halfbyte.gelu_mul(gate, up), want, bound)


@every_target
@pytest.mark.parametrize("head_dim", [2, 4, 6, 8, 14, 16, 30, 32, 34, 64, 66, 256])
def test_rope(head_dim: int) -> None:
    x = normal(5, 3, head_dim)
    positions = np.array([0, 1, 17, 4096, 2**24])
    half = head_dim // 2
    size = np.abs(x[..., :half]) + np.abs(x[..., half:])
    # cos and sin are rounded to float32 (u/2 of at most 1, each), then two products and
    # a sum; the reference rounds once. Angles are exact to 2^-28 on both sides.
    bound = np.concatenate([size, size], -1) * 4.6 * U
    for dims in {None, head_dim, 2 * (half // 2), 2, 0}:
        options: dict[str, Any] = {"freq_base": 1e6, "rotary_dims": dims}
        assert_close(
            halfbyte.rope(x, positions, **options),
            reference.rope(x, positions, **options),
            bound,
        )
    options = {"freq_scale": 0.125}
    assert_close(
        halfbyte.rope(x, positions, **options),
        reference.rope(x, positions, **options),
        bound,
    )


# Operations of one array of rows, for what they have in common.
ROWWISE: dict[str, Callable[..., Any]] = {
    "rms_norm": halfbyte.rms_norm,
    "softmax": halfbyte.softmax,
    "gelu_mul": lambda x, **kw: halfbyte.gelu_mul(x, x, **kw),
    "rope": lambda x, **kw: _rope_rows(x, **kw),
    "linear": lambda x, **kw: halfbyte.linear(x, _identity(x.shape[-1]), **kw),
}
IN_PLACE = ["rms_norm", "softmax", "gelu_mul", "rope"]


def _rope_rows(x: Any, out: F32Array | None = None) -> Any:
    """Rows as heads of one position each."""
    shaped = out[:, None, :] if out is not None and out.ndim == 2 else out
    y = halfbyte.rope(x[:, None, :], np.arange(x.shape[0]), out=shaped)
    if out is None:
        return y[:, 0, :]
    assert y is shaped
    return out


def _identity(k: int) -> halfbyte.Weight:
    return halfbyte.quantize(np.eye(k, dtype=np.float32), "f32")


each_op = pytest.mark.parametrize("op", list(ROWWISE))


@every_target
@each_op
def test_no_rows(op: str) -> None:
    assert ROWWISE[op](np.zeros((0, 32), np.float32)).shape == (0, 32)


@every_target
@each_op
def test_a_row_does_not_depend_on_its_neighbours(op: str) -> None:
    x = normal(6, 34)
    whole = ROWWISE[op](x)
    if op == "rope":  # row i stands at position i
        assert_same_bits(whole[:4], ROWWISE[op](x[:4]))
        return
    for row in range(6):
        assert_same_bits(ROWWISE[op](x[row : row + 1])[0], whole[row])


def views(x: F32Array) -> dict[str, F32Array]:
    """Arrays of the same values in other layouts."""
    rows, k = x.shape
    wide = np.full((2 * rows, 2 * k + 9), np.nan, np.float32)
    wide[::2, 7 : 7 + k] = x
    spread = np.full((rows, 3 * k), np.nan, np.float32)
    spread[:, ::3] = x
    raw = bytearray(x.nbytes + 1)
    raw[1:] = x.tobytes()
    odd = np.frombuffer(raw, np.uint8, offset=1).view(np.float32).reshape(x.shape)
    gap = np.zeros((rows, 4 * k + 2), np.uint8)  # rows no whole number of floats apart
    gap[:, 2:] = x.view(np.uint8).reshape(rows, 4 * k)
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "unit inner stride": wide[::2, 7 : 7 + k],
        "inner stride of three": spread[:, ::3],
        "transposed": np.asfortranarray(x),
        "rows backwards": x[::-1].copy()[::-1],
        "elements backwards": np.ascontiguousarray(x[:, ::-1])[:, ::-1],
        "unaligned": odd,
        "rows unaligned": np.ndarray(x.shape, np.float32, gap, 2, (4 * k + 2, 4)),
        "read-only": frozen,
    }


@every_target
@each_op
@pytest.mark.parametrize("k", [2, 16, 34])
def test_every_layout_gives_the_same_bits(op: str, k: int) -> None:
    x = normal(5, k)
    want = ROWWISE[op](x)
    for name, view in views(x).items():
        np.testing.assert_array_equal(view, x, name)
        assert_same_bits(ROWWISE[op](view), want)
        np.testing.assert_array_equal(view, x, f"{name}: input changed")
    repeated = np.broadcast_to(x[:1], (5, k))
    assert_same_bits(ROWWISE[op](repeated), ROWWISE[op](repeated.copy()))


@each_op
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_slice_equals_its_copy(op: str, data: st.DataObject) -> None:
    base = normal(23, 150)
    rows = data.draw(st.slices(23))
    cols = data.draw(st.slices(150))
    view = base[rows, cols]
    if op == "rope":
        view = view[:, : view.shape[1] // 2 * 2]
    if view.shape[1] == 0:
        return
    assert_same_bits(ROWWISE[op](view), ROWWISE[op](view.copy()))


@pytest.mark.parametrize("op", IN_PLACE)
def test_rows_with_unit_inner_stride_are_not_copied(op: str) -> None:
    x = np.zeros((2000, 520), np.float32)[:, 3:515]
    out = np.empty(x.shape, np.float32)
    ROWWISE[op](x, out=out)
    tracemalloc.start()
    ROWWISE[op](x, out=out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes / 10


# ---- out


@every_target
@each_op
def test_out_is_filled_and_returned_and_nothing_beside_it(op: str) -> None:
    x = normal(5, 34)
    want = ROWWISE[op](x)
    for fill in (np.float32(7.0), np.float32(np.nan)):
        frame = np.full((7, 34 + 11), fill, np.float32)
        out = frame[1:6, 5:39]
        assert ROWWISE[op](x, out=out) is out
        assert_same_bits(out.copy(), want)
        frame[1:6, 5:39] = fill
        np.testing.assert_array_equal(frame, np.full_like(frame, fill))


@every_target
@pytest.mark.parametrize("op", IN_PLACE)
def test_out_may_be_the_input(op: str) -> None:
    x = normal(5, 34)
    want = ROWWISE[op](x)
    assert ROWWISE[op](x, out=x) is x
    assert_same_bits(x, want)


@every_target
def test_gelu_mul_may_overwrite_either() -> None:
    gate, up = normal(5, 34), normal(5, 34, seed=1)
    want = halfbyte.gelu_mul(gate, up)
    other = up.copy()
    assert_same_bits(halfbyte.gelu_mul(gate, other, out=other), want)
    assert_same_bits(halfbyte.gelu_mul(gate, up, out=gate), want)


def test_out_may_be_other_columns_of_the_same_rows() -> None:
    both = normal(5, 68)
    gate, up = both[:, :34], both[:, 34:]
    want = halfbyte.gelu_mul(gate.copy(), up.copy())
    assert_same_bits(halfbyte.gelu_mul(gate, up, out=up), want)
    with pytest.raises(ShapeError, match="out: overlaps x"):
        halfbyte.softmax(both[:, :34], out=both[:, 33:67])
    with pytest.raises(ShapeError, match="out: overlaps x"):
        halfbyte.softmax(both[:4, 34:], out=both[1:].reshape(-1)[:136].reshape(4, 34))


@every_target
def test_linear_and_embedding_rows_write_out() -> None:
    w = weight(sane_rows("q4_0", 6, 64), "q4_0", 6, 64)
    x = normal(3, 64)
    out = np.empty((3, 6), np.float32)
    assert halfbyte.linear(x, w, out=out) is out
    assert_same_bits(out, halfbyte.linear(x, w))
    rows = np.empty((2, 64), np.float32)
    assert halfbyte.embedding_rows(w, [5, 1], out=rows) is rows
    assert_same_bits(rows, halfbyte.embedding_rows(w, [5, 1]))


def bad_outs(x: F32Array) -> dict[str, Any]:
    rows, k = x.shape
    frozen = np.empty_like(x)
    frozen.flags.writeable = False
    raw = np.zeros(x.nbytes + 1, np.uint8)
    return {
        "one column short": np.empty((rows, k - 1), np.float32),
        "one row more": np.empty((rows + 1, k), np.float32),
        "one dimension": np.empty(rows * k, np.float32),
        "read-only": frozen,
        "rows on top of each other": np.lib.stride_tricks.as_strided(
            np.empty(k, np.float32), (rows, k), (0, 4)
        ),
        "spread elements": np.empty((rows, 2 * k), np.float32)[:, ::2],
        "unaligned": raw[1:].view(np.float32).reshape(rows, k),
    }


@each_op
def test_an_out_that_does_not_fit_is_refused_and_left_alone(op: str) -> None:
    x = normal(4, 34)
    for out in bad_outs(x).values():
        before = np.ascontiguousarray(out).tobytes()
        with pytest.raises(ShapeError, match="out"):
            ROWWISE[op](x, out=out)
        assert np.ascontiguousarray(out).tobytes() == before


@each_op
@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", ">f4"])
def test_out_of_another_type_is_refused(op: str, dtype: str) -> None:
    x = normal(4, 34)
    with pytest.raises(DTypeError, match="out"):
        ROWWISE[op](x, out=np.empty(x.shape, dtype))


@each_op
def test_out_may_not_lie_half_over_the_input(op: str) -> None:
    memory = normal(6, 34)
    with pytest.raises(ShapeError, match="out"):
        ROWWISE[op](memory[:4], out=memory[1:5])
    flat = normal(200)
    with pytest.raises(ShapeError, match="out"):
        ROWWISE[op](flat[:136].reshape(4, 34), out=flat[1:137].reshape(4, 34))


def one_more_row(x: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(x, 2, axis=0)[::2]


# Each is the same numbers as an array that the core does not take at once.
DETOURS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "rows apart": one_more_row,
    "subclass": lambda x: x.view(np.recarray),
    "other byte order": lambda x: x.astype(">f4").view(">f4"),
    "unaligned": lambda x: np.frombuffer(
        b"?" + x.tobytes(), np.float32, offset=1
    ).reshape(x.shape),
    "list": lambda x: x.tolist(),
}


@every_target
@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 3, 64)])
def test_what_the_core_takes_at_once_is_what_it_says(shape: tuple[int, ...]) -> None:
    w = weight(sane_rows("q4_0", 33, 64), "q4_0", 33, 64)
    x = normal(6, 64).reshape(-1)[: math.prod(shape)].reshape(shape)
    y = w._core.linear_at_once(x, None, 2)
    assert y is not None
    assert y.shape == (*shape[:-1], 33)
    want = halfbyte.linear(x, w, bias=np.zeros(33, np.float32))
    np.testing.assert_array_equal(y, want)
    out = np.empty_like(y)
    assert w._core.linear_at_once(x, out, 1) is out
    assert_same_bits(out, y)


@pytest.mark.parametrize("detour", DETOURS)
def test_what_is_not_ordinary_is_left_to_the_long_way(detour: str) -> None:
    w, x = q4(3, 32), normal(2, 32)
    assert w._core.linear_at_once(DETOURS[detour](x), None, 1) is None
    frozen = np.empty((2, 3), np.float32)
    frozen.flags.writeable = False
    memory = normal(2, 32)
    for out in (
        frozen,
        np.empty((2, 4), np.float32),
        np.empty((3, 3), np.float32),
        np.empty((1, 2, 3), np.float32),
        np.empty((2, 3), np.int32),
        np.empty((3, 2), np.float32).T,
        memory.reshape(-1)[58:].reshape(2, 3),  # the end of x
    ):
        assert w._core.linear_at_once(memory, out, 1) is None


@pytest.mark.parametrize("name", ["x", "weight", "out"])
def test_the_core_reads_no_float_between_two_addresses(name: str) -> None:
    arrays = {"x": normal(2, 32), "weight": normal(32), "out": normal(2, 32)}
    odd = np.frombuffer(bytearray(257), np.float32, offset=1)
    arrays[name] = odd[: arrays[name].size].reshape(arrays[name].shape)
    with pytest.raises(
        ShapeError, match=f"^{name}: expected elements aligned to 4 bytes;"
    ):
        _core.rms_norm(**arrays, eps=1e-6, threads=1)


@every_target
def test_out_may_not_lie_over_a_vector() -> None:
    w = weight(sane_rows("q4_0", 32, 32), "q4_0", 32, 32)
    for vector in (normal(32), normal(40)[3:35]):
        with pytest.raises(ShapeError, match="out: overlaps bias"):
            halfbyte.linear(normal(1, 32), w, bias=vector, out=vector[None, :])
        with pytest.raises(ShapeError, match="out: overlaps weight"):
            halfbyte.rms_norm(normal(1, 32), vector, out=vector[None, :])


@pytest.mark.parametrize("fmt", ["f32", "w8"])
def test_out_may_not_lie_over_the_weight(fmt: str) -> None:
    # Others may be reading it.
    data = normal(32, 32).view(np.uint8)
    n = data.size // 32 // (4 if fmt == "f32" else 1)
    scales = np.ones(n, np.float32) if fmt == "w8" else None
    w, x, before = (
        halfbyte.Weight(data, fmt, (n, 32), scales=scales),
        normal(1, 32),
        data.copy(),
    )
    floats = data.view(np.float32)
    for call in (
        lambda: halfbyte.linear(x, w, out=floats.reshape(-1)[:n][None]),
        lambda: halfbyte.embedding_rows(w, [1], out=floats[:1]),
    ):
        with pytest.raises(ShapeError, match="out: overlaps w in memory"):
            call()
    np.testing.assert_array_equal(data, before)


def test_nor_may_codes() -> None:
    data = normal(32, 8).view(np.int8)
    w = halfbyte.Weight(data.view(np.uint8), "w8", (32, 32))
    codes = np.zeros((1, 32), np.int8)
    with pytest.raises(ShapeError, match="out: overlaps w in memory"):
        halfbyte.linear_codes(codes, w, x_step=1.0, y_step=1.0, out=data[:1])


def test_a_row_beyond_what_an_id_can_name() -> None:
    # The memory is never touched.
    n = 2**31 + 64
    w = halfbyte.Weight(np.zeros(2 * n, np.uint8), "f16", (n, 1))
    with pytest.raises(ShapeError, match="more rows than a 32-bit id can name"):
        halfbyte.embedding_rows(w, [2**31 + 3])


@every_target
def test_vectors_of_any_layout() -> None:
    w = weight(sane_rows("q4_0", 32, 32), "q4_0", 32, 32)
    x, vector = normal(3, 32), normal(1, 32, seed=1)
    y, normed = halfbyte.linear(x, w, bias=vector[0]), halfbyte.rms_norm(x, vector[0])
    for name, view in views(vector).items():
        np.testing.assert_array_equal(view, vector, name)
        assert_same_bits(halfbyte.linear(x, w, bias=view[0]), y)
        assert_same_bits(halfbyte.rms_norm(x, view[0]), normed)


# ---- element types


@every_target
@each_op
def test_16_bit_floats_are_widened(op: str) -> None:
    x = normal(5, 34)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        narrow = x.astype(dtype)
        got = ROWWISE[op](narrow)
        assert_same_bits(got, ROWWISE[op](narrow.astype(np.float32)))
        assert_same_bits(ROWWISE[op](narrow[:, :]), got)
        spread = np.zeros((5, 68), dtype)
        spread[:, ::2] = narrow
        assert_same_bits(ROWWISE[op](spread[:, ::2]), got)


@every_target
@each_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors_come_through_dlpack(op: str, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(normal(5, 34)).to(dtype)
    got = ROWWISE[op](tensor)
    assert_same_bits(np.asarray(got), ROWWISE[op](tensor.float().numpy()))
    columns = torch.from_numpy(normal(34, 5)).to(dtype).T
    want = ROWWISE[op](columns.float().numpy())
    assert_same_bits(np.asarray(ROWWISE[op](columns)), want)


def test_the_lazy_sign_of_a_torch_tensor_is_seen() -> None:
    x = torch.randn(2, 32, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    w = halfbyte.quantize(np.eye(32, dtype=np.float32), "q8_0")
    np.testing.assert_array_equal(
        halfbyte.linear(x, w), halfbyte.linear(x.clone().numpy(), w)
    )


@every_target
def test_torch_weights_and_positions() -> None:
    x, w = normal(3, 2, 32), normal(32, seed=1)
    got = halfbyte.rms_norm(x, torch.from_numpy(w).bfloat16())
    assert_same_bits(
        got, halfbyte.rms_norm(x, torch.from_numpy(w).bfloat16().float().numpy())
    )
    positions = torch.tensor([4, 0, 9])
    assert_same_bits(halfbyte.rope(x, positions), halfbyte.rope(x, positions.numpy()))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 4, requires_grad=True),
        torch.zeros(2, 4, device="meta"),
        torch.zeros(2, 4).to_sparse(),
        torch.zeros(2, 4, dtype=torch.float64),
        torch.zeros(2, 4, dtype=torch.complex64).conj(),
    ],
    ids=["requires grad", "meta", "sparse", "float64", "conjugate"],
)
def test_torch_tensors_that_cannot_be_read_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(DTypeError, match=r"^x: "):
        halfbyte.softmax(tensor)


WRONG_TYPES = [
    np.zeros((2, 32), np.float64),
    np.zeros((2, 32), np.int64),
    np.zeros((2, 32), bool),
    np.zeros((2, 32), np.complex64),
    np.zeros((2, 32), object),
    np.zeros((2, 32), "S4"),
    np.zeros((2, 32), "datetime64[s]"),
    np.zeros((2, 32), [("a", "f4")]),
    np.zeros((2, 32), ">f4"),
    np.ma.masked_array(np.zeros((2, 32), np.float32), mask=True),
]


@each_op
@pytest.mark.parametrize(
    "x", WRONG_TYPES, ids=lambda x: f"{type(x).__name__}-{x.dtype}"
)
def test_another_element_type_is_refused(op: str, x: NDArray[Any]) -> None:
    with pytest.raises(DTypeError, match=r"^(x|gate): expected"):
        ROWWISE[op](x)


def test_no_mask_is_lost() -> None:
    def masked(x: NDArray[Any]) -> Any:
        return np.ma.masked_array(x, mask=True)

    w, codes = weight(sane_rows("w4", 4, 32), "w4", 4, 32), np.ones((2, 32), np.int8)
    steps = {"x_step": 1.0, "y_step": 1.0}
    calls = {
        "x": lambda: halfbyte.linear_codes(masked(codes), w, **steps),
        "ids": lambda: halfbyte.embedding_rows(w, masked(np.array([0]))),
        "out": lambda: halfbyte.linear(
            np.ones((2, 32), np.float32), w, out=masked(np.ones((2, 4), np.float32))
        ),
    }
    for name, call in calls.items():
        with pytest.raises(DTypeError, match=f"^{name}: expected an array without"):
            call()
    out = masked(np.ones((2, 4), np.int8))
    with pytest.raises(DTypeError, match=r"^out: expected an array without mask"):
        halfbyte.linear_codes(codes, w, out=out, **steps)


@pytest.mark.parametrize("kind", [torch.float64, torch.int32])
def test_a_tensor_of_another_type_is_named(kind: torch.dtype) -> None:
    name = str(kind).removeprefix("torch.")
    with pytest.raises(DTypeError, match=rf"^x: expected float32, .*, got {name}$"):
        halfbyte.softmax(torch.ones(2, 32, dtype=kind))


def q4(n: int, k: int) -> halfbyte.Weight:
    return weight(sane_rows("q4_0", n, k), "q4_0", n, k)


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (
            lambda: halfbyte.softmax(np.zeros(4)),
            DTypeError,
            ["x", "float32", "float64"],
        ),
        (
            lambda: halfbyte.linear(normal(2, 33), q4(1, 32)),
            ShapeError,
            ["x", "32", "33"],
        ),
        (
            lambda: halfbyte.linear(normal(2, 32), q4(3, 32), bias=normal(4)),
            ShapeError,
            ["bias", "3", "4"],
        ),
        (
            lambda: halfbyte.linear(normal(2, 32), q4(3, 32), bias=np.zeros(3)),
            DTypeError,
            ["bias", "float32", "float64"],
        ),
        (
            lambda: halfbyte.linear(normal(2, 32), q4(3, 32), activations="f64"),
            ArgumentError,
            ["activations", "f64"],
        ),
        (
            lambda: halfbyte.rms_norm(normal(2, 4), normal(5)),
            ShapeError,
            ["weight", "4", "5"],
        ),
        (
            lambda: halfbyte.gelu_mul(normal(2, 4), normal(2, 5)),
            ShapeError,
            ["up", "4", "5"],
        ),
        (lambda: halfbyte.rope(normal(2, 4), [0, 1]), ShapeError, ["x", "(2, 4)"]),
        (lambda: halfbyte.rope(normal(2, 1, 5), [0, 1]), ShapeError, ["x", "5"]),
        (
            lambda: halfbyte.rope(normal(2, 1, 4), [0]),
            ShapeError,
            ["positions", "2", "1"],
        ),
        (
            lambda: halfbyte.rope(normal(1, 1, 4), [-1]),
            ArgumentError,
            ["positions", "-1"],
        ),
        (
            lambda: halfbyte.rope(normal(1, 1, 4), [0.5]),
            DTypeError,
            ["positions", "float64"],
        ),
        (
            lambda: halfbyte.rope(normal(1, 1, 4), [0], rotary_dims=6),
            ArgumentError,
            ["rotary_dims", "4", "6"],
        ),
        (
            lambda: halfbyte.quantize(normal(2, 33), "q4_0"),
            ShapeError,
            ["x", "32", "33"],
        ),
        (lambda: halfbyte.quantize(normal(32), "q4_0"), ShapeError, ["x", "(32,)"]),
        (lambda: halfbyte.quantize(normal(1, 32), "q5_0"), ArgumentError, ["q5_0"]),
        (lambda: halfbyte.quantize(normal(1, 32), "q9"), ArgumentError, ["q9", "q4_0"]),
        (
            lambda: halfbyte.embedding_rows(q4(2, 32), [0.5]),
            DTypeError,
            ["ids", "float64"],
        ),
        (
            lambda: weight(np.zeros(17, np.uint8), "q4_0", 1, 32),
            ShapeError,
            ["18", "17"],
        ),
        (
            lambda: weight(np.zeros(18, np.uint8), "q4_0", 1, 33),
            ShapeError,
            ["32", "33"],
        ),
    ],
)
def test_errors_name_the_argument_what_came_and_what_was_wanted(
    call: Callable[[], Any], error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("positions", [[5], [1, 2, 3]])
def test_the_core_turns_nothing_by_other_positions(positions: list[int]) -> None:
    x, out = normal(2, 8), np.full((2, 8), 7, np.float32)
    at = np.array(positions)
    with pytest.raises(ShapeError, match="positions: expected one a row"):
        _core.rope(x, 1, at, 4, 1e4, 1.0, out, 1)
    assert (out == 7).all()


def test_the_core_writes_no_codes_over_their_steps() -> None:
    memory = np.zeros(64, np.uint8)
    codes = memory.view(np.int8).reshape(1, 1, 2, 32)
    steps = memory[:8].view(np.float32).reshape(1, 1, 2, 1)
    with pytest.raises(ShapeError, match="codes"):
        _core.encode_i8(normal(1, 1, 2, 32), False, 0.0, codes, steps, 1)
    assert not memory.any()


def test_the_core_checks_sizes_before_it_uses_them() -> None:
    # The functions above never ask this; whoever calls the core by itself may.
    x, nothing = np.zeros((1, 8), np.float32), np.zeros(0, np.uint8)
    with pytest.raises(ShapeError, match="w: expected 1 rows of 4611686018427387904"):
        _core.Weight(nothing, "f32", 1, 2**62, None, None, 0.0, 0.0)
    for pairs in 5, 2**60:
        with pytest.raises(ShapeError, match="rope: too many pairs"):
            _core.rope(x, 1, np.zeros(1, np.int64), pairs, 1e4, 1.0, x.copy(), 1)
    _core.rope(x, 1, np.zeros(1, np.int64), 0, 1e4, 1.0, x.copy(), 1)
