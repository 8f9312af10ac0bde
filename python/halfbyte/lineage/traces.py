# python/halfbyte/lineage/traces.py
# SPDX-License-Identifier: Apache-2.0
"""What the blocks of a file's matrices show of how they were made.

Counted, not judged: `halfbyte.lineage` does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfbyte.choice import is_encoder_tensor
from halfbyte.files import File, TensorInfo
from halfbyte.lattice import Group, recover_bits
from halfbyte.modules import CODES, SCALES, Codes, Module, codes_of, modules_of

__all__ = ["TensorTrace", "fours", "is_trained_kind", "traces"]

Levels = NDArray[np.int8]  # (blocks, weights of a block)
Mask = NDArray[np.bool_]

_GROUP = 32
_Q4_0_BYTES, _TQ2_0_BYTES = 18, 66  # of a block
_ROWS = 32  # of a matrix that are looked at
_FEWEST = 256  # blocks of 32 weights in a tensor that say anything
_FEWEST_BESIDE = 400  # of +-3 and +-5: a ratio of 1 has a deviation of 0.09 then


@dataclass(frozen=True)
class TensorTrace:
    """What a tensor's blocks show: those of them that are not all 0.

    Shares are of the blocks looked at. A block is what has a step of its own: 32
    neighbours, or a row.
    """

    name: str
    kind: str
    """``"bf16"``, ``"q4_0"``, ``"tq2_0"``; ``"4 bit per 32"`` and the like where codes
    and scales are tensors of their own."""
    blocks: int
    lattice: float | None
    """On the lattice; None of packed tensors."""
    finer: float | None
    """Of those, with a step that is no float16 number."""
    lowest: float
    """With the lowest level there is: -8, or -2."""
    full: float
    """With a level of one of the two greatest magnitudes: 7 or 8, 1 or 2."""
    ends: float
    """Weights at such a level."""
    negative: float
    """With a negative step."""
    fours: float | None
    """Levels of +-4 for each of +-3 and +-5, in the blocks whose steps have the sign
    with fewer of them; None of too few, and where no step is one of 32 weights."""
    levels: tuple[int, ...]
    """How many weights have a level of magnitude 0, 1, …: of the blocks that `fours`
    is of, else of all."""


def traces(file: File) -> tuple[TensorTrace, ...]:
    """Look at 32 rows of every matrix that training for few bits may have shaped.

    Parameters
    ----------
    file : File

    Returns
    -------
    tuple of TensorTrace
        Without those of fewer than 8192 weights. Routers and encoders are left out, as
        they are not trained for it.
    """
    text = [t for t in file.tensors if _may_be_trained(t.name)]
    modules = modules_of(text)
    found: list[TensorTrace | None] = []
    for module in modules.values():
        if module.find(SCALES) is not None:
            codes = codes_of(file, module, modules)
            found.append(_of_codes(file, module, codes) if codes else None)
            continue
        found += [_of_blocks(file, tensor) for tensor in module.tensors.values()]
    return tuple(trace for trace in found if trace is not None)


def is_trained_kind(tensor: TensorInfo) -> bool:
    """Whether a tensor is one that training for Q4_0 is about, packed or not."""
    is_kind = tensor.format in ("q4_0", "bf16") and _may_be_trained(tensor.name)
    return is_kind and _has_groups(tensor)


def _has_groups(tensor: TensorInfo) -> bool:
    return len(tensor.shape) >= 2 and tensor.shape[-1] % _GROUP == 0


def _may_be_trained(name: str) -> bool:
    return "router" not in name and not is_encoder_tensor(name)


def _rows(n: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, n - 1, min(n, _ROWS)).astype(np.int64))


def _of_blocks(file: File, tensor: TensorInfo) -> TensorTrace | None:
    """Trace of a matrix in bfloat16, Q4_0 or TQ2_0."""
    if not _has_groups(tensor):
        return None
    if tensor.format == "bf16":
        found = recover_bits(_bytes_of_rows(file, tensor).view(np.uint16))
        levels, steps = _q4_0(found.weight.data)
        return _trace(tensor.name, "bf16", levels, steps, 8, found.groups.reshape(-1))
    if tensor.type == "Q4_0":
        levels, steps = _q4_0(_bytes_of_rows(file, tensor))
        return _trace(tensor.name, "q4_0", levels, steps, 8)
    if tensor.type == "TQ2_0":
        levels, steps = _tq2_0(_bytes_of_rows(file, tensor))
        return _trace(tensor.name, "tq2_0", levels, steps, 2)
    return None


def _height(tensor: TensorInfo) -> int:
    return int(np.prod(tensor.shape[:-1], dtype=np.int64))


def _bytes_of_rows(file: File, tensor: TensorInfo) -> NDArray[np.uint8]:
    n = _height(tensor)
    return file.tensor_bytes(tensor.name).reshape(n, -1)[_rows(n)]


def _q4_0(data: NDArray[np.uint8]) -> tuple[Levels, NDArray[np.float32]]:
    blocks = data.reshape(-1, _Q4_0_BYTES)
    steps = blocks[:, :2].copy().view("<f2").reshape(-1).astype(np.float32)
    codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return codes.astype(np.int8) - 8, steps


def _tq2_0(data: NDArray[np.uint8]) -> tuple[Levels, NDArray[np.float32]]:
    """Levels as the mobile release has them, -2 to 1, are written with -step."""
    blocks = data.reshape(-1, _TQ2_0_BYTES)
    steps = blocks[:, -2:].copy().view("<f2").reshape(-1).astype(np.float32)
    codes = (blocks[:, :-2, np.newaxis] >> np.arange(0, 8, 2, dtype=np.uint8)) & 3
    levels = codes.astype(np.int8).reshape(len(blocks), -1) - 1
    return np.where(steps[:, np.newaxis] < 0, -levels, levels), steps


def _of_codes(file: File, module: Module, codes: Codes) -> TensorTrace | None:
    """Trace of a matrix whose codes and scales are tensors of their own."""
    tensor, scales = module.find(CODES), module.find(SCALES)
    assert tensor is not None
    assert scales is not None
    per_row = int(np.prod(scales.shape, dtype=np.int64)) // max(codes.rows, 1)
    if codes.width == 8 or per_row < 1 or codes.columns % per_row:
        return None  # eight bits hold any weights well, however they were made
    packed = _bytes_of_rows(file, tensor)
    shifts = np.arange(0, 8, codes.width, dtype=np.uint8)
    unpacked = (packed[..., np.newaxis] >> shifts) & ((1 << codes.width) - 1)
    rows = unpacked.reshape(len(packed), -1)[:, : codes.columns]  # words may be longer
    half, size = 1 << (codes.width - 1), codes.columns // per_row
    levels = rows.astype(np.int8).reshape(-1, size) - half
    kind = f"{codes.width} bit per {'row' if per_row == 1 else size}"
    return _trace(tensor.name, kind, levels, np.ones(len(levels), np.float32), half)


def _trace(
    name: str,
    kind: str,
    levels: Levels,
    steps: NDArray[np.float32],
    half: int,
    groups: NDArray[np.uint8] | None = None,
) -> TensorTrace | None:
    """Count. `half` of the levels are below 0; `groups` are `recover`'s verdicts."""
    live = np.logical_and(steps != 0, (levels != 0).any(axis=1))
    if groups is not None:
        live &= groups != 0  # those have a number that is none
    if live.sum() * levels.shape[1] < _FEWEST * _GROUP:
        return None
    lattice = finer = share = None
    if groups is not None:
        on = np.not_equal(groups, Group.OFF)
        lattice, finer = _share(on, live), _share(groups == Group.LEVELS, live & on)
    counts = _magnitudes(levels[live], half)
    if half == 8 and levels.shape[1] == _GROUP:
        share, counts = _fewest_fours(levels, steps, live, counts)
    high = np.abs(levels) >= half - 1
    return TensorTrace(
        name,
        kind,
        int(live.sum()),
        lattice,
        finer,
        lowest=_share((levels == -half).any(axis=1), live),
        full=_share(high.any(axis=1), live),
        ends=float(high[live].mean()),
        negative=_share(steps < 0, live),
        fours=share,
        levels=tuple(counts.tolist()),
    )


