# tests/python/test_lineage.py
# SPDX-License-Identifier: Apache-2.0
"""Verdicts on a hundred files of each kind, and never a false claim of training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gguf
import halfbyte
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from halfbyte.lineage import Lineage, Verdict, lineage
from numpy.typing import NDArray
from safetensors.torch import save_file
from test_lattice import bf16, trained

F32 = NDArray[np.float32]
CASES = 100
N, K = 32, 1024  # 1024 groups a file


def untrained(seed: int) -> F32:
    """Weights as other training leaves them: of light, Gaussian and heavy tails."""
    rng = np.random.default_rng(seed)
    draw = [rng.standard_normal, lambda size: rng.standard_t(4, size), rng.laplace][
        seed % 3
    ]
    return bf16(draw(size=(N, K)) * 0.02)


def q4_0(x: F32) -> NDArray[np.uint8]:
    """By the gguf package."""
    packed: NDArray[np.uint8] = quantize(x, gguf.GGMLQuantizationType.Q4_0)
    return packed


def unpacked(packed: NDArray[np.uint8]) -> F32:
    return bf16(halfbyte.Weight(packed, "q4_0", (N, K)).dequantize())


def searched(x: F32, *, signed: bool) -> NDArray[np.uint8]:
    """By steps of least weighted error, as importance matrices are used; or positive."""
    groups = x.reshape(-1, 1, 32)
    weights = 0.5 + np.random.default_rng(1).uniform(size=groups.shape)
    at = np.abs(groups).argmax(-1, keepdims=True)
    extreme = np.take_along_axis(groups, at, -1)
    if not signed:
        extreme = -np.abs(extreme)
    tried = np.linspace(0.55, 1.2, 27)[:, np.newaxis]
    steps = (extreme / -8 * tried).astype(np.float16).astype(np.float32)
    levels = np.clip(np.rint(groups / steps), -8, 7)
    best = (weights * (levels * steps - groups) ** 2).sum(-1).argmin(-1)
    rows = np.arange(len(best))
    codes = (levels[rows, best] + 8).astype(np.uint8)
    blocks = np.empty((len(best), 18), np.uint8)
    blocks[:, :2] = steps[rows, best].astype(np.float16).view(np.uint8).reshape(-1, 2)
    blocks[:, 2:] = codes[:, :16] | codes[:, 16:] << 4
    return blocks.reshape(N, -1)


def write_gguf(path: Path, *matrices: NDArray[np.uint8]) -> halfbyte.File:
    writer = gguf.GGUFWriter(path, "gemma4")
    for i, packed in enumerate(matrices):
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(f"blk.{i}.ffn_up.weight", packed, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(K, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return halfbyte.open_gguf(path)


def write_bf16(path: Path, *matrices: F32) -> halfbyte.File:
    layer = "model.layers.{}.mlp.up_proj.weight"
    tensors = {
        layer.format(i): torch.from_numpy(x).bfloat16() for i, x in enumerate(matrices)
    }
    # Neither is trained for 4 bits, and neither counts.
    other = torch.from_numpy(untrained(0)).bfloat16()
    tensors["model.layers.0.router.proj.weight"] = other
    tensors["model.vision_tower.x.weight"] = other.clone()
    save_file(tensors, path)
    return halfbyte.open_safetensors(path)


def on_lattice(seed: int) -> F32:
    return trained(seed, N, K, sign=1 - 2 * (seed % 2))[0]


KINDS: dict[str, tuple[Verdict, Callable[[Path, int], halfbyte.File]]] = {
    "bf16, trained": (Verdict.QAT, lambda p, i: write_bf16(p, on_lattice(i))),
    "bf16, other": (Verdict.OTHER, lambda p, i: write_bf16(p, untrained(i))),
    "bf16, half of each": (
        Verdict.UNKNOWN,
        lambda p, i: write_bf16(p, on_lattice(i), untrained(i)),
    ),
    "bf16, three rows of other weights": (
        Verdict.UNKNOWN,
        lambda p, i: write_bf16(p, np.vstack([on_lattice(i)[3:], untrained(i)[:3]])),
    ),
    "bf16 of Q4_0, other": (
        Verdict.OTHER,
        lambda p, i: write_bf16(p, unpacked(q4_0(untrained(i)))),
    ),
    "bf16 of Q4_0, trained": (
        Verdict.REQUANTIZED,
        lambda p, i: write_bf16(p, unpacked(q4_0(on_lattice(i)))),
    ),
    "bf16 of a search": (
        Verdict.UNKNOWN,
        lambda p, i: write_bf16(p, unpacked(searched(untrained(i), signed=False))),
    ),
    "Q4_0, trained": (
        Verdict.REQUANTIZED,
        lambda p, i: write_gguf(p, q4_0(on_lattice(i))),
    ),
    "Q4_0, other": (Verdict.OTHER, lambda p, i: write_gguf(p, q4_0(untrained(i)))),
    "Q4_0, half of each": (
        Verdict.UNKNOWN,
        lambda p, i: write_gguf(p, q4_0(on_lattice(i)), q4_0(untrained(i))),
    ),
    "Q4_0 by the lattice": (
        Verdict.UNKNOWN,
        lambda p, i: write_gguf(
            p, halfbyte.lattice.recover(on_lattice(i)).weight.data.reshape(N, -1)
        ),
    ),
    "Q4_0 by importance": (
        Verdict.UNKNOWN,
        lambda p, i: write_gguf(p, searched(untrained(i), signed=True)),
    ),
    "Q4_0 by a search": (
        Verdict.UNKNOWN,
        lambda p, i: write_gguf(p, searched(untrained(i), signed=False)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_files_of_each_kind(kind: str, tmp_path: Path) -> None:
    want, make = KINDS[kind]
    found = Counter(lineage(make(tmp_path / f"{i}", i)).verdict for i in range(CASES))
    assert found == {want: CASES}


def test_what_says_nothing(tmp_path: Path) -> None:
    def judged(*matrices: NDArray[np.uint8]) -> Lineage:
        return lineage(write_gguf(tmp_path / "m.gguf", *matrices))

    assert judged().reason == "no matrices in Q4_0 or bfloat16"
    empty = q4_0(np.zeros((N, K), np.float32))
    assert judged(empty).verdict is Verdict.UNKNOWN  # no block that is not 0
    few = q4_0(untrained(1)[:1, :256])
    assert judged(few).tensors == ()
    assert judged(empty, q4_0(untrained(1))).verdict is Verdict.OTHER


def test_the_evidence(tmp_path: Path) -> None:
    found = lineage(write_gguf(tmp_path / "m.gguf", q4_0(on_lattice(3))))
    (trace,) = found.tensors
    assert trace.blocks == N * K // 32
    assert trace.lattice is None
    assert trace.minus_eight == 1.0
    assert 0.3 < trace.negative < 0.7
    assert found.range("fours") == (0.0, 0.0)
    assert found.range("lattice") is None
    assert json.loads(json.dumps(found.to_dict()))["verdict"] == "qat-requantized"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda p: write_gguf(p, q4_0(on_lattice(1))), 0),
        (lambda p: write_gguf(p, q4_0(untrained(1))), 3),
        (lambda p: write_gguf(p), 6),
    ],
)
def test_the_command(
    make: Callable[[Path], halfbyte.File], code: int, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    want = lineage(make(path))
    line = [sys.executable, "-m", "halfbyte", "lineage", str(path)]
    plain = subprocess.run(line, check=False, capture_output=True, text=True)
    assert plain.returncode == code
    assert plain.stdout.startswith(f"{want.verdict.value}: {want.reason}\n")
    assert plain.stderr == ""
    document = subprocess.run([*line, "--json"], check=False, capture_output=True)
    assert document.returncode == code
    assert json.loads(document.stdout) == json.loads(
        json.dumps({"schema": 1} | want.to_dict())
    )
