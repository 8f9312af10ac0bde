# tests/python/test_cache.py
# SPDX-License-Identifier: Apache-2.0
"""`CompressedCache` beside a cache of transformers that is given rounded tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import halfbyte
import pytest
import tiny
import torch
from float_forward import in_8_bits
from halfbyte import KvCodes, ops
from halfbyte.errors import ArgumentError, ShapeError, UnsupportedError
from halfbyte.transformers import CompressedCache
from halfbyte.transformers.cache import CompressedTensor
from halfbyte.transformers.sessions import CACHE_NAME
from transformers import DynamicCache

# Twice the longest window of the tiny models, and more.
IDS = torch.tensor([tiny.prompt(40)])
PIECES = {"at once": [40], "in pieces": [1, 17, 22], "then one by one": [33, *[1] * 7]}
each_split = pytest.mark.parametrize("sizes", PIECES.values(), ids=PIECES)
each_model = pytest.mark.parametrize("name", tiny.NAMES)


@pytest.fixture(autouse=True)
def _one_thread_and_no_gradients() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


class RoundedCache(DynamicCache):
    """What `CompressedCache` says it is, in float32 and by the slow twin."""

    def update(
        self, key: torch.Tensor, value: torch.Tensor, *args: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen: tuple[torch.Tensor, torch.Tensor] = super().update(
            in_8_bits(key), in_8_bits(value), *args, **options
        )
        return seen


def made(name: str, attention: str = "sdpa") -> Any:
    model = tiny.talkative(name)
    model.set_attn_implementation(attention)
    return model


def run(model: Any, cache: Any, sizes: list[int], **options: Any) -> torch.Tensor:
    parts, at = [], 0
    for size in sizes:
        ids = IDS[:, at : at + size]
        parts.append(model(ids, **{CACHE_NAME: cache}, **options).logits)
        at += size
    return torch.cat(parts, dim=1)


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


@each_model
@each_split
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_attention_gets_the_rounded_tensors(
    name: str, sizes: list[int], attention: str
) -> None:
    model = made(name, attention)
    want = run(model, RoundedCache(config=model.config), sizes)
    got = run(model, CompressedCache(model.config), sizes)
    assert torch.equal(got, want)


@each_model
@each_split
def test_our_attention_reads_the_codes(
    name: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums are taken in another order, so codes at a tie differ: as in test_logits.py."""
    seen = []
    real = ops.attention

    def watched(q: Any, k: Any, v: Any, **options: Any) -> Any:
        seen.append((k, v))
        return real(q, k, v, **options)

    model = made(name)
    exact = model(IDS).logits
    want = run(model, RoundedCache(config=model.config), sizes)
    monkeypatch.setattr(ops, "attention", watched)
    model.set_attn_implementation("halfbyte")
    got = run(model, CompressedCache(model.config), sizes)
    assert rms(got - want) < rms(want - exact) / 4
    assert len(seen) == len(sizes) * model.config.num_hidden_layers
    assert all(isinstance(x, KvCodes) for pair in seen for x in pair)


@each_model
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True},
        {"num_beams": 3},
        {"num_return_sequences": 3, "do_sample": True},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 7},
    ],
    ids=str,
)
def test_generate(name: str, options: dict[str, Any]) -> None:
    model, answers = made(name), []
    for cache in (RoundedCache(config=model.config), CompressedCache(model.config)):
        torch.manual_seed(3)
        answers.append(
            model.generate(IDS, **{CACHE_NAME: cache}, max_new_tokens=24, **options)
        )
    assert torch.equal(*answers)


@each_model
@pytest.mark.parametrize("attention", ["sdpa", "halfbyte"])
def test_left_padding(name: str, attention: str) -> None:
    model = made(name, attention)
    ids = torch.cat([torch.zeros_like(IDS[:, :9]), IDS[:, :31]], dim=1)
    both = torch.cat([ids, IDS])
    mask = torch.ones_like(both)
    mask[0, :9] = 0
    options = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False}
    answers = [
        model.generate(both, **{CACHE_NAME: cache}, **options)
        for cache in (RoundedCache(config=model.config), CompressedCache(model.config))
    ]
    assert torch.equal(*answers)


@each_model
def test_a_conversation_goes_on_with_the_same_cache(name: str) -> None:
    model = made(name)
    cache, want = CompressedCache(model.config), RoundedCache(config=model.config)
    for ids in (IDS[:, :11], IDS[:, :30], IDS):
        answers = [
            model.generate(ids, **{CACHE_NAME: c}, max_new_tokens=1)
            for c in (cache, want)
        ]
        assert torch.equal(*answers)
        assert cache.get_seq_length() == want.get_seq_length() == ids.shape[1]


@each_model
def test_what_is_cut_off_leaves_no_trace(name: str) -> None:
    model, logits = made(name), []
    for cache in (RoundedCache(config=model.config), CompressedCache(model.config)):
        cache.activate_past_recording()
        run(model, cache, [30])
        kept = copy.deepcopy(cache)
        model(IDS[:, 5:15], **{CACHE_NAME: cache})
        cache.crop(-10)
        assert cache.get_seq_length() == kept.get_seq_length() == 30
        for each in (cache, kept):
            logits.append(model(IDS[:, 30:], **{CACHE_NAME: each}).logits)
    assert all(torch.equal(logits[0], other) for other in logits[1:])


def test_a_window_that_was_passed_cannot_come_back() -> None:
    model = made("e2b")
    cache = CompressedCache(model.config)
    run(model, cache, [40])
    with pytest.raises(RuntimeError, match="call activate_past_recording before"):
        cache.crop(-3)
    assert cache.get_seq_length() == 40
    cache.reset()
    assert cache.get_seq_length() == cache.nbytes == 0
    got = run(model, cache, [40])
    assert torch.equal(got, run(model, CompressedCache(model.config), [40]))


