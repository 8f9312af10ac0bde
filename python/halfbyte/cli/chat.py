# python/halfbyte/cli/chat.py
# `halfbyte chat`: a conversation, kept from one turn to the next.
# SPDX-License-Identifier: Apache-2.0
"""A conversation."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import stat
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.cli import models, options, terminal
from halfbyte.cli.errors import UsageError, one_line
from halfbyte.errors import ContextOverflowError, DTypeError

if TYPE_CHECKING:
    from halfbyte import Conversation, Stream

__all__ = ["EXAMPLES", "chat"]

_SCHEMA = 1  # of a saved conversation
_ROLES = {"user", "assistant", "tool"}

EXAMPLES = """\b
Examples:
  halfbyte chat model.gguf
  halfbyte chat model.gguf -s "Answer like a pirate." --stats
  halfbyte chat model.gguf --context 8192 --temp 0.7
\b
In the conversation, /help lists the commands. Ctrl-C stops an answer, or
clears the line being typed; on an empty line it ends the conversation, as
Ctrl-D does.
"""

_HELP = """\
/reset               forget the conversation
/system [TEXT]       set the instructions and start anew; without TEXT, show them
/system ""           take them away and start anew
/save [--force] FILE write the conversation to a file
/load FILE           go on with a saved one
/help                this list
/bye                 end
\"\"\"                  begins a message of several lines; one with \"\"\" is the last"""

_QUOTES = '"""'
_HISTORY_LINES = 1000
_MAX_FILE_BYTES = 64 << 20


class _End(Exception):
    """The user is done."""


