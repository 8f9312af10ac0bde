# tests/python/test_session.py
# Sessions: what they keep, where they end, and what a stream gives.
# SPDX-License-Identifier: Apache-2.0
"""Sessions: what they keep, where they end, and what a stream gives.

Logits of one sequence that was cut into calls in two ways differ by float32 noise alone:
1e-5 of the largest, as in `test_logits.py`. Texts of the tiny models are compared as
they are: the margins of their choices are far above that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import pytest
import tiny
from halfbyte import errors

CLOSE = 1e-5
IDS = tiny.prompt(30)
PROMPT = "the end of the line"

# Of a sliding layer: positions are kept in pages of 256, as many as a window of 8 and
# one chunk of 256 positions need wherever they begin.
PAGE, PAGES = 256, 3

Make = Callable[..., Path]


def load(path: Path, **options: Any) -> halfbyte.Model:
    return halfbyte.load(path, **{"threads": 1} | options)


@pytest.fixture(scope="module")
def model(tiny_gguf: Make) -> halfbyte.Model:
    return load(tiny_gguf("e2b"))


@pytest.fixture(scope="module")
def long_model(tiny_gguf: Make) -> halfbyte.Model:
    return load(tiny_gguf("e2b", context=4096))


def answer(session: Any, prompt: Any, **options: Any) -> tuple[str, halfbyte.Stats]:
    stream = session.stream(prompt, **options)
    text = "".join(piece.text for piece in stream)
    assert stream.stats is not None
    return text, stream.stats


def gap(one: Any, two: Any) -> float:
    return float(np.abs(one - two).max() / np.abs(two).max())


# --- What is used again ----------------------------------------------------------------


def test_the_same_prompt_again_is_all_but_one_token_cached(model: Any) -> None:
    session = model.session()
    first, stats = answer(session, IDS, max_tokens=10)
    assert (stats.prompt_tokens, stats.cached_tokens) == (30, 0)
    assert stats.generated_tokens == 10
    again, stats = answer(session, IDS, max_tokens=10)
    assert (stats.prompt_tokens, stats.cached_tokens) == (30, 29)
    assert again == first


def test_a_conversation_pays_for_its_new_part(model: Any) -> None:
    session, ids = model.session(), list(IDS)
    for turn in range(4):
        held = session.position
        fresh = answer(model.session(), ids, max_tokens=8)[0]
        text, stats = answer(session, ids, max_tokens=8)
        assert text == fresh
        assert stats.cached_tokens == held
        assert session.tokens[: len(ids)] == ids
        assert session.position == len(ids) + 7  # the last one was not fed
        ids = session.tokens + tiny.prompt(6, seed=turn)[1:]


@pytest.mark.parametrize("shared", [0, 1, 7, 29])
def test_a_prompt_that_differs_pays_from_there(model: Any, shared: int) -> None:
    session = model.session()
    answer(session, IDS, max_tokens=5)
    other = IDS[:shared] + tiny.prompt(30, seed=9)[1:]
    assert other[shared] != IDS[shared]
    text, stats = answer(session, other, max_tokens=8)
    assert stats.cached_tokens == shared
    assert text == answer(model.session(), other, max_tokens=8)[0]


def test_a_shorter_prompt_is_cut(model: Any) -> None:
    session = model.session()
    answer(session, IDS, max_tokens=5)
    text, stats = answer(session, IDS[:12], max_tokens=8)
    assert (stats.prompt_tokens, stats.cached_tokens) == (12, 11)
    assert text == answer(model.session(), IDS[:12], max_tokens=8)[0]


# --- Sliding layers forget -------------------------------------------------------------


@pytest.mark.parametrize("length", [1000, 1279, 1280, 1500])
def test_how_far_back_a_cut_may_go(long_model: Any, length: int) -> None:
    ids = tiny.prompt(length)
    newest = (length - 1) // PAGE
    oldest_kept = max(newest - PAGES + 1, 0) * PAGE
    # The token after the cut sees itself and the 7 before it.
    least = oldest_kept + tiny.WINDOW - 1 if oldest_kept else 0
    for cut in (least - 1, least, least + 1, length - 1):
        session = long_model.session()
        session.logits(ids, last=True)
        left = session.truncate(cut)
        assert left == (cut if cut >= least else 0)
        assert session.tokens == ids[:left]
        rest = session.logits(ids[left:], last=True)
        assert gap(rest, long_model.logits(ids, last=True)) <= CLOSE


@pytest.mark.parametrize(("shared", "cached"), [(100, 0), (1400, 1400)])
def test_a_prompt_that_differs_before_the_window(
    long_model: Any, shared: int, cached: int
) -> None:
    ids = tiny.prompt(1500)
    session = long_model.session()
    answer(session, ids, max_tokens=3)
    other = ids[:shared] + tiny.prompt(60, seed=4)[1:]
    text, stats = answer(session, other, max_tokens=8)
    assert stats.cached_tokens == cached
    assert text == answer(long_model.session(), other, max_tokens=8)[0]


@pytest.mark.parametrize("name", ["e2b", "31b", "gemma3"])
@pytest.mark.parametrize("seed", range(3))
def test_any_history_gives_the_logits_of_its_tokens(
    tiny_gguf: Make, name: str, seed: int
) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    model = load(tiny_gguf(name, context=4096))
    session = model.session()
    for step in range(12):
        kind = rng.integers(4)
        if kind == 0 and step:
            session.truncate(int(rng.integers(session.position + 1)))
        elif kind == 1 and step:
            session.truncate(max(session.position - int(rng.integers(300)), 0))
        count = int(rng.choice([1, 2, 9, 255, 257, 400]))
        if session.position + count > 4096:
            session.reset()
        last = session.logits(rng.integers(270, 512, count), last=True)
        assert gap(last, model.logits(session.tokens, last=True)) <= CLOSE


@pytest.mark.parametrize("length", [20, 1500])
def test_a_copy_goes_its_own_way(long_model: Any, length: int) -> None:
    ids = tiny.prompt(length)
    session = long_model.session()
    session.logits(ids, last=True)
    copy = session.copy()
    assert (copy.tokens, copy.kv_bytes) == (ids, session.kv_bytes)
    copy.logits([300])
    here = session.logits([301, 302], last=True)  # where the copy has written too
    there = copy.logits([303], last=True)
    assert gap(here, long_model.logits([*ids, 301, 302], last=True)) <= CLOSE
    assert gap(there, long_model.logits([*ids, 300, 303], last=True)) <= CLOSE
    del session
    assert copy.tokens == [*ids, 300, 303]


@pytest.mark.parametrize("last", [1, 2, 29, 30, 31])
def test_logits_after_some_of_the_last_tokens(model: Any, last: int) -> None:
    whole = model.logits(IDS)
    got = model.session().logits(IDS, last=last)
    assert got.shape == whole[-last:].shape
    assert gap(got, whole[-last:]) <= CLOSE


def test_memory_grows_with_use_up_to_the_report(long_model: Any) -> None:
    session = long_model.session()
    assert session.kv_bytes == 0
    seen = []
    for _ in range(16):
        session.logits(tiny.prompt(256), last=True)
        seen.append(session.kv_bytes)
    assert seen == sorted(seen)
    assert seen[0] > 0
    assert seen[-1] == long_model.report().kv_bytes_at_context
    # Sliding layers stop growing; the full ones go on by a page each.
    growth = np.diff(seen)
    assert growth[0] > growth[PAGES] == growth[-1] > 0
    session.reset()
    assert session.position == 0


# --- The end of the context ------------------------------------------------------------


def test_a_prompt_longer_than_the_context_is_refused(tiny_gguf: Make) -> None:
    model = load(tiny_gguf("e2b"), context=64)
    for call in (model.stream, model, model.session().stream):
        with pytest.raises(errors.ContextOverflowError) as caught:
            call(tiny.prompt(65))
        assert caught.value.code == "CONTEXT_OVERFLOW"
        assert "65 tokens" in str(caught.value)
        assert "at most 64" in str(caught.value)
        assert "shorten it or load with a larger context" in str(caught.value)


def test_tokens_that_do_not_fit_are_not_scored_in_part(tiny_gguf: Make) -> None:
    core = load(tiny_gguf("e2b"), context=64).session()._sequence.core
    with pytest.raises(errors.ContextOverflowError):
        core.score(np.array(tiny.prompt(70)), -1, 1)
    assert core.tokens == []


def test_no_larger_context_is_advised_than_there_is(tiny_gguf: Make) -> None:
    model = load(tiny_gguf("e2b"))
    session = model.session()
    session.logits(tiny.prompt(model.context), last=True)
    for call in (lambda ids: model(ids), lambda ids: session.logits(ids)):
        with pytest.raises(errors.ContextOverflowError) as caught:
            call(tiny.prompt(model.context + 1))
        assert "shorten" in str(caught.value)
        assert "larger" not in str(caught.value)


def test_tokens_beyond_the_context_are_refused_before_anything_is_done(
    tiny_gguf: Make,
) -> None:
    model = load(tiny_gguf("e2b"), context=64)
    session = model.session()
    session.logits(tiny.prompt(60))
    with pytest.raises(errors.ContextOverflowError) as caught:
        session.logits(tiny.prompt(5))
    message = str(caught.value)
    assert "60 tokens present and 5 more" in message
    assert "at most 64 in all" in message
    assert session.position == 60
    session.logits(tiny.prompt(4))
    assert session.position == 64
    with pytest.raises(errors.ContextOverflowError):
        session.logits([2])
    with pytest.raises(errors.ContextOverflowError):
        model.logits(tiny.prompt(65))
    with pytest.raises(errors.ContextOverflowError):  # whose logits fit no memory
        session.logits(np.zeros(1 << 24, np.int32))


@pytest.mark.parametrize("length", [60, 63, 64])
def test_an_answer_ends_where_the_context_does(tiny_gguf: Make, length: int) -> None:
    model = load(tiny_gguf("e2b"), context=64)
    session = model.session()
    pieces = list(session.stream(tiny.prompt(length), max_tokens=1000))
    assert session.position == 64  # all of it is used; one token more needs no room
    assert pieces[-1].finish_reason == "length"
    whole, stats = answer(model, tiny.prompt(length), max_tokens=1000)
    assert stats.generated_tokens == 64 - length + 1
    assert whole == "".join(piece.text for piece in pieces)


def test_a_context_beyond_the_models_is_refused(tiny_gguf: Make) -> None:
    with pytest.raises(errors.ArgumentError, match=r"context: 257 .* 256"):
        load(tiny_gguf("e2b"), context=257)
    with pytest.raises(errors.ArgumentError, match="context: expected 1 or more"):
        load(tiny_gguf("e2b"), context=0)


# --- What a stream gives ---------------------------------------------------------------


def test_pieces_are_the_text(model: Any) -> None:
    for seed in range(5):
        options = {"max_tokens": 100, "temperature": 1.0, "seed": seed}
        pieces = list(model.stream(PROMPT, **options))
        assert "".join(piece.text for piece in pieces) == model(PROMPT, **options)
        assert all(piece.text for piece in pieces[:-1])
        assert {piece.finish_reason for piece in pieces[:-1]} <= {None}
        assert pieces[-1].finish_reason == "length"


def test_no_character_is_split(long_model: Any) -> None:
    # At such a temperature all tokens are alike, and half of them are single bytes.
    known = set("".join(tiny.vocabulary()[0]))
    joined = set()
    for seed in range(3):
        session = long_model.session()
        options = {"max_tokens": 1500, "temperature": 1e4, "seed": seed}
        pieces = list(session.stream(PROMPT, **options))
        start = len(long_model.tokenize(PROMPT))
        made = [*session.tokens[start:], pieces[-1].token]
        text = "".join(piece.text for piece in pieces)
        assert text == long_model.detokenize(made)
        text.encode("utf-8")  # no half characters in the guise of surrogates
        joined |= {c for c in text if ord(c) > 0x7F} - known - {"\ufffd"}
    assert joined  # characters that only several byte tokens together make


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_the_number_of_tokens(model: Any, count: int) -> None:
    text, stats = answer(model.session(), IDS, max_tokens=count)
    assert stats.generated_tokens == count
    assert stats.prompt_tokens == 30
    assert model.detokenize(generated(model, IDS, 9)[:count]) == text


def generated(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, by feeding them one by one."""
    session, made, fed = model.session(), [], prompt
    for _ in range(count):
        made.append(int(session.logits(fed, last=True)[0].argmax()))
        fed = made[-1:]
    return made


def test_stats(model: Any) -> None:
    stream = model.session().stream(IDS, max_tokens=5)
    assert stream.stats is None
    list(stream)
    stats = stream.stats
    assert stats is not None
    assert stats.prompt_seconds > 0
    assert stats.decode_seconds > 0
    assert stats.prompt_tps == pytest.approx(30 / stats.prompt_seconds)
    assert stats.decode_tps == pytest.approx(4 / stats.decode_seconds)
    assert stats.peak_rss_bytes > 10 << 20


def test_a_closed_stream_has_ended(model: Any) -> None:
    session = model.session()
    stream = session.stream(IDS, max_tokens=50)
    first = next(stream)
    stream.close()
    assert stream.stats is not None
    assert 1 <= stream.stats.generated_tokens < 50
    with pytest.raises(StopIteration):
        next(stream)
    assert first.text == answer(session, IDS, max_tokens=50)[0][: len(first.text)]


def test_a_stream_closed_before_it_began_has_ended(model: Any) -> None:
    talk = halfbyte.Conversation(model)
    for stream in (model.session().stream(IDS), talk.send("hello")):
        stream.close()
        assert stream.stats is not None
        assert stream.stats.prompt_tokens > 0
        assert stream.stats.generated_tokens == 0
        assert list(stream) == []


@pytest.mark.parametrize("other", ["stream", "logits", "reset", "truncate"])
def test_an_overtaken_stream_says_so(model: Any, other: str) -> None:
    session = model.session()
    stream = session.stream(IDS, max_tokens=50)
    next(stream)
    calls: dict[str, Callable[[], object]] = {
        "stream": lambda: next(session.stream(IDS[:9])),
        "logits": lambda: session.logits(IDS[:2]),
        "reset": session.reset,
        "truncate": lambda: session.truncate(3),
    }
    calls[other]()
    with pytest.raises(RuntimeError, match="one session a stream"):
        list(stream)


def test_streams_of_two_sessions_may_alternate(model: Any) -> None:
    prompts = [IDS, tiny.prompt(17, seed=3)]
    alone = [list(model.session().stream(p, max_tokens=20)) for p in prompts]
    streams = [model.session().stream(p, max_tokens=20) for p in prompts]
    mixed: list[list[halfbyte.Piece]] = [[], []]
    for _ in range(20):
        for stream, pieces in zip(streams, mixed, strict=True):
            pieces += [piece for piece in [next(stream, None)] if piece is not None]
    assert mixed == alone


# --- Stop ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("at", [0, 7, 30])
def test_a_stop_string_ends_the_answer(model: Any, at: int, size: int) -> None:
    options = {"max_tokens": 100, "temperature": 1.0, "seed": 4}
    whole = model(PROMPT, **options)
    stop = whole[at : at + size]
    pieces = list(model.stream(PROMPT, **options, stop=stop))
    text = "".join(piece.text for piece in pieces)
    assert text == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    never = "\x00 not in it"
    assert model(PROMPT, **options, stop=[never, stop]) == text


