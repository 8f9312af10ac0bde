# tests/python/test_kv.py
# SPDX-License-Identifier: Apache-2.0
"""Keys and values in 8 bits: codes against their slow twin, and attention over them."""

from __future__ import annotations

import copy
from typing import Any

import halfbyte
import numpy as np
import pytest
from halfbyte import KvCodes, dequantize_kv, quantize_kv, reference
from halfbyte.errors import ArgumentError, DTypeError, ShapeError
from samples import F32Array, assert_same_bits, normal

U = 2.0**-24
every_target = pytest.mark.usefixtures("target")

# Heads of Gemma 4, of other models, and lengths around vectors; 7 and 1 cannot turn.
HEAD_DIMS = [1, 2, 6, 7, 16, 40, 64, 80, 96, 128, 256, 512, 1024]
OPTIONS: dict[str, dict[str, Any]] = {
    "rotated": {},
    "plain": {"rotate": False},
    "trained": {"step": 0.05},
    "trained and rotated": {"step": 0.05, "rotate": True},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def odd_rows(head_dim: int) -> F32Array:
    """Rows of all sizes, and some that have no step."""
    x = normal(2, 3, 11, head_dim, seed=4)
    x *= np.float32(10.0) ** np.arange(-5, 6, dtype=np.float32)[:, None]
    x[0, 0, 0] = 0
    x[0, 1, 1] = 1e-42
    x[0, 2, 2, -1] = np.inf
    x[1, 0, 3, 0] = np.nan
    x[1, 1, 4, 0] *= 1000
    return x


@every_target
@each_option
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_codes_and_steps_are_those_of_the_twin(
    head_dim: int, options: dict[str, Any]
) -> None:
    x = odd_rows(head_dim)
    got, want = quantize_kv(x, **options), reference.quantize_kv(x, **options)
    assert got.rotated == want.rotated
    assert_same_bits(got.steps, want.steps)
    assert np.array_equal(got.codes, want.codes)
    assert_same_bits(dequantize_kv(got), reference.dequantize_kv(got))


@pytest.mark.parametrize("head_dim", [2, 64, 80, 512])
def test_rows_come_back_within_half_a_step(head_dim: int) -> None:
    """In the turned row, where the error is: its length is the same in the row itself.

    log2(size) sums round on the way there and back, and the scale twice.
    """
    x = normal(1, 2, 50, head_dim, seed=5)
    kept = quantize_kv(x)
    off = np.linalg.norm(dequantize_kv(kept).astype(float) - x, axis=-1)
    longest = np.linalg.norm(x, axis=-1) * head_dim**0.5
    assert (off <= kept.steps / 2 * head_dim**0.5 + 40 * U * longest).all()


def test_a_few_large_elements_do_not_set_the_step_for_all() -> None:
    """What `kv_cache.md` of other libraries measures: channels that are 8 times larger."""
    x = normal(1, 4, 200, 256, seed=6)
    x[..., [3, 50, 111, 200]] *= 8
    rms = {
        rotate: np.sqrt(
            np.square(dequantize_kv(quantize_kv(x, rotate=rotate)) - x).sum()
            / np.square(x).sum()
        )
        for rotate in (False, True)
    }
    # Half a step is uniform noise: step / sqrt(12) with a step of max / 127. A turned
    # row is normal, whose largest of 256 is below 4 deviations nearly always.
    assert rms[True] < 4 / 127 / 12**0.5
    assert rms[False] > 1.5 * rms[True]


def kept_and_whole(
    options: dict[str, Any], head_dim: int = 64, tokens: int = 70
) -> tuple[F32Array, KvCodes, KvCodes]:
    q = normal(2, 4, 9, head_dim, seed=1)
    k = quantize_kv(normal(2, 2, tokens, head_dim, seed=2), **options)
    v = quantize_kv(normal(2, 2, tokens, head_dim, seed=3), **options)
    return q, k, v


@every_target
@each_option
@pytest.mark.parametrize("head_dim", [2, 7, 64, 80, 256, 512])
@pytest.mark.parametrize(
    "seen", [{}, {"causal": True}, {"causal": True, "window": 4}], ids=str
)
def test_attention_is_that_of_the_decoded_rows(
    head_dim: int, seen: dict[str, Any], options: dict[str, Any]
) -> None:
    """The scores are of turned queries and keys: each transform rounds log2(size) + 2
    times what is at most sqrt(size) times a row's largest element."""
    q, k, v = kept_and_whole(options, head_dim)
    got = halfbyte.attention(q, k, v, scale=0.1, **seen)
    want = reference.attention(q, k, v, scale=0.1, **seen)
    longest = (
        0.1
        * np.linalg.norm(q, axis=-1).max()
        * np.linalg.norm(dequantize_kv(k), axis=-1).max()
    )
    rounding = (np.log2(max(head_dim, 2)) + 2) * head_dim**0.5 + head_dim + 2
    delta = 2 * rounding * U * longest + 80 * U
    width = np.abs(dequantize_kv(v)).max() * max(head_dim, 2) ** 0.5
    assert delta < 1e-2
    np.testing.assert_allclose(got, want, rtol=0, atol=3 * delta * width)


@each_option
def test_a_mask_and_none_see_the_same(options: dict[str, Any]) -> None:
    q, k, v = kept_and_whole(options)
    age = np.arange(9)[:, None] + 61 - np.arange(70)
    by_mask = halfbyte.attention(q, k, v, mask=(age >= 0) & (age < 20))
    assert_same_bits(by_mask, halfbyte.attention(q, k, v, causal=True, window=20))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    q, k, v = kept_and_whole({}, 256, 700)
    want = halfbyte.attention(q, k, v, causal=True)
    with halfbyte.threads(threads):
        again = kept_and_whole({}, 256, 700)
        assert np.array_equal(again[1].codes, k.codes)
        assert_same_bits(halfbyte.attention(*again, causal=True), want)


def test_parts_of_a_cache_are_written_and_read_where_they_lie() -> None:
    x = normal(2, 3, 40, 64, seed=8)
    codes = np.full((2, 3, 100, 64), 99, np.int8)
    steps = np.full((2, 3, 100), 99, np.float32)
    part = slice(10, 50)
    cache = KvCodes(codes[:, :, part], steps[:, :, part], rotated=True)
    assert quantize_kv(x, out=cache) is cache
    want = quantize_kv(x)
    assert np.array_equal(cache.codes, want.codes)
    assert_same_bits(np.ascontiguousarray(cache.steps), want.steps)
    outside = np.ones(100, bool)
    outside[part] = False
    assert (codes[:, :, outside] == 99).all()
    assert (steps[:, :, outside] == 99).all()
    q = normal(2, 6, 3, 64, seed=9)
    assert_same_bits(
        halfbyte.attention(q, cache, cache, causal=True),
        halfbyte.attention(q, want, want, causal=True),
    )


def test_tokens_in_any_order_of_memory() -> None:
    q, k, v = kept_and_whole({})
    backwards = KvCodes(k.codes[:, :, ::-1], k.steps[:, :, ::-1], rotated=True)
    copied = KvCodes(backwards.codes.copy(), backwards.steps.copy(), rotated=True)
    assert_same_bits(
        halfbyte.attention(q, backwards, v), halfbyte.attention(q, copied, v)
    )
    assert_same_bits(dequantize_kv(backwards), dequantize_kv(copied))
    apart = [
        KvCodes(x.codes[:, :, ::2], x.steps[:, :, ::2], rotated=True) for x in (k, v)
    ]
    beside = [KvCodes(x.codes.copy(), x.steps.copy(), rotated=True) for x in apart]
    assert_same_bits(halfbyte.attention(q, *apart), halfbyte.attention(q, *beside))


def test_half_floats_are_widened() -> None:
    x = normal(1, 2, 5, 32, seed=1).astype(np.float16)
    got, want = quantize_kv(x), quantize_kv(x.astype(np.float32))
    assert np.array_equal(got.codes, want.codes)


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)]
)
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    kept = quantize_kv(np.zeros(shape, np.float32))
    assert kept.shape == shape
    assert dequantize_kv(kept).shape == shape


