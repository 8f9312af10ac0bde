# python/halfbyte/formats.py
# SPDX-License-Identifier: Apache-2.0
"""Packed weights: what the bytes of a matrix are, and the way in and out of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfbyte import _core, _picture, targets
from halfbyte._arguments import one_of, whole
from halfbyte._arrays import (
    Array,
    F32Array,
    as_f32,
    as_indices,
    as_vector,
    output,
    rows_of,
)
from halfbyte.errors import ArgumentError, DTypeError, ShapeError

__all__ = [
    "QUANTIZERS",
    "FormatInfo",
    "Rounding",
    "Weight",
    "dequantize",
    "format_info",
    "formats",
    "quantize",
]

Rounding = Literal["rtn", "mse", "imatrix"]
QUANTIZERS: tuple[Rounding, ...] = get_args(Rounding)


class FormatInfo(NamedTuple):
    """What a format's blocks are."""

    name: str
    """One of `formats`."""
    type_id: int
    """Of its tensors in GGUF files; 1000 and up where GGUF has no such type."""
    block_len: int
    """Weights a block."""
    block_bytes: int
    """Bytes a block."""
    writable: bool
    """Whether `quantize` makes it."""
    row_scaled: bool
    """One float32 scale a row, kept beside the blocks."""
    searched: bool
    """Whether `quantize` has quantizers other than ``"rtn"``."""


_FORMATS = {entry[0]: FormatInfo(*entry) for entry in _core.formats()}


def formats() -> list[str]:
    """Names of the weight formats, such as ``"q4_0"``.

    Returns
    -------
    list of str
    """
    return list(_FORMATS)


def format_info(name: str) -> FormatInfo:
    """Block length and size of a format.

    Parameters
    ----------
    name : str
        One of `formats`.

    Returns
    -------
    FormatInfo

    Raises
    ------
    ArgumentError, DTypeError
        If there is no such format, or `name` is no str.
    """
    return _FORMATS[one_of(name, "format", _FORMATS)]


