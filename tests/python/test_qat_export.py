# tests/python/test_qat_export.py
# SPDX-License-Identifier: Apache-2.0
"""What training leaves on disk: the same numbers to Transformers, to halfbyte, and here.

In float32 a layer of the mobile scheme computes what Transformers' own packed layer does,
operation by operation, so the two are compared bit for bit, each layer from the same
input. halfbyte sums integers and rounds once: a value between two codes may fall to the
other side, which `test_mobile.py` bounds.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import pytest
import tiny
import torch
from halfbyte import _core, errors, lattice, qat
from halfbyte.qat.export import _pack
from safetensors.torch import load_file
from test_mobile import KINDS
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
)
from transformers.integrations import gemma_quant
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextScaledWordEmbedding

IDS = torch.tensor([tiny.prompt(48, seed=seed) for seed in range(2)])
PACKABLE = [name for name in tiny.NAMES if name != "26b"]
each_packable = pytest.mark.parametrize(
    ("name", "tables"), [(n, True) for n in PACKABLE] + [("e2b", False), ("12b", False)]
)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.delenv("HALFBYTE_ACTIVATIONS", raising=False)


def trained(model: Any, scheme: str, *, tables: bool, **options: Any) -> Any:
    """Prepare a model, calibrate it, and move its weights and steps a little."""
    teacher = copy.deepcopy(model)
    qat.ptq(model, scheme, [IDS], embeddings=tables, per_layer=tables, **options)
    rates = {"lr": 1e-4, "step_lr": 1e-3, "act_lr": 1e-2}
    qat.distill(model, teacher, [IDS], steps=3, **rates)
    return model


@cache
def student(name: str, scheme: str, tables: bool) -> Any:
    # All of bfloat16 numbers: what is not on a grid is written without loss.
    return trained(tiny.rounded(tiny.build(name, wide=True)), scheme, tables=tables)


def matrices(model: Any) -> dict[str, Tensor]:
    """Names in the file to what the model computes with, of all that is on a grid."""
    found = {}
    for name in model.halfbyte_qat.swapped:
        module = model.get_submodule(name)
        for key in module.matrices:
            found[f"{name}.{key}"] = module.quantized(key).detach()
    return found


def load(folder: Path) -> Any:
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


# ---- Q4_0


@pytest.mark.parametrize(
    ("name", "tables"), [(n, True) for n in tiny.NAMES] + [("e2b", False)]
)
def test_q4_0_lies_on_the_lattice(name: str, tables: bool, tmp_path: Path) -> None:
    model = student(name, "q4_0", tables)
    file = load_file(qat.export(model, tmp_path) / "model.safetensors")
    made = matrices(model)
    assert len(made) > 30
    # A tied head is the embedding.
    assert set(made) - set(file) == ({"lm_head.weight"} if tables else set())
    for key in set(made) & set(file):
        assert file[key].dtype == torch.bfloat16
        assert torch.equal(file[key], made[key].bfloat16()), key
        rows = file[key].flatten(0, -2).float()
        found = lattice.recover(rows.numpy())
        assert found.on_lattice == 1.0, key
        # Steps are float16 numbers: nothing is lost but the sign of zeros.
        back = torch.from_numpy(found.weight.dequantize()).bfloat16()
        assert torch.equal(back + 0.0, rows.bfloat16() + 0.0), key
    names = {f"model.{key}" for key in model.model.state_dict()}
    rest = {key for key in names if "log_step" not in key and "experts" not in key}
    assert rest <= set(file)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_levels_are_recovered(name: str, tmp_path: Path) -> None:
    model = student(name, "q4_0", True)
    file = load_file(qat.export(model, tmp_path) / "model.safetensors")
    for key in sorted(set(matrices(model)) & set(file)):
        module = model.get_submodule(key.rpartition(".")[0])
        if not isinstance(module, qat.FakeQuantLinear):
            continue
        levels, steps = module.packed()
        rows = file[key].float().numpy()
        blocks = lattice.recover(rows).weight.data.reshape(-1, 18)
        codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], 1)
        found = codes.astype(np.int64) - 8
        step = blocks[:, :2].copy().view(np.float16).astype(np.float64)
        want = levels.numpy().reshape(-1, 32).astype(np.int64)
        # Levels with a common factor, and a larger step, are the same weights.
        factor = np.maximum(np.gcd.reduce(want, axis=1, keepdims=True), 1)
        assert (factor > 1).mean() < 0.1
        np.testing.assert_array_equal(found, want // factor)
        nonzero = want.any(1)
        wide = steps.numpy().reshape(-1, 1).astype(np.float64) * factor
        # Of the float16 numbers that give the same bfloat16 weights it takes another.
        assert np.abs(step / wide - 1)[nonzero].max() < 2**-8


@pytest.mark.parametrize("name", tiny.NAMES)
def test_q4_0_is_an_ordinary_checkpoint(name: str, tmp_path: Path) -> None:
    model = student(name, "q4_0", True)
    loaded = load(qat.export(model, tmp_path))
    assert type(loaded) is type(model)
    made = matrices(model)
    for key, value in loaded.state_dict().items():
        want = made.get(key)
        if want is None and "experts" not in key:
            want = model.state_dict()[key]
        if want is not None:
            assert torch.equal(value, want.bfloat16().float()), key
    if not getattr(model.config, "enable_moe_block", False):
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_halfbyte_packs_it_without_loss(tmp_path: Path) -> None:
    model = student("e2b", "q4_0", True)
    folder = qat.export(model, tmp_path)
    whole = halfbyte.load(folder, threads=1, activations="f32")
    packed = halfbyte.load(folder, threads=1, activations="f32", quantize="q4_0")
    ids = IDS[0].tolist()
    want, got = whole.logits(ids), packed.logits(ids)
    # The steps are the same; bfloat16 rounds step * level, by 2^-9 of it, and Q4_0 does
    # not. A plain quantizer is off by a tenth of the largest logit.
    assert np.abs(got - want).max() <= 0.02 * np.abs(want).max()


def test_ggmls_steps_lie_on_the_lattice_of_both_signs(tmp_path: Path) -> None:
    model, plain = tiny.build("gemma3"), tiny.build("gemma3").state_dict()
    qat.ptq(model, step="ggml")
    file = load_file(qat.export(model, tmp_path) / "model.safetensors")
    for name in model.halfbyte_qat.swapped:
        weight = plain[f"{name}.weight"].numpy()
        want = halfbyte.dequantize(halfbyte.quantize(weight, "q4_0"))
        got = file[f"{name}.weight"]
        assert torch.equal(got, torch.from_numpy(want).bfloat16()), name
        assert lattice.recover(got.float().numpy()).on_lattice == 1.0


# ---- mobile


def modules_of(model: Any) -> dict[str, Any]:
    kinds = (gemma_quant.QuantizedLinear, gemma_quant.QuantizedEmbedding)
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds)}


def seen_by(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes into each layer on a grid, and what comes out."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(_: Any, args: Any, out: Tensor) -> None:
            seen[name] = (args[0].detach(), out.detach())

        return note

    hooks = [
        model.get_submodule(name).register_forward_hook(noting(name))
        for name in model.halfbyte_qat.swapped
    ]
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@each_packable
def test_transformers_computes_the_same(
    name: str, tables: bool, tmp_path: Path
) -> None:
    model = student(name, "mobile", tables)
    loaded = load(qat.export(model, tmp_path))
    packed, seen = modules_of(loaded), seen_by(model)
    assert set(packed) == set(model.halfbyte_qat.swapped) == set(seen)
    with torch.no_grad():
        for key, (x, want) in seen.items():
            assert torch.equal(packed[key](x), want), key
            if key.startswith("model.layers"):
                assert len(want.unique()) > 20, key
        whole = loaded(input_ids=IDS, use_cache=False).logits
        assert torch.equal(whole, model(input_ids=IDS, use_cache=False).logits)


@each_packable
def test_halfbyte_computes_the_same(name: str, tables: bool, tmp_path: Path) -> None:
    model = student(name, "mobile", tables)
    run = _core.Stages(halfbyte.load(qat.export(model, tmp_path), threads=1)._core)
    count = different = 0
    for key, (x, want) in seen_by(model).items():
        kind = KINDS.get(key.rpartition(".")[2])
        if kind is None:  # tables and the head: below
            continue
        step = np.float32(model.get_submodule(key).output_log_step.detach().exp())
        got = run.product(int(key.split(".")[2]), kind, x[0].numpy())
        codes, expected = np.rint(got / step), np.rint(want[0].numpy() / step)
        assert np.abs(got - codes * step).max() <= 1e-6 * np.abs(got).max(), key
        assert np.abs(codes - expected).max() <= 1, key
        count += codes.size
        different += int((codes != expected).sum())
    assert count > 10**5
    # Differences come of the last bit of one product and one quotient: test_mobile.py.
    assert different <= 1e-4 * count


@pytest.mark.parametrize("name", ["e2b", "e4b"])
def test_halfbyte_reads_the_tables(name: str, tmp_path: Path) -> None:
    model = student(name, "mobile", True)
    assert_tables_are_read(model, qat.export(model, tmp_path))


def assert_tables_are_read(model: Any, folder: Path) -> None:
    run = _core.Stages(halfbyte.load(folder, threads=1)._core)
    h, ple = run.inputs(IDS[0].numpy())
    streams, parts, hooks = [], [], []

    def note(_: Any, args: Any) -> None:
        streams.append(args[0][0])
        parts.append(args[1][0])

    for layer in model.model.layers:
        hooks.append(layer.register_forward_pre_hook(note))
    with torch.no_grad():
        model(input_ids=IDS[:1], use_cache=False)
    for hook in hooks:
        hook.remove()
    for got, want in ((h, streams[0]), (ple, torch.cat(parts, -1))):
        wrong = np.abs(got - want.numpy()).max()
        assert wrong <= 1e-6 * np.abs(want.numpy()).max()  # as test_mobile.py has it


def test_a_table_with_steps_of_each_layer(tmp_path: Path) -> None:
    # As in the releases; transformers 5.23 does not load it.
    model = tiny.rounded(tiny.build("e2b", wide=True))
    scheme = qat.mobile(model.config, per_layer_steps=True)
    qat.ptq(model, scheme, [IDS], embeddings=True, per_layer=True)
    assert_tables_are_read(model, qat.export(model, tmp_path))


@pytest.mark.parametrize("packed", [False, True])
def test_the_factor_of_bfloat16_tables(packed: bool) -> None:
    # The root of 96 is no bfloat16 number. Dense tables round it, packed ones do not.
    table = Gemma4TextScaledWordEmbedding(64, 96, 0, embed_scale=96**0.5).bfloat16()
    rng = np.random.default_rng(0)
    levels = torch.from_numpy(rng.integers(-8, 8, (64, 96)))
    levels[:, 0] = -8  # the step is found again, and is a power of two
    table.weight.data = (levels * 0.25).bfloat16()
    table.scalar_embed_scale = 96**0.5
    ids, grid = torch.arange(64), qat.Grid(4, None, False)
    fake = qat.FakeQuantEmbedding(table, grid, packed_factor=packed)
    fake.weight_log_step.data.fill_(np.log(0.25))
    want = table(ids)
    if packed:
        theirs = gemma_quant.QuantizedEmbedding(64, 96, torch.bfloat16, 96**0.5, 4)
        theirs.embedding_quantized.data = _pack(levels, 4)
        theirs.embedding_scale.data.fill_(0.25)
        assert not torch.equal(theirs(ids), want)
        want = theirs(ids)
    assert torch.equal(fake(ids), want)


def test_the_config_says_what_was_done(tmp_path: Path) -> None:
    model = student("e2b", "mobile", True)
    config = json.loads((qat.export(model, tmp_path) / "config.json").read_text())
    made = config["quantization_config"]
    assert made["quant_method"] == "gemma"
    assert made["quantize_embeddings"] is True
    assert made["modules_to_not_convert"] == ["per_layer_model_projection"]
    assert config["tie_word_embeddings"] is False
    assert config["architectures"] == ["Gemma4ForCausalLM"]
    assert config["dtype"] == "bfloat16"
    file = load_file(tmp_path / "model.safetensors")
    head, table = file["lm_head.weight"], file["model.embed_tokens.embedding_quantized"]
    assert torch.equal(head, table)  # a copy, as in the releases
    assert float(file["lm_head.input_activation_scale"]) == 0
    assert file["model.layers.0.per_layer_projection.weight"].dtype == torch.int8


def test_a_model_without_a_head_reads_it_too(tmp_path: Path) -> None:
    qat.export(student("e2b", "mobile", True), tmp_path)
    bare = AutoModel.from_pretrained(tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path)
    got, want = (m(IDS, output_hidden_states=True) for m in (bare, whole))
    assert torch.equal(got.last_hidden_state, want.hidden_states[-1])


def test_ends_and_sampling_are_taken_along(tmp_path: Path) -> None:
    model = student("gemma3", "q4_0", False)
    model.generation_config.update(eos_token_id=[1, 6], do_sample=True, top_k=7)
    qat.export(model, tmp_path)
    assert halfbyte.load(tmp_path).sampling["top_k"] == 7
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config.eos_token_id == [1, 6]


def test_what_is_in_training_is_not_saved_as_it_is(tmp_path: Path) -> None:
    model = student("gemma3", "q4_0", False)
    for one in (model, copy.deepcopy(model)):
        with pytest.raises(
            errors.UnsupportedError, match=r"halfbyte\.qat\.export writes it"
        ):
            one.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_packing_is_that_of_the_schema() -> None:
    # The first level lies in the low bits.
    assert _pack(torch.tensor([[-8, 7]]), 4).tolist() == [[0xF0]]
    assert _pack(torch.tensor([[-2, -1, 0, 1]]), 2).tolist() == [[0xE4]]


# ---- multimodal classes, tokenizers, refusals


@pytest.mark.parametrize("scheme", ["q4_0", "mobile"])
def test_the_class_of_the_releases(scheme: str, tmp_path: Path) -> None:
    text = tiny.rounded(tiny.build("e2b", wide=True))
    config = Gemma4Config(
        text_config=text.config.to_dict(), vision_config=None, audio_config=None
    )
    config._attn_implementation = "eager"
    model = Gemma4ForConditionalGeneration(config).float().eval()
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    trained(model, scheme, tables=True)
    folder = qat.export(model, tmp_path)
    names = load_file(folder / "model.safetensors")
    assert "model.language_model.layers.0.input_layernorm.weight" in names
    loaded = load(folder)
    assert type(loaded) is Gemma4ForConditionalGeneration
    with torch.no_grad():
        got, want = (m(input_ids=IDS, use_cache=False).logits for m in (loaded, model))
    if scheme == "mobile":
        assert torch.equal(got, want)
    else:  # weights are rounded to bfloat16, by 2^-9 of each, through twelve layers
        assert (got - want).abs().max() <= 0.1 * want.abs().max()
    ours = halfbyte.load(folder, threads=1).logits(IDS[0].tolist())
    assert (ours.argmax(-1) == want[0].numpy().argmax(-1)).mean() > 0.9


def test_a_tokenizer_is_taken_along(tmp_path: Path) -> None:
    source = tiny.save_hf(tiny.build("gemma3"), tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    qat.prepare(model)
    want = (source / "tokenizer.json").read_bytes()
    for where, given in (("own", None), ("path", source)):
        folder = qat.export(model, tmp_path / where, tokenizer=given)
        assert (folder / "tokenizer.json").read_bytes() == want
    ours = halfbyte.load(tmp_path / "own", threads=1)
    assert ours.tokenizer.encode("the king") != []
    loaded = load(tmp_path / "own")
    assert qat.compare(loaded, model, IDS)["kl"] < 1e-3


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    model = tiny.build("gemma3")
    with pytest.raises(errors.ArgumentError, match=r"call halfbyte\.qat\.prepare"):
        qat.export(model, tmp_path)
    qat.prepare(model, qat.Scheme("own", qat.Grid(4, 16)))
    with pytest.raises(
        errors.ArgumentError, match="a tokenizer or a directory, got no"
    ):
        qat.export(model, tmp_path / "new", tokenizer="nowhere")
    with pytest.raises(errors.UnsupportedError, match="q4_0 or mobile, got own"):
        qat.export(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
