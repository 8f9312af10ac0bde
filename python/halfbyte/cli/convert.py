# python/halfbyte/cli/convert.py
# `halfbyte convert`: a model in another format.
# SPDX-License-Identifier: Apache-2.0
"""A model in another format."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfbyte._sizes import size_text
from halfbyte.cli import models, options, terminal

if TYPE_CHECKING:
    from halfbyte.conversion import Report

__all__ = ["EXAMPLES", "convert"]

EXAMPLES = """\b
Examples:
  halfbyte convert gemma-4-E2B-it-qat-q4_0-unquantized/ e2b.gguf
  halfbyte convert google/gemma-3-1b-it model.gguf --format q8_0
  halfbyte convert bf16/ ct/ --to safetensors --format w4a16-ct
  halfbyte convert bf16.gguf q4_0.gguf --dry-run
"""


class Format(str, Enum):
    """What the matrices become."""

    Q4_0 = "q4_0"
    Q8_0 = "q8_0"
    W4A16_CT = "w4a16-ct"
    MOBILE = "mobile"
    BF16 = "bf16"


class Container(str, Enum):
    """The kind of file."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"


class Quantizer(str, Enum):
    """What rounds weights that are on no lattice."""

    RTN = "rtn"
    MSE = "mse"
    IMATRIX = "imatrix"


Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A Hugging Face directory or a GGUF file in BF16, F16 or F32, or the name "
        "of such a model.",
        show_default=False,
    ),
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="DST",
        help="The file to write. One that is there is replaced when all is done. Of "
        "safetensors a new or empty folder.",
        show_default=False,
    ),
]


def convert(
    src: Source,
    dst: Target,
    format: Annotated[
        Format, typer.Option("--format", help="What the matrices become.")
    ] = Format.Q4_0,
    to: Annotated[Container, typer.Option("--to", help="The kind of file.")] = (
        Container.GGUF
    ),
    quantizer: Annotated[
        Quantizer,
        typer.Option("--quantizer", help="What rounds weights on no lattice."),
    ] = Quantizer.RTN,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix", help="Importance of columns, for --quantizer imatrix."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what there would be; write nothing.")
    ] = False,
    clean: Annotated[
        bool,
        typer.Option("--clean", help="Delete what killed conversions left beside DST."),
    ] = False,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Write a model in another format.

    Weights that were trained for Q4_0 keep their trained levels in it. Interrupted, the
    same command goes on where it was; DST is the old file or the new one, whole.
    """
    import halfbyte
    from halfbyte.conversion import tensor_file

    target = models.named(dst)
    source = models.find(src, quiet=quiet)
    whole = tensor_file(target, to.value)
    models.require_other(source, whole)
    if clean and not dry_run:
        _clean(whole, quiet=quiet)
    try:
        with terminal.progress(f"writing {target.name}", quiet=quiet) as update:
            report = halfbyte.convert(
                source,
                target,
                format=format.value,
                to=to.value,
                quantizer=quantizer.value,
                imatrix=imatrix,
                threads=threads,
                dry_run=dry_run,
                progress=update,
            )
    except KeyboardInterrupt:
        if not quiet:
            terminal.note("interrupted: the same command goes on from here")
        raise
    if json:
        terminal.document(report.to_dict())
    else:
        _show(report)
    if not quiet:
        for lacking in report.notes:
            terminal.note(lacking)
        _mention(whole)


def _show(report: Report) -> None:
    from halfbyte.conversion import COLUMNS

    terminal.table(COLUMNS, report.rows(), "ll" + "r" * (len(COLUMNS) - 2))
    if report.written:
        resumed = report.resumed_bytes
        earlier = f", {size_text(resumed)} of it earlier" if resumed else ""
        terminal.line(
            f"{size_text(report.bytes)} written in {report.seconds:.1f} s{earlier}"
        )
    else:
        terminal.line(f"{report.bytes:,} bytes, nothing written")


def _clean(dst: Path, *, quiet: bool) -> None:
    from halfbyte.conversion import leftovers, remove

    target = Path(os.path.realpath(dst))
    for found in leftovers(target.parent):
        # This conversion goes on with one of its own, if it can.
        if found.target != target.name and remove(found) and not quiet:
            terminal.note(f"deleted {found.path.name} ({size_text(found.bytes)})")


def _mention(dst: Path) -> None:
    from halfbyte.conversion import leftovers

    for found in leftovers(Path(os.path.realpath(dst)).parent):
        terminal.note(
            f"{found.path.name}: {size_text(found.bytes)} left by a conversion of "
            f"{found.target} that was killed; --clean deletes it"
        )
