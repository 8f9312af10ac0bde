# python/halfbyte/cli/verify.py
# `halfbyte verify`: whether a model file is whole and computes what it should.
# SPDX-License-Identifier: Apache-2.0
"""Whether a model file is whole and computes what it should."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.cli import errors, models, options, terminal

if TYPE_CHECKING:
    from halfbyte.verification import Progress

__all__ = ["EXAMPLES", "verify"]

EXAMPLES = """\b
Examples:
  halfbyte verify model.gguf
  halfbyte verify model.gguf --against unquantized/ --activations f32
  halfbyte verify model.gguf --against other.gguf --text chapter.txt --json
"""


def verify(
    model: options.ModelArgument = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", help="A model that should compute the same.", metavar="MODEL"
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            help="What both read, UTF-8; - is stdin. Without it some passages.",
            metavar="FILE",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--tokens",
            min=0,
            help="Tokens that both go on with; 32 by default.",
            metavar="N",
        ),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option("--sha256", help="The hash it should have.", metavar="HEX"),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            "--max-kl",
            min=0.0,
            help="Mean divergence allowed, nats; 0.1 by default.",
            metavar="KL",
        ),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            "--min-top1",
            min=0.0,
            max=1.0,
            help="Share of equal likeliest tokens asked for; 0.85 by default.",
            metavar="S",
        ),
    ] = None,
    activations: options.Activations = None,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Check a model: its hash, its structure, every weight, and what it computes.

    All tensors are read, so it takes as long as the disk. With --against, both models
    read a text: how far apart the probabilities of the next token are, how often the
    likeliest one is the same, and the perplexity of each.

    Ends with 0 if all is well, with 3 if not, and with 4 if it cannot be opened: cut
    short, damaged in its structure, or no model file.
    """
    import halfbyte

    compares = {"greedy": tokens, "max_kl": max_kl, "min_top1": min_top1}
    limits: dict[str, Any] = {k: v for k, v in compares.items() if v is not None}
    if against is None and (limits or text is not None or activations is not None):
        raise errors.UsageError(
            "--text, -n, --max-kl, --min-top1 and --activations need --against"
        )
    passage = None if text is None else models.read_text(text)
    path = models.find(model, quiet=quiet)
    other = None if against is None else models.find(against, quiet=quiet)
    with _bars(quiet) as progress:
        found = halfbyte.verify(
            path,
            sha256=sha256,
            against=other,
            text=passage,
            activations=activations,
            threads=threads,
            progress=progress,
            **limits,
        )
    if json:
        terminal.document(found.to_dict())
    else:
        terminal.line(str(found))
    if not found.ok:
        raise typer.Exit(errors.MISMATCH)


@contextlib.contextmanager
def _bars(quiet: bool) -> Iterator[Progress]:
    """Show one bar after the other, each for what is being done."""
    shown = ""
    with contextlib.ExitStack() as stack:
        update = None

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal shown, update
            if stage != shown or update is None:
                stack.close()
                update = stack.enter_context(terminal.progress(stage, quiet=quiet))
                shown = stage
            update(done, total)

        yield progress
