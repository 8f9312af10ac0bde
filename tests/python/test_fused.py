# tests/python/test_fused.py
# SPDX-License-Identifier: Apache-2.0
"""Models of Transformers that compute the bits of `halfbyte.load`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import pytest
import tiny
import torch
from halfbyte import _core
from halfbyte.torch.fuse import fuse, unfuse
from halfbyte.torch.fused import FusedGelu, FusedRMSNorm, FusedRotary, FusedRouter
from halfbyte.transformers import HalfbyteConfig, from_gguf
from halfbyte.transformers.sessions import CACHE_NAME
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

IDS = tiny.prompt(24)  # three windows of the sliding layers, nearly
PROMPT = 16  # of them come at once, the others one by one
NO_CAP = {"final_logit_softcapping": 0.0}
STEPS = 64


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def file_of(name: str, folder: Path, **options: Any) -> Path:
    options.setdefault("types", tiny.official_type)
    return tiny.save_gguf(tiny.build(name, wide=True), folder / "m.gguf", **options)


def stages(model: halfbyte.Model) -> list[np.ndarray[Any, Any]]:
    """The stream before the first layer and after each of them, for all of IDS."""
    parts = _core.Stages(model._core)
    h, ple = parts.inputs(np.array(IDS))
    width = ple.shape[1] // model.config.num_layers
    streams = [h]
    for i in range(model.config.num_layers):
        part = np.ascontiguousarray(ple[:, i * width : (i + 1) * width])
        streams.append(parts.layer(i, streams[-1], part))
    return streams


@torch.no_grad()
def in_pieces(model: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The same by Transformers, a prompt and then single tokens; and the logits."""
    streams: list[list[torch.Tensor]] = []
    logits = []
    cache = DynamicCache(config=model.config)
    for ids in [IDS[:PROMPT], *([token] for token in IDS[PROMPT:])]:
        past = {CACHE_NAME: cache}
        out = model(torch.tensor([ids]), **past, output_hidden_states=True)
        streams.append([stream[0] for stream in out.hidden_states])
        logits.append(out.logits[0])
    return [torch.cat(parts) for parts in zip(*streams, strict=True)], torch.cat(logits)


@pytest.mark.parametrize("types", [tiny.official_type, tiny.mixed_type])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_stage_has_the_bits_of_the_engine(
    name: str, types: Any, tmp_path: Path
) -> None:
    """At the prompt and at decoding; logits too, without what caps them."""
    path = file_of(name, tmp_path, types=types, extra=NO_CAP)
    own = halfbyte.load(path)
    model, _ = from_gguf(path)
    got, logits = in_pieces(model)
    # What Transformers gives last went through the norm of the head.
    for i, (ours, want) in enumerate(zip(got[:-1], stages(own)[:-1], strict=True)):
        assert np.array_equal(ours.numpy(), want), f"stream {i}"
    assert np.array_equal(logits.numpy(), own.logits(IDS))


def greedy(model: halfbyte.Model, ends: list[int]) -> list[int]:
    session, ids = model.session(), list(IDS)
    made: list[int] = []
    while len(made) < STEPS and not set(made[-1:]) & set(ends):
        made.append(int(session.logits(ids)[-1].argmax()))
        ids = made[-1:]
    return made


@pytest.mark.parametrize("name", [*tiny.NAMES, "tiny"])
def test_same_greedy_tokens(name: str, tmp_path: Path) -> None:
    """With the cap of the logits, which torch computes, and rounded activations."""
    path = name if name == "tiny" else file_of(name, tmp_path)
    model, _ = from_gguf(path)
    ends = model.generation_config.eos_token_id
    out = model.generate(torch.tensor([IDS]), max_new_tokens=STEPS, do_sample=False)
    assert out[0, len(IDS) :].tolist() == greedy(halfbyte.load(path), ends)


def test_capped_logits_are_a_rounding_apart(tmp_path: Path) -> None:
    """11 units for ours (activation_test.cc); 4 for torch: a quotient, tanh, a product.

    Of 2^-24 each, of the value.
    """
    path = file_of("e2b", tmp_path)
    want = torch.from_numpy(halfbyte.load(path).logits(IDS))
    with torch.no_grad():
        got = from_gguf(path)[0](torch.tensor([IDS])).logits[0]
    assert bool(((got - want).abs() <= 15 * 2**-24 * want.abs()).all())


TEXTS = ("The sea", "Once upon a time, there was a", "def add(a, b):\n")


@pytest.mark.parametrize(
    ("activations", "texts"), [("auto", TEXTS), ("f32", TEXTS[:1])], ids=["auto", "f32"]
)
def test_gemma3_270m_generates_what_halfbyte_does(
    activations: str, texts: tuple[str, ...], demo_model: Path
) -> None:
    model, fast = from_gguf(demo_model, activations=activations)
    own = halfbyte.load(demo_model, activations=activations)
    for text in texts:
        ids = fast(text, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=STEPS, do_sample=False)
        reply = fast.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
        assert reply == own.session()(text, max_tokens=STEPS)


def test_gemma3_270m_has_the_bits_of_the_engine(demo_model: Path) -> None:
    model, _ = from_gguf(demo_model)
    _, logits = in_pieces(model)
    assert np.array_equal(logits.numpy(), halfbyte.load(demo_model).logits(IDS))


# ---- the modules beside those that they stand for

FUSED = (FusedGelu, FusedRMSNorm, FusedRotary, FusedRouter)


def of_class(model: Any, classes: Any) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) in classes]