def test_what_it_says_of_itself() -> None:
    kept = quantize_kv(np.zeros((2, 3, 5, 64), np.float32))
    assert kept.shape == (2, 3, 5, 64)
    assert kept.nbytes == 2 * 3 * 5 * (64 + 4)
    assert copy.copy(kept).codes is kept.codes


@each_option
def test_attention_to_one_position_and_to_none(options: dict[str, Any]) -> None:
    q, x = normal(1, 4, 2, 64, seed=1), normal(1, 2, 1, 64, seed=2)
    kept = quantize_kv(x, **options)
    want = np.repeat(np.repeat(dequantize_kv(kept), 2, axis=1), 2, axis=2)  # weight 1
    # Turned back behind the sum, where dequantize_kv has none: as much rounding again.
    bound = 40 * U * np.abs(x).max() * 64**0.5
    np.testing.assert_allclose(
        halfbyte.attention(q, kept, kept), want, rtol=0, atol=bound
    )
    none = quantize_kv(x[:, :, :0], **options)
    assert not halfbyte.attention(q, none, none).any()


def test_wrong_arguments_are_named() -> None:
    x = normal(1, 2, 5, 64, seed=1)
    kept, plain = quantize_kv(x), quantize_kv(x, rotate=False)
    bad: Any = None
    with pytest.raises(ShapeError, match=r"^x: expected shape \(batch, heads"):
        quantize_kv(x[0])
    with pytest.raises(DTypeError, match=r"^x: expected an array, got NoneType"):
        quantize_kv(bad)
    for step in (0.0, -1.0, float("nan"), float("inf"), 1e-42):
        with pytest.raises(ArgumentError, match=r"^step: expected"):
            quantize_kv(x, step=step)
    with pytest.raises(DTypeError, match=r"^rotate: expected a bool"):
        quantize_kv(x, rotate=1)  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match=r"^out: expected KvCodes"):
        quantize_kv(x, out=bad or x)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"^out: expected shape .*rotated=True, got"):
        quantize_kv(x, out=plain)
    with pytest.raises(ShapeError, match=r"^out: expected shape"):
        quantize_kv(x[:, :, :4], out=kept)
    with pytest.raises(DTypeError, match=r"^x: expected KvCodes, got ndarray"):
        dequantize_kv(x)  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match=r"^codes: expected int8"):
        KvCodes(x, kept.steps, rotated=True)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"^steps: expected shape \(1, 2, 5\)"):
        KvCodes(kept.codes, kept.steps[:, :, :3], rotated=True)
    with pytest.raises(DTypeError, match=r"^rotated: expected a bool, got str"):
        KvCodes(kept.codes, kept.steps, rotated="yes")  # type: ignore[arg-type]
    q = normal(1, 2, 3, 64, seed=2)
    with pytest.raises(ArgumentError, match=r"^v: expected what is kept as k is"):
        halfbyte.attention(q, kept, x)
    with pytest.raises(ArgumentError, match=r"^v: expected what is kept as k is"):
        halfbyte.attention(q, kept, plain)


def test_what_is_not_writable_or_overlaps_is_refused() -> None:
    x = normal(1, 2, 5, 64, seed=1)
    kept = quantize_kv(x)
    kept.codes.flags.writeable = False
    with pytest.raises(ShapeError, match="codes: expected a writable array"):
        quantize_kv(x, out=kept)
    same = KvCodes(
        x.view(np.int8)[..., :64], np.zeros((1, 2, 5), np.float32), rotated=True
    )
    with pytest.raises(ShapeError, match="overlaps x"):
        quantize_kv(x, out=same)


def test_nothing_that_a_query_does_not_see_is_read() -> None:
    x = normal(1, 1, 40, 64, seed=1)
    x[:, :, :30] = np.nan
    kept = quantize_kv(x)
    assert np.isnan(kept.steps[0, 0, :30]).all()
    y = halfbyte.attention(
        normal(1, 1, 1, 64, seed=2), kept, kept, causal=True, window=10
    )
    assert np.isfinite(y).all()
