# benchmarks/synth/noise.py
# SPDX-License-Identifier: Apache-2.0
"""Random bytes that are the same on every machine, as many as are asked for."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["POOL", "Pool", "raw", "spread", "tag"]

# Bytes of random blocks that exist at a time, of one kind and level. There are up to
# nine of them; half as much made nothing faster.
POOL = 16 << 20


def raw(size: int, *seed: int) -> NDArray[np.uint8]:
    """Random bytes, the same everywhere: NumPy keeps its bit generators as they are."""
    words = np.random.PCG64(seed).random_raw(-(-size // 8))
    return words.astype("<u8", copy=False).view(np.uint8)[:size]


def tag(text: str) -> int:
    """Make a part of a seed of a name."""
    return zlib.crc32(text.encode())


def spread(pairs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Two random bytes a row as numbers from 0.75 to 1.25."""
    return (pairs.view("<u2") & 0x7FFF).astype(np.float32) / np.float32(
        65536
    ) + np.float32(0.75)


class Pool:
    """An endless row of random bytes.

    A pool is handed out again and again. Each time around, `codes` are other ones, so
    no two pages of weights are equal and none is served twice from a cache.

    Parameters
    ----------
    data : ndarray
        uint8, contiguous.
    codes : ndarray
        uint16, a part of `data` that may hold anything; at least one a page.
    """

    def __init__(self, data: NDArray[np.uint8], codes: NDArray[np.uint16]) -> None:
        self._bytes = data.reshape(-1)
        self._codes = codes
        self._at = 0

    def take(self, size: int) -> Iterator[memoryview]:
        """Hand out the next bytes, which are gone when the next are asked for."""
        while size:
            part = self._bytes[self._at : self._at + size]
            yield part.data
            size -= len(part)
            self._at += len(part)
            if self._at == len(self._bytes):
                self._at = 0
                self._renew()

    def _renew(self) -> None:
        self._codes += np.uint16(1)
