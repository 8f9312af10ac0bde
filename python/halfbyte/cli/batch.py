# python/halfbyte/cli/batch.py
# `halfbyte batch`: many prompts, an answer each.
# SPDX-License-Identifier: Apache-2.0
"""Many prompts, an answer each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from halfbyte.cli import models, options, terminal
from halfbyte.cli.errors import INTERRUPTED, UsageError

if TYPE_CHECKING:
    from halfbyte.model import Message, Model
    from halfbyte.records import Reply

__all__ = ["EXAMPLES", "batch"]

EXAMPLES = """\b
Examples:
  halfbyte batch model.gguf --file questions.txt > answers.jsonl
  halfbyte batch tiny --file chats.jsonl --size 16 -n 64 --seed 7
"""


class _Asked(NamedTuple):
    """A line of the file."""

    id: Any  # what the line calls itself
    prompt: str | list[Message]


def batch(
    file: Annotated[
        str,
        typer.Option(
            "--file",
            help="The prompts, a line each, UTF-8; - is stdin. A line that begins with { "
            "is JSON: it has a prompt or messages, and maybe an id.",
            metavar="PROMPTS",
        ),
    ],
    model: options.ModelArgument = None,
    size: Annotated[
        int,
        typer.Option(
            "-b", "--size", min=1, help="Prompts answered at a time.", metavar="N"
        ),
    ] = 8,
    max_tokens: options.MaxTokens = 128,
    temp: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    system: options.System = None,
    think: options.Think = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="No chat template: go on with the prompts.")
    ] = False,
    threads: options.Threads = None,
    context: options.Context = None,
    kv: options.Kv = options.KvType.F32,
    activations: options.Activations = None,
    quantize: options.Quantize = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Answer many prompts, several at a time.

    Prints a line of JSON for each, in their order, as soon as it is there. A pass over
    the weights serves several answers, which are those of each prompt alone; prompt i
    draws with --seed plus i. Prompts and sampling are those of run: a model with a chat
    template gets a prompt as a user's message.
    """
    asked = [
        _asked(line.rstrip("\r"), f"{file}: line {number}")
        for number, line in enumerate(models.read_text(file).split("\n"), 1)
        if line.strip()
    ]
    if not asked:
        raise UsageError(f"{file}: no prompts")
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
    chosen = models.sampling(loaded, temp, top_k, top_p, min_p, repeat_penalty, seed)
    prompts = [_prompt(one, loaded, system, raw=raw, think=think) for one in asked]
    if not (raw or quiet or loaded.has_template):
        terminal.note(models.NO_TEMPLATE)
    replies = loaded.batch(
        prompts,
        size=size,
        max_tokens=max_tokens,
        enable_thinking=think,
        **chosen._asdict(),
    )
    try:
        with terminal.progress("answers", quiet=quiet) as update:
            for index, reply in enumerate(replies):
                terminal.record(_told(asked[index], index, reply))
                update(index + 1, len(asked))
    except KeyboardInterrupt:
        terminal.note("interrupted: the answers so far are written")
        raise typer.Exit(INTERRUPTED) from None


def _asked(line: str, where: str) -> _Asked:
    """Read a line."""
    if not line.lstrip().startswith("{"):
        return _Asked(None, line)
    try:
        read = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: no JSON: {error}") from None
    prompt, messages = read.get("prompt"), read.get("messages")
    if isinstance(prompt, str) and messages is None:
        return _Asked(read.get("id"), prompt)
    if prompt is None and isinstance(messages, list) and messages:
        if not all(isinstance(message, Mapping) for message in messages):
            raise UsageError(f"{where}: messages: expected a list of objects")
        return _Asked(read.get("id"), messages)
    raise UsageError(f"{where}: expected a text as prompt, or a list as messages")


def _prompt(
    asked: _Asked, model: Model, system: str | None, *, raw: bool, think: bool
) -> str | list[Message]:
    """What the model is asked: messages, or a text to go on with."""
    if isinstance(asked.prompt, str):
        return models.request(model, asked.prompt, system, think=think, raw=raw)
    if raw or system is not None:
        option = "--raw" if raw else "--system"
        raise UsageError(f"{option}: expected prompts, found messages")
    return asked.prompt


def _told(asked: _Asked, index: int, reply: Reply) -> dict[str, Any]:
    own = {} if asked.id is None else {"id": asked.id}
    return own | {
        "index": index,
        "text": reply.text,
        "thought": reply.thought,
        "tool_calls": reply.tool_calls,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.stats.prompt_tokens,
        "generated_tokens": reply.stats.generated_tokens,
    }
