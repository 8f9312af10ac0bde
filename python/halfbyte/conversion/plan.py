# python/halfbyte/conversion/plan.py
# What is agreed on between sources, encoders and containers: who knows what.
# SPDX-License-Identifier: Apache-2.0
"""A conversion before it runs: which tensors become which, and by what.

A planner (`gemma_gguf`) names the tensors of the target and chooses an `Encoder` for
each; a container (`gguf`) gives them places in a file, from names, types and sizes
alone; `stream` reads rows, has them encoded and writes them there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from halfbyte._arrays import F32Array
from halfbyte.files import File, TensorInfo
from halfbyte.formats import Weight, format_info

__all__ = [
    "Encoder",
    "Fixed",
    "Job",
    "Layout",
    "Made",
    "Output",
    "Plan",
    "Rows",
    "Source",
    "Stored",
    "Tally",
    "U8Array",
    "size_of",
]

U8Array: TypeAlias = NDArray[np.uint8]


class Output(NamedTuple):
    """A tensor of the target.

    Attributes
    ----------
    name : str
    type : str
        As the container calls it: ``"Q4_0"``, ``"F32"``.
    shape : tuple of int
        Rows first.
    bytes : int
        A whole number for each row of the source, and the same for each.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int


class Tally(NamedTuple):
    """How much of a tensor the target holds, in groups of 32 or in single numbers."""

    exact: int = 0
    """The same numbers, bit for bit but for the sign of zeros."""
    levels: int = 0
    """On the lattice, with a step that the target's type has to round."""
    ambiguous: int = 0
    """Fits the lattice, perhaps by chance: fewer than four numbers are not 0."""
    off: int = 0
    """Rounded by the quantizer."""

    def plus(self, other: Tally) -> Tally:
        """Sum of both."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))


class Source(Protocol):
    """A tensor as a matrix, read some rows at a time; a vector is one row."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, leading dimensions together, and numbers in a row."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""

    def read(self, begin: int, count: int, out: U8Array) -> Rows:
        """Read rows to the front of `out`, which has room for them."""


class Stored(NamedTuple):
    """A tensor of a file."""

    file: File
    tensor: TensorInfo

    @property
    def name(self) -> str:
        """As the file has it."""
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        shape = self.tensor.shape or (1,)
        return math.prod(shape[:-1]), shape[-1]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.tensor.bytes // self.shape[0]

    def read(self, begin: int, count: int, out: U8Array) -> Rows:
        """Read from the file, which says so if it was changed."""
        data = out[: count * self.row_bytes]
        self.file.read(self.name, begin * self.row_bytes, data, once=True)
        shape = (count, self.shape[1])
        return Rows(self.name, data, str(self.tensor.format), shape, begin)


class Made(NamedTuple):
    """A vector that no file holds."""

    name: str
    values: F32Array

    @property
    def shape(self) -> tuple[int, int]:
        """One row."""
        return 1, self.values.size

    @property
    def row_bytes(self) -> int:
        """Bytes of all."""
        return self.values.nbytes

    def read(self, begin: int, count: int, out: U8Array) -> Rows:  # noqa: ARG002
        """Give the numbers."""
        data = np.ascontiguousarray(self.values, "<f4").view(np.uint8)
        return Rows(self.name, data, "f32", self.shape, begin)


class Fixed(NamedTuple):
    """Bytes that no file holds."""

    name: str
    data: bytes

    @property
    def shape(self) -> tuple[int, int]:
        """One row."""
        return 1, len(self.data)

    @property
    def row_bytes(self) -> int:
        """All of them."""
        return len(self.data)

    def read(self, begin: int, count: int, out: U8Array) -> Rows:  # noqa: ARG002
        """Give the bytes."""
        data = np.frombuffer(self.data, np.uint8)
        return Rows(self.name, data, "bytes", self.shape, begin)


@dataclass(frozen=True)
class Rows:
    """Some rows of a source tensor. Its bytes are lent: they change after the call."""

    tensor: str
    data: U8Array
    format: str
    shape: tuple[int, int]
    begin: int
    """Which row of the tensor is the first."""

    def values(self) -> F32Array:
        """The numbers, shape (n, K), in memory of their own."""
        return Weight(self.data, self.format, self.shape).dequantize()

    def bfloat16(self) -> NDArray[np.uint16] | None:
        """Bits of the numbers, shape (n, K); None if they are not all bfloat16."""
        if self.format == "bf16":
            return self.data.view("<u2").reshape(self.shape)
        bits = self.values().view(np.uint32)
        return None if (bits & 0xFFFF).any() else (bits >> 16).astype(np.uint16)


class Encoder(Protocol):
    """Makes the target's bytes of rows of the source.

    It is called from several threads at once, each with other rows of any number, in any
    order, and has to give the same bytes whichever way a tensor is cut into rows. What
    it calls of halfbyte runs in its own thread alone. It must not keep `rows`.
    """

    @property
    def name(self) -> str:
        """One word or more for it and all that it depends on; another name is other bytes."""

    def __call__(self, rows: Rows) -> tuple[tuple[U8Array, ...], Tally]:
        """Return the bytes of these rows for each output of the job, and what was kept."""


class Job(NamedTuple):
    """One tensor of the source, and all that is made of it."""

    role: str
    """What it is for, in a word or two; reports add up what has the same."""
    source: Source
    encoder: Encoder
    outputs: tuple[Output, ...]


class Layout(NamedTuple):
    """Where the outputs of a plan, in its order, lie in its file."""

    header: bytes
    offsets: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Plan:
    """All of a conversion to one file."""

    jobs: tuple[Job, ...]
    layout: Layout
    check: Callable[[Path], object]
    """Opens the finished file with the reader's checks."""
    left_out: tuple[str, ...] = ()
    """Tensors of the source that the target does without."""
    notes: tuple[str, ...] = ()
    """What the target lacks, a line each."""
    beside: tuple[tuple[str, bytes], ...] = ()
    """Names and contents of small files in its folder, in the order to write them."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Of all jobs, in the order of the layout's offsets."""
        return tuple(output for job in self.jobs for output in job.outputs)


def size_of(format: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in one of `halfbyte.formats`, without scales of its rows."""
    info = format_info(format)
    return math.prod(shape) // info.block_len * info.block_bytes
