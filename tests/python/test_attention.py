# tests/python/test_attention.py
# SPDX-License-Identifier: Apache-2.0
"""`halfbyte.attention` against its slow twin, and the twin against float64 torch."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import halfbyte
import ml_dtypes
import numpy as np
import pytest
import torch
from halfbyte import reference
from halfbyte.errors import ArgumentError, DTypeError, ShapeError
from numpy.typing import NDArray
from samples import F32Array, assert_same_bits, normal

U = 2.0**-24
F64 = NDArray[np.float64]
every_target = pytest.mark.usefixtures("target")


class Shape(NamedTuple):
    """Sizes of one case."""

    batch: int
    heads: int
    kv_heads: int
    tokens: int
    kv_tokens: int
    head_dim: int


# Around vectors, tiles of 8 tokens, groups of heads; more queries than keys; the last
# three are the heads of Gemma 4.
SHAPES = [
    Shape(1, 1, 1, 1, 1, 1),
    Shape(1, 1, 1, 3, 3, 2),
    Shape(2, 6, 3, 5, 7, 5),
    Shape(1, 7, 1, 9, 17, 17),
    Shape(3, 4, 2, 17, 33, 33),
    Shape(2, 2, 2, 12, 5, 64),
    Shape(1, 8, 1, 2, 70, 256),
    Shape(1, 4, 2, 9, 40, 512),
    Shape(2, 8, 1, 1, 65, 512),
]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def drawn(shape: Shape) -> tuple[F32Array, F32Array, F32Array]:
    b, h, kv, t, s, d = shape
    kept = normal(b, kv, s, d, seed=2), normal(b, kv, s, d, seed=3)
    return normal(b, h, t, d, seed=1), *kept


def masks(shape: Shape) -> dict[str, dict[str, Any]]:
    """Every way to say what a query sees."""
    b, h, _, t, s, _ = shape
    rng = np.random.default_rng(7)
    one, own = rng.random((b, 1, t, s)) < 0.6, rng.random((b, h, t, s)) < 0.3
    padded = np.arange(s) >= np.arange(b)[:, None] * 2
    return {
        "all": {},
        "causal": {"causal": True},
        "window of 1": {"causal": True, "window": 1},
        "window of 4": {"causal": True, "window": 4},
        "mask": {"mask": one},
        "a mask a head": {"mask": own},
        "causal mask": {"mask": one, "causal": True, "window": 9},
        "padding": {"mask": padded[:, None, None, :], "causal": True},
        "one key": {"mask": np.arange(s) == s // 2},
        "nothing": {"mask": np.zeros((1, 1), bool)},
    }


def bound(q: F32Array, k: F32Array, v: F32Array, scale: float, seen: Any) -> F64:
    """How far float32 may be from the definition, shape of `q`.

    u = 2**-24, D = head_dim, L = keys that a query sees. To first order:

    * score j is off by e_j = (D + 2) u |scale| sum |q k_j|: products, sum, scale;
    * its weight is off by delta_j = e_j + e_max + u |s_j - max| + 4 u, relative:
      the maximum's error, the difference's rounding, exp within 2 ulp;
    * the sum of the weights by the mean of the deltas; the weighted sum of the values
      rounds L times, its division twice, and the reference once.

    5 % more is for the second order: deltas stay below 3e-2.
    """
    group = q.shape[1] // k.shape[1]
    wide_q, wide_k, wide_v = (x.astype(np.float64) for x in (q, k, v))
    wide_k, wide_v = wide_k.repeat(group, axis=1), wide_v.repeat(group, axis=1)
    rows = wide_k.swapaxes(2, 3)
    scores = np.where(seen, scale * (wide_q @ rows), -np.inf)
    error = (q.shape[3] + 2) * U * abs(scale) * (np.abs(wide_q) @ np.abs(rows))
    error = np.where(seen, error, 0)
    some = seen.any(axis=-1, keepdims=True)
    most = np.where(some, scores.max(axis=-1, keepdims=True), 0)
    depth = np.where(seen, most - scores, 0)
    delta = error + error.max(axis=-1, keepdims=True) + U * depth + 4 * U
    p = np.where(seen, np.exp(-depth), 0)
    p /= np.where(some, p.sum(axis=-1, keepdims=True), 1)
    length = seen.sum(axis=-1, keepdims=True)
    share = p * (delta + (p * delta).sum(axis=-1, keepdims=True) + (length + 4) * U)
    assert (delta < 3e-2).all()
    limit: F64 = 1.05 * share @ np.abs(wide_v) + 1e-37
    return limit


def check(shape: Shape, scale: float, **options: Any) -> None:
    q, k, v = drawn(shape)
    want = reference.attention(q, k, v, scale=scale, **options)
    got = halfbyte.attention(q, k, v, scale=scale, **options)
    assert got.dtype == np.float32
    full = (shape.batch, shape.heads, shape.tokens, shape.kv_tokens)
    visible = (options.get("mask"), full, options.get("causal", False))
    seen = reference._visible(*visible, options.get("window"))
    limit = bound(q, k, v, scale, seen)
    np.testing.assert_array_less(np.abs(got.astype(np.float64) - want), limit)
    np.testing.assert_array_equal(got[~seen.any(axis=-1)], 0)


@every_target
@each_shape
def test_it_is_the_definition(shape: Shape) -> None:
    for options in masks(shape).values():
        check(shape, 1.0, **options)
    check(shape, shape.head_dim**-0.5, causal=True)
    check(shape, -0.25)


@each_shape
def test_the_definition_is_torch_s(shape: Shape) -> None:
    q, k, v = drawn(shape)
    group = shape.heads // shape.kv_heads
    for name, options in masks(shape).items():
        full = (shape.batch, shape.heads, shape.tokens, shape.kv_tokens)
        age = np.arange(shape.tokens)[:, None] - np.arange(shape.kv_tokens)
        age += shape.kv_tokens - shape.tokens
        seen = np.broadcast_to(options.get("mask", True), full).copy()
        if options.get("causal"):
            seen &= (age >= 0) & (age < options.get("window", 1000))
        wide = (torch.from_numpy(x).double() for x in (q, k, v))
        tq, tk, tv = next(wide), *(x.repeat_interleave(group, 1) for x in wide)
        scores = (tq @ tk.mT * 0.25).masked_fill(~torch.from_numpy(seen), -torch.inf)
        want = (scores.softmax(-1).nan_to_num(0.0) @ tv).numpy()
        got = reference.attention(q, k, v, scale=0.25, **options)
        # Both in float64; the twin rounds to float32.
        np.testing.assert_allclose(got, want, rtol=1.01 * U, atol=1e-13, err_msg=name)


def test_the_scale_is_that_of_head_dim_unless_given() -> None:
    q, k, v = drawn(SHAPES[2])
    for module in (halfbyte, reference):
        want = module.attention(q, k, v, scale=5**-0.5)
        assert_same_bits(module.attention(q, k, v), want)


@every_target
def test_what_is_not_seen_does_not_matter() -> None:
    shape = Shape(2, 4, 2, 9, 30, 24)
    q, k, v = drawn(shape)
    hidden = np.zeros(30, bool)
    hidden[[0, 3, 4, 5, 17]] = True
    clean = halfbyte.attention(q, k, v, mask=~hidden)
    near = halfbyte.attention(q, k, v, causal=True, window=3)
    for x in (k, v):
        x[:, :, hidden] = np.nan
        assert_same_bits(halfbyte.attention(q, k, v, mask=~hidden), clean)
    k[:, :, :19] = np.inf  # the first query's window begins at key 19
    assert_same_bits(halfbyte.attention(q, k, v, causal=True, window=3), near)
    # The same queries over the keys that are left, wherever they lie.
    q, k, v = drawn(shape)
    few = halfbyte.attention(q, k[:, :, ~hidden], v[:, :, ~hidden])
    assert_same_bits(few, clean)


@every_target
def test_a_nan_reaches_those_who_see_it() -> None:
    q, k, v = drawn(Shape(1, 4, 2, 6, 6, 8))
    k[0, 1, 2, 3] = np.nan
    y = halfbyte.attention(q, k, v, causal=True)
    seen = np.zeros((1, 4, 6), bool)
    seen[0, 2:, 2:] = True
    np.testing.assert_array_equal(np.isnan(y).all(axis=-1), seen)
    np.testing.assert_array_equal(np.isnan(y).any(axis=-1), seen)


@each_shape
def test_threads_and_batches_change_no_bit(shape: Shape) -> None:
    q, k, v = drawn(shape)
    for name, options in masks(shape).items():
        with halfbyte.threads(1):
            want = halfbyte.attention(q, k, v, **options)
        for count in (2, 3, 11):
            with halfbyte.threads(count):
                assert_same_bits(halfbyte.attention(q, k, v, **options), want)
        if name == "causal":  # the last query alone, as when text is generated
            last = halfbyte.attention(q[:, :, -1:], k, v, causal=True)
            assert_same_bits(last, want[:, :, -1:])


def layouts(x: F32Array) -> dict[str, F32Array]:
    """Arrays of the same values that lie in other ways."""
    b, h, t, d = x.shape
    wide = np.full((b, h, 2 * t, d + 3), np.nan, np.float32)
    wide[:, :, ::2, 3:] = x
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = x.reshape(-1).view(np.uint8)
    return {
        "tokens before heads": x.swapaxes(1, 2).copy().swapaxes(1, 2),
        "every other row of longer ones": wide[:, :, ::2, 3:],
        "a cache with room": np.concatenate([x, x], axis=2)[:, :, :t],
        "elements spread": np.repeat(x, 2, axis=3)[..., ::2],
        "tokens backwards": x[:, :, ::-1].copy()[:, :, ::-1],
        "unaligned": raw[1:].view(np.float32).reshape(x.shape),
    }


@every_target
def test_every_layout_gives_the_same_bits() -> None:
    arrays = drawn(Shape(2, 6, 3, 5, 7, 10))
    want = halfbyte.attention(*arrays, causal=True)
    for at in range(3):
        for name, view in layouts(arrays[at]).items():
            np.testing.assert_array_equal(view, arrays[at], name)
            given = [*arrays[:at], view, *arrays[at + 1 :]]
            assert_same_bits(halfbyte.attention(*given, causal=True), want)
    q, k, _ = arrays
    same = np.broadcast_to(k[:, :1], k.shape)
    assert_same_bits(
        halfbyte.attention(q, same, same),
        halfbyte.attention(q, same.copy(), same.copy()),
    )


@every_target
def test_a_mask_may_lie_anyhow() -> None:
    shape = Shape(2, 6, 3, 5, 20, 10)
    arrays, mask = drawn(shape), np.random.default_rng(1).random((2, 6, 5, 20)) < 0.5
    want = halfbyte.attention(*arrays, mask=mask)
    for view in (
        np.asfortranarray(mask),
        np.repeat(mask, 2, axis=3)[..., ::2],
        mask[..., ::-1].copy()[..., ::-1],
        torch.from_numpy(mask),
    ):
        assert_same_bits(halfbyte.attention(*arrays, mask=view), want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats_are_what_they_stand_for(dtype: str) -> None:
    arrays = drawn(Shape(1, 4, 2, 3, 9, 16))
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    narrow = [x.astype(kind) for x in arrays]
    want = halfbyte.attention(*(x.astype(np.float32) for x in narrow))
    assert_same_bits(halfbyte.attention(*narrow), want)
    tensors = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in arrays]
    assert_same_bits(halfbyte.attention(*tensors), want)


def test_keys_and_values_are_not_copied() -> None:
    q, k, v = drawn(Shape(1, 2, 1, 1, 4000, 64))
    out = np.empty_like(q)
    turned = [x.swapaxes(1, 2).copy().swapaxes(1, 2) for x in (k, v)]
    mask = np.ones((1, 1, 1, 4000), bool)
    halfbyte.attention(q, *turned, mask=mask, out=out)
    tracemalloc.start()
    halfbyte.attention(q, *turned, mask=mask, out=out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < k.nbytes / 50


@pytest.mark.parametrize("axis", range(4))
def test_of_nothing(axis: int) -> None:
    shape = [2, 4, 3, 8]
    shape[axis] = 0
    y = halfbyte.attention(*(np.zeros(shape, np.float32) for _ in range(3)))
    assert y.shape == tuple(shape)
    q, none = normal(2, 4, 3, 8), np.zeros((2, 2, 0, 8), np.float32)
    for module in (halfbyte, reference):
        y = module.attention(q, none, none, causal=True)
        np.testing.assert_array_equal(y, np.zeros_like(q))


# ---- out


@every_target
def test_out_is_filled_and_returned_and_nothing_beside_it() -> None:
    arrays = drawn(Shape(2, 6, 3, 5, 7, 10))
    want = halfbyte.attention(*arrays)
    frame = np.full((4, 7, 8, 15), 7, np.float32)  # batch, tokens, heads, head_dim
    out = frame[1:3, 1:6, 2:, 3:13].swapaxes(1, 2)
    assert halfbyte.attention(*arrays, out=out) is out
    assert_same_bits(out.copy(), want)
    out[...] = 7
    np.testing.assert_array_equal(frame, 7)


def bad_outs(shape: tuple[int, ...]) -> dict[str, Any]:
    frozen = np.empty(shape, np.float32)
    frozen.flags.writeable = False
    few = np.empty(shape[2:], np.float32)
    raw = np.zeros(4 * few.size * shape[0] * shape[1] + 1, np.uint8)
    return {
        "another shape": np.empty((*shape[:3], shape[3] + 1), np.float32),
        "read-only": frozen,
        "heads on top of each other": np.lib.stride_tricks.as_strided(
            few, shape, (0, 0, *few.strides)
        ),
        "rows that overlap": np.lib.stride_tricks.as_strided(
            np.empty(1000, np.float32), shape, (480, 160, 4, 4)
        ),
        "elements spread": np.empty((*shape[:3], 2 * shape[3]), np.float32)[..., ::2],
        "unaligned": raw[1:].view(np.float32).reshape(shape),
    }


def test_an_out_that_does_not_fit_is_refused() -> None:
    arrays = drawn(Shape(2, 2, 1, 3, 4, 10))
    for out in bad_outs(arrays[0].shape).values():
        with pytest.raises(ShapeError, match="out"):
            halfbyte.attention(*arrays, out=out)
    with pytest.raises(DTypeError, match="out"):
        halfbyte.attention(*arrays, out=np.empty(arrays[0].shape))


@pytest.mark.parametrize("at", range(3))
def test_out_may_not_lie_over_an_input(at: int) -> None:
    x = normal(1, 2, 4, 8)
    arrays = [x.copy(), x.copy(), x.copy()]
    with pytest.raises(ShapeError, match=f"out: overlaps {'qkv'[at]}"):
        halfbyte.attention(*arrays, out=arrays[at])
    mask = arrays[at].view(np.bool_)[..., :4]
    with pytest.raises(ShapeError, match="out: overlaps mask"):
        halfbyte.attention(x, x, x, mask=mask, out=arrays[at])


# ---- what is refused


Call = Callable[[Any, F32Array, F32Array, F32Array], object]
WRONG: dict[str, tuple[type[Exception], str, Call]] = {
    "rank": (
        ShapeError,
        r"q: expected shape \(batch, heads, tokens, head_dim\)",
        lambda m, q, k, v: m.attention(q[0], k, v),
    ),
    "dtype": (DTypeError, "k: ", lambda m, q, k, v: m.attention(q, k.astype("f8"), v)),
    "batch": (
        ShapeError,
        "k: expected shape",
        lambda m, q, k, v: m.attention(q, k[:1], v),
    ),
    "head_dim": (
        ShapeError,
        "k: expected shape",
        lambda m, q, k, v: m.attention(q, k[..., :3], v[..., :3]),
    ),
    "v": (
        ShapeError,
        "v: expected shape",
        lambda m, q, k, v: m.attention(q, k, v[:, :, 1:]),
    ),
    "heads": (
        ShapeError,
        "k: 3 heads do not divide the 4 of q",
        lambda m, q, k, v: m.attention(
            q, *(np.concatenate([x, x[:, :1]], 1) for x in (k, v))
        ),
    ),
    "no heads": (
        ShapeError,
        "k: 0 heads",
        lambda m, q, k, v: m.attention(q, k[:, :0], v[:, :0]),
    ),
    "window": (
        ArgumentError,
        "window: ",
        lambda m, q, k, v: m.attention(q, k, v, causal=True, window=0),
    ),
    "window alone": (
        ArgumentError,
        "window: ",
        lambda m, q, k, v: m.attention(q, k, v, window=3),
    ),
    "mask dtype": (
        DTypeError,
        "mask: expected dtype bool, got float32",
        lambda m, q, k, v: m.attention(q, k, v, mask=np.zeros(7, np.float32)),
    ),
    "mask shape": (
        ShapeError,
        r"mask: expected what broadcasts to \(2, 4, 5, 7\), got shape \(6,\)",
        lambda m, q, k, v: m.attention(q, k, v, mask=np.zeros(6, bool)),
    ),
    "scale": (
        ArgumentError,
        "scale: expected a finite number",
        lambda m, q, k, v: m.attention(q, k, v, scale=float("nan")),
    ),
}


def test_a_scale_that_no_float32_holds() -> None:
    x = normal(1, 1, 2, 8)
    for scale in (1e39, -1e39):
        with pytest.raises(ArgumentError, match="scale: expected a finite number"):
            halfbyte.attention(x, x, x, scale=scale)


@pytest.mark.parametrize("module", [halfbyte, reference], ids=lambda m: m.__name__)
@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_named(what: str, module: Any) -> None:
    error, message, call = WRONG[what]
    with pytest.raises(error, match=message):
        call(module, *drawn(Shape(2, 4, 2, 5, 7, 6)))
