# python/halfbyte/batch.py
# SPDX-License-Identifier: Apache-2.0
"""Many prompts, some of them answered at a time: a pass over the weights serves all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, takewhile
from typing import NamedTuple

import numpy as np

from halfbyte import _core
from halfbyte.records import Piece, Reply
from halfbyte.streams import Answer, Chosen, Request, reply_of

__all__ = ["Runner", "replies"]

# Tokens that all prompts begin with and that are worth a pass of their own.
_SHARED = 16


class Runner(NamedTuple):
    """What a batch needs of a model."""

    begin: Callable[[], _core.Session]
    is_end: Callable[[int], bool]
    threads: Callable[[], int]


class _Row:
    """An answer under way."""

    def __init__(self, index: int, asked: Request, runner: Runner) -> None:
        self.index, self.asked = index, asked
        self.answer = Answer(asked, runner.is_end)
        self.pieces: list[Piece] = []

    def begin(self, stem: _core.Session, threads: int) -> None:
        """Read the prompt behind what `stem` has of it, and choose the first token."""
        held = len(stem.tokens)
        self.answer.progress.start(held)
        if not self.answer.left:
            return
        self.session = stem.copy()
        pending = np.asarray(self.asked.ids[held:], np.int64)
        self.push(
            self.session.step(pending, self.asked.sampler, threads, 0, self.asked.top)
        )

    def push(self, chosen: Chosen) -> None:
        self.token = chosen[0]
        if (piece := self.answer.push(chosen)) is not None:
            self.pieces.append(piece)

    def reply(self) -> Reply:
        self.answer.progress.stop()
        return reply_of(self.pieces, self.answer.progress.stats)


def replies(
    prompts: Sequence[Sequence[int]],
    ask: Callable[[int], Request],
    runner: Runner,
    size: int,
) -> Iterator[Reply]:
    """Answer what `ask` makes of each prompt, `size` of them at a time.

    See `Model.batch`.
    """
    stem = _stem(prompts, runner)
    waiting = iter(range(len(prompts)))
    rows: list[_Row] = []
    ended: dict[int, Reply] = {}  # that wait for one before them
    for told in range(len(prompts)):
        while told not in ended:
            for index in islice(waiting, size - len(rows)):
                rows.append(_Row(index, ask(index), runner))
                rows[-1].begin(stem, runner.threads())
            _advance([row for row in rows if row.answer.left], runner.threads())
            ended |= {row.index: row.reply() for row in rows if not row.answer.left}
            rows = [row for row in rows if row.answer.left]
        yield ended.pop(told)


def _stem(prompts: Sequence[Sequence[int]], runner: Runner) -> _core.Session:
    """What all prompts begin with, computed once: instructions, examples."""
    columns = zip(*(ids[:-1] for ids in prompts), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len({*column}) == 1, columns))
    stem = runner.begin()
    if len(prompts) > 1 and shared >= _SHARED:
        stem.run(np.asarray(prompts[0][:shared], np.int64), 0, runner.threads())
    return stem


def _advance(rows: Sequence[_Row], threads: int) -> None:
    """One more token of each."""
    if not rows:
        return
    chosen = _core.step_each(
        [row.session for row in rows],
        np.asarray([row.token for row in rows], np.int64),
        [row.asked.sampler for row in rows],
        threads,
        rows[0].asked.top,
    )
    for row, one in zip(rows, chosen, strict=True):
        row.push(one)
