# python/halfbyte/conversion/encoders.py
# SPDX-License-Identifier: Apache-2.0
"""What makes a target's bytes of a source's numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from halfbyte import lattice
from halfbyte._arrays import F32Array
from halfbyte.conversion.plan import Rows, Tally, U8Array
from halfbyte.errors import ArgumentError, NumericalError
from halfbyte.formats import quantize

__all__ = [
    "QUANTIZERS",
    "Blocks",
    "Floats",
    "Lattice",
    "Nearest",
    "Quantizer",
    "quantizers",
]


class Quantizer(Protocol):
    """Rounds numbers to blocks. It is called as an encoder is, with rows cut anyhow."""

    @property
    def name(self) -> str:
        """As for an encoder."""

    def __call__(self, x: F32Array, format: str, begin: int) -> U8Array:
        """Pack rows of shape (n, K), the first one being row `begin` of its tensor."""


@dataclass(frozen=True)
class Nearest:
    """The ordinary quantizer, `halfbyte.quantize`."""

    name: str = "rtn"

    def __call__(self, x: F32Array, format: str, begin: int) -> U8Array:  # noqa: ARG002
        """Round to nearest, with steps by the largest magnitude."""
        return quantize(x, format).data


def quantizers(name: str) -> Callable[[str], Quantizer]:
    """Find out who rounds which tensor.

    Parameters
    ----------
    name : str
        As the user calls the method.

    Returns
    -------
    callable
        From the name of a tensor of the target to its quantizer.

    Raises
    ------
    ArgumentError
        If there is no such method.
    """
    if name not in QUANTIZERS:
        raise ArgumentError(
            f"quantizer: expected one of {', '.join(QUANTIZERS)}, got {name!r}"
        )
    return lambda _tensor: QUANTIZERS[name]


QUANTIZERS: dict[str, Quantizer] = {"rtn": Nearest()}


@dataclass(frozen=True)
class Floats:
    """Single numbers: ``"f32"``, ``"f16"`` or ``"bf16"``, after adding a constant."""

    format: str
    plus: float = 0.0

    @property
    def name(self) -> str:
        """Format and constant."""
        return f"{self.format} +{self.plus:g}"

    def __call__(self, rows: Rows) -> tuple[tuple[U8Array, ...], Tally]:
        """Round to nearest."""
        if rows.format == self.format and not self.plus:
            return (rows.data,), Tally(exact=rows.shape[0] * rows.shape[1])
        values = _finite(rows, rows.values())
        if self.plus:  # -0 + 0 is no -0
            values += np.float32(self.plus)
        weight = quantize(values, self.format)
        if self.format == "f16" and not np.isfinite(weight.dequantize()).all():
            raise NumericalError(
                f"tensor {rows.tensor!r}: expected magnitudes up to 65504, as float16 "
                f"has them, found {np.abs(values).max():g}: convert to bf16"
            )
        same = int(np.count_nonzero(weight.dequantize() == values))
        return (weight.data,), Tally(exact=same, off=values.size - same)


@dataclass(frozen=True)
class Blocks:
    """A format of blocks, by a quantizer."""

    format: str
    quantizer: Quantizer

    @property
    def name(self) -> str:
        """Format and quantizer."""
        return f"{self.format} {self.quantizer.name}"

    def __call__(self, rows: Rows) -> tuple[tuple[U8Array, ...], Tally]:
        """Round."""
        values = _finite(rows, rows.values())
        data = self.quantizer(values, self.format, rows.begin)
        return (data.reshape(-1),), Tally(off=values.size // 32)


@dataclass(frozen=True)
class Lattice:
    """Q4_0 by the lattice that training left; by a quantizer where there is none."""

    quantizer: Quantizer

    @property
    def name(self) -> str:
        """Format and quantizer."""
        return f"q4_0 lattice {self.quantizer.name}"

    def __call__(self, rows: Rows) -> tuple[tuple[U8Array, ...], Tally]:
        """Recover; see `halfbyte.lattice`."""
        bits = rows.bfloat16()
        if bits is None:  # more digits than any lattice in bfloat16
            return Blocks("q4_0", self.quantizer)(rows)
        found = lattice.recover_bits(bits)
        count = np.bincount(found.groups.reshape(-1), minlength=5)
        if count[0]:
            _finite(rows, rows.values())
        data = found.weight.data
        if count[lattice.Group.OFF] and self.quantizer.name != "rtn":
            packed = self.quantizer(rows.values(), "q4_0", rows.begin)
            off = (found.groups == lattice.Group.OFF).reshape(-1, 1)
            blocks = (packed.reshape(off.size, -1), data.reshape(off.size, -1))
            data = np.where(off, *blocks).reshape(-1)
        tally = Tally(*(int(count[kind]) for kind in reversed(lattice.Group)))
        return (data,), tally


def _finite(rows: Rows, values: F32Array) -> F32Array:
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise NumericalError(
            f"tensor {rows.tensor!r}: expected finite numbers, found "
            f"{values[row, column]} in row {rows.begin + row}, column {column}"
        )
    return values
