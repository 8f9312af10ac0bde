# tests/python/test_accelerate.py
# SPDX-License-Identifier: Apache-2.0
"""`halfbyte.accelerate`: loaded models of every kind before, after, and put back.

Three comparisons, each with the layers that were swapped:

* whole models with float activations, where both sides multiply the same decoded
  weights: 1e-5 of the largest logit, twice the float32 noise that `test_logits.py`
  tells of. Greedy tokens are the same until the unaccelerated lead is within that.
* linear layers with activations rounded to 8 bits, from the layer's own input. A step is
  at most the row's largest magnitude over 127, so an output moves by half a step times
  the sum of its weights' magnitudes at most, and by float32 noise.
* layers with trained steps as `test_mobile.py` derives: 99.99 % of the codes are equal,
  and the others are off by 1.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import compressed
import gguf
import halfbyte
import mobile
import numpy as np
import pytest
import tiny
import torch
from compressed_tensors.quantization import QuantizationArgs
from gguf import GGMLQuantizationType as Type
from halfbyte import _core
from halfbyte.errors import ArgumentError, DTypeError, UnsupportedError
from halfbyte.torch import QuantEmbedding, QuantLinear
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.integrations import gemma_quant
from transformers.integrations.gguf.utils import GgufEmbedding, GgufExperts, GgufLinear

IDS = tiny.prompt(40)
CLOSE = 1e-5
MOBILE = ["e2b", "e4b"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(input_ids=torch.tensor([IDS]), use_cache=False)
    return torch.as_tensor(out.logits[0])


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert (got - want).abs().max() <= CLOSE * want.abs().max()


def assert_same_tokens(model: Any, reference: Any) -> None:
    """Generate with both; the reference must be undecided where they part."""
    options = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    ids = torch.tensor([IDS])
    ours, theirs = (m.generate(ids, **options) for m in (model, reference))
    got, want = (out.sequences[0, len(IDS) :].tolist() for out in (ours, theirs))
    assert len(want) == 32
    same = next((i for i in range(32) if got[i] != want[i]), 32)
    if same < 32:
        best = theirs.logits[same][0].topk(2).values
        assert best[0] - best[1] <= 2 * CLOSE * best.abs().max(), same


def inputs_of(model: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What goes into each linear layer, and what comes out."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, args, out, name=name: seen.update({name: (args[0], out)})
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | GgufLinear)
    ]
    logits(model)
    for hook in hooks:
        hook.remove()
    return seen


def assert_products_close(model: Any, reference: Any) -> None:
    """Compare each swapped layer with the reference's, from the reference's input."""
    count = 0
    for name, (x, want) in inputs_of(reference).items():
        layer = model.get_submodule(name)
        if type(layer) is not QuantLinear:
            continue
        count += 1
        weights = reference.get_submodule(name).weight.abs().sum(-1)
        bound = x.abs().amax(-1, keepdim=True) / 254 * weights * (1 + 1e-4)
        error = (layer(x) - want).abs()
        assert (error <= bound + CLOSE * want.abs().max()).all(), name
        assert error.max() > 1e-5 * want.abs().max(), name  # activations are rounded
    assert count > 20


def swapped(model: nn.Module) -> dict[str, Any]:
    kinds = (QuantLinear, QuantEmbedding)
    return {name: m for name, m in model.named_modules() if type(m) in kinds}


def states(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_restored(
    model: nn.Module, modules: dict[str, nn.Module], bits: dict[str, torch.Tensor]
) -> None:
    halfbyte.restore(model)
    assert dict(model.named_modules()) == modules  # the same objects
    after = model.state_dict()
    assert list(after) == list(bits)
    for name, value in bits.items():
        assert after[name].dtype == value.dtype, name
        assert torch.equal(after[name].view(-1), value.view(-1)) or (
            value.isnan().any() and after[name].isnan().any()
        ), name
    assert not hasattr(model, "halfbyte_report")


# --- Mobile modules --------------------------------------------------------------------


@cache
def _mobile(name: str) -> Any:
    return mobile.build(name)


def mobile_model(name: str = "e2b") -> Any:
    return copy.deepcopy(_mobile(name))


@pytest.mark.parametrize("repack", ["always", "never"])
@pytest.mark.parametrize("name", MOBILE)
def test_mobile_layers_give_the_same_codes(name: str, repack: str) -> None:
    model = mobile_model(name)
    seen = inputs_of(model)
    steps = {
        key: float(layer.output_activation_scale)
        for key, layer in mobile.linears(model).items()
    }
    halfbyte.accelerate(model, repack=repack)
    count = different = 0
    for key, step in steps.items():
        x, want = seen[mobile.ROOT + key]
        got = model.get_submodule(mobile.ROOT + key)(x)
        codes, expected = torch.round(got / step), torch.round(want / step)
        assert (got - codes * step).abs().max() <= 1e-6 * got.abs().max(), key
        assert len(expected.unique()) > 100, key
        assert (codes - expected).abs().max() <= 1, key
        count += codes.numel()
        different += int((codes != expected).sum())
    assert count > 4e5
    assert different <= 1e-4 * count


@pytest.mark.parametrize("name", MOBILE)
def test_mobile_tables_give_the_same_rows(name: str) -> None:
    model, ids = mobile_model(name), torch.tensor([IDS, IDS[::-1]])
    text = model.model.language_model
    tables = [text.embed_tokens, text.embed_tokens_per_layer]
    want = [table(ids) for table in tables]
    pad = tables[0].weight[0, :]
    halfbyte.accelerate(model)
    assert torch.equal(text.embed_tokens(ids), want[0])
    assert torch.equal(text.embed_tokens_per_layer(ids), want[1])
    assert torch.equal(text.embed_tokens.weight[0, :], pad)


def test_a_head_without_steps_is_rounded_by_its_own_range() -> None:
    model = mobile_model()
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    want = model.lm_head(x)
    weights = model.lm_head._dequantize_weights().abs().sum(-1)
    halfbyte.accelerate(model)
    error = (model.lm_head(x) - want).abs()
    bound = x.abs().amax(-1, keepdim=True) / 254 * weights
    assert (error <= bound * (1 + 1e-4)).all()
    assert error.max() > 1e-3


def test_mobile_in_bfloat16() -> None:
    # Computed in float32 and rounded once: what float32 gives, to 2^-9.
    model = mobile_model()
    layer = model.model.language_model.layers[0].mlp.gate_proj
    halfbyte.accelerate(model)
    ours = model.model.language_model.layers[0].mlp.gate_proj
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(2)).bfloat16()
    got, want = ours(x), layer(x.float())
    assert got.dtype == torch.bfloat16
    step = float(layer.output_activation_scale)
    error = (got.float() - want).abs() - want.abs() * 2**-8
    assert error.max() <= step  # one code, at a tie
    assert (error <= 0).float().mean() > 0.99


def test_a_mobile_model_generates_through_the_swapped_layers() -> None:
    model = mobile_model()
    halfbyte.accelerate(model)
    calls = []
    layer = model.model.language_model.layers[0].mlp.gate_proj
    layer.register_forward_hook(lambda *_: calls.append(1))
    out = model.generate(torch.tensor([IDS]), max_new_tokens=4, min_new_tokens=4)
    assert out.shape == (1, len(IDS) + 4)
    assert len(calls) == 4


def test_nothing_of_a_mobile_model_is_copied() -> None:
    model = mobile_model()
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    report = halfbyte.accelerate(model, repack="never")
    after = {name: p.data_ptr() for name, p in model.named_parameters()}
    assert before == after
    assert len(swapped(model)) > 80
    assert report.copied_bytes == report.kept_bytes == report.repacked_bytes == 0
    assert report.bytes_before == report.bytes_after > 1 << 20


@pytest.mark.parametrize("name", MOBILE)
def test_a_mobile_model_is_restored(name: str) -> None:
    model = mobile_model(name)
    modules, bits, want = dict(model.named_modules()), states(model), logits(model)
    halfbyte.accelerate(model)
    assert dict(model.named_modules()) != modules
    assert_restored(model, modules, bits)
    assert torch.equal(logits(model), want)


def test_the_state_of_an_accelerated_model_goes_around(tmp_path: Path) -> None:
    model = mobile_model()
    bits = states(model)
    halfbyte.accelerate(model, repack="always")
    state = model.state_dict()
    assert list(state) == list(bits)
    assert all(torch.equal(state[name], value) for name, value in bits.items())
    want = logits(model)
    save_file(state, tmp_path / "model.safetensors")
    layers = swapped(model)
    for layer in layers.values():
        for parameter in layer.parameters():
            parameter.detach().zero_()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(logits(model), want)


def test_copies_are_accelerated_models_too() -> None:
    model = mobile_model()
    bits, want = states(model), logits(model)
    halfbyte.accelerate(model)
    got = logits(model)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    halfbyte.restore(model)
    for twin in twins:
        assert torch.equal(logits(twin), got)
        halfbyte.restore(twin)
        assert torch.equal(logits(twin), want)
        assert all(torch.equal(twin.state_dict()[n], bits[n]) for n in bits)


def quantized_linear(k: int = 64, n: int = 6, bits: int = 4, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(k)
    layer = gemma_quant.QuantizedLinear(k, n, num_bits=bits, **options)
    raw = torch.randint(0, 256, layer.weight.shape, generator=generator)
    layer.weight.data = raw.to(torch.uint8).view(layer.weight.dtype)
    layer.weight_scale.data = torch.rand(n, 1, generator=generator) / 64
    return layer.requires_grad_(False)


def dead(layer: Any) -> Any:
    layer.weight_scale.data.fill_(float("nan"))
    return layer


def stepped(layer: Any, step: float) -> Any:
    layer.output_activation_scale.data.fill_(step)
    return layer


def cut(layer: Any) -> Any:
    layer.weight.data = layer.weight.data[:, :-1].contiguous()
    return layer


def gapped(layer: Any) -> Any:
    layer.weight.data = layer.weight.data.t().contiguous().t()
    return layer


def hooked(layer: Any) -> Any:
    layer.register_forward_hook(lambda *_: None)
    return layer


def replaced(layer: Any) -> Any:
    layer.forward = lambda x: x
    return layer


class Own(gemma_quant.QuantizedLinear):
    """One that may compute something else."""


LEFT: dict[str, tuple[Callable[[], Any], str]] = {
    "odd width": (lambda: quantized_linear(k=50), "rows of 50: expected a multiple"),
    "dead": (lambda: dead(quantized_linear()), "not finite"),
    "bias": (lambda: stepped(quantized_linear(bias=True), 0.1), "a bias"),
    "negative step": (lambda: stepped(quantized_linear(), -1.0), "a step of"),
    "short rows": (lambda: cut(quantized_linear()), "expected (6, 32) in uint8"),
    "gaps": (lambda: gapped(quantized_linear()), "gaps"),
    "hooks": (lambda: hooked(quantized_linear()), "with hooks"),
    "another forward": (lambda: replaced(quantized_linear()), "a forward of its own"),
    "elsewhere": (lambda: quantized_linear().to("meta"), "on meta"),
    "three bits": (lambda: quantized_linear(bits=3), "3-bit weights"),
    "dense": (lambda: nn.Linear(32, 3), 'dense: quantize="q4_0" packs such layers'),
}


@pytest.mark.parametrize("why", LEFT)
def test_what_does_not_fit_is_left_and_told(why: str) -> None:
    make, reason = LEFT[why]
    layer = make()
    model = nn.ModuleDict({"good": quantized_linear(), "bad": layer})
    report = halfbyte.accelerate(model)
    assert model.bad is layer
    assert type(model.good) is QuantLinear
    (found,) = report.skipped
    assert reason in found
    assert report.skipped[found] == ("bad",)
    assert found in str(report)
    alone = nn.Sequential(layer)
    with pytest.raises(ArgumentError) as caught:
        halfbyte.accelerate(alone)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert alone[0] is layer
    with pytest.raises(ArgumentError, match="expected one that halfbyte"):
        halfbyte.restore(alone)


def test_a_subclass_is_not_known() -> None:
    with pytest.raises(ArgumentError, match="found none that is known"):
        halfbyte.accelerate(nn.Sequential(Own(64, 6, num_bits=4)))


def test_layers_that_are_ours_already_are_told_of() -> None:
    layer = QuantLinear.from_linear(nn.Linear(32, 4), "q4_0")
    with pytest.raises(ArgumentError, match="found 1 of halfbyte already"):
        halfbyte.accelerate(nn.Sequential(layer))


def test_a_layer_cannot_replace_itself() -> None:
    with pytest.raises(ArgumentError, match="the model itself"):
        halfbyte.accelerate(quantized_linear())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_bias_is_added_after_an_output_without_a_step(bits: int) -> None:
    layer = quantized_linear(bits=bits, bias=True)
    layer.input_activation_scale.data.fill_(1 / 32)
    model = nn.Sequential(layer)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    want = layer(x)
    halfbyte.accelerate(model)
    assert type(model[0]) is QuantLinear
    assert_close(model(x), want)


def test_a_layer_in_two_places_stays_one() -> None:
    layer = quantized_linear(k=64, n=64)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    report = halfbyte.accelerate(model)
    assert model[0] is model[2]
    assert report.swapped == {"mobile linear, w4": (1, 2312, 2312)}
    halfbyte.restore(model)
    assert model[0] is layer
    assert model[2] is layer


# --- compressed-tensors ----------------------------------------------------------------

SCHEMES = {
    "w4 g32": ([4, 32], "w4g32"),
    "w4 g64": ([4, 64], "w4g32"),
    "w4": ([4], "w4"),
    "w8": ([8], "w8"),
    "w2": ([2], "w2"),
}


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders that compressed-tensors wrote, each made once."""

    @cache
    def make(name: str, scheme: str, form: str | None = None) -> Path:
        model = tiny.build(name)
        groups = [compressed.group(["Linear"], *SCHEMES[scheme][0])]
        made = compressed.compress(model, groups, form=form)
        folder = tmp_path_factory.mktemp(f"{name} {scheme}")
        return compressed.save(model, folder, *made)

    return make


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, experts_implementation="eager"
    )
    model.set_attn_implementation("eager")
    return model.eval()


