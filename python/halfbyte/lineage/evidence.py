# python/halfbyte/lineage/evidence.py
# SPDX-License-Identifier: Apache-2.0
"""The numbers that a verdict on lineage rests on, as lines and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from halfbyte._svg import Picture
from halfbyte.lineage.traces import TensorTrace

__all__ = ["Evidence", "collect", "draw"]


class Evidence(NamedTuple):
    """One number of every tensor of a kind, and what it would be expected to be."""

    kind: str
    """As of `TensorTrace`."""
    what: str
    """What the number counts."""
    values: tuple[float, ...]
    """One a tensor that has it, in the order of the file."""
    trained: str
    """What is expected of weights that were trained for 4 bits."""
    other: str
    """What is expected of others."""


# Field of a trace, what it counts, and what is expected, by the kinds that show it.
_FLOATS = (
    ("lattice", "groups on a 4-bit lattice", "1", "0"),
    ("finer", "of those, step is no float16 number", "0.02 to 0.1", "0: packed before"),
)
_BLOCKS = (
    ("lowest", "blocks with a level of -8", "1 if packed as usual", "same"),
    ("fours", "levels of +-4 for each of +-3 and +-5", "0 if packed as usual", "1"),
)
_CODES = (
    ("lowest", "blocks with the lowest level", "any", "0, or any"),
    ("full", "blocks with a level near an end", "1; less by the lattice", "1"),
    ("ends", "weights at such a level", "some percent", "less, or same"),
)
_ONE_STEP = (("negative", "blocks with a negative step", "1", "0 if packed as usual"),)


def _shown_of(kind: str) -> tuple[tuple[str, str, str, str], ...]:
    own = {"bf16": _FLOATS + _BLOCKS, "q4_0": _BLOCKS, "tq2_0": _ONE_STEP}
    return own.get(kind, _CODES)


def collect(tensors: Sequence[TensorTrace]) -> list[Evidence]:
    """Take from the traces what counts for their kind.

    Parameters
    ----------
    tensors : sequence of TensorTrace

    Returns
    -------
    list of Evidence
        By kind, in the order of the file.
    """
    found = []
    for kind in dict.fromkeys(tensor.kind for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.kind == kind]
        for field, what, trained, other in _shown_of(kind):
            values = [getattr(tensor, field) for tensor in same]
            known = tuple(value for value in values if value is not None)
            if known:
                found.append(Evidence(kind, what, known, trained, other))
    return found


_WIDTH, _TOP = 780, 76  # of the picture, and above the axes
_LEFT, _SCALE, _ROW = 300, 250, 34  # the axes: where, how long, how far apart
_BARS = 110  # height of the most frequent level


def draw(title: str, reason: str, tensors: Sequence[TensorTrace]) -> str:
    """Draw every number of every tensor, and how often each level occurs.

    Parameters
    ----------
    title, reason : str
        Two lines above.
    tensors : sequence of TensorTrace

    Returns
    -------
    str
        An SVG document.
    """
    evidence, kinds = collect(tensors), dict.fromkeys(t.kind for t in tensors)
    below = _TOP + _ROW * len(evidence) + 30
    picture = Picture(
        f"{title}: {reason}", _WIDTH, below + (_BARS + 70 if kinds else 0)
    )
    picture.text(12, 24, title, "head")
    picture.text(12, 44, reason)
    if evidence:
        picture.text(_LEFT + _SCALE + 24, _TOP - 8, "if trained / if not", "faint")
    for i, line in enumerate(evidence):
        _draw_evidence(picture, _TOP + _ROW * i + 14, line)
    width = (_WIDTH - 24) / max(len(kinds), 1)
    for i, kind in enumerate(kinds):
        levels = [t.levels for t in tensors if t.kind == kind]
        _draw_levels(picture, 12 + i * width, below, min(width - 20, 300), kind, levels)
    return picture.svg()


def _draw_evidence(picture: Picture, y: float, line: Evidence) -> None:
    """A dot for each tensor on an axis from 0 to 1; what is beyond is at its end."""
    picture.text(_LEFT - 16, y + 4, f"{line.kind}: {line.what}", anchor="end")
    picture.line(_LEFT, y, _LEFT + _SCALE, y)
    for tick in (0, 1):
        x = _LEFT + _SCALE * tick
        picture.line(x, y - 5, x, y + 5)
        picture.text(x, y + 17, str(tick), "faint", anchor="middle")
    for value in sorted({round(min(value, 1.0), 3) for value in line.values}):
        picture.dot(_LEFT + _SCALE * value, y, 4, "first")
    picture.text(_LEFT + _SCALE + 24, y + 4, f"{line.trained} / {line.other}", "faint")


def _draw_levels(
    picture: Picture,
    left: float,
    top: float,
    width: float,
    kind: str,
    levels: Sequence[tuple[int, ...]],
) -> None:
    """How often each magnitude of a level occurs, over all tensors of a kind."""
    counts = [sum(column) for column in zip(*levels, strict=True)]
    picture.text(left, top + 8, f"{kind}: magnitudes of levels", "head")
    step, most = width / len(counts), max(counts)
    for level, count in enumerate(counts):
        height = _BARS * count / most
        x, y = left + level * step, top + 24 + _BARS - height
        picture.bar(x, y, 0.8 * step, height, "first")
        picture.text(x + 0.4 * step, top + _BARS + 40, str(level), anchor="middle")
