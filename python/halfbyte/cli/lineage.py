# python/halfbyte/cli/lineage.py
# `halfbyte lineage`: whether weights were trained for 4 bits.
# SPDX-License-Identifier: Apache-2.0
"""Whether a file's weights were trained for 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfbyte.cli import errors, models, options, terminal

if TYPE_CHECKING:
    from halfbyte.lineage import Lineage

__all__ = ["EXAMPLES", "lineage"]

EXAMPLES = """\b
Examples:
  halfbyte lineage google/gemma-4-E2B-it-qat-q4_0-gguf
  halfbyte lineage google/gemma-4-E2B-it-qat-q4_0-unquantized --json
  halfbyte lineage model.gguf --plot evidence.svg
  halfbyte lineage model.gguf > /dev/null && echo "trained for 4 bits"
"""


def lineage(
    model: options.ModelArgument = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw the evidence.", metavar="FILE.svg"),
    ] = None,
    hash: Annotated[
        bool, typer.Option("--hash", help="Hash the file and every tensor, too.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Say whether weights were trained for 4 bits.

    A file as large as a published one is hashed; a known hash decides. Else the weights
    do: 32 rows of each matrix are read. Metadata is shown and decides nothing.

    Ends with 0 if they were, with 3 if not, and with 6 if nothing tells.
    """
    from halfbyte.draft import write_whole
    from halfbyte.lineage import Verdict
    from halfbyte.lineage import lineage as judge

    if plot is not None and plot.suffix != ".svg":
        raise errors.UsageError(f"--plot: found {plot.name!r}; expected a name in .svg")
    if plot is not None and not plot.parent.is_dir():
        raise errors.UsageError(f"--plot: {plot.parent}: no such folder")
    path = models.find(model, quiet=quiet)
    with terminal.progress("hashing", quiet=quiet) as update:
        found = judge(path, hash=hash, progress=update)
    if json:
        terminal.document(found.to_dict())
    else:
        _show(found)
    if plot is not None:
        write_whole(plot, found.to_svg().encode())
    code = {
        Verdict.PTQ: errors.MISMATCH,
        Verdict.OTHER: errors.MISMATCH,
        Verdict.UNKNOWN: errors.UNDECIDED,
    }
    if found.verdict in code:
        raise typer.Exit(code[found.verdict])


def _show(found: Lineage) -> None:
    terminal.line(f"{found.verdict.value}: {found.reason}")
    identity = found.identity
    if identity.sha256 is not None:
        terminal.line(f"sha256 {identity.sha256}")
    if found.tensors_sha256 is not None:
        terminal.line(f"sha256 of the tensors alone {found.tensors_sha256}")
    if (alike := identity.as_large_as) is not None:
        told = "of which no hash is known" if alike.sha256 is None else "another hash"
        terminal.line(f"as large as {alike.of}: {alike.name}, {told}")
    rows = [
        (
            *(line.kind, str(len(line.values)), line.what),
            *(f"{value:.3f}" for value in (min(line.values), max(line.values))),
            *(line.trained, line.other),
        )
        for line in found.evidence()
    ]
    if rows:
        terminal.line()
        header = ("kept as", "tensors", "evidence", "min", "max", "trained", "else")
        terminal.table(header, rows, "lrlrrll")
    if found.hints:
        terminal.line()
        hints = [(hint.what, hint.found, hint.means or "") for hint in found.hints]
        terminal.table(("the file says", "", ""), hints, "lll")
