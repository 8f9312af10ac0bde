# python/halfbyte/lineage.py
# SPDX-License-Identifier: Apache-2.0
"""Whether a file's weights were trained for 4 bits, told from the weights alone.

Three traces are left by training for Q4_0. The bfloat16 checkpoint lies on a lattice
(`halfbyte.lattice`), with steps finer than float16. An ordinary quantizer that packs such
weights makes level -8 of the largest magnitude, as it always does; where that was a
trained +7, no trained level becomes +4 or -4, which other weights avoid in one block of
fifty. And a lattice of float16 steps was a packed file before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.choice import is_encoder_tensor
from halfbyte.files import File, TensorInfo
from halfbyte.lattice import Group, recover

__all__ = ["Lineage", "TensorTrace", "Verdict", "is_trained_kind", "lineage"]

_GROUP = 32
_BLOCK_BYTES = 18
_ROWS = 32  # of a matrix that are looked at
_FEWEST = 256  # blocks of a tensor that say anything

# An ordinary quantizer leaves a -8 in each block; half a percent is for blocks of one
# value, and for files that another tool touched.
_ORDINARY = 0.995
# Levels of +-4 for each of +-3 and +-5, in blocks whose largest weight has the sign of
# which there are fewest. None of trained weights, as their largest positive level is 7;
# about 1 of others, whatever their tails, as their levels are spread evenly enough.
_TRAINED, _UNTRAINED = 0.3, 0.7
_FEWEST_BESIDE = 400  # of +-3 and +-5: 0.7 is then six deviations from 0.3
_ON, _OFF = 0.999, 0.01  # of the groups, on the lattice and off it
# Share of the groups whose step is no float16 number. Trained steps are not in 2 to 10 %
# of them; those of a file that was packed once never are.
_FINER = 0.003


class Verdict(str, Enum):
    """Where weights come from."""

    QAT = "qat"
    """On the lattice that training left, as it was published."""
    REQUANTIZED = "qat-requantized"
    """Trained for 4 bits, then packed by an ordinary quantizer."""
    OTHER = "not-qat"
    """Neither."""
    UNKNOWN = "cannot-tell"
    """The weights alone do not say."""


@dataclass(frozen=True)
class TensorTrace:
    """What a tensor's blocks show. Shares are of the blocks looked at."""

    name: str
    blocks: int
    lattice: float | None  # on the lattice; None of packed tensors
    finer: float | None  # of those, with a step that is no float16 number
    minus_eight: float  # with a level -8
    negative: float  # with a negative step
    fours: float | None  # levels of +-4 for each of +-3 and +-5; None of too few


@dataclass(frozen=True)
class Lineage:
    """Verdict on a file, and the evidence."""

    path: str
    verdict: Verdict
    reason: str
    tensors: tuple[TensorTrace, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self) | {"verdict": self.verdict.value}

    def range(self, share: str) -> tuple[float, float] | None:
        """Smallest and largest of a share over all tensors; None if none has it."""
        values = [getattr(tensor, share) for tensor in self.tensors]
        known = [value for value in values if value is not None]
        return (min(known), max(known)) if known else None


def lineage(file: File) -> Lineage:
    """Look at the weights of a file for traces of training for Q4_0.

    Parameters
    ----------
    file : File
        What `halfbyte.open_gguf` or `halfbyte.open_safetensors` gave: Q4_0 matrices of
        the one, bfloat16 matrices of the other. Of each, 32 rows are read.

    Returns
    -------
    Lineage
        ``Verdict.UNKNOWN`` rather than a guess: where tensors disagree, or where several
        ways lead to the same blocks, as packing by the lattice and a search for the
        step of least error do.
    """
    traces = tuple(
        trace
        for tensor in file.tensors
        if is_trained_kind(tensor) and (trace := _trace(file, tensor)).blocks >= _FEWEST
    )
    verdict, reason = _judge(traces)
    return Lineage(file.paths[0], verdict, reason, traces)


