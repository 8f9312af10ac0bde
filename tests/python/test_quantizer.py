# tests/python/test_quantizer.py
# SPDX-License-Identifier: Apache-2.0
"""HalfbyteConfig in from_pretrained: what is packed, saved, computed, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import pytest
import tiny
import torch
from halfbyte.errors import ArgumentError, DTypeError, ModelError
from halfbyte.torch import QuantEmbedding, QuantLinear, dequantize
from halfbyte.torch.experts import QuantExperts
from halfbyte.transformers import HalfbyteConfig, quantizer, swap
from halfbyte.transformers.quantizer import HalfbyteQuantizer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
    pipeline,
)
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)
from transformers.utils import logging

IDS = torch.tensor([tiny.prompt(24)])
UP = "model.layers.3.mlp.up_proj"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No progress bars, no gradients."""
    logging.disable_progress_bar()
    with torch.no_grad():
        yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module", params=tiny.NAMES)
def dense(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[Any, Path]:
    """A model of each architecture, and its float32 checkpoint."""
    model = tiny.build(request.param, wide=True)
    return model, tiny.save_hf(model, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def e2b(tmp_path_factory: Any) -> Path:
    """The checkpoint of a talkative model of one architecture, with its tokenizer."""
    folder = tiny.save_hf(
        tiny.talkative("e2b", wide=True), tmp_path_factory.mktemp("e2b")
    )
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the tiny models."""
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tiny.tokenizer_json())),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
    )


def quantized(folder: Path, **options: Any) -> Any:
    """Load with a configuration; nothing repacked unless asked for."""
    config = HalfbyteConfig(**{"repack": "never"} | options)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


# ---- the configuration


def test_config_round_trips_through_json() -> None:
    made = HalfbyteConfig(
        bits=6,
        modules_to_not_convert=["o_proj"],
        embeddings="q8_0",
        activations="f32",
        repack="never",
        module_formats={"a.b": "q4_k"},
    )
    again = HalfbyteConfig.from_dict(json.loads(made.to_json_string()))
    assert again.to_dict() == made.to_dict()
    assert (again.format, again.table_format) == ("q6_k", "q8_0")
    plain = HalfbyteConfig()
    assert (plain.format, plain.table_format) == ("q4_0", None)
    assert HalfbyteConfig.from_dict(plain.to_diff_dict()).to_dict() == plain.to_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits: expected one of 4, 6, 8, got 5"),
        ({"format": "q4_k"}, "format: expected one of f32, .*, got 'q4_k'"),
        ({"bits": 4, "format": "q8_0"}, "bits: 4 stand for q4_0, and format is 'q8_0'"),
        ({"embeddings": "q9"}, "embeddings: expected one of .*, got 'q9'"),
        ({"format": "w4", "embeddings": True}, "embeddings: .* got w4 beside w4"),
        ({"activations": "int8"}, "activations: expected one of 'auto', 'f32'"),
        ({"repack": True}, "repack: expected one of 'auto', 'always', 'never'"),
        ({"modules_to_not_convert": "o_proj"}, "expected a list of names"),
        ({"module_formats": {"a": "q9"}}, "module_formats: 'a': expected one of"),
        ({"module_formats": ["a"]}, "module_formats: expected names of modules"),
        ({"quant_method": "gptq"}, "quant_method: expected 'halfbyte', got 'gptq'"),
    ],
)
def test_config_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        HalfbyteConfig(**options)


def test_config_refuses_unknown_words() -> None:
    with pytest.raises(TypeError, match="bit"):
        HalfbyteConfig(bit=4)  # type: ignore[call-arg]


def test_registered_once() -> None:
    quantizer.register()
    assert AUTO_QUANTIZATION_CONFIG_MAPPING["halfbyte"] is HalfbyteConfig
    assert AUTO_QUANTIZER_MAPPING["halfbyte"] is HalfbyteQuantizer


# ---- what is packed


def expected_twin(model: Any, packed: Any) -> Any:
    """Put into the dense model what the packed one stands for."""
    with torch.no_grad():
        for name, module in packed.named_modules():
            if isinstance(module, QuantLinear | QuantEmbedding | QuantExperts):
                swap.fill_weights(model.get_submodule(name), module)
    return model


@pytest.mark.parametrize("embeddings", [False, "q6_k"])
def test_logits_are_those_of_the_decoded_weights(
    dense: tuple[Any, Path], embeddings: bool | str
) -> None:
    """Exact but for float32 sums; see docs/numerics.md.

    Both add the same products in another order. A sum of K float32 products is off by
    at most K eps times the sum of magnitudes; over the layers of these models that
    stays below 2^-13 of the largest logit, as transformers' own forward and one in
    float64 differ by 1.5e-5 (corrections of the specification), an eighth of it.
    """
    model, folder = dense
    packed = quantized(folder, activations="f32", embeddings=embeddings)
    twin = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    expected_twin(twin, packed)
    got, want = packed(IDS).logits, twin(IDS).logits
    bound = 2**-13 * float(want.abs().max())
    assert float((got - want).abs().max()) < bound
    # And the weights are others than before, or nothing was compared.
    assert float((model(IDS).logits - want).abs().max()) > 100 * bound


def test_layers_hold_what_quantize_makes(dense: tuple[Any, Path]) -> None:
    model, folder = dense
    packed = quantized(folder, embeddings=True)
    floats = model.state_dict()
    report = packed.halfbyte_report
    assert set(report.swapped.values()) == {"q4_0"}
    for name in report.swapped:
        owner, _, part = name.rpartition(".")
        if part in ("gate_up_proj", "down_proj") and owner.endswith("experts"):
            got, source = getattr(packed.get_submodule(owner), part), floats[name]
        else:
            module = packed.get_submodule(name)
            table = isinstance(module, QuantEmbedding)
            got = module.embedding_quantized if table else module.weight
            source = floats[f"{name}.weight"]
        flat = source.reshape(-1, source.shape[-1])
        want = halfbyte.quantize(flat.numpy(), "q4_0")
        rows = dequantize(got.reshape(len(flat), -1), "q4_0")
        np.testing.assert_array_equal(rows.numpy(), halfbyte.dequantize(want))


def test_default_leaves_tables_heads_and_routers(dense: tuple[Any, Path]) -> None:
    _, folder = dense
    model = quantized(folder)
    kept = {
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear or isinstance(module, nn.Embedding)
    }
    skipped = {n for names in model.halfbyte_report.skipped.values() for n in names}
    assert kept == skipped
    assert {n.rpartition(".")[2] for n in kept} <= {
        "embed_tokens",
        "embed_tokens_per_layer",
        "lm_head",
        "proj",
    }
    assert all("router" in name for name in kept if name.endswith(".proj"))
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_tied_head_shares_the_bytes_of_its_table(e2b: Path) -> None:
    model = quantized(e2b, embeddings="q6_k")
    table = model.get_input_embeddings()
    assert isinstance(table, QuantEmbedding)
    assert isinstance(model.lm_head, QuantLinear)
    shared = table.embedding_quantized.data_ptr()
    assert model.lm_head.weight.data_ptr() == shared
    assert (model.lm_head.format, table.format) == ("q6_k", "q6_k")


def test_modules_to_not_convert(e2b: Path) -> None:
    model = quantized(e2b, modules_to_not_convert=["o_proj", r"model\.layers\.0"])
    for name, module in model.named_modules():
        if name.endswith("o_proj") or name.startswith("model.layers.0."):
            assert not isinstance(module, QuantLinear), name
    assert isinstance(model.model.layers[1].mlp.up_proj, QuantLinear)


def test_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = tiny.save_hf(tiny.build("e4b"), tmp_path)  # rows of 96, 128 and 32
    model = quantized(folder, format="q6_k", modules_to_not_convert=[])
    reasons = model.halfbyte_report.skipped if model else {}
    assert any("q6_k takes multiples of 256" in why for why in reasons)


def test_nothing_to_pack_raises(tmp_path: Path) -> None:
    folder = tiny.save_hf(tiny.build("gemma3"), tmp_path)
    with pytest.raises(ModelError, match=r"nothing of Gemma3ForCausalLM can be packed"):
        quantized(folder, modules_to_not_convert=[r"model\.layers"])


def test_report_prints_itself(e2b: Path) -> None:
    report = quantized(e2b).halfbyte_report
    assert "packed" in str(report)
    assert "<table>" in report._repr_html_()
    # q4_0 has 18 bytes for 32 weights, which were 4 bytes each.
    assert report.bytes_before * 18 == report.bytes_after * 32 * 4
    assert json.loads(json.dumps(report.to_dict()))["target"] == halfbyte.cpu_target()


def test_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    folder = tiny.save_hf(tiny.build("e2b", wide=True), tmp_path)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.3.mlp.up_proj.weight"][5, 7] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="conversion"):
        quantized(folder)


@pytest.mark.parametrize(
    "device_map", [{"": "cuda"}, {"": 0}, {"model": "cpu", "lm_head": "disk"}, "cuda"]
)
def test_other_devices_are_refused(device_map: Any) -> None:
    made = HalfbyteQuantizer(HalfbyteConfig(), pre_quantized=False)
    with pytest.raises(ArgumentError, match='pass device_map="cpu", or leave it out'):
        made.validate_environment(device_map=device_map, weights_only=True)
    for fine in (None, {"": "cpu"}, {"": torch.device("cpu")}, "cpu"):
        made.validate_environment(device_map=fine, weights_only=True)
    assert made.update_device_map(None) == {"": "cpu"}


def test_a_type_that_no_layer_computes_in_is_refused_first(e2b: Path) -> None:
    for given in (torch.float64, {"model": torch.float64}):
        made = HalfbyteQuantizer(HalfbyteConfig(), pre_quantized=False)
        with pytest.raises(DTypeError, match=r"^dtype: expected float32, .*float64"):
            made.update_dtype(given)
    with pytest.raises(DTypeError, match=r"^dtype: "):
        AutoModelForCausalLM.from_pretrained(
            e2b, dtype=torch.float64, quantization_config=HalfbyteConfig()
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_type_has_no_say(dtype: torch.dtype, e2b: Path) -> None:
    wanted, config = quantized(e2b, format="w8"), HalfbyteConfig(format="w8")
    torch.set_default_dtype(dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            e2b, dtype=torch.float32, quantization_config=config
        )
    finally:
        torch.set_default_dtype(torch.float32)
    for key, value in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential"])
def test_wherever_there_is_room_is_the_cpu(device_map: str, e2b: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        e2b, quantization_config=HalfbyteConfig(), device_map=device_map
    )
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert any(isinstance(module, QuantLinear) for module in model.modules())


# ---- saving, and back


@pytest.mark.parametrize(
    "options", [{}, {"embeddings": "q6_k"}, {"format": "w4"}, {"repack": "always"}]
)
def test_saved_and_loaded_again_is_bit_equal(
    dense: tuple[Any, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    _, folder = dense
    config = HalfbyteConfig(**{"repack": "never"} | options)
    made = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.bfloat16
    )
    made.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    one, two = made.state_dict(), again.state_dict()
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(made(IDS).logits, again(IDS).logits)
    packed = [
        n
        for n, t in load_file(tmp_path / "model.safetensors").items()
        if t.dtype == torch.uint8
    ]
    assert packed
    # A head tied to a table is written once.
    assert "lm_head.weight" not in packed


def without(folder: Path, *names: str) -> None:
    """Take tensors out of a checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in names:
        del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, f"{UP}.weight"),
        ({"format": "w4"}, f"{UP}.weight_scale"),
        ({"embeddings": True}, "model.embed_tokens.embedding_quantized"),
    ],
)
def test_a_saved_checkpoint_without_a_tensor_is_refused(
    e2b: Path, tmp_path: Path, options: dict[str, Any], part: str
) -> None:
    quantized(e2b, **options).save_pretrained(tmp_path)
    without(tmp_path, part)
    with pytest.raises(
        ModelError, match=r"found none in the checkpoint.*whole"
    ) as caught:
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (caught.value.tensor, caught.value.code) == (part, "MODEL_MISSING_TENSOR")
    assert "\n" not in str(caught.value)


