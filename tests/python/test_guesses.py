# tests/python/test_guesses.py
# Tokens guessed ahead: what an answer with them has, to the bit, and what they save.
# SPDX-License-Identifier: Apache-2.0
"""Tokens guessed ahead: what an answer with them has, to the bit, and what they save.

Passes of several tokens have the bits of single ones, so nothing here has a tolerance.
How many guesses come follows from the tokens alone: `expected` says it in Python.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import pytest
import tiny
from halfbyte import errors
from halfbyte.model import MAX_DRAFT

Make = Callable[..., Path]
# Stretches that come again, as quotations do.
IDS = tiny.prompt(12) + tiny.prompt(20, seed=1)[1:] + tiny.prompt(12)[1:]

PAGE = 256  # positions whose keys and values come and go together

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.3, "seed": 4},
    "penalized": {"repetition_penalty": 1.05},
    "logprobs": {"logprobs": 3},
    "stopped": {"stop": "th"},
}


def load(path: Path, **options: Any) -> halfbyte.Model:
    return halfbyte.load(path, **{"threads": 1} | options)


@pytest.fixture(scope="module", params=tiny.NAMES)
def model(request: pytest.FixtureRequest, tiny_gguf: Make) -> halfbyte.Model:
    return load(tiny_gguf(request.param))


@pytest.fixture(scope="module")
def e2b(tiny_gguf: Make) -> halfbyte.Model:
    return load(tiny_gguf("e2b"))


def look_up(ids: list[int], most: int) -> list[int]:
    """Guess what `halfbyte` should."""
    for length in (3, 2):
        for start in range(len(ids) - length - 1, -1, -1):
            if ids[start : start + length] == ids[-length:]:
                again = ids[start + length :]
                return [again[i % len(again)] for i in range(most)]
    return []


Guess = Callable[[list[int], int], list[int]]


def expected(
    prompt: list[int], answer: list[int], draft: int, guess: Guess = look_up
) -> tuple[int, int]:
    """How many tokens are guessed for an answer, and how many of them come.

    Two more are guessed after a pass whose guesses all came, one less after another. The
    last token of the answer is never run.
    """
    drafted = accepted = 0
    at = 0  # of the answer: the token that runs next
    reach = 3
    while at < len(answer) - 1:
        most = min(reach, draft, len(answer) - at - 2)
        guesses = guess(prompt + answer[: at + 1], most) if most > 0 else []
        drafted += len(guesses)
        at += 1
        came = 0
        for token in guesses:
            if at == len(answer) - 1 or answer[at] != token:
                break
            came, at = came + 1, at + 1
        accepted += came
        if guesses:
            reach = max(1, min(draft, reach + 2 if came == len(guesses) else reach - 1))
    return drafted, accepted


def run(session: Any, **options: Any) -> tuple[list[halfbyte.Piece], halfbyte.Stats]:
    stream = session.stream(IDS, **{"max_tokens": 60} | options)
    pieces = list(stream)
    assert stream.stats is not None
    return pieces, stream.stats


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("draft", [1, 3, MAX_DRAFT])
def test_the_answer_is_the_same(
    model: halfbyte.Model, settings: str, draft: int
) -> None:
    plain, stats = run(model.session(), **SETTINGS[settings])
    assert (stats.drafted_tokens, stats.accepted_tokens) == (0, 0)
    assert run(model.session(), draft=draft, **SETTINGS[settings])[0] == plain


@pytest.mark.parametrize("options", [{"kv": "f16"}, {"kv": "int8"}, {"threads": 2}])
def test_however_it_is_loaded(tiny_gguf: Make, options: dict[str, Any]) -> None:
    other = load(tiny_gguf("e2b"), **options)
    plain, _ = run(other.session())
    guessed, stats = run(other.session(), draft=4)
    assert guessed == plain
    assert stats.accepted_tokens > 0


@pytest.mark.parametrize("draft", [1, 2, 3, 7, MAX_DRAFT])
def test_how_many_guesses_come(e2b: halfbyte.Model, draft: int) -> None:
    stream = e2b.session().stream(IDS, max_tokens=100, draft=draft)
    for _ in stream:
        pass
    assert stream.stats is not None
    found = (stream.stats.drafted_tokens, stream.stats.accepted_tokens)
    assert found == expected(IDS, stream.tokens, draft)
    assert found[0] > found[1] > 0  # some came, and some did not


def test_a_session_holds_what_it_would_without(e2b: halfbyte.Model) -> None:
    plain, guessing = e2b.session(), e2b.session()
    streams = (
        plain.stream(IDS, max_tokens=60),
        guessing.stream(IDS, max_tokens=60, draft=5),
    )
    for _ in range(50):
        assert next(streams[0]) == next(streams[1])
        assert guessing.tokens == plain.tokens


def check_alike(
    plain: halfbyte.Session, guessing: halfbyte.Session, *, cut: int
) -> None:
    """Both hold the same, go on alike with something else, and can be cut alike."""
    other = tiny.prompt(9, seed=3)[1:]
    assert guessing.tokens == plain.tokens
    copy, row = guessing.copy(), plain.logits(other)
    assert np.array_equal(guessing.logits(other), row)
    assert np.array_equal(copy.logits(other), row)
    assert guessing.truncate(cut) == plain.truncate(cut) == cut


@pytest.mark.parametrize("pieces", range(1, 24))
def test_it_goes_on_with_anything_else(e2b: halfbyte.Model, pieces: int) -> None:
    sessions = []
    for draft in (0, 5):
        session = e2b.session()
        stream = session.stream(IDS, max_tokens=60, draft=draft)
        for _ in range(pieces):
            next(stream)
        sessions.append(session)
    check_alike(*sessions, cut=len(IDS) - 3)
    other = tiny.prompt(9, seed=3)[1:]
    plain, guessing = sessions
    assert np.array_equal(guessing.logits(other), plain.logits(other))


@pytest.mark.parametrize("token", sorted(set(IDS)))
def test_what_was_guessed_is_forgotten_with_a_cut(
    e2b: halfbyte.Model, token: int
) -> None:
    session = e2b.session()
    next(session.stream(IDS, draft=MAX_DRAFT))
    next(session.stream([*IDS, IDS[12]], draft=MAX_DRAFT))  # guesses wait
    other = [*IDS[:20], token]
    fresh = next(e2b.session().stream(other, logprobs=1))
    assert next(session.stream(other, logprobs=1)) == fresh


@pytest.mark.parametrize("length", [505, 509, 765, 1021, 1277])
def test_where_sliding_layers_write_over_pages(tiny_gguf: Make, length: int) -> None:
    long_model = load(tiny_gguf("e2b", context=4096))
    ids = (tiny.prompt(40) * 40)[:length]
    seen = []
    for draft in (0, MAX_DRAFT):
        session = long_model.session()
        stream = session.stream(ids, max_tokens=40, draft=draft)
        told = []
        for piece in stream:
            back = session.copy().truncate(length - 2 * tiny.WINDOW - PAGE)
            told.append((piece, session.kv_bytes, back))
        seen.append(told)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("left", range(6))
def test_the_context_may_end_an_answer(tiny_gguf: Make, left: int) -> None:
    small = load(tiny_gguf("e2b", context=128), context=len(IDS) + left)
    for draft in (3, MAX_DRAFT):
        stream = small.session().stream(IDS, max_tokens=60, draft=draft)
        pieces = list(stream)
        assert len(stream.tokens) == left + 1
        assert pieces[-1].finish_reason == "length"


def test_a_pass_that_fails_leaves_nothing_behind(tiny_gguf: Make) -> None:
    path = tiny_gguf("e2b", context=300)
    model = load(path)
    session = model.session()
    next(session.stream(IDS, draft=MAX_DRAFT))
    next(session.stream([*IDS, IDS[12]], draft=MAX_DRAFT))  # guesses wait
    held, times = session.tokens, path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    with pytest.raises(errors.FileChangedError):
        next(session.stream([*held, IDS[0]], draft=MAX_DRAFT))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for token in sorted(set(IDS)):
        fresh = next(model.session().stream([*held, token], logprobs=1))
        assert next(session.stream([*held, token], logprobs=1)) == fresh


def test_a_paused_stream_counts_its_own(e2b: halfbyte.Model) -> None:
    session = e2b.session()
    paused = session.stream(IDS, max_tokens=60)
    next(paused)
    assert run(session, draft=5)[1].drafted_tokens > 0
    paused.close()
    assert paused.stats is not None
    assert paused.stats.drafted_tokens == 0


def test_chat_and_conversations_take_it() -> None:
    model = halfbyte.load("tiny", threads=1)
    question = "Tell me of love and love and love."
    plain = model.chat(question, max_tokens=40)
    assert model.chat(question, max_tokens=40, draft=3).text == plain.text
    talk = halfbyte.Conversation(model)
    text = "".join(piece.text for piece in talk.send(question, max_tokens=40, draft=3))
    assert text == plain.text