class Weight:
    """A packed matrix of N output and K input features. Immutable.

    Parameters
    ----------
    data : uint8 array
        The blocks, row after row. Not copied if contiguous: it may be a mapped file.
        Any shape.
    format : str
        One of `formats`.
    shape : (int, int)
        N and K.
    scales : float32 array, shape (N,), optional
        What a level of each row stands for, in the formats ``"w8"``, ``"w4"`` and
        ``"w2"``; 1 by default. The others have their scales in the blocks.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If the bytes are not N rows of K weights of that format.
    """

    __slots__ = ("_core", "_data", "_format", "_panels", "_scales", "_shape")

    def __init__(
        self,
        data: NDArray[np.uint8],
        format: str,
        shape: tuple[int, int],
        scales: Array | None = None,
    ) -> None:
        info = format_info(format)
        n, k = _sizes(shape)
        if n < 0 or k < 0 or k % info.block_len != 0:
            raise ShapeError(
                f"shape: expected K a multiple of {info.block_len} for {format}, "
                f"got {(n, k)}"
            )
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
            got = getattr(data, "dtype", type(data).__name__)
            raise DTypeError(f"data: expected a uint8 array, got {got}")
        want = n * (k // info.block_len) * info.block_bytes
        if data.size != want:
            raise ShapeError(f"data: expected {want} bytes, got {data.size}")
        flat = np.ascontiguousarray(data).reshape(-1).view()
        flat.flags.writeable = False
        self._data, self._format, self._shape = flat, format, (n, k)
        self._panels: NDArray[np.uint8] | None = None
        self._scales = _scales(info, n, scales)
        self._core = self._checked()

    def _checked(self) -> _core.Weight:
        n, k = self._shape
        return _core.Weight(
            self._data, self._format, n, k, self._scales, self._panels, 0.0, 0.0
        )

    @property
    def data(self) -> NDArray[np.uint8]:
        """The packed bytes, a read-only vector."""
        return self._data

    @property
    def format(self) -> str:
        """Name of the format."""
        return self._format

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return self._shape

    @property
    def scales(self) -> F32Array | None:
        """The scale of each row, read-only; None where blocks have their own."""
        return self._scales

    @property
    def nbytes(self) -> int:
        """Bytes of the packed data, and of the scales of rows."""
        return int(
            self._data.size + (0 if self._scales is None else 4 * self._shape[0])
        )

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, its share of what else is in a block included."""
        info = _FORMATS[self._format]
        return 8 * info.block_bytes / info.block_len

    def repack(self) -> Weight:
        """Copy the weight into the order in which products read it.

        Products then run at the speed of memory; without it they reorder as they go,
        which costs most where there are few rows of activations. No value and no result
        changes. Float formats are multiplied as they are and get no copy.

        Returns
        -------
        Weight
            The same weight, with about as many bytes again beside `data`.

        Examples
        --------
        >>> w = quantize(np.eye(64, dtype=np.float32), "q4_0").repack()
        >>> w.repacked_nbytes
        2304
        """
        weight = Weight(self._data, self._format, self._shape, self._scales)
        weight._panels = self._core.panels(targets.num_threads())
        weight._core = weight._checked()
        return weight

    @property
    def repacked_nbytes(self) -> int:
        """Bytes of the copy in kernel order; 0 without one."""
        return 0 if self._panels is None else self._panels.nbytes

    def dequantize(self, rows: ArrayLike | None = None) -> F32Array:
        """Unpack the matrix, or some of its rows; see `halfbyte.dequantize`."""
        return dequantize(self, rows=rows)

    def __repr__(self) -> str:
        """Describe shape, format and size."""
        n, k = self._shape
        return f"Weight({n} x {k}, {self._format}, {self.nbytes} bytes)"

    def _repr_html_(self) -> str:
        """Describe it for a notebook, with a small picture of the magnitudes.

        Of large matrices a sample of the rows is read for it.
        """
        n, k = self._shape
        table = {
            "shape": f"{n} x {k}",
            "format": self._format,
            "bytes": f"{self.nbytes:,}",
            "bits per weight": f"{self.bits_per_weight:g}",
        }
        if n and k:
            means = _picture.block_means(self._shape, self.dequantize)
            table["mean |weight|"] = _picture.image_tag(means)
        rows = (f"<tr><th>{name}</th><td>{x}</td></tr>" for name, x in table.items())
        return f"<table><caption>halfbyte.Weight</caption>{''.join(rows)}</table>"

    def __reduce__(self) -> tuple[type[Weight], tuple[object, ...]]:
        """Pickle the bytes, also those of a mapped file."""
        data, scales = np.array(self._data), self._scales
        return Weight, (data, self._format, self._shape, scales)


def packed(w: Any) -> Weight:
    """`w` if it is a weight."""
    if not isinstance(w, Weight):
        got = type(w).__name__
        raise DTypeError(
            f"w: expected a Weight, got {got} - halfbyte.quantize packs one"
        )
    return w


def _sizes(shape: tuple[int, int]) -> tuple[int, int]:
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        raise DTypeError(f"shape: expected (N, K), got {type(shape).__name__}")
    sizes = tuple(shape)
    if len(sizes) != 2:
        raise ShapeError(f"shape: expected (N, K), got {len(sizes)} numbers")
    n, k = (whole(size, "shape", -(2**63), 2**63 - 1) for size in sizes)
    return n, k


def _scales(info: FormatInfo, n: int, scales: Array | None) -> F32Array | None:
    """Scales of n rows, ones if none are given; None for other formats."""
    if not info.row_scaled:
        if scales is not None:
            raise ArgumentError(f"scales: {info.name} has its scales in the blocks")
        return None
    if scales is None:
        values = np.ones(n, np.float32)
    else:
        values = np.array(as_f32(scales, "scales", _core.from_dlpack))
    if values.shape != (n,):
        raise ShapeError(f"scales: expected shape ({n},), got {values.shape}")
    values.flags.writeable = False
    return values


def quantize(
    x: Array,
    format: str,
    *,
    quantizer: Rounding = "rtn",
    importance: Array | None = None,
) -> Weight:
    """Pack a matrix.

    Parameters
    ----------
    x : float32, float16 or bfloat16 array, shape (N, K)
        K is a multiple of the format's block length.
    format : str
        ``"f32"``, ``"f16"``, ``"bf16"``, ``"q4_0"``, ``"q8_0"``, ``"q6_k"``, ``"w8"``,
        ``"w4"``, ``"w2"`` or ``"w4g32"``.
    quantizer : {"rtn", "mse", "imatrix"}
        ``"rtn"`` rounds to nearest by the usual step. The others search the step with
        the least sum of squared errors, in the formats of one step for 32 weights or for
        a row, and with both signs in ``"q4_0"`` and ``"q8_0"``; ``"imatrix"`` multiplies
        the squares by `importance`.
    importance : float32, float16 or bfloat16 array, shape (K,), optional
        How much an error in each column counts, such as the mean square of the
        activation it is multiplied with: see `halfbyte.imatrix`. None is negative.

    Returns
    -------
    Weight, shape (N, K)

    Raises
    ------
    ArgumentError
        If the format is unknown, can only be read, or has no such quantizer, or if
        `importance` is missing, in the way, or not finite and 0 or more.
    DTypeError, ShapeError
        If an argument is of another type, or `x` or `importance` does not fit; the
        message says how.
    NumericalError
        If `x` is not finite, or too large for the format's steps (from 5e5 on in
        ``"q4_0"``), and the format is not one of floats.

    Notes
    -----
    The ordinary quantizers of llama.cpp: Q4_0 and Q8_0 set the step by the weight of
    largest magnitude, Q6_K searches the step of every 16 weights. W8, W4 and W2 have one
    scale a row: its largest magnitude becomes the highest level, 127, 7 or 1. W4G32 is
    the int4 of compressed-tensors in groups of 32: d = max |w| / 7.5.

    A search tries some 80 steps, the ordinary one among them: the error of no block is
    larger than with ``"rtn"``. `halfbyte.reference.quantize` is the same in NumPy.

    Examples
    --------
    >>> w = quantize(np.eye(32, dtype=np.float32), "q4_0")
    >>> w.shape, w.nbytes, w.bits_per_weight
    ((32, 32), 576, 4.5)
    """
    values = as_f32(x, "x", _core.from_dlpack)
    info = format_info(format)
    if not info.writable:
        raise ArgumentError(f"format: {format} can only be read")
    if values.ndim != 2:
        raise ShapeError(f"x: expected shape (N, K), got {values.shape}")
    n, k = values.shape
    if k % info.block_len != 0:
        raise ShapeError(
            f"x: expected K a multiple of {info.block_len} for {format}, got {k}"
        )
    factors = column_factors(importance, quantizer, k)
    data, scales = _core.quantize(
        rows_of(values), format, quantizer, factors, targets.num_threads()
    )
    return Weight(data, format, (n, k), scales if info.row_scaled else None)


def column_factors(x: Array | None, quantizer: Rounding, k: int) -> F32Array | None:
    """The `importance` of k columns, if the quantizer takes one; both checked."""
    if (x is None) == (one_of(quantizer, "quantizer", QUANTIZERS) == "imatrix"):
        wanted = "wanted by" if x is None else "not for"
        raise ArgumentError(f"importance: {wanted} the quantizer {quantizer!r}")
    if x is None:
        return None
    factors = as_vector(x, "importance", _core.from_dlpack)
    if factors.shape != (k,):
        raise ShapeError(f"importance: expected shape ({k},), got {factors.shape}")
    wrong = np.flatnonzero(~((factors >= 0) & np.isfinite(factors)))
    if wrong.size:
        raise ArgumentError(
            f"importance: expected finite numbers, 0 or more, got {factors[wrong[0]]} "
            f"at {wrong[0]}"
        )
    return factors


def dequantize(
    w: Weight, *, rows: ArrayLike | None = None, out: F32Array | None = None
) -> F32Array:
    """Unpack a weight, or some of its rows.

    Parameters
    ----------
    w : Weight, shape (N, K)
    rows : integers, shape (R,), optional
        Which rows, in this order; all of them by default.
    out : float32 array, shape (N, K) or (R, K), optional
        Written and returned.

    Returns
    -------
    float32 array, shape (N, K) or (R, K)
        Exactly the values that the format defines.

    Raises
    ------
    ArgumentError
        If a row does not exist.
    DTypeError, ShapeError
        If an argument does not fit.
    """
    n, k = packed(w).shape
    ids = np.arange(n) if rows is None else as_indices(rows, "rows", n)
    if ids.ndim != 1:
        raise ShapeError(f"rows: expected shape (R,), got {ids.shape}")
    result, target = output(out, (len(ids), k))
    w._core.rows(ids, target, targets.num_threads())
    return result