@pytest.mark.parametrize("name", tiny.NAMES)
def test_compressed_models(name: str, packed_folder: Callable[..., Path]) -> None:
    folder = packed_folder(name, "w4 g32")
    reference = load(folder)
    want = logits(reference)  # expands it
    model = load(folder)
    halfbyte.accelerate(model, activations="f32")
    assert not hasattr(model, "ct_decompress_hook")
    assert_close(logits(model), want)
    assert len(swapped(model)) > 20
    assert_same_tokens(model, reference)
    halfbyte.restore(model)
    halfbyte.accelerate(model)
    assert_products_close(model, reference)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compressed_formats(scheme: str, packed_folder: Callable[..., Path]) -> None:
    folder, format = packed_folder("gemma3", scheme), SCHEMES[scheme][1]
    reference, model = load(folder), load(folder)
    want = logits(reference)
    at = model.model.layers[0].mlp.down_proj.weight_packed.data_ptr()
    report = halfbyte.accelerate(model, activations="f32")
    assert_close(logits(model), want)
    packed = model.model.layers[0].mlp.down_proj
    assert packed.format == format
    dense = reference.model.layers[0].mlp.down_proj.weight
    assert torch.equal(packed.dequantize(), dense)
    joined = format in ("w4g32", "w8")  # scales between codes; signs turned
    assert (packed.weight.data_ptr() == at) is not joined
    assert (report.copied_bytes > 0) is joined
    shapes = 16 * len(swapped(model))  # of no use to us
    assert (report.kept_bytes > shapes) is joined


