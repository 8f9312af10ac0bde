# python/halfbyte/torch/ops.py
# A packed weight crosses the dispatcher as a matrix of bytes, one row a feature, and the
# scales of its rows where the format keeps them apart. Functions here that begin with an
# underscore are the kernels as torch calls them.
# SPDX-License-Identifier: Apache-2.0
"""Operators on packed weights, as torch dispatches, traces and differentiates them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfbyte import _core
from halfbyte._arguments import string
from halfbyte._arrays import as_indices
from halfbyte.errors import ArgumentError, DTypeError, ShapeError
from halfbyte.formats import FormatInfo, format_info
from halfbyte.torch._dispatch import (
    BYTES,
    TYPES,
    aligned,
    as_vector,
    check_filled,
    check_float,
    check_indices,
    check_optional_tensors,
    check_tensors,
    check_vector,
    num_threads,
    register,
)

__all__ = [
    "dequantize",
    "embedding_rows",
    "features",
    "linear",
    "product",
    "quantize",
    "row_bytes",
    "weight_of",
]


# ---- weights


def row_bytes(info: FormatInfo, k: int) -> int:
    """Bytes of a row of `k` weights."""
    return k // info.block_len * info.block_bytes


def features(w: Tensor, info: FormatInfo) -> int:
    """Weights in a row of the bytes `w`."""
    if w.dim() != 2 or w.dtype not in BYTES:
        raise ShapeError(
            f"w: expected a uint8 matrix, got {w.dtype} of shape {tuple(w.shape)}"
        )
    return w.shape[1] // info.block_bytes * info.block_len


def _step(step: Tensor | None, name: str, info: FormatInfo) -> float:
    if step is None:
        return 0.0
    if not info.row_scaled:
        raise ArgumentError(f"{name}: {info.name} has no scale a row: leave it out")
    if step.numel() != 1:
        raise ShapeError(f"{name}: expected one element, got shape {tuple(step.shape)}")
    value = float(step)
    if not 0 <= value < math.inf:
        raise ArgumentError(f"{name}: expected a finite number from 0, got {value}")
    return value


def check_scales(scales: Tensor | None, name: str, info: FormatInfo) -> Tensor:
    """The scales of rows, which a format that has them needs in float32."""
    if scales is None or scales.dtype != torch.float32:
        got = None if scales is None else scales.dtype
        raise DTypeError(
            f"{name}: expected float32, one a row of {info.name}, got {got}"
        )
    return scales


def _scales(scales: Tensor | None, info: FormatInfo) -> np.ndarray[Any, Any] | None:
    if not info.row_scaled:
        return None
    scales = check_scales(scales, "scales", info)
    return aligned(scales.detach().reshape(-1).contiguous()).numpy()


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
    k = features(w, info)
    check_filled(w=w, scales=scales, x_step=x_step, y_step=y_step)
    if not w.is_contiguous():
        raise ShapeError(
            f"w: expected a contiguous matrix, got strides {w.stride()}: "
            "call .contiguous()"
        )
    return _core.Weight(
        w.detach().numpy().view(np.uint8).reshape(-1),
        format,
        w.shape[0],
        k,
        _scales(scales, info),
        None if panels is None else panels.numpy(),
        _step(x_step, "x_step", info),
        _step(y_step, "y_step", info),
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
        Dense, on the CPU.
    bias : float tensor, shape (N,), or None
    activations : {"auto", "f32"}

    Returns
    -------
    tensor like `x`, shape (..., N)

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit.
    """
    (n, k), size = shape, x.shape
    if x.dtype not in TYPES or not size or size[-1] != k:
        _check_input(x, k)  # says what; decoding a token has no time for it
    if bias is not None:
        bias = as_vector(bias, "bias", n)
    lead = size[:-1]
    rows, ld = x, k
    if not x.is_contiguous():
        rows = x.reshape(lead.numel(), k)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        ld = rows.stride(0)
    y = x.new_empty(*lead, n)  # as a tuple it takes half a microsecond longer
    weight.linear_at(
        rows.data_ptr(),
        TYPES[x.dtype],
        lead.numel(),
        ld,
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        activations,
        num_threads(),
    )
    return y