def test_experts_that_a_checkpoint_lacks_are_named(tmp_path: Path) -> None:
    tiny.save_hf(tiny.build("26b", wide=True), tmp_path / "dense")
    quantized(tmp_path / "dense").save_pretrained(tmp_path / "packed")
    parts = [f"model.layers.{i}.experts.down_proj" for i in (1, 2, 3, 4, 5)]
    without(tmp_path / "packed", *parts)
    with pytest.raises(ModelError, match=r"layers\.1\.experts.* and 2 more: found"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")


@pytest.mark.parametrize("cut", [(480, 256), (512, 224)])
def test_a_dense_checkpoint_of_other_shapes_is_refused(
    cut: tuple[int, int], tmp_path: Path
) -> None:
    folder = tiny.save_hf(tiny.build("e2b", wide=True), tmp_path)
    file, (n, k) = folder / "model.safetensors", cut
    tensors = load_file(file)
    tensors[f"{UP}.weight"] = tensors[f"{UP}.weight"][:n, :k].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"config\.json asks for \(512, 144\)"
    ) as caught:
        quantized(folder)
    assert caught.value.tensor == f"{UP}.weight"
    assert caught.value.found == str((n, k // 32 * 18))


def test_a_dense_checkpoint_without_a_matrix_is_refused(tmp_path: Path) -> None:
    """Transformers would draw it at random, which packed bytes are not."""
    folder = tiny.save_hf(tiny.build("e2b", wide=True), tmp_path)
    without(folder, f"{UP}.weight")
    with pytest.raises(ModelError, match="modules_to_not_convert") as caught:
        quantized(folder)
    assert caught.value.tensor == f"{UP}.weight"
    model = quantized(folder, modules_to_not_convert=[UP])
    assert model.get_submodule(UP).weight.isfinite().all()


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (None, "expected module_formats"),
        ({"model.layers.99.mlp.up_proj": "q4_0"}, "is no module of Gemma4ForCausalLM"),
        ({"model.norm": "q4_0"}, "'model.norm' is a Gemma4RMSNorm: expected a linear"),
    ],
)
def test_a_saved_config_that_does_not_fit(
    e2b: Path, tmp_path: Path, formats: Any, message: str
) -> None:
    quantized(e2b).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["module_formats"] = formats
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