def test_compressed_bytes_that_are_not_packed(
    packed_folder: Callable[..., Path],
) -> None:
    folder = packed_folder("gemma3", "w8", "int-quantized")
    reference, model = load(folder), load(folder)
    want = logits(reference)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.weight.dtype == torch.int8
    at = layer.weight.data_ptr()
    halfbyte.accelerate(model, activations="f32")
    assert model.model.layers[0].self_attn.q_proj.weight.data_ptr() == at
    assert_close(logits(model), want)


# Layers that were not calibrated, so that the file has no steps of theirs.
FREE = "k_proj"


def calibrated(model: Any, tensors: compressed.Tensors) -> compressed.Tensors:
    """Steps that reach the largest value going in and out, of all layers but some."""
    steps = {}
    for name, (x, y) in inputs_of(model).items():
        if f"{name}.weight_packed" in tensors and not name.endswith(FREE):
            steps[f"{name}.input_scale"] = x.abs().amax().reshape(1) / 127
            steps[f"{name}.output_scale"] = y.abs().amax().reshape(1) / 127
    return steps


@cache
def _stepped_tensors(name: str) -> tuple[compressed.Tensors, dict[str, Any]]:
    source = tiny.build(name)
    tensors, config = compressed.compress(source, [compressed.group(["Linear"], 4)])
    static = QuantizationArgs(num_bits=8, symmetric=True, strategy="tensor")
    for side in ("input_activations", "output_activations"):
        config["config_groups"]["group_0"][side] = static.model_dump(mode="json")
    dense = compressed.expand(source, tensors, config)
    return tensors | calibrated(dense, tensors), config