def chat(
    model: options.ModelArgument = None,
    max_tokens: options.MaxTokens = 1024,
    temp: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    system: options.System = None,
    think: options.Think = False,
    show_thoughts: options.ShowThoughts = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Speed and memory after each answer.")
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
    quiet: options.Quiet = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Talk with a model; it remembers the conversation.

    Sampling follows the model's own recommendation if its file has one, else it is
    greedy. A model without a chat template goes on with the text of the conversation.
    With --think, Gemma 4 thinks before it answers; thoughts count as tokens of the
    answer, and are forgotten with the next message.
    """
    from halfbyte import Conversation

    path = models.find(model, quiet=quiet)
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
    loaded.stream([0], **chosen._asdict()).close()  # what it refuses, at once
    thinks = think or show_thoughts
    if thinks and not loaded.has_template:
        raise UsageError("--think needs a chat template (this model has none)")
    conversation = Conversation(loaded, system=system, enable_thinking=thinks)
    answers = {"max_tokens": max_tokens, "draft": draft, **chosen._asdict()}
    talk = _Talk(conversation, path, answers)
    talk.raw_output, talk.stats, talk.thoughts = raw_output, stats, show_thoughts
    if not quiet:
        if not loaded.has_template:
            terminal.note(
                "no chat template of Gemma in this model: it goes on with the text"
            )
        if sys.stdin.isatty():
            terminal.note("/help lists the commands; Ctrl-D ends")
    _take_any_bytes()
    with _history(), contextlib.suppress(_End):
        while True:
            text, quoted = _read_message()
            talk.turn(text, quoted=quoted)


class _Talk:
    """A conversation at a prompt: its commands, and what is shown."""

    def __init__(
        self, conversation: Conversation, path: Path, options: dict[str, Any]
    ) -> None:
        self.conversation = conversation
        self.path = path
        self.options = options
        self.raw_output = self.stats = self.thoughts = False
        self.commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/system": self._set_system,
            "/save": self._save,
            "/load": self._load,
            "/help": lambda _rest: terminal.note(_HELP),
            "/bye": self._bye,
        }

    def turn(self, text: str, *, quoted: bool = False) -> None:
        """Obey a command, or answer a message, as all that was quoted is."""
        if not text.strip():
            return
        if quoted or not text.startswith("/"):
            self._answer(text)
            return
        word, _, rest = text.strip().partition(" ")
        command = self.commands.get(word)
        if command is None:
            terminal.note(f"{terminal.printable(word)}: no such command; see /help")
            return
        try:
            command(rest.strip())
        except (OSError, ValueError, UsageError) as error:
            terminal.note(one_line(error))

    def _answer(self, text: str) -> None:
        stream: Stream | None = None
        shown = terminal.Shown(raw=self.raw_output, thoughts=self.thoughts)
        try:
            stream = self.conversation.send(text, **self.options)
            for piece in stream:
                shown.piece(piece)
        except KeyboardInterrupt:
            if stream is not None:
                stream.close()
            shown.close()
            terminal.answer("\n")
            terminal.note("(stopped)")
        except (ValueError, DTypeError) as error:
            is_full = isinstance(error, ContextOverflowError)
            hint = "; /reset starts anew" if is_full else ""
            terminal.note(f"{one_line(error)}{hint}")
            return
        else:
            shown.close()
            terminal.answer("\n")
        if self.stats and stream is not None and stream.stats is not None:
            terminal.note(models.stats_line(stream.stats))

    def _reset(self, _rest: str) -> None:
        self.conversation.reset()
        terminal.note("forgotten")

    def _set_system(self, rest: str) -> None:
        if rest:  # quotes with nothing between them are how a shell says so
            self.conversation.system = None if rest in {'""', "''"} else rest
            self._reset(rest)
        else:
            system = self.conversation.system or "no instructions"
            terminal.note(terminal.printable(system))

    def _save(self, rest: str) -> None:
        from halfbyte.draft import write_whole

        words = shlex.split(rest)
        force = "--force" in words
        path = _file([word for word in words if word != "--force"], "/save")
        talk = self.conversation
        text = json.dumps(
            {
                "schema": _SCHEMA,
                "model": str(self.path),
                "system": talk.system,
                "messages": talk.messages,
            },
            indent=2,
        )
        if path.exists() and not force:
            raise UsageError(f"{path} exists; /save --force writes over it")
        write_whole(path, f"{text}\n".encode())
        terminal.note(f"saved {len(talk.messages)} messages")

    def _load(self, rest: str) -> None:
        path = _file(shlex.split(rest), "/load")
        there = path.stat()
        if not stat.S_ISREG(there.st_mode) or there.st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{path}: not a saved conversation")
        try:
            system, messages = _parsed(json.loads(path.read_bytes()))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UsageError(f"{path}: not a saved conversation") from None
        self.conversation.system, self.conversation.messages = system, messages
        terminal.note(f"loaded {len(messages)} messages")

    def _bye(self, _rest: str) -> None:
        raise _End


def _file(names: list[str], command: str) -> Path:
    """Path of the one file that a command names."""
    if len(names) != 1 or not names[0]:
        raise UsageError(f"{command} needs one file name")
    try:
        return Path(names[0]).expanduser()
    except RuntimeError:
        raise UsageError(f"{names[0]}: no such home directory") from None


def _parsed(saved: Any) -> tuple[str | None, list[dict[str, Any]]]:
    """Check what /load read, as far as every conversation has it.

    Thoughts and calls of tools are for the template to judge, with the next message.
    """
    system, messages = saved["system"], [*saved["messages"]]
    texts = [message["content"] for message in messages]
    texts += [] if system is None else [system]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    if not {message["role"] for message in messages} <= _ROLES:
        raise ValueError
    return system, messages


def _take_any_bytes() -> None:
    """Let a line that is no UTF-8 end no chat, and a byte order mark begin none."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        encoding = None if sys.stdin.isatty() else "utf-8-sig"
        sys.stdin.reconfigure(encoding=encoding, errors="surrogateescape")


def _read_message() -> tuple[str, bool]:
    """Read a line, or several between triple quotes, with what follows on the last.

    Returns
    -------
    text : str
    quoted : bool
    """
    first = _read_line("> ")
    if not first.lstrip().startswith(_QUOTES):
        return first, False
    text = first.lstrip()[len(_QUOTES) :]
    while _QUOTES not in text:
        try:
            text += "\n" + _read_line("  ", keep_on=False)
        except KeyboardInterrupt:
            return "", True
        except _End:
            terminal.note(f"(not sent: a message without its closing {_QUOTES})")
            raise
    within, _, behind = text.partition(_QUOTES)
    return (within + behind.rstrip()).strip("\n"), True


def _read_line(prompt: str, *, keep_on: bool = True) -> str:
    """Read a line from the terminal or a pipe.

    Raises
    ------
    _End
        At the end of the input, and on Ctrl-C when nothing was typed.
    KeyboardInterrupt
        On Ctrl-C, if not `keep_on`.
    """
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise _End
        return line.removesuffix("\n")
    interrupted = False
    while True:
        try:
            return _prompted(prompt)
        except EOFError:
            terminal.note("")
            raise _End from None
        except KeyboardInterrupt:
            terminal.note("")
            if not keep_on:
                raise
            # Without readline nobody knows what was typed: the second one ends it.
            readline = _readline()
            empty = not readline.get_line_buffer() if readline else interrupted
            if empty:
                raise _End from None
            interrupted = True


def _readline() -> ModuleType | None:
    """Line editing, where this Python has it. Its import alone changes a terminal."""
    try:
        return import_module("readline")
    except ImportError:
        return None


def _prompted(prompt: str) -> str:
    """Ask with the prompt on the terminal, also when stdout goes elsewhere."""
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return input()


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Keep the lines typed at the prompt, for the arrow keys and the next time."""
    readline = _readline() if sys.stdin.isatty() else None
    if readline is None:
        yield
        return
    from halfbyte.demo import cache_dir

    try:
        path = cache_dir() / "chat_history"
    except RuntimeError:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    before = readline.get_current_history_length()
    try:
        yield
    finally:
        after = readline.get_current_history_length()
        own = [readline.get_history_item(i) for i in range(before + 1, after + 1)]
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.clear_history()
            readline.read_history_file(path)  # with what another chat left meanwhile
            for line in own:
                readline.add_history(line)
            readline.set_history_length(_HISTORY_LINES)
            readline.write_history_file(path)