def test_what_may_become_a_stop_string_is_held_back_not_lost(model: Any) -> None:
    options = {"max_tokens": 100, "temperature": 1.0, "seed": 4}
    whole = model(PROMPT, **options)
    for at in range(10, 40):
        stop = whole[at : at + 3] + "\x00"  # begins often, is never whole
        assert model(PROMPT, **options, stop=stop) == whole


def test_the_first_of_two_stop_strings_counts(model: Any) -> None:
    options = {"max_tokens": 100, "temperature": 1.0, "seed": 4}
    whole = model(PROMPT, **options)
    # The last two are whole with the same character.
    for stops in (
        [whole[50:60], whole[18:22], whole[20:24]],
        [whole[20:24], whole[18:24]],
    ):
        first = min(whole.index(stop) for stop in stops)
        assert first <= 18
        assert model(PROMPT, **options, stop=stops) == whole[:first]


# --- A folder: ends and templates ------------------------------------------------------


def folder(tmp_path: Path, *, template: str | None = None, **generation: Any) -> Path:
    tiny.save_hf(tiny.talkative("e2b"), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    return tmp_path


def test_a_token_that_ends_the_answer_is_not_text(tmp_path: Path) -> None:
    free = load(folder(tmp_path / "free"))
    made = generated(free, IDS, 12)
    end = next(token for token in made[4:] if token not in made[:4])
    at = made.index(end)
    model = load(folder(tmp_path / "ending", eos_token_id=[1, end]))
    pieces = list(model.stream(IDS, max_tokens=100))
    assert "".join(piece.text for piece in pieces) == model.detokenize(made[:at])
    assert pieces[-1].finish_reason == "stop"
    assert pieces[-1].token == end
    with_stop = answer(model, IDS, max_tokens=at)  # the limit comes first
    assert with_stop[1].generated_tokens == at


TEMPLATE = "{{ bos_token }}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
HELLO = [{"role": "user", "content": "the end <turn|> of"}]


def test_chat(tmp_path: Path) -> None:
    model = load(folder(tmp_path, template=TEMPLATE))
    assert model.has_template
    reply = model.chat(HELLO, max_tokens=12)
    assert isinstance(reply, halfbyte.Reply)
    assert str(reply) == reply.text
    assert reply.finish_reason == "length"
    assert reply.stats.generated_tokens == 12
    text = "<|turn>user\nthe end <turn|> of<turn|>\n<|turn>model\n"
    prompt = model.tokenize(text, special=True)
    held = model._session.tokens[: reply.stats.prompt_tokens]
    assert held[:4] == prompt[:4]
    # The end of a turn that a user spells is text: it has more tokens than the marker.
    marker = model.tokenize("<turn|>", bos=False, special=True)
    assert len(marker) == 1
    assert held.count(marker[0]) == prompt.count(marker[0]) - 1 == 1
    session = model.session()
    streamed = "".join(piece.text for piece in session.stream(HELLO, max_tokens=12))
    assert streamed == reply.text
    more = [
        *HELLO,
        {"role": "assistant", "content": reply.text},
        {"role": "user", "content": "and"},
    ]
    stats = session.chat(more, max_tokens=3).stats
    assert stats.cached_tokens >= reply.stats.prompt_tokens - 1


def test_chat_without_a_template(model: Any) -> None:
    assert not model.has_template
    for call in (model.chat, model.stream, model.session().chat):
        with pytest.raises(errors.ModelError) as caught:
            call(HELLO)
        assert caught.value.code == "MODEL_TEMPLATE"
        assert "chat template: found none" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_a_prompt_without_tokens(model: Any) -> None:
    with pytest.raises(errors.ArgumentError, match="prompt: "):
        model.stream([])
    with pytest.raises(
        errors.ArgumentError, match="prompt: expected 0 to 511, got 512"
    ):
        model.stream([2, 512])
    with pytest.raises(errors.DTypeError, match="prompt: expected integers"):
        model.stream([0.5])