# ---- saved, for halfbyte.load


@pytest.mark.parametrize("options", [{}, {"embeddings": "q6_k"}, {"format": "w4"}])
def test_halfbyte_load_runs_what_was_saved(
    dense: tuple[Any, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    _, folder = dense
    made = quantized(folder, activations="f32", **options)
    made.save_pretrained(tmp_path)
    loaded = halfbyte.load(tmp_path, activations="f32")
    assert loaded.unread_tensors == halfbyte.load(folder).unread_tensors
    got, want = loaded.session().logits(IDS[0].tolist()), made(IDS).logits[0].numpy()
    # The weights are the same, and the sums of floats in another order: the bound of
    # test_logits_are_those_of_the_decoded_weights.
    assert np.abs(got - want).max() < 2**-13 * np.abs(want).max()


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (None, "module_formats': found none; expected the packed modules"),
        (
            {UP: "q9_9"},
            f"module_formats.{UP}': found 'q9_9'; expected a format of half",
        ),
        ({UP: 4}, "found the number 4; expected a format of halfbyte"),
        (
            {},
            "projection.weight': found packed bytes; expected its format in quantization_",
        ),
        (
            {UP: "q8_0"},
            r"found U8 \[512, 144\]; expected U8 \[512, 272\], rows of q8_0",
        ),
        ({UP: "w4"}, r"found U8 \[512, 144\]; expected U8 \[512, 128\], rows of w4"),
    ],
)
def test_halfbyte_load_refuses_formats_that_do_not_fit(
    e2b: Path, tmp_path: Path, formats: Any, message: str
) -> None:
    quantized(e2b).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    told = config["quantization_config"]
    told["module_formats"] = told["module_formats"] | formats if formats else formats
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(halfbyte.Error, match=message) as caught:
        halfbyte.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (None, r"up_proj.weight_scale': found none; expected \[512, 1\]"),
        (torch.ones(512), r"up_proj.weight_scale': found \[512\]; expected \[512, 1\]"),
        (-torch.ones(512, 1), r"found -1 at index 0; expected finite numbers"),
    ],
)
def test_halfbyte_load_refuses_scales_that_do_not_fit(
    e2b: Path, tmp_path: Path, changed: Any, message: str
) -> None:
    quantized(e2b, format="w4").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors[f"{UP}.weight_scale"]
    if changed is not None:
        tensors[f"{UP}.weight_scale"] = changed
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        halfbyte.load(tmp_path)


