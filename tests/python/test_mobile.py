# tests/python/test_mobile.py
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the mobile schema, against transformers' own quantised modules.

Every activation is rounded to a code, and a value between two codes falls to either
side by the last bit of a float: two right implementations differ there by one code, and
the difference grows from layer to layer. So a whole model is never compared, but each
part of it from the reference's own input:

* a linear layer computes an exact integer sum. The reference's float32 sums of up to
  512 products of codes below 2^11 are exact too, so only the last multiplication and
  division differ, by 2^-22 at most: a code differs with a probability of about 1e-5,
  and by 1. Asked for: 99.99 % equal.
* a layer differs by float noise (2e-7 of its largest value is seen on every
  instruction set, 1e-6 allowed) but in the rows that such a code reaches: its own row,
  or those that attend to a key or value with it. Half of every layer's rows and 90 % of
  all are asked to be out of reach; in the others one code of hundreds makes about 1 %,
  and 5 % is allowed.
* the head's input is rounded by its own range here and not at all there: half a step of
  the input times the sum of the weights' magnitudes.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import halfbyte
import mobile
import numpy as np
import pytest
import tiny
import torch
from halfbyte import _core, errors
from halfbyte.transformers.sessions import CACHE_NAME
from numpy.typing import NDArray
from refusal import refused
from transformers import AutoModelForCausalLM, DynamicCache

IDS = tiny.prompt(100)
NAMES = ["e2b", "e4b"]
KINDS = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "per_layer_input_gate": "ple_gate",
    "per_layer_projection": "ple_proj",
}

F32 = NDArray[np.float32]
Pair = tuple[F32, F32]


class Trace(NamedTuple):
    """What went into the reference's parts, and what came out."""

    linears: dict[str, Pair]
    layers: list[tuple[F32, F32, F32]]  # stream, per-layer input, stream after it
    head: Pair  # the stream before the last norm, and the logits
    normed: F32  # the input of the head itself


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.delenv("HALFBYTE_ACTIVATIONS", raising=False)


@cache
def reference(name: str, ple_blocks: bool = True) -> Any:
    return mobile.build(name, ple_blocks=ple_blocks)


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mobile.save(reference(name), tmp_path_factory.mktemp(name), name)


@cache
def trace(name: str) -> Trace:
    """Run the reference once and note what its parts saw."""
    model, text = reference(name), reference(name).model.language_model
    linears: dict[str, Pair] = {}
    layers: list[list[F32]] = []
    ends: dict[str, F32] = {}
    hooks = []

    def of(x: torch.Tensor) -> F32:
        return np.array(x.detach()[0].numpy())

    for key, module in mobile.linears(model).items():

        def note(_: Any, args: Any, out: Any, key: str = key) -> None:
            linears[key] = (of(args[0]), of(out))

        hooks.append(module.register_forward_hook(note))
    for layer in text.layers:
        before = layer.register_forward_pre_hook(
            lambda _, args: layers.append([of(args[0]), of(args[1])])
        )
        after = layer.register_forward_hook(
            lambda _, __, out: layers[-1].append(of(out))
        )
        hooks += [before, after]
    hooks.append(
        text.norm.register_forward_hook(
            lambda _, args, out: ends.update(stream=of(args[0]), normed=of(out))
        )
    )
    logits = mobile.logits(model, IDS)
    for hook in hooks:
        hook.remove()
    done = [(a, b, c) for a, b, c in layers]
    return Trace(linears, done, (ends["stream"], logits), ends["normed"])


def stages(folder: Path, **options: Any) -> Any:
    return _core.Stages(halfbyte.load(folder, threads=1, **options)._core)


def noise(got: F32, want: F32) -> NDArray[np.float64]:
    """Return the largest difference of each row, as a part of the largest value."""
    difference = np.abs(got.astype(np.float64) - want).max(-1)
    return np.asarray(difference / np.abs(want).max())


# --- Part by part ----------------------------------------------------------------------


