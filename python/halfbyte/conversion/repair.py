# python/halfbyte/conversion/repair.py
# SPDX-License-Identifier: Apache-2.0
"""The function `halfbyte.conversion.repair`: Q4_0 files put back on their lattice."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte import lattice, targets
from halfbyte.conversion import gguf
from halfbyte.conversion.encoders import Copied
from halfbyte.conversion.plan import (
    Encoder,
    Job,
    Output,
    Plan,
    Rows,
    Stored,
    Tally,
    U8Array,
)
from halfbyte.conversion.stream import PIECE_BYTES, Progress, stream
from halfbyte.draft import Draft
from halfbyte.errors import UnsupportedError
from halfbyte.files import File, PathLike, TensorInfo, open_gguf
from halfbyte.formats import Weight
from halfbyte.lattice import Mend
from halfbyte.lineage import Lineage, Verdict, lineage
from halfbyte.lineage.traces import is_trained_kind

__all__ = ["RepairReport", "repair"]

_MARK = "halfbyte.repaired"  # key of a repaired file


@dataclass(frozen=True)
class RepairReport:
    """What was repaired. Counts are of blocks of Q4_0 matrices."""

    source: str
    target: str | None
    """None if nothing was written."""
    verdict: str
    """Of `halfbyte.lineage`, by the weights."""
    tensors: int
    """That were looked at."""
    restored: int
    """Have their step back, and their levels as far as statistics tell."""
    ambiguous: int
    """Have their step back; levels that became one are taken for the likelier."""
    kept: int
    """Had the trained step, as far as statistics tell, or are zeros."""
    foreign: int
    """Are not of the ordinary quantizer, and stay as they are."""

    def share(self, kind: str) -> float:
        """Share of the blocks that are of a kind, the name of a count; 0 of none."""
        blocks = self.restored + self.ambiguous + self.kept + self.foreign
        count: int = getattr(self, kind)
        return count / blocks if blocks else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self)


def repair(
    src: PathLike,
    dst: PathLike | None = None,
    *,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> RepairReport:
    """Put the Q4_0 matrices of a file back on the lattice they were trained on.

    For files that the ordinary quantizer made of weights trained for Q4_0, where the
    checkpoint in bfloat16 is not at hand: `halfbyte.convert` makes a better file of that.
    See `halfbyte.lattice.repair` for what comes back. Tensors of other types are copied.

    Parameters
    ----------
    src : str or path-like
        A GGUF file. Of a split one, the shards become one file.
    dst : str or path-like, optional
        The file to write; what stands there is the old file or the new one, whole. Nothing
        is written without it.
    force : bool
        Repair a file whose weights do not show that they were trained and requantized.
        If they were not, it is worse afterwards.
    threads : int, optional
        `halfbyte.num_threads` by default.
    progress : callable, optional
        Called with bytes of the source that are written, and all of them.

    Returns
    -------
    RepairReport

    Raises
    ------
    ArgumentError
        If `threads` is out of range, or `dst` is there and no regular file.
    UnsupportedError
        If the weights are not ``qat-requantized`` to `halfbyte.lineage`, or a tensor has a
        type that cannot be decoded.
    FormatError, FileChangedError, OSError
        If a file cannot be read or written.
    """
    file = open_gguf(src)
    found = lineage(file)
    if not force:
        _require_requantized(found)
    workers = targets._valid(threads or targets.num_threads(), "threads")
    plan = _plan(file)
    if dst is None:
        with targets.threads(workers):
            tallies = [_measured(job) for job in plan.jobs]
    else:
        with Draft(Path(os.fsdecode(dst)), plan.layout.size) as draft:
            tallies, _ = stream(plan, draft, workers, progress)
            draft.commit(plan.check)
    total = Tally()
    for tally in tallies:
        total = total.plus(tally)
    return RepairReport(
        source=os.fsdecode(src),
        target=None if dst is None else os.fsdecode(dst),
        verdict=found.by_weights.value,
        tensors=sum(isinstance(job.encoder, _Repaired) for job in plan.jobs),
        restored=total.levels,
        ambiguous=total.ambiguous,
        kept=total.exact,
        foreign=total.off,
    )


def _require_requantized(found: Lineage) -> None:
    if found.by_weights is not Verdict.REQUANTIZED:
        raise UnsupportedError(
            f"{found.path}: expected weights trained for 4 bits and packed by the "
            f"ordinary quantizer, found {found.by_weights.value}: {found.reason}; others "
            "would be worse afterwards (force, --force: repair all the same)",
            path=found.path,
            found=found.by_weights.value,
        )


def _measured(job: Job) -> Tally:
    """What would be done with a tensor."""
    total = Tally()
    if not isinstance(job.encoder, _Repaired):
        return total
    (rows, _), row_bytes = job.source.shape, job.source.row_bytes
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    buffer = np.empty(min(step, rows) * row_bytes, np.uint8)
    for begin in range(0, rows, step):
        some = job.source.read(begin, min(step, rows - begin), buffer)
        total = total.plus(job.encoder(some)[1])
    return total


def _plan(file: File) -> Plan:
    jobs = tuple(_job(file, tensor) for tensor in file.tensors)
    metadata = gguf.copied(file.paths[0]) | {_MARK: True}
    outputs = [output for job in jobs for output in job.outputs]
    return Plan(jobs, gguf.layout(metadata, outputs), open_gguf)


def _job(file: File, tensor: TensorInfo) -> Job:
    if tensor.format is None:
        raise UnsupportedError(
            f"tensor {tensor.name!r}: type {tensor.type} cannot be decoded",
            tensor=tensor.name,
            found=tensor.type,
        )
    is_repaired = tensor.format == "q4_0" and is_trained_kind(tensor)
    output = Output(tensor.name, tensor.type, tensor.shape, tensor.bytes)
    encoder: Encoder = _Repaired() if is_repaired else Copied()
    return Job("", Stored(file, tensor), encoder, (output,))


class _Repaired:
    """Blocks by `halfbyte.lattice.repair`."""

    name = "repaired"

    def __call__(self, rows: Rows) -> tuple[tuple[U8Array, ...], Tally]:
        done = lattice.repair(Weight(rows.data, rows.format, rows.shape))
        count = np.bincount(done.groups.reshape(-1), minlength=len(Mend)).tolist()
        tally = Tally(
            exact=count[Mend.KEPT],
            levels=count[Mend.RESTORED],
            ambiguous=count[Mend.AMBIGUOUS],
            off=count[Mend.FOREIGN],
        )
        return (done.weight.data,), tally
