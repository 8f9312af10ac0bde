# tests/python/test_logits.py
# The engine's logits against transformers, for every architecture and file layout.
# SPDX-License-Identifier: Apache-2.0
"""The engine's logits against transformers, for every architecture and file layout.

Tolerances, all relative to the largest logit of the reference:

* 2e-4 against transformers' float32 logits, from float files. float32 arithmetic
  differs by up to 5e-6 here and by 1.5e-4 with real head dimensions; the smallest
  of the mistakes in `float_forward` (another GELU) makes 2.4e-4. `test_oracles.py`
  shows that each of them is seen.
* 1e-5 against the float64 forward over decoded weights, with float activations, and
  between two ways to compute the same thing: twice the float32 noise.
* With eight-bit activations, the bound of `float_forward.ActivationNoise`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import float_forward
import halfbyte
import numpy as np
import numpy.typing as npt
import pytest
import tiny
import torch
from halfbyte import errors

GOLDEN = Path(__file__).parent.parent / "golden"
EVERY = [*tiny.NAMES, "gemma3 scaled"]
IDS = tiny.prompt()
CLOSE = 1e-5

Logits = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def _float_world(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.delenv("HALFBYTE_ACTIVATIONS", raising=False)


def build(name: str, *, wide: bool = False) -> Any:
    if name == "gemma3 scaled":
        return tiny.build("gemma3", wide=wide, rope_factor=4.0)
    return tiny.build(name, wide=wide)


def run(path: Path, ids: list[int] | None = None, **options: Any) -> Logits:
    model = halfbyte.load(path, **{"threads": 1} | options)
    logits = model.logits(ids or IDS)
    assert logits.dtype == np.float32
    assert logits.shape == (len(ids or IDS), tiny.VOCAB)
    return np.asarray(logits)


def in_chunks(model: Any, sizes: Iterable[int], ids: list[int] | None = None) -> Logits:
    ids = ids or IDS
    session, rows, at = model.session(), [], 0
    for size in sizes:
        rows.append(session.logits(ids[at : at + size]))
        at = min(at + size, len(ids))
        assert session.position == at
    assert at == len(ids)
    return np.concatenate(rows)


def distance(logits: Logits, reference: Logits) -> float:
    return float(np.abs(logits - reference).max() / np.abs(reference).max())


# --- Float checkpoints -----------------------------------------------------------------

LAYOUTS: dict[str, dict[str, Any]] = {
    "f32": {},
    "bf16": {"dtype": torch.bfloat16},
    "released": {"released": True, "dead_kv": True, "lm_head": True},
    "released bf16 sharded": {
        "dtype": torch.bfloat16,
        "released": True,
        "shards": 3,
        "dead_kv": True,
    },
    "sharded": {"shards": 4, "lm_head": True},
    "new spelling nested": {"released": True, "released_config": False},
    "old spelling plain": {"released_config": True, "dead_kv": True},
    "no tokenizer": {"tokenizer": False},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EVERY)
def test_safetensors(name: str, layout: str, tmp_path: Path) -> None:
    model, options = build(name), LAYOUTS[layout]
    tiny.save_hf(model, tmp_path, **options)
    if options.get("dtype") == torch.bfloat16:
        model = tiny.rounded(model)
    assert distance(run(tmp_path), tiny.reference_logits(model, IDS)) <= 2e-4


@pytest.mark.parametrize("name", EVERY)
def test_folder_written_by_transformers(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    assert distance(run(tmp_path), tiny.reference_logits(model, IDS)) <= 2e-4


@pytest.mark.parametrize("name", EVERY)
def test_f32_gguf_equals_safetensors(name: str, tmp_path: Path) -> None:
    model = build(name)
    tiny.save_hf(model, tmp_path / "hf")
    tiny.save_gguf(model, tmp_path / "model.gguf")
    ours = run(tmp_path / "model.gguf")
    assert distance(ours, run(tmp_path / "hf")) <= CLOSE
    assert distance(ours, float_forward.exact_logits(model, IDS)) <= CLOSE


@pytest.mark.parametrize("name", tiny.NAMES)
def test_llama_cpp_has_the_same_top_token(name: str, tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "llama_tiny.json").read_text())["models"][name]
    model = tiny.build(name, golden["seed"])
    path = tiny.save_gguf(model, tmp_path / "model.gguf")
    assert run(path, golden["ids"]).argmax(-1).tolist() == golden["top"]


# --- One prompt in pieces, on threads, with a narrow cache -----------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 32])
@pytest.mark.parametrize("name", EVERY)
def test_chunked_equals_whole(name: str, size: int, tmp_path: Path) -> None:
    path = tiny.save_gguf(build(name), tmp_path / "model.gguf")
    model = halfbyte.load(path, threads=1)
    sizes = [min(size, len(IDS) - at) for at in range(0, len(IDS), size)]
    assert distance(in_chunks(model, sizes), model.logits(IDS)) <= CLOSE


@pytest.mark.parametrize("name", tiny.NAMES)
def test_long_prompt(name: str, tmp_path: Path) -> None:
    # 200 positions wrap the window of 8 many times and turn the slow pairs of RoPE far.
    model, ids = build(name), tiny.prompt(200)
    path = tiny.save_gguf(model, tmp_path / "model.gguf")
    reference = tiny.reference_logits(model, ids)
    assert distance(run(path, ids), reference) <= 2e-4
    pieces = in_chunks(halfbyte.load(path, threads=1), [3, 64, 1, 1, 100, 31], ids)
    assert distance(pieces, reference) <= 2e-4


def test_reset_and_last(tmp_path: Path) -> None:
    path = tiny.save_gguf(build("e2b"), tmp_path / "model.gguf")
    model = halfbyte.load(path, threads=1)
    whole = model.logits(IDS)
    session = model.session()
    session.logits(tiny.prompt(20, seed=5))
    session.reset()
    assert session.position == 0
    assert distance(session.logits(IDS), whole) <= CLOSE
    last = model.logits(IDS, last=True)
    assert last.shape == (1, tiny.VOCAB)
    assert distance(last, whole[-1:]) <= CLOSE


def test_sessions_do_not_share_a_cache(tmp_path: Path) -> None:
    path = tiny.save_gguf(build("31b"), tmp_path / "model.gguf")
    model = halfbyte.load(path, threads=1)
    other = tiny.prompt(40, seed=3)
    one, two = model.session(), model.session()
    first: list[Logits] = []
    second: list[Logits] = []
    for at in range(0, 40, 8):
        first.append(one.logits(IDS[at : at + 8]))
        second.append(two.logits(other[at : at + 8]))
    assert distance(np.concatenate(first), model.logits(IDS)) <= CLOSE
    assert distance(np.concatenate(second), model.logits(other)) <= CLOSE


@pytest.mark.parametrize("types", [None, tiny.official_type, tiny.mixed_type])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_threads_are_bit_equal(name: str, types: Any, tmp_path: Path) -> None:
    options = {} if types is None else {"types": types}
    model = build(name, wide=types is not None)
    path = tiny.save_gguf(model, tmp_path / "model.gguf", **options)
    sizes = [33, 1, 1, 5]
    one = in_chunks(halfbyte.load(path, threads=1), sizes)
    for threads in (2, 3):
        many = in_chunks(halfbyte.load(path, threads=threads), sizes)
        np.testing.assert_array_equal(one.view(np.uint32), many.view(np.uint32))


@pytest.mark.parametrize("name", tiny.NAMES)
def test_f16_cache(name: str, tmp_path: Path) -> None:
    # The reference rounds keys and values to half precision, as the cache does, so it
    # says how much that costs. Rounding is chaotic at ties, so the engine's error is
    # not the same but of the same size: twice the root mean square, thrice the peak.
    model = build(name)
    path = tiny.save_gguf(model, tmp_path / "model.gguf")
    exact = float_forward.exact_logits(model, IDS)
    cost = float_forward.cache_logits(model, IDS, float_forward.in_half) - exact
    error = run(path, kv="f16") - exact
    assert np.sqrt(np.mean(error**2)) <= 2 * np.sqrt(np.mean(cost**2))
    assert np.abs(error).max() <= 3 * np.abs(cost).max()
    assert np.sqrt(np.mean(error**2)) >= np.sqrt(np.mean(cost**2)) / 4


@pytest.mark.parametrize("name", tiny.NAMES)
def test_8_bit_cache(name: str, tmp_path: Path) -> None:
    """The engine does what the reference does, but for codes at a tie.

    Keys and values that differ by some 1e-6 get other codes where they are as near to a
    tie: 2 * 127e-6 of them, each off by a step, whose rounding error is a step /
    sqrt(12). So both differ by sqrt(12 * 2.5e-4), 6 % of what rounding costs; four
    times as much is let through. Another transform, step or layer would be off by all.
    """
    model = build(name)
    path = tiny.save_gguf(model, tmp_path / "model.gguf")
    exact = float_forward.exact_logits(model, IDS)
    rounded = float_forward.cache_logits(model, IDS, float_forward.in_8_bits)
    cost = np.sqrt(np.mean((rounded - exact) ** 2))
    error = np.sqrt(np.mean((run(path, kv="int8") - rounded) ** 2))
    assert 0 < error < cost / 4


@pytest.mark.parametrize("name", tiny.NAMES)
def test_an_8_bit_cache_in_pieces_and_threads(name: str, tmp_path: Path) -> None:
    path = tiny.save_gguf(build(name), tmp_path / "model.gguf")
    whole = halfbyte.load(path, threads=1, kv="int8").logits(IDS)
    for threads, sizes in ((1, [1] * 40), (2, [33, 1, 1, 5]), (3, [40])):
        model = halfbyte.load(path, threads=threads, kv="int8")
        np.testing.assert_array_equal(in_chunks(model, sizes), whole)


# --- Spellings of a GGUF file ----------------------------------------------------------

VARIATIONS: dict[str, dict[str, Any]] = {
    "fused qkv": {"fused_qkv": True},
    "split experts": {"split_experts": True},
    "dead keys and values": {"dead_kv": True},
    "fused with dead": {"fused_qkv": True, "dead_kv": True},
    "values beside shared keys": {"values_on_k_eq_v": True},
    "fused with values": {"values_on_k_eq_v": True, "fused_qkv": True},
    "separate output": {"separate_output": True},
    "arrays": {"arrays": True},
    "signed": {"signed": True},
    "signed arrays": {"arrays": True, "signed": True},
    "no tokenizer": {"tokenizer": False},
    "no sliding base": {"without_keys": ["rope.freq_base_swa"]},
    "no soft cap": {"without_keys": ["final_logit_softcapping"]},
    "no rotary dimensions": {
        "without_keys": ["rope.dimension_count", "rope.dimension_count_swa"]
    },
    "no rope factors": {"without_tensors": ["rope_freqs.weight"]},
}


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("name", tiny.NAMES)
def test_gguf_variation(name: str, variation: str, tmp_path: Path) -> None:
    model = build(name)
    path = tmp_path / "model.gguf"
    tiny.save_gguf(model, path, **VARIATIONS[variation])
    model = tiny.with_file_weights(model, path)
    assert distance(run(path), float_forward.exact_logits(model, IDS)) <= CLOSE


@pytest.mark.parametrize("pattern", [6, [True] * 5 + [False, True]])
def test_gemma3_sliding_pattern(pattern: Any, tmp_path: Path) -> None:
    model = build("gemma3")
    extra = {"attention.sliding_window_pattern": pattern, "rope.freq_base_swa": 1e4}
    path = tiny.save_gguf(model, tmp_path / "model.gguf", extra=extra)
    assert distance(run(path), float_forward.exact_logits(model, IDS)) <= CLOSE


# --- Files that would load and be wrong ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("e2b", "blk.3.layer_output_scale.weight"),
        ("31b", "blk.5.layer_output_scale.weight"),
        ("12b", "blk.1.attn_v.weight"),
        ("e4b", "blk.0.attn_v.weight"),
        ("gemma3", "blk.5.attn_v.weight"),
        ("e2b", "blk.2.attn_k_norm.weight"),
        ("26b", "blk.2.ffn_down_exps.scale"),
        ("26b", "blk.4.ffn_gate_inp.scale"),
        ("26b", "blk.1.post_ffw_norm_2.weight"),
        ("e4b", "per_layer_proj_norm.weight"),
        ("gemma3", "output_norm.weight"),
    ],
)
def test_missing_tensor_is_refused(name: str, tensor: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.save_gguf(build(name), path, without_tensors=[tensor])
    with pytest.raises(errors.ModelError) as caught:
        halfbyte.load(path)
    assert caught.value.code == "MODEL_MISSING_TENSOR"
    assert caught.value.tensor == tensor


@pytest.mark.parametrize(
    "key",
    [
        "rope.freq_base",
        "block_count",
        "attention.head_count",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
    ],
)
def test_missing_key_is_refused(key: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.save_gguf(build("e2b"), path, without_keys=[key])
    with pytest.raises(errors.ModelError) as caught:
        halfbyte.load(path)
    assert caught.value.code == "GGUF_MISSING_KEY"
    assert caught.value.key == f"gemma4.{key}"


def test_safetensors_without_layer_scalar_is_refused(tmp_path: Path) -> None:
    model = build("e4b")
    del model.model.layers[4]._buffers["layer_scalar"]
    tiny.save_hf(model, tmp_path)
    with pytest.raises(errors.ModelError) as caught:
        halfbyte.load(tmp_path)
    assert caught.value.code == "MODEL_MISSING_TENSOR"
    assert caught.value.tensor == "model.layers.4.layer_scalar"


# --- Quantised files -------------------------------------------------------------------


def decode_steps(path: Path) -> Logits:
    return in_chunks(halfbyte.load(path, threads=1), [1] * len(IDS))


@pytest.mark.parametrize("how", [run, decode_steps])
@pytest.mark.parametrize("types", [tiny.official_type, tiny.mixed_type])
@pytest.mark.parametrize("name", EVERY)
def test_quantised_with_float_activations(
    name: str,
    types: Any,
    how: Callable[[Path], Logits],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HALFBYTE_ACTIVATIONS", "f32")
    model = build(name, wide=True)
    path = tiny.save_gguf(model, tmp_path / "model.gguf", types=types)
    model = tiny.with_file_weights(model, path)
    assert distance(how(path), float_forward.exact_logits(model, IDS)) <= CLOSE


@pytest.mark.parametrize("types", [tiny.official_type, tiny.mixed_type])
@pytest.mark.parametrize("name", EVERY)
def test_quantised(name: str, types: Any, tmp_path: Path) -> None:
    model = build(name, wide=True)
    path = tiny.save_gguf(model, tmp_path / "model.gguf", types=types)
    model, names = tiny.with_file_weights(model, path), tiny.quantised_linears(path)
    noise = float_forward.activation_noise(model, IDS, names)
    for how in (run, decode_steps):
        scores = noise.score(how(path))
        assert (scores < noise.limits).all(), (how.__name__, scores, noise.limits)


@pytest.mark.parametrize(
    "variation",
    ["fused qkv", "split experts", "dead keys and values", "separate output"],
)
@pytest.mark.parametrize("name", tiny.NAMES)
def test_quantised_variation(
    name: str, variation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALFBYTE_ACTIVATIONS", "f32")
    model, path = build(name, wide=True), tmp_path / "model.gguf"
    options = VARIATIONS[variation]
    tiny.save_gguf(model, path, types=tiny.official_type, **options)
    model = tiny.with_file_weights(model, path)
    assert distance(run(path), float_forward.exact_logits(model, IDS)) <= CLOSE
