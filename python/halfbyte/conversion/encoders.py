# python/halfbyte/conversion/encoders.py
# SPDX-License-Identifier: Apache-2.0
"""What makes a target's bytes of a source's numbers."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte import lattice
from halfbyte._arguments import one_of
from halfbyte._arrays import F32Array
from halfbyte.conversion.plan import Rows, Tally, U8Array
from halfbyte.errors import ArgumentError, NumericalError
from halfbyte.files import PathLike
from halfbyte.formats import QUANTIZERS, Rounding, Weight, format_info, quantize
from halfbyte.imatrix import read_imatrix

__all__ = [
    "Alike",
    "Apart",
    "Blocks",
    "Copied",
    "Floats",
    "Lattice",
    "Quantizer",
    "QuantizerOf",
    "Weighted",
    "quantizers",
]


class Quantizer(Protocol):
    """Rounds numbers to blocks. It is called as an encoder is, with rows cut anyhow."""

    @property
    def name(self) -> str:
        """As for an encoder."""

    def __call__(self, x: F32Array, format: str, begin: int) -> Weight:
        """Pack rows of shape (n, K), the first one being row `begin` of its tensor."""


@dataclass(frozen=True)
class Alike:
    """A quantizer of `halfbyte.quantize` to which all columns are alike."""

    name: Rounding

    def __call__(self, x: F32Array, format: str, begin: int) -> Weight:  # noqa: ARG002
        """Round; to nearest in formats that have no other."""
        how = self.name if format_info(format).searched else "rtn"
        return quantize(x, format, quantizer=how)


@dataclass(frozen=True)
class Weighted:
    """Steps by the importance of columns: see `halfbyte.imatrix`."""

    name: str
    importance: F32Array
    """Shape (matrices, K): of experts, each has its own."""
    rows: int
    """Of one matrix."""

    def __call__(self, x: F32Array, format: str, begin: int) -> Weight:
        """Round; to nearest in formats that have no other."""
        if not format_info(format).searched:
            return quantize(x, format)
        parts = []
        at = 0
        while at < len(x):
            matrix, row = divmod(begin + at, self.rows)
            end = at + self.rows - row
            factors = self.importance[matrix]
            parts.append(
                quantize(x[at:end], format, quantizer="imatrix", importance=factors)
            )
            at = end
        if len(parts) == 1:
            return parts[0]
        scales = [w.scales for w in parts if w.scales is not None]
        return Weight(
            np.concatenate([w.data for w in parts]),
            format,
            (x.shape[0], x.shape[1]),
            np.concatenate(scales) if scales else None,
        )


QuantizerOf = Callable[[str, tuple[int, ...]], Quantizer]


def quantizers(name: str, imatrix: PathLike | None = None) -> QuantizerOf:
    """Find out who rounds which tensor.

    Parameters
    ----------
    name : {"rtn", "mse", "imatrix"}
    imatrix : str or path-like, optional
        The file, for ``"imatrix"``.

    Returns
    -------
    callable
        From the name of a tensor in GGUF and its shape to its quantizer. A tensor of
        which the file says nothing is rounded by ``"mse"``.

    Raises
    ------
    ArgumentError, DTypeError
        If there is no such method, or a file is missing or in the way.
    FormatError, OSError
        If the file cannot be read.
    """
    how = one_of(name, "quantizer", QUANTIZERS)
    if (imatrix is None) == (how == "imatrix"):
        wanted = "wanted by" if imatrix is None else "not for"
        raise ArgumentError(f"imatrix: a file is {wanted} the quantizer {name!r}")
    if imatrix is None:
        return lambda _name, _shape: Alike(how)
    measured = read_imatrix(imatrix)
    path = os.fsdecode(imatrix)

    def quantizer_of(tensor: str, shape: tuple[int, ...]) -> Quantizer:
        found = measured.get(tensor)
        return Alike("mse") if found is None else _weighted(path, tensor, found, shape)

    return quantizer_of


def _weighted(
    path: str, tensor: str, importance: F32Array, shape: tuple[int, ...]
) -> Weighted:
    matrices = math.prod(shape[:-2])
    want = matrices * shape[-1]
    if importance.size != want:
        raise ArgumentError(
            f"{path}: {tensor!r}: expected {want} numbers for shape {shape}, found "
            f"{importance.size}: it is of another model"
        )
    digest = f"imatrix {zlib.crc32(importance.tobytes()):08x}"
    return Weighted(digest, importance.reshape(matrices, -1), shape[-2])


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
        data = self.quantizer(values, self.format, rows.begin).data
        return (data,), Tally(off=values.size // 32)


@dataclass(frozen=True)
class Lattice:
    """Packed by the lattice that training left; by a quantizer where there is none."""

    format: str
    """``"q4_0"``, ``"w4g32"``, ``"w2"``, ``"w4"`` or ``"w8"``: see `halfbyte.lattice`."""
    quantizer: Quantizer
    columns: int = 0
    """Of a row with a scale of its own, if a row of the source holds several."""

    @property
    def name(self) -> str:
        """Format and quantizer."""
        columns = f" {self.columns}" if self.columns else ""
        return f"{self.format}{columns} lattice {self.quantizer.name}"

    def __call__(self, rows: Rows) -> tuple[tuple[U8Array, ...], Tally]:
        """Give blocks."""
        weight, tally = self.pack(rows)
        return (weight.data,), tally

    def pack(self, rows: Rows) -> tuple[Weight, Tally]:
        """Recover; see `halfbyte.lattice`."""
        bits, columns = rows.bfloat16(), self.columns or rows.shape[1]
        begin = rows.begin * (rows.shape[1] // columns)
        if bits is None:  # more digits than any lattice in bfloat16
            values = _finite(rows, rows.values()).reshape(-1, columns)
            weight = self.quantizer(values, self.format, begin)
            of_rows = weight.scales is not None
            return weight, Tally(off=len(values) if of_rows else values.size // 32)
        found = lattice.recover_bits(bits.reshape(-1, columns), self.format)
        if not found.groups.all():
            _finite(rows, rows.values())
        weight, kinds = found.weight, found.groups.reshape(-1)
        off = kinds == lattice.Group.OFF
        wrong = off | _is_negative(weight)
        if wrong.any() and (self.quantizer.name != "rtn" or (wrong & ~off).any()):
            values = rows.values().reshape(-1, columns)
            other = self.quantizer(values, self.format, begin)
            weight = lattice.choose(wrong, other, weight)
        kinds[wrong] = lattice.Group.OFF
        # Far cheaper than one `np.bincount`, which widens them to 64 bits.
        counts = (np.count_nonzero(kinds == kind) for kind in reversed(lattice.Group))
        return weight, Tally(*map(int, counts))


def _is_negative(w: Weight) -> NDArray[np.bool_]:
    """Groups with a step below 0, in formats whose readers take none."""
    if w.scales is not None:
        return np.asarray(w.scales < 0)
    signs = w.data.reshape(-1, 18)[:, 1] >= 0x80 if w.format == "w4g32" else False
    return np.broadcast_to(signs, w.shape[0] * w.shape[1] // 32)


@dataclass(frozen=True)
class Apart:
    """Codes and scales as two outputs, as safetensors have them; as often as needed."""

    packer: Lattice
    copies: int = 1

    @property
    def name(self) -> str:
        """That of the packer."""
        return f"{self.packer.name}, apart"

    def __call__(self, rows: Rows) -> tuple[tuple[U8Array, ...], Tally]:
        """Pack, and take apart."""
        weight, tally = self.packer.pack(rows)
        if weight.scales is not None:
            codes, scales = weight.data, weight.scales.astype("<f4").view(np.uint8)
        else:
            blocks = weight.data.reshape(-1, 18)
            codes = np.ascontiguousarray(blocks[:, 2:]).reshape(-1)
            scales = np.ascontiguousarray(blocks[:, :2]).reshape(-1)
        return (codes, scales) * self.copies, tally


class Copied:
    """The same bytes."""

    name = "copied"

    def __call__(self, rows: Rows) -> tuple[tuple[U8Array, ...], Tally]:
        """Give them."""
        return (rows.data,), Tally()


def _finite(rows: Rows, values: F32Array) -> F32Array:
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise NumericalError(
            f"tensor {rows.tensor!r}: expected finite numbers, found "
            f"{values[row, column]} in row {rows.begin + row}, column {column}"
        )
    return values