@pytest.mark.parametrize("repack", ["always", "never"])
def test_linear_layers_give_the_same_codes(
    name: str, folder: Path, repack: str
) -> None:
    run, count, different = stages(folder, repack=repack), 0, 0
    for key, module in mobile.linears(reference(name)).items():
        step = np.float32(module.output_activation_scale)
        x, want = trace(name).linears[key]
        layer, kind = int(key.split(".")[1]), KINDS[key.split(".")[-1]]
        got = run.product(layer, kind, x)
        codes, expected = np.rint(got / step), np.rint(want / step)
        assert np.abs(got - codes * step).max() <= 1e-6 * np.abs(got).max(), key
        assert codes.min() >= -128, key
        assert codes.max() <= 127, key
        assert len(np.unique(expected)) > 100, key
        assert np.abs(codes - expected).max() <= 1, key
        count += codes.size
        different += int((codes != expected).sum())
    assert count > 10**6
    assert different <= 1e-4 * count


def test_inputs_equal(name: str, folder: Path) -> None:
    h, ple = stages(folder).inputs(np.array(IDS))
    layers = trace(name).layers
    assert noise(h, layers[0][0]).max() <= 1e-6
    want = np.concatenate([part for _, part, _ in layers], axis=1)
    assert noise(ple, want).max() <= 1e-6


def test_layers_equal(name: str, folder: Path) -> None:
    run, reached = stages(folder), 0
    for i, (h, ple, want) in enumerate(trace(name).layers):
        rows = noise(run.layer(i, h, ple), want)
        assert rows.max() <= 0.05, i
        assert np.median(rows) <= 1e-6, i
        reached += int((rows > 1e-6).sum())
    assert reached <= 0.1 * len(IDS) * len(trace(name).layers)


def test_head(name: str, folder: Path) -> None:
    h, want = trace(name).head
    assert noise(stages(folder, activations="f32").head(h), want).max() <= 1e-5
    weights = reference(name).lm_head._dequantize_weights().numpy()
    half_step = np.abs(trace(name).normed).max(-1, keepdims=True) / 254
    bound = half_step * np.abs(weights).sum(-1)  # the soft cap makes it no larger
    error = np.abs(stages(folder).head(h) - want)
    assert (error <= bound * (1 + 1e-4)).all()
    assert error.max() > 1e-3


def test_the_tokens_agree(
    name: str, folder: Path, record_property: pytest.RecordProperty
) -> None:
    # Only reported: what differs at a tie has no bound. Parts that were joined in the
    # wrong way would agree by chance, one time in 512.
    ref = reference(name)
    ours = halfbyte.load(folder, threads=1).logits(IDS).argmax(-1)
    whole = trace(name).head[1].argmax(-1)
    past, steps = {}, []
    with torch.no_grad():
        for token in IDS:
            out = ref(
                input_ids=torch.tensor([[token]]),
                use_cache=True,
                **past,
            )
            past = {CACHE_NAME: out[CACHE_NAME]}
            steps.append(int(out.logits[0, -1].argmax()))
    record_property("top-1 of ours", float((ours == whole).mean()))
    record_property("top-1 of its own decoding", float((steps == whole).mean()))
    assert (ours == whole).mean() > 0.5


# --- What is read, and how it is chosen ------------------------------------------------


def test_transformers_reads_the_same_file(name: str, tmp_path: Path) -> None:
    # With a scale a row on the table: stock transformers refuses one a block.
    ref = reference(name, ple_blocks=False)
    mobile.save(ref, tmp_path, name)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    loaded.set_attn_implementation("eager")
    logits = mobile.logits(loaded.eval(), IDS)
    np.testing.assert_array_equal(logits, mobile.logits(ref, IDS))
    run = stages(tmp_path)
    ple = run.inputs(np.array(IDS))[1]
    text = ref.model.language_model
    with torch.no_grad():
        ids = torch.tensor([IDS])
        rows = text.get_per_layer_inputs(ids, None)
        want = text.project_per_layer_inputs(text.embed_tokens(ids), rows)
    assert noise(ple, want[0].flatten(1).numpy()).max() <= 1e-6


def test_kv_scales(name: str, folder: Path) -> None:
    model = halfbyte.load(folder, threads=1)
    written = mobile.kv_scales(reference(name))
    for layer, scales in enumerate(model.kv_scales):
        base = f"{mobile.ROOT}layers.{layer}.self_attn."
        assert scales == (
            float(written[base + "k_cache_scale"]),
            float(written[base + "v_cache_scale"]),
        )


