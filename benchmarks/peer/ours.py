# benchmarks/peer/ours.py
# SPDX-License-Identifier: Apache-2.0
"""halfbyte: `linear`, or `linear_codes` between static codes, on repacked weights.

All matrices in one call of the core, since the graphs of other libraries hold them all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import halfbyte
import numpy as np
from numpy.typing import NDArray

from peer.answer import Rounding
from peer.problem import BLOCK, STATIC, Case, Weights, codes_in, codes_out, steps
from peer.side import F32Array, How, Side

__all__ = ["NotInThisBuildError", "Peer", "ours", "pack_q4_0"]


class NotInThisBuildError(Exception):
    """The core was built without a format."""


def pack_q4_0(w: Weights) -> halfbyte.Weight:
    """Blocks of 18 bytes: the step, then weight i beside weight i + 16."""
    assert w.scales is not None
    n, k = w.shape
    pairs = w.codes.reshape(n, k // BLOCK, 2, 8)  # of neighbours, in two halves
    first, second = pairs[:, :, 0], pairs[:, :, 1]
    blocks = np.empty((n, k // BLOCK, 18), np.uint8)
    blocks[:, :, :2] = w.scales.view(np.uint8).reshape(n, k // BLOCK, 2)
    blocks[:, :, 2::2] = first & 15 | second << 4
    blocks[:, :, 3::2] = first >> 4 | second & 0xF0
    return halfbyte.Weight(blocks, "q4_0", w.shape)


def pack_rows(w: Weights) -> halfbyte.Weight:
    """Levels are packed as the neutral layout has them."""
    return halfbyte.Weight(w.codes, w.format, w.shape, w.scales)


def pack_dense(w: Weights) -> halfbyte.Weight:
    """Dense weights are the same bytes everywhere."""
    return halfbyte.Weight(w.codes, w.format, w.shape)


# Where a format of this benchmark becomes a `halfbyte.Weight`.
PACKERS: dict[str, Callable[[Weights], halfbyte.Weight]] = {
    "q4_0": pack_q4_0,
    "w8": pack_rows,
    "w4": pack_rows,
    "w2": pack_rows,
    "bf16": pack_dense,
    "f32": pack_dense,
}


def ours(fmt: str) -> Callable[[Weights], halfbyte.Weight]:
    """Packer of a format.

    Raises
    ------
    NotInThisBuildError
        If the core does not list the format, or nobody has said here how to call it.
    """
    if fmt not in halfbyte.formats() or fmt not in PACKERS:
        raise NotInThisBuildError(f"{fmt}: not in this build of halfbyte")
    return PACKERS[fmt]


def stacked(weights: Sequence[halfbyte.Weight]) -> halfbyte.Weight:
    """Matrices on top of each other, in one memory as those of a model are."""
    first = weights[0]
    n, k = first.shape
    scales = None
    if first.scales is not None:
        scales = np.concatenate([w.scales for w in weights])
    data = np.concatenate([w.data.reshape(-1) for w in weights])
    return halfbyte.Weight(data, first.format, (len(weights) * n, k), scales)


class Peer(Side):
    """See `Side`."""

    name = "halfbyte"
    packages = ("halfbyte",)

    @classmethod
    def version(cls) -> str:
        """See `Side`; the package says it itself, installed or not."""
        return halfbyte.__version__

    @classmethod
    def how(cls, case: Case) -> How | None:
        """See `Side`."""
        ours(case.format)
        if case.format in STATIC:
            return How("static int8", Rounding(static=True))
        if case.format == "q4_0":
            return How("symmetric int8 per 32", Rounding(block=BLOCK))
        return How("float32 activations", Rounding())

    def prepare(self, case: Case, weights: Sequence[Weights], x: F32Array) -> None:
        """See `Side`."""
        halfbyte.set_num_threads(case.threads)
        pack, self._case = ours(case.format), case
        stack = stacked([pack(w) for w in weights]).repack()
        static = case.format in STATIC
        given: NDArray[Any] = codes_in(case, x) if static else x
        self._out = np.empty((len(weights) * case.tokens, case.n), given.dtype)
        asked = {"out": self._out, "begin": 0, "count": len(weights)}
        asked |= {"x": given, "threads": case.threads}
        multiply = stack._core.linear_each
        if static:
            asked["x_step"], asked["y_step"] = map(float, steps(case))
            multiply = stack._core.linear_codes_each
        self._multiply = functools.partial(multiply, **asked)

    def run(self) -> None:
        """See `Side`."""
        self._multiply()

    def output(self, copy: int) -> F32Array:
        """See `Side`."""
        result: NDArray[Any] = self._out.reshape(-1, self._case.tokens, self._case.n)
        result = result[copy]
        static = self._case.format in STATIC
        return codes_out(self._case, result) if static else result
