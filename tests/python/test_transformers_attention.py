# tests/python/test_transformers_attention.py
# SPDX-License-Identifier: Apache-2.0
"""Models of transformers with ``attn_implementation="halfbyte"`` against ``"eager"``.

Logits are compared relative to the largest one. Both sides compute in float32, whose
noise is up to 5e-6 in these models (`test_logits.py`), so 1e-5 is twice that; leaving out
a mask, a window or a key is seen at 1e-3 and more.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import halfbyte
import numpy as np
import pytest
import tiny
import torch
from halfbyte import ops
from halfbyte.errors import ArgumentError, UnsupportedError
from halfbyte.transformers import attention
from halfbyte.transformers.sessions import CACHE_NAME
from samples import normal
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    DynamicCache,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)

CLOSE = 1e-5
IDS = torch.tensor([tiny.prompt(40)])
NAMES = [*tiny.NAMES, "llama"]
every_model = pytest.mark.parametrize("name", NAMES)

Calls = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Arguments of the calls of the operation, which goes on working."""
    seen: Calls = []
    real: Callable[..., Any] = ops.attention

    def watched(q: Any, k: Any, v: Any, **options: Any) -> Any:
        seen.append({"q": q, "k": k, "v": v, **options})
        return real(q, k, v, **options)

    monkeypatch.setattr(ops, "attention", watched)
    return seen


def eager(name: str) -> Any:
    """A model that stops nowhere, with the attention that transformers defines."""
    if name != "llama":
        return tiny.talkative(name)
    config = LlamaConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for layer in model.model.layers:  # attention that is not flat
        layer.self_attn.q_proj.weight.data *= 20
    return model


def ours(model: Any) -> Any:
    """The same model with the same weights and our attention."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("halfbyte")
    assert twin.config._attn_implementation == "halfbyte"
    return twin


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS, **options: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids, **options).logits
    return found


# ---- whole models


@every_model
@pytest.mark.parametrize("length", [1, 5, 8, 40])  # the window is 8
def test_prefill(name: str, length: int, calls: Calls) -> None:
    model = eager(name)
    ids = IDS[:, :length]
    assert distance(logits(ours(model), ids), logits(model, ids)) <= CLOSE
    assert len(calls) == model.config.num_hidden_layers


def in_pieces(model: Any, sizes: list[int], cache: Any) -> torch.Tensor:
    rows, at = [], 0
    for size in sizes:
        part = IDS[:, at : at + size]
        rows.append(logits(model, part, **{CACHE_NAME: cache}, use_cache=True))
        at += size
    assert at == IDS.shape[1]
    return torch.cat(rows, dim=1)


@every_model
@pytest.mark.parametrize("sizes", [[1] * 40, [3, 20, 1, 16], [30, 10]], ids=len)
def test_a_prompt_in_pieces(name: str, sizes: list[int], calls: Calls) -> None:
    model = eager(name)
    twin = ours(model)
    got = in_pieces(twin, sizes, DynamicCache(config=twin.config))
    assert distance(got, logits(model)) <= CLOSE
    assert len(calls) == len(sizes) * model.config.num_hidden_layers


@every_model
@pytest.mark.parametrize("sizes", [[1] * 40, [3, 20, 1, 16], [40]], ids=len)
def test_a_static_cache(name: str, sizes: list[int]) -> None:
    # Longer than what is in it: its empty end must not be seen.
    model = eager(name)
    twin = ours(model)
    got = in_pieces(twin, sizes, StaticCache(config=twin.config, max_cache_len=64))
    assert distance(got, logits(model)) <= CLOSE


@every_model
@pytest.mark.parametrize("length", [6, 40])
@pytest.mark.parametrize("kept", [1, 2, 5])
def test_kept_logits(name: str, kept: int, length: int) -> None:
    # Layers that share keys then run for the last queries alone.
    model = eager(name)
    ids = IDS[:, :length]
    twin = ours(model)
    for cache in (DynamicCache(config=twin.config), StaticCache(twin.config, 64)):
        got = logits(twin, ids, **{CACHE_NAME: cache}, logits_to_keep=kept)
        assert distance(got, logits(model, ids)[:, -kept:]) <= CLOSE


def padded(*lengths: int) -> dict[str, torch.Tensor]:
    """Prompts of some lengths, padded on the left."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, ids.shape[1] - length :] = torch.tensor(tiny.prompt(length, seed=row))
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@every_model
def test_a_padded_batch(name: str, calls: Calls) -> None:
    model = eager(name)
    twin, batch = ours(model), padded(5, 20, 12)
    with torch.no_grad():
        got, want = twin(**batch).logits, model(**batch).logits
    seen = batch["attention_mask"].bool()
    assert torch.isfinite(got).all()
    assert distance(got[seen], want[seen]) <= CLOSE
    for row, length in enumerate((5, 20, 12)):
        alone = logits(model, torch.tensor([tiny.prompt(length, seed=row)]))[0]
        assert distance(got[row, -length:], alone) <= CLOSE
    assert calls


