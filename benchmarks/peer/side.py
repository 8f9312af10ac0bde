# benchmarks/peer/side.py
# SPDX-License-Identifier: Apache-2.0
"""What peers.py asks of each side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import metadata
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from peer.answer import Rounding
from peer.problem import Case, Weights

__all__ = ["F32Array", "How", "Side"]

F32Array = NDArray[np.float32]


class How(NamedTuple):
    """How a side computes a format.

    Attributes
    ----------
    words : str
    rounding : Rounding
        For the check.
    streams : bool
        Whether reading weights from memory can be what a product waits for. If not, one
        matrix is enough.
    """

    words: str
    rounding: Rounding
    streams: bool = True


class Side(ABC):
    """One library and its fastest way to multiply by packed weights.

    Modules of sides import nothing of their library at the top: a missing one is a line
    of the report, and threads are set before any is loaded.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]  # as pip names them; the first has the version

    @classmethod
    def version(cls) -> str:
        """Version of the library."""
        return metadata.version(cls.packages[0])

    @classmethod
    def available(cls) -> bool:
        """Whether all packages are installed."""
        try:
            for package in cls.packages:
                metadata.version(package)
        except metadata.PackageNotFoundError:
            return False
        return True

    @classmethod
    @abstractmethod
    def how(cls, case: Case) -> How | None:
        """How it computes this case; None if it has no such operation."""

    @abstractmethod
    def prepare(self, case: Case, weights: Sequence[Weights], x: F32Array) -> None:
        """Load the weights, in any layout it likes, and set ``case.threads``.

        Parameters
        ----------
        case : Case
        weights : sequence of Weights
            Distinct matrices of one shape. Not needed afterwards unless kept.
        x : float32 array, shape (T, K)
            Sides with static codes, or bfloat16, convert it here: as in a model, where
            the layer before left it like that.
        """

    @abstractmethod
    def run(self) -> None:
        """Multiply `x` by each of the weights, one after the other."""

    @abstractmethod
    def output(self, copy: int) -> F32Array:
        """Result with one of the weights after a run, shape (T, N), as floats."""

    def close(self) -> None:
        """Give back memory that Python does not know of."""
        return
