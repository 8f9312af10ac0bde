# python/halfbyte/conversion/report.py
# SPDX-License-Identifier: Apache-2.0
"""What a conversion made, or will make."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from halfbyte.conversion.plan import Plan, Tally

__all__ = ["COLUMNS", "Report", "RoleReport", "TensorReport", "tensor_reports"]


# Titles of the table that a report prints as.
COLUMNS = ("", "type", "tensors", "bytes", *Tally._fields)


@dataclass(frozen=True)
class TensorReport:
    """A tensor of the target."""

    name: str
    role: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    kept: Tally | None
    """What it holds of the source's; None before the conversion has run."""


@dataclass(frozen=True)
class RoleReport:
    """All tensors of one role and type together."""

    role: str
    type: str
    tensors: int
    bytes: int
    kept: Tally | None

    def share(self, kind: str) -> float | None:
        """Share of the groups or numbers that are of a kind, a field of `Tally`."""
        total = sum(self.kept) if self.kept else 0
        return getattr(self.kept, kind) / total if total else None


@dataclass(frozen=True)
class Report:
    """What was converted, and what of it was kept exactly. Prints as a table."""

    source: str
    target: str
    format: str
    container: str
    quantizer: str
    bytes: int
    """Of the target."""
    written: bool
    resumed_bytes: int
    """What an earlier, interrupted conversion had written of it."""
    seconds: float
    tensors: tuple[TensorReport, ...]
    left_out: tuple[str, ...]
    """Tensors of the source that the target does without."""
    notes: tuple[str, ...] = ()
    """What the target lacks, a line each."""

    @property
    def roles(self) -> list[RoleReport]:
        """The tensors added up, in the order of the file."""
        found: dict[tuple[str, str], list[TensorReport]] = {}
        for tensor in self.tensors:
            found.setdefault((tensor.role, tensor.type), []).append(tensor)
        return [
            RoleReport(
                role, type, len(some), sum(tensor.bytes for tensor in some), _sum(some)
            )
            for (role, type), some in found.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        tensors = [
            asdict(tensor) | {"kept": tensor.kept._asdict() if tensor.kept else None}
            for tensor in self.tensors
        ]
        return asdict(self) | {"tensors": tensors}

    def rows(self) -> list[list[str]]:
        """Cells of the table, under `COLUMNS`."""
        return [
            [
                role.role,
                role.type,
                str(role.tensors),
                f"{role.bytes:,}",
                *(_percent(role.share(kind)) for kind in Tally._fields),
            ]
            for role in self.roles
        ]

    def __str__(self) -> str:
        """Render the table."""
        lines = [COLUMNS, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = "\n".join(
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return f"{self!r}\n{table}"

    def _repr_html_(self) -> str:
        """Render the table for a notebook."""
        lines = [
            [html.escape(cell) for cell in line] for line in (COLUMNS, *self.rows())
        ]
        rows = "".join(
            f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines
        )
        return f"<table><caption>{html.escape(repr(self))}</caption>{rows}</table>"

    def __repr__(self) -> str:
        """Name the target and its size."""
        done = f"{self.seconds:.1f} s" if self.written else "not written"
        return (
            f"Report({self.target!r}, {self.format} {self.container}, "
            f"{self.bytes:,} bytes, {done})"
        )


def _sum(tensors: Sequence[TensorReport]) -> Tally | None:
    total = Tally()
    for tensor in tensors:
        if tensor.kept is None:
            return None
        total = total.plus(tensor.kept)
    return total


def _percent(share: float | None) -> str:
    """Two digits, and never all or nothing where it is not."""
    if share is None or share in (0.0, 1.0):
        return "" if share is None else f"{share:.0%}"
    return f"{min(max(share, 0.0001), 0.9999):.2%}"


def tensor_reports(
    plan: Plan, tallies: Sequence[Tally] | None
) -> tuple[TensorReport, ...]:
    """One entry an output of a plan.

    Parameters
    ----------
    plan : Plan
    tallies : sequence of Tally, optional
        One a job, after it has run.

    Returns
    -------
    tuple of TensorReport
    """
    kept: Sequence[Tally | None] = tallies or [None] * len(plan.jobs)
    return tuple(
        TensorReport(out.name, job.role, out.type, out.shape, out.bytes, tally)
        for job, tally in zip(plan.jobs, kept, strict=True)
        for out in job.outputs
    )