def check_bias(bias: Tensor | None, y_step: Tensor | None) -> None:
    """Refuse a bias where the output is rounded to codes: it would come after that."""
    if bias is not None and y_step is not None and float(y_step) != 0:
        raise ArgumentError(
            "bias: expected none with a step of the output: models are trained with the "
            "bias added before it is rounded, and here it would be added after"
        )


def _check_input(x: Tensor, k: int) -> None:
    check_float(x, "x")
    if x.shape[-1] != k:
        raise ShapeError(f"x: expected shape (..., {k}), got {tuple(x.shape)}")


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
    check_bias(bias, y_step)
    return product(weight, shape, x, bias, activations)


def _linear_fake(x: Tensor, w: Tensor, *args: Any) -> Tensor:
    bias, format = args[2], args[5]
    _check_input(x, features(w, format_info(format)))
    if bias is not None:
        check_vector(bias, "bias", w.shape[0])
    return x.new_empty((*x.shape[:-1], w.shape[0]))


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, w, scales, _, bias, _, _, ctx.format, _ = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(w, scales)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Rounding, of the activations to codes and of trained steps, counts as identity.
    w, scales = ctx.saved_tensors
    gx = gb = None
    if ctx.needs_input_grad[0]:
        dense = torch.ops.halfbyte.dequantize(w, scales, ctx.format)
        gx = grad @ dense.to(grad.dtype)
    if ctx.needs_input_grad[4]:
        gb = grad.to(ctx.bias_dtype).sum_to_size(grad.shape[-1])
    return gx, None, None, None, gb, None, None, None, None


