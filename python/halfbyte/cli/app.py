# python/halfbyte/cli/app.py
# The commands, put together.
# SPDX-License-Identifier: Apache-2.0
"""The application that `main` runs."""

from __future__ import annotations

from typing import Annotated

import typer

from halfbyte.cli import (
    batch,
    bench,
    chat,
    convert,
    doctor,
    inspect,
    lineage,
    perplexity,
    repair,
    run,
    tokenize,
    verify,
)

__all__ = ["app"]

# Plain help: the same on every terminal, in a pipe and in the documentation.
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from halfbyte import __version__
        from halfbyte.cli import terminal

        terminal.line(f"halfbyte {__version__}")
        raise typer.Exit


@app.callback(
    epilog="\b\nExamples:\n"
    '  halfbyte run "The first thing I saw was"   the demo model goes on writing\n'
    '  halfbyte run model.gguf "Why is it dark?"  a model of yours\n'
    "  halfbyte chat model.gguf                   a conversation\n"
    "  halfbyte run --help                        all about one command\n"
)
def halfbyte(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """Run Gemma models on the CPU, computing on their packed weights."""


app.command(epilog=run.EXAMPLES, short_help="Answer one prompt, or go on with it.")(
    run.run
)
app.command(epilog=chat.EXAMPLES, short_help="Talk with a model.")(chat.chat)
app.command(
    epilog=batch.EXAMPLES, short_help="Answer many prompts, several at a time."
)(batch.batch)
app.command(epilog=inspect.EXAMPLES, short_help="Show what is in a model file.")(
    inspect.inspect
)
app.command(epilog=convert.EXAMPLES, short_help="Write a model in another format.")(
    convert.convert
)
app.command(
    epilog=repair.EXAMPLES,
    short_help="Put requantized weights back on their lattice.",
)(repair.repair)
app.command(
    epilog=lineage.EXAMPLES, short_help="Tell whether weights were trained for 4 bits."
)(lineage.lineage)
app.command(
    epilog=verify.EXAMPLES, short_help="Check that a model is whole, and what it says."
)(verify.verify)
app.command(epilog=tokenize.EXAMPLES, short_help="Split a text into tokens.")(
    tokenize.tokenize
)
app.command(
    epilog=perplexity.EXAMPLES, short_help="Measure how well a model predicts a text."
)(perplexity.perplexity)
app.command(
    epilog=bench.EXAMPLES, short_help="Measure how fast a model or a kernel runs."
)(bench.bench)
app.command(epilog=doctor.EXAMPLES, short_help="Show the facts for a bug report.")(
    doctor.doctor
)
