# benchmarks/peer/roofs.py
# SPDX-License-Identifier: Apache-2.0
"""What bounds a product on this machine, measured beside each round."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from halfbyte import roof

from peer.problem import BITS, Case, nbytes

__all__ = ["Roof", "measure_roofs", "seconds_at_roof"]


class Roof(NamedTuple):
    """What the machine did at one moment with some threads."""

    read_gb_per_s: float
    dot_gmac_per_s: float  # dot products of bytes
    fma_gmac_per_s: float  # fused multiply-adds of float32


def measure_roofs(threads: int, mib: int) -> Callable[[], Roof]:
    """Give a function that measures each roof once.

    This is the only place that knows how.

    Parameters
    ----------
    threads : int
    mib : int
        Size of the buffer that is read.
    """
    data = roof.buffer(mib << 20)
    return lambda: Roof(
        max(roof.read_bandwidth(data, threads=threads) for _ in range(3)),
        roof.dot_peak(threads=threads),
        roof.fma_peak(threads=threads),
    )


def seconds_at_roof(case: Case, best: Roof) -> float | None:
    """Shortest time that the machine allows a product; None where that is not known.

    Weights have to be read and products to be summed. Nobody measures how fast those of
    bfloat16 can be where a machine has an instruction for them, so there only one token
    has a roof: it waits for memory.
    """
    read = nbytes(case) / best.read_gb_per_s / 1e9
    if BITS[case.format] == 16:
        return read if case.tokens == 1 else None
    dense = BITS[case.format] == 32
    peak = best.fma_gmac_per_s if dense else best.dot_gmac_per_s
    return max(read, case.macs / peak / 1e9)
