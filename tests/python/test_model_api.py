# tests/python/test_model_api.py
# A model through its public API: loading, tokens, logits, perplexity, report.
# SPDX-License-Identifier: Apache-2.0
"""A model through its public API: loading, tokens, logits, perplexity, report."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import pytest
import tiny
from halfbyte import errors
from halfbyte._sizes import size_text

Make = Callable[..., Path]
IDS = tiny.prompt(40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_hf(tiny.talkative("e2b"), tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def model(tiny_gguf: Make) -> halfbyte.Model:
    return halfbyte.load(tiny_gguf("e2b"), threads=1)


# --- Loading ---------------------------------------------------------------------------


def test_one_model_in_either_form(model: Any, folder: Path) -> None:
    other = halfbyte.load(folder, threads=1)
    assert dataclasses.asdict(other.config) == dataclasses.asdict(model.config)
    np.testing.assert_array_equal(other.logits(IDS), model.logits(IDS))
    text = "the end of 中"
    assert other.tokenize(text) == model.tokenize(text)


def test_what_may_name_a_model(folder: Path, tiny_gguf: Make, monkeypatch: Any) -> None:
    wanted = halfbyte.load(folder).logits(IDS[:3])
    weights = folder / "model.safetensors"
    for path in (folder, str(folder), f"{folder}/", weights, str(weights)):
        np.testing.assert_array_equal(halfbyte.load(path).logits(IDS[:3]), wanted)
    monkeypatch.chdir(folder)
    for path in (".", "model.safetensors"):
        np.testing.assert_array_equal(halfbyte.load(path).logits(IDS[:3]), wanted)
    assert halfbyte.load(os.fspath(tiny_gguf("e2b"))).config.architecture == "gemma4"


@pytest.mark.parametrize(
    ("name", "error"),
    [("missing", FileNotFoundError), ("", FileNotFoundError), (5, TypeError)],
)
def test_what_may_not(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        halfbyte.load(name)


def test_the_file_that_is_named_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    folder = tiny.save_hf(tiny.talkative("e2b"), tmp_path / "made", shards=3)
    wanted = halfbyte.load(folder).logits(IDS[:3])
    other = tiny.save_hf(tiny.build("e2b"), tmp_path / "other")
    (other / "model.safetensors").rename(folder / "other.safetensors")
    shard = "model-00002-of-00003.safetensors"
    np.testing.assert_array_equal(halfbyte.load(folder / shard).logits(IDS[:3]), wanted)
    found = halfbyte.load(folder / "other.safetensors").logits(IDS[:3])
    assert not np.allclose(found, wanted)
    # Beside model.safetensors, which the folder alone would mean, as well.
    (folder / "model.safetensors").write_bytes(
        (folder / "other.safetensors").read_bytes()
    )
    for name, logits in (shard, wanted), ("model.safetensors", found), ("", found):
        loaded = halfbyte.load(folder / name).logits(IDS[:3])
        np.testing.assert_array_equal(loaded, logits)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(errors.ModelError) as caught:
        halfbyte.load(folder / shard)
    assert caught.value.code == "MODEL_MISSING_TENSOR"
    assert caught.value.path == str(folder / shard)


@pytest.mark.parametrize("inside", ["config.json", "other.json"])
def test_a_file_that_is_not_there(folder: Path, tmp_path: Path, inside: str) -> None:
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    (tmp_path / inside).symlink_to(folder / "config.json")
    for name in ("typo.safetensors", "missing/model.safetensors"):
        with pytest.raises(FileNotFoundError) as caught:
            halfbyte.load(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
        "model.safetensors.index.json",
    ],
)
def test_a_link_that_leads_nowhere_is_no_missing_file(
    folder: Path, tmp_path: Path, name: str
) -> None:
    shards = name.endswith("index.json")
    weights = ["a.safetensors", "b.safetensors"] if shards else ["model.safetensors"]
    for kept in weights:
        (tmp_path / kept).symlink_to(folder / "model.safetensors")
    for kept in ("config.json", "tokenizer.json"):
        (tmp_path / kept).symlink_to(folder / kept)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="a link that leads nowhere") as caught:
        halfbyte.load(tmp_path)
    assert caught.value.filename == str(tmp_path / name)


def test_a_folder_may_be_called_like_a_file(folder: Path, tmp_path: Path) -> None:
    named = tmp_path / "model.safetensors"
    named.symlink_to(folder)
    wanted = halfbyte.load(folder).logits(IDS[:3])
    np.testing.assert_array_equal(halfbyte.load(named).logits(IDS[:3]), wanted)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        halfbyte.load(tmp_path)
    assert caught.value.filename == str(tmp_path)


def test_options_out_of_range(tiny_gguf: Make, monkeypatch: Any) -> None:
    path = tiny_gguf("e2b")
    with pytest.raises(
        errors.ArgumentError, match="kv: found 'q8'; expected f32, f16 or int8"
    ):
        halfbyte.load(path, kv="q8")
    monkeypatch.setenv("HALFBYTE_ACTIVATIONS", "f64")
    with pytest.raises(
        errors.ArgumentError, match=r"HALFBYTE_ACTIVATIONS: .* got 'f64'"
    ):
        halfbyte.load(path)


def test_an_architecture_that_is_not_handled(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.UnsupportedError, match="llama") as caught:
        halfbyte.load(tmp_path)
    assert "gemma4" in str(caught.value.expected)


# --- What it is ------------------------------------------------------------------------


def test_config(model: Any) -> None:
    made, config = tiny.config("e2b"), model.config
    assert config.architecture == "gemma4"
    assert config.vocab_size == tiny.VOCAB
    assert config.hidden_size == made.hidden_size
    assert config.num_layers == made.num_hidden_layers == len(config.layers)
    assert config.num_heads == made.num_attention_heads
    assert config.context_length == model.context == 256
    assert config.sliding_window == tiny.WINDOW
    assert config.norm_eps == pytest.approx(made.rms_norm_eps)
    assert config.logit_softcap == made.final_logit_softcapping
    assert (config.rope_base_sliding, config.rope_base_full) == (1e4, 1e6)
    assert config.per_layer_embedding == made.hidden_size_per_layer_input
    assert config.num_experts == config.num_experts_used == 0
    sliding = [layer.sliding for layer in config.layers]
    assert sliding == [kind == tiny.S for kind in made.layer_types]
    shared = [at for at, layer in enumerate(config.layers) if layer.kv_source != at]
    assert len(shared) == made.num_kv_shared_layers
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_layers = 1


def test_config_of_a_mixture(tiny_gguf: Make) -> None:
    made, config = tiny.config("26b"), halfbyte.load(tiny_gguf("26b")).config
    assert config.num_experts == made.num_experts
    assert config.num_experts_used == made.top_k_experts
    assert config.expert_ffn_len == made.moe_intermediate_size


def test_report(tiny_gguf: Make, monkeypatch: Any) -> None:
    path = tiny_gguf("e2b", types=tiny.official_type)
    monkeypatch.setenv("HALFBYTE_ACTIVATIONS", "f32")
    model = halfbyte.load(path, context=100, threads=3, kv="f16")
    report, tensors = model.report(), halfbyte.open_gguf(path).tensors
    types: dict[str, tuple[int, int]] = {}
    for tensor in tensors:
        count, size = types.get(tensor.type, (0, 0))
        types[tensor.type] = (count + 1, size + tensor.bytes)
    assert report.types == types
    assert len(types) >= 3
    assert report.file_bytes == path.stat().st_size
    largest = sum(tensor.bytes for tensor in tensors)
    table = sum(t.bytes for t in tensors if t.name.startswith("per_layer_token_embd"))
    assert 0.9 * (largest - table) <= report.bytes_per_token <= largest - table
    assert (report.path, report.architecture) == (str(path), "gemma4")
    assert (report.context, report.kv, report.activations) == (100, "f16", "f32")
    assert (report.threads, report.threads_reason) == (3, "threads=")
    assert report.target == halfbyte.cpu_target()
    session = model.session()
    session.logits([2] * 100, last=True)
    assert session.kv_bytes == report.kv_bytes_at_context
    shown, kv = str(report), size_text(report.kv_bytes_at_context)
    for fact in (path.name, "gemma4", "Q4_0", "100 positions", "f16", "3 (threads=)"):
        assert fact in shown
    assert f"cache of at most {kv}\n" in shown  # as the commands write it
    assert json.loads(json.dumps(report.to_dict()))["types"]["Q4_0"] == [*types["Q4_0"]]


def test_bytes_of_a_mixture_count_the_experts_in_use(tiny_gguf: Make) -> None:
    path = tiny_gguf("26b")
    report, made = halfbyte.load(path).report(), tiny.config("26b")
    tensors = halfbyte.open_gguf(path).tensors
    experts = sum(t.bytes for t in tensors if "_exps.weight" in t.name)
    others = sum(t.bytes for t in tensors if len(t.shape) == 2)
    used = experts * made.top_k_experts // made.num_experts
    assert report.bytes_per_token == others + used


def test_repr(model: Any, tiny_gguf: Make) -> None:
    assert repr(model) == f"Model({str(tiny_gguf('e2b'))!r}, gemma4)"


# --- Tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "the end", "  two  spaces ", "中 and 😀", "\n\n", "a" * 3000, "\x00\x7f"],
)
def test_text_comes_back(model: Any, text: str) -> None:
    ids = model.tokenize(text)
    assert ids[0] == model.tokenizer.bos_id == 2
    assert model.tokenize(text, bos=False) == ids[1:]
    assert model.detokenize(ids) == text
    assert model.detokenize(np.asarray(ids)) == text


def test_special_tokens_only_on_request(model: Any) -> None:
    text = "<bos>the<eos>"
    assert not {1, 2} & set(model.tokenize(text, bos=False))
    assert model.tokenize(text, bos=False, special=True)[0] == 2
    assert model.tokenize(text, bos=False, special=True)[-1] == 1
    assert model.detokenize(model.tokenize(text)) == text


@pytest.mark.parametrize("id", [-1, 512, 2**31, 2**40])
def test_ids_out_of_range(model: Any, id: int) -> None:
    for call in (model.logits, model.perplexity, model.detokenize):
        with pytest.raises(errors.ArgumentError, match=str(id)):
            call([2, id])


# --- Logits ----------------------------------------------------------------------------


def test_logits(model: Any) -> None:
    whole = model.logits(IDS)
    assert whole.dtype == np.float32
    assert whole.shape == (40, tiny.VOCAB)
    assert whole.flags.writeable
    np.testing.assert_array_equal(model.logits(np.asarray(IDS, np.uint16)), whole)
    np.testing.assert_array_equal(model.logits(tuple(IDS)), whole)
    assert model.logits(IDS, last=True).shape == (1, tiny.VOCAB)
    last = np.abs(model.logits(IDS, last=True) - whole[-1:]).max()
    assert last <= 1e-5 * np.abs(whole).max()
    for empty in ([], np.zeros(0, np.int32)):
        assert model.logits(empty).shape == (0, tiny.VOCAB)
        assert model.logits(empty, last=True).shape == (0, tiny.VOCAB)


def test_logits_do_not_depend_on_what_was_before(model: Any) -> None:
    whole = model.logits(IDS)
    model(IDS[:7], max_tokens=5)
    np.testing.assert_array_equal(model.logits(IDS), whole)


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([[2, 3]], errors.ArgumentError),
        ([2.0], errors.DTypeError),
        ("text", errors.DTypeError),
        ([True], errors.DTypeError),
    ],
)
def test_what_is_no_sequence_of_ids(model: Any, ids: Any, error: Any) -> None:
    with pytest.raises(error, match="ids: "):
        model.logits(ids)


# --- Perplexity ------------------------------------------------------------------------


def definition(model: Any, ids: list[int]) -> float:
    """exp(-mean(log p(token | those before))) in float64.

    Each window of a text that begins with the token for that begins with it.
    """
    total, count = 0.0, 0
    bos = ids[:1] if ids[0] == 2 else []
    own = model.context - len(bos)  # tokens of a window
    for start in range(len(bos), len(ids), own):
        window = bos + ids[start : start + own]
        rows = model.logits(window).astype(np.float64)[:-1]
        top = rows.max(-1)
        log_sum = top + np.log(np.exp(rows - top[:, None]).sum(-1))
        total += (rows[np.arange(len(rows)), window[1:]] - log_sum).sum()
        count += len(rows)
    return math.exp(-total / count)


@pytest.mark.parametrize("length", [2, 3, 33, 129, 256])
def test_perplexity_is_its_definition(model: Any, length: int) -> None:
    # The same tokens in other pieces: 1e-5 of the largest logit, which is 30 at most
    # for the softcap, on both terms of each log p.
    ids = tiny.prompt(length)
    assert model.perplexity(ids) == pytest.approx(definition(model, ids), rel=1e-3)


def test_a_model_that_is_far_off_is_infinitely_perplexed(tmp_path: Path) -> None:
    broken = tiny.build("gemma3")
    broken.model.norm.weight.data.fill_(1e6)
    model = halfbyte.load(tiny.save_gguf(broken, tmp_path / "m.gguf"))
    assert model.perplexity(tiny.prompt(20)) == math.inf


@pytest.mark.parametrize("length", [64, 65, 66, 127, 128, 200])
@pytest.mark.parametrize("first", [2, 300])
def test_perplexity_beyond_the_context(
    tiny_gguf: Make, length: int, first: int
) -> None:
    model = halfbyte.load(tiny_gguf("e2b"), context=64, threads=1)
    assert model.tokenizer.bos_id == 2
    ids = [first, *tiny.prompt(length)[1:]]
    told: list[int] = []
    found = model.perplexity(ids, progress=lambda done, _: told.append(done))
    assert found == pytest.approx(definition(model, ids), rel=1e-3)
    assert told == sorted({*told})
    assert told[-1] == length


def test_perplexity_tells_how_far_it_is(model: Any) -> None:
    told: list[tuple[int, int]] = []
    model.perplexity(
        tiny.prompt(300), progress=lambda done, all: told.append((done, all))
    )
    assert told == sorted(told)
    assert told[-1] == (300, 300)
    assert len(told) > 2

    def stop(done: int, all: int) -> None:
        raise LookupError(f"{done} of {all}")

    with pytest.raises(LookupError, match="128 of 300"):
        model.perplexity(tiny.prompt(300), progress=stop)
    assert model.perplexity(IDS) == model.session().perplexity(IDS)


@pytest.mark.parametrize("ids", [[], [2]])
def test_perplexity_needs_two_tokens(model: Any, ids: list[int]) -> None:
    with pytest.raises(errors.ArgumentError, match="ids: expected two or more"):
        model.perplexity(ids)


# --- Without a tokenizer ---------------------------------------------------------------


@pytest.fixture(params=["gguf", "folder"])
def mute(request: Any, tiny_gguf: Make, tmp_path: Path) -> halfbyte.Model:
    if request.param == "gguf":
        return halfbyte.load(tiny_gguf("e2b", tokenizer=False), threads=1)
    tiny.save_hf(tiny.talkative("e2b"), tmp_path, tokenizer=False)
    return halfbyte.load(tmp_path, threads=1)


def test_numbers_without_a_tokenizer(mute: Any, model: Any) -> None:
    assert not mute.has_tokenizer
    assert not mute.has_template
    assert model.has_tokenizer
    np.testing.assert_array_equal(mute.logits(IDS), model.logits(IDS))
    assert mute.perplexity(IDS) == model.perplexity(IDS)


def test_text_without_a_tokenizer(mute: Any) -> None:
    for call in (
        lambda: mute.tokenize("the end"),
        lambda: mute.detokenize([2]),
        lambda: mute("the end"),
        lambda: mute(IDS),
        lambda: mute.stream("the end"),
    ):
        with pytest.raises(errors.ModelError) as caught:
            call()
        assert caught.value.code == "MODEL_TOKENIZER"
        assert "tokenizer: found none" in str(caught.value)
    with pytest.raises(errors.ModelError) as caught:
        mute.chat([{"role": "user", "content": "the end"}])
    assert caught.value.code == "MODEL_TEMPLATE"


# --- A template ------------------------------------------------------------------------


def test_where_a_folder_keeps_its_template(folder: Path, tmp_path: Path) -> None:
    assert not halfbyte.load(folder).has_template
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / name).symlink_to(folder / name)
    jinja, config = tmp_path / "chat_template.jinja", tmp_path / "tokenizer_config.json"
    own = "{{ bos_token }}<|turn>"
    jinja.write_bytes(own.encode() + b"\xff")  # it is searched, not shown
    assert halfbyte.load(tmp_path).has_template
    jinja.write_text("{{ bos_token }}[INST]")
    foreign = halfbyte.load(tmp_path)
    assert not foreign.has_template
    with pytest.raises(errors.ModelError, match="one of a family that is not known"):
        foreign.chat("hello")
    jinja.write_bytes(bytes(1 << 21))
    with pytest.raises(errors.LimitError) as caught:
        halfbyte.load(tmp_path)
    assert caught.value.path == str(jinja)
    jinja.unlink()
    assert not halfbyte.load(tmp_path).has_template
    for stored in (own, [{"name": "default", "template": own}]):
        config.write_text(json.dumps({"chat_template": stored}))
        assert halfbyte.load(tmp_path).has_template


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 0, "top_p": 0.0}, {"top_k": 0}),
        ({"top_k": 4.0, "temperature": 0}, {"top_k": 4, "temperature": 0.0}),
        ({"top_k": 4.5, "temperature": -1, "top_p": 1.5}, {}),
        ({"top_k": 1e300, "temperature": 1e300, "top_p": -0.5}, {}),
        ({"top_k": True, "temperature": "hot", "top_p": None}, {}),
    ],
)
def test_only_what_can_be_sampled_with_is_recommended(
    stored: dict[str, Any], wanted: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    loaded = halfbyte.load(tmp_path)
    assert loaded.sampling == wanted
    assert isinstance(loaded.sampling.get("top_k", 0), int)
    loaded("a", max_tokens=1, **loaded.sampling)


def test_recommended_sampling(folder: Path, tmp_path: Path, model: Any) -> None:
    assert model.sampling == {}
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / name).symlink_to(folder / name)
    stored = {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    wanted = {"temperature": 1.0, "top_k": 64, "top_p": 0.95}
    loaded = halfbyte.load(tmp_path)
    assert loaded.sampling == wanted
    options = {"max_tokens": 8, "seed": 3}
    assert loaded("a", **options, **loaded.sampling) == model(
        "a", **options, temperature=1.0, top_k=64, top_p=0.95
    )