def is_trained_kind(tensor: TensorInfo) -> bool:
    """Whether a tensor is one that training for Q4_0 is about, packed or not."""
    matrix = len(tensor.shape) >= 2 and tensor.shape[-1] % _GROUP == 0
    # Routers and encoders are not trained for Q4_0.
    apart = "router" in tensor.name or is_encoder_tensor(tensor.name)
    return matrix and tensor.format in ("q4_0", "bf16") and not apart


def _trace(file: File, tensor: TensorInfo) -> TensorTrace:
    weight = file.weight(tensor.name)
    n = weight.shape[0]
    rows = np.unique(np.linspace(0, n - 1, min(n, _ROWS)).astype(np.int64))
    if tensor.format == "q4_0":
        data = weight.data.reshape(n, -1)[rows]
        return TensorTrace(tensor.name, *_shares(data, None))
    found = recover(weight.dequantize(rows))
    return TensorTrace(tensor.name, *_shares(found.weight.data, found.groups))


def _shares(
    data: NDArray[np.uint8], groups: NDArray[np.uint8] | None
) -> tuple[int, float | None, float | None, float, float, float | None]:
    """Fields of a `TensorTrace` from blocks of Q4_0, and what `recover` says of them."""
    blocks = data.reshape(-1, _BLOCK_BYTES)
    steps = blocks[:, :2].copy().view("<f2").reshape(-1).astype(np.float32)
    codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    live = (steps != 0) & (codes != 8).any(axis=1)
    lattice = finer = None
    if groups is not None:
        kinds = groups.reshape(-1)
        on = kinds != Group.OFF
        lattice = _share(on, live)
        finer = _share(kinds == Group.LEVELS, live & on)
    levels = np.abs(codes.astype(np.int8) - 8)
    signs = (live & (steps < 0), live & (steps > 0))
    fours = [f for sign in signs if (f := _fours(levels[sign])) is not None]
    return (
        int(live.sum()),
        lattice,
        finer,
        _share((codes == 0).any(axis=1), live),
        _share(steps < 0, live),
        min(fours, default=None),
    )


def _fours(levels: NDArray[np.int8]) -> float | None:
    count = np.bincount(levels.reshape(-1), minlength=9)
    beside = int(count[3] + count[5])
    return 2 * int(count[4]) / beside if beside >= _FEWEST_BESIDE else None


def _share(those: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
    return float(those[of].mean()) if of.any() else 0.0


def _judge(traces: Sequence[TensorTrace]) -> tuple[Verdict, str]:
    if not traces:
        return Verdict.UNKNOWN, "no matrices in Q4_0 or bfloat16"
    floats = [t for t in traces if t.lattice is not None]
    if len(floats) < len(traces):
        # Beside Q4_0, float matrices are those that a file leaves unpacked.
        return _judge_packed([t for t in traces if t.lattice is None])
    shares = [t.lattice for t in floats if t.lattice is not None]
    if max(shares) < _OFF:
        return Verdict.OTHER, "no matrix is on a 4-bit lattice"
    if min(shares) < _ON:
        return Verdict.UNKNOWN, "some weights are on a 4-bit lattice, and some are not"
    if all(t.finer is not None and t.finer > _FINER for t in floats):
        return Verdict.QAT, "every matrix is on a 4-bit lattice with trained steps"
    verdict, reason = _judge_packed(floats)
    return verdict, f"steps are float16 numbers, as of a file once packed; {reason}"


def _judge_packed(traces: Sequence[TensorTrace]) -> tuple[Verdict, str]:
    if any(t.minus_eight < _ORDINARY for t in traces):
        return Verdict.UNKNOWN, (
            "not packed by the ordinary quantizer: by the lattice of trained weights, or "
            "by a search for steps, which leaves the same traces"
        )
    shares = [t.fours for t in traces if t.fours is not None]
    if not shares:
        return Verdict.UNKNOWN, "packed by the ordinary quantizer; too few weights"
    if max(shares) < _TRAINED:
        return Verdict.REQUANTIZED, (
            "packed by the ordinary quantizer from weights that were on a 4-bit lattice"
        )
    if min(shares) > _UNTRAINED:
        return Verdict.OTHER, (
            "packed by the ordinary quantizer from weights on no 4-bit lattice"
        )
    return Verdict.UNKNOWN, "packed by the ordinary quantizer; its matrices disagree"