register(
    "linear(Tensor x, Tensor w, Tensor? scales, Tensor? panels, Tensor? bias, "
    "Tensor? x_step, Tensor? y_step, str format, str activations) -> Tensor",
    _linear,
    _linear_fake,
    _linear_context,
    _linear_backward,
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
    scales : float32 tensor of N elements, optional
        Of the formats with one scale a row.
    panels : uint8 tensor, optional
        The same weights in the order in which products read them, as `QuantLinear`
        makes them.
    bias : float tensor, shape (N,), optional
        Not where `y_step` rounds the output.
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
    check_tensors(x=x, w=w)
    check_optional_tensors(
        scales=scales, panels=panels, bias=bias, x_step=x_step, y_step=y_step
    )
    string(format, "format")
    string(activations, "activations")
    y: Tensor = torch.ops.halfbyte.linear(
        x, w, scales, panels, bias, x_step, y_step, format, activations
    )
    return y


# ---- packing and unpacking


def _dequantize(w: Tensor, scales: Tensor | None, format: str) -> Tensor:
    return _embedding_rows(torch.arange(w.shape[0]), w, scales, format)


def _embedding_rows(
    ids: Tensor, w: Tensor, scales: Tensor | None, format: str
) -> Tensor:
    check_indices(ids, "ids")
    if scales is not None and scales.dim() == 2 and scales.shape[1] != 1:
        return _grouped_rows(ids, w, scales, format)
    weight = weight_of(w, format, scales=scales)
    k = features(w, format_info(format))
    y = torch.empty((*ids.shape, k), dtype=torch.float32)
    at = ids.detach().reshape(-1).to(torch.int64).contiguous().numpy()
    weight.rows(at, y.view(at.size, k).numpy(), num_threads())
    return y


def _grouped_rows(ids: Tensor, w: Tensor, scales: Tensor, format: str) -> Tensor:
    """Rows that hold several embeddings side by side, each with its own scale."""
    k, groups = features(w, format_info(format)), scales.shape[1]
    if scales.shape[0] != w.shape[0] or not groups or k % groups:
        raise ShapeError(
            f"scales: expected {w.shape[0]} rows of a divisor of {k}, "
            f"got shape {tuple(scales.shape)}"
        )
    known = as_indices(ids.detach().numpy(), "ids", w.shape[0])
    at = torch.from_numpy(known).reshape(-1)
    packed = w.index_select(0, at)
    ones = torch.ones(at.numel(), dtype=torch.float32)
    levels = _dequantize(packed, ones, format).view(-1, groups, k // groups)
    scaled = levels * scales.detach().index_select(0, at).unsqueeze(-1)
    return scaled.view(*ids.shape, k)


def _quantize(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    info = _check_matrix(x, format)
    rows = aligned(x.detach().contiguous())
    trained = _as_bfloat16(rows) if format == "q4_0" else None  # or may be
    if trained is not None:
        bits = trained.view(torch.int16).numpy().view(np.uint16)
        packed, scales, _ = _core.recover_lattice(bits, format, num_threads())
    else:
        values = rows.float().numpy()
        packed, scales = _core.quantize(values, format, "rtn", None, num_threads())
    w = torch.from_numpy(packed).view(x.shape[0], row_bytes(info, x.shape[1]))
    return w, torch.from_numpy(scales)


def _as_bfloat16(x: Tensor) -> Tensor | None:
    """Finite numbers that are all bfloat16, in whichever type they are stored."""
    brief = x.bfloat16()
    return brief if x.isfinite().all() and torch.equal(brief.to(x.dtype), x) else None


def _check_matrix(x: Tensor, format: str) -> FormatInfo:
    check_float(x, "x")
    info = format_info(format)
    if not info.writable:
        raise ArgumentError(f"format: {format} can only be read")
    if x.dim() != 2 or x.shape[1] % info.block_len:
        raise ShapeError(
            f"x: expected shape (N, a multiple of {info.block_len}) for {format}, "
            f"got {tuple(x.shape)}"
        )
    return info


def _quantize_fake(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    info = _check_matrix(x, format)
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
    check_indices(ids, "ids")
    k = features(w, format_info(format))
    return ids.new_empty((*ids.shape, k), dtype=torch.float32)


register(
    "dequantize(Tensor w, Tensor? scales, str format) -> Tensor",
    _dequantize,
    _dequantize_fake,
)
register(
    "quantize(Tensor x, str format) -> (Tensor, Tensor)",
    _quantize,
    _quantize_fake,
)
register(
    "embedding_rows(Tensor ids, Tensor w, Tensor? scales, str format) -> Tensor",
    _embedding_rows,
    _embedding_rows_fake,
)


def _constant(scales: Tensor | None) -> Tensor | None:
    return None if scales is None else scales.detach()


def quantize(x: Tensor, format: str) -> tuple[Tensor, Tensor | None]:
    """Pack a matrix. Nothing flows back through it.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor, shape (N, K)
    format : str
        One that can be written: see `halfbyte.quantize`. In ``"q4_0"`` bfloat16 weights
        that were trained for it keep their steps and levels: see `halfbyte.lattice`.

    Returns
    -------
    w : uint8 tensor, shape (N, bytes of a row)
    scales : float32 tensor, shape (N,), or None
        None where blocks have their own.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.
    NumericalError
        If `x` is not finite, or too large for the format's steps, and the format is not
        one of floats.
    """
    check_tensors(x=x)
    string(format, "format")
    w, scales = torch.ops.halfbyte.quantize(x.detach(), format)
    return w, scales if format_info(format).row_scaled else None


def dequantize(w: Tensor, format: str, *, scales: Tensor | None = None) -> Tensor:
    """Unpack a matrix: exactly the values that the format defines.

    Parameters
    ----------
    w : uint8 tensor, shape (N, bytes of a row)
    format : str
    scales : float32 tensor of N elements or of shape (N, groups), optional
        Of the formats with one scale a row; several a row stand for equal parts of it.

    Returns
    -------
    float32 tensor, shape (N, K)

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.
    """
    check_tensors(w=w)
    check_optional_tensors(scales=scales)
    string(format, "format")
    dense: Tensor = torch.ops.halfbyte.dequantize(w, _constant(scales), format)
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
    scales : float32 tensor of N elements or of shape (N, groups), optional
        As for `dequantize`.

    Returns
    -------
    float32 tensor, shape (*ids.shape, K)

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an id is out of range, or an argument does not fit.
    """
    check_tensors(ids=ids, w=w)
    check_optional_tensors(scales=scales)
    string(format, "format")
    rows: Tensor = torch.ops.halfbyte.embedding_rows(ids, w, _constant(scales), format)
    return rows
