# python/halfbyte/cli/run.py
# `halfbyte run`: one prompt, one answer.
# SPDX-License-Identifier: Apache-2.0
"""One prompt, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfbyte.cli import models, options, terminal
from halfbyte.cli.errors import INTERRUPTED, UsageError

if TYPE_CHECKING:
    from halfbyte.records import Piece
    from halfbyte.streams import Stream

__all__ = ["EXAMPLES", "run"]

EXAMPLES = """\b
Examples:
  halfbyte run "The first thing I saw was" --temp 0.8
  halfbyte run google/gemma-4-E2B-it-qat-q4_0-gguf "Why is it dark?" -n 256
  halfbyte run tiny --temp 0.8 --top-p 0.95 --seed 7 --file question.txt
  git diff | halfbyte run model.gguf -s "Write a commit message." --json
"""


def run(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help=f"{options.MODELS}. Left out, the demo model: a lone argument is the "
            "prompt unless it names a model.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="- or nothing reads it from stdin, less one line break at the end.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            help="A file with the prompt, UTF-8, less one line break at the end; - is "
            "stdin.",
            metavar="TEXT",
        ),
    ] = None,
    max_tokens: options.MaxTokens = 128,
    temp: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    system: options.System = None,
    think: options.Think = False,
    show_thoughts: options.ShowThoughts = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="No chat template: go on with the prompt.")
    ] = False,
    raw_output: Annotated[
        bool,
        typer.Option("--raw-output", help="Control characters reach the terminal."),
    ] = False,
    draft: options.Draft = None,
    drafter: options.Drafter = None,
    threads: options.Threads = None,
    context: options.Context = None,
    kv: options.Kv = options.KvType.F32,
    activations: options.Activations = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Answer one prompt, or go on with it.

    A model with a chat template gets the prompt as a user's message. One without, or
    --raw, continues the text; only the continuation is printed. Sampling follows the
    model's own recommendation if its file has one, else it is greedy; --top-k, --top-p
    or --min-p alone mean --temp 1.
    """
    name: str | Path | None = model
    if file is None:
        name, text = models.split_positionals(model, prompt, quiet=quiet)
    elif prompt is None:
        text = models.read_prompt(file)
    else:
        raise UsageError("a prompt and --file: give one of them")
    path = models.find(name, quiet=quiet)
    loaded = models.open_model(
        path,
        threads,
        context,
        kv=kv,
        activations=activations,
        quantize=quantize,
        drafter=drafter,
        quiet=quiet,
    )
    _ = loaded.tokenizer  # without one there is nothing to do
    chosen = models.sampling(loaded, temp, top_k, top_p, min_p, repeat_penalty, seed)
    thinks = think or show_thoughts
    request = models.request(loaded, text, system, think=thinks, raw=raw)
    if isinstance(request, str) and not raw and not quiet:
        terminal.note(models.NO_TEMPLATE)
    stream = loaded.stream(
        request,
        max_tokens=max_tokens,
        enable_thinking=thinks,
        draft=draft,
        **chosen._asdict(),
    )
    shown = terminal.Shown(raw=raw_output, thoughts=show_thoughts, quiet=quiet)
    pieces: list[Piece] = []
    reason = _write(stream, pieces, None if json else shown)
    stats, answer = stream.stats, "".join(piece.text for piece in pieces)
    if json:
        terminal.document(
            {
                "model": str(path),
                "prompt": text,
                "system": system,
                "text": answer,
                "thought": "".join(piece.thought for piece in pieces),
                "tool_calls": [call for piece in pieces for call in piece.tool_calls],
                "finish_reason": reason,
                "sampling": chosen._asdict(),
                "stats": None if stats is None else models.stats_dict(stats),
            }
        )
    elif not answer.endswith("\n"):
        terminal.answer("\n")
    if stats is not None and not quiet:
        terminal.note(models.stats_line(stats))
    if reason == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _write(stream: Stream, pieces: list[Piece], shown: terminal.Shown | None) -> str:
    """Generate into `pieces`, showing each if asked to; why it ended."""
    reason = "length"
    try:
        for piece in stream:
            pieces.append(piece)
            if shown is not None:
                shown.piece(piece)
            reason = piece.finish_reason or reason
    except KeyboardInterrupt:
        stream.close()
        reason = "interrupted"
    if shown is not None:
        shown.close()
    return reason
