# tests/python/test_hostile_config.py
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says of its model, where it says what we cannot compute."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import halfbyte
import numpy as np
import pytest
import tiny
import torch
from halfbyte import errors

YARN = {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1e6}


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_hf(tiny.build("gemma3"), tmp_path_factory.mktemp("gemma3"))


@pytest.fixture
def changed(gemma3: Path, tmp_path: Path) -> Callable[..., Path]:
    """The folder, with other members of one of its JSON files."""

    def make(file: str = "config.json", **members: Any) -> Path:
        for path in gemma3.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        path = tmp_path / file
        config = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(config | members))
        return tmp_path

    return make


def refusal(path: Path, error: type[errors.Error]) -> errors.Error:
    with pytest.raises(error) as caught:
        halfbyte.load(path)
    assert "\n" not in str(caught.value)
    return caught.value


# --- config.json -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "key"),
    [
        ({"rope_scaling": YARN}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"type": "llama3"}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor"),
        (
            {"rope_parameters": {tiny.G: YARN}},
            "rope_parameters.full_attention.rope_type",
        ),
        (
            {"rope_parameters": {tiny.G: {"partial_rotary_factor": 0.5}}},
            "rope_parameters.full_attention.partial_rotary_factor",
        ),
        (
            {"rope_parameters": {tiny.S: {"rope_type": "linear", "factor": 2.0}}},
            "rope_parameters.sliding_attention.factor",
        ),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ({"query_pre_attn_scalar": -1}, "query_pre_attn_scalar"),
        ({"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern"),
        ({"rope_local_base_freq": 0}, "rope_local_base_freq"),
        ({"rope_theta": -1}, "rope_theta"),
        (
            {"rope_parameters": {tiny.S: {"rope_theta": 0}}},
            "rope_parameters.sliding_attention.rope_theta",
        ),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
        ({"attention_bias": True}, "attention_bias"),
        ({"head_dim": 3}, "head_dim"),
    ],
)
def test_what_we_compute_otherwise_is_refused(
    members: dict[str, Any], key: str, changed: Callable[..., Path]
) -> None:
    folder = changed(**members)
    error = refusal(folder, errors.ModelError)
    assert (error.code, error.key) == ("MODEL_HPARAM", key)
    assert error.path == str(folder / "config.json")


