# python/halfbyte/streams.py
# SPDX-License-Identifier: Apache-2.0
"""An answer while it is made: its pieces, where it stops, what it took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from halfbyte import _core
from halfbyte._arguments import string
from halfbyte.answers import Reader, Said
from halfbyte.errors import ArgumentError, DTypeError
from halfbyte.records import Piece, Reply, Stats

__all__ = [
    "Answer",
    "Chosen",
    "OneThread",
    "Request",
    "StopStrings",
    "Stream",
    "reply_of",
    "stop_strings",
]

# A token, and log p of it and of the likeliest ones, if that was asked for.
Chosen = tuple[int, list[tuple[int, float]]]


def stop_strings(stop: Any) -> list[str]:
    """`stop` of `Session.stream`, checked."""
    if stop is None or isinstance(stop, str):
        stops = [] if stop is None else [stop]
    elif isinstance(stop, Iterable):
        stops = list(stop)
    else:
        raise DTypeError(f"stop: expected a str or several, got {type(stop).__name__}")
    if not all(string(one, "stop") for one in stops):
        raise ArgumentError("stop: expected strings that are not empty")
    return stops


class StopStrings:
    """Cuts text off before the first stop string, holding back what may become one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that can be shown, and whether a stop string was found."""
        text = self._held + text
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((self._overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that `stop` begins with."""
        for size in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:size]):
                return size
        return 0

    def finish(self) -> str:
        """Text that became no stop string."""
        held, self._held = self._held, ""
        return held


class OneThread:
    """Holds what one thread uses at a time. A second one is told, and does not wait.

    The same thread may come in again: from a callback, or after Ctrl-C on the way out.
    """

    def __init__(self, thing: str) -> None:
        self._thing = thing
        self._lock = threading.RLock()

    def refusal(self) -> RuntimeError:
        """What a second thread is told."""
        thing = self._thing
        return RuntimeError(
            f"this {thing} is in use by another thread; make one {thing} a thread"
        )

    def __enter__(self) -> None:
        """Take it, for as long as a call computes, not until an answer ends."""
        if not self._lock.acquire(blocking=False):
            raise self.refusal()

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._lock.release()


class Request(NamedTuple):
    """What an answer was asked for, checked."""

    ids: list[int]
    limit: int
    sampler: _core.Sampler
    top: int | None  # likeliest tokens to tell of; None: of no token
    cut: StopStrings
    reader: Reader
    draft: int


class Answer:
    """Makes pieces of the tokens that are chosen, and knows where they end."""

    def __init__(self, request: Request, is_end: Callable[[int], bool]) -> None:
        self._cut, self._reader, self._is_end = request.cut, request.reader, is_end
        self._called = False
        self.left = request.limit
        self.progress = Progress(len(request.ids))

    def push(self, chosen: Chosen) -> Piece | None:
        """Take a token; what it brings. The piece that ends an answer has a reason."""
        token, scored = chosen
        self.progress.add(token)
        self.left -= 1
        said, stopped = self._say(token)
        self._called = self._called or bool(said.calls)
        reason = None if self.left else "length"
        if stopped:
            reason = "tool_calls" if self._called else "stop"
            self.left = 0
        apart = (said.thought, said.calls, said.error)
        if not (said.text or any(apart) or reason or scored):
            return None
        logprob = scored[0][1] if scored else None
        return Piece(said.text, token, reason, logprob, tuple(scored[1:]), *apart)

    def _say(self, token: int) -> tuple[Said, bool]:
        """What can be shown after a token, and whether that or the token ends it."""
        ended = self._is_end(token)
        said = self._reader.finish() if ended else self._reader.push(token)
        text, stopped = self._cut.push(said.text)
        if not stopped and (ended or self.left == 0):
            rest = Said() if ended else self._reader.finish()
            text += self._cut.push(rest.text)[0] + self._cut.finish()
            said = said.joined(rest)
        return said._replace(text=text), ended or stopped


def reply_of(pieces: Sequence[Piece], stats: Stats | None) -> Reply:
    """All of an answer that has ended."""
    assert stats is not None
    errors = [piece.tool_call_error for piece in pieces if piece.tool_call_error]
    return Reply(
        "".join(piece.text for piece in pieces),
        (pieces[-1].finish_reason if pieces else None) or "length",
        stats,
        tuple(pieces),
        "".join(piece.thought for piece in pieces),
        [call for piece in pieces for call in piece.tool_calls],
        errors[0] if errors else None,
    )


class Stream:
    """Iterator over the pieces of an answer."""

    def __init__(
        self, pieces: Iterator[Piece], progress: Progress, alone: OneThread
    ) -> None:
        self._pieces, self._progress, self._alone = pieces, progress, alone

    @property
    def tokens(self) -> list[int]:
        """Those generated so far, also where they make no whole character yet."""
        return self._progress.tokens

    @property
    def stats(self) -> Stats | None:
        """Numbers of the answer, when it has ended, by itself or by `close`."""
        return self._progress.stats

    def __iter__(self) -> Stream:
        """Return the stream itself."""
        return self

    def __next__(self) -> Piece:
        """Generate until there is a next piece."""
        with self._alone:
            return next(self._pieces)

    def close(self) -> None:
        """End the answer here."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            try:
                close()
            except ValueError:  # another thread is inside
                raise self._alone.refusal() from None
        self._progress.stop()  # which pieces that never began have not done


class Progress:
    """What is known of an answer while it is made, to its `Stream` too."""

    def __init__(self, prompt_tokens: int) -> None:
        self.tokens: list[int] = []
        self.stats: Stats | None = None  # when the answer has ended
        self.ended_by: int | None = None  # thread that went on to something else
        self.drafted = self.accepted = 0
        self._prompt = prompt_tokens
        self.start(0)

    def start(self, cached_tokens: int) -> None:
        """Begin to count time; so many tokens of the prompt need no computing."""
        self._cached = cached_tokens
        self._start = self._first = self._last = time.perf_counter()

    def add(self, token: int) -> None:
        """Note a token, and when it came."""
        self._last = time.perf_counter()
        if not self.tokens:
            self._first = self._last
        self.tokens.append(token)

    def guessed(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        """Note what a step guessed, and what came: counts of the session around it."""
        self.drafted += after[0] - before[0]
        self.accepted += after[1] - before[1]

    def stop(self) -> None:
        """Take stock, once."""
        self.stats = self.stats or Stats(
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
            generated_tokens=len(self.tokens),
            prompt_seconds=self._first - self._start,
            decode_seconds=self._last - self._first,
            peak_rss_bytes=_core.peak_rss(),
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )
