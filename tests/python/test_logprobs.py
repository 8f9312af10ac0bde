# tests/python/test_logprobs.py
# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of a stream against the softmax of the same ids' logits, in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

IDS = tiny.prompt(20)
U = 2.0**-24

SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 4},
    {"temperature": 2.0, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 5},
    {"temperature": 0.5, "repetition_penalty": 3.0, "seed": 6},
]


@pytest.fixture(scope="module")
def model(tiny_gguf: Callable[..., Path]) -> halfbyte.Model:
    return halfbyte.load(tiny_gguf("e2b"), threads=1)


def log_softmax(logits: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Logarithms of a row's softmax, and how far off those of the library may be.

    The logarithm of the sum is within (4 + mean |d|) u, d being how far a logit is below
    the largest: tests/cpp/kernels/softmax_test.cc derives it.
    """
    below = logits.astype(np.float64) - logits.max()
    total = np.exp(below).sum()
    mean = float((np.exp(below) * -below).sum() / total)
    return below - np.log(total), (4 + mean) * U * (1 + 1e-5) + 1e-12


def check(model: Any, prompt: list[int], stream: halfbyte.Stream, count: int) -> None:
    """Every token has a piece, and its numbers are those of the logits before it."""
    pieces = list(stream)
    assert [piece.token for piece in pieces] == stream.tokens
    # A prompt in pieces is the prompt at once, bit for bit: docs/numerics.md.
    rows = model.logits([*prompt, *stream.tokens[:-1]])[len(prompt) - 1 :]
    for piece, logits in zip(pieces, rows, strict=True):
        wanted, bound = log_softmax(logits)
        assert piece.logprob is not None
        assert abs(piece.logprob - wanted[piece.token]) <= bound
        order = np.argsort(-logits, kind="stable")[:count]
        assert [id for id, _ in piece.top_logprobs] == order.tolist()
        told = np.array([value for _, value in piece.top_logprobs])
        assert (np.abs(told - wanted[order]) <= bound).all()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("count", [0, 5])
def test_they_are_those_of_the_models_own_logits(
    model: Any, settings: dict[str, Any], count: int
) -> None:
    stream = model.stream(IDS, max_tokens=25, logprobs=count or True, **settings)
    check(model, IDS, stream, count)
    assert len(stream.tokens) == 25


def test_in_a_session_that_holds_the_prompt(model: Any) -> None:
    session = model.session()
    list(session.stream(IDS, max_tokens=5))
    stream = session.stream([*IDS, 300], max_tokens=5, logprobs=2)
    check(model, [*IDS, 300], stream, 2)


def test_a_token_that_is_suppressed_keeps_its_probability(
    model: Any, tmp_path: Path
) -> None:
    likeliest = int(model.logits(IDS, last=True)[0].argmax())
    tiny.save_hf(tiny.talkative("e2b"), tmp_path)
    config = json.dumps({"suppress_tokens": [likeliest]})
    (tmp_path / "generation_config.json").write_text(config)
    bounded = halfbyte.load(tmp_path, threads=1)
    stream = bounded.stream(IDS, max_tokens=3, logprobs=3)
    check(bounded, IDS, stream, 3)
    assert likeliest not in stream.tokens


@pytest.mark.parametrize("settings", SETTINGS)
def test_asking_changes_no_token(model: Any, settings: dict[str, Any]) -> None:
    plain = model.stream(IDS, max_tokens=60, **settings)
    pieces = list(plain)
    assert {(piece.logprob, piece.top_logprobs) for piece in pieces} == {(None, ())}
    for asked in (True, 1, 7):
        stream = model.stream(IDS, max_tokens=60, logprobs=asked, **settings)
        text = "".join(piece.text for piece in stream)
        assert stream.tokens == plain.tokens
        assert text == "".join(piece.text for piece in pieces)
    assert all(piece.logprob is None for piece in model.stream(IDS, logprobs=0))


def test_every_token_has_a_piece(model: Any) -> None:
    # At such a temperature half of the tokens are single bytes that show no text yet,
    # and what may become a stop string is held back.
    options = {"temperature": 1e4, "seed": 2, "max_tokens": 80, "logprobs": True}
    whole = list(model.stream(IDS, **options))
    assert sum(not piece.text for piece in whole) > 5
    text = "".join(piece.text for piece in whole)
    held = model.stream(IDS, **options, stop=[text[20:24], "\x00"])
    pieces = list(held)
    assert pieces[-1].finish_reason == "stop"
    assert [piece.logprob for piece in pieces] == [
        piece.logprob for piece in whole[: len(pieces)]
    ]
    assert "".join(piece.text for piece in pieces) == text[: text.index(text[20:24])]


def test_the_token_that_ends_an_answer_is_told() -> None:
    model = halfbyte.load("halfbyte:tiny")
    reply = model.chat("What is love?", max_tokens=300, logprobs=1)
    assert reply.finish_reason == "stop"
    last = reply.pieces[-1]
    assert model.tokenizer.is_end(last.token)
    assert last.top_logprobs == ((last.token, last.logprob),)  # greedy: the likeliest
    assert "pieces" not in repr(reply)
    stream = halfbyte.Conversation(model).send("Why?", max_tokens=3, logprobs=True)
    assert all(piece.logprob is not None for piece in stream)


def test_more_than_there_are_is_all(model: Any) -> None:
    (piece,) = model.stream(IDS, max_tokens=1, logprobs=2**70)
    assert len(piece.top_logprobs) == tiny.VOCAB
    values = [value for _, value in piece.top_logprobs]
    assert values == sorted(values, reverse=True)
    # All of them are off by the same, at most (4 + log 512) u < 1e-6.
    assert np.exp(values).sum() == pytest.approx(1.0, abs=1e-6)
