# python/halfbyte/qat/fake.py
# SPDX-License-Identifier: Apache-2.0
"""Fake quantization: numbers of a grid in the forward pass, gradients in the backward.

A number x becomes ``clamp(round(x / s), low, high) * s`` with ``s = exp(l)``. The
gradient passes straight through to x, also where x was clipped: a weight outside can
come back. That of l is ``s * sum(g * (q - x / s))`` inside of the range, where q is the
integer, and ``s * sum(g * q)`` outside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from halfbyte.qat.schemes import Grid

__all__ = [
    "fake_quant",
    "fake_weight",
    "ggml_steps",
    "grouped",
    "initial_log_step",
    "integers",
    "step_of",
]

_SMALLEST, _LARGEST = 2.0**-24, 65504.0  # of float16, and not 0
# Weights that a search holds at once: in a CPU's cache, or enough to fill a GPU.
_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}


def step_of(log_step: Tensor, half: bool) -> Tensor:
    """Return the step of its logarithm, rounded to float16 if `half`."""
    step = log_step.exp()
    if half:
        step = step.clamp(_SMALLEST, _LARGEST).half().to(log_step.dtype)
    return step


class _FakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_step: Tensor, low: int, high: int, half: bool
    ) -> Tensor:
        ctx.save_for_backward(x, log_step)
        ctx.grid = (low, high, half)
        step = step_of(log_step, half)
        # float32 for bfloat16, whose own quotient would be off by half a step at 128.
        wide = x.to(torch.promote_types(x.dtype, log_step.dtype))
        y = torch.round(wide / step).clamp(low, high) * step
        # `to` gives the same tensor where there is nothing to do, and compiled by torch
        # 2.11 the gradient of a result with two names is 0 (pytorch issue 180642).
        return y if y.dtype == x.dtype else y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_step = None
        if ctx.needs_input_grad[1]:
            x, log_step = ctx.saved_tensors
            low, high, half = ctx.grid
            step = step_of(log_step, half)
            ratio = x.to(torch.promote_types(x.dtype, log_step.dtype)) / step
            level = torch.round(ratio).clamp(low, high)
            inside = (ratio >= low) & (ratio <= high)
            slope = torch.where(inside, level - ratio, level)
            each = grad.to(slope.dtype) * slope
            grad_step = each.sum_to_size(log_step.shape) * step
        return grad, grad_step, None, None, None


def fake_quant(
    x: Tensor, log_step: Tensor, low: int, high: int, half: bool = False
) -> Tensor:
    """Round `x` to integers from `low` to `high` times ``exp(log_step)``.

    Parameters
    ----------
    x : float tensor
    log_step : float32 or float64 tensor
        Of a shape that broadcasts to that of `x`.
    low, high : int
    half : bool
        Whether steps are rounded to float16.

    Returns
    -------
    tensor like `x`
        Differentiable in `x` and `log_step`, as the module says.
    """
    y: Tensor = _FakeQuant.apply(x, log_step, low, high, half)  # type: ignore[no-untyped-call]
    return y


def grouped(w: Tensor, grid: Grid) -> Tensor:
    """View a tensor (..., K) as (..., K / group, group)."""
    rows: Tensor = w.unflatten(-1, (-1, grid.group or w.shape[-1]))
    return rows


def fake_weight(
    w: Tensor, log_step: Tensor, grid: Grid, sign: Tensor | None = None
) -> Tensor:
    """Round a weight to its grid.

    Parameters
    ----------
    w : float tensor, shape (..., K)
    log_step : float tensor, shape (..., K / group, 1)
    grid : Grid
    sign : tensor like `log_step` of -1 and 1, optional
        Of the steps; 1 if missing.

    Returns
    -------
    tensor like `w`
        Differentiable in `w` and `log_step`.
    """
    rows = grouped(w, grid)
    if sign is not None:
        rows = rows * sign
    rows = fake_quant(rows, log_step, grid.low, grid.high, grid.half)
    if sign is not None:
        rows = rows * sign
    return rows.flatten(-2)


@torch.no_grad()
def integers(w: Tensor, log_step: Tensor, grid: Grid) -> Tensor:
    """Return the integers of a weight as int8, shape (..., K)."""
    step = step_of(log_step, grid.half)
    levels = torch.round(grouped(w, grid) / step).clamp(grid.low, grid.high)
    return levels.flatten(-2).to(torch.int8)


@torch.no_grad()
def initial_log_step(w: Tensor, grid: Grid) -> Tensor:
    """Search the steps of least squared error, multiples of what the largest weight asks.

    Parameters
    ----------
    w : float tensor, shape (..., K)
    grid : Grid
        40 multiples from 0.55 to 1.2 are tried for groups, 72 from 0.08 to 1.15 for
        rows, where few bits clip far more.

    Returns
    -------
    float32 tensor, shape (..., K / group, 1)
    """
    first, last, count = (0.08, 1.15, 72) if grid.group is None else (0.55, 1.2, 40)
    rows = grouped(w, grid).flatten(0, -2)
    out = torch.empty(len(rows), 1, dtype=torch.float32, device=w.device)
    at_once = max(1, _AT_ONCE.get(w.device.type, 1 << 24) // rows.shape[-1])
    for begin in range(0, len(rows), at_once):
        part = rows[begin : begin + at_once].float()
        fractions = torch.linspace(first, last, count).tolist()
        out[begin : begin + at_once] = _best_log_step(part, grid, fractions)
    steps: Tensor = out.unflatten(0, grouped(w, grid).shape[:-1])
    return steps


def _best_log_step(rows: Tensor, grid: Grid, fractions: list[float]) -> Tensor:
    # Any step gives rows of zeros back.
    largest = (rows.abs().amax(-1, keepdim=True) / -grid.low).clamp_min(_SMALLEST)
    best_error = torch.full_like(largest, float("inf"))
    best = largest.log()
    for fraction in fractions:
        log_step = (largest * fraction).log()
        wrong = fake_quant(rows, log_step, grid.low, grid.high, grid.half) - rows
        error = wrong.square().sum(-1, keepdim=True)
        better = error < best_error
        best = torch.where(better, log_step, best)
        best_error = torch.where(better, error, best_error)
    return best


@torch.no_grad()
def ggml_steps(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize to Q4_0 as ggml does: the largest weight of a group becomes -8.

    Parameters
    ----------
    w : float tensor, shape (..., K)
        K is a multiple of 32.

    Returns
    -------
    weight : float32 tensor, shape (..., K)
        What the packed file gives back.
    log_step, sign : float32 tensors, shape (..., K / 32, 1)
        Of the steps, as `fake_weight` takes them.
    """
    rows = grouped(w.float(), Grid())
    extreme = rows.gather(-1, rows.abs().argmax(-1, keepdim=True))
    step = extreme / -8
    inverse = torch.where(step == 0, 0.0, 1 / step)
    # Codes come of the step as it was before it is rounded to float16.
    levels = torch.floor(rows * inverse + 8.5).clamp(max=15) - 8
    kept = step.half().float()
    sign = torch.where(kept < 0, -1.0, 1.0)
    log_step = kept.abs().clamp_min(_SMALLEST).log()
    return (levels * kept).flatten(-2), log_step, sign
