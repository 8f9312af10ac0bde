# tests/python/test_batch.py
# Sequences that share a pass over the weights: what each has, to the bit.
# SPDX-License-Identifier: Apache-2.0
"""Sequences that share a pass over the weights: what each has, to the bit.

The oracle is one session alone, whose logits `test_logits.py` compares with those of
transformers. Nothing here has a tolerance.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import pytest
import tiny
from halfbyte import _core, errors

Make = Callable[..., Path]

# Of sessions that take a token together: nothing held, around the window of 8, behind it.
LENGTHS = [5, 0, 7, 8, 9, 40, 1, 23, 300, 12]
IDS = np.arange(len(LENGTHS)) + 300

# Alike at first, as prompts with the same instructions are.
COMMON = tiny.prompt(20)
PROMPTS = [COMMON + tiny.prompt(3 + i, seed=i + 1)[1:] for i in range(7)]

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_k": 20, "seed": 2**64 - 3},
    "penalized": {"repetition_penalty": 1.05},
    "logprobs": {"logprobs": 3},
    "stopped": {"stop": "th"},
    "none": {"max_tokens": 0},
}


def load(path: Path, **options: Any) -> halfbyte.Model:
    return halfbyte.load(path, **{"threads": 1} | options)


@pytest.fixture(scope="module", params=tiny.NAMES)
def model(request: pytest.FixtureRequest, tiny_gguf: Make) -> halfbyte.Model:
    return load(tiny_gguf(request.param, context=512))


@pytest.fixture(scope="module")
def e2b(tiny_gguf: Make) -> halfbyte.Model:
    return load(tiny_gguf("e2b"))


def sessions_of(model: halfbyte.Model) -> list[halfbyte.Session]:
    sessions = [model.session() for _ in LENGTHS]
    for i, (session, length) in enumerate(zip(sessions, LENGTHS, strict=True)):
        if length:
            session.logits(tiny.prompt(length, seed=i), last=True)
    return sessions


# --- One token of each -------------------------------------------------------------------


def check_step(model: halfbyte.Model) -> None:
    together, alone = sessions_of(model), sessions_of(model)
    for step in range(3):
        ids = np.roll(IDS, step)
        rows = [one.logits(ids[i : i + 1])[0] for i, one in enumerate(alone)]
        assert np.array_equal(model.step(together, ids), np.stack(rows))
        assert [one.tokens for one in together] == [one.tokens for one in alone]
    # What was kept is what a session alone keeps.
    for one, other in zip(together, alone, strict=True):
        rest = tiny.prompt(12, seed=9)
        assert np.array_equal(one.logits(rest), other.logits(rest))


def test_a_pass_has_the_bits_of_every_session_alone(model: halfbyte.Model) -> None:
    check_step(model)


@pytest.mark.parametrize("options", [{"kv": "f16"}, {"kv": "int8"}, {"threads": 2}])
def test_however_it_is_loaded(tiny_gguf: Make, options: dict[str, Any]) -> None:
    check_step(load(tiny_gguf("e2b", context=512), **options))


def test_more_sessions_than_tokens_of_a_pass(e2b: halfbyte.Model) -> None:
    """257 go in two passes."""
    ids = np.arange(257) + 4
    alone = e2b.session()
    rows = []
    for token in ids.tolist():
        alone.reset()
        rows.append(alone.logits([token])[0])
    sessions = [e2b.session() for _ in ids]
    assert np.array_equal(e2b.step(sessions, ids), np.stack(rows))


def test_no_sessions_have_no_logits(e2b: halfbyte.Model) -> None:
    assert e2b.step([], []).shape[0] == 0


def test_guesses_ahead_are_forgotten(e2b: halfbyte.Model) -> None:
    """They ran behind the session's tokens, which go on with something else."""
    session, plain = e2b.session(), e2b.session()
    ids = tiny.prompt(12) + tiny.prompt(12)[1:]
    stream = session.stream(ids, max_tokens=20, draft=6)
    while session._sequence.core.drafts[0] == 0:
        next(stream)
    plain.logits(session.tokens)
    expected = plain.logits([400])
    assert np.array_equal(e2b.step([session], [400]), expected)
    with pytest.raises(RuntimeError, match="went on to something else"):
        list(stream)
    assert np.array_equal(session.logits([7]), plain.logits([7]))


def test_a_guess_that_comes_later_is_none(e2b: halfbyte.Model) -> None:
    """What was guessed to follow one token would be no answer behind another."""
    sampler = _core.Sampler(0.0, 0, 1.0, 0.0, 1.0, 0)
    session, plain = e2b.session(), e2b.session()
    ids = tiny.prompt(12) + tiny.prompt(12)[1:8]
    core = session._sequence.core
    core.step(np.array(ids[:-1]), sampler, 1, 0, None)
    guess = core.guess(ids[-1], 1, 1)
    core.step(np.array(ids[-1:]), sampler, 1, 1, None)
    assert core.drafts == (1, 0)
    e2b.step([session], [400])
    plain.logits([*ids, 400])
    expected = int(plain.logits(guess)[0].argmax())
    assert core.step(np.array(guess), sampler, 1, 0, None)[0] == expected
    assert core.drafts == (1, 0)


