# python/halfbyte/verification/contents.py
# SPDX-License-Identifier: Apache-2.0
"""Every byte of a file's tensors: what is no number, what was never written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from halfbyte.files import File, TensorInfo

__all__ = ["problems"]

_WEIGHTS = 4 << 20  # decoded at a time: 16 MiB
_PIECE = 1 << 20  # bytes that are looked at together


def problems(
    file: File, *, progress: Callable[[int, int], None] | None = None
) -> Iterator[str]:
    """Read all tensors, and say what is wrong with them.

    A step that is infinite or not a number makes its weights so, which is how it is
    found: weights are decoded as products decode them. Every code of the formats that
    can be decoded is a level, so there are none out of range.

    Parameters
    ----------
    file : File
    progress : callable, optional
        Called with the bytes read and those of all tensors.

    Yields
    ------
    str
        One line a tensor.

    Raises
    ------
    FileChangedError
        If the file was changed in place meanwhile.
    """
    total, done = sum(tensor.bytes for tensor in file.tensors), 0
    for tensor in file.tensors:
        problem = _empty(file, tensor) or _not_finite(file, tensor)
        if problem is not None:
            yield f"tensor {tensor.name!r}: {problem}"
        done += tensor.bytes
        if progress is not None:
            progress(done, total)


def _empty(file: File, tensor: TensorInfo) -> str | None:
    """Find zero bytes where weights should be, as in downloads that were cut off.

    In most types some rows may be zeros; no quantizer leaves whole pieces of them in
    Q4_0 and Q5_0, whose code for 0 is not 0.
    """
    data = file.tensor_bytes(tensor.name)
    whole = data[: data.size // _PIECE * _PIECE].reshape(-1, _PIECE)
    empty = [i for i, piece in enumerate(whole) if not piece.any()]
    some_may_be = tensor.format not in ("q4_0", "q5_0")
    if not empty or (some_may_be and len(empty) * _PIECE < data.size // 16):
        return None
    return (
        f"{len(empty)} MiB of zero bytes, the first from byte "
        f"{tensor.offset + empty[0] * _PIECE} of the file on; expected weights - an "
        "incomplete download?"
    )


def _not_finite(file: File, tensor: TensorInfo) -> str | None:
    """Find the first weight that is infinite or not a number."""
    if tensor.format is None or math.prod(tensor.shape) == 0:
        return None
    weight = file.weight(tensor.name)
    n, k = weight.shape
    step = max(_WEIGHTS // k, 1)
    for start in range(0, n, step):
        values = weight.dequantize(np.arange(start, min(start + step, n)))
        # A sum is finite only if all are; one that overflows is looked at closely.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum()):
                continue
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            row, column = wrong[0].tolist()
            return (
                f"weight {start + row}, {column} is {values[row, column]}; expected "
                "finite numbers"
            )
    return None
