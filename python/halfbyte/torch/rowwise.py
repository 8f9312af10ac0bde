# python/halfbyte/torch/rowwise.py
# SPDX-License-Identifier: Apache-2.0
"""Norm, rotary embedding and gate as torch dispatches and differentiates them.

float32 rows are read where they lie if their elements are side by side; 16-bit floats
are computed in float32 and rounded once, gradients likewise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from halfbyte import _core
from halfbyte._arguments import not_negative, positive, whole
from halfbyte.errors import ArgumentError, ShapeError
from halfbyte.torch._dispatch import (
    as_vector,
    check_float,
    check_indices,
    check_optional_tensors,
    check_tensors,
    check_vector,
    num_threads,
    register,
)

__all__ = ["gelu_mul", "rms_norm", "rope"]


def _rows(x: Tensor, cols: int) -> NDArray[np.float32]:
    """`x`, which has elements, as float32 rows of `cols`; copied only if it must be."""
    rows = x.detach().float().reshape(-1, cols)
    array: NDArray[np.float32] = (
        rows if rows.stride(1) == 1 else rows.contiguous()
    ).numpy()
    return array


def _fresh(x: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


# ---- rms_norm


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    _check_norm(x, weight, eps)
    k, y = x.shape[-1], _fresh(x)
    if x.numel():
        factor = None if weight is None else as_vector(weight, "weight", k).numpy()
        _core.rms_norm(_rows(x, k), factor, eps, y.view(-1, k).numpy(), num_threads())
    return y.to(x.dtype)


def _check_norm(x: Tensor, weight: Tensor | None, eps: float) -> None:
    check_float(x, "x")
    not_negative(eps, "eps")
    if weight is not None:
        check_vector(weight, "weight", x.shape[-1])


def _rms_norm_fake(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    _check_norm(x, weight, eps)
    return x.new_empty(x.shape)


def _rms_norm_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _rms_norm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # With r = 1 / sqrt(mean(x^2) + eps), y = r x w: r itself moves by -r^3 mean(x dx).
    x, weight = ctx.saved_tensors
    wide, g = x.float(), grad.float()
    r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + ctx.eps)
    gw = None
    if ctx.needs_input_grad[1]:
        gw = (g * wide * r).sum_to_size(x.shape[-1]).to(weight.dtype)
    if weight is not None:
        g = g * weight.float()
    gx = r * (g - wide * r.square() * (g * wide).mean(-1, keepdim=True))
    return gx.to(x.dtype), gw, None


register(
    "rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor",
    _rms_norm,
    _rms_norm_fake,
    _rms_norm_context,
    _rms_norm_backward,
)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """Divide each row by its root mean square: ``x / sqrt(mean(x**2) + eps) * weight``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor, shape (..., K)
    weight : float tensor, shape (K,), optional
        Ones if missing.
    eps : float
        Inside the root.

    Returns
    -------
    tensor like `x`
        Differentiable in `x` and `weight`.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.
    """
    check_tensors(x=x)
    check_optional_tensors(weight=weight)
    y: Tensor = torch.ops.halfbyte.rms_norm(x, weight, not_negative(eps, "eps"))
    return y


# ---- rope


def _rope(
    x: Tensor, positions: Tensor, freq_base: float, rotary_dims: int, freq_scale: float
) -> Tensor:
    _check_rope(x, positions, rotary_dims)
    y = _fresh(x)
    if x.numel():
        heads, head_dim = x.shape[-2:]
        width = heads * head_dim
        at = positions.detach().reshape(-1).to(torch.int64).contiguous().numpy()
        _core.rope(
            _rows(x, width),
            heads,
            at,
            rotary_dims // 2,
            freq_base,
            1.0 / freq_scale,
            y.view(-1, width).numpy(),
            num_threads(),
        )
    return y.to(x.dtype)


def _check_rope(x: Tensor, positions: Tensor, rotary_dims: int) -> None:
    check_float(x, "x")
    if x.dim() < 2 or x.shape[-1] % 2 != 0:
        raise ShapeError(
            f"x: expected shape (..., heads, even head_dim), got {tuple(x.shape)}"
        )
    check_indices(positions, "positions")
    if positions.shape != x.shape[:-2]:
        raise ShapeError(
            f"positions: expected shape {tuple(x.shape[:-2])}, "
            f"got {tuple(positions.shape)}"
        )
    if rotary_dims % 2 != 0 or not 0 <= rotary_dims <= x.shape[-1]:
        raise ArgumentError(
            f"rotary_dims: expected an even number up to {x.shape[-1]}, "
            f"got {rotary_dims}"
        )


def _rope_fake(x: Tensor, positions: Tensor, *options: Any) -> Tensor:
    _check_rope(x, positions, options[1])
    return x.new_empty(x.shape)


def _rope_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    positions, *ctx.options = inputs[1:]
    ctx.save_for_backward(positions)


def _rope_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (positions,) = ctx.saved_tensors
    base, dims, scale = ctx.options
    turned_back = torch.ops.halfbyte.rope(grad, positions, base, dims, -scale)
    return turned_back, None, None, None, None


register(
    "rope(Tensor x, Tensor positions, float freq_base, int rotary_dims, "
    "float freq_scale) -> Tensor",
    _rope,
    _rope_fake,
    _rope_context,
    _rope_backward,
)


def rope(
    x: Tensor,
    positions: Tensor,
    *,
    freq_base: float = 10000.0,
    rotary_dims: int | None = None,
    freq_scale: float = 1.0,
) -> Tensor:
    """Rotate pairs of elements by their position, as `halfbyte.rope` does.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor, shape (..., heads, head_dim)
        head_dim is even.
    positions : integer tensor, shape ``x.shape[:-2]``
        0 to 2**24.
    freq_base : float
        Above 0: ``rope_theta`` in a model's configuration.
    rotary_dims : int, optional
        Only the first ``rotary_dims // 2`` pairs turn; all by default.
    freq_scale : float
        Above 0: what positions are multiplied by, 1 over the factor of linear scaling.

    Returns
    -------
    tensor like `x`
        Differentiable in `x`.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.
    """
    check_tensors(x=x, positions=positions)
    base, scale = positive(freq_base, "freq_base"), positive(freq_scale, "freq_scale")
    if rotary_dims is None:
        dims = x.shape[-1] if x.dim() else 0
    else:
        dims = whole(rotary_dims, "rotary_dims", 0)
    y: Tensor = torch.ops.halfbyte.rope(x, positions, base, dims, scale)
    return y


# ---- gelu_mul


def _gelu_mul(gate: Tensor, up: Tensor) -> Tensor:
    _check_gate(gate, up)
    y = _fresh(gate)
    if y.numel():
        k = gate.shape[-1]
        out = y.view(-1, k).numpy()
        _core.gelu_mul(_rows(gate, k), _rows(up, k), out, num_threads())
    return y.to(gate.dtype)


def _check_gate(gate: Tensor, up: Tensor) -> None:
    check_float(gate, "gate")
    check_float(up, "up")
    if up.shape != gate.shape:
        raise ShapeError(
            f"up: expected shape {tuple(gate.shape)}, got {tuple(up.shape)}"
        )


def _gelu_mul_fake(gate: Tensor, up: Tensor) -> Tensor:
    _check_gate(gate, up)
    return gate.new_empty(gate.shape)


def _gelu_mul_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _gelu_mul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gate, up = ctx.saved_tensors
    wide, g = gate.float(), grad.float()
    ggate = torch.ops.aten.gelu_backward(g * up.float(), wide, approximate="tanh")
    gup = g * F.gelu(wide, approximate="tanh")
    return ggate.to(gate.dtype), gup.to(up.dtype)


register(
    "gelu_mul(Tensor gate, Tensor up) -> Tensor",
    _gelu_mul,
    _gelu_mul_fake,
    _gelu_mul_context,
    _gelu_mul_backward,
)


def gelu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Gate by GELU in its tanh form: ``gelu(gate) * up``.

    Parameters
    ----------
    gate, up : float32, float16 or bfloat16 tensors of one shape, (..., K)

    Returns
    -------
    tensor like `gate`
        Differentiable in both.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.
    """
    check_tensors(gate=gate, up=up)
    y: Tensor = torch.ops.halfbyte.gelu_mul(gate, up)
    return y
