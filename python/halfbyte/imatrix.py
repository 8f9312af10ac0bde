# python/halfbyte/imatrix.py
# SPDX-License-Identifier: Apache-2.0
"""Importance of columns, as llama.cpp's `llama-imatrix` measures it on a text.

The error of an output is a sum over columns of the error of a weight times the activation
it is multiplied with. So the error of a column counts by the mean square of its
activations, which these files hold. `halfbyte.quantize` takes it as `importance`.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from halfbyte._arrays import F32Array
from halfbyte.errors import FormatError, TruncatedFileError
from halfbyte.files import File, PathLike, TensorInfo, open_gguf

__all__ = ["read_imatrix"]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_NAME = 1024  # bytes; tensors of GGUF files have up to 63


def read_imatrix(path: PathLike) -> dict[str, F32Array]:
    """Read an importance matrix, in GGUF or in the older form, .dat.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    dict of str to float32 array, shape (matrices * K,)
        By the name of the weight in a GGUF file; of experts, one after another. 1
        throughout for an expert that no token came to.

    Raises
    ------
    FormatError
        If the file is no importance matrix, or damaged. `TruncatedFileError` is a kind.
    OSError
        If it cannot be opened.
    """
    name = os.fsdecode(path)
    with Path(name).open("rb") as file:
        if file.read(4) != b"GGUF":
            file.seek(0)
            return _read_dat(file, name)
    return _read_gguf(open_gguf(name), name)


def _read_gguf(file: File, path: str) -> dict[str, F32Array]:
    kind = file.metadata.get("general.type")
    if kind != "imatrix":
        raise _error(path, f"general.type: expected imatrix, found {kind!r}")
    tensors = {tensor.name: tensor for tensor in file.tensors}
    return {
        name.removesuffix(_SUMS): _means(file, path, name, tensors)
        for name in tensors
        if name.endswith(_SUMS)
    }


def _means(
    file: File, path: str, name: str, tensors: dict[str, TensorInfo]
) -> F32Array:
    """Mean squares of a tensor: sums over the numbers of activations."""
    sums = _numbers(file, path, tensors[name])
    other = name.removesuffix(_SUMS) + _COUNTS
    if other not in tensors:
        raise _error(path, f"tensor {name!r}: expected {other!r} beside it")
    counts = _numbers(file, path, tensors[other])
    if not counts.size or sums.size % counts.size:
        raise _error(
            path,
            f"tensor {other!r}: expected a divisor of the {sums.size} numbers of "
            f"{name!r}, found {counts.size}",
        )
    rows, by = sums.reshape(counts.size, -1), counts[:, np.newaxis]
    with np.errstate(over="ignore"):
        means = np.where(by > 0, rows / np.where(by > 0, by, 1), np.float32(1))
    return _checked(means.reshape(-1), path, name)


def _numbers(file: File, path: str, tensor: TensorInfo) -> F32Array:
    if tensor.type != "F32":
        raise _error(path, f"tensor {tensor.name!r}: expected F32, found {tensor.type}")
    return _checked(file.tensor_bytes(tensor.name).view("<f4"), path, tensor.name)


def _checked(values: NDArray[np.float32], path: str, name: str) -> F32Array:
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if wrong.size:
        raise _error(
            path,
            f"{name!r}: expected finite numbers, 0 or more, found "
            f"{values[wrong[0]]} at {wrong[0]}",
        )
    return values.astype(np.float32)


# ---- the older form: a count, then name, number of calls and sums over them of each


def _read_dat(file: BinaryIO, path: str) -> dict[str, F32Array]:
    end = os.fstat(file.fileno()).st_size
    found: dict[str, F32Array] = {}
    (count,) = _read_ints(file, path, end, 1)
    if count < 1:
        raise _error(path, f"expected a number of tensors, 1 or more, found {count}")
    for _ in range(count):
        name = _read_name(file, path, end)
        if name in found:
            raise _error(path, f"{name!r}: found twice")
        calls, size = _read_ints(file, path, end, 2)
        if calls < 1 or size < 1:
            raise _error(
                path,
                f"{name!r}: expected numbers of calls and values, 1 or more, found "
                f"{calls} and {size}",
            )
        sums = np.frombuffer(_read(file, path, end, 4 * size), "<f4")
        means = (sums / np.float32(calls)).astype(np.float32)
        found[name] = _checked(means, path, name)
    return found


def _read_name(file: BinaryIO, path: str, end: int) -> str:
    (size,) = _read_ints(file, path, end, 1)
    if not 1 <= size <= _MAX_NAME:
        raise _error(
            path,
            f"expected a name of 1 to {_MAX_NAME} bytes at byte {file.tell()}, "
            f"found {size}: this is no importance matrix",
        )
    raw = _read(file, path, end, size)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _error(path, f"expected a name in UTF-8, found {raw[:64]!r}") from None


def _read_ints(file: BinaryIO, path: str, end: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}i", _read(file, path, end, 4 * count))


def _read(file: BinaryIO, path: str, end: int, size: int) -> bytes:
    """Read so many bytes, which the file has to have before any room is made for them."""
    if size > end - file.tell():
        raise TruncatedFileError(
            f"{path}: imatrix: expected {size} bytes at byte {file.tell()}, found "
            f"{end - file.tell()}: no importance matrix, or an incomplete download?",
            path=path,
            kind="imatrix",
            offset=file.tell(),
        )
    return file.read(size)


def _error(path: str, what: str) -> FormatError:
    return FormatError(f"{path}: imatrix: {what}", path=path, kind="imatrix")
