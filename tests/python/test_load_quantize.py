# tests/python/test_load_quantize.py
# SPDX-License-Identifier: Apache-2.0
"""Float checkpoints that are rounded to a format as they are loaded.

The oracle is the float forward over what `halfbyte.quantize` makes of each matrix;
bounds are those of `test_logits.py`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import float_forward
import halfbyte
import pytest
import tiny
import torch
from halfbyte import errors
from halfbyte.formats import format_info
from test_logits import CLOSE, IDS, distance
from test_memory import MIB, measured

FORMATS = ["q4_0", "q8_0", "q6_k", "w4g32"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.delenv("HALFBYTE_ACTIVATIONS", raising=False)


def rounded(weight: torch.Tensor, fmt: str) -> torch.Tensor:
    """Return a matrix, or each of several, as its packed form decodes."""
    rows = weight.detach().reshape(-1, weight.shape[-1]).numpy()
    return torch.from_numpy(halfbyte.quantize(rows, fmt).dequantize()).view_as(weight)


def oracle(model: Any, fmt: str) -> tuple[Any, frozenset[str]]:
    """Round what belongs to be rounded; the twin, and the names of its matrices."""
    twin, names = copy.deepcopy(model), {"lm_head.weight"}
    head = rounded(model.model.embed_tokens.weight, fmt)
    twin.lm_head.weight = torch.nn.Parameter(head)
    block_len = format_info(fmt).block_len
    for key, value in twin.model.state_dict().items():
        matrix = value.ndim >= 2 and key.startswith("layers.")
        if matrix and "router" not in key and value.shape[-1] % block_len == 0:
            with torch.no_grad():
                value.copy_(rounded(value, fmt))
            names.add(key)
    return twin, frozenset(names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_architecture(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny.rounded(tiny.build(name, wide=True), dtype)
    tiny.save_hf(model, tmp_path, dtype=dtype)
    twin, names = oracle(model, "q4_0")
    loaded = halfbyte.load(tmp_path, threads=2, quantize="q4_0", activations="f32")
    exact = float_forward.exact_logits(twin, IDS)
    assert distance(loaded.logits(IDS), exact) <= CLOSE
    assert distance(exact, float_forward.exact_logits(model, IDS)) > 0.01
    noise = float_forward.activation_noise(twin, IDS, names)
    loaded = halfbyte.load(tmp_path, threads=2, quantize="q4_0")
    assert (noise.score(loaded.logits(IDS)) < noise.limits).all()


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format(fmt: str, tmp_path: Path) -> None:
    # Rows of 64 and 96 weights hold no block of q6_k: they stay as they are.
    model = tiny.rounded(tiny.build("e2b", wide=True))
    tiny.save_hf(model, tmp_path, dtype=torch.bfloat16)
    twin, names = oracle(model, fmt)
    assert ("layers.0.per_layer_projection.weight" in names) == (fmt != "q6_k")
    exact = float_forward.exact_logits(twin, IDS)
    loaded = halfbyte.load(tmp_path, threads=1, quantize=fmt, activations="f32")
    assert distance(loaded.logits(IDS), exact) <= CLOSE


def trained(model: Any) -> Any:
    """A model whose matrices are on the lattice of Q4_0, as training leaves them."""
    twin = copy.deepcopy(model)
    steps = torch.Generator().manual_seed(3)
    for key, value in twin.model.state_dict().items():
        matrix = value.ndim >= 2 and value.shape[-1] % 32 == 0
        if not matrix or "router" in key:
            continue
        groups = value.reshape(-1, 32)
        fraction = torch.empty(len(groups), 1).uniform_(0.75, 1.2, generator=steps)
        step = groups.abs().amax(1, keepdim=True) / 8 * fraction
        levels = (groups / step).round().clamp(-8, 7)
        with torch.no_grad():
            value.copy_((step * levels).bfloat16().float().view_as(value))
    return twin


@pytest.mark.parametrize("name", ["e2b", "26b"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_trained_weights_keep_their_levels(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Whatever type they are stored in later."""
    model = trained(tiny.rounded(tiny.build(name, wide=True)))
    tiny.save_hf(model, tmp_path, dtype=dtype)
    exact = float_forward.exact_logits(model, IDS)
    kept = halfbyte.load(tmp_path, quantize="q4_0", activations="f32").logits(IDS)
    lost = float_forward.exact_logits(oracle(model, "q4_0")[0], IDS)
    # Step times level was rounded to bfloat16, and is not any more: 2**-9 of a weight at
    # most, and 2**-11 for the step in float16: a quarter of a percent. The ordinary
    # quantizer moves weights by 5 percent.
    assert distance(kept, exact) < distance(lost, exact) / 20


