# tests/python/test_convert_safetensors.py
# SPDX-License-Identifier: Apache-2.0
"""Directories that `halfbyte.convert` writes, and who reads them.

The oracles are safetensors, compressed-tensors in transformers, and a float32 model whose
weights are those that the file stands for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import float_forward
import halfbyte
import numpy as np
import pytest
import tiny
import torch
from halfbyte import conversion, lattice
from halfbyte.cli import main
from halfbyte.errors import ArgumentError, UnsupportedError
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from test_lattice import bf16, trained_rows
from test_logits import CLOSE, IDS, distance
from transformers import AutoModelForCausalLM

F32 = NDArray[np.float32]
Tensors = dict[str, torch.Tensor]


def on_lattice(model: Any, bits: Any = 4, group: int | None = 32) -> Any:
    """A copy whose matrices are bfloat16(step * level); `bits` of a name."""
    twin = tiny.rounded(model)
    with torch.no_grad():
        for i, (name, tensor) in enumerate(twin.model.state_dict().items()):
            width = bits(name) if callable(bits) else bits
            if tensor.ndim != 2 or width is None:
                continue
            size = group or tensor.shape[1]
            if group is None and "embed_tokens_per_layer" in name:
                size = model.config.hidden_size_per_layer_input
            x = trained_rows(100 + i, tensor.numel() // size, size, width)[0]
            tensor.copy_(torch.from_numpy(x).reshape(tensor.shape))
    return twin


def saved(model: Any, folder: Path, **options: Any) -> Path:
    return tiny.save_hf(model, folder, **{"dtype": torch.bfloat16} | options)


def quantization(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return made["quantization_config"]


def written(source: Path, target: Path, format: str, **options: Any) -> Tensors:
    report = halfbyte.convert(
        source, target, to="safetensors", format=format, **options
    )
    assert report.written
    assert (target / "model.safetensors").stat().st_size == report.bytes
    return load_file(target / "model.safetensors")


def levels(codes: torch.Tensor, bits: int) -> F32:
    """Offset binary, the first in the low bits; 8 bits are signed."""
    raw = codes.numpy()
    if bits == 8:
        return raw.astype(np.float32)
    flat = np.ascontiguousarray(raw).view(np.uint8).reshape(len(raw), -1, 1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (flat >> shifts) & ((1 << bits) - 1)
    return values.reshape(len(raw), -1).astype(np.float32) - (1 << (bits - 1))


# ---- compressed-tensors


@pytest.mark.parametrize("name", ["e2b", "e4b", "gemma3"])
@pytest.mark.parametrize("released", [False, True])
def test_w4a16_holds_the_trained_levels(
    name: str, released: bool, tmp_path: Path
) -> None:
    model = on_lattice(tiny.build(name, wide=True))
    source = saved(model, tmp_path / "bf16", released=released, dead_kv=name == "e2b")
    made = written(source, tmp_path / "ct", "w4a16-ct")
    floats = load_file(source / "model.safetensors")
    packed = [n.removesuffix("_packed") for n in made if n.endswith("weight_packed")]
    assert len(packed) > 20
    for key in packed:
        x = floats[key].float().numpy()
        got = levels(made[key + "_packed"], 4)
        steps = made[key + "_scale"].float().numpy()
        assert made[key + "_shape"].tolist() == list(x.shape)
        found = lattice.recover(x, "w4g32")
        assert found.on_lattice == 1.0
        want = found.weight.dequantize()
        np.testing.assert_array_equal(got * steps.repeat(32, axis=1), want)
        assert (steps >= 0).all()
    for key, value in made.items():
        if not key.rpartition("_")[0].endswith("weight"):
            assert torch.equal(value, floats[key])
    left = [key for key in floats if key not in made and key not in packed]
    assert all(word in key for key in left for word in ("self_attn",))


@pytest.mark.parametrize("name", ["e4b", "gemma3"])
def test_w4a16_in_transformers_and_here(name: str, tmp_path: Path) -> None:
    model = on_lattice(tiny.build(name, wide=True))
    source, target = saved(model, tmp_path / "bf16"), tmp_path / "ct"
    made = written(source, target, "w4a16-ct")
    dense = tiny.rounded(model)
    state = dense.state_dict()
    for key, codes in made.items():
        if key.endswith("weight_packed"):
            base = key.removesuffix("_packed")
            steps = made[base + "_scale"].float().numpy().repeat(32, axis=1)
            values = torch.from_numpy(levels(codes, 4) * steps)
            with torch.no_grad():
                state[base].copy_(values)
    exact = float_forward.exact_logits(dense, IDS)
    ours = halfbyte.load(target, threads=1, activations="f32").logits(IDS)
    assert distance(ours, exact) <= CLOSE
    torch.set_num_threads(1)
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    with torch.no_grad():
        theirs = loaded.eval()(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(
        theirs,
        tiny.reference_logits(dense, IDS),
        rtol=0,
        atol=CLOSE * np.abs(exact).max(),
    )


def test_w4a16_names_what_it_leaves(tmp_path: Path) -> None:
    model = on_lattice(tiny.build("e4b", wide=True))
    source = saved(model, tmp_path / "bf16", released=True)
    written(source, tmp_path / "ct", "w4a16-ct")
    ignored = quantization(tmp_path / "ct")["ignore"]
    assert "lm_head" in ignored
    assert "re:.*vision_tower.*" in ignored
    assert not any("layers" in name for name in ignored)


# ---- the mobile schema


def mobile_bits(name: str) -> int | None:
    """Widths of the released E4B."""
    if "per_layer_model_projection" in name:
        return None
    if name.startswith("embed_tokens"):
        return 2
    return 8 if "per_layer" in name else 4


def test_mobile_holds_the_trained_levels(tmp_path: Path) -> None:
    model = on_lattice(tiny.build("e4b", wide=True), mobile_bits, None)
    source = saved(model, tmp_path / "bf16", released=True)
    report = halfbyte.convert(
        source, tmp_path / "mobile", to="safetensors", format="mobile"
    )
    for role in report.roles:
        if role.type in ("U8", "I8"):
            assert role.share("exact") == 1.0
    made = load_file(tmp_path / "mobile" / "model.safetensors")
    floats = load_file(source / "model.safetensors")
    root = "model.language_model."
    for key, x in floats.items():
        bits = mobile_bits(key.removeprefix(root)) if x.ndim == 2 else None
        if bits is None or "vision" in key:
            assert torch.equal(made[key], x)
            continue
        base = key.removesuffix(".weight")
        table = "embed_tokens" in key
        codes = made[base + (".embedding_quantized" if table else ".weight")]
        steps = made[base + (".embedding_scale" if table else ".weight_scale")].numpy()
        wide = steps.repeat(x.shape[1] // steps.shape[1], axis=1)
        assert np.array_equal(bf16(levels(codes, bits) * wide), x.float().numpy())
    for part in ("weight", "weight_scale"):
        twin = {"weight": "embedding_quantized", "weight_scale": "embedding_scale"}
        same = made[f"{root}embed_tokens.{twin[part]}"]
        assert torch.equal(made[f"lm_head.{part}"], same)
    assert made["lm_head.input_activation_scale"] == 0


@pytest.mark.parametrize("name", ["e2b", "e4b"])
def test_mobile_is_loaded(name: str, tmp_path: Path) -> None:
    model = tiny.build(name, wide=True)
    source, target = saved(model, tmp_path / "bf16", released=True), tmp_path / "mobile"
    made = written(source, target, "mobile", quantizer="mse")
    dense, root = tiny.rounded(model), "model.language_model."
    state = dense.state_dict()
    with torch.no_grad():
        for key, steps in made.items():
            if not key.startswith(root) or not key.endswith(
                (".weight_scale", ".embedding_scale")
            ):
                continue
            base = key.rpartition(".")[0]
            table = key.endswith(".embedding_scale")
            codes = made[base + (".embedding_quantized" if table else ".weight")]
            into = state["model." + base.removeprefix(root) + ".weight"]
            bits = codes.shape[1] * 8 // into.shape[1]
            wide = steps.numpy().repeat(into.shape[1] // steps.shape[1], axis=1)
            into.copy_(torch.from_numpy(levels(codes, bits) * wide))
    loaded = halfbyte.load(target, threads=1, activations="f32")
    exact = float_forward.exact_logits(dense, IDS)
    assert distance(loaded.logits(IDS), exact) <= CLOSE
    widths = quantization(target)["module_quant_configs"]
    assert widths[r"embed_tokens_per_layer$"]["num_bits"] == (4 if name == "e2b" else 2)


def test_steps_of_activations_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.build("e4b", wide=True)
    source = saved(model, tmp_path / "bf16", released=True)
    floats = load_file(source / "model.safetensors")
    base = "model.language_model.layers.0.mlp.up_proj."
    for side, value in (("input", 0.011), ("output", 0.37)):
        floats[f"{base}{side}_activation_scale"] = torch.tensor(value)
    save_file(floats, source / "model.safetensors", metadata={"format": "pt"})
    to = ("--to", "safetensors", "--format", "mobile")
    assert main(["convert", str(source), str(tmp_path / "mobile"), *to]) == 0
    lacking = len([key for key in floats if key.endswith("proj.weight")])
    lacking += len([key for key in floats if "per_layer_input_gate" in key])
    lacking += len([key for key in floats if "per_layer_projection.weight" in key]) - 1
    assert f"{lacking} linear layers have no input_act" in capsys.readouterr().err
    made = load_file(tmp_path / "mobile" / "model.safetensors")
    assert made[base + "input_activation_scale"] == torch.tensor(0.011)
    assert made[base + "output_activation_scale"] == torch.tensor(0.37)
    other = base.replace("up_proj", "gate_proj")
    assert made[other + "input_activation_scale"] == 0
    assert halfbyte.load(tmp_path / "mobile", threads=1).logits(IDS).shape[0] == len(
        IDS
    )


# ---- bfloat16, and what all have in common


def test_bf16_is_what_it_was(tmp_path: Path) -> None:
    model = tiny.build("e2b", wide=True)
    source = saved(model, tmp_path / "f32", dtype=torch.float32, shards=3, lm_head=True)
    (source / "chat_template.jinja").write_bytes(b"")
    extra = {"model.layers.9999.self_attn.k_proj.weight": torch.ones(2, 32)}
    index = source / "model.safetensors.index.json"
    files = json.loads(index.read_text())
    for key in extra:  # of a layer that the model has not
        files["weight_map"][key] = "extra.safetensors"
    index.write_text(json.dumps(files))
    save_file(extra, source / "extra.safetensors")
    (source / "README.md").write_text("not a part of the model")
    made = written(source, tmp_path / "bf16", "bf16")
    for key, value in tiny.weights(model).items():
        assert torch.equal(made["model." + key], value.bfloat16())
    assert "lm_head.weight" not in made
    assert sorted(path.name for path in (tmp_path / "bf16").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert "quantization_config" not in json.loads(
        (tmp_path / "bf16" / "config.json").read_text()
    )
    loaded = halfbyte.load(tmp_path / "bf16", threads=1, activations="f32")
    exact = float_forward.exact_logits(tiny.rounded(model), IDS)
    assert distance(loaded.logits(IDS), exact) <= CLOSE
    assert loaded.tokenizer.encode("the") == halfbyte.load(source).tokenizer.encode(
        "the"
    )


def test_any_number_of_threads_writes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tiny.build("e4b", wide=True), tmp_path / "bf16")
    monkeypatch.setattr(conversion.stream, "PIECE_BYTES", 4096)
    for format in ("w4a16-ct", "mobile"):
        for threads in (1, 3):
            written(source, tmp_path / f"{format}{threads}", format, threads=threads)
        files = [(tmp_path / f"{format}{n}" / "model.safetensors") for n in (1, 3)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_numbers_are_aligned(tmp_path: Path) -> None:
    source = saved(tiny.build("e4b", wide=True), tmp_path / "bf16")
    for format in ("w4a16-ct", "mobile"):
        halfbyte.convert(source, tmp_path / format, to="safetensors", format=format)
        sizes = {"I64": 8, "F32": 4, "I32": 4, "BF16": 2, "U8": 1, "I8": 1}
        for tensor in halfbyte.open_safetensors(tmp_path / format).tensors:
            assert tensor.offset % sizes[tensor.type] == 0


@pytest.mark.parametrize("quantizer", ["rtn", "mse"])
@pytest.mark.parametrize("format", ["w4a16-ct", "mobile"])
def test_no_step_is_negative(format: str, quantizer: str, tmp_path: Path) -> None:
    """A level of +8 asks for one, and a reader refuses it: such groups are rounded."""
    bits, group = (mobile_bits, None) if format == "mobile" else (4, 32)
    model = on_lattice(tiny.build("e4b", wide=True), bits, group)
    with torch.no_grad():
        for tensor in model.model.state_dict().values():
            if tensor.ndim == 2:
                tensor.neg_()
    source = saved(model, tmp_path / "bf16", released=True)
    how = {"to": "safetensors", "format": format, "quantizer": quantizer}
    report = halfbyte.convert(source, tmp_path / "out", **how)
    kept = [role.kept for role in report.roles if role.role == "attention"]
    (tally,) = {tally for tally in kept if tally}
    assert tally.off > 0
    assert tally.exact > 0
    for key, value in load_file(tmp_path / "out" / "model.safetensors").items():
        if key.endswith("scale"):
            assert (value >= 0).all()
    halfbyte.load(tmp_path / "out", threads=1).logits(IDS)


def test_what_was_interrupted_is_no_model_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tiny.build("e4b", wide=True), tmp_path / "bf16")
    monkeypatch.setattr(conversion.stream, "PIECE_BYTES", 4096)
    whole, target = tmp_path / "whole", tmp_path / "ct"
    written(source, whole, "w4a16-ct")

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    how = {"to": "safetensors", "format": "w4a16-ct"}
    with pytest.raises(KeyboardInterrupt):
        halfbyte.convert(source, target, progress=stop, **how)
    with pytest.raises(OSError, match=r"config\.json"):
        halfbyte.load(target)
    report = halfbyte.convert(source, target, **how)
    assert report.resumed_bytes > report.bytes / 4
    for path in whole.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes()
    assert len(list(target.iterdir())) == len(list(whole.iterdir()))


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    source = saved(tiny.build("e4b", wide=True), tmp_path / "bf16")
    before = sorted((p.name, p.read_bytes()) for p in source.iterdir())
    with pytest.raises(ArgumentError, match=r"an empty folder, .* found 'config.json'"):
        halfbyte.convert(source, source, to="safetensors", format="bf16")
    assert sorted((p.name, p.read_bytes()) for p in source.iterdir()) == before
    target = tmp_path / "new"
    halfbyte.convert(source, target, to="safetensors", format="bf16", dry_run=True)
    assert not target.exists()
    other = saved(tiny.build("gemma3", wide=True), tmp_path / "other")
    for path in other.iterdir():
        if path.name != "model.safetensors":
            path.unlink()
    weights = (other / "model.safetensors").read_bytes()
    with pytest.raises(ArgumentError, match=r"found 'model\.safetensors'"):
        halfbyte.convert(source, other, to="safetensors", format="bf16")
    assert (other / "model.safetensors").read_bytes() == weights


def test_what_has_no_such_form(tmp_path: Path) -> None:
    experts = saved(tiny.build("26b", wide=True), tmp_path / "moe")
    for format in ("w4a16-ct", "mobile"):
        with pytest.raises(
            UnsupportedError, match=f"{format}: expected a model without"
        ):
            halfbyte.convert(experts, tmp_path / "x", to="safetensors", format=format)
    gemma3 = saved(tiny.build("gemma3", wide=True), tmp_path / "gemma3")
    with pytest.raises(UnsupportedError, match="a model of gemma4, found gemma3"):
        halfbyte.convert(gemma3, tmp_path / "x", to="safetensors", format="mobile")
    with pytest.raises(ArgumentError, match="expected one of w4a16-ct, mobile, bf16"):
        halfbyte.convert(gemma3, tmp_path / "x", to="safetensors", format="q4_0")
    with pytest.raises(ArgumentError, match="expected one of q4_0, q8_0, bf16"):
        halfbyte.convert(gemma3, tmp_path / "x", format="mobile")
    packed = tmp_path / "ct"
    halfbyte.convert(gemma3, packed, to="safetensors", format="w4a16-ct")
    with pytest.raises(UnsupportedError, match="packed already"):
        halfbyte.convert(packed, tmp_path / "x", to="safetensors", format="bf16")
    gguf = tmp_path / "m.gguf"
    halfbyte.convert(gemma3, gguf, format="bf16")
    with pytest.raises(UnsupportedError, match="expected a directory with config"):
        halfbyte.convert(gguf, tmp_path / "x", to="safetensors", format="bf16")
    assert not (tmp_path / "x").exists()
