# python/halfbyte/cli/tokenize.py
# `halfbyte tokenize`: a text as the model sees it.
# SPDX-License-Identifier: Apache-2.0
"""A text as the model sees it."""

from __future__ import annotations

import json as json_text
from typing import Annotated

import typer

from halfbyte.cli import models, options, terminal
from halfbyte.files import Tokenizer

__all__ = ["EXAMPLES", "tokenize"]

EXAMPLES = """\b
Examples:
  halfbyte tokenize "How many tokens is this?"
  halfbyte tokenize model.gguf --no-bos --json "Hello"
  halfbyte tokenize model.gguf --special "<start_of_turn>user"
  halfbyte tokenize model.gguf - < chapter.txt
"""


def tokenize(
    model: options.ModelArgument = None,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            help="- or nothing reads it from stdin, less one line break at the end.",
            show_default=False,
        ),
    ] = None,
    special: Annotated[
        bool,
        typer.Option("--special", help="Names of special tokens become the tokens."),
    ] = False,
    no_bos: Annotated[
        bool, typer.Option("--no-bos", help="No begin-of-sequence token ahead.")
    ] = False,
    json: options.Json = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Split a text into tokens: one line each, the id and the text it stands for."""
    name, content = models.split_positionals(model, text)
    path = models.find(name)
    loaded = models.open_model(path, None, None, quiet=False, repack="never")
    ids = loaded.tokenize(content, bos=not no_bos, special=special)
    pieces = [_shown(loaded.tokenizer, token) for token in ids]
    if json:
        terminal.document(
            {
                "model": str(path),
                "text": content,
                "count": len(ids),
                "ids": ids,
                "pieces": pieces,
            }
        )
        return
    for token, piece in zip(ids, pieces, strict=True):
        shown = json_text.dumps(piece, ensure_ascii=False)
        terminal.line(f"{token}\t{terminal.printable(shown)}")


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """A token's text, or what it is called if it has none, or half a character."""
    text = tokenizer.decode([token])
    return text if text and "\ufffd" not in text else tokenizer.token_to_piece(token)
