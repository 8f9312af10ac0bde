# tests/python/test_row_scales.py
# SPDX-License-Identifier: Apache-2.0
"""Weights with one scale a row: w8, w4 and w2, and products from codes to codes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import halfbyte
import numpy as np
import pytest
from halfbyte import _core, reference
from halfbyte.errors import ArgumentError, DTypeError, ShapeError
from numpy.typing import NDArray
from samples import ROW_BITS, assert_same_bits, normal

FORMATS = list(ROW_BITS)
every_target = pytest.mark.usefixtures("target")


def codes(m: int, k: int, seed: int = 0) -> NDArray[np.int8]:
    """Return codes that reach both ends of their range."""
    x = np.random.default_rng(seed).integers(-128, 128, (m, k), np.int8)
    x[0, :2] = -128, 127
    return x


def packed(fmt: str, n: int = 37, k: int = 256) -> halfbyte.Weight:
    return halfbyte.quantize(normal(n, k, seed=3), fmt)


@every_target
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 7, 8, 9, 17])
def test_codes_to_codes_equal_the_definition(fmt: str, m: int) -> None:
    # The sum is an integer, and both round it once, multiply and divide in float32.
    w, x = packed(fmt), codes(m, 256)
    steps = {"x_step": 0.03, "y_step": 0.4}
    want = reference.linear_codes(x, w, **steps)
    assert len(np.unique(want)) > 8
    for weight in (w, w.repack()):
        for threads in (1, 2):
            with halfbyte.threads(threads):
                got = halfbyte.linear_codes(x, weight, **steps)
            np.testing.assert_array_equal(got, want)
    out = np.empty((m, 37), np.int8)
    assert halfbyte.linear_codes(x, w, out=out, **steps) is out
    wider = np.concatenate([x, x], axis=-1)  # its rows are taken where they lie
    same = halfbyte.linear_codes(wider[..., : x.shape[-1]], w, **steps)
    np.testing.assert_array_equal(same, out)
    np.testing.assert_array_equal(out, want)


@every_target
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    ("x_step", "y_step"), [(0, 0), (0.05, 0), (0, 0.1), (0.05, 0.1)]
)
def test_what_is_not_finite_stays_in_its_row(
    fmt: str, x_step: float, y_step: float
) -> None:
    """Steps that were trained clamp what is large, but make no number of what is none."""
    w = packed(fmt)
    core = _core.Weight(w.data, fmt, *w.shape, w.scales, None, x_step, y_step)
    x = normal(7, 256)
    clean = np.empty((7, 37), np.float32)
    core.linear(x, None, clean, "auto", 1)
    assert np.isfinite(clean).all()
    for bad in (np.nan, np.inf, -np.inf):
        x[3, 200] = bad
        y = np.empty_like(clean)
        core.linear(x, None, y, "auto", 1)
        assert not np.isfinite(y[3]).any()
        assert_same_bits(np.delete(y, 3, 0), np.delete(clean, 3, 0))


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_reference_is_the_sum_it_says(fmt: str) -> None:
    # Python's integers and fractions of two: nothing rounds but the last step.
    w, x = packed(fmt, 5, 64), codes(2, 64)
    w = halfbyte.Weight(w.data, fmt, (5, 64), np.float32([1, 2, 0.5, 0.25, 4]))
    levels = halfbyte.Weight(w.data, fmt, (5, 64)).dequantize()
    got = reference.linear_codes(x, w, x_step=0.5, y_step=64.0)
    for i in range(2):
        for j in range(5):
            total = sum(int(a) * int(b) for a, b in zip(x[i], levels[j], strict=True))
            exact = 0.5 * float(w.scales[j]) * total / 64
            assert got[i, j] == min(127, max(-128, round(exact)))


@every_target
@pytest.mark.parametrize("fmt", FORMATS)
def test_quantizing_equals_the_reference(fmt: str) -> None:
    x = normal(9, 96, seed=5) * np.float32(10.0) ** np.arange(-4, 5)[:, None]
    x = x.astype(np.float32)
    x[3] = 0
    got, want = halfbyte.quantize(x, fmt), reference.quantize(x, fmt)
    np.testing.assert_array_equal(got.data, want.data.reshape(-1))
    assert_same_bits(got.scales, want.scales)
    assert_same_bits(got.dequantize(), reference.dequantize(want))
    assert_same_bits(got.dequantize(rows=[8, 0]), reference.dequantize(want)[[8, 0]])
    # No weight is further from its level than half a step, but where w2 and w4 clip.
    step = got.scales[:, None]
    assert (np.abs(got.dequantize() - x) <= 0.5001 * step).all()


@pytest.mark.parametrize("fmt", FORMATS)
def test_scales_travel_with_the_weight(fmt: str) -> None:
    w = packed(fmt)
    for other in (w.repack(), pickle.loads(pickle.dumps(w))):
        assert_same_bits(other.scales, w.scales)
        assert_same_bits(other.dequantize(), w.dequantize())
    assert w.nbytes == w.data.size + 4 * 37
    assert not w.scales.flags.writeable
    ones = halfbyte.Weight(w.data, fmt, w.shape)
    assert_same_bits(ones.dequantize() * w.scales[:, None], w.dequantize())


def call(**changes: Any) -> Callable[[], Any]:
    arguments = {"x": codes(2, 256), "w": packed("w4"), "x_step": 1.0, "y_step": 1.0}
    arguments |= changes
    return lambda: halfbyte.linear_codes(**arguments)


@pytest.mark.parametrize(
    ("wrong", "error", "parts"),
    [
        (call(x=np.zeros((2, 256), np.uint8)), DTypeError, ["x", "int8", "uint8"]),
        (call(x=codes(2, 255)), ShapeError, ["x", "256", "255"]),
        (call(x_step=0.0), ArgumentError, ["x_step", "0.0"]),
        (call(y_step=float("nan")), ArgumentError, ["y_step", "nan"]),
        (call(y_step=float("inf")), ArgumentError, ["y_step", "inf"]),
        (call(out=np.zeros((2, 37), np.uint8)), DTypeError, ["out", "int8"]),
        (call(out=np.zeros((2, 36), np.int8)), ShapeError, ["out", "37"]),
        (call(w=halfbyte.quantize(normal(1, 256), "q4_0")), ArgumentError, ["q4_0"]),
        (
            lambda: halfbyte.Weight(packed("w8").data, "w8", (37, 256), np.ones(36)),
            DTypeError,
            ["scales", "float64"],
        ),
        (
            lambda: halfbyte.Weight(
                packed("w8").data, "w8", (37, 256), np.ones(36, np.float32)
            ),
            ShapeError,
            ["scales", "37", "36"],
        ),
        (
            lambda: halfbyte.Weight(
                np.zeros(18, np.uint8), "q4_0", (1, 32), np.ones(1, np.float32)
            ),
            ArgumentError,
            ["scales", "q4_0"],
        ),
    ],
)
def test_errors_name_the_argument(
    wrong: Callable[[], Any], error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        wrong()
    for part in parts:
        assert part in str(caught.value)


def test_an_output_may_not_lie_in_its_input() -> None:
    memory = codes(2, 256)
    with pytest.raises(ShapeError, match="overlaps"):
        halfbyte.linear_codes(
            memory, packed("w4", 256), x_step=1.0, y_step=1.0, out=memory
        )


def test_codes_that_are_not_ordinary_give_the_same() -> None:
    w, x = packed("w4", 37, 64), codes(4, 64)
    steps = {"x_step": 0.5, "y_step": 2.0}
    y = halfbyte.linear_codes(x, w, **steps)
    assert w._core.linear_codes_at_once(x, 0.5, 2.0, None, 1) is not None
    for same in (np.repeat(x, 2, axis=0)[::2], np.asfortranarray(x)):
        assert w._core.linear_codes_at_once(same, 0.5, 2.0, None, 1) is None
        np.testing.assert_array_equal(halfbyte.linear_codes(same, w, **steps), y)
