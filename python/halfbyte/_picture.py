# python/halfbyte/_picture.py
# SPDX-License-Identifier: Apache-2.0
"""A thumbnail of a matrix: where its magnitudes are large, in a few kB of PNG."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["block_means", "image_tag", "png"]

_TILES = (32, 64)  # at most, down and across: 2 kB of grey levels
_ROWS = 32  # read of each band of tiles at most, so that tables are not read whole
_PIXELS = 5  # a tile's side on the page


def _edges(size: int, most: int) -> NDArray[np.intp]:
    """Where at most `most` near-equal parts of `size` begin, and the last one ends."""
    parts = min(size, most)
    return np.arange(parts + 1) * size // parts


def block_means(
    shape: tuple[int, int],
    rows: Callable[[NDArray[np.intp]], NDArray[np.float32]],
) -> NDArray[np.float64]:
    """Mean magnitudes of the tiles of a matrix.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns, at least 1 of each.
    rows : callable
        From row numbers, shape (R,), to those rows, shape (R, columns). Asked for 32
        rows of a tile at most, evenly spread.

    Returns
    -------
    float64 array
        At most 32 x 64. Infinite, or not a number, where a weight is.
    """
    down, across = _edges(shape[0], _TILES[0]), _edges(shape[1], _TILES[1])
    means = np.empty((len(down) - 1, len(across) - 1))
    for band, (first, end) in enumerate(pairwise(down)):
        picked = first + _edges(end - first, _ROWS)[:-1]
        columns = np.abs(rows(picked)).mean(axis=0, dtype=np.float64)
        means[band] = np.add.reduceat(columns, across[:-1]) / np.diff(across)
    return means


def png(grey: NDArray[np.uint8]) -> bytes:
    """Write a greyscale PNG file.

    Parameters
    ----------
    grey : uint8 array, shape (height, width)
        0 is black.

    Returns
    -------
    bytes
    """
    height, width = grey.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits of grey
    # A line begins with the number of its filter: none.
    lines = np.pad(grey, ((0, 0), (1, 0)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    size, check = len(data), zlib.crc32(kind + data)
    return struct.pack(">I", size) + kind + data + struct.pack(">I", check)


def image_tag(means: NDArray[np.float64]) -> str:
    """Draw `block_means` as an HTML image: the least is black, the largest white.

    What is no finite number is drawn white too.
    """
    finite = means[np.isfinite(means)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    shades = np.full(means.shape, 255, np.uint8)
    shades[np.isfinite(means)] = np.rint((finite - low) * (255 / (high - low or 1.0)))
    data = base64.b64encode(png(shades)).decode()
    height, width = (_PIXELS * size for size in means.shape)
    return (
        f'<img alt="mean magnitudes, {low:.3g} to {high:.3g}" width="{width}" '
        f'height="{height}" style="image-rendering: pixelated" '
        f'src="data:image/png;base64,{data}"><br>black {low:.3g}, white {high:.3g}'
    )
