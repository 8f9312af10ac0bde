# tests/python/test_releases.py
# SPDX-License-Identifier: Apache-2.0
"""What docs/transformers.md says of any release of transformers, on each model it has.

.ci/run runs this file a second time, with the oldest release that is tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import halfbyte
import pytest
import tiny
import torch
from halfbyte.errors import ModelError, UnsupportedError
from halfbyte.transformers import CompressedCache, HalfbyteConfig, engine, from_gguf
from halfbyte.transformers.sessions import CACHE_NAME
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging

IDS = torch.tensor([tiny.prompt(24)])
# float32 sums in another order; the bound is derived in test_quantizer.py.
NEAR = 2**-13


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No progress bars, no gradients."""
    logging.disable_progress_bar()
    with torch.no_grad():
        yield
    logging.enable_progress_bar()


def logits(model: Any, **options: Any) -> torch.Tensor:
    out: torch.Tensor = model(IDS, **options).logits
    return out


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    assert float((got - want).abs().max()) < NEAR * float(want.abs().max())


@pytest.mark.parametrize("name", tiny.NAMES)
def test_attention(name: str) -> None:
    model = tiny.build(name)
    want = logits(model)
    model.set_attn_implementation("halfbyte")
    assert_near(logits(model), want)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_cache_in_8_bits(name: str) -> None:
    model = tiny.talkative(name)
    answers = []
    for kind in ("sdpa", "halfbyte"):
        model.set_attn_implementation(kind)
        cache = CompressedCache(model.config)
        run = {CACHE_NAME: cache, "max_new_tokens": 20, "do_sample": False}
        answers.append(model.generate(IDS, **run))
        assert cache.get_seq_length() == answers[-1].shape[1] - 1
        kinds = {type(layer).__name__ for layer in cache.layers}
        assert kinds <= {"_FullLayer", "_SlidingLayer", "DummyLayer"}
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_accelerate_and_restore(name: str) -> None:
    model = tiny.build(name, wide=True)
    before = logits(model)
    report = halfbyte.accelerate(model, quantize="q4_0", activations="f32")
    assert report.swapped
    assert not torch.equal(logits(model), before)  # four bits a weight are not 32
    halfbyte.restore(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_quantizer_saves_and_loads(name: str, tmp_path: Path) -> None:
    tiny.build(name, wide=True).save_pretrained(tmp_path / "dense")
    packing = HalfbyteConfig(bits=4)
    if not hasattr(HfQuantizer, "get_new_dtype"):
        with pytest.raises(UnsupportedError, match="cannot pack a checkpoint"):
            AutoModelForCausalLM.from_pretrained(
                tmp_path / "dense", quantization_config=packing
            )
        return
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", quantization_config=packing
    )
    model.save_pretrained(tmp_path / "packed")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("part", ["self_attn.q_proj.weight", "experts.down_proj"])
def test_a_packed_checkpoint_that_lacks_a_tensor_is_refused(
    part: str, tmp_path: Path
) -> None:
    """It is told by a mark that transformers puts on what it has read."""
    path = tiny.save_gguf(
        tiny.build("26b", wide=True), tmp_path / "m.gguf", types=tiny.official_type
    )
    from_gguf(path, repack="never")[0].save_pretrained(tmp_path)
    file, name = tmp_path / "model.safetensors", f"model.layers.1.{part}"
    AutoModelForCausalLM.from_pretrained(tmp_path)
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"^{name}: found none in the checkpoint"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_gguf_and_engine(name: str, tmp_path: Path) -> None:
    """A file as a model of transformers, and the C++ forward pass behind `generate`."""
    path = tiny.save_gguf(
        tiny.talkative(name, wide=True), tmp_path / "m.gguf", types=tiny.official_type
    )
    core = halfbyte.load(path, activations="f32", repack="never")
    model, _ = from_gguf(path, activations="f32", repack="never")
    want = torch.from_numpy(core.logits(IDS[0].tolist()))
    assert_near(logits(model)[0], want)
    found = engine(core).generate(IDS, max_new_tokens=16, do_sample=False)
    session = core.session()
    for _ in session.stream(IDS[0].tolist(), max_tokens=17):
        pass  # the last token is drawn, and not yet part of the session
    assert found[0].tolist() == session.tokens