def test_a_row_has_a_sampler_of_its_own(e2b: halfbyte.Model) -> None:
    """Rows draw side by side; of two with one sampler neither would be certain."""
    cores: list[Any] = [e2b.session()._sequence.core for _ in range(2)]
    one = _core.Sampler(1.0, 0, 1.0, 0.0, 1.0, 0)
    for samplers in ([one, one], [one], [one, None]):
        with pytest.raises(errors.ShapeError, match="samplers: not one of its own"):
            _core.step_each(cores, np.array([5, 6]), samplers, 1, None)  # type: ignore[arg-type]
    with pytest.raises(errors.ShapeError, match="sessions: found None"):
        _core.run_each([None], np.array([5]), 1)  # type: ignore[list-item]
    assert [core.tokens for core in cores] == [[], []]


def test_a_step_refuses(tiny_gguf: Make, e2b: halfbyte.Model) -> None:
    one, two = e2b.session(), e2b.session()
    other = load(tiny_gguf("e2b")).session()
    wrong: list[tuple[Any, Any, type[Exception], str]] = [
        ([one, one], [5, 6], errors.ArgumentError, "sessions: one is there twice"),
        ([one, two], [5], errors.ArgumentError, "one for each of 2 sessions, got 1"),
        ([one, other], [5, 6], errors.ArgumentError, r"sessions\[1\]: is of another"),
        ([one, e2b], [5, 6], errors.DTypeError, r"sessions\[1\]: expected a Session"),
        ([one, two], [5, 512], errors.ArgumentError, r"0 to 511, got 512"),
        ([one, two], [5.0, 6.0], errors.DTypeError, "ids"),
    ]
    for sessions, ids, error, message in wrong:
        with pytest.raises(error, match=message):
            e2b.step(sessions, ids)
    assert (one.tokens, two.tokens) == ([], [])


def test_a_full_session_stops_all_before_they_begin(e2b: halfbyte.Model) -> None:
    full, free = e2b.session(), e2b.session()
    full.logits(tiny.prompt(e2b.context), last=True)
    with pytest.raises(errors.ContextOverflowError):
        e2b.step([free, full], [5, 6])
    assert (free.position, full.position) == (0, e2b.context)


def test_a_second_thread_is_told(e2b: halfbyte.Model) -> None:
    one, two = e2b.session(), e2b.session()
    inside, seen = threading.Event(), []

    def step() -> None:
        inside.wait()
        with pytest.raises(RuntimeError, match="in use by another thread") as caught:
            e2b.step([one, two], [5, 6])
        seen.append(caught.value)

    other = threading.Thread(target=step)
    other.start()
    with two._sequence.alone:
        inside.set()
        other.join()
    assert seen
    assert e2b.step([one, two], [5, 6]).shape[0] == 2  # nothing is held any more


# --- Answers -----------------------------------------------------------------------------


def alone(model: halfbyte.Model, **options: Any) -> list[tuple[halfbyte.Piece, ...]]:
    answers = []
    for i, prompt in enumerate(PROMPTS):
        if "seed" in options:
            options["seed"] = (SETTINGS["sampled"]["seed"] + i) % 2**64
        answers.append(tuple(model.session().stream(prompt, **options)))
    return answers


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", [1, 3, 20])
def test_answers_are_those_of_every_prompt_alone(
    e2b: halfbyte.Model, settings: str, size: int
) -> None:
    options = {"max_tokens": 20} | SETTINGS[settings]
    expected = alone(e2b, **options)
    replies = list(e2b.batch(PROMPTS, size=size, **options))
    assert [reply.pieces for reply in replies] == expected
    for reply, pieces in zip(replies, expected, strict=True):
        assert reply.text == "".join(piece.text for piece in pieces)
        assert reply.finish_reason == (pieces[-1].finish_reason if pieces else "length")


def test_of_every_model(model: halfbyte.Model) -> None:
    replies = model.batch(PROMPTS, max_tokens=6)
    assert [reply.pieces for reply in replies] == alone(model, max_tokens=6)


class Passes:
    """Notes how many tokens each pass has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        step = _core.step_each

        def counted(sessions: Any, *rest: Any) -> Any:
            self.sizes.append(len(sessions))
            return step(sessions, *rest)

        monkeypatch.setattr(_core, "step_each", counted)


def test_the_next_begins_when_one_ends(
    e2b: halfbyte.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(monkeypatch)
    replies = list(e2b.batch(PROMPTS, size=3, max_tokens=5))
    assert [reply.stats.generated_tokens for reply in replies] == [5] * 7
    # The first token comes of the prompt; the other four of passes.
    assert passes.sizes == [3] * 4 + [3] * 4 + [1] * 4


def test_replies_come_in_order_and_soon(
    e2b: halfbyte.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {PROMPTS[0][-1]: 9, PROMPTS[1][-1]: 2, PROMPTS[2][-1]: 30}
    request = halfbyte.model.request

    def shorter(model: Any, prompt: list[int], **options: Any) -> Any:
        asked = request(model, prompt, **options)
        return asked._replace(limit=ends.get(prompt[-1], 4))

    monkeypatch.setattr(halfbyte.model, "request", shorter)
    passes = Passes(monkeypatch)
    replies = e2b.batch(PROMPTS[:3], size=2)
    assert next(replies).stats.generated_tokens == 9
    assert next(replies).stats.generated_tokens == 2
    assert len(passes.sizes) == 8  # the second had ended in the first of them
    assert next(replies).stats.generated_tokens == 30
    assert next(replies, None) is None
    assert passes.sizes == [2] * 8 + [1] * 22


def test_what_all_begin_with_is_computed_once(e2b: halfbyte.Model) -> None:
    held = [reply.stats.cached_tokens for reply in e2b.batch(PROMPTS, max_tokens=1)]
    assert held == [len(COMMON)] * len(PROMPTS)
    # One prompt, or next to nothing that all share: no pass for it alone.
    assert next(e2b.batch(PROMPTS[:1], max_tokens=1)).stats.cached_tokens == 0
    other = [*PROMPTS, tiny.prompt(30, seed=8)]
    assert next(e2b.batch(other, max_tokens=1)).stats.cached_tokens == 0
    # All of a prompt shared: its last token is left to compute.
    same = e2b.batch([COMMON, COMMON], max_tokens=3)
    assert [reply.stats.cached_tokens for reply in same] == [len(COMMON) - 1] * 2


def test_messages_tools_and_thoughts() -> None:
    model = halfbyte.load("tiny", threads=1)
    asked = ["What does kindness mean?", "And the sea?", "A horse"]
    chats = [[{"role": "user", "content": text}] for text in asked]
    options: dict[str, Any] = {"max_tokens": 12, "enable_thinking": True}
    expected = [model.session().chat(chat, **options) for chat in chats]
    replies = list(model.batch(chats, **options))
    assert [reply.pieces for reply in replies] == [reply.pieces for reply in expected]
    assert [reply.message for reply in replies] == [reply.message for reply in expected]


def test_texts_are_gone_on_with(e2b: halfbyte.Model) -> None:
    texts = ["the end of the line", "the"]
    replies = e2b.batch(texts, max_tokens=9)
    assert [reply.text for reply in replies] == [
        e2b.session()(text, max_tokens=9) for text in texts
    ]


def test_a_drafter_is_left_out() -> None:
    """Eight rows fill a pass; guesses would be a second reason for it."""
    model = halfbyte.load("tiny", drafter="tiny-drafter", threads=1)
    replies = list(model.batch(["A horse is", "The sea is"], max_tokens=10))
    plain = halfbyte.load("tiny", threads=1)
    assert [reply.text for reply in replies] == [
        plain.session()(text, max_tokens=10) for text in ("A horse is", "The sea is")
    ]
    assert [reply.stats.drafted_tokens for reply in replies] == [0, 0]


def test_no_prompts_have_no_replies(e2b: halfbyte.Model) -> None:
    assert list(e2b.batch([])) == []


def test_a_batch_refuses_before_it_begins(e2b: halfbyte.Model) -> None:
    good = PROMPTS[0]
    wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (
            "a text",
            {},
            errors.DTypeError,
            "prompts: expected a list of prompts, got str",
        ),
        (iter([good]), {}, errors.DTypeError, "prompts: expected a list of prompts"),
        (
            [good, []],
            {},
            errors.ArgumentError,
            r"prompts\[1\]: prompt: expected at least",
        ),
        ([good, 5], {}, errors.DTypeError, r"prompts\[1\]: prompt: expected a text"),
        (
            [good, tiny.prompt(e2b.context + 1)],
            {},
            errors.ContextOverflowError,
            r"prompts\[1\]: prompt: found \d+ tokens",
        ),
        ([good], {"size": 0}, errors.ArgumentError, "size: expected 1 or more, got 0"),
        ([good], {"draft": 3}, TypeError, "unexpected keyword argument 'draft'"),
        ([good], {"seed": -1}, errors.ArgumentError, "seed: expected 0 to"),
        (
            [good],
            {"max_token": 3},
            TypeError,
            "unexpected keyword argument 'max_token'",
        ),
        ([good], {"top_p": 2.0}, errors.ArgumentError, "top_p"),
    ]
    for prompts, options, error, message in wrong:
        with pytest.raises(error, match=message):
            e2b.batch(prompts, **options)


def test_ctrl_c_leaves_what_was_yielded(
    e2b: halfbyte.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, left = _core.step_each, iter(range(12))

    def interrupted(*asked: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(*asked)

    monkeypatch.setattr(_core, "step_each", interrupted)
    made: list[halfbyte.Reply] = []

    def collect(replies: Iterator[halfbyte.Reply]) -> None:
        made.extend(replies)

    with pytest.raises(KeyboardInterrupt):
        collect(e2b.batch(PROMPTS, size=2, max_tokens=5))
    assert [reply.pieces for reply in made] == alone(e2b, max_tokens=5)[:6]