def test_older_releases_say_how_many_stay() -> None:
    model = made("gemma3")
    cache = CompressedCache(model.config)
    run(model, cache, [5])
    for kept in (9, 3):
        cache.crop(kept)
        assert cache.get_seq_length() == min(kept, 5)
    want = CompressedCache(model.config)
    run(model, want, [3])
    for layer, other in zip(cache.layers, want.layers, strict=True):
        assert layer.keys.shape == other.keys.shape


def test_rows_of_the_batch() -> None:
    model = made("31b")
    cache, want = CompressedCache(model.config), RoundedCache(config=model.config)
    both = torch.cat([IDS, IDS.flip(1)])
    for each in (cache, want):
        model(both, **{CACHE_NAME: each})
        each.batch_repeat_interleave(2)
        each.batch_select_indices(torch.tensor([3, 0, 0]))
        each.reorder_cache(torch.tensor([1, 0, 2]))
    answers = [
        model(IDS[:, :3].expand(3, -1), **{CACHE_NAME: c}).logits for c in (cache, want)
    ]
    assert torch.equal(*answers)


def test_bfloat16_takes_half() -> None:
    model = made("31b").bfloat16()
    cache, plain = CompressedCache(model.config), DynamicCache(config=model.config)
    run(model, cache, [40])
    run(model, plain, [40])
    keys = cache.layers[0].keys
    assert keys.dtype == torch.bfloat16
    assert keys.shape == plain.layers[0].keys.shape
    # bfloat16 rounds to 8 bits as well.
    torch.testing.assert_close(keys, plain.layers[0].keys, rtol=0, atol=0.05)


def test_memory_is_that_of_the_codes() -> None:
    config = tiny.config("31b")
    cache = CompressedCache(config)
    heads, dim = 2, 64
    for _ in range(3000):
        for at in range(config.num_hidden_layers):
            cache.update(*[torch.zeros(1, heads, 1, dim)] * 2, at)
    full = config.layer_types.count("full_attention")
    windows = config.num_hidden_layers - full
    token = 2 * heads * (dim + 4)
    rows = full * (3000 + 3000 // 8 + 32) + windows * (config.sliding_window + 2 * 32)
    assert full * 3000 * token < cache.nbytes <= rows * token


def test_another_batch_or_model_is_named_and_changes_nothing() -> None:
    cache = CompressedCache(tiny.config("gemma3"))
    cache.update(*[torch.zeros(1, 2, 5, 16)] * 2, 0)
    fits = torch.zeros(1, 2, 3, 16)
    for shape in ((2, 2, 3, 16), (1, 1, 3, 16), (1, 2, 3, 32)):
        for pair in ((torch.zeros(shape), fits), (fits, torch.zeros(shape))):
            with pytest.raises(
                ShapeError, match=r"holds a batch of 1 with 2 heads of 16"
            ):
                cache.update(*pair, 0)
    key, value = cache.update(fits, fits, 0)
    assert key.shape == value.shape == (1, 2, 8, 16)


def test_a_long_prompt_leaves_a_sliding_layer_small() -> None:
    cache = CompressedCache(tiny.config("gemma3"))
    assert cache.is_sliding[0]
    cache.update(*[torch.zeros(1, 2, 9000, 16)] * 2, 0)
    long = cache.nbytes
    cache.update(*[torch.zeros(1, 2, 1, 16)] * 2, 0)
    assert cache.nbytes < long / 10


def test_what_was_handed_out_stays() -> None:
    cache = CompressedCache(tiny.config("gemma3"))
    key, _ = cache.update(*[torch.randn(1, 2, 5, 16)] * 2, 0)
    before = key.dense()
    cache.crop(-3)
    cache.update(*[torch.randn(1, 2, 3, 16)] * 2, 0)
    assert torch.equal(key.dense(), before)
    for _ in range(700):
        cache.update(*[torch.randn(1, 2, 1, 16)] * 2, 0)
    assert torch.equal(key.dense(), before)
    assert repr(key) == "CompressedTensor(shape=(1, 2, 5, 16), dtype=torch.float32)"


def test_a_tensor_that_decodes_itself() -> None:
    x = torch.randn(1, 2, 5, 16)
    kept = halfbyte.quantize_kv(x.numpy())
    tensor = CompressedTensor.of(kept, torch.float32)
    want = torch.from_numpy(halfbyte.dequantize_kv(kept))
    assert tensor.shape == want.shape
    for done in (tensor + 0, tensor.to(torch.float64).float(), torch.cat([tensor])):
        assert type(done) is torch.Tensor
        assert torch.equal(done, want)
    assert torch.equal(
        tensor[:, :, 2:] @ x[:, :, 0, :, None], want[:, :, 2:] @ x[:, :, 0, :, None]
    )


def test_gradients_and_other_devices_are_refused() -> None:
    model = made("e2b")
    with (
        torch.enable_grad(),
        pytest.raises(UnsupportedError, match="run the model under"),
    ):
        model(IDS, **{CACHE_NAME: CompressedCache(model.config)})
    with pytest.raises(ArgumentError, match="CPU memory, got meta"):
        CompressedCache(model.config).update(
            *[torch.zeros(1, 1, 1, 16, device="meta")] * 2, 0
        )


def test_layers_of_another_kind_are_refused() -> None:
    config = tiny.config("gemma3")
    config.layer_types = ["linear_attention"] * config.num_hidden_layers
    with pytest.raises(UnsupportedError, match="CompressedCache: LinearAttentionLayer"):
        CompressedCache(config)