def test_dequantize_gives_the_decoded_model(dense: tuple[Any, Path]) -> None:
    _, folder = dense
    packed = quantized(folder, embeddings="q6_k", activations="f32")
    got = packed(IDS).logits
    packed.save_pretrained(folder / "packed")  # which writes the dtype as a word
    packed.dequantize()
    assert not any(
        isinstance(m, QuantLinear | QuantEmbedding | QuantExperts)
        for m in packed.modules()
    )
    assert packed.lm_head.weight is packed.get_input_embeddings().weight
    want = packed(IDS).logits  # the bound of the decoded weights, see above
    assert float((got - want).abs().max()) < 2**-13 * float(want.abs().max())


# ---- other architectures


def other(name: str, kind: Any, folder: Path, **shape: Any) -> Any:
    """A small model of another architecture; its checkpoint is in `folder`."""
    torch.manual_seed(0)
    model = kind.from_config(AutoConfig.for_model(name, **shape)).eval()
    model.save_pretrained(folder)
    return model


SMALL = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


def test_a_table_that_does_more_stays(tmp_path: Path) -> None:
    # It multiplies its rows by a number of its own.
    shape = {"vocab_size": 99, "d_model": 64, "ffn_dim": 128, "attention_heads": 4}
    model = other("xglm", AutoModelForCausalLM, tmp_path, num_layers=2, **shape)
    packed = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=HalfbyteConfig(bits=8, embeddings=True)
    )
    assert type(packed.get_input_embeddings()) is type(model.get_input_embeddings())
    want, got = model(IDS % 99).logits, packed(IDS % 99).logits
    # 8-bit weights and activations: 1/254 of the largest of each row, twice, in each of
    # 13 products, if all errors had one sign.
    assert float((got - want).abs().max()) < 13 * 2 / 254 * float(want.abs().max())
    packed.dequantize()