# A token of a batch may lead by less than the noise; these seeds and models lead by more.
@every_model
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_generate(name: str, options: dict[str, Any], calls: Calls) -> None:
    model = eager(name)
    twin = ours(model)
    common = {"max_new_tokens": 32, "do_sample": False, "pad_token_id": 0, **options}
    for batch in ({"input_ids": IDS[:, :12]}, padded(5, 20, 12)):
        want = model.generate(**batch, **common)
        assert want.shape[1] == batch["input_ids"].shape[1] + 32
        calls.clear()
        assert torch.equal(twin.generate(**batch, **common), want)
        assert len(calls) == 32 * model.config.num_hidden_layers


def test_the_tokens_depend_on_the_attention() -> None:
    # Or the equality above would say nothing.
    model = eager("e2b")
    want = model.generate(IDS[:, :12], max_new_tokens=32, do_sample=False)
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.9
    assert not torch.equal(
        model.generate(IDS[:, :12], max_new_tokens=32, do_sample=False), want
    )


# ---- selection


def test_it_is_chosen_as_the_model_is_made(calls: Calls) -> None:
    config = eager("llama").config
    made = AutoModelForCausalLM.from_config(config, attn_implementation="halfbyte")
    logits(made)
    assert len(calls) == config.num_hidden_layers


def test_it_is_chosen_and_left_again(calls: Calls) -> None:
    model = ours(eager("e4b"))
    logits(model)
    assert calls
    calls.clear()
    model.set_attn_implementation("eager")
    logits(model)
    assert not calls


def test_it_is_chosen_for_a_part(calls: Calls) -> None:
    text = tiny.config("e4b")
    config = Gemma4Config(text_config=text, vision_config=None, audio_config=None)
    config._attn_implementation = "eager"
    model = Gemma4ForConditionalGeneration(config).eval()
    logits(model)
    assert not calls
    model.set_attn_implementation({"text_config": "halfbyte"})
    assert model.config._attn_implementation == "eager"
    logits(model)
    assert len(calls) == text.num_hidden_layers