@pytest.mark.parametrize("name", tiny.NAMES)
def test_fused_and_back(name: str) -> None:
    """Nothing of the kind is left out, and all of it comes back."""
    model = tiny.build(name)
    before = dict(model.named_modules())
    state = {key: value.data_ptr() for key, value in model.state_dict().items()}
    taken = fuse(model)
    left = [type(m).__name__ for m in model.modules()]
    for kind in ("RMSNorm", "Rotary", "GELU", "Router"):
        ours = [n for n in left if kind.lower() in n.lower()]
        assert all(n.startswith("Fused") for n in ours), ours
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == state
    assert fuse(model) == {}
    unfuse(model, taken)
    assert dict(model.named_modules()) == before


@pytest.mark.parametrize("name", tiny.NAMES)
def test_fused_logits_and_gradients(name: str) -> None:
    """The bound is that of test_quantizer.py: float32 rounded in another order."""
    model = tiny.build(name)
    ids = torch.tensor([IDS])
    want = model(ids, labels=ids)
    want.loss.backward()
    grads = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    assert of_class(model, FUSED) == [] != list(fuse(model))
    got = model(ids, labels=ids)
    got.loss.backward()
    logits, apart = want.logits.detach(), (got.logits - want.logits).detach()
    assert float(apart.abs().max()) < 2**-13 * float(logits.abs().max())
    for key, p in model.named_parameters():
        bound = 2**-12 * float(grads[key].abs().max())
        assert float((p.grad - grads[key]).abs().max()) <= bound, key


def test_a_fused_model_is_traced_whole() -> None:
    model = tiny.build("e2b").requires_grad_(False)
    fuse(model)
    ids = torch.tensor([IDS])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids).logits, model(ids).logits)


def test_experts_of_equal_score_are_taken_in_order() -> None:
    model = tiny.build("26b").requires_grad_(False)
    fuse(model)
    router = next(m for m in model.modules() if type(m) is FusedRouter)
    router.proj.weight.zero_()
    _, weights, experts = router(torch.randn(5, model.config.hidden_size))
    top_k = model.config.top_k_experts
    assert experts.tolist() == [list(range(top_k))] * 5
    assert torch.allclose(weights, router.per_expert_scale[:top_k] / top_k)


def test_other_frequencies_are_left_to_transformers() -> None:
    model = tiny.build("gemma3")
    model.model.rotary_emb.full_attention_inv_freq[1] *= 1.001
    assert "model.rotary_emb" not in fuse(model)


# ---- accelerate


@pytest.mark.parametrize("name", tiny.NAMES)
def test_an_accelerated_model_is_fused_if_asked(name: str) -> None:
    """The bound is that of test_quantizer.py: activations are not rounded."""
    ids = torch.tensor([IDS])
    model = tiny.build(name, wide=True).requires_grad_(False)
    before = dict(model.named_modules())
    options: dict[str, Any] = {"quantize": "q4_0", "activations": "f32"}
    assert halfbyte.accelerate(model, **options).fused == 0
    want = model(ids).logits
    report = halfbyte.accelerate(model, fuse=True, **options)
    ours = [n for n in of_class(model, FUSED) if not n.endswith("router.norm")]
    assert report.fused == len(ours) > 20
    assert f"{report.fused} modules between the products" in str(report)
    bound = 2**-13 * float(want.abs().max())
    assert float((model(ids).logits - want).abs().max()) < bound
    halfbyte.restore(model)
    assert dict(model.named_modules()) == before


@pytest.mark.parametrize(
    "hook",
    [
        "forward_hook",
        "forward_pre_hook",
        "full_backward_hook",
        "full_backward_pre_hook",
    ],
)
def test_a_module_with_a_hook_is_left(hook: str) -> None:
    model = tiny.build("gemma3")
    norm = model.model.norm
    calls: list[str] = []
    getattr(norm, f"register_{hook}")(lambda *_: calls.append(hook))
    assert "model.norm" not in fuse(model)
    assert model.model.norm is norm
    model(torch.tensor([IDS])).logits.sum().backward()
    assert calls == [hook]


def test_a_module_with_a_forward_of_its_own_is_left() -> None:
    model = tiny.build("gemma3")
    norm = model.model.norm
    norm.forward = norm.forward
    assert "model.norm" not in fuse(model)


def test_a_scaled_rotary_embedding_is_left_to_transformers() -> None:
    model = tiny.build("gemma3")
    assert model.model.rotary_emb.full_attention_attention_scaling == 1.0
    model.model.rotary_emb.full_attention_attention_scaling = 1.2
    assert "model.rotary_emb" not in fuse(model)


# ---- saved, and loaded as is wanted


def test_a_saved_model_is_fused_again(tmp_path: Path) -> None:
    model, _ = from_gguf(file_of("26b", tmp_path), repack="never")
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert of_class(again, FUSED) == of_class(model, FUSED) != []
    assert again.config._attn_implementation == "halfbyte"
    other = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", attn_implementation="eager"
    )
    assert other.config._attn_implementation == "eager"
    again.dequantize()
    assert of_class(again, FUSED) == []


@pytest.mark.parametrize("fused", [False, True])
def test_a_dense_checkpoint_is_fused_if_asked(fused: bool, tmp_path: Path) -> None:
    tiny.build("e4b", wide=True).save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", quantization_config=HalfbyteConfig(bits=8, fuse=fused)
    )
    assert bool(of_class(model, FUSED)) is fused
    assert (model.config._attn_implementation == "halfbyte") is fused
