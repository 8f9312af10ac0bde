# python/halfbyte/cli/perplexity.py
# `halfbyte perplexity`: how well a model predicts a text.
# SPDX-License-Identifier: Apache-2.0
"""How well a model predicts a text."""

from __future__ import annotations

from typing import Annotated

import typer

from halfbyte.cli import models, options, terminal
from halfbyte.cli.errors import UsageError

__all__ = ["EXAMPLES", "perplexity"]

EXAMPLES = """\b
Examples:
  halfbyte perplexity model.gguf --file chapter.txt
  halfbyte perplexity model.gguf --file chapter.txt --context 512 --json
  zcat texts.gz | halfbyte perplexity model.gguf --file -
"""


def perplexity(
    file: Annotated[
        str,
        typer.Option("--file", help="The text, UTF-8; - is stdin.", metavar="TEXT"),
    ],
    model: options.ModelArgument = None,
    threads: options.Threads = None,
    context: options.Context = None,
    kv: options.Kv = options.KvType.F32,
    activations: options.Activations = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Measure how well a model predicts a text: lower is better.

    The perplexity is the exponential of the mean negative log-likelihood of the
    tokens. A text longer than the context is read in pieces of that length, each of
    which begins as a text does.
    """
    text = models.read_text(file)
    path = models.find(model, quiet=quiet)
    loaded = models.open_model(
        path,
        threads,
        context,
        kv=kv,
        activations=activations,
        quantize=quantize,
        quiet=quiet,
    )
    ids = loaded.tokenize(text)
    if len(ids) < 2:
        raise UsageError(f"{file}: no text to predict")
    with terminal.progress("perplexity", quiet=quiet) as update:
        value = loaded.perplexity(ids, progress=update)
    if json:
        terminal.document(
            {
                "model": str(path),
                "file": file,
                "tokens": len(ids),
                "perplexity": value,
            }
        )
    else:
        terminal.line(f"perplexity {value:.4f}, {len(ids)} tokens")
