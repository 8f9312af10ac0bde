# tests/python/test_sampling.py
# The sampler against the distribution it is to draw from.
# SPDX-License-Identifier: Apache-2.0
"""The sampler against the distribution it is to draw from.

`distribution` says in NumPy what each parameter means. Draws are compared with it one by
one, which uses the generator that the sampler documents, and by their frequencies, which
does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import numpy.typing as npt
import pytest
import tiny
from halfbyte import _core, errors

F64 = npt.NDArray[np.float64]
INF = float("inf")
NAN = float("nan")

DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 10_000},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"top_p": 1e-6},
    {"min_p": 0.2},
    {"min_p": 0.999},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"temperature": 0.7, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 2.0, "top_k": 20, "top_p": 0.5, "repetition_penalty": 1.3},
]
HISTORY = [3, 3, 0, 17, 3]


def logits(seed: int = 0, size: int = 50) -> npt.NDArray[np.float32]:
    rng = np.random.Generator(np.random.PCG64(seed))
    values = rng.normal(0, 2, size).astype(np.float32)
    values[[4, 9]] = values[7]  # a tie
    return values


def distribution(
    values: npt.NDArray[np.float32],
    history: list[int],
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
) -> F64:
    """Probability of each id."""
    scores = values.astype(np.float64)
    for id in set(history):
        factor = np.float64(np.float32(repetition_penalty))
        scores[id] = scores[id] / factor if scores[id] > 0 else scores[id] * factor
    order = np.lexsort([np.arange(len(scores)), -scores])  # the lower id on a tie
    if top_k:
        order = order[:top_k]
    likely = np.exp((scores[order] - scores.max()) / temperature)
    before = np.cumsum(likely) - likely
    kept = (before < top_p * likely.sum()) & (likely >= min_p * likely[0])
    kept[0] = True
    out = np.zeros(len(scores))
    out[order[kept]] = likely[kept] / likely[kept].sum()
    return out


def sampler(seed: int = 1, **settings: Any) -> _core.Sampler:
    return _core.Sampler(**DEFAULTS | settings, seed=seed)


def draws(count: int, seed: int, values: Any, **settings: Any) -> list[int]:
    drawn = sampler(seed, **settings)
    return [drawn.sample(values, HISTORY) for _ in range(count)]


# --- Draws -----------------------------------------------------------------------------


def uniform(seed: int, draw: int) -> float:
    """SplitMix64: draw number `draw`, from 1, of a stream."""
    mask = 2**64 - 1
    z = (seed + draw * 0x9E3779B97F4A7C15) & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return ((z ^ z >> 31) >> 11) * 2.0**-53


def chosen(probability: F64, point: float) -> set[int]:
    """Ids at `point` of the likeliest-first line of all; two where they meet."""
    order = np.lexsort([np.arange(len(probability)), -probability])
    ends = np.cumsum(probability[order])
    # The sampler's logits are float32 after the penalty, its sums double.
    near = [point - 1e-6, point + 1e-6]
    at = np.searchsorted(ends, near, side="right").clip(0, len(order) - 1)
    return {int(order[i]) for i in at}


@pytest.mark.parametrize("settings", SETTINGS)
def test_each_draw_is_the_documented_one(settings: dict[str, Any]) -> None:
    for seed in (0, 1, 2**64 - 1):
        values = logits(seed % 97)
        wanted = distribution(values, HISTORY, **DEFAULTS | settings)
        got = draws(300, seed, values, **settings)
        for draw, id in enumerate(got, 1):
            assert id in chosen(wanted, uniform(seed, draw))


@pytest.mark.parametrize("settings", SETTINGS)
def test_frequencies(settings: dict[str, Any]) -> None:
    count = 20_000
    values = logits()
    wanted = distribution(values, HISTORY, **DEFAULTS | settings)
    seen = np.bincount(draws(count, 3, values, **settings), minlength=len(wanted))
    assert not seen[wanted == 0].any()
    # Chi square over the ids of 10 expected draws or more, and the others together. Its
    # mean is the number of terms, its variance twice that. The seed is fixed.
    bins = np.where(wanted * count >= 10, np.arange(len(wanted)), len(wanted))
    expected, got = np.bincount(bins, wanted * count), np.bincount(bins, seen)
    used = expected >= 1
    terms = (got[used] - expected[used]) ** 2 / expected[used]
    assert terms.sum() <= len(terms) + 6 * np.sqrt(2 * len(terms))


def test_a_seed_is_a_stream() -> None:
    values = logits()
    once = draws(100, 5, values)
    assert draws(100, 5, values) == once
    assert draws(100, 6, values) != once
    assert len(set(once)) > 5
    # Every draw moves the stream by one, whatever is drawn from.
    mixed = sampler(5)
    for draw, id in enumerate(once):
        if draw % 2:
            assert mixed.sample(values, HISTORY) == id
        else:
            assert mixed.sample(values[:1], []) == 0


# --- Greedy, and edges -----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_temperature_zero_takes_the_first_of_the_largest(seed: int) -> None:
    values = logits(seed)
    values[[30, 12, 41]] = values.max() + 1
    for settings in ({}, {"top_k": 3}, {"top_p": 0.1}, {"min_p": 0.5}):
        assert set(draws(5, 1, values, temperature=0.0, **settings)) == {12}


def test_a_penalty_may_change_the_greedy_choice() -> None:
    values = np.array([1.0, 3.0, 2.5, -0.1], np.float32)
    greedy = sampler(temperature=0.0, repetition_penalty=1.5)
    assert greedy.sample(values, []) == 1
    assert greedy.sample(values, [1]) == 2  # 3 / 1.5 = 2
    assert greedy.sample(values, [1, 1, 1]) == 2  # once, however often it was seen
    assert greedy.sample(-values, [3]) == 3  # -0.1 is 0.1 here: 0.1 / 1.5
    assert greedy.sample(np.array([-1, -1.2], np.float32), [0]) == 1  # -1 * 1.5
    np.testing.assert_array_equal(values, np.array([1, 3, 2.5, -0.1], np.float32))


def test_minus_infinity_is_never_drawn() -> None:
    values = logits()
    values[::2] = -INF
    assert not {id for id in draws(2000, 1, values, temperature=50.0) if id % 2 == 0}
    values[:] = -INF
    values[8] = 0
    assert set(draws(10, 1, values)) == {8}


def test_huge_logits_and_small_temperatures() -> None:
    values = np.array([3e38, -3e38, 3.3e38, 0], np.float32)
    assert {sampler(seed).sample(values, []) for seed in range(20)} == {2}
    assert set(draws(20, 1, logits(), temperature=1e-30)) == {int(logits().argmax())}
    flat = draws(4000, 1, logits(), temperature=1e30)
    assert set(flat) == set(range(50))


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("at", [0, 49])
def test_logits_that_are_not_finite(bad: float, temperature: float, at: int) -> None:
    values = logits()
    values[at] = bad
    with pytest.raises(errors.NumericalError, match="logits: found NaN or infinity"):
        sampler(temperature=temperature).sample(values, [])


# --- Through a model -------------------------------------------------------------------

IDS = tiny.prompt(20)


@pytest.fixture(scope="module")
def model(tiny_gguf: Callable[..., Path]) -> halfbyte.Model:
    return halfbyte.load(tiny_gguf("e2b"), threads=1)


@pytest.mark.parametrize("settings", [SETTINGS[0], *SETTINGS[-2:]])
def test_a_model_draws_from_its_logits(model: Any, settings: dict[str, Any]) -> None:
    values = model.logits(IDS, last=True)[0]
    wanted = distribution(values, IDS, **DEFAULTS | settings)
    tokens = set()
    for seed in range(60):
        options = DEFAULTS | settings | {"max_tokens": 1, "seed": seed}
        (piece,) = model.stream(IDS, **options)
        assert piece.token in chosen(wanted, uniform(seed, 1))
        tokens.add(piece.token)
    assert len(tokens) > 3


def test_what_was_generated_is_penalised_too(model: Any) -> None:
    def greedy(penalty: float) -> list[int]:
        session = model.session()
        options = {"max_tokens": 60, "repetition_penalty": penalty}
        text = "".join(piece.text for piece in session.stream(IDS, **options))
        assert text
        return list(session.tokens[len(IDS) :])

    # A logit above 0 that is divided by 10**6 loses to any other above 0.
    free, strict = greedy(1.0), greedy(1e6)
    assert len(set(free)) < len(free)
    assert len(set(strict) | set(IDS)) == len(strict) + len(set(IDS))


@pytest.mark.parametrize("filters", [{"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.01}])
def test_who_filters_wants_to_draw(model: Any, filters: dict[str, Any]) -> None:
    """As of the command: a filter alone means a temperature of 1."""
    options = {"max_tokens": 20, "seed": 3} | filters
    drawn = model(IDS, **options)
    assert drawn == model(IDS, temperature=1.0, **options)
    greedy = model(IDS, max_tokens=20)
    assert drawn != greedy
    assert model(IDS, temperature=0.0, **options) == greedy
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}
    assert model(IDS, max_tokens=20, **neutral) == greedy


def test_the_same_seed_gives_the_same_text(model: Any, tiny_gguf: Any) -> None:
    options = {"max_tokens": 50, "temperature": 1.0, "top_k": 40}
    once = model(IDS, seed=7, **options)
    assert model(IDS, seed=7, **options) == once
    for threads in (2, 3):
        many = halfbyte.load(tiny_gguf("e2b"), threads=threads)
        assert many(IDS, seed=7, **options) == once
    assert model(IDS, seed=8, **options) != once
    assert model(IDS, **options) != model(
        IDS, **options
    )  # seeds of the system's choice


def test_a_model_that_is_not_finite_says_so(tmp_path: Path) -> None:
    broken = tiny.talkative("e2b")
    broken.model.norm.weight.data[3] = NAN
    model = halfbyte.load(tiny.save_gguf(broken, tmp_path / "m.gguf"), threads=1)
    assert np.isnan(model.logits(IDS)).any()
    with pytest.raises(errors.NumericalError, match="logits: "):
        model(IDS)


def test_suppressed_tokens_are_never_chosen(model: Any, tmp_path: Path) -> None:
    order = np.argsort(-model.logits(IDS, last=True)[0], kind="stable")
    config = {"suppress_tokens": [int(id) for id in order[:4]]}
    tiny.save_hf(tiny.talkative("e2b"), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    bounded = halfbyte.load(tmp_path, threads=1)
    (piece,) = bounded.stream(IDS, max_tokens=1)
    assert piece.token == order[4]


def test_outputs_that_have_no_token_are_never_chosen(tmp_path: Path) -> None:
    # Embeddings are often padded beyond the vocabulary.
    tiny.save_hf(tiny.talkative("e2b"), tmp_path)
    path = tmp_path / "tokenizer.json"
    made = json.loads(path.read_text())
    whole = made["model"]["vocab"]
    kept = {text: id for text, id in whole.items() if id < len(whole) - 100}
    assert all(token["id"] < len(kept) for token in made["added_tokens"])
    merges = [pair for pair in made["model"]["merges"] if "".join(pair) in kept]
    made["model"] |= {"vocab": kept, "merges": merges}
    path.write_text(json.dumps(made))
    padded = halfbyte.load(tmp_path, threads=1)
    stream = padded.stream(IDS, max_tokens=100, temperature=100.0, seed=1)
    assert len("".join(piece.text for piece in stream)) > 0
    assert max(stream.tokens) < len(kept)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, NAN, INF, 1e300]),
        ("top_k", [-1]),
        ("top_p", [0.0, -1.0, 1.1, NAN]),
        ("min_p", [-0.1, 1.0, NAN]),
        ("repetition_penalty", [0.0, -1.0, NAN, INF]),
        ("seed", [-1, 2**64]),
        ("max_tokens", [-1]),
        ("stop", ["", ["x", ""]]),
    ],
)
def test_a_parameter_out_of_range_is_named(
    model: Any, name: str, values: list[Any]
) -> None:
    for value in values:
        for call in (model.stream, model, model.session()):
            with pytest.raises(errors.ArgumentError, match=f"^{name}: "):
                call(IDS, **{name: value})


def test_an_unknown_parameter_is_an_error(model: Any) -> None:
    with pytest.raises(TypeError, match="temprature"):
        model(IDS, temprature=1.0)
