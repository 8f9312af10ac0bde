# python/halfbyte/cli/terminal.py
# What goes to stdout and stderr, and in which dress: plain text unless a person looks.
# SPDX-License-Identifier: Apache-2.0
"""Output: data on stdout, everything else on stderr."""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from halfbyte.records import Piece

__all__ = [
    "Shown",
    "answer",
    "document",
    "fancy",
    "line",
    "note",
    "printable",
    "progress",
    "quantity",
    "record",
    "table",
    "without_controls",
]

# C0 without newline and tab, DEL, C1: what a terminal obeys instead of showing.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Also marks of direction and width: names from files could pass for others by them.
_CONTROL_OR_BREAK = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)
_UNPAIRED = re.compile(r"[\ud800-\udfff]")

_SCHEMA = 1  # of the JSON documents


def fancy(stream: TextIO) -> bool:
    """Whether `stream` may get colours and cursor movements."""
    plain = ("NO_COLOR", "CI")
    return (
        stream.isatty()
        and not any(os.environ.get(name) for name in plain)
        and os.environ.get("TERM") != "dumb"
    )


def without_controls(text: str) -> str:
    """Show what a terminal would obey as ``\\xNN``; newlines and tabs stay."""
    return _CONTROL.sub(_escape, text)


def printable(text: str) -> str:
    """Show every control character, line breaks too, as ``\\xNN``."""
    return _UNPAIRED.sub(_escape, _CONTROL_OR_BREAK.sub(_escape, text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a name that is no text
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def line(text: str = "") -> None:
    """Write one line of data to stdout."""
    sys.stdout.write(_encodable(text, sys.stdout) + "\n")


def answer(text: str, *, raw: bool = False) -> None:
    """Write a piece of a model's answer to stdout, at once.

    A terminal gets no control characters of it unless `raw`; a file or pipe gets
    exactly what the model wrote.
    """
    if not raw and sys.stdout.isatty():
        text = without_controls(text)
    sys.stdout.write(_encodable(text, sys.stdout))
    sys.stdout.flush()


class Shown:
    """An answer, shown as it comes: text on stdout, all else on stderr.

    Parameters
    ----------
    raw : bool
        As for `answer`.
    thoughts : bool
        Whether thoughts are shown: dim, and marked for terminals that have no dim.
    quiet : bool
        Nothing on stderr.
    """

    def __init__(self, *, raw: bool, thoughts: bool, quiet: bool = False) -> None:
        self._raw, self._thoughts, self._quiet = raw, thoughts and not quiet, quiet
        self._thought = self._said = self._open = False

    def piece(self, piece: Piece) -> None:
        """Show a piece."""
        if piece.thought:
            self._thought = True
            self._think(piece.thought)
        if piece.text:
            self.close()
            self._said = True
            answer(piece.text, raw=self._raw)
        for call in piece.tool_calls:
            function = call["function"]
            name, arguments = function["name"], json.dumps(function["arguments"])
            self._note(f"(calls {name} with {arguments}, which is no tool here)")
        if piece.finish_reason == "length" and self._thought and not self._said:
            self._note("(still thinking at the limit of --max-tokens)")

    def close(self) -> None:
        """End the line of a thought."""
        if self._open:
            note("")
            self._open = False

    def _note(self, text: str) -> None:
        self.close()
        if not self._quiet:
            note(printable(text))

    def _think(self, text: str) -> None:
        if not self._thoughts:
            return
        sys.stdout.flush()
        text = ("" if self._open else "(thinking) ") + text
        if not self._raw:
            text = without_controls(text)
        text = _encodable(text, sys.stderr)
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\x1b[2m{text}\x1b[0m" if fancy(sys.stderr) else text)
            sys.stderr.flush()
        self._open = True


def note(text: str) -> None:
    """Write one line for the reader, not for a program, to stderr."""
    sys.stdout.flush()  # the order on a terminal is the order in time
    with contextlib.suppress(OSError):  # a full disk: the answer is what counts
        sys.stderr.write(_encodable(text, sys.stderr) + "\n")
        sys.stderr.flush()


def document(value: Mapping[str, Any]) -> None:
    """Write one JSON document to stdout, with the number of its schema."""
    line(_json({"schema": _SCHEMA, **value}, indent=2))


def record(value: Mapping[str, Any]) -> None:
    """Write one line of JSON to stdout, at once."""
    line(_json(value))
    sys.stdout.flush()


def _json(value: Mapping[str, Any], indent: int | None = None) -> str:
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    text = json.dumps(_jsonable(value), indent=indent, ensure_ascii=not is_utf8)
    # JSON escapes C0 itself; in a document, the rest occurs only inside strings.
    return re.sub(r"[\x7f-\x9f\ud800-\udfff]", lambda m: f"\\u{ord(m[0]):04x}", text)


def _jsonable(value: Any) -> Any:
    """Replace what JSON has no word for: NaN, infinities, NumPy's numbers, bytes."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: str) -> None:
    """Write a table to stdout: drawn for a terminal, aligned words elsewhere.

    Parameters
    ----------
    header : sequence of str
        Titles of the columns.
    rows : sequence of sequences of str
        Cells, printable.
    numbers : str
        One letter a column: ``r`` to align right, ``l`` left.
    """
    if fancy(sys.stdout):
        _draw(header, rows, numbers)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, numbers, strict=True)
        )
        line("  ".join(cells).rstrip())


def _draw(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for title, side in zip(header, numbers, strict=True):
        is_number = side == "r"
        drawn.add_column(
            Text(title),
            justify="right" if is_number else "left",
            overflow="fold",  # nothing is cut off
            no_wrap=is_number,
        )
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout, highlight=False).print(drawn)


@contextlib.contextmanager
def progress(
    title: str, *, quiet: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr, from the first call of the ``update(done, total)`` it yields.

    Silent unless a terminal.
    """
    if quiet or not fancy(sys.stderr):
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
    task = bar.add_task(title, total=None)
    with contextlib.ExitStack() as shown:

        def update(done: int, total: int) -> None:
            if not bar.live.is_started:
                shown.enter_context(bar)
            bar.update(task, completed=done, total=total)

        yield update


def quantity(value: float) -> str:
    """Three significant digits, never an exponent."""
    if not math.isfinite(value) or value <= 0:
        return "0" if value == 0 else str(value)
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{digits}f}"