def stepped_folder(name: str, folder: Path) -> Path:
    """A mobile checkpoint in the form of compressed-tensors."""
    return compressed.save(tiny.build(name), folder, *_stepped_tensors(name))


@pytest.mark.parametrize("repack", ["always", "never"])
def test_trained_steps_give_the_codes_of_the_library(
    repack: str, tmp_path: Path
) -> None:
    folder = stepped_folder("gemma3", tmp_path)
    reference, model = load(folder), load(folder)
    for name, layer in reference.named_modules():
        if name.endswith(FREE):  # its steps are whatever memory held
            layer.quantization_enabled = False
    seen = inputs_of(reference)
    halfbyte.accelerate(model, repack=repack)
    count = different = 0
    for name in swapped(model):
        (x, want), layer = seen[name], model.get_submodule(name)
        if name.endswith(FREE):
            assert layer.input_activation_scale is None
            continue
        step = reference.get_submodule(name).output_scale
        codes, expected = (torch.round(y / step) for y in (layer(x), want))
        assert len(expected.unique()) > 50, name
        assert (codes - expected).abs().max() <= 1, name
        count += codes.numel()
        different += int((codes != expected).sum())
    assert count > 1e5
    assert different <= 1e-4 * count


@pytest.mark.parametrize("name", ["gemma3", "31b"])
def test_trained_steps_give_the_bits_of_the_engine(name: str, tmp_path: Path) -> None:
    folder = stepped_folder(name, tmp_path)
    engine = halfbyte.load(folder, threads=1)
    model = load(folder)
    halfbyte.accelerate(model)
    for leaf in ("q", "k", "o"):
        layer = model.model.layers[1].self_attn.get_submodule(f"{leaf}_proj")
        x = torch.randn(
            9, layer.in_features, generator=torch.Generator().manual_seed(1)
        )
        want = _core.Stages(engine._core).product(1, leaf, x.numpy())
        assert np.array_equal(layer(x).numpy(), want), leaf


def test_a_compressed_model_is_restored(packed_folder: Callable[..., Path]) -> None:
    model = load(packed_folder("gemma3", "w4 g32"), torch.bfloat16)
    modules, bits = dict(model.named_modules()), states(model)
    hook = model._forward_pre_hooks[model.ct_decompress_hook.id]
    halfbyte.accelerate(model)
    logits(model)
    assert_restored(model, modules, bits)
    assert model._forward_pre_hooks[model.ct_decompress_hook.id] is hook
    want = logits(load(packed_folder("gemma3", "w4 g32"), torch.bfloat16))
    assert torch.equal(logits(model), want)


