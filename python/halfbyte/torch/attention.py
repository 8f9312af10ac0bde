# python/halfbyte/torch/attention.py
# SPDX-License-Identifier: Apache-2.0
"""Attention, to keys and values in floats or 8 bits, as torch dispatches it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from halfbyte import kv, ops
from halfbyte._arguments import flag
from halfbyte.errors import ArgumentError, DTypeError, ShapeError
from halfbyte.torch._dispatch import (
    check_float,
    check_optional_tensors,
    check_tensors,
    register,
    threads,
)

__all__ = ["attention", "dequantize_kv", "quantize_kv"]


# ---- keys and values in 8 bits


def _codes(codes: Tensor, steps: Tensor, rotated: bool) -> kv.KvCodes:
    return kv.KvCodes(codes.detach().numpy(), steps.detach().numpy(), rotated)


def _quantize_kv(x: Tensor, step: float, rotate: bool) -> tuple[Tensor, Tensor]:
    _check_heads(x, "x")
    with threads():
        kept = kv.quantize_kv(
            x.detach().float().numpy(), step=step or None, rotate=rotate
        )
    return torch.from_numpy(kept.codes), torch.from_numpy(kept.steps)


def _quantize_kv_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    _check_heads(x, "x")
    codes = x.new_empty(x.shape, dtype=torch.int8)
    return codes, x.new_empty(x.shape[:3], dtype=torch.float32)


def _dequantize_kv(codes: Tensor, steps: Tensor, rotated: bool) -> Tensor:
    _check_codes(codes, steps, "codes", "steps")
    with threads():
        return torch.from_numpy(kv.dequantize_kv(_codes(codes, steps, rotated)))


def _dequantize_kv_fake(codes: Tensor, steps: Tensor, *_: Any) -> Tensor:
    _check_codes(codes, steps, "codes", "steps")
    return codes.new_empty(codes.shape, dtype=torch.float32)


register(
    "quantize_kv(Tensor x, float step, bool rotate) -> (Tensor, Tensor)",
    _quantize_kv,
    _quantize_kv_fake,
)
register(
    "dequantize_kv(Tensor codes, Tensor steps, bool rotated) -> Tensor",
    _dequantize_kv,
    _dequantize_kv_fake,
)


def _check_heads(x: Tensor, name: str) -> None:
    check_float(x, name)
    if x.dim() != 4:
        want = "(batch, heads, tokens, head_dim)"
        raise ShapeError(f"{name}: expected shape {want}, got {tuple(x.shape)}")


def _check_codes(codes: Tensor, steps: Tensor, name: str, steps_name: str) -> None:
    if codes.dtype != torch.int8:
        raise DTypeError(f"{name}: expected int8 codes, got {codes.dtype}")
    if codes.dim() != 4:
        want = "(batch, kv_heads, tokens, head_dim)"
        raise ShapeError(f"{name}: expected shape {want}, got {tuple(codes.shape)}")
    if steps.dtype != torch.float32:
        raise DTypeError(f"{steps_name}: expected float32, got {steps.dtype}")
    if steps.shape != codes.shape[:3]:
        want = str(tuple(codes.shape[:3]))
        raise ShapeError(
            f"{steps_name}: expected shape {want}, got {tuple(steps.shape)}"
        )


def quantize_kv(
    x: Tensor, *, step: float | None = None, rotate: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Round keys or values to 8 bits, as `halfbyte.quantize_kv` does.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor, shape (batch, kv_heads, tokens, head_dim)
    step : float, optional
        One for all; by default each row of a head has its own.
    rotate : bool, optional
        Transform each row before. On by default, unless there is a `step`.

    Returns
    -------
    codes : int8 tensor, shape of `x`
    steps : float32 tensor, shape (batch, kv_heads, tokens)
        Nothing flows back through either.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.
    """
    check_tensors(x=x)
    size, turned = kv.rounding(step, rotate)
    codes, steps = torch.ops.halfbyte.quantize_kv(x.detach(), size, turned)
    return codes, steps


def dequantize_kv(codes: Tensor, steps: Tensor, *, rotated: bool = True) -> Tensor:
    """Give back what `quantize_kv` made of keys or values.

    Parameters
    ----------
    codes : int8 tensor, shape (batch, kv_heads, tokens, head_dim)
    steps : float32 tensor, shape (batch, kv_heads, tokens)
    rotated : bool
        As they were made: not, where a step was given.

    Returns
    -------
    float32 tensor, shape of `codes`

    Raises
    ------
    DTypeError, ShapeError
        If an argument does not fit; the message names it.
    """
    check_tensors(codes=codes, steps=steps)
    rows: Tensor = torch.ops.halfbyte.dequantize_kv(
        codes, steps, flag(rotated, "rotated")
    )
    return rows


# ---- attention


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_steps: Tensor | None,
    v_steps: Tensor | None,
    rotated: bool,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
) -> Tensor:
    _check(q, k, v, k_steps, v_steps, mask)
    out = torch.empty(q.shape, dtype=torch.float32, device="cpu")
    with threads():
        ops.attention(
            q.detach().float().numpy(),
            _kept(k, k_steps, rotated),
            _kept(v, v_steps, rotated),
            mask=None if mask is None else mask.numpy(),
            causal=causal,
            window=window or None,
            scale=scale,
            out=out.numpy(),
        )
    return out.to(q.dtype)


