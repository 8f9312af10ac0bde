# python/halfbyte/_arrays.py
# SPDX-License-Identifier: Apache-2.0
"""Arrays of any origin as what the core takes: float32 rows, side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfbyte.errors import ArgumentError, DTypeError, ShapeError


class DLPack(Protocol):
    """Whose memory others can read in place, such as a tensor of torch."""

    def __dlpack__(self, *args: Any, **options: Any) -> Any:
        """Return the memory in a capsule."""


Array = NDArray[Any] | DLPack
F32Array = NDArray[np.float32]
Item = TypeVar("Item", bound=np.generic)
FromDLPack = Callable[[Any], tuple[NDArray[Any], bool]]

_F32 = np.dtype(np.float32)
_WANTED = "expected float32, float16 or bfloat16"


def _bf16_to_f32(bits: NDArray[np.uint16]) -> F32Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _exchange(x: Any, name: str, from_dlpack: FromDLPack) -> tuple[NDArray[Any], bool]:
    """Array and "holds bfloat16 bits" of an object that speaks DLPack."""
    if getattr(x, "is_neg", bool)():  # of torch, whose capsules leave the sign out
        x = x.resolve_neg()
    try:
        try:
            capsule = x.__dlpack__(max_version=(1, 0), dl_device=(1, 0), copy=False)
        except TypeError:  # a producer from before version 1
            capsule = x.__dlpack__()
    except (RuntimeError, ValueError, BufferError) as error:
        raise DTypeError(f"{name}: {_WANTED} in CPU memory: {error}") from error
    try:
        return from_dlpack(capsule)
    except DTypeError as error:
        raise DTypeError(f"{name}: {error}") from error


def no_mask(x: object, name: str) -> None:
    """Refuse an array whose mask would be lost."""
    if isinstance(x, np.ma.MaskedArray):
        raise DTypeError(f"{name}: expected an array without mask, got a masked array")


def as_f32(x: object, name: str, from_dlpack: FromDLPack) -> F32Array:
    """`x` as float32: itself if it is that, else a copy."""
    if type(x) is np.ndarray and x.dtype == _F32:
        return x
    no_mask(x, name)
    if not isinstance(x, np.ndarray):
        if not hasattr(x, "__dlpack__"):
            raise DTypeError(f"{name}: expected an array, got {type(x).__name__}")
        array, is_bf16 = _exchange(x, name, from_dlpack)
        if is_bf16:
            return _bf16_to_f32(array)
        x = array
    if x.dtype.name == "bfloat16" and x.dtype.itemsize == 2:
        return _bf16_to_f32(np.asarray(x).view(np.uint16))
    if x.dtype not in (np.float32, np.float16):
        raise DTypeError(f"{name}: {_WANTED}, got {x.dtype}")
    return np.asarray(x).astype(np.float32, copy=False)


def rows_of(x: NDArray[Item]) -> NDArray[Item]:
    """`x` with its leading dimensions as one, copied only if rows do not lie so."""
    flags = x.flags
    if x.ndim == 2 and flags.c_contiguous and flags.aligned:
        return x
    item = x.itemsize
    rows = (
        x.reshape(-1, x.shape[-1]) if x.size else x.reshape(_num_rows(x), x.shape[-1])
    )
    taken = (
        rows.flags.aligned
        and (rows.shape[1] <= 1 or rows.strides[1] == item)
        and (rows.shape[0] <= 1 or rows.strides[0] >= 0)
        and rows.strides[0] % item == 0
    )
    return rows if taken else np.require(rows, requirements=["C", "A"])


def heads_of(x: NDArray[Any]) -> NDArray[Any]:
    """`x` itself if its rows are contiguous and its strides run forwards, else a copy."""
    item = x.itemsize
    steps = [s for s, size in zip(x.strides, x.shape, strict=True) if size > 1]
    taken = (
        x.flags.aligned
        and (x.shape[-1] <= 1 or x.strides[-1] == item)
        and all(step >= 0 and step % item == 0 for step in steps)
    )
    return x if taken else np.require(x, requirements=["C", "A"])


def _num_rows(x: NDArray[Any]) -> int:
    n = 1
    for size in x.shape[:-1]:
        n *= size
    return n


def as_vector(x: object, name: str, from_dlpack: FromDLPack) -> F32Array:
    """`x` as a contiguous and aligned float32 vector."""
    return np.require(as_f32(x, name, from_dlpack), requirements=["C", "A"])


def output(out: F32Array | None, shape: tuple[int, ...]) -> tuple[F32Array, F32Array]:
    """The array to return and the view of its rows to write."""
    out = new_or_checked(out, shape)
    return out, as_out_rows(out, shape[-1])


def new_or_checked(out: F32Array | None, shape: tuple[int, ...]) -> F32Array:
    """A new array, or `out` if it has the shape and can be written."""
    if out is None:
        return np.empty(shape, np.float32)
    no_mask(out, "out")
    if not isinstance(out, np.ndarray) or out.dtype != np.float32:
        got = getattr(out, "dtype", type(out).__name__)
        raise DTypeError(f"out: expected a float32 array, got {got}")
    if out.shape != shape:
        raise ShapeError(f"out: expected shape {shape}, got {out.shape}")
    if not out.flags.writeable or not out.flags.aligned:
        raise ShapeError("out: expected a writable and aligned array")
    return out


def as_out_rows(out: NDArray[Item], cols: int) -> NDArray[Item]:
    """A view of `out` as rows of `cols` elements."""
    if out.ndim == 2 and out.shape[1] == cols:
        return out
    rows = out.reshape(out.size // cols if cols else _num_rows(out), cols)
    if out.size and not np.may_share_memory(rows, out):
        raise ShapeError(f"out: expected contiguous rows, got strides {out.strides}")
    return rows


def as_ids(x: ArrayLike, name: str, below: int) -> NDArray[np.int64]:
    """A vector of integers in [0, below), copied."""
    array = as_indices(x, name, below)
    if array.ndim != 1:
        raise ArgumentError(f"{name}: expected one dimension, got shape {array.shape}")
    return array


def as_indices(x: ArrayLike, name: str, below: int) -> NDArray[np.int64]:
    """Integers in [0, below), copied."""
    no_mask(x, name)
    try:
        array = np.asarray(x)
    except ValueError:  # rows of several lengths
        raise ShapeError(f"{name}: expected an array, got uneven rows") from None
    if array.size == 0 and array.dtype == np.float64:  # what an empty list becomes
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{name}: expected integers, got {array.dtype}")
    wrong = (array < 0) | (array >= below)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        place = f" at {where}" if where else ""
        raise ArgumentError(
            f"{name}: expected 0 to {below - 1}, got {array[where]}{place}"
        )
    return array.astype(np.int64)