def test_a_compressed_model_is_not_saved_under_our_names(
    packed_folder: Callable[..., Path], tmp_path: Path
) -> None:
    model = load(packed_folder("gemma3", "w4 g32"))
    halfbyte.accelerate(model)
    with pytest.raises(UnsupportedError, match=r"halfbyte\.restore first"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_expanded_model_is_left(packed_folder: Callable[..., Path]) -> None:
    model = load(packed_folder("gemma3", "w4"))
    logits(model)
    with pytest.raises(ArgumentError, match="expanded by compressed-tensors: load"):
        halfbyte.accelerate(model)


def zero_points(layer: Any) -> None:
    layer.weight_zero_point = nn.Parameter(torch.zeros(1), requires_grad=False)


def rounding(layer: Any) -> None:
    scheme = layer.quantization_scheme.model_copy()
    scheme.input_activations = QuantizationArgs(num_bits=8, dynamic=True)
    layer.quantization_scheme = scheme


def grouped_steps(layer: Any, bits: int = 8) -> None:
    rounding(layer)
    args = QuantizationArgs(num_bits=bits, strategy="tensor")
    layer.quantization_scheme.input_activations = args
    layer.input_scale = nn.Parameter(torch.full((1,), 0.1), requires_grad=False)
    layer.input_scale._is_hf_initialized = True  # as of a loaded one


def narrow_steps(layer: Any) -> None:
    grouped_steps(layer, bits=4)


def fine_scales(layer: Any) -> None:
    layer.weight_scale.data += 1e-6 * layer.weight_scale.data.abs().max()


def another_shape(layer: Any) -> None:
    layer.weight_shape.data += 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (zero_points, "compressed with weight_zero_point"),
        (rounding, "input_activations with one step of 8 bits, known beforehand"),
        (narrow_steps, "input_activations with one step of 8 bits, known beforehand"),
        (grouped_steps, "steps of activations beside scales of groups"),
        (fine_scales, "scales of groups that bfloat16 does not hold"),
        (another_shape, "expected int32 for (128, 64)"),
    ],
)
def test_compressed_layers_that_are_left(
    change: Callable[[Any], None], reason: str, packed_folder: Callable[..., Path]
) -> None:
    # The hook stays for them, expands them, and touches no other.
    model = load(packed_folder("gemma3", "w4 g32"))
    layer = model.model.layers[0].self_attn.q_proj
    change(layer)
    reasons = halfbyte.accelerate(model).skipped
    assert [names for why, names in reasons.items() if reason in why] == [
        ("model.layers.0.self_attn.q_proj",)
    ]
    assert model.model.layers[0].self_attn.q_proj is layer
    assert hasattr(model, "ct_decompress_hook")


def test_the_hook_expands_what_was_left(packed_folder: Callable[..., Path]) -> None:
    folder = packed_folder("gemma3", "w4 g32")
    reference, model = load(folder), load(folder)
    want = logits(reference)
    layer = model.model.layers[0].self_attn.q_proj
    halfbyte.accelerate(model, activations="f32", skip=["layers.0.self_attn"])
    assert_close(logits(model), want)
    assert layer.weight.is_floating_point()
    assert not hasattr(model, "ct_decompress_hook")
    with pytest.raises(ArgumentError, match="has expanded what was left"):
        halfbyte.restore(model)
    assert_close(logits(model), want)


def test_a_model_that_was_half_swapped_is_restored(
    packed_folder: Callable[..., Path],
) -> None:
    folder = packed_folder("gemma3", "w4 g32")
    reference, model = load(folder), load(folder)
    modules, bits = dict(model.named_modules()), states(model)
    halfbyte.accelerate(model, skip=["layers.0.self_attn"])
    assert_restored(model, modules, bits)
    assert torch.equal(logits(model), logits(reference))


# --- GGUF modules ----------------------------------------------------------------------


def gguf_bytes(weight: torch.Tensor, kind: Type, name: str) -> torch.Tensor:
    raw = tiny.encode(weight.detach().numpy(), kind, len(name))
    return torch.from_numpy(np.ascontiguousarray(raw).view(np.uint8))


def as_gguf(model: Any, kinds: list[Type]) -> tuple[Any, Any]:
    """A model of transformers' GGUF layers, and one of the floats they stand for."""
    packed, dense = copy.deepcopy(model), copy.deepcopy(model)
    linears = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    for i, name in enumerate(n for n in linears if n != "lm_head"):
        layer, kind = dense.get_submodule(name), kinds[i % len(kinds)]
        if layer.in_features % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = Type.Q8_0
        raw = gguf_bytes(layer.weight, kind, name)
        made = GgufLinear(layer.in_features, layer.out_features, int(kind))
        made.weight.data = raw
        packed.set_submodule(name, made)
        layer.weight.data = torch.from_numpy(gguf.dequantize(raw.numpy(), kind).copy())
    return packed, dense


@pytest.mark.parametrize("name", tiny.NAMES)
def test_gguf_models(name: str) -> None:
    kinds = [Type.Q4_0, Type.Q6_K, Type.Q5_K, Type.Q4_K, Type.Q8_0]
    model, dense = as_gguf(tiny.build(name, wide=True), kinds)
    at = {name: p.data_ptr() for name, p in model.named_parameters()}
    modules, bits = dict(model.named_modules()), states(model)
    halfbyte.accelerate(model, activations="f32")
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == at
    assert {type(m) for m in modules.values()} >= {GgufLinear}
    assert len(swapped(model)) > 20
    assert_close(logits(model), logits(dense))
    assert_same_tokens(model, dense)
    assert_restored(model, modules, bits)
    halfbyte.accelerate(model)
    assert_products_close(model, dense)


