# python/halfbyte/torch/ops.py
# A packed weight crosses the dispatcher as a matrix of bytes, one row a feature, and the
# scales of its rows where the format keeps them apart. Functions here that begin with an
# underscore are the kernels as torch calls them.
# SPDX-License-Identifier: Apache-2.0
"""Operators on packed weights, as torch dispatches, traces and differentiates them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfbyte import _core, targets
from halfbyte.errors import ArgumentError, DTypeError, ShapeError
from halfbyte.formats import FormatInfo, format_info

__all__ = ["dequantize", "embedding_rows", "linear", "product", "quantize", "weight_of"]

_TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}

# Registrations last as long as this object.
_library = torch.library.Library("halfbyte", "DEF")


def _num_threads() -> int:
    """What halfbyte was told to use, else what torch uses."""
    return targets.num_threads_or(torch.get_num_threads())


def _check_float(x: Tensor, name: str) -> None:
    if not x.is_cpu:
        raise ArgumentError(
            f"{name}: expected a tensor in CPU memory, got one on {x.device}: call .cpu()"
        )
    if x.dtype not in _TYPES:
        raise DTypeError(
            f"{name}: expected float32, float16 or bfloat16, got {x.dtype}"
        )
    if x.dim() == 0:
        raise ShapeError(f"{name}: expected at least one dimension, got shape ()")


# ---- weights


def row_bytes(info: FormatInfo, k: int) -> int:
    """Bytes of a row of `k` weights."""
    return k // info.block_len * info.block_bytes


def features(w: Tensor, info: FormatInfo) -> int:
    """Weights in a row of the bytes `w`."""
    return w.shape[1] // info.block_bytes * info.block_len


def weight_of(
    w: Tensor,
    format: str,
    *,
    scales: Tensor | None = None,
    panels: Tensor | None = None,
    x_step: Tensor | None = None,
    y_step: Tensor | None = None,
) -> _core.Weight:
    """The core's view of a packed weight: checks it, copies nothing.

    Parameters
    ----------
    w : uint8 or int8 tensor, shape (N, bytes of a row)
        Contiguous.
    format : str
    scales : float32 tensor of N elements, optional
        Needed by the formats with one scale a row.
    panels : uint8 tensor, optional
        What `_core.Weight.panels` made of it.
    x_step, y_step : tensors of one element, optional
        Steps of the 8-bit codes going in and coming out; 0: none were trained.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If they do not fit together.
    """
    info = format_info(format)
    if (
        w.dim() != 2
        or not w.is_contiguous()
        or w.dtype not in (torch.uint8, torch.int8)
    ):
        raise ShapeError(
            "w: expected a contiguous uint8 matrix, "
            f"got {w.dtype} of shape {tuple(w.shape)}"
        )
    if info.row_scaled and scales is None:
        raise ArgumentError(f"scales: expected one a row for {format}, got None")
    rows = None if scales is None else scales.detach().reshape(-1).numpy()
    return _core.Weight(
        w.detach().numpy().view(np.uint8).reshape(-1),
        format,
        w.shape[0],
        features(w, info),
        rows if info.row_scaled else None,
        None if panels is None else panels.numpy(),
        0.0 if x_step is None else float(x_step),
        0.0 if y_step is None else float(y_step),
    )


# ---- linear


def product(
    weight: _core.Weight,
    shape: tuple[int, int],
    x: Tensor,
    bias: Tensor | None,
    activations: str,
) -> Tensor:
    """``x @ w.T + bias`` past the dispatcher: no tracing, no gradient.

    Parameters
    ----------
    weight : _core.Weight
    shape : (int, int)
        Its N and K.
    x : float32, float16 or bfloat16 tensor, shape (..., K)
    bias : float32 tensor, shape (N,), contiguous, or None
    activations : {"auto", "f32"}

    Returns
    -------
    tensor like `x`, shape (..., N)
    """
    n, k = shape
    _check_float(x, "x")
    lead = x.shape[:-1]
    if x.shape[-1] != k:
        raise ShapeError(f"x: expected shape (..., {k}), got {tuple(x.shape)}")
    rows = x if x.dim() == 2 else x.reshape(-1, k)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    y = torch.empty((*lead, n), dtype=x.dtype)
    weight.linear_at(
        rows.data_ptr(),
        _TYPES[x.dtype],
        rows.shape[0],
        rows.stride(0),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        activations,
        _num_threads(),
    )
    return y


_library.define(
    "linear(Tensor x, Tensor w, Tensor? scales, Tensor? panels, Tensor? bias, "
    "Tensor? x_step, Tensor? y_step, str format, str activations) -> Tensor"
)


def _linear(
    x: Tensor,
    w: Tensor,
    scales: Tensor | None,
    panels: Tensor | None,
    bias: Tensor | None,
    x_step: Tensor | None,
    y_step: Tensor | None,
    format: str,
    activations: str,
) -> Tensor:
    weight = weight_of(
        w, format, scales=scales, panels=panels, x_step=x_step, y_step=y_step
    )
    shape = (w.shape[0], features(w, format_info(format)))
    added = None if bias is None else bias.detach().float().contiguous()
    return product(weight, shape, x.detach(), added, activations)


def _linear_fake(x: Tensor, w: Tensor, *args: Any) -> Tensor:
    info = format_info(args[5])
    k = features(w, info)
    torch._check(
        x.shape[-1] == k, lambda: f"x: expected shape (..., {k}), got {tuple(x.shape)}"
    )
    return x.new_empty((*x.shape[:-1], w.shape[0]))


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, w, scales, _, _, _, _, ctx.format, _ = inputs
    ctx.save_for_backward(w, scales)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Rounding, of the activations to codes and of trained steps, counts as identity.
    w, scales = ctx.saved_tensors
    gx = gb = None
    if ctx.needs_input_grad[0]:
        dense = torch.ops.halfbyte.dequantize(w, scales, ctx.format)
        gx = grad @ dense.to(grad.dtype)
    if ctx.needs_input_grad[4]:
        gb = grad.reshape(-1, grad.shape[-1]).sum(0)
    return gx, None, None, None, gb, None, None, None, None


_library.impl("linear", _linear, "CPU")
torch.library.register_fake("halfbyte::linear", _linear_fake, lib=_library)
torch.library.register_autograd(
    "halfbyte::linear",
    _linear_backward,
    setup_context=_linear_context,
    lib=_library,
)


def linear(
    x: Tensor,
    w: Tensor,
    format: str,
    *,
    scales: Tensor | None = None,
    panels: Tensor | None = None,
    bias: Tensor | None = None,
    x_step: Tensor | None = None,
    y_step: Tensor | None = None,
    activations: str = "auto",
) -> Tensor:
    """Multiply by a packed weight: ``y = x @ w.T + bias``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor, shape (..., K)
        Rows are read where they lie if their elements are side by side.
    w : uint8 tensor, shape (N, bytes of a row)
        The blocks of `format`; see `quantize`.
    format : str
        One of `halfbyte.formats`.
    scales : float32 tensor, shape (N,), optional
        Of the formats with one scale a row.
    panels : uint8 tensor, optional
        The same weights in the order in which products read them, as `QuantLinear`
        makes them.
    bias : float tensor, shape (N,), optional
    x_step, y_step : float32 tensors of one element, optional
        Formats with one scale a row: steps of 8-bit codes that the model was trained to
        round what goes in and what comes out with. 0: none.
    activations : {"auto", "f32"}
        As for `halfbyte.linear`.

    Returns
    -------
    tensor like `x`, shape (..., N)
        Computed in float32, rounded once. The gradient of `x` is ``grad @ w``; packed
        weights have none.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.
    """
    y: Tensor = torch.ops.halfbyte.linear(
        x, w, scales, panels, bias, x_step, y_step, format, activations
    )
    return y


# ---- packing and unpacking

_library.define("dequantize(Tensor w, Tensor? scales, str format) -> Tensor")
_library.define("quantize(Tensor x, str format) -> (Tensor, Tensor)")
_library.define(
    "embedding_rows(Tensor ids, Tensor w, Tensor? scales, str format) -> Tensor"
)


def _dequantize(w: Tensor, scales: Tensor | None, format: str) -> Tensor:
    return _embedding_rows(torch.arange(w.shape[0]), w, scales, format)


def _embedding_rows(
    ids: Tensor, w: Tensor, scales: Tensor | None, format: str
) -> Tensor:
    weight = weight_of(w, format, scales=scales)
    k = features(w, format_info(format))
    y = torch.empty((*ids.shape, k), dtype=torch.float32)
    at = ids.detach().reshape(-1).to(torch.int64).contiguous().numpy()
    weight.rows(at, y.view(-1, k).numpy() if k else y.numpy(), _num_threads())
    return y


def _quantize(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    _check_float(x, "x")
    info = format_info(format)
    if not info.writable:
        raise ArgumentError(f"format: {format} can only be read")
    if x.dim() != 2 or x.shape[1] % info.block_len:
        raise ShapeError(
            f"x: expected shape (N, a multiple of {info.block_len}) for {format}, "
            f"got {tuple(x.shape)}"
        )
    rows = x.detach().float().contiguous().numpy()
    packed, scales = _core.quantize(rows, format, _num_threads())
    w = torch.from_numpy(packed).view(x.shape[0], row_bytes(info, x.shape[1]))
    return w, torch.from_numpy(scales)


def _quantize_fake(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    info = format_info(format)
    n, k = x.shape
    return (
        x.new_empty((n, row_bytes(info, k)), dtype=torch.uint8),
        x.new_empty((n if info.row_scaled else 0,), dtype=torch.float32),
    )


def _dequantize_fake(w: Tensor, scales: Tensor | None, format: str) -> Tensor:  # noqa: ARG001
    k = features(w, format_info(format))
    return w.new_empty((w.shape[0], k), dtype=torch.float32)


def _embedding_rows_fake(
    ids: Tensor,
    w: Tensor,
    scales: Tensor | None,  # noqa: ARG001
    format: str,
) -> Tensor:
    k = features(w, format_info(format))
    return w.new_empty((*ids.shape, k), dtype=torch.float32)


for _name, _kernel, _fake in (
    ("dequantize", _dequantize, _dequantize_fake),
    ("quantize", _quantize, _quantize_fake),
    ("embedding_rows", _embedding_rows, _embedding_rows_fake),
):
    _library.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"halfbyte::{_name}", _fake, lib=_library)


def quantize(x: Tensor, format: str) -> tuple[Tensor, Tensor | None]:
    """Pack a matrix.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor, shape (N, K)
    format : str
        One that can be written: see `halfbyte.quantize`.

    Returns
    -------
    w : uint8 tensor, shape (N, bytes of a row)
    scales : float32 tensor, shape (N,), or None
        None where blocks have their own.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.
    """
    w, scales = torch.ops.halfbyte.quantize(x, format)
    return w, scales if format_info(format).row_scaled else None


def dequantize(w: Tensor, format: str, *, scales: Tensor | None = None) -> Tensor:
    """Unpack a matrix: exactly the values that the format defines.

    Parameters
    ----------
    w : uint8 tensor, shape (N, bytes of a row)
    format : str
    scales : float32 tensor, shape (N,), optional

    Returns
    -------
    float32 tensor, shape (N, K)

    Raises
    ------
    ArgumentError, ShapeError
        If an argument does not fit; the message names it.
    """
    dense: Tensor = torch.ops.halfbyte.dequantize(w, scales, format)
    return dense


def embedding_rows(
    ids: Tensor, w: Tensor, format: str, *, scales: Tensor | None = None
) -> Tensor:
    """Look up rows of a packed table.

    Parameters
    ----------
    ids : integer tensor, any shape
        0 to N - 1.
    w : uint8 tensor, shape (N, bytes of a row)
    format : str
    scales : float32 tensor, shape (N,), optional

    Returns
    -------
    float32 tensor, shape (*ids.shape, K)

    Raises
    ------
    ArgumentError, ShapeError
        If an id is out of range, or an argument does not fit.
    """
    rows: Tensor = torch.ops.halfbyte.embedding_rows(ids, w, scales, format)
    return rows
