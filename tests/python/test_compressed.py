# tests/python/test_compressed.py
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of compressed-tensors, against the floats that they stand for.

The library writes them. The oracle is the float forward over codes times scales, which
float32 holds exactly: a code has 4 bits and a bfloat16 8. Bounds are those of
`test_logits.py`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import compressed
import float_forward
import halfbyte
import numpy as np
import pytest
import tiny
import torch
from compressed_tensors.quantization import QuantizationArgs
from halfbyte import _core, errors
from numpy.typing import NDArray
from refusal import refused
from test_logits import CLOSE, EVERY, IDS, distance
from transformers import AutoModelForCausalLM

GEMMA4 = [name for name in tiny.NAMES if name != "gemma3"]
Q = "model.layers.1.self_attn.q_proj."


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.delenv("HALFBYTE_ACTIVATIONS", raising=False)


@cache
def source(name: str) -> Any:
    return tiny.build(name, wide=True)


@cache
def w4a16(name: str) -> tuple[compressed.Tensors, dict[str, Any]]:
    return compressed.compress(source(name), [compressed.group(["Linear"], 4, 32)])


def quantised(tensors: compressed.Tensors) -> frozenset[str]:
    """Names of the packed matrices, as `float_forward` calls them."""
    return frozenset(
        name.removeprefix("model.").removesuffix("_scale")
        for name in tensors
        if name.endswith("weight_scale")
    )


def logits(folder: Path, **options: Any) -> NDArray[np.float32]:
    return halfbyte.load(folder, threads=1, **options).logits(IDS)


@pytest.mark.parametrize("repack", ["always", "never"])
@pytest.mark.parametrize("name", EVERY[:-1])
def test_int4_in_groups_of_32(name: str, repack: str, tmp_path: Path) -> None:
    tensors, config = w4a16(name)
    compressed.save(source(name), tmp_path, tensors, config)
    dense = compressed.expand(source(name), tensors, config)
    assert len(quantised(tensors)) > 20
    exact = float_forward.exact_logits(dense, IDS)
    assert distance(logits(tmp_path, activations="f32"), exact) <= CLOSE
    noise = float_forward.activation_noise(dense, IDS, quantised(tensors))
    scores = noise.score(logits(tmp_path, repack=repack))
    assert (scores < noise.limits).all(), (scores, noise.limits)