def gguf_model(kind: Type = Type.Q8_0) -> nn.ModuleDict:
    """A table, and a linear layer with a bias and the same bytes."""
    values = torch.randn(50, 64, generator=torch.Generator().manual_seed(5))
    raw = gguf_bytes(values, kind, "table")
    table = GgufEmbedding(50, 64, int(kind), dtype=torch.float32)
    linear = GgufLinear(64, 50, int(kind), bias=True)
    table.weight.data = raw
    linear.weight = table.weight
    linear.bias.data = torch.arange(50.0)
    return nn.ModuleDict({"table": table, "linear": linear})


def test_gguf_tables_and_a_bias() -> None:
    model, ids = gguf_model(), torch.tensor([[3, 49, 0]])
    x = torch.randn(12, 64, generator=torch.Generator().manual_seed(6))
    rows, y = model.table(ids), model.linear(x)  # 8 rows and fewer need a GPU there
    report = halfbyte.accelerate(model, activations="f32")
    assert torch.equal(model.table(ids), rows)
    assert_close(model.linear(x), y)
    assert report.copied_bytes == 0
    assert model.linear.weight.data_ptr() == model.table.embedding_quantized.data_ptr()


def test_gguf_layers_that_are_left() -> None:
    model = gguf_model()
    model.linear.input_permutation = torch.arange(64)
    model["unknown"] = GgufLinear(64, 4, int(Type.Q8_0))
    model["unknown"].ggml_type = 99
    model["experts"] = GgufExperts(2, 64, 64, 8, 8, nn.GELU())
    reasons = halfbyte.accelerate(model).skipped
    assert sorted(names for names in reasons.values()) == [
        ("experts",),
        ("linear",),
        ("unknown",),
    ]
    assert type(model.table) is QuantEmbedding


# --- Dense layers ----------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.NAMES)
def test_dense_models(name: str) -> None:
    model = tiny.build(name, wide=True)
    dense, modules, bits = copy.deepcopy(model), dict(model.named_modules()), {}
    bits = states(model)
    report = halfbyte.accelerate(model, quantize="q4_0", activations="f32")
    layers = swapped(model)
    assert not [name for name in layers if "lm_head" in name or "router" in name]
    assert report.kept_bytes == report.bytes_before > 3 * report.bytes_after
    for key, layer in layers.items():
        weight = dense.get_submodule(key).weight.data
        raw = gguf.quantize(weight.numpy(), Type.Q4_0)
        weight.copy_(torch.from_numpy(gguf.dequantize(raw, Type.Q4_0)))
        assert torch.equal(layer.dequantize(), weight), key
    assert_close(logits(model), logits(dense))
    assert_same_tokens(model, dense)
    assert_restored(model, modules, bits)
    halfbyte.accelerate(model, quantize="q4_0")
    assert_products_close(model, dense)


def test_what_quantize_leaves_by_default() -> None:
    model = tiny.build("26b", wide=True)
    report = halfbyte.accelerate(model, quantize="q8_0")
    left = {name for names in report.skipped.values() for name in names}
    routers = {f"model.layers.{i}.router.proj" for i in range(6)}
    assert left == routers | {"lm_head"}
    shared = nn.ModuleDict({"a": nn.Linear(32, 32), "b": nn.Linear(32, 32)})
    shared["c"] = nn.Linear(32, 32)
    shared.b.weight = shared.a.weight
    halfbyte.accelerate(shared, quantize="q8_0")
    assert list(swapped(shared)) == ["c"]


def test_a_skip_list_takes_the_place_of_the_default() -> None:
    model = tiny.build("26b", wide=True)
    report = halfbyte.accelerate(
        model, quantize="q8_0", skip=[r"layers\.[0-4]\.", "up"]
    )
    names = set(swapped(model))
    assert "lm_head" in names
    assert "model.layers.5.router.proj" in names
    assert "model.layers.5.mlp.up_proj" not in names
    assert all(".5." in name or name == "lm_head" for name in names)
    assert list(report.skipped) == ["named in skip"]
    embedding = model.model.embed_tokens.weight
    assert model.lm_head.weight is not embedding
    halfbyte.restore(model)
    assert model.lm_head.weight is embedding


def test_packed_layers_can_be_skipped_too() -> None:
    model = mobile_model()
    halfbyte.accelerate(model, skip=["self_attn", "embed"])
    assert {name.rpartition(".")[2] for name in swapped(model)} == {
        *("gate_proj", "up_proj", "down_proj"),
        *("per_layer_input_gate", "per_layer_projection", "lm_head"),
    }


def test_dense_layers_are_not_kept_unless_asked() -> None:
    model = tiny.build("gemma3", wide=True)
    report = halfbyte.accelerate(model, quantize="q4_0", keep=False)
    assert report.kept_bytes == 0
    with pytest.raises(ArgumentError, match="were not kept"):
        halfbyte.restore(model)
    assert swapped(model)


