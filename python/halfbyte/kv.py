# python/halfbyte/kv.py
# SPDX-License-Identifier: Apache-2.0
"""Keys and values in 8 bits, from NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halfbyte import _core
from halfbyte._arguments import flag, number
from halfbyte._arrays import Array, F32Array, as_f32, heads_of, new_or_checked
from halfbyte.errors import ArgumentError, DTypeError, ShapeError
from halfbyte.kv_codes import KvCodes
from halfbyte.targets import num_threads

__all__ = ["KvCodes", "dequantize_kv", "quantize_kv"]

_F32_MIN, _F32_MAX = 1.1754943508222875e-38, 3.4028234663852886e38


def quantize_kv(
    x: Array,
    *,
    step: float | None = None,
    rotate: bool | None = None,
    out: KvCodes | None = None,
) -> KvCodes:
    """Round keys or values to 8 bits, for `halfbyte.attention`.

    Parameters
    ----------
    x : float32, float16 or bfloat16 array, shape (batch, kv_heads, tokens, head_dim)
    step : float, optional
        One for all, as a checkpoint was trained with. By default each row of a head
        has its own: its largest magnitude over 127.
    rotate : bool, optional
        Transform each row before, so that a few large elements do not set the step for
        the others. On by default, unless there is a `step`.
    out : KvCodes of that shape, optional
        Written and returned: a part of a cache.

    Returns
    -------
    KvCodes
        The same bits for any number of threads and on every CPU.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.

    Notes
    -----
    Codes are ``rint(y / step)`` within -128 to 127, where y is the row, or ``H y`` with
    the orthonormal Walsh-Hadamard matrix of the largest power of two up to 512 that
    divides `head_dim`, block by block. Products of two rows stay as they are under it,
    so queries are transformed instead of keys. A row whose step would be below the
    smallest normal number becomes 0; one that is not finite becomes NaN, or is clamped
    where there is a `step` (NaN to 0).

    Examples
    --------
    >>> kept = quantize_kv(np.ones((1, 1, 2, 4), np.float32), rotate=False)
    >>> kept.codes[0, 0, 0], kept.steps.shape
    (array([127, 127, 127, 127], dtype=int8), (1, 1, 2))
    """
    rows = heads_of(as_heads(x, "x"))
    size, turned = rounding(step, rotate)
    if out is None:
        codes = np.empty(rows.shape, np.int8)
        out = KvCodes(codes, np.empty(rows.shape[:3], np.float32), turned)
    _check_kv(out, "out")
    if out.shape != rows.shape or out.rotated != turned:
        raise ShapeError(
            f"out: expected shape {rows.shape}, rotated={turned}, "
            f"got {out.shape}, rotated={out.rotated}"
        )
    _core.encode_i8(rows, turned, size, out.codes, out.steps[..., None], num_threads())
    return out


def dequantize_kv(x: KvCodes, *, out: F32Array | None = None) -> F32Array:
    """Give back what `quantize_kv` made of keys or values.

    Parameters
    ----------
    x : KvCodes
    out : float32 array, shape ``x.shape``, optional
        Written and returned.

    Returns
    -------
    float32 array, shape (batch, kv_heads, tokens, head_dim)

    Raises
    ------
    DTypeError, ShapeError
        If an argument does not fit; the message names it.
    """
    codes, steps = core_arrays(_check_kv(x, "x"))
    result = new_or_checked(out, x.shape)
    _core.decode_i8(codes, steps, x.rotated, result, num_threads())
    return result


def rounding(step: float | None, rotate: bool | None) -> tuple[float, bool]:
    """The step that rows share, 0 for their own, and whether they are transformed."""
    size = 0.0 if step is None else number(step, "step")
    if step is not None and not _F32_MIN <= size <= _F32_MAX:
        raise ArgumentError(f"step: expected a normal float32 above 0, got {step}")
    return size, step is None if rotate is None else flag(rotate, "rotate")


def core_arrays(x: KvCodes) -> tuple[NDArray[np.int8], F32Array]:
    """Codes, and steps with one dimension more, as the core reads them."""
    steps = x.steps
    if steps.shape[2] > 1 and steps.strides[2] != steps.itemsize:
        steps = np.ascontiguousarray(steps)
    return heads_of(x.codes), heads_of(steps[..., None])


def as_heads(x: Array, name: str) -> F32Array:
    """`x` as float32, if it has the dimensions of heads."""
    values = as_f32(x, name, _core.from_dlpack)
    if values.ndim != 4:
        raise ShapeError(
            f"{name}: expected shape (batch, heads, tokens, head_dim), got {values.shape}"
        )
    return values


def _check_kv(x: object, name: str) -> KvCodes:
    if not isinstance(x, KvCodes):
        raise DTypeError(f"{name}: expected KvCodes, got {type(x).__name__}")
    return x