@pytest.mark.parametrize(
    ("form", "bits"),
    [("pack-quantized", 4), ("pack-quantized", 8), ("int-quantized", 8)],
)
@pytest.mark.parametrize("name", ["e2b", "31b"])
def test_one_scale_a_row(name: str, form: str, bits: int, tmp_path: Path) -> None:
    schemes = [compressed.group(["Linear"], bits)]
    tensors, config = compressed.compress(source(name), schemes, form=form)
    assert tensors[Q + "weight_scale"].shape[1] == 1
    compressed.save(source(name), tmp_path, tensors, config)
    dense = compressed.expand(source(name), tensors, config)
    exact = float_forward.exact_logits(dense, IDS)
    assert distance(logits(tmp_path, activations="f32"), exact) <= CLOSE
    noise = float_forward.activation_noise(dense, IDS, quantised(tensors), block=None)
    for repack in ("always", "never"):
        scores = noise.score(logits(tmp_path, repack=repack))
        assert (scores < noise.limits).all(), (scores, noise.limits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_wider_groups_and_both_16_bit_scales(
    size: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    # Rows of the per-layer projection hold 64 weights: what a group does not fit is
    # told by the library to stay as it is.
    ignore = [*compressed.IGNORE, "re:.*per_layer_projection"]
    schemes = [compressed.group(["Linear"], 4, size)]
    tensors, config = compressed.compress(
        source("e2b"), schemes, ignore=ignore, dtype=dtype
    )
    compressed.save(source("e2b"), tmp_path, tensors, config)
    dense = compressed.expand(source("e2b"), tensors, config)
    exact = float_forward.exact_logits(dense, IDS)
    assert distance(logits(tmp_path, activations="f32"), exact) <= CLOSE


def test_targets_and_ignored_names(tmp_path: Path) -> None:
    """Three widths in one model, by class, by pattern and by name, and some left out."""
    schemes = [
        compressed.group(["re:.*mlp.*"], 4, 32),
        compressed.group([Q.removesuffix(".")], 8),
        compressed.group(["re:.*self_attn.(q|k|v)_proj"], 2),
    ]
    ignore = ["lm_head", "re:.*layers.0.*", "model.layers.2.mlp.up_proj"]
    tensors, config = compressed.compress(source("12b"), schemes, ignore=ignore)
    packed = quantised(tensors)
    assert "layers.2.mlp.up_proj.weight" not in packed
    assert "layers.2.mlp.gate_proj.weight" in packed
    assert not any(name.startswith("layers.0.") for name in packed)
    widths = {
        k: 32 * v.shape[1] // 256 for k, v in tensors.items() if "q_proj.weight_p" in k
    }
    assert set(widths.values()) == {2, 8}
    compressed.save(source("12b"), tmp_path, tensors, config)
    dense = compressed.expand(source("12b"), tensors, config)
    exact = float_forward.exact_logits(dense, IDS)
    assert distance(logits(tmp_path, activations="f32"), exact) <= CLOSE


def test_transformers_reads_the_same_file(tmp_path: Path) -> None:
    tensors, config = w4a16("e4b")
    compressed.save(source("e4b"), tmp_path, tensors, config)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    loaded.set_attn_implementation("eager")
    # It multiplies codes and scales in the type of the scales, bfloat16: each weight
    # is rounded to 8 bits. So the two are near, not equal.
    theirs = tiny.reference_logits(loaded.eval(), IDS)
    ours = logits(tmp_path, activations="f32")
    assert distance(ours, theirs) < 0.05


@pytest.mark.parametrize("status", ["decompressed", "compressed"])
def test_decompressed_files(status: str, tmp_path: Path) -> None:
    """After a forward, the library saves dense weights under the same config."""
    tensors, config = w4a16("e4b")
    model = tiny.rounded(compressed.expand(source("e4b"), tensors, config))
    state = {"model." + k: v.bfloat16() for k, v in tiny.weights(model).items()}
    config = config | {"quantization_status": status}
    compressed.save(source("e4b"), tmp_path, state, config)
    exact = float_forward.exact_logits(model, IDS)
    assert distance(logits(tmp_path), exact) <= CLOSE


def test_steps_of_activations(tmp_path: Path) -> None:
    """The mobile checkpoints in this form have steps where they were calibrated."""
    tensors, config = compressed.compress(
        source("31b"), [compressed.group(["Linear"], 4)]
    )
    static = QuantizationArgs(num_bits=8, symmetric=True, strategy="tensor")
    for side in ("input_activations", "output_activations"):
        config["config_groups"]["group_0"][side] = static.model_dump(mode="json")
    steps = {
        Q + "input_scale": torch.tensor([0.05]),
        Q + "output_scale": torch.tensor(0.11),
    }
    compressed.save(source("31b"), tmp_path, tensors | steps, config)
    model = halfbyte.load(tmp_path, threads=1, activations="static")
    dense = compressed.expand(source("31b"), tensors, config)
    weight = dense.model.layers[1].self_attn.q_proj.weight.detach().double().numpy()
    x = np.random.default_rng(0).standard_normal((9, 256)).astype(np.float32)
    codes = np.clip(np.rint(x / np.float32(0.05)), -128, 127) * np.float32(0.05)
    want = np.clip(np.rint(codes.astype(np.float64) @ weight.T / 0.11), -128, 127)
    got = _core.Stages(model._core).product(1, "q", x) / np.float32(0.11)
    assert np.abs(np.rint(got) - want).max() <= 1
    assert (np.rint(got) == want).mean() > 0.999


# --- Files that would load and be wrong ------------------------------------------------

HOSTILE: dict[str, tuple[str, Any, str]] = {
    "no codes": ("weight_packed", None, "MODEL_MISSING_TENSOR"),
    "no scale": ("weight_scale", None, "MODEL_MISSING_TENSOR"),
    "no shape": ("weight_shape", None, "MODEL_MISSING_TENSOR"),
    "cut codes": ("weight_packed", lambda t: t[:, :-1], "MODEL_SHAPE"),
    "bytes": ("weight_packed", lambda t: t.view(torch.uint8), "MODEL_SHAPE"),
    "another shape": ("weight_shape", lambda t: t + 1, "MODEL_SHAPE"),
    "short shape": ("weight_shape", lambda t: t[:1], "MODEL_SHAPE"),
    "narrow shape": ("weight_shape", lambda t: t.int(), "MODEL_SHAPE"),
    "groups of 16": (
        "weight_scale",
        lambda t: t.repeat_interleave(2, 1),
        "MODEL_SHAPE",
    ),
    "groups that do not divide": ("weight_scale", lambda t: t[:, :7], "MODEL_SHAPE"),
    "fewer rows": ("weight_scale", lambda t: t[:-1], "MODEL_SHAPE"),
    "wide scales": ("weight_scale", lambda t: t.float(), "MODEL_QUANTIZATION"),
    "NaN": ("weight_scale", lambda t: t * float("nan"), "MODEL_SCALE"),
    "negative": ("weight_scale", lambda t: -t, "MODEL_SCALE"),
    "zero points": (
        "weight_zero_point",
        lambda _: torch.zeros(32, 8, dtype=torch.int32),
        "MODEL_QUANTIZATION",
    ),
    "an order of columns": (
        "weight_g_idx",
        lambda _: torch.arange(256, dtype=torch.int32),
        "MODEL_QUANTIZATION",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_broken_tensor_is_named(case: str, tmp_path: Path) -> None:
    last, change, code = HOSTILE[case]
    tensors, config = w4a16("12b")
    tensors = dict(tensors)
    old = tensors.pop(Q + last, None)
    if change is not None:
        tensors[Q + last] = change(None if old is None else old.clone())
    compressed.save(source("12b"), tmp_path, tensors, config)
    error = refused(halfbyte.load, tmp_path)
    assert isinstance(error, errors.ModelError)
    assert (error.code, error.tensor) == (code, Q + last)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            {"format": "nvfp4-pack-quantized"},
            "'quantization_config.format': found 'nvfp4-pack-quantized'",
        ),
        ({"weights": {"type": "float"}}, "'float'"),
        ({"weights": {"symmetric": False}}, "zero points"),
        ({"weights": {"num_bits": 3}}, "2, 4 or 8"),
        ({"input_activations": {"num_bits": 4, "type": "int"}}, "num_bits"),
        ({"input_activations": {"num_bits": 8, "type": "float"}}, "'float'"),
        (
            {"group format": "mxfp4-pack-quantized"},
            "config_groups.format': found 'mxfp4",
        ),
    ],
)
def test_other_schemes_are_refused(
    change: dict[str, Any], part: str, tmp_path: Path
) -> None:
    tensors, config = w4a16("12b")
    config = json.loads(json.dumps(config))
    group = config["config_groups"]["group_0"]
    for key, value in change.items():
        if key == "format":
            config[key] = value
        elif key == "group format":
            group["format"] = value
        elif group.get(key):
            group[key] |= value
        else:
            group[key] = value
    compressed.save(source("12b"), tmp_path, tensors, config)
    error = refused(halfbyte.load, tmp_path)
    assert error.code in ("MODEL_QUANTIZATION", "MODEL_HPARAM")
    assert error.key.startswith("quantization_config.")
    assert part in str(error)