def test_packed_dense_layers_are_not_saved_as_dense_ones(tmp_path: Path) -> None:
    model = tiny.build("gemma3", wide=True)
    halfbyte.accelerate(model, quantize="q4_0")
    for one in (model, copy.deepcopy(model)):
        with pytest.raises(UnsupportedError, match=r"halfbyte\.restore first"):
            one.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    halfbyte.restore(model)
    model.save_pretrained(tmp_path)
    assert list(tmp_path.glob("*.safetensors"))


def test_adapters_are_saved_all_the_same() -> None:
    model = tiny.build("gemma3", wide=True)
    model.peft_config = {}  # what PEFT leaves on a model whose adapters it writes
    saves = model.save_pretrained
    halfbyte.accelerate(model, quantize="q4_0")
    assert model.save_pretrained == saves


def test_a_call_that_is_cut_short_leaves_a_model_that_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build("gemma3", wide=True)
    made = QuantLinear.from_linear
    calls: list[int] = []

    def twice(*args: Any, **options: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return made(*args, **options)

    monkeypatch.setattr(QuantLinear, "from_linear", twice)
    with pytest.raises(KeyboardInterrupt):
        halfbyte.accelerate(model, quantize="q4_0")
    assert len(swapped(model)) == 2
    with pytest.raises(UnsupportedError):
        model.save_pretrained(tmp_path)


def test_weights_that_a_format_cannot_hold_are_left() -> None:
    model = nn.Sequential(nn.Linear(32, 4), nn.Linear(32, 4), nn.Linear(32, 4))
    model[0].weight.data[0, 0] = torch.inf
    model[1].weight.data[0, 0] = 1e8
    report = halfbyte.accelerate(model, quantize="q4_0")
    assert sorted(report.skipped.values()) == [("0",), ("1",)]
    assert all(why.startswith("weights that q4_0 cannot") for why in report.skipped)


def test_layers_whose_weights_others_read_are_left() -> None:
    parts = {"d_model": 64, "nhead": 4, "dim_feedforward": 128, "batch_first": True}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**parts), 1)
    model = nn.ModuleList([encoder, nn.Linear(64, 64)]).eval()
    report = halfbyte.accelerate(model, quantize="q8_0")
    assert sum(count for count, _, _ in report.swapped.values()) == 1
    with torch.no_grad():
        assert model[0](torch.ones(2, 3, 64)).shape == (2, 3, 64)
    # As T5 says of layers that it reads the type of.
    model = nn.ModuleDict({"wi": nn.Linear(64, 64), "wo": nn.Linear(64, 64)})
    model._keep_in_fp32_modules = ["wo"]
    halfbyte.accelerate(model, quantize="q8_0")
    assert list(swapped(model)) == ["wi"]


def test_dense_layers_that_do_not_fit() -> None:
    model = nn.Sequential(nn.Linear(33, 4), nn.Linear(32, 4), nn.Linear(64, 4))
    model[1].double()
    reasons = halfbyte.accelerate(model, quantize="q4_0").skipped
    assert list(reasons) == [
        "rows of 33 do not fit q4_0",
        "dense weights in torch.float64",
    ]


# --- The call itself -------------------------------------------------------------------


def test_a_second_call_finds_nothing_new() -> None:
    model = mobile_model()
    first = halfbyte.accelerate(model)
    layers = swapped(model)
    assert halfbyte.accelerate(model) == first
    assert swapped(model) == layers
    assert model.halfbyte_report == first


def test_a_second_call_may_ask_for_more() -> None:
    model = mobile_model()
    modules, bits = dict(model.named_modules()), states(model)
    first = halfbyte.accelerate(model, repack="never")
    second = halfbyte.accelerate(model, quantize="q8_0", repack="always")
    assert second.swapped.items() > first.swapped.items()
    assert second.swapped["dense linear, q8_0"][0] == 1
    assert second.repacked_bytes > 0
    assert_restored(model, modules, bits)