def _fewest_fours(
    levels: Levels, steps: NDArray[np.float32], live: Mask, counts: NDArray[np.int64]
) -> tuple[float | None, NDArray[np.int64]]:
    """Find the sign of the step with the fewest levels of +-4 beside +-3 and +-5.

    Returns
    -------
    (float or None, int64 array)
        Their ratio, and how many levels of each magnitude those blocks have; without
        enough of either sign, None and `counts`.
    """
    found = []
    for sign in (steps < 0, steps > 0):
        own = _magnitudes(levels[live & sign], 8)
        if own[3] + own[5] >= _FEWEST_BESIDE:
            found.append((fours(own.tolist()), own))
    return min(found, key=lambda pair: pair[0]) if found else (None, counts)


def fours(counts: Sequence[int]) -> float:
    """Levels of +-4 for each of +-3 and +-5.

    Parameters
    ----------
    counts : sequence of int
        How many weights have a level of each magnitude; some of 3 or 5.

    Returns
    -------
    float
    """
    return 2 * counts[4] / (counts[3] + counts[5])


def _magnitudes(levels: Levels, half: int) -> NDArray[np.int64]:
    return np.bincount(np.abs(levels).reshape(-1), minlength=half + 1)


def _share(those: ArrayLike, of: Mask) -> float:
    return float(np.asarray(those)[of].mean()) if of.any() else 0.0