@pytest.mark.parametrize(
    ("name", "members", "key", "message"),
    [
        # Layers 0 to 2 slide; 3, 7 and 11 are full, and 11 takes the keys of 7.
        (
            "e2b",
            {"1": {"head_dim": 16}},
            "head_dim",
            "found 16 in layer 1; expected 32, as in layer 0, which slides too",
        ),
        (
            "e2b",
            {"07": {"head_dim": 32}},
            "head_dim",
            "found 32 in layer 7; expected 64, as in layer 3, which is full too",
        ),
        (
            "e2b",
            {"11": {"num_key_value_heads": 2}},
            "num_key_value_heads",
            "found 2 in layer 11; expected 1, as in layer 7, whose keys it takes",
        ),
        (
            "gemma3",
            {"2": {"num_key_value_heads": 3}},
            "num_key_value_heads",
            "found 3 in layer 2; expected a divisor of the number of heads, 4",
        ),
    ],
)
def test_layers_that_do_not_fit_together(
    name: str, members: dict[str, Any], key: str, message: str, tmp_path: Path
) -> None:
    tiny.save_hf(tiny.build(name), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    layers = config.get("per_layer_config") or {}
    for layer, changes in members.items():
        number = next((n for n in layers if int(n) == int(layer)), layer)
        layers[number] = layers.get(number, {}) | changes
    path.write_text(json.dumps(config | {"per_layer_config": layers}))
    error = refusal(tmp_path, errors.ModelError)
    assert (error.code, error.key) == ("MODEL_HPARAM", key)
    assert message in str(error)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_per_layer_embeddings_are_not_overlooked(name: str, tmp_path: Path) -> None:
    # What transformers makes of a config without the key: 256 of the class of Gemma 4,
    # none of the others.
    model = tiny.build(name)
    key = "hidden_size_per_layer_input"
    tiny.save_hf(model, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    has_key = config.pop(key, None) is not None
    path.write_text(json.dumps(config))
    wanted = getattr(type(model.config)(), key, 0)
    assert wanted == (256 if has_key else 0)
    if has_key:
        error = refusal(tmp_path, errors.ModelError)
        assert error.tensor == "model.embed_tokens_per_layer.weight"
    else:
        assert halfbyte.load(tmp_path).config.per_layer_embedding == wanted
    # As a file may say that it has none.
    path.write_text(json.dumps(config | {key: None}))
    assert halfbyte.load(tmp_path).config.per_layer_embedding == 0


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_gguf_says_how_wide_its_per_layer_embeddings_are(
    name: str, tmp_path: Path
) -> None:
    key = "embedding_length_per_layer_input"
    path = tiny.save_gguf(tiny.build(name), tmp_path / "m.gguf", without_keys=[key])
    if name in ("e2b", "e4b"):
        error = refusal(path, errors.Error)
        assert error.key == f"gemma4.{key}"
    else:
        assert halfbyte.load(path).config.per_layer_embedding == 0


@pytest.mark.parametrize(
    ("members", "key"),
    [
        ({"hidden_size": "64"}, "hidden_size"),
        ({"rms_norm_eps": []}, "rms_norm_eps"),
        ({"attention_k_eq_v": 1}, "attention_k_eq_v"),
        ({"layer_types": [3]}, "layer_types[0]"),
        (
            {"rope_parameters": {tiny.G: {"rope_theta": "1e6"}}},
            "rope_parameters.full_attention.rope_theta",
        ),
        ({"per_layer_config": {"0": {"head_dim": 2.5}}}, "per_layer_config.0.head_dim"),
        ({"text_config": {"model_type": 3}}, "text_config.model_type"),
    ],
)
def test_a_wrong_type_is_named_by_its_key(
    members: dict[str, Any], key: str, changed: Callable[..., Path]
) -> None:
    error = refusal(changed(**members), errors.FormatError)
    assert (error.code, error.key) == ("JSON_TYPE", key)
    assert str(error).startswith(f"config.json: json: key '{key}': value at byte ")


def test_a_factor_counts_with_its_kind_alone(changed: Callable[..., Path]) -> None:
    for kind, factor in ("linear", 4.0), ("default", 1.0):
        rope = {"rope_type": kind, "factor": 4.0}
        folder = changed(rope_parameters=None, rope_scaling=rope)
        assert halfbyte.load(folder).config.rope_factor_full == factor


def test_a_period_may_be_longer_than_the_model(changed: Callable[..., Path]) -> None:
    folder = changed(layer_types=None, sliding_window_pattern=100)
    assert all(layer.sliding for layer in halfbyte.load(folder).config.layers)


def test_the_last_layer_of_gemma_4_is_full(tmp_path: Path) -> None:
    # Whatever the file says: transformers makes it full.
    model = tiny.build("12b")
    wanted = model.config.layer_types
    assert wanted[-1] == tiny.G
    tiny.save_hf(model, tmp_path)
    path = tmp_path / "config.json"
    types = [*wanted[:-1], tiny.S]
    config = json.loads(path.read_text()) | {"layer_types": types}
    path.write_text(json.dumps(config))
    assert type(model.config)(**config).layer_types == wanted
    layers = halfbyte.load(tmp_path).config.layers
    assert [layer.sliding for layer in layers] == [kind == tiny.S for kind in wanted]


@pytest.mark.parametrize(
    ("file", "members"),
    [
        ("tokenizer.json", {"added_tokens": [{"id": "two", "content": "<x>"}]}),
        ("tokenizer.json", {"normalizer": {"type": "NFKC"}}),
        ("tokenizer.json", {"model": {"ignore_merges": True}}),
        ("tokenizer.json", {"model": {"fuse_unk": False, "byte_fallback": False}}),
        ("tokenizer_config.json", {"chat_template": 3}),
        ("generation_config.json", {"eos_token_id": "one"}),
        ("generation_config.json", {"eos_token_id": [1, 2.5]}),
        ("generation_config.json", {"eos_token_id": [1, 999999]}),
    ],
)
def test_the_file_that_is_wrong_is_named(
    file: str, members: dict[str, Any], changed: Callable[..., Path]
) -> None:
    folder = changed(file, **members)
    error = refusal(folder, errors.Error)
    assert error.path == str(folder / file)
    assert str(error).startswith(f"{file}: ")


def test_ids_that_no_token_has_are_suppressed_already(
    changed: Callable[..., Path],
) -> None:
    folder = changed("generation_config.json", suppress_tokens=[3, 999999])
    assert halfbyte.load(folder).has_tokenizer


def test_a_vocabulary_that_ends_without_its_tokens_is_named(
    changed: Callable[..., Path],
) -> None:
    # Found when all is read: of the tokenizer as a whole.
    made = tiny.tokenizer_json()["model"]
    merges = [*made["merges"], ["<no>", "<such>"]]
    folder = changed("tokenizer.json", model=made | {"merges": merges})
    error = refusal(folder, errors.ModelError)
    assert error.code == "TOK_MERGE"
    assert error.path == str(folder / "tokenizer.json")


# --- GGUF ------------------------------------------------------------------------------


def saved(path: Path, *, name: str = "gemma3", **extra: Any) -> Path:
    return tiny.save_gguf(tiny.build(name), path / "m.gguf", extra=extra)


@pytest.mark.parametrize(("name", "family"), [("gemma3", "gemma3"), ("e2b", "gemma4")])
def test_other_scaling_of_positions(name: str, family: str, tmp_path: Path) -> None:
    path = saved(tmp_path, name=name, **{"rope.scaling.type": "yarn"})
    error = refusal(path, errors.ModelError)
    assert error.key == f"{family}.rope.scaling.type"
    assert "found 'yarn'; expected 'none' or 'linear'" in str(error)


def test_a_key_is_in_the_file_that_has_it(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma4", split_max_tensors=1)
    writer.add_block_count(0)
    for name in "ab":
        writer.add_tensor(name, np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first, second = sorted(tmp_path.iterdir())
    error = refusal(second, errors.ModelError)
    assert (error.path, error.key) == (str(first), "gemma4.block_count")


def test_a_list_is_no_temperature(tmp_path: Path) -> None:
    class Writer(gguf.GGUFWriter):
        def write_header_to_file(self, path: Path | None = None) -> None:
            self.add_array("general.sampling.temp", [0.7, 9.0])
            super().write_header_to_file(path)

    model = tiny.build("gemma3")
    path = tiny.save_gguf(model, tmp_path / "m.gguf", writer_class=Writer)
    error = refusal(path, errors.FormatError)
    assert (error.code, error.key) == ("GGUF_KEY_TYPE", "general.sampling.temp")


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_positions_that_turn_by_no_number(value: float, tmp_path: Path) -> None:
    class Writer(gguf.GGUFWriter):
        def add_tensor(self, name: str, tensor: Any, **options: Any) -> None:
            if name == "rope_freqs.weight":
                tensor = tensor.copy()
                tensor[1] = value
            super().add_tensor(name, tensor, **options)

    model = tiny.build("e2b")
    path = tiny.save_gguf(model, tmp_path / "m.gguf", writer_class=Writer)
    error = refusal(path, errors.ModelError)
    assert (error.code, error.tensor) == ("MODEL_ROPE", "rope_freqs.weight")
    assert "of pair 1; expected numbers above 0" in str(error)


def test_endless_special_tokens(tmp_path: Path) -> None:
    # Small enough as a vocabulary; text is searched for every one of these.
    class Writer(gguf.GGUFWriter):
        def add_token_list(self, tokens: Any) -> None:
            long = [f"<{i:0123d}>" for i in range(10_000)]
            super().add_token_list([*tokens, *long])

        def add_token_types(self, types: Any) -> None:
            super().add_token_types([*types, *[gguf.TokenType.USER_DEFINED] * 10_000])

        def add_token_scores(self, scores: Any) -> None:
            super().add_token_scores([*scores, *[0.0] * 10_000])

    model = tiny.build("gemma3")
    path = tiny.save_gguf(model, tmp_path / "m.gguf", writer_class=Writer)
    with pytest.raises(errors.LimitError) as caught:
        halfbyte.load(path)
    assert caught.value.code == "TOK_LIMIT"
    assert "bytes of control and user-defined tokens" in str(caught.value)


# --- Weights that are no numbers -------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rounding_names_the_row_that_is_not_finite(
    dtype: torch.dtype, value: float, tmp_path: Path
) -> None:
    model = tiny.build("e2b", wide=True)
    down = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        down[3, 7] = value
    tiny.save_hf(model, tmp_path, dtype=dtype)
    halfbyte.load(tmp_path)  # as it is, it may be looked into
    name = "model.layers.1.mlp.down_proj.weight"
    for options in (
        {"quantize": "q4_0"},
        {"quantize": "q8_0"},
        {"quantize": "q4_0", "activations": "f32"},
    ):
        with pytest.raises(errors.NumericalError) as caught:
            halfbyte.load(tmp_path, **options)
        error = caught.value
        assert error.code == "MODEL_NOT_FINITE"
        assert error.path == str(tmp_path / "model.safetensors")
        assert error.tensor == name
        assert f"model.safetensors: model: tensor '{name}': row at byte " in str(error)
        tensors = halfbyte.open_safetensors(error.path).tensors
        tensor = next(tensor for tensor in tensors if tensor.name == name)
        assert error.offset == tensor.offset + 3 * tensor.shape[1] * dtype.itemsize


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("format", ["q4_0", "q8_0", "q6_k", "w2", "w8", "w4g32"])
def test_nor_is_an_array_rounded_that_is_not_finite(format: str, value: float) -> None:
    x = np.ones((3, 512), np.float32)
    x[2, 300] = x[2, 400] = value
    wanted = rf"^x: expected finite values, got {value} at 2, 300$"
    with pytest.raises(errors.NumericalError, match=wanted):
        halfbyte.quantize(x, format)