class _RoundedCache(DynamicCache):
    """Keys and values as the checkpoint was trained to keep them, in 8 bits."""

    def __init__(self, model: Any, sixteenth: float) -> None:
        super().__init__(config=model.config.text_config)
        self.steps = mobile.kv_scales(model)
        self.kinds = model.config.text_config.layer_types
        self.sixteenth = sixteenth

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        part = 1.0 if self.kinds[layer] == "sliding_attention" else self.sixteenth
        base = f"{mobile.ROOT}layers.{layer}.self_attn."
        rounded = []
        for x, name in ((key, "k_cache_scale"), (value, "v_cache_scale")):
            step = part * self.steps[base + name]
            rounded.append((x / step).round().clamp(-128, 127) * step)
        return super().update(*rounded, layer)


def test_a_cache_in_8_bits_has_the_trained_steps(name: str, folder: Path) -> None:
    """As `test_8_bit_cache` of the float models: off by codes at ties alone.

    Activations are rounded as well, whose ties are as many.
    """
    model = reference(name)

    def by_reference(sixteenth: float) -> F32:
        cache = _RoundedCache(model, sixteenth)
        return mobile.logits(model, IDS, use_cache=True, **{CACHE_NAME: cache})

    got = halfbyte.load(folder, threads=1, kv="int8").logits(IDS)
    want, coarse = by_reference(1 / 16), by_reference(1.0)
    cost = np.sqrt(np.mean((mobile.logits(model, IDS) - want) ** 2))
    assert np.sqrt(np.mean((got - want) ** 2)) < cost / 4
    assert np.sqrt(np.mean((got - coarse) ** 2)) > cost / 4
    dynamic = halfbyte.load(folder, threads=1, kv="int8", activations="dynamic")
    floats = halfbyte.load(folder, threads=1, activations="dynamic").logits(IDS)
    off = np.sqrt(np.mean((dynamic.logits(IDS) - floats) ** 2))
    assert 0 < off < cost / 4


def test_without_kv_scales(folder: Path, name: str, tmp_path: Path) -> None:
    gone = dict.fromkeys(mobile.kv_scales(reference(name)))
    mobile.save(reference(name), tmp_path, name, replace=gone)
    model = halfbyte.load(tmp_path, threads=1)
    assert set(model.kv_scales) == {None}
    np.testing.assert_array_equal(
        model.logits(IDS), halfbyte.load(folder, threads=1).logits(IDS)
    )


def test_steps_are_used_required_or_dropped(name: str, folder: Path) -> None:
    x, want = trace(name).linears["layers.3.mlp.down_proj"]
    module = mobile.linears(reference(name))["layers.3.mlp.down_proj"]
    exact = x.astype(np.float64) @ module._dequantize_weights().double().numpy().T
    results = {}
    for mode in ("auto", "static", "dynamic", "f32"):
        model = halfbyte.load(folder, threads=1, activations=mode)
        results[mode] = _core.Stages(model._core).product(3, "down", x)
        assert model.report().activations == {"auto": "static"}.get(mode, mode)
    np.testing.assert_array_equal(results["auto"], results["static"])
    assert noise(results["f32"], exact.astype(np.float32)).max() <= 1e-6
    # Codes of the rows' own ranges: half a step an input, and not one more.
    weights = np.abs(module._dequantize_weights().numpy()).sum(-1)
    bound = np.abs(x).max(-1, keepdims=True) / 254 * weights * (1 + 1e-4)
    assert (np.abs(results["dynamic"] - exact) <= bound).all()
    assert (
        np.abs(results["auto"] - want).max() < np.abs(results["dynamic"] - want).max()
    )
    dynamic = halfbyte.load(folder, threads=1, activations="dynamic").logits(IDS)
    assert noise(dynamic, trace(name).head[1]).max() > 0.01


def test_the_projection_of_per_layer_embeddings_has_steps_too(
    name: str, tmp_path: Path
) -> None:
    # Released files keep it in bfloat16; another one need not.
    base = mobile.ROOT + "per_layer_model_projection."
    weight = mobile.tensors(reference(name))[base + "weight"].float()
    scale = weight.abs().amax(-1, keepdim=True) / 127
    packed = {
        base + "weight": torch.round(weight / scale).to(torch.int8),
        base + "weight_scale": scale,
    }
    found = {}
    for step in 0.0, 0.5:
        packed[base + "input_activation_scale"] = torch.tensor(step)
        packed[base + "output_activation_scale"] = torch.tensor(step)
        path = mobile.save(reference(name), tmp_path / str(step), name, replace=packed)
        for mode in ("static", "dynamic", "f32"):
            model = halfbyte.load(path, threads=1, activations=mode)
            found[step, mode] = model.logits(IDS)
    assert (found[0.0, "static"] != found[0.5, "static"]).any()
    for mode in ("dynamic", "f32"):
        np.testing.assert_array_equal(found[0.5, mode], found[0.0, mode])