def test_tables_tied_to_each_other_stay(tmp_path: Path) -> None:
    shape = {"vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 128}
    shape |= {"num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    kind = AutoModelForSeq2SeqLM
    other("t5", kind, tmp_path, **shape)
    packed = kind.from_pretrained(
        tmp_path, quantization_config=HalfbyteConfig(bits=8, embeddings=True)
    )
    ids = IDS % 99
    assert packed(input_ids=ids, decoder_input_ids=ids).logits.isfinite().all()


def test_shared_experts_are_layers_like_others(tmp_path: Path) -> None:
    experts = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1}
    experts |= {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
    experts |= {"first_k_dense_replace": 1, "n_shared_experts": 1}
    ranks = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 8}
    ranks |= {"qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4}
    other("deepseek_v3", AutoModelForCausalLM, tmp_path, **SMALL, **experts, **ranks)
    packed = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=HalfbyteConfig(bits=8)
    )
    shared = packed.model.layers[1].mlp.shared_experts
    assert isinstance(shared.down_proj, QuantLinear)
    assert packed(IDS % 99).logits.isfinite().all()


def test_a_tied_bias_stays_tied_when_a_model_is_unpacked(tmp_path: Path) -> None:
    kind = AutoModelForMaskedLM
    other("bert", kind, tmp_path, **SMALL)
    packed = kind.from_pretrained(tmp_path, quantization_config=HalfbyteConfig(bits=8))
    packed.dequantize()
    head = packed.cls.predictions
    assert head.decoder.bias is head.bias
    assert head.decoder.weight is packed.get_input_embeddings().weight


# ---- use


def test_pipeline_with_batches_and_left_padding(e2b: Path) -> None:
    config = HalfbyteConfig(repack="never", activations="f32")
    tok = tokenizer()
    pipe = pipeline(
        "text-generation",
        model=str(e2b),
        tokenizer=tok,
        model_kwargs={"quantization_config": config},
    )
    assert isinstance(pipe.model.model.layers[0].mlp.up_proj, QuantLinear)
    texts = ["the end in there", "an other one or an end of the hall in there"]
    options: dict[str, Any] = {"max_new_tokens": 8, "return_full_text": False}
    options |= {"do_sample": False, "max_length": None}
    together = pipe(texts, batch_size=2, **options)
    alone = [pipe(text, **options) for text in texts]
    got = [reply[0]["generated_text"] for reply in together]
    assert got == [reply[0]["generated_text"] for reply in alone]
    assert all(got)


def generate(model: Any, **options: Any) -> list[int]:
    out = model.generate(
        IDS,
        attention_mask=torch.ones_like(IDS),
        max_new_tokens=8,
        do_sample=False,
        **options,
    )
    return [int(token) for token in out[0, IDS.shape[1] :]]


def test_generate_streams_searches_and_takes_assistance(e2b: Path) -> None:
    model = quantized(e2b, activations="f32")
    greedy = generate(model)
    assert len(greedy) == 8
    # A draft only proposes: the tokens are the greedy ones whatever it says.
    assert generate(model, assistant_model=quantized(e2b, format="q8_0")) == greedy
    beams = generate(model, num_beams=2)
    dense_model = AutoModelForCausalLM.from_pretrained(e2b)
    expected_twin(dense_model, model)
    assert generate(dense_model) == greedy
    assert generate(dense_model, num_beams=2) == beams
    streamer = TextIteratorStreamer(tokenizer(), skip_prompt=True, timeout=60)
    thread = threading.Thread(
        target=generate, args=(model,), kwargs={"streamer": streamer}
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer().decode(greedy)


def test_flags(e2b: Path) -> None:
    model = quantized(e2b)
    made = model.hf_quantizer
    assert made.is_serializable()
    assert made.is_trainable
    assert made.is_compileable
    assert made.quantized_element_size == 18 / 32
    assert not any(
        p.requires_grad
        for m in model.modules()
        if isinstance(m, QuantLinear)
        for p in m.parameters()
    )


# ---- memory

_LOAD = """
import sys, torch
import halfbyte
from halfbyte.transformers import HalfbyteConfig
from transformers import AutoModelForCausalLM
from transformers.utils import logging
logging.disable_progress_bar()
before = halfbyte.targets.peak_rss()
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], quantization_config=HalfbyteConfig(repack="never"))
held = sum(p.numel() * p.element_size() for p in model.parameters())
print(before, halfbyte.targets.peak_rss(), held)
"""


def synthetic(folder: Path) -> int:
    """Write a bf16 checkpoint of over 1 GB in small pieces; bytes of its largest tensor.

    Values do not matter for memory: every tensor is one pattern of bits over and over.
    """
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=4096,
        hidden_size=2048,
        intermediate_size=16384,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = Gemma3ForCausalLM(config)
    shapes = {
        k: v.shape for k, v in model.state_dict().items() if k != "lm_head.weight"
    }
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 2 * shape.numel()
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.standard_normal(1 << 19).astype(np.float32) * 0.02)
    block = values.bfloat16().view(torch.int16).numpy().tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(at // len(block)):
            file.write(block)
        file.write(block[: at % len(block)])
        file.flush()
        os.fsync(file.fileno())  # pages that are not on disk yet cannot be let go of
    config.save_pretrained(folder)
    assert at >= 1_000_000_000
    return max(2 * shape.numel() for shape in shapes.values())


def test_peak_memory_of_a_load(tmp_path: Path) -> None:
    largest = synthetic(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", _LOAD, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    before, peak, held = (int(n) for n in run.stdout.split())
    assert peak - before <= held + largest + 300_000_000
