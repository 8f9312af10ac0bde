# tests/python/test_torch_attention.py
# SPDX-License-Identifier: Apache-2.0
"""Attention and 8-bit keys and values as torch operators, beside those on arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import halfbyte
import numpy as np
import pytest
import torch
from halfbyte import KvCodes
from halfbyte import torch as hbt
from halfbyte.errors import ArgumentError, DTypeError, ShapeError
from samples import normal
from torch import Tensor
from torch.library import opcheck
from torch.nn.functional import scaled_dot_product_attention

SEEN: dict[str, dict[str, Any]] = {
    "all": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 4},
    "mask": {"mask": torch.arange(20) % 3 != 1},
}
each_view = pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (2, 4, 9, 64), (2, 2, 20, 64), (2, 2, 20, 64)
    q, k, v = (torch.from_numpy(normal(*s, seed=i)) for i, s in enumerate(shapes))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def packed(
    k: Tensor, v: Tensor, **options: Any
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    (k_codes, k_steps), (v_codes, v_steps) = (
        hbt.quantize_kv(x, **options) for x in (k, v)
    )
    return k_codes, v_codes, {"k_steps": k_steps, "v_steps": v_steps}


def as_numpy(seen: dict[str, Any]) -> dict[str, Any]:
    return {name: x.numpy() if isinstance(x, Tensor) else x for name, x in seen.items()}


@each_view
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floats_have_the_bits_of_the_arrays(
    dtype: torch.dtype, seen: dict[str, Any]
) -> None:
    q, k, v = drawn(dtype)
    arrays = (x.float().numpy() for x in (q, k, v))
    want = halfbyte.attention(*arrays, **as_numpy(seen))
    got = hbt.attention(q, k, v, **seen)
    assert got.dtype == dtype
    assert torch.equal(got, torch.from_numpy(want).to(dtype))


@each_view
@pytest.mark.parametrize("options", [{}, {"step": 0.05}], ids=str)
def test_codes_have_the_bits_of_the_arrays(
    options: dict[str, Any], seen: dict[str, Any]
) -> None:
    q, k, v = drawn()
    kept = [halfbyte.quantize_kv(x.numpy(), **options) for x in (k, v)]
    k_codes, v_codes, steps = packed(k, v, **options)
    assert np.array_equal(k_codes.numpy(), kept[0].codes)
    assert np.array_equal(steps["v_steps"].numpy(), kept[1].steps)
    rotated = not options
    back = hbt.dequantize_kv(k_codes, steps["k_steps"], rotated=rotated)
    assert np.array_equal(back.numpy(), halfbyte.dequantize_kv(kept[0]))
    want = halfbyte.attention(q.numpy(), *kept, scale=0.3, **as_numpy(seen))
    got = hbt.attention(
        q, k_codes, v_codes, **steps, rotated=rotated, scale=0.3, **seen
    )
    assert np.array_equal(got.numpy(), want)


def visible(seen: dict[str, Any]) -> Tensor:
    ages = torch.arange(9)[:, None] + 11 - torch.arange(20)
    mask = ages >= 0 if seen.get("causal") else torch.ones(9, 20, dtype=torch.bool)
    if "window" in seen:
        mask &= ages < seen["window"]
    return mask & seen.get("mask", torch.tensor(True))


@each_view
@pytest.mark.parametrize("codes", [False, True])
def test_gradients_are_those_of_torch(codes: bool, seen: dict[str, Any]) -> None:
    """In float64, beside ours in float32: 100 roundings of 2^-24, of sums up to 100."""
    q, k, v = drawn()
    if codes:
        k_codes, v_codes, steps = packed(k, v)
        k, v = (
            hbt.dequantize_kv(x, steps[name])
            for x, name in ((k_codes, "k_steps"), (v_codes, "v_steps"))
        )
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    y = scaled_dot_product_attention(*wide, attn_mask=visible(seen), enable_gqa=True)
    weight = torch.from_numpy(normal(*q.shape, seed=9))
    want = torch.autograd.grad((y * weight).sum(), wide)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    if codes:
        ours = hbt.attention(leaves[0], k_codes, v_codes, **steps, **seen)
        leaves = leaves[:1]
    else:
        ours = hbt.attention(*leaves, **seen)
    got = torch.autograd.grad((ours * weight).sum(), leaves)
    for g, w in zip(got, want, strict=False):
        torch.testing.assert_close(g.double(), w, rtol=0, atol=1e4 * 2**-24)


def test_a_query_that_sees_nothing() -> None:
    q, k, v = drawn()
    q.requires_grad_()
    y = hbt.attention(q, k, v, mask=torch.zeros(1, 1, 1, 20, dtype=torch.bool))
    assert not y.any()
    y.sum().backward()
    assert q.grad is not None
    assert not q.grad.any()


def test_operators_are_sound() -> None:
    q, k, v = drawn()
    k_codes, v_codes, steps = packed(k, v)
    opcheck(torch.ops.halfbyte.quantize_kv.default, (k, 0.0, True))
    opcheck(torch.ops.halfbyte.dequantize_kv.default, (k_codes, steps["k_steps"], True))
    kept = k_codes, v_codes, *steps.values(), True
    rest = None, 0.2, True, 5
    grads = [x.requires_grad_() for x in (q, k, v)]
    opcheck(torch.ops.halfbyte.attention.default, (q, *kept, *rest))
    opcheck(torch.ops.halfbyte.attention.default, (*grads, None, None, True, *rest))


def test_it_is_compiled_whole() -> None:
    q, k, v = drawn()

    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k_codes, v_codes, steps = packed(k, v)
        return hbt.attention(q, k_codes, v_codes, **steps, causal=True) * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v), step(q, k, v))


def test_parts_of_a_cache() -> None:
    q, k, v = drawn()
    k_codes, v_codes, steps = packed(k, v)
    part = {name: x[:, :, 3:17] for name, x in steps.items()}
    got = hbt.attention(q, k_codes[:, :, 3:17], v_codes[:, :, 3:17], **part)
    kept = (
        KvCodes(codes.numpy()[:, :, 3:17].copy(), x.numpy().copy(), rotated=True)
        for codes, x in zip((k_codes, v_codes), part.values(), strict=True)
    )
    assert np.array_equal(got.numpy(), halfbyte.attention(q.numpy(), *kept))


def test_wrong_arguments_are_named() -> None:
    q, k, v = drawn()
    k_codes, v_codes, steps = packed(k, v)
    wrong: list[tuple[type[Exception], str, Any]] = [
        (ShapeError, r"^q: expected shape \(batch", lambda: hbt.attention(q[0], k, v)),
        (DTypeError, "^k: expected float32", lambda: hbt.attention(q, k_codes, v)),
        (ShapeError, "^k: expected shape", lambda: hbt.attention(q, k[:1], v)),
        (ShapeError, "^v: expected shape", lambda: hbt.attention(q, k, v[:, :, :3])),
        (
            ShapeError,
            "^k: 2 heads do not divide",
            lambda: hbt.attention(q[:, :3], k, v),
        ),
        (DTypeError, "^mask: expected bool", lambda: hbt.attention(q, k, v, mask=k)),
        (
            ArgumentError,
            "^window: expected causal",
            lambda: hbt.attention(q, k, v, window=3),
        ),
        (ArgumentError, "^scale: ", lambda: hbt.attention(q, k, v, scale=float("inf"))),
        (
            ArgumentError,
            "^v_steps: expected with k_steps",
            lambda: hbt.attention(q, k_codes, v_codes, k_steps=steps["k_steps"]),
        ),
        (
            ShapeError,
            "^k_steps: expected shape",
            lambda: hbt.attention(q, k_codes, v_codes, k_steps=k[0], v_steps=k[0]),
        ),
        (DTypeError, "^x: expected a tensor", lambda: hbt.quantize_kv(k.numpy())),  # type: ignore[arg-type]
        (ArgumentError, "^step: expected", lambda: hbt.quantize_kv(k, step=-1.0)),
        (DTypeError, "^codes: expected int8", lambda: hbt.dequantize_kv(k, k[..., 0])),
    ]
    for kind, message, call in wrong:
        with pytest.raises(kind, match=message):
            call()


def test_gradients_of_gradients() -> None:
    q, k, v = (torch.randn(1, 2, n, 8, dtype=torch.float32) for n in (5, 9, 9))
    norms = []
    for attend in (hbt.attention, torch.nn.functional.scaled_dot_product_attention):
        x = q.clone().requires_grad_()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            y = attend(x, k, v)
            (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            (y.sum() + slope.square().sum()).backward()
        assert x.grad is not None
        norms.append(x.grad)
    torch.testing.assert_close(*norms, rtol=1e-4, atol=1e-5)


def test_autocast_has_no_say_in_gradients() -> None:
    q, k, v = (torch.randn(1, 2, n, 8, dtype=torch.float32) for n in (5, 9, 9))
    grads = []
    for enabled in (False, True):
        x = q.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            hbt.attention(x, k, v).sum().backward()
        grads.append(x.grad)
    assert torch.equal(grads[0], grads[1])
