# tests/python/test_lattice_cost.py
# SPDX-License-Identifier: Apache-2.0
"""What packing by the lattice costs beside the ordinary quantizer, on small models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import halfbyte
import lattice as script
import numpy as np
import pytest
import tiny
import torch
from test_lattice import trained

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def on_lattice(name: str) -> Any:
    """A model whose matrices are as training for Q4_0 leaves them."""
    model = tiny.rounded(tiny.build(name, wide=True))
    for i, (key, weight) in enumerate(tiny.weights(model).items()):
        if weight.ndim >= 2 and "router" not in key:
            n, k = weight.numel() // weight.shape[-1], weight.shape[-1]
            values = trained(i, n, k)[0].reshape(weight.shape)
            spread = float(weight.std() / values.std())
            # A power of two moves no weight off the lattice.
            scale = 2.0 ** round(np.log2(spread))
            weight.copy_(torch.from_numpy(values * np.float32(scale)))
    # Where one token has all of the probability, no divergence is left to compare.
    tiny.weights(model)["norm.weight"].mul_(1 / 8)
    return model


@pytest.mark.parametrize("name", ["e2b", "31b", "26b"])
def test_the_lattice_is_a_hundred_times_nearer(name: str, tmp_path: Path) -> None:
    source, work = tmp_path / "source", tmp_path / "work"
    work.mkdir()
    tiny.save_hf(on_lattice(name), source, dtype=torch.bfloat16)
    found = script.measure(source, work)
    assert found["gguf"].kl_mean > 1e-3
    assert found["lattice"].kl_mean <= found["gguf"].kl_mean / 100


def test_the_other_side_is_the_ordinary_quantizer(tmp_path: Path) -> None:
    """Ours, of the same weights in float32, where no lattice is looked for."""
    source, work = tmp_path / "source", tmp_path / "work"
    work.mkdir()
    model = on_lattice("26b")
    tiny.save_hf(model, source, dtype=torch.bfloat16, shards=3)
    script.write_naive(source, work)
    file, packed = halfbyte.open_safetensors(work), 0
    for tensor in halfbyte.open_safetensors(source).tensors:
        key = tensor.name.removeprefix("model.")
        weight = tiny.weights(model)[key].numpy()
        if key.startswith("layers.") and weight.ndim >= 2 and "router" not in key:
            rows = weight.reshape(-1, weight.shape[-1])
            weight = halfbyte.quantize(rows, "q4_0").dequantize().reshape(weight.shape)
            packed += 1
        got = file.weight(tensor.name).dequantize()
        np.testing.assert_array_equal(got, weight.reshape(got.shape))
    assert packed == 6 * (4 + 3 + 2) - 2  # full layers have no matrix for values


def test_the_scripts_print_tables(tmp_path: Path) -> None:
    source, text = tmp_path / "source", tmp_path / "text.txt"
    tiny.save_hf(on_lattice("e2b"), source, dtype=torch.bfloat16)
    text.write_text("the end of the line and the start of the other one")
    words = [source, "--text", text, "--tokens", "9", "--json", tmp_path / "kept.json"]
    out = run("lattice.py", *words, "--work", tmp_path)
    assert out.splitlines()[0].split()[:3] == ["Q4_0", "by", "KL"]
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept["gguf"]["positions"] == kept["lattice"]["positions"] == 9
    ratio = kept["gguf"]["kl_mean"] / kept["lattice"]["kl_mean"]
    assert out.endswith(f"the lattice is {ratio:,.0f} times nearer\n")
    assert list(tmp_path.glob("tmp*")) == []  # the copy is gone
    out = run("lineage.py", source / "model.safetensors", "--rounds", "1")
    assert re.search(r": qat\n.*\nthe weights +\d+\.\d\d .*\nthe hash ", out)


def run(script: str, *words: object) -> str:
    line = [sys.executable, str(BENCHMARKS / script), *map(str, words)]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout
