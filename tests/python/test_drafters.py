# tests/python/test_drafters.py
# Google's drafters: what they guess, beside transformers' own, and answers with them.
# SPDX-License-Identifier: Apache-2.0
"""Google's drafters: what they guess, beside transformers' own, and answers with them.

A guess is the likeliest of 512 random logits: it is compared as it is, in float32.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import drafters
import halfbyte
import numpy as np
import pytest
import tiny
import torch
from halfbyte import _core, errors
from halfbyte.model import DRAFT, MAX_DRAFT
from test_guesses import check_alike, expected

NAMES = [name for name in tiny.NAMES if name != "gemma3"]
# Longer than a window of 8, and than a page of 256 with the answer behind it.
IDS = tiny.prompt(31)

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.3, "seed": 4},
    "logprobs": {"logprobs": 3},
}


class Pair(NamedTuple):
    target: Any
    drafter: Any
    folder: Path
    assistant: Path

    def load(self, **options: Any) -> halfbyte.Model:
        options = {"threads": 1, "activations": "f32"} | options
        return halfbyte.load(self.folder, drafter=self.assistant, **options)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Torch's idle threads would compete with ours for seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(folder: Path, name: str, *, ordered: bool = False) -> Pair:
    target = tiny.talkative(name)
    drafter = drafters.build(target, ordered=ordered)
    made = tiny.save_hf(target, folder / "target")
    return Pair(target, drafter, made, drafters.save(drafter, folder / "assistant"))


@pytest.fixture(
    scope="module",
    params=[(name, ordered) for name in NAMES for ordered in (False, True)],
    ids=str,
)
def random_pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    name, ordered = request.param
    return pair(tmp_path_factory.mktemp(name), name, ordered=ordered)


@pytest.fixture(scope="module")
def e2b(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("e2b"), "e2b", ordered=True)


@pytest.fixture(scope="module")
def quoting(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A drafter that knows the answer to IDS, but for what stands in it twice."""
    folder = tmp_path_factory.mktemp("quoting")
    target = tiny.talkative("e2b")
    made = tiny.save_hf(target, folder / "target")
    ids = IDS + answer(halfbyte.load(made, threads=1, activations="f32"), 200)[0]
    drafter = drafters.quotes(drafters.build(target), target, ids)
    return Pair(target, drafter, made, drafters.save(drafter, folder / "assistant"))


def answer(
    model: Any, count: int = 60, prompt: list[int] = IDS, **options: Any
) -> tuple[list[int], halfbyte.Stats]:
    stream = model.stream(prompt, max_tokens=count, **options)
    for _ in stream:
        pass
    assert stream.stats is not None
    return stream.tokens, stream.stats


def guess(session: halfbyte.Session, token: int, most: int) -> list[int]:
    return session._sequence.core.guess(token, 1, most)


# --- What is guessed --------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 7, 9, 30])
def test_guesses_are_those_of_transformers(random_pair: Pair, length: int) -> None:
    model = random_pair.load()
    session = model.session()
    session.logits(IDS[:length], last=True)
    token = IDS[length]
    found = guess(session, token, 6)
    ids = [*IDS[:length], token]
    assert found == drafters.drafted(random_pair.drafter, random_pair.target, ids, 6)
    assert len(set(found)) > 1


@pytest.mark.parametrize("draft", [1, 4])
def test_guesses_all_along_an_answer(quoting: Pair, draft: int) -> None:
    """After guesses that came, and after such as did not, at every token."""
    session = quoting.load().session()
    stream = session.stream(IDS, max_tokens=40, draft=draft)
    for _ in stream:
        ids = [*session.tokens, stream.tokens[-1]]
        expected = drafters.drafted(quoting.drafter, quoting.target, ids, 3)
        assert guess(session, ids[-1], 3) == expected
    assert stream.stats is not None
    assert 0 < stream.stats.accepted_tokens < stream.stats.drafted_tokens


@pytest.mark.parametrize("names", drafters.GGUF_NAMES, ids=str)
def test_gguf(tmp_path: Path, e2b: Pair, names: tuple[str, str, str]) -> None:
    path = drafters.save_gguf(e2b.drafter, tmp_path / "d.gguf", names)
    whole = drafters.build(e2b.target)  # the same without clusters
    session = e2b._replace(assistant=path).load().session()
    session.logits(IDS[:-1], last=True)
    expected = drafters.drafted(whole, e2b.target, IDS, 5)
    assert guess(session, IDS[-1], 5) == expected
    assert expected != drafters.drafted(e2b.drafter, e2b.target, IDS, 5)


@pytest.mark.parametrize("name", NAMES)
def test_configs_as_they_were_released(tmp_path: Path, name: str) -> None:
    """Which name the heads of full layers by keys of their own."""
    made = pair(tmp_path, name, ordered=True)
    text = tiny.text_config(made.drafter.model, released=True)
    assert "per_layer_config" not in text
    drafters.break_config(made.assistant, text_config=text)
    session = made.load().session()
    session.logits(IDS[:-1], last=True)
    expected = drafters.drafted(made.drafter, made.target, IDS, 4)
    assert guess(session, IDS[-1], 4) == expected


def test_nothing_is_guessed_without_a_state(e2b: Pair) -> None:
    """Which is known behind logits alone, and not behind a cut."""
    session = e2b.load().session()
    assert guess(session, IDS[0], 4) == []
    session.logits(IDS[:-1], last=True)
    there = guess(session, IDS[-1], 4)
    assert len(there) == 4
    assert guess(session.copy(), IDS[-1], 4) == there
    session.truncate(len(IDS) - 5)
    assert guess(session, IDS[-5], 4) == []


@pytest.mark.parametrize("clusters", [32, 64], ids="of {} clusters".format)
def test_clusters_are_rows_of_the_head(tmp_path: Path, clusters: int) -> None:
    """Of 16 rows, a panel, or of 8: all of them together are the whole head."""
    target = tiny.talkative("e2b")
    folder = tiny.save_hf(target, tmp_path / "target")
    whole = drafters.save(drafters.build(target), tmp_path / "whole")
    ordered = drafters.build(target, ordered=True, clusters=clusters, used=clusters)
    found = []
    for path in (whole, drafters.save(ordered, tmp_path / "ordered")):
        for options in (
            {"quantize": "q4_0"},
            {"quantize": "q8_0"},
            {"repack": "never"},
        ):
            session = halfbyte.load(
                folder, drafter=path, threads=1, **options
            ).session()
            session.logits(IDS[:-1], last=True)
            found.append(guess(session, IDS[-1], 6))
    assert found[:3] == found[3:]
    assert found[0] != found[2]  # rounding was seen


def test_guesses_after_some_came_and_one_did_not(random_pair: Pair) -> None:
    """The state that a guess starts from is the row of the token before."""
    session = random_pair.load().session()
    core = session._sequence.core
    sampler = _core.Sampler(0.0, 0, 1.0, 0.0, 1.0, 0)
    ids = IDS[:20]
    core.step(np.array(ids[:-1]), sampler, 1, 0, None)

    def guessed(pending: list[int]) -> list[int]:
        expected = drafters.drafted(random_pair.drafter, random_pair.target, pending, 4)
        assert guess(session, pending[-1], 4) == expected
        return expected

    first = guessed(ids)[:3]
    core.step(np.array(ids[-1:]), sampler, 1, 3, None)
    for token in first:  # all of them come
        ids = [*ids, token]
        guessed(ids)
        core.step(np.array([token]), sampler, 1, 3, None)
        assert core.tokens == ids
    ids = [*ids, 7]  # in place of the one guessed
    guessed(ids)
    core.step(np.array([7]), sampler, 1, 3, None)
    guessed([*ids, 300])
    other = session.copy()
    assert guess(other, 300, 4) == guess(session, 300, 4)


def test_guesses_of_a_head_with_row_scales(e2b: Pair, tmp_path: Path) -> None:
    """Panels are made of an ordered copy of the head. That goes; its scales stay."""
    assistant = drafters.with_row_scales(e2b.assistant, tmp_path / "int8")
    found = []
    for repack in ("never", "always"):
        model = halfbyte.load(e2b.folder, drafter=assistant, threads=1, repack=repack)
        session = model.session()
        session.logits(IDS[:-1], last=True)
        found.append([guess(session, token, 6) for token in range(5, 25)])
    assert found[0] == found[1]


# --- Answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("draft", [1, None, MAX_DRAFT])
def test_the_answer_is_the_same(
    random_pair: Pair, settings: str, draft: int | None
) -> None:
    model = random_pair.load(activations="auto")
    options = {"max_tokens": 40} | SETTINGS[settings]
    plain = list(model.session().stream(IDS, draft=0, **options))
    stream = model.session().stream(IDS, draft=draft, **options)
    assert list(stream) == plain
    assert stream.stats is not None
    assert stream.stats.drafted_tokens > 0


@pytest.mark.parametrize("options", [{"kv": "f16"}, {"kv": "int8"}, {"threads": 2}])
def test_however_it_is_loaded(quoting: Pair, options: dict[str, Any]) -> None:
    model = quoting.load(**options)
    plain, _ = answer(model.session(), draft=0)
    found, stats = answer(model.session())
    assert found == plain
    assert stats.accepted_tokens > 0


@pytest.mark.parametrize("draft", [None, 1, 5, MAX_DRAFT])
def test_how_many_guesses_come(quoting: Pair, draft: int | None) -> None:
    """Of a drafter whose guess depends on the token before alone."""

    @cache
    def following(token: int) -> int:
        return drafters.drafted(quoting.drafter, quoting.target, [2, token], 1)[0]

    def chain(ids: list[int], most: int) -> list[int]:
        guesses, token = [], ids[-1]
        for _ in range(most):
            guesses.append(token := following(token))
        return guesses

    tokens, stats = answer(quoting.load().session(), 150, draft=draft)
    most = DRAFT if draft is None else draft
    drafted, accepted = expected(IDS, tokens, most, chain)
    assert (stats.drafted_tokens, stats.accepted_tokens) == (drafted, accepted)
    assert 40 < accepted < drafted


def test_a_session_goes_on_with_anything_else(quoting: Pair) -> None:
    model = quoting.load()
    for pieces in range(1, 12):
        sessions = [model.session(), model.session()]
        for session, draft in zip(sessions, (0, 5), strict=True):
            stream = session.stream(IDS, max_tokens=60, draft=draft)
            for _ in range(pieces):
                next(stream)
        check_alike(*sessions, cut=len(IDS) - 3)
        plain, guessing = sessions
        assert answer(guessing, 20)[0] == answer(plain, 20, draft=0)[0]


QUESTIONS = (
    "What does kindness mean?",
    "Recite Psalms 23:1.",
    "Give me a speech from Macbeth.",
)


@pytest.mark.parametrize("quantize", [None, "q4_0"])
def test_one_that_was_trained(quantize: str | None) -> None:
    """Of the package: a quarter of what it guesses comes, by chance 1 of 4096 would."""
    model = halfbyte.load("tiny", drafter="tiny-drafter", quantize=quantize, threads=1)
    drafted = accepted = 0
    for question in QUESTIONS:
        plain = model.session().chat(question, max_tokens=80, draft=0)
        reply = model.session().chat(question, max_tokens=80)
        assert reply.text == plain.text
        drafted += reply.stats.drafted_tokens
        accepted += reply.stats.accepted_tokens
    assert accepted > drafted / 4


def test_a_report_names_it(e2b: Pair) -> None:
    report = e2b.load().report()
    assert report.drafter == str(e2b.assistant)
    assert str(e2b.assistant) in str(report)
    assert "drafter" not in str(halfbyte.load(e2b.folder).report())