def test_static_needs_steps(tiny_gguf: Any) -> None:
    with pytest.raises(errors.ModelError, match="activations=auto") as caught:
        halfbyte.load(tiny_gguf(), activations="static")
    assert caught.value.code == "MODEL_STEPS"
    with pytest.raises(errors.ArgumentError, match="auto, static, dynamic, f32"):
        halfbyte.load(tiny_gguf(), activations="int4")


def test_an_embedding_serves_as_head(name: str, folder: Path, tmp_path: Path) -> None:
    # In the files the head is a copy of the embedding, with steps of 0.
    keys = [key for key in mobile.tensors(reference(name)) if "lm_head" in key]
    mobile.save(reference(name), tmp_path, name, replace=dict.fromkeys(keys))
    h = trace(name).head[0]
    np.testing.assert_array_equal(stages(tmp_path).head(h), stages(folder).head(h))


def test_the_same_integers_as_compressed_tensors(name: str, tmp_path: Path) -> None:
    # That form has its scales in bfloat16: given the same ones, it has the same bits.
    ref = reference(name)
    scales = {
        key: value.bfloat16().float()
        for key, value in mobile.tensors(ref).items()
        if key.endswith(("weight_scale", "embedding_scale")) and "tower" not in key
    }
    mobile.save(ref, tmp_path / "mobile", name, replace=scales)
    mobile.save(ref, tmp_path / "other", name, rewrap=True)
    other = halfbyte.load(tmp_path / "other", threads=1, activations="static")
    np.testing.assert_array_equal(
        other.logits(IDS), halfbyte.load(tmp_path / "mobile", threads=1).logits(IDS)
    )
    assert set(other.kv_scales) == {None}


# --- Files that would load and be wrong ------------------------------------------------

Q = mobile.ROOT + "layers.3.self_attn.q_proj."
EMBED = mobile.ROOT + "embed_tokens."
PLE = mobile.ROOT + "embed_tokens_per_layer."
NAN, INF = float("nan"), float("inf")


def broken(key: str, change: Any) -> dict[str, torch.Tensor]:
    return {key: change(mobile.tensors(reference("e2b"))[key].clone())}


def one(value: float) -> Any:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


