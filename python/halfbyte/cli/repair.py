# python/halfbyte/cli/repair.py
# `halfbyte repair`: requantized weights back on their lattice.
# SPDX-License-Identifier: Apache-2.0
"""Requantized weights back on their lattice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from halfbyte.cli import models, options, terminal

if TYPE_CHECKING:
    from halfbyte.conversion import RepairReport

__all__ = ["EXAMPLES", "repair"]

EXAMPLES = """\b
Examples:
  halfbyte repair google/gemma-4-E2B-it-qat-q4_0-gguf     what there is to do
  halfbyte repair google/gemma-4-E2B-it-qat-q4_0-gguf e2b.gguf
"""

# Count of a report, and what it counts.
_ROWS = (
    ("restored", "step and levels restored"),
    ("ambiguous", "step restored, some levels likely ones"),
    ("kept", "nothing to restore"),
    ("foreign", "of another quantizer, left as they are"),
)


def repair(
    gguf: Annotated[
        str,
        typer.Argument(
            metavar="GGUF", help="A file, or the name of one.", show_default=False
        ),
    ],
    dst: Annotated[
        str | None,
        typer.Argument(
            metavar="DST",
            help="The file to write; without it nothing is written.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Repair what does not show that it was trained for Q4_0."
        ),
    ] = False,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Put Q4_0 weights back on the lattice they were trained on, as far as they tell.

    For files that an ordinary quantizer made of weights trained for Q4_0, as official
    ones are. Converting the bfloat16 checkpoint gives a better file. Files without the
    traces that `halfbyte lineage` looks for are refused.
    """
    from halfbyte.conversion import repair as run

    target = None if dst is None else models.named(dst)
    source = models.find(gguf, quiet=quiet)
    if target is not None:
        models.require_other(source, target)
    title = f"writing {target.name}" if target is not None else "reading"
    with terminal.progress(title, quiet=quiet or target is None) as update:
        report = run(source, target, force=force, threads=threads, progress=update)
    if json:
        terminal.document(report.to_dict())
    else:
        _show(report)


def _show(report: RepairReport) -> None:
    terminal.line(f"{report.verdict}; blocks of {report.tensors} Q4_0 matrices:")
    for kind, what in _ROWS:
        terminal.line(f"  {what:<40} {report.share(kind):>7.2%}")
    if report.target is None:
        terminal.line("nothing written")