def test_what_it_decides_about_repacking(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def holds(size: int) -> bool:
        asked.append(size)
        return len(asked) > 1

    monkeypatch.setattr(halfbyte._core, "memory_holds", holds)
    model = nn.Sequential(quantized_linear(k=64, n=32), quantized_linear(k=64, n=32))
    assert halfbyte.accelerate(model).repacked_bytes == 0
    assert halfbyte.accelerate(model, repack="never").repacked_bytes == 0
    assert halfbyte.accelerate(model).repacked_bytes == asked[0] >= 2 * 64 * 32 // 2
    assert asked[0] == asked[1]
    halfbyte.restore(model)
    assert halfbyte.accelerate(model, activations="f32").repacked_bytes == 0
    assert halfbyte.accelerate(model, repack="always").repacked_bytes == asked[0]


def test_free_memory_is_compared_with_a_fifth_to_spare() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(s.split()[1]) << 10 for s in lines if s.startswith("MemAvailable"))
    assert halfbyte._core.memory_holds(0)
    assert halfbyte._core.memory_holds(free // 100)
    assert not halfbyte._core.memory_holds(free // 100 * 95)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repack": "maybe"}, "repack: expected one of auto, always, never, got 'm"),
        (
            {"activations": "static"},
            "activations: expected one of auto, f32, got 'static'",
        ),
        (
            {"quantize": "q5_0"},
            "quantize: expected one of q4_0, q8_0",
        ),
        ({"quantize": "q9"}, "quantize: expected one of q4_0, q8_0"),
        ({"skip": "lm_head"}, "skip: expected a list of patterns, got 'lm_head'"),
        ({"skip": ["("]}, "skip: '(' is no pattern"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    model = nn.Sequential(quantized_linear())
    with pytest.raises(ArgumentError) as caught:
        halfbyte.accelerate(model, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert type(model[0]) is gemma_quant.QuantizedLinear


@pytest.mark.parametrize("call", ["accelerate", "restore"])
def test_what_is_no_model(call: str) -> None:
    with pytest.raises(
        DTypeError, match=r"^model: expected a torch.nn.Module, got str$"
    ):
        getattr(halfbyte, call)("model.gguf")


def test_casts_leave_swapped_layers_and_those_kept_for_them() -> None:
    layer = quantized_linear()
    model = nn.Sequential(layer, nn.LayerNorm(6))
    bits = states(layer)
    halfbyte.accelerate(model)
    model.half()
    assert model[1].weight.dtype == torch.float16
    assert all(torch.equal(model[0].state_dict()[n], bits[n]) for n in bits)
    halfbyte.restore(model)
    assert all(torch.equal(model[0].state_dict()[n], bits[n]) for n in bits)


def test_the_mode_of_the_model_goes_along() -> None:
    layer = quantized_linear()
    model = nn.Sequential(layer).eval()
    halfbyte.accelerate(model)
    assert not model[0].training
    model.train()
    halfbyte.restore(model)
    assert layer.training


def test_the_report() -> None:
    model = mobile_model()
    halfbyte.set_num_threads(3)
    try:
        report = halfbyte.accelerate(model, repack="always")
    finally:
        halfbyte.set_num_threads(None)
    assert report.model == "Gemma4ForConditionalGeneration"
    assert (report.threads, report.threads_reason) == (3, "halfbyte.set_num_threads")
    assert report.target == halfbyte.cpu_target()
    assert {kind: count for kind, (count, _, _) in report.swapped.items()} == {
        "mobile embedding, w2": 1,
        "mobile embedding, w4": 1,
        "mobile linear, w2": 13,
        "mobile linear, w4": 64,
        "mobile linear, w8": 24,
    }
    assert json.loads(json.dumps(report.to_dict()))["copied_bytes"] == 0
    lines = repr(report).splitlines()
    assert lines[0] == "Gemma4ForConditionalGeneration"
    assert any(line.split()[:3] == ["mobile", "linear,", "w8"] for line in lines)
    assert max(map(len, lines)) < 120
    page = report._repr_html_()
    assert page.count("<tr>") == len(lines) - 1
    assert "quantize=&quot;q4_0&quot;" in page
    assert halfbyte.accelerate(model).threads_reason == "torch.get_num_threads"


# --- In a process of its own -----------------------------------------------------------


def python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | env,
        timeout=300,
    )
    return done.stdout


def test_memory_does_not_grow() -> None:
    code = """
import halfbyte, torch
from torch import nn
from transformers.integrations.gemma_quant import QuantizedLinear

def rss():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(s.split()[1]) for s in lines if s.startswith("VmRSS")) >> 10

def stack(layers, width):
    model = nn.Sequential()
    for _ in range(layers):
        with torch.device("meta"):
            layer = QuantizedLinear(width, width, num_bits=4)
        ones = torch.ones(width, width // 2, dtype=torch.uint8)
        layer.weight = nn.Parameter(ones, requires_grad=False)
        layer.weight_scale = nn.Parameter(torch.ones(width, 1))
        for step in ("input_activation_scale", "output_activation_scale"):
            setattr(layer, step, nn.Parameter(torch.tensor(0.1)))
        model.append(layer)
    return model

halfbyte.accelerate(stack(1, 64))
empty = rss()
model = stack(26, 4096)
before = rss()
halfbyte.accelerate(model, repack="never")
print(before - empty, rss() - before)
"""
    size, grown = map(int, python(code).split())
    assert size >= 200
    assert grown <= 4


def test_it_is_imported_when_it_is_asked_for() -> None:
    code = """
import sys, halfbyte
assert {"accelerate", "restore"} <= set(dir(halfbyte))
from halfbyte import *
assert "torch" not in sys.modules
halfbyte.accelerate
assert "torch" in sys.modules
assert not {"transformers", "compressed_tensors"} & set(sys.modules)
"""
    python(code)
    with pytest.raises(AttributeError, match="no attribute 'accelerat'"):
        getattr(halfbyte, "accelerat")  # noqa: B009


def test_without_torch_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["torch"] = None
import halfbyte
try:
    halfbyte.accelerate(None)
except ImportError as error:
    print(error)
"""
    assert 'pip install "halfbyte[torch]"' in python(code)
