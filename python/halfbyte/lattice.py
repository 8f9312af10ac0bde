# python/halfbyte/lattice.py
# SPDX-License-Identifier: Apache-2.0
"""The lattice that quantization-aware training leaves in a checkpoint's weights.

A checkpoint trained for Q4_0 and published in bfloat16 holds, in each group of 32
neighbours, ``bfloat16(step * level)`` with levels from -8 to 7. An ordinary quantizer
sets its step by the largest magnitude and misses the trained one in most groups. Here
step and levels are found again, so that packing loses next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfbyte import _core, targets
from halfbyte._arrays import as_f32
from halfbyte.errors import NumericalError, ShapeError
from halfbyte.formats import Weight

__all__ = ["Group", "Recovery", "recover", "recover_bits"]

_GROUP = 32


class Group(IntEnum):
    """What 32 weights turned out to be."""

    OFF = 1
    """No step makes integers of them: packed as `halfbyte.quantize` does."""
    AMBIGUOUS = 2
    """They fit, but fewer than four are not 0, and those may fit by chance."""
    LEVELS = 3
    """They fit; rounding the step to float16 moves some weights by one bfloat16 ulp."""
    EXACT = 4
    """``bfloat16(step * level)`` is every weight, bit for bit but for the sign of zeros."""


@dataclass(frozen=True)
class Recovery:
    """A packed matrix, and how it was found."""

    weight: Weight
    """In Q4_0."""
    groups: NDArray[np.uint8]
    """A `Group` for each 32 weights, shape (N, K / 32)."""

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


def recover(x: ArrayLike) -> Recovery:
    """Pack a bfloat16 matrix into Q4_0 by the lattice it was trained on.

    Parameters
    ----------
    x : bfloat16 array, shape (N, K)
        K is a multiple of 32. float32 and float16 arrays whose values all are bfloat16
        numbers do as well.

    Returns
    -------
    Recovery
        Weights on the lattice keep their levels; `Group` says how near each step comes.

    Raises
    ------
    DTypeError, ShapeError
        If `x` does not fit.
    NumericalError
        If a value is infinite, not a number, or no bfloat16 number.

    Notes
    -----
    A weight that was rounded from ``step * level`` lies within half an ulp of it, which
    pins the step to an interval. For each level that the largest magnitude may have, from
    1 to 8, the other levels follow; the first for which the intervals of all 32 weights
    meet is the answer. Among the float16 numbers around the middle of what they have in
    common, the one that gives the most weights back is the step. A step is negative only
    if a level of +8 asks for it. `halfbyte.reference.recover` is the same in NumPy.

    Examples
    --------
    >>> levels = (5 * np.arange(32)) % 16 - 8
    >>> recover(np.float32(0.0625) * levels[np.newaxis].astype(np.float32))
    Recovery(1 x 32: exact 100.00%)
    """
    values = as_f32(x, "x", _core.from_dlpack)
    if values.ndim != 2 or values.shape[1] % _GROUP:
        raise ShapeError(
            f"x: expected shape (N, a multiple of {_GROUP}), got {values.shape}"
        )
    _refuse(~np.isfinite(values), values, "finite values")
    bits = np.ascontiguousarray(values).view(np.uint32)
    _refuse(bits & 0xFFFF != 0, values, "a bfloat16 number")
    return recover_bits((bits >> 16).astype(np.uint16))


def recover_bits(bits: NDArray[np.uint16]) -> Recovery:
    """Do as `recover` with the bits of bfloat16 numbers, where a file has them.

    Parameters
    ----------
    bits : uint16 array, shape (N, K)
        K is a multiple of 32. Rows are contiguous.

    Returns
    -------
    Recovery
        Its `groups` are 0 where a number is infinite or none, which `recover` refuses.
    """
    packed, groups = _core.recover_lattice(bits, targets.num_threads())
    n, k = bits.shape
    return Recovery(Weight(packed, "q4_0", (n, k)), groups)


def _refuse(wrong: NDArray[np.bool_], values: NDArray[Any], want: str) -> None:
    if wrong.any():
        row, col = (int(i) for i in np.argwhere(wrong)[0])
        raise NumericalError(
            f"x: expected {want}, got {values[row, col]} at {row, col}"
        )