HOSTILE: dict[str, tuple[str, Any, str]] = {
    "cut columns": (Q + "weight", lambda t: t[:, :-1], "MODEL_SHAPE"),
    "three bits": (Q + "weight", lambda t: t[:, : 256 * 3 // 8], "MODEL_SHAPE"),
    "missing rows": (Q + "weight", lambda t: t[:-1], "MODEL_SHAPE"),
    "signed codes": (Q + "weight", lambda t: t.to(torch.int8), "MODEL_SHAPE"),
    "codes of one dimension": (Q + "weight", lambda t: t.flatten(), "MODEL_SHAPE"),
    "floats beside scales": (Q + "weight", lambda t: t.float(), "MODEL_SHAPE"),
    "no codes": (Q + "weight", None, "MODEL_MISSING_TENSOR"),
    "no scale": (Q + "weight_scale", None, "MODEL_MISSING_TENSOR"),
    "no input step": (Q + "input_activation_scale", None, "MODEL_MISSING_TENSOR"),
    "no output step": (Q + "output_activation_scale", None, "MODEL_MISSING_TENSOR"),
    "scale of one dimension": (Q + "weight_scale", lambda t: t[:, 0], "MODEL_SHAPE"),
    "codes as scale": (Q + "weight_scale", lambda t: t.to(torch.uint8), "MODEL_TYPE"),
    "negative scale": (Q + "weight_scale", one(-1.0), "MODEL_SCALE"),
    "NaN scale": (Q + "weight_scale", one(NAN), "MODEL_SCALE"),
    "infinite scale": (Q + "weight_scale", one(INF), "MODEL_SCALE"),
    "NaN step": (Q + "input_activation_scale", one(NAN), "MODEL_SCALE"),
    "negative step": (Q + "output_activation_scale", one(-1e-9), "MODEL_SCALE"),
    "steps a row": (
        Q + "output_activation_scale",
        lambda t: t.repeat(4),
        "MODEL_SHAPE",
    ),
    "NaN in the cache's step": (
        mobile.ROOT + "layers.2.self_attn.v_cache_scale",
        one(NAN),
        "MODEL_SCALE",
    ),
    "no embedding": (EMBED + "embedding_quantized", None, "MODEL_MISSING_TENSOR"),
    "no embedding scale": (EMBED + "embedding_scale", None, "MODEL_MISSING_TENSOR"),
    "NaN embedding scale": (EMBED + "embedding_scale", one(NAN), "MODEL_SCALE"),
    "NaN in the table": (PLE + "embedding_scale", one(NAN), "MODEL_SCALE"),
    "blocks of the table": (
        PLE + "embedding_scale",
        lambda t: t[:, :-1],
        "MODEL_SHAPE",
    ),
    "cut table": (PLE + "embedding_quantized", lambda t: t[:, :-2], "MODEL_SHAPE"),
    "NaN head scale": ("lm_head.weight_scale", one(NAN), "MODEL_SCALE"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_broken_tensor_is_named(case: str, tmp_path: Path) -> None:
    key, change, code = HOSTILE[case]
    replace = {key: None} if change is None else broken(key, change)
    mobile.save(reference("e2b"), tmp_path, "e2b", replace=replace)
    error = refused(halfbyte.load, tmp_path)
    assert isinstance(error, errors.ModelError)
    assert (error.code, error.tensor) == (code, key)
    assert key in str(error)
    assert error.path == str(tmp_path)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path) not in maps.read_text()


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        ({"num_bits": 3}, "MODEL_HPARAM", "quantization_config.num_bits"),
        ({"num_bits": "4"}, "MODEL_HPARAM", "quantization_config.num_bits"),
        ({"num_bits": -4}, "MODEL_HPARAM", "quantization_config.num_bits"),
        (
            {"module_quant_configs": {"(a+)+$": {"num_bits": 16}}},
            "MODEL_HPARAM",
            "module_quant_configs",
        ),
        ({"module_quant_configs": None}, "MODEL_WIDTH", "2 bits by its shape"),
        ({"quant_method": "gemma9"}, "MODEL_QUANTIZATION", "gemma9"),
        ({"quant_method": None}, "MODEL_QUANTIZATION", "quant_method"),
        ({"quant_method": "gptq\n"}, "MODEL_QUANTIZATION", r"gptq\x0A"),
    ],
)
def test_a_broken_config_is_named(
    change: dict[str, Any], code: str, part: str, tmp_path: Path
) -> None:
    mobile.save(reference("e2b"), tmp_path, "e2b", config=change)
    error = refused(halfbyte.load, tmp_path)
    assert error.code == code
    assert part in str(error)


def test_codes_without_a_quantization_config_are_refused(tmp_path: Path) -> None:
    mobile.save(reference("e2b"), tmp_path, "e2b")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    error = refused(halfbyte.load, tmp_path)
    assert error.code == "MODEL_MISSING_TENSOR"


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("../outside.safetensors", "IDX_SHARD_NAME"),
        ("/etc/passwd", "IDX_SHARD_NAME"),
        ("gone.safetensors", "IDX_SHARD_MISSING"),
    ],
)
def test_a_shard_elsewhere_or_nowhere_is_refused(
    file: str, code: str, tmp_path: Path
) -> None:
    folder = mobile.save(reference("e2b"), tmp_path / "model", "e2b")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = mobile.tensors(reference("e2b"))
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    error = refused(halfbyte.load, folder)
    assert isinstance(error, errors.FormatError)
    assert error.code == code
    assert error.tensor in names


def test_unaligned_tensors(folder: Path, name: str, tmp_path: Path) -> None:
    """A header one byte longer moves every tensor to an odd place."""
    mobile.save(reference(name), tmp_path, name)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" ")
    with path.open("ab") as out:
        out.write(data[8 + length :])
    np.testing.assert_array_equal(
        halfbyte.load(tmp_path, threads=1).logits(IDS),
        halfbyte.load(folder, threads=1).logits(IDS),
    )
