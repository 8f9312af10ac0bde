# python/halfbyte/roof.py
# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at best: the measure of every speed.

One token reads each weight once, so the read bandwidth bounds it; many tokens share what
was read, and arithmetic bounds them. A share of the roof means the same on every machine,
tokens per second do not. Each function measures once, for some milliseconds: call it
beside what is compared with it, since machines change their speed from second to second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halfbyte import _core, targets
from halfbyte._arguments import whole

__all__ = ["buffer", "dot_peak", "fma_peak", "read_bandwidth"]


def _threads(n: int | None) -> int:
    return targets.num_threads() if n is None else targets._valid(n, "threads")


def buffer(size: int = 512 << 20) -> NDArray[np.uint8]:
    """Allocate memory that can be read at full speed: huge pages, all of them there.

    Parameters
    ----------
    size : int
        Bytes. A read bandwidth is that of memory if they are several times the last
        cache.

    Returns
    -------
    uint8 array, shape (size,)

    Raises
    ------
    OutOfMemoryError
        If this process cannot have as much.
    ArgumentError, DTypeError
        If `size` is below 0, or no whole number.
    """
    return _core.huge_buffer(whole(size, "size", 0, 2**62), targets.num_threads())


def read_bandwidth(data: NDArray[np.uint8], *, threads: int | None = None) -> float:
    """Measure how fast memory is read: vector loads and one exclusive or each.

    Parameters
    ----------
    data : uint8 array, contiguous
        What is read, from end to end, a contiguous piece a thread.
    threads : int, optional
        `halfbyte.num_threads` by default.

    Returns
    -------
    float
        GB/s (10^9 bytes): the best of one, two and four streams a thread.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit.
    """
    count, flat = _threads(threads), data.reshape(-1)
    return max(_core.read_bandwidth(flat, streams, count) for streams in (1, 2, 4))


def dot_peak(*, threads: int | None = None) -> float:
    """Measure dot products of bytes on registers alone, by the kernels' instruction.

    Parameters
    ----------
    threads : int, optional
        `halfbyte.num_threads` by default.

    Returns
    -------
    float
        GMAC/s (10^9 multiply-adds).

    Raises
    ------
    ArgumentError, DTypeError
        If `threads` is not from 1 to 1024.
    """
    return _core.dot_peak(_threads(threads))


def fma_peak(*, threads: int | None = None) -> float:
    """Measure fused multiply-adds of float32 on registers alone, as `dot_peak` does."""
    return _core.fma_peak(_threads(threads))