def test_rows_that_are_no_blocks_stay(tmp_path: Path) -> None:
    model = tiny.rounded(tiny.build("26b", wide=True))  # experts: rows of 96
    tiny.save_hf(model, tmp_path, dtype=torch.bfloat16)
    twin, names = oracle(model, "q6_k")
    assert "layers.0.experts.gate_up_proj" in names
    assert "layers.0.experts.down_proj" not in names
    exact = float_forward.exact_logits(twin, IDS)
    loaded = halfbyte.load(tmp_path, threads=1, quantize="q6_k", activations="f32")
    assert distance(loaded.logits(IDS), exact) <= CLOSE


def test_what_is_told(tmp_path: Path) -> None:
    tiny.save_hf(tiny.build("31b", wide=True), tmp_path, dtype=torch.bfloat16)
    seen: list[tuple[int, int]] = []
    model = halfbyte.load(
        tmp_path, quantize="q4_0", progress=lambda *both: seen.append(both)
    )
    report, plain = model.report(), halfbyte.load(tmp_path).report()
    assert (report.quantize, plain.quantize) == ("q4_0", None)
    assert "floats rounded to q4_0" in str(report)
    # Panels hold the blocks of 16 rows: 4.5 of 16 bits.
    assert report.bytes_per_token == pytest.approx(plain.bytes_per_token * 4.5 / 16)
    assert report.repacked_bytes == seen[-1][0] == seen[-1][1]
    assert report.repacked_bytes == pytest.approx(report.bytes_per_token, rel=0.05)


@pytest.mark.parametrize("fmt", ["f32", "bf16", "q5_0", "w4", "q4", ""])
def test_formats_that_cannot_be_written(fmt: str, tmp_path: Path) -> None:
    tiny.save_hf(tiny.build("31b"), tmp_path)
    with pytest.raises(errors.ArgumentError, match=r"^quantize: .*q4_0, q8_0, q6_k"):
        halfbyte.load(tmp_path, quantize=fmt)


def test_it_takes_repacking(tmp_path: Path) -> None:
    tiny.save_hf(tiny.build("31b"), tmp_path)
    with pytest.raises(errors.ArgumentError, match="repacked"):
        halfbyte.load(tmp_path, quantize="q4_0", repack="never")


def test_nothing_to_round(tmp_path: Path) -> None:
    model = tiny.build("31b", wide=True)
    path = tmp_path / "model.gguf"
    tiny.save_gguf(model, path, types=tiny.official_type)
    with pytest.raises(errors.ModelError, match="load without quantize") as caught:
        halfbyte.load(path, quantize="q4_0")
    assert caught.value.code == "MODEL_QUANTIZE"


def test_the_peak_is_the_packed_model_and_little_more(tmp_path: Path) -> None:
    """208 MiB of BF16, never there at once, and never as floats."""
    config = tiny.config("gemma3")
    config.hidden_size, config.intermediate_size = 1024, 8192
    config.vocab_size = 4096
    generator = torch.Generator().manual_seed(0)
    model = type(tiny.build("gemma3"))(config)
    with torch.no_grad():
        for value in model.model.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.02)
    tiny.save_hf(model, tmp_path, dtype=torch.bfloat16, tokenizer=False)
    facts = measured(
        """
model = halfbyte.load(path, quantize="q4_0", threads=2)
facts |= {"peak": kept("VmHWM") - before, "repacked": model.report().repacked_bytes,
          "file": model.report().file_bytes, "finite": bool(
          np.isfinite(model.logits([2, 3, 4])).all())}
""",
        tmp_path,
    )
    assert facts["finite"]
    assert facts["file"] > 300 * MIB
    # A step of the copy reads 32 MiB; as much again for threads and the interpreter.
    assert facts["peak"] <= facts["repacked"] + 64 * MIB
    assert facts["repacked"] <= 0.3 * facts["file"]
