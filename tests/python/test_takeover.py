# tests/python/test_takeover.py
# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints through from_pretrained, their bytes kept packed."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compressed
import halfbyte.transformers as ht
import mobile
import pytest
import tiny
import torch
from compressed_tensors.quantization import QuantizationArgs
from halfbyte.errors import ArgumentError, ModelError, UnsupportedError
from halfbyte.torch import QuantEmbedding, QuantLinear
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils import logging

IDS = torch.tensor([tiny.prompt(24)])


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    """Both take-overs on, and the mapping as it was afterwards."""
    logging.disable_progress_bar()
    ht.enable()
    with torch.no_grad():
        yield
    ht.disable()
    logging.enable_progress_bar()


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


# ---- the mapping


def test_enable_and_disable_are_exact() -> None:
    ht.disable()
    before = dict(AUTO_QUANTIZER_MAPPING)
    ht.enable("gemma")
    changed = {k for k, v in AUTO_QUANTIZER_MAPPING.items() if v is not before[k]}
    assert changed == {"gemma"}
    assert issubclass(AUTO_QUANTIZER_MAPPING["gemma"], before["gemma"])
    once = AUTO_QUANTIZER_MAPPING["gemma"]
    ht.enable("gemma", "compressed-tensors")
    assert AUTO_QUANTIZER_MAPPING["gemma"] is once
    ht.disable()
    ht.disable()
    assert dict(AUTO_QUANTIZER_MAPPING) == before
    for call in (ht.enable, ht.disable):
        with pytest.raises(ArgumentError, match="expected some of gemma, compressed"):
            call("gguf")


def test_a_method_that_this_release_lacks_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ht.disable()
    monkeypatch.delitem(AUTO_QUANTIZER_MAPPING, "gemma")
    with pytest.raises(UnsupportedError, match=r"install --upgrade transformers$"):
        ht.enable("gemma")


@pytest.mark.parametrize("method", ["gemma", "compressed-tensors"])
def test_other_devices_are_refused(method: str) -> None:
    made = AUTO_QUANTIZER_MAPPING[method].__new__(AUTO_QUANTIZER_MAPPING[method])
    with pytest.raises(ArgumentError, match='pass device_map="cpu"'):
        made.validate_environment(device_map={"": "cuda:0"}, weights_only=True)


# ---- mobile


def test_a_model_can_be_pickled(tmp_path: Path) -> None:
    model = load(mobile.save(mobile.build("e2b"), tmp_path, "e2b"))
    data = pickle.dumps(model)
    ht.disable()  # as in a process that has not called enable
    again = pickle.loads(data)
    assert type(again.hf_quantizer) is type(model.hf_quantizer)
    ids = torch.tensor([[2, 10, 11, 5]])
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["e2b", "e4b"])
def test_mobile_keeps_the_bytes_of_the_file(name: str, tmp_path: Path) -> None:
    """Per-layer tables have a scale for each part of a row, which stock refuses."""
    folder = mobile.save(mobile.build(name), tmp_path, name)
    model = load(folder)
    stored = load_file(folder / "model.safetensors")
    layers = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, QuantLinear | QuantEmbedding)
    }
    assert len(layers) == len(mobile.linears(mobile.build(name))) + 3
    for layer, module in layers.items():
        for key in ("weight", "weight_scale", "embedding_quantized", "embedding_scale"):
            if f"{layer}.{key}" in stored:
                got, want = getattr(module, key), stored[f"{layer}.{key}"]
                assert torch.equal(got.view(want.dtype), want), (layer, key)
    parts = model.get_submodule(mobile.ROOT + mobile.PLE).embedding_scale.shape[1]
    assert parts == model.config.text_config.num_hidden_layers


def test_mobile_layers_compute_what_the_reference_does(tmp_path: Path) -> None:
    """Module by module, as codes at a tie spread without bound through a model.

    Codes of the output are whole steps: both give the same ones, but where the value
    is within float32's noise of a tie, and then they differ by 1. Of the hundreds of
    thousands of codes of a tiny model at most 34 were measured to differ; one in a
    thousand is allowed.
    """
    reference = mobile.build("e2b")
    model = load(mobile.save(reference, tmp_path, "e2b"))
    seen = {}
    hooks = [
        module.register_forward_hook(
            lambda _, args, out, name=name: seen.update({name: (args[0], out)})
        )
        for name, module in mobile.linears(reference).items()
    ]
    reference(IDS)
    for hook in hooks:
        hook.remove()
    assert seen
    for name, (x, want) in seen.items():
        module = model.get_submodule(mobile.ROOT + name)
        off = ((module(x) - want) / module.output_activation_scale).round().abs()
        assert float(off.max()) <= 1, name
        assert float(off.mean()) < 1e-3, name


Q = f"{mobile.ROOT}layers.1.self_attn.q_proj."


