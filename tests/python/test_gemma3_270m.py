# tests/python/test_gemma3_270m.py
# Real weights: Gemma 3 270M against llama.cpp and against exact arithmetic.
# SPDX-License-Identifier: Apache-2.0
"""Real weights: Gemma 3 270M against llama.cpp and against exact arithmetic.

What is expected was recorded by `tests/golden/make_llama_golden.py`. llama.cpp rounds
activations to eight bits too, in larger blocks, and has a half-precision table for the
activation function. The recording therefore holds, beside llama.cpp's answers, the
exact logits of the decoded weights and how far both llama.cpp and an emulation of our
own rounding are from them. The model file is the one of the extra ``demo``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import pytest

GOLDEN = Path(__file__).parent.parent / "golden"
RECORDED: dict[str, Any] = json.loads((GOLDEN / "gemma3_270m.json").read_text())
STEPS = 32

# Noise of the lead of the first choice over the second: the largest difference between
# llama.cpp and the emulation of our rounding in any of the 160 steps (0.86; its root
# mean square is 0.26). A lead above it survives, and 146 of the 160 are above.
NOISE = RECORDED["noise"]["llama_int8_top_two"]["max"]


@pytest.fixture(scope="module")
def model(demo_model: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HALFBYTE_ACTIVATIONS", raising=False)
        yield halfbyte.load(demo_model, context=1024)


@pytest.fixture(scope="module")
def float_model(demo_model: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALFBYTE_ACTIVATIONS", "f32")
        yield halfbyte.load(demo_model, context=1024)


def choices(model: Any, run: dict[str, Any], *, stepwise: bool) -> list[int]:
    """Return our choice at each step, fed with llama.cpp's earlier choices."""
    prompt, fed = run["ids"], run["tokens"][: STEPS - 1]
    if not stepwise:
        logits = model.logits(prompt + fed)[len(prompt) - 1 :]
    else:
        session = model.session()
        rows = [session.logits(prompt)[-1]] + [session.logits([t])[0] for t in fed]
        logits = np.stack(rows)
    return [int(token) for token in logits.argmax(-1)]


def test_noise_leaves_nine_in_ten() -> None:
    margins = np.concatenate([run["margins"] for run in RECORDED["prompts"]])
    assert len(margins) == 5 * STEPS
    assert np.mean(margins > NOISE) >= 0.9


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("index", range(5))
def test_same_greedy_tokens(model: Any, index: int, stepwise: bool) -> None:
    run = RECORDED["prompts"][index]
    ours = choices(model, run, stepwise=stepwise)
    theirs = zip(run["tokens"], run["margins"], strict=True)
    wrong = [
        (step, ours[step], token, margin)
        for step, (token, margin) in enumerate(theirs)
        if margin > NOISE and ours[step] != token
    ]
    assert not wrong


@pytest.mark.parametrize("index", range(5))
def test_prompt_is_tokenised_the_same(model: Any, index: int) -> None:
    run = RECORDED["prompts"][index]
    assert model.tokenize(run["text"]) == run["ids"]


def test_perplexity(model: Any) -> None:
    recorded = RECORDED["perplexity"]
    text = (GOLDEN / "perplexity.txt").read_text(encoding="utf-8")
    ids = model.tokenize(text)
    assert ids == recorded["ids"]
    ours = model.perplexity(ids)
    assert abs(ours / recorded["value"] - 1) <= 0.005


def test_perplexity_with_float_activations(float_model: Any) -> None:
    recorded = RECORDED["perplexity"]
    ours = float_model.perplexity(recorded["ids"])
    # The recorded value has five decimals and came from float32 arithmetic.
    assert abs(ours / recorded["float_value"] - 1) <= 1e-4


def probes() -> list[tuple[int, int]]:
    return [(prompt, step) for prompt in range(5) for step in (0, STEPS - 1)]


def score(logits: np.ndarray[Any, Any], expected: dict[str, Any]) -> float:
    """Return the largest difference at the recorded entries of one row."""
    best = np.abs(logits[expected["best"]] - expected["best_logits"]).max()
    return float(max(best, np.abs(logits[::10007] - expected["every_10007"]).max()))


@pytest.mark.parametrize("index", range(5))
def test_float_activations_are_exact(float_model: Any, index: int) -> None:
    run = RECORDED["prompts"][index]
    logits = float_model.logits(run["ids"] + run["tokens"][: STEPS - 1])
    for (_, step), expected in zip(
        probes()[2 * index : 2 * index + 2],
        RECORDED["float_logits"][2 * index : 2 * index + 2],
        strict=True,
    ):
        row = logits[len(run["ids"]) - 1 + step].astype(np.float64)
        # float32 noise of transformers on these rows: 1e-4 at most.
        assert score(row, expected) <= 1e-3
        assert abs(np.sqrt(np.mean(row**2)) - expected["rms"]) <= 1e-3


@pytest.mark.parametrize("index", range(5))
def test_rounded_activations_are_close(model: Any, index: int) -> None:
    # The emulation of our rounding is off by at most `int8.max` anywhere in the 160
    # rows of 262,144 logits; the entries looked at here are a small sample of those.
    run = RECORDED["prompts"][index]
    logits = model.logits(run["ids"] + run["tokens"][: STEPS - 1])
    for (_, step), expected in zip(
        probes()[2 * index : 2 * index + 2],
        RECORDED["float_logits"][2 * index : 2 * index + 2],
        strict=True,
    ):
        row = logits[len(run["ids"]) - 1 + step].astype(np.float64)
        assert score(row, expected) <= RECORDED["noise"]["int8"]["max"]