def test_registering_again_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = (AttentionInterface, AttentionMaskInterface)
    assert [t()["halfbyte"] for t in tables] == [attention.forward, attention.make_mask]
    monkeypatch.setattr(attention, "forward", None)
    monkeypatch.setattr(attention, "make_mask", None)
    attention.register()
    assert all(t()["halfbyte"] is not None for t in tables)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_the_extra_one_line_says_so(missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
import halfbyte
try:
    import halfbyte.transformers
except ImportError as error:
    assert type(error) is halfbyte.MissingExtraError
    assert error.__suppress_context__
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout.count("\n") == 1
    assert missing in done.stdout
    assert 'pip install "halfbyte[transformers]"' in done.stdout


# ---- the function alone


LAYER: Any = SimpleNamespace(is_causal=True, num_key_value_groups=2, training=False)


def tensors(
    tokens: int, kv_tokens: int, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    shapes = [(2, 4, tokens, 16), (2, 2, kv_tokens, 16), (2, 2, kv_tokens, 16)]
    found = [torch.from_numpy(normal(*s, seed=i)) for i, s in enumerate(shapes)]
    return [x.to(dtype) for x in found]


def definition(qkv: list[torch.Tensor], **options: Any) -> Any:
    arrays = [x.detach().float().numpy() for x in qkv]
    return halfbyte.reference.attention(*arrays, **options).swapaxes(1, 2)


def assert_near(got: torch.Tensor, want: Any, bound: float = 1e-5) -> None:
    # Random numbers near 1: 16 products, some tens of keys. test_attention.py is exact.
    np.testing.assert_allclose(got.detach().float().numpy(), want, rtol=0, atol=bound)


def test_nothing_is_copied(calls: Calls) -> None:
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors(3, 9)]
    mask = torch.ones(2, 1, 3, 9, dtype=torch.bool)
    out, weights = attention.forward(LAYER, *turned, mask, scaling=1.0)
    assert weights is None
    assert out.is_contiguous()
    (call,) = calls
    arrays = [call[name] for name in ("q", "k", "v", "mask")]
    pointers = [array.ctypes.data for array in arrays]
    assert pointers == [x.data_ptr() for x in (*turned, mask)]
    assert call["out"].ctypes.data == out.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrow_result_is_the_wide_one_rounded(dtype: torch.dtype) -> None:
    qkv = tensors(3, 9, dtype)
    got, _ = attention.forward(LAYER, *qkv, None)
    assert got.dtype == dtype
    wide, _ = attention.forward(LAYER, *(x.float() for x in qkv), None)
    assert torch.equal(got, wide.to(dtype))


@pytest.mark.parametrize("tokens", [1, 3, 9])
@pytest.mark.parametrize("grad", [False, True], ids=["ours", "torch's"])
def test_without_a_mask(tokens: int, grad: bool, calls: Calls) -> None:
    qkv = tensors(tokens, 9)
    qkv[0].requires_grad_(grad)
    module = copy.copy(LAYER)

    def check(options: dict[str, Any], **want: Any) -> None:
        got, _ = attention.forward(module, *qkv, None, scaling=0.7, **options)
        assert_near(got, definition(qkv, scale=0.7, **want))

    check({}, causal=True)
    check({"sliding_window": 4}, causal=True, window=4)
    check({"sliding_window": 40, "position_ids": 1, "labels": 2}, causal=True)
    check({"is_causal": False})
    module.is_causal = False
    check({"sliding_window": 4})
    check({"is_causal": True}, causal=True)
    assert bool(calls) is not grad


def test_the_mask_alone_counts(calls: Calls) -> None:
    qkv, mask = tensors(3, 9), torch.rand(2, 1, 3, 9) < 0.5
    got, _ = attention.forward(LAYER, *qkv, mask, sliding_window=2, is_causal=True)
    assert_near(got, definition(qkv, mask=mask.numpy()))
    assert calls


def test_gradients_are_torch_s(calls: Calls) -> None:
    model = eager("e4b")
    twin = ours(model)
    for each in (model, twin):
        each(input_ids=IDS, labels=IDS).loss.backward()
    want, got = (
        model.model.embed_tokens.weight.grad,
        twin.model.embed_tokens.weight.grad,
    )
    assert distance(got, want) <= 1e-4  # the sum of 40 positions' noise, and of layers
    assert not calls


def other_cases() -> dict[str, tuple[list[torch.Tensor], Any, dict[str, Any]]]:
    """What torch computes: tensors, mask, options."""
    qkv = tensors(3, 9)
    numbers = torch.from_numpy(normal(2, 1, 3, 9))
    bias = torch.from_numpy(normal(2, 4, 3, 9))
    narrow = [qkv[0], qkv[1], qkv[2][..., :5]]
    seen = torch.ones(2, 1, 3, 9, dtype=torch.bool)
    return {
        "a mask of numbers": (qkv, numbers, {}),
        "a bias": (qkv, None, {"position_bias": bias, "is_causal": False}),
        "narrow values": (narrow, seen, {}),
        "double": ([x.double() for x in qkv], seen, {}),
        "one batch of queries": ([qkv[0][:1], *qkv[1:]], seen, {}),
    }


@pytest.mark.parametrize("what", other_cases())
def test_the_rest_is_torch_s(what: str, calls: Calls) -> None:
    (q, k, v), mask, options = other_cases()[what]
    got, _ = attention.forward(LAYER, q, k, v, mask, scaling=0.5, **options)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = q @ k.mT * 0.5
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask
    scores = scores + options.get("position_bias", 0)
    assert_near(got, (scores.softmax(-1) @ v).transpose(1, 2).float().numpy())
    assert not calls


def test_dropout_drops(calls: Calls) -> None:
    qkv = tensors(3, 9)
    torch.manual_seed(0)
    dropped, _ = attention.forward(LAYER, *qkv, None, dropout=0.5)
    whole, _ = attention.forward(LAYER, *qkv, None, dropout=0.0)
    assert not torch.allclose(dropped, whole)
    assert len(calls) == 1


def test_another_device_is_refused_in_a_line() -> None:
    q, k, v = (x.to("meta") for x in tensors(3, 9))
    with pytest.raises(ArgumentError, match=r"got meta; move the model .*\n?$"):
        attention.forward(LAYER, q, k, v, None)


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_what_would_be_wrong_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f'{name}.*attn_implementation="eager"'):
        attention.forward(LAYER, *tensors(3, 9), None, **{name: 1.0})
    attention.forward(LAYER, *tensors(3, 9), None, **{name: None})


def test_the_default_device_has_no_say() -> None:
    x = torch.randn(1, 2, 5, 8)
    layer: Any = SimpleNamespace(is_causal=True, training=False)
    wanted, _ = attention.forward(layer, x, x, x, None)
    with torch.device("meta"):
        got, _ = attention.forward(layer, x, x, x, None)
    assert torch.equal(got, wanted)
    longer = torch.randn(1, 2, 9, 8)
    x.requires_grad_()
    wanted, _ = attention.forward(layer, x, longer, longer, None)
    with torch.device("meta"):
        got, _ = attention.forward(layer, x, longer, longer, None)
    assert got.requires_grad
    assert torch.equal(got, wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's
def test_what_is_watched_is_torchs_to_compute() -> None:
    q, k, v = tensors(5, 5)

    def attend(x: torch.Tensor) -> torch.Tensor:
        return attention.forward(LAYER, x, k, v, None)[0]

    wanted = attend(q)
    traced = make_fx(attend)(torch.zeros_like(q))(q)
    torch.testing.assert_close(traced, wanted)
    with pytest.warns(UserWarning, match="batching rule"):  # torch's own, of torch
        torch.testing.assert_close(torch.vmap(attend)(q[None])[0], wanted)
    along, step = torch.randn_like(q), 1e-3
    # Torch's fused function for CPUs refuses this; ours would have left the slope out.
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        slope = forward_ad.unpack_dual(attend(forward_ad.make_dual(q, along))).tangent
    about = (attend(q + step * along) - attend(q - step * along)) / (2 * step)
    # The step's square and float32's rounding over the step, of numbers near 1.
    torch.testing.assert_close(slope, about, rtol=0, atol=2e-3)