@pytest.mark.parametrize(
    "part",
    [
        Q + "weight",
        Q + "weight_scale",
        mobile.ROOT + "embed_tokens.embedding_quantized",
        f"{mobile.ROOT}{mobile.PLE}.embedding_scale",
    ],
)
def test_mobile_without_a_tensor_is_refused(part: str, tmp_path: Path) -> None:
    folder = mobile.save(mobile.build("e4b"), tmp_path, "e4b", replace={part: None})
    with pytest.raises(
        ModelError, match=r"found none in the checkpoint.*whole"
    ) as caught:
        load(folder)
    assert (caught.value.tensor, caught.value.code) == (part, "MODEL_MISSING_TENSOR")


def test_mobile_layers_without_steps_do_not_round(tmp_path: Path) -> None:
    sides = [Q + f"{side}_activation_scale" for side in ("input", "output")]
    without = dict.fromkeys(sides)
    source = mobile.build("e4b")
    bare = load(mobile.save(source, tmp_path / "bare", "e4b", replace=without))
    zero = {name: torch.zeros(()) for name in sides}
    zeros = load(mobile.save(source, tmp_path / "zeros", "e4b", replace=zero))
    for model in (bare, zeros):
        layer = model.get_submodule(Q.removesuffix("."))
        assert float(layer.input_activation_scale) == 0
        assert float(layer.output_activation_scale) == 0
    assert torch.equal(bare(IDS).logits, zeros(IDS).logits)


# ---- compressed-tensors


@pytest.mark.parametrize("name", ["e2b", "12b", "gemma3"])
def test_compressed_stays_packed(name: str, tmp_path: Path) -> None:
    source = tiny.build(name, wide=True)
    tensors, config = compressed.compress(source, [compressed.group(["Linear"], 4, 32)])
    folder = compressed.save(source, tmp_path, tensors, config)
    model = load(folder)
    packed = [m for m in model.modules() if isinstance(m, QuantLinear)]
    assert len(packed) == sum(key.endswith("weight_packed") for key in tensors)
    twin = compressed.expand(source, tensors, config)
    for name_of, module in model.named_modules():
        if isinstance(module, QuantLinear):
            want = twin.get_submodule(name_of).weight
            assert torch.equal(module.dequantize(), want), name_of
            module.activations = "f32"
    # Weights are equal; float32 sums in another order stay below 2^-13 of the largest
    # logit, as in test_quantizer.py.
    got, want = model(IDS).logits, twin(IDS).logits
    assert float((got - want).abs().max()) < 2**-13 * float(want.abs().max())
    # Nothing was expanded by the first run.
    assert len(packed) == sum(isinstance(m, QuantLinear) for m in model.modules())


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_shape"])
def test_compressed_without_a_tensor_is_refused(part: str, tmp_path: Path) -> None:
    source = tiny.build("gemma3", wide=True)
    tensors, config = compressed.compress(source, [compressed.group(["Linear"], 4, 32)])
    name = f"model.layers.1.self_attn.q_proj.{part}"
    del tensors[name]
    folder = compressed.save(source, tmp_path, tensors, config)
    with pytest.raises(ModelError, match="found none in the checkpoint") as caught:
        load(folder)
    assert caught.value.tensor == name


def test_layers_that_were_not_calibrated_need_no_steps(tmp_path: Path) -> None:
    source = tiny.build("gemma3", wide=True)
    tensors, config = compressed.compress(source, [compressed.group(["Linear"], 4)])
    static = QuantizationArgs(num_bits=8, symmetric=True, strategy="tensor")
    name = "model.layers.1.self_attn.q_proj"
    for side in ("input", "output"):
        args = static.model_dump(mode="json")
        config["config_groups"]["group_0"][f"{side}_activations"] = args
        tensors[f"{name}.{side}_scale"] = torch.tensor([0.125])
    model = load(compressed.save(source, tmp_path, tensors, config))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    rounding = [n for n, m in layers.items() if m.input_activation_scale is not None]
    assert rounding == [name]
    assert len(layers) == sum(key.endswith("weight_packed") for key in tensors)


def test_dense_weights_for_those_who_ask(tmp_path: Path) -> None:
    source = tiny.build("gemma3", wide=True)
    tensors, config = compressed.compress(source, [compressed.group(["Linear"], 4, 32)])
    folder = compressed.save(source, tmp_path, tensors, config)
    with pytest.warns(UserWarning, match="loading attributes"):
        model = load(
            folder, quantization_config=CompressedTensorsConfig(dequantize=True)
        )
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    assert model.model.layers[0].mlp.up_proj.weight.is_floating_point()


def test_saving_is_refused(tmp_path: Path) -> None:
    model = load(mobile.save(mobile.build("e4b"), tmp_path / "a", "e4b"))
    assert not model.hf_quantizer.is_serializable()
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "b")
