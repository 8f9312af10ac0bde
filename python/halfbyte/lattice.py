# python/halfbyte/lattice.py
# SPDX-License-Identifier: Apache-2.0
"""The lattice that quantization-aware training leaves in a checkpoint's weights.

A checkpoint trained for Q4_0 and published in bfloat16 holds, in each group of 32
neighbours, ``bfloat16(step * level)`` with levels from -8 to 7; one trained for the
mobile schema holds the same in each row, with levels of 2, 4 or 8 bits. An ordinary
quantizer sets its step by the largest magnitude and misses the trained one in most groups.
Here step and levels are found again, so that packing loses next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte import _core, targets
from halfbyte._arguments import instance
from halfbyte._arrays import Array, as_f32
from halfbyte.errors import ArgumentError, NumericalError, ShapeError
from halfbyte.formats import (
    Rounding,
    Weight,
    column_factors,
    format_info,
    packed,
    quantize,
)

__all__ = [
    "Group",
    "Mend",
    "Recovery",
    "Repair",
    "choose",
    "recover",
    "recover_bits",
    "repair",
]

_GROUP = 32


class Group(IntEnum):
    """What the weights that share a step turned out to be: 32 of them, or a row."""

    OFF = 1
    """No step makes integers of them: packed as `halfbyte.quantize` does."""
    AMBIGUOUS = 2
    """They fit, but fewer than four (of 8 bits: 32) are not 0, as may be by chance."""
    LEVELS = 3
    """They fit; rounding the step to 16 bits moves some weights by one bfloat16 ulp."""
    EXACT = 4
    """``bfloat16(step * level)`` is every weight, bit for bit but for the sign of zeros."""


@dataclass(frozen=True)
class Recovery:
    """A packed matrix, and how it was found."""

    weight: Weight
    """In the format that was asked for."""
    groups: NDArray[np.uint8]
    """A `Group` for each 32 weights, shape (N, K / 32), or for each row, (N, 1)."""

    def share(self, *kinds: Group) -> float:
        """Share of the groups that are of one of these kinds; 1 of none."""
        if self.groups.size == 0:
            return 1.0
        return float(np.isin(self.groups, [int(kind) for kind in kinds]).mean())

    @property
    def on_lattice(self) -> float:
        """Share of the groups whose levels are the trained ones."""
        return self.share(Group.AMBIGUOUS, Group.LEVELS, Group.EXACT)

    def __repr__(self) -> str:
        """Say how much was found."""
        shares = ", ".join(
            f"{kind.name.lower()} {self.share(kind):.2%}"
            for kind in reversed(Group)
            if kind in self.groups
        )
        n, k = self.weight.shape
        return f"Recovery({n} x {k}: {shares or 'empty'})"


def recover(
    x: Array,
    format: str = "q4_0",
    *,
    quantizer: Rounding = "rtn",
    importance: Array | None = None,
) -> Recovery:
    """Pack a bfloat16 matrix by the lattice it was trained on.

    Parameters
    ----------
    x : bfloat16 array, shape (N, K)
        K is a multiple of 32. float32 and float16 arrays whose values all are bfloat16
        numbers do as well.
    format : {"q4_0", "q8_0", "w4g32", "w2", "w4", "w8"}
        The first three hold the 4-bit levels of groups of 32, with a step in float16 or,
        of ``"w4g32"``, in bfloat16; the others those of rows, of 2, 4 and 8 bits, with a
        step in float32.
    quantizer, importance
        How groups off the lattice are packed: see `halfbyte.quantize`.

    Returns
    -------
    Recovery
        Weights on the lattice keep their levels; `Group` says how near each step comes.

    Raises
    ------
    ArgumentError
        If no lattice is stored in `format`, or as by `halfbyte.quantize`.
    DTypeError, ShapeError
        If `x` does not fit.
    NumericalError
        If a value is infinite, not a number, or no bfloat16 number.

    Notes
    -----
    A weight that was rounded from ``step * level`` lies within half an ulp of it, which
    pins the step to an interval. For each level that the largest magnitude may have, from
    1 up, the other levels follow; the first for which the intervals of all weights
    meet is the answer. Among the 16-bit steps around the middle of what they have in
    common, the one that gives the most weights back is stored; in rows one always gives
    all. A step is negative only if a level asks for it that the format has on one side
    alone: +8, or +2 and +128. `halfbyte.reference.recover` is the same in NumPy.

    Examples
    --------
    >>> levels = (5 * np.arange(32)) % 16 - 8
    >>> x = np.float32(0.0625) * levels[np.newaxis].astype(np.float32)
    >>> recover(x)
    Recovery(1 x 32: exact 100.00%)
    >>> recover(x, "w4").weight.scales  # the middle of the steps that give all back
    array([0.06250872], dtype=float32)
    """
    values = as_f32(x, "x", _core.from_dlpack)
    if values.ndim != 2 or values.shape[1] % _GROUP:
        raise ShapeError(
            f"x: expected shape (N, a multiple of {_GROUP}), got {values.shape}"
        )
    factors = column_factors(importance, quantizer, values.shape[1])
    _refuse(~np.isfinite(values), values, "finite values")
    bits = np.ascontiguousarray(values).view(np.uint32)
    _refuse(bits & 0xFFFF != 0, values, "a bfloat16 number")
    found = recover_bits((bits >> 16).astype(np.uint16), format)
    off = found.groups == Group.OFF
    if quantizer == "rtn" or not off.any():
        return found
    other = quantize(values, format, quantizer=quantizer, importance=factors)
    return Recovery(choose(off, other, found.weight), found.groups)


def recover_bits(bits: NDArray[np.uint16], format: str = "q4_0") -> Recovery:
    """Do as `recover` with the bits of bfloat16 numbers, where a file has them.

    Parameters
    ----------
    bits : uint16 array, shape (N, K)
        K is a multiple of 32. Rows are contiguous.
    format : str
        As for `recover`. What is off the lattice is packed by its ordinary quantizer.

    Returns
    -------
    Recovery
        Its `groups` are 0 where a number is infinite or none, which `recover` refuses.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        As for `recover`.
    """
    info = format_info(format)
    instance(bits, "bits", np.ndarray, "a uint16 array")
    # A file may have put them at an odd address.
    aligned = np.require(bits, requirements="A")
    data, scales, groups = _core.recover_lattice(aligned, format, targets.num_threads())
    n, k = bits.shape
    of_rows = scales if info.row_scaled else None
    return Recovery(Weight(data, format, (n, k), of_rows), groups)


def choose(first: NDArray[np.bool_], a: Weight, b: Weight) -> Weight:
    """Put a weight together of the groups of two.

    Parameters
    ----------
    first : bool array, one a group
        Whether it is taken from `a`.
    a, b : Weight, shape (N, K)
        In one format.

    Returns
    -------
    Weight
    """
    column = first.reshape(-1, 1)
    blocks = (w.data.reshape(column.size, -1) for w in (a, b))
    data = np.where(column, *blocks)
    scales = None
    if a.scales is not None and b.scales is not None:
        scales = np.where(column[:, 0], a.scales, b.scales)
    return Weight(data, a.format, a.shape, scales)


class Mend(IntEnum):
    """What `repair` did with 32 weights."""

    FOREIGN = 0
    """Left as they were: no level is -8, so that another quantizer packed them."""
    KEPT = 1
    """Left as they were: their step is the trained one, or they are zeros."""
    AMBIGUOUS = 2
    """They have their step back. Of levels that became one, the likelier was taken."""
    RESTORED = 3
    """They have their step and their levels back, as far as statistics can tell."""


@dataclass(frozen=True)
class Repair:
    """A repaired matrix, and what was done."""

    weight: Weight
    """In Q4_0."""
    groups: NDArray[np.uint8]
    """A `Mend` for each 32 weights, shape (N, K / 32)."""


def repair(w: Weight) -> Repair:
    """Put weights back on the lattice that the ordinary quantizer took them off.

    Parameters
    ----------
    w : Weight, shape (N, K)
        Q4_0, packed by the ordinary quantizer from weights on a lattice of groups of 32:
        of others this makes nonsense. `halfbyte.lineage` tells them apart.

    Returns
    -------
    Repair

    Raises
    ------
    ArgumentError, DTypeError
        If `w` is not in Q4_0, or no weight.

    Notes
    -----
    The largest magnitude of a group became level -8. If it was a trained level m, level k
    became ``8 * k / m``, rounded: with m = 7 nothing became +-4, with m = 6 nothing +-2
    or, but for +-6 itself, +-6. The smallest m that can give all levels of a group is
    taken for its own, and ``8 / m`` of its step for the trained one. A +8, which Q4_0 has
    not, was cut off to +7, and of m = 7 that is where a trained 6 is as well: 6 is taken,
    the likelier. In simulations 82 to 86 % of the groups then have their trained levels
    again, for 44 to 48 % before, and the error of the weights falls from 6 % to 2.5 % of
    their root mean square. The checkpoint in bfloat16 gives 0.14 %: see `recover`.
    """
    if packed(w).format != "q4_0":
        raise ArgumentError(f"w: expected format q4_0, got {w.format}")
    n, k = w.shape
    data, groups = _core.repair_lattice(w.data, k, targets.num_threads())
    return Repair(Weight(data, "q4_0", (n, k)), groups.reshape(n, k // _GROUP))


def _refuse(wrong: NDArray[np.bool_], values: NDArray[Any], want: str) -> None:
    if wrong.any():
        row, col = (int(i) for i in np.argwhere(wrong)[0])
        raise NumericalError(
            f"x: expected {want}, got {values[row, col]} at {row, col}"
        )