def test_the_command(quoting: Pair) -> None:
    def run(*options: str | Path) -> dict[str, Any]:
        line = [sys.executable, "-m", "halfbyte", "run", quoting.folder, "the", "--raw"]
        line += ["-n", "40", "--temp", "0", "--json", "--quiet", *options]
        done = subprocess.run(line, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    alone = run()
    drafted, fewer = (
        run("--drafter", quoting.assistant, *more) for more in ([], ["--draft", "1"])
    )
    assert alone["text"] == drafted["text"] == fewer["text"]
    assert alone["stats"]["drafted_tokens"] == 0
    assert drafted["stats"]["drafted_tokens"] > fewer["stats"]["drafted_tokens"] > 0


# --- What is refused --------------------------------------------------------------------


def test_a_drafter_is_no_model(e2b: Pair) -> None:
    for take in (halfbyte.load, halfbyte.model.examine):
        with pytest.raises(
            errors.UnsupportedError, match="found a drafter; expected a model"
        ):
            take(e2b.assistant)
    verified = halfbyte.verify(e2b.assistant)
    assert verified.ok
    assert "found a drafter" in str(verified)


def test_a_model_is_no_drafter(e2b: Pair) -> None:
    with pytest.raises(errors.UnsupportedError, match="expected a drafter"):
        halfbyte.load(e2b.folder, drafter=e2b.folder)


def test_one_that_was_made_for_another(tmp_path: Path, e2b: Pair) -> None:
    other = pair(tmp_path, "e4b")
    with pytest.raises(
        errors.ModelError,
        match=r"drafter: backbone_hidden_size: found 96; expected 64.*MODEL_DRAFTER",
    ):
        halfbyte.load(e2b.folder, drafter=other.assistant)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_centroids": 7}, "num_centroids.*found 7; expected a divisor"),
        ({"num_centroids": 16}, "centroids.weight.*found .32, 64.; expected .16, 64."),
        ({"centroid_intermediate_top_k": 33}, "top_k.*found 33; expected 1 to 32"),
        ({"backbone_hidden_size": 32}, "pre_projection.weight.*expected .64, 64."),
        ({"backbone_hidden_size": 0}, "backbone_hidden_size.*found 0; expected 1 to"),
    ],
)
def test_wrong_configs(
    tmp_path: Path, e2b: Pair, changes: dict[str, Any], match: str
) -> None:
    folder = drafters.save(e2b.drafter, tmp_path / "assistant")
    drafters.break_config(folder, **changes)
    with pytest.raises(errors.ModelError, match=match):
        e2b._replace(assistant=folder).load()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_kv_shared_layers": 2}, "shared_layers.*found 2; expected 4, all layers"),
        (
            {"num_key_value_heads": 2},
            "model.safetensors.*value_heads: found 2; expected 1",
        ),
        ({"hidden_size_per_layer_input": 8}, "found per-layer embeddings; expected a"),
        (
            {"enable_moe_block": True, "num_experts": 2, "top_k_experts": 1}
            | {"moe_intermediate_size": 8},
            "found experts; expected a dense one of Gemma 4",
        ),
        (
            {"model_type": "gemma3_text", "rope_parameters": None},
            "found gemma3; expected a dense one of Gemma 4",
        ),
    ],
)
def test_wrong_text_configs(
    tmp_path: Path, e2b: Pair, changes: dict[str, Any], match: str
) -> None:
    folder = drafters.save(e2b.drafter, tmp_path / "assistant")
    text = tiny.text_config(e2b.drafter.model, released=True) | changes
    drafters.break_config(folder, text_config=text)
    with pytest.raises(errors.Error, match=match):
        e2b._replace(assistant=folder).load()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("wrong", [-1, tiny.VOCAB])
def test_tokens_of_clusters_that_are_none(
    tmp_path: Path, e2b: Pair, wrong: int, dtype: torch.dtype
) -> None:
    drafter = drafters.build(e2b.target, ordered=True)
    order = drafter.masked_embedding.token_ordering.to(dtype)
    drafter.masked_embedding.token_ordering = order
    folder = drafters.save(drafter, tmp_path / "right")
    halfbyte.load(e2b.folder, drafter=folder)
    order[3] = wrong
    folder = drafters.save(drafter, tmp_path / "wrong")
    with pytest.raises(
        errors.ModelError,
        match=rf"token_ordering.*found {wrong} at 3; expected 0 to 511",
    ):
        e2b._replace(assistant=folder).load()


def test_quantize_takes_either(tmp_path: Path, e2b: Pair) -> None:
    packed = tiny.save_gguf(
        e2b.target, tmp_path / "q4_0.gguf", types=lambda _: tiny.Type.Q4_0
    )
    with pytest.raises(errors.ModelError, match="MODEL_QUANTIZE"):
        halfbyte.load(packed, quantize="q4_0")
    model = halfbyte.load(packed, drafter=e2b.assistant, quantize="q4_0", threads=1)
    assert answer(model, 20)[0] == answer(model, 20, draft=0)[0]
    assert model.report().quantize is None  # the model itself
    both = halfbyte.load(e2b.folder, drafter=e2b.assistant, quantize="q4_0")
    assert both.report().quantize == "q4_0"


def test_what_cannot_be_rounded(tmp_path: Path, e2b: Pair) -> None:
    drafter = drafters.build(e2b.target, ordered=True)
    drafter.model.embed_tokens.weight.data[5, 3] = float("nan")
    folder = drafters.save(drafter, tmp_path)
    with pytest.raises(errors.NumericalError, match=r"model.safetensors: .*the head"):
        halfbyte.load(e2b.folder, drafter=folder, quantize="q4_0")


def test_a_drafter_that_is_no_path(e2b: Pair) -> None:
    with pytest.raises(errors.DTypeError, match="drafter: expected a path"):
        halfbyte.load(e2b.folder, drafter=3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        halfbyte.load(e2b.folder, drafter="./nowhere")
