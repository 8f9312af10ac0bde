# tests/python/test_oracles.py
# The oracles against each other, and the mistakes that the tolerances must see.
# SPDX-License-Identifier: Apache-2.0
"""The oracles against each other, and the mistakes that the tolerances must see.

Nothing here runs the engine. These tests show that the numbers the engine is held
against are right (two implementations and llama.cpp agree) and that the tolerances are
tight enough: every mistake in `float_forward.MISTAKES` breaks them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import float_forward
import gguf
import numpy as np
import pytest
import tiny
import torch
from float_forward import MISTAKES, applicable, exact_logits
from gguf import GGMLQuantizationType as Type

GOLDEN = Path(__file__).parent.parent / "golden"
TOLERANCE = 2e-4  # of the largest logit, see test_logits.py


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def _model(name: str) -> Any:
    if name == "gemma3 scaled":
        return tiny.build("gemma3", rope_factor=4.0)
    return tiny.build(name)


@pytest.mark.parametrize("name", [*tiny.NAMES, "gemma3 scaled"])
def test_float64_forward_equals_transformers(name: str) -> None:
    model, ids = _model(name), tiny.prompt()
    exact = exact_logits(model, ids)
    error = np.abs(tiny.reference_logits(model, ids) - exact).max()
    # Measured float32 noise of transformers: 1e-6 to 5e-6.
    assert error <= 2e-5 * np.abs(exact).max()


@pytest.mark.parametrize("name", tiny.NAMES)
def test_logits_are_neither_flat_nor_saturated(name: str) -> None:
    exact = exact_logits(tiny.build(name), tiny.prompt())
    assert exact.std() > 2
    assert np.abs(exact).max() < 25


def _cases() -> list[tuple[str, str]]:
    configs = {name: tiny.config(name) for name in tiny.NAMES}
    configs["gemma3 scaled"] = tiny.config("gemma3", rope_factor=4.0)
    pairs = itertools.product(configs, MISTAKES)
    return [(name, what) for name, what in pairs if applicable(what, configs[name])]


@pytest.mark.parametrize(("name", "mistake"), _cases())
def test_tolerance_sees_mistake(name: str, mistake: str) -> None:
    model, ids = _model(name), tiny.prompt()
    exact = exact_logits(model, ids)
    error = np.abs(exact_logits(model, ids, mistake) - exact).max()
    assert error > TOLERANCE * np.abs(exact).max()


@pytest.mark.parametrize("types", [tiny.official_type, tiny.mixed_type])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_activation_bound(name: str, types: Any, tmp_path: Path) -> None:
    model, ids = tiny.build(name, wide=True), tiny.prompt()
    path = tiny.save_gguf(model, tmp_path / "model.gguf", types=types)
    model, names = tiny.with_file_weights(model, path), tiny.quantised_linears(path)
    noise = float_forward.activation_noise(model, ids, names)
    honest = float_forward.int8_logits(model, ids, names)
    assert (noise.score(honest) < noise.limits).all()
    assert noise.score(honest)[0] > 0.5  # the noise is not made too large
    wrong = ["window one short", "norm convention", "one rope base", "no value norm"]
    for mistake in [m for m in wrong if applicable(m, model.config)]:
        logits = float_forward.int8_logits(model, ids, names, mistake)
        assert (noise.score(logits) > noise.limits).any(), mistake


def test_every_quantised_matrix_is_noticed(tmp_path: Path) -> None:
    model = tiny.build("26b", wide=True)
    path = tiny.save_gguf(model, tmp_path / "model.gguf", types=tiny.official_type)
    names = tiny.quantised_linears(path)
    # Per layer: q, k, o, gate, up, down, experts twice; v on the four sliding layers.
    assert len(names) == 6 * 8 + 4 + 1
    assert not any("router" in name for name in names)


@pytest.mark.parametrize("kind", [Type.Q6_K, Type.Q4_0])
def test_encoder_is_close(kind: Type) -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((7, 512)).astype(np.float32)
    raw = tiny.encode(values, kind)
    decoded = gguf.dequantize(raw, kind)
    # Half a step: the largest magnitude of a block is 8 (32) steps of its scale, which
    # Q6_K itself rounds to 1/127 of the largest, and the step to half precision.
    steps, size = (32, 16) if kind == Type.Q6_K else (8, 32)
    largest = np.abs(values.reshape(7, -1, size)).max(-1, keepdims=True)
    error = np.abs(decoded - values).reshape(7, -1, size)
    slack = 0.5 / steps if kind == Type.Q6_K else 1.0 / steps
    assert (error <= largest * (slack + 0.03)).all()


@pytest.mark.parametrize("name", tiny.NAMES)
def test_llama_cpp_has_the_same_top_token(name: str) -> None:
    golden = json.loads((GOLDEN / "llama_tiny.json").read_text())["models"][name]
    exact = exact_logits(tiny.build(name, golden["seed"]), golden["ids"])
    assert exact.argmax(-1).tolist() == golden["top"]
    text = json.dumps(golden["top_logits"])
    assert hashlib.sha256(text.encode()).hexdigest() == golden["top_logits_sha256"]
    # llama.cpp's table of the activation function has half precision: up to 0.1.
    assert np.abs(exact.max(-1) - golden["top_logits"]).max() < 0.1