def _kept(x: Tensor, steps: Tensor | None, rotated: bool) -> Any:
    return x.detach().float().numpy() if steps is None else _codes(x, steps, rotated)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_steps: Tensor | None,
    v_steps: Tensor | None,
    mask: Tensor | None,
) -> None:
    _check_heads(q, "q")
    if (k_steps is None) != (v_steps is None):
        raise ArgumentError("v_steps: expected with k_steps, and only then")
    for x, steps, name in ((k, k_steps, "k"), (v, v_steps, "v")):
        if steps is None:
            _check_heads(x, name)
        else:
            _check_codes(x, steps, name, f"{name}_steps")
    ops.check_heads(tuple(q.shape), tuple(k.shape), tuple(v.shape))
    if mask is not None and mask.dtype != torch.bool:
        raise DTypeError(f"mask: expected bool, got {mask.dtype}")


def _attention_fake(q: Tensor, *rest: Any) -> Tensor:
    k, v, k_steps, v_steps, _, mask = rest[:6]
    _check(q, k, v, k_steps, v_steps, mask)
    return q.new_empty(q.shape)


def _attention_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    *tensors, ctx.rotated, mask, ctx.scale, ctx.causal, ctx.window = inputs
    ctx.save_for_backward(*tensors, mask)


def _attention_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the definition, in torch, as often as is asked for."""
    q, k, v, k_steps, v_steps, mask = ctx.saved_tensors
    floats = [q]
    if k_steps is None:
        floats += [k, v]
    again = torch.is_grad_enabled()  # gradients of these gradients are wanted
    leaves = [
        x.float() if again and x.requires_grad else x.detach().float().requires_grad_()
        for x in floats
    ]
    kept = [
        torch.ops.halfbyte.dequantize_kv(x, steps, ctx.rotated)
        for x, steps in ((k, k_steps), (v, v_steps))
        if steps is not None
    ]
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        query, key, value = (*leaves, *kept)
        y = _definition(query, key, value, mask, ctx)
        grads = torch.autograd.grad(y, leaves, grad.float(), create_graph=again)
    back = [g.to(x.dtype) for g, x in zip(grads, floats, strict=True)]
    return (*back, *[None] * (10 - len(back)))


def aligned_mask(
    tokens: int, kv_tokens: int, window: int | None, device: torch.device
) -> Tensor:
    """What causal queries see whose last stands at the last key."""
    last = kv_tokens - tokens
    seen = torch.ones(tokens, kv_tokens, dtype=torch.bool, device=device).tril(last)
    return seen if window is None else seen.triu(last - window + 1)


def _definition(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, ctx: Any
) -> Tensor:
    group = q.shape[1] // max(k.shape[1], 1)
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    tokens, kv_tokens = q.shape[2], k.shape[2]
    if ctx.causal:
        seen = aligned_mask(tokens, kv_tokens, ctx.window or None, q.device)
    else:
        seen = torch.ones(tokens, kv_tokens, dtype=torch.bool, device=q.device)
    if mask is not None:
        seen = seen & mask
    scores = (ctx.scale * (q @ k.mT)).masked_fill(~seen, -torch.inf)
    # A query that sees nothing gets zeros.
    weights = scores.softmax(-1).masked_fill(~seen.any(-1, keepdim=True), 0)
    y: Tensor = weights @ v
    return y


register(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? k_steps, Tensor? v_steps, "
    "bool rotated, Tensor? mask, float scale, bool causal, int window) -> Tensor",
    _attention,
    _attention_fake,
    _attention_context,
    _attention_backward,
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    k_steps: Tensor | None = None,
    v_steps: Tensor | None = None,
    rotated: bool = True,
    mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend to keys and values, as `halfbyte.attention` does.

    Parameters
    ----------
    q : float32, float16 or bfloat16 tensor, shape (batch, heads, tokens, head_dim)
    k, v : the same, shape (batch, kv_heads, kv_tokens, head_dim)
        Or int8 codes of `quantize_kv`, with their steps.
    k_steps, v_steps : float32 tensors, shape (batch, kv_heads, kv_tokens), optional
    rotated : bool
        How codes were made: not, where a step was given.
    mask : bool tensor that broadcasts to (batch, heads, tokens, kv_tokens), optional
        True where a query sees a key.
    causal : bool
        A query does not see later keys. The last query stands at the last key.
    window : int, optional
        With `causal`: how many keys a query sees, its own included.
    scale : float, optional
        ``head_dim ** -0.5`` if missing; Gemma 4 takes 1.

    Returns
    -------
    tensor like `q`
        Zeros for a query that sees no key. Differentiable in `q`, and in `k` and `v` if
        they are floats; a gradient takes the scores of all queries at once.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.
    """
    check_tensors(q=q, k=k, v=v)
    check_optional_tensors(k_steps=k_steps, v_steps=v_steps, mask=mask)
    head_dim = q.shape[-1] if q.dim() else 1
    factor, in_order, seen = ops.attention_options(head_dim, causal, window, scale)
    turned = flag(rotated, "rotated")
    y: Tensor = torch.ops.halfbyte.attention(
        q, k, v, k_steps, v_steps, turned, mask, factor, in_order, seen
    )
    return y
