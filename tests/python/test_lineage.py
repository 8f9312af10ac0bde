# tests/python/test_lineage.py
# SPDX-License-Identifier: Apache-2.0
"""Verdicts on a hundred files of each kind, and never a false claim of training."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gguf
import halfbyte
import numpy as np
import pytest
import tiny
import torch
from gguf.quants import quantize
from halfbyte import qat
from halfbyte.conversion import repair
from halfbyte.lineage import Lineage, Verdict, identity, lineage
from halfbyte.lineage.identity import KnownFile
from numpy.typing import NDArray
from safetensors.torch import save_file
from test_lattice import bf16, trained

F32 = NDArray[np.float32]
CASES = 100
N, K = 32, 1024  # 1024 groups a file


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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


def by_importance(x: F32, seed: int) -> NDArray[np.uint8]:
    """As llama.cpp packs Q4_0 with an importance matrix.

    Nineteen steps around max / -8 give levels, least squares give each its step, and
    the one that explains most of the weighted squares stays. A weight counts by the
    importance of its column and by sqrt(mean square of the row + its own square).
    """
    importance = np.random.default_rng(seed).lognormal(sigma=1.0, size=x.shape[1])
    counts = importance * np.sqrt((x**2).mean(1, keepdims=True) + x**2)
    groups, counts = x.reshape(-1, 1, 32), counts.reshape(-1, 1, 32)
    at = np.abs(groups).argmax(-1, keepdims=True)
    extreme = np.take_along_axis(groups, at, -1)
    tried = -(8 + 0.1 * np.arange(-9, 10)[:, np.newaxis]) / extreme
    levels = np.clip(np.rint(groups * tried), -8, 7)
    cross, square = (counts * groups * levels).sum(-1), (counts * levels**2).sum(-1)
    best = (cross**2 / square).argmax(-1)
    rows = np.arange(len(best))
    steps = (cross / square)[rows, best].astype(np.float16)
    return blocks_of(steps, levels[rows, best]).reshape(len(x), -1)


def blocks_of(steps: NDArray[np.float16], levels: NDArray[Any]) -> NDArray[np.uint8]:
    codes = (levels + 8).astype(np.uint8)
    blocks = np.empty((len(steps), 18), np.uint8)
    blocks[:, :2] = steps.view(np.uint8).reshape(-1, 2)
    blocks[:, 2:] = codes[:, :16] | codes[:, 16:] << 4
    return blocks


def shuffled(x: F32, seed: int) -> F32:
    """The same weights, each somewhere else in its row."""
    return np.random.default_rng(seed).permuted(x, axis=1)


def searched(x: F32, *, signed: bool) -> NDArray[np.uint8]:
    """By steps of least weighted error, of either sign; or positive."""
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
    best_steps = steps[rows, best, 0].astype(np.float16)
    return blocks_of(best_steps, levels[rows, best]).reshape(N, -1)


def write_gguf(
    path: Path,
    *matrices: NDArray[np.uint8],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q4_0,
    keys: Mapping[str, str] | None = None,
    backwards: bool = False,
) -> halfbyte.File:
    writer = gguf.GGUFWriter(path, "gemma4")
    for key, value in (keys or {}).items():
        writer.add_string(key, value)
    for i, packed in list(enumerate(matrices))[:: -1 if backwards else 1]:
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


@functools.cache
def by_gradients(seed: int, *, packed: bool = True) -> F32:
    """A layer trained to give what another one gives, in 4 bits or in float.

    Weights and the logarithms of steps follow the gradient as if rounding were not
    there; steps begin at the least squared error.
    """
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(N, 256, generator=generator) * 0.05
    w = target + 0.02 * torch.randn(N, 256, generator=generator)
    w = w.view(-1, 32).requires_grad_()
    log_step = first_steps(w.detach()).log().requires_grad_()
    optimizer = torch.optim.Adam([w, log_step], lr=2e-3)
    for _ in range(40):
        x = torch.randn(64, 256, generator=generator)
        used = straight_through(w, log_step.exp()) if packed else w
        loss = ((x @ (used.view(N, -1) - target).T) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    used = straight_through(w, log_step.exp()) if packed else w
    return used.detach().view(N, -1).bfloat16().float().numpy()


def first_steps(w: torch.Tensor) -> torch.Tensor:
    tried = w.abs().amax(1, keepdim=True) / 8 * torch.linspace(0.55, 1.2, 14)
    levels = (w[:, :, None] / tried[:, None]).round().clamp(-8, 7)
    error = (levels * tried[:, None] - w[:, :, None]).square().sum(1)
    return tried.gather(1, error.argmin(1, keepdim=True))


def straight_through(w: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """step * level, with gradients for weights and for steps."""
    ratio = w / step
    levels = ratio.round().clamp(-8, 7)
    inside = (ratio > -8.5) & (ratio < 7.5)
    slope = torch.where(inside, levels - ratio, levels).detach()
    passed = w - w.detach() + slope * (step - step.detach())
    return (levels * step).detach() + passed


Tensors = dict[str, torch.Tensor]


def write_tensors(path: Path, tensors: Tensors) -> halfbyte.File:
    save_file(tensors, path)
    return halfbyte.open_safetensors(path)


def as_mobile(levels: NDArray[Any], bits: int = 4) -> Tensors:
    """A matrix of the mobile schema: codes from the low bits on, one scale a row."""
    codes = (levels + (1 << (bits - 1))).astype(np.uint8).reshape(N, -1, 8 // bits)
    packed = (codes << np.arange(0, 8, bits, dtype=np.uint8)).sum(-1, dtype=np.uint8)
    module = "model.language_model.layers.0.mlp.up_proj."
    return {
        module + "weight": torch.from_numpy(packed),
        module + "weight_scale": torch.full((N, 1), 0.01),
        "model.language_model.norm.weight": torch.ones(K),
    }


def per_row(x: F32, reach: float) -> NDArray[Any]:
    """Levels whose steps put so much of each row's largest magnitude at 8."""
    return np.clip(np.rint(x / (reach * np.abs(x).max(1, keepdims=True) / 8)), -8, 7)


def narrow(x: F32) -> NDArray[Any]:
    """Levels from -7 to 7 with the largest magnitude at an end."""
    levels = np.rint(x / (np.abs(x).max(1, keepdims=True) / 7))
    w = halfbyte.quantize(x, "w4")  # is the same
    scales = w.scales[:, np.newaxis]  # type: ignore[index]
    np.testing.assert_array_equal(levels, np.rint(w.dequantize() / scales))
    return levels


def as_compressed(x: F32, embedding: F32) -> Tensors:
    """A matrix as compressed-tensors packs it in groups, and an embedding in bfloat16."""
    groups = x.reshape(N, -1, 32)
    steps = np.abs(groups).max(-1, keepdims=True) / 7.5
    levels = np.clip(np.rint(groups / steps), -8, 7).reshape(N, -1)
    codes = (levels + 8).astype(np.uint32).reshape(N, -1, 8)
    words = (codes << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1, dtype=np.uint32)
    module = "model.layers.0.mlp.up_proj."
    return {
        module + "weight_packed": torch.from_numpy(words.view(np.int32)),
        module + "weight_scale": torch.from_numpy(steps[..., 0]).bfloat16(),
        module + "weight_shape": torch.tensor([N, K]),
        "model.embed_tokens.weight": torch.from_numpy(embedding).bfloat16(),
    }


def write_tq2_0(path: Path, x: F32) -> halfbyte.File:
    """Two-bit levels of one step a row, as the mobile release is written in GGUF."""
    levels = np.clip(np.rint(x / x.std(1, keepdims=True)), -2, 1)
    codes = (1 - levels).astype(np.uint8).reshape(-1, 2, 4, 32)  # of blocks of 256
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(4, 1)
    blocks = np.empty((N * K // 256, 66), np.uint8)
    blocks[:, :64] = (codes << shifts).sum(2, dtype=np.uint8).reshape(-1, 64)
    blocks[:, 64:] = np.frombuffer(np.float16(-0.01).tobytes(), np.uint8)
    kind = gguf.GGMLQuantizationType.TQ2_0
    return write_gguf(path, blocks.reshape(N, -1), kind=kind)


def on_lattice(seed: int) -> F32:
    return trained(seed, N, K, sign=1 - 2 * (seed % 2))[0]


KINDS: dict[str, tuple[Verdict, Callable[[Path, int], halfbyte.File]]] = {
    "bf16, trained": (Verdict.QAT, lambda p, i: write_bf16(p, on_lattice(i))),
    "bf16, trained by gradients": (
        Verdict.QAT,
        lambda p, i: write_bf16(p, by_gradients(i)),
    ),
    "bf16, trained by gradients in float": (
        Verdict.OTHER,
        lambda p, i: write_bf16(p, by_gradients(i, packed=False)),
    ),
    "Q4_0, trained by gradients": (
        Verdict.REQUANTIZED,
        lambda p, i: write_gguf(p, q4_0(by_gradients(i))),
    ),
    "Q4_0, trained by gradients in float": (
        Verdict.PTQ,
        lambda p, i: write_gguf(p, q4_0(by_gradients(i, packed=False))),
    ),
    "Q4_0 by importance, trained by gradients": (
        Verdict.UNKNOWN,
        lambda p, i: write_gguf(p, by_importance(by_gradients(i), i)),
    ),
    "Q4_0 by importance, trained by gradients in float": (
        Verdict.UNKNOWN,
        lambda p, i: write_gguf(p, by_importance(by_gradients(i, packed=False), i)),
    ),
    "bf16, trained by gradients and shuffled": (
        Verdict.OTHER,
        lambda p, i: write_bf16(p, shuffled(by_gradients(i), i)),
    ),
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
        Verdict.PTQ,
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
    "Q4_0, other": (Verdict.PTQ, lambda p, i: write_gguf(p, q4_0(untrained(i)))),
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
        lambda p, i: write_gguf(p, by_importance(untrained(i), i)),
    ),
    "Q4_0 by importance, trained": (
        Verdict.UNKNOWN,
        lambda p, i: write_gguf(p, by_importance(on_lattice(i), i)),
    ),
    "Q4_0 by a signed search": (
        Verdict.UNKNOWN,
        lambda p, i: write_gguf(p, searched(untrained(i), signed=True)),
    ),
    "bf16, trained and shuffled": (
        Verdict.OTHER,
        lambda p, i: write_bf16(p, shuffled(on_lattice(i), i)),
    ),
    "Q4_0, trained and shuffled": (
        Verdict.PTQ,
        lambda p, i: write_gguf(p, q4_0(shuffled(on_lattice(i), i))),
    ),
    "mobile by an ordinary quantizer": (
        Verdict.PTQ,
        lambda p, i: write_tensors(p, as_mobile(narrow(untrained(i)))),
    ),
    "mobile by a search, or trained": (
        Verdict.UNKNOWN,
        lambda p, i: write_tensors(p, as_mobile(per_row(untrained(i), 0.6))),
    ),
    "mobile, cut off at -7 and 7": (
        Verdict.UNKNOWN,
        lambda p, i: write_tensors(
            p, as_mobile(np.clip(per_row(untrained(i), 0.5), -7, 7))
        ),
    ),
    "mobile, two bits": (
        Verdict.UNKNOWN,
        lambda p, i: write_tensors(
            p, as_mobile(np.clip(np.rint(untrained(i) * 60), -2, 1), bits=2)
        ),
    ),
    "mobile in GGUF": (Verdict.UNKNOWN, lambda p, i: write_tq2_0(p, untrained(i))),
    "compressed-tensors, other": (
        Verdict.PTQ,
        lambda p, i: write_tensors(p, as_compressed(untrained(i), untrained(i + 1))),
    ),
    "compressed-tensors, trained": (
        Verdict.UNKNOWN,
        lambda p, i: write_tensors(p, as_compressed(on_lattice(i), on_lattice(i + 1))),
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

    assert judged().reason == "no matrices in Q4_0, bfloat16, or codes with scales"
    empty = q4_0(np.zeros((N, K), np.float32))
    assert judged(empty).verdict is Verdict.UNKNOWN  # no block that is not 0
    few = q4_0(untrained(1)[:1, :256])
    assert judged(few).tensors == ()
    assert judged(empty, q4_0(untrained(1))).verdict is Verdict.PTQ


def test_what_is_no_number_tells_nothing(tmp_path: Path) -> None:
    matrices = [untrained(seed) for seed in range(4)]
    want = lineage(write_bf16(tmp_path / "m.gguf", *matrices)).verdict
    matrices[1][-1, 3], matrices[2][0, 0] = np.nan, np.inf
    assert lineage(write_bf16(tmp_path / "n.gguf", *matrices)).verdict is want


def test_the_evidence(tmp_path: Path) -> None:
    found = lineage(write_gguf(tmp_path / "m.gguf", q4_0(on_lattice(3))))
    (trace,) = found.tensors
    assert trace.blocks == N * K // 32
    assert trace.lattice is None
    assert trace.lowest == 1.0
    assert 0.3 < trace.negative < 0.7
    assert trace.fours == 0.0
    assert json.loads(json.dumps(found.to_dict()))["verdict"] == "qat-requantized"


def test_routers_encoders_and_short_rows_do_not_count(tmp_path: Path) -> None:
    found = lineage(write_bf16(tmp_path / "m", on_lattice(1)))
    assert [trace.kind for trace in found.tensors] == ["bf16"]
    short = as_mobile(narrow(untrained(0)))
    short["model.language_model.norm.weight"] = torch.ones(K // 3)  # no width fits
    assert lineage(write_tensors(tmp_path / "n", short)).tensors == ()


# --- Published files ---------------------------------------------------------------


def publish(monkeypatch: pytest.MonkeyPatch, path: Path, **changed: Any) -> KnownFile:
    """Enter a file into the table."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = KnownFile("official", "us/model", "m", path.stat().st_size, digest)
    entry = dataclasses.replace(entry, **changed)
    monkeypatch.setattr(identity, "_known_files", lambda: (entry,))
    return entry


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("official", Verdict.QAT),
        ("encoder", Verdict.OTHER),
        ("repack", Verdict.QAT),
        ("ptq", Verdict.PTQ),
    ],
)
def test_a_known_hash_decides(
    kind: str, want: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "m.gguf", q4_0(on_lattice(1)))
    assert lineage(file).identity.sha256 is None  # of a size that nobody published
    entry = publish(monkeypatch, tmp_path / "m.gguf", kind=kind)
    found = lineage(file)
    assert found.verdict is want
    assert found.identity.known == entry
    assert found.identity.as_large_as is None
    assert found.tensors  # the evidence is shown all the same
    assert found.by_weights is Verdict.REQUANTIZED


def test_a_published_file_can_be_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, q4_0(on_lattice(1)))
    publish(monkeypatch, path)
    assert lineage(path).verdict is Verdict.QAT
    assert repair(path).restored > 0


@pytest.mark.parametrize("sha256", [None, "0" * 64])
def test_a_size_alone_decides_nothing(
    sha256: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "m.gguf", q4_0(untrained(1)))
    entry = publish(monkeypatch, tmp_path / "m.gguf", sha256=sha256)
    found = lineage(file)
    assert found.verdict is Verdict.PTQ
    assert found.identity.known is None
    assert found.identity.as_large_as == entry
    assert (found.identity.sha256 is None) == (sha256 is None)


def test_a_published_file_of_a_kind_that_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.litertlm"
    path.write_bytes(b"LITERTLM" + bytes(100))
    with pytest.raises(halfbyte.FormatError):
        lineage(path)
    publish(monkeypatch, path)
    assert lineage(path).verdict is Verdict.QAT
    path.write_bytes(b"LITERTLN" + bytes(100))
    with pytest.raises(halfbyte.FormatError):
        lineage(path)


def test_hashes_of_tensors_outlive_new_metadata(tmp_path: Path) -> None:
    matrices = [q4_0(on_lattice(1)), q4_0(on_lattice(2))]
    first = lineage(write_gguf(tmp_path / "a.gguf", *matrices), hash=True)
    other = lineage(
        write_gguf(tmp_path / "b.gguf", *matrices, keys={"general.name": "new"}),
        hash=True,
    )
    backwards = write_gguf(tmp_path / "d.gguf", *matrices, backwards=True)
    assert lineage(backwards, hash=True).tensors_sha256 == first.tensors_sha256
    third = lineage(write_gguf(tmp_path / "c.gguf", *matrices[::-1]), hash=True)
    assert first.identity.sha256 != other.identity.sha256
    assert first.tensors_sha256 == other.tensors_sha256 != third.tensors_sha256
    assert first.tensor_sha256 is not None
    names = ["blk.0.ffn_up.weight", "blk.1.ffn_up.weight", "output_norm.weight"]
    assert list(first.tensor_sha256) == names
    want = hashlib.sha256(matrices[1].tobytes()).hexdigest()
    assert first.tensor_sha256[names[1]] == want
    lines = "".join(f"{first.tensor_sha256[name]}  {name}\n" for name in names)
    assert first.tensors_sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_the_table_of_published_files() -> None:
    known = identity._known_files()
    assert {entry.kind for entry in known} == {"official", "encoder", "repack", "ptq"}
    assert len({entry.bytes for entry in known}) == len(known)  # a size names one
    hashes = [entry.sha256 for entry in known if entry.sha256 is not None]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes)
    assert len(set(hashes)) == len(hashes)


def test_metadata_is_shown_and_decides_nothing(tmp_path: Path) -> None:
    keys = {
        "general.name": "Gemma 4 E2B It Qat Q4_0\x1b[31m" + "x" * 100,
        "general.quantized_by": "somebody",
        "quantize.imatrix.file": "data",
        "halfbyte.written_by": "qat.export, q4_0: trained",
    }
    plain = lineage(write_gguf(tmp_path / "a.gguf", q4_0(untrained(1))))
    found = lineage(write_gguf(tmp_path / "b.gguf", q4_0(untrained(1)), keys=keys))
    assert found.verdict is plain.verdict
    assert plain.hints == ()
    hints = {hint.what: hint for hint in found.hints}
    assert hints.keys() == keys.keys()
    assert hints["general.name"].found.isprintable()
    assert len(hints["general.name"].found) < 80
    assert hints["quantize.imatrix.file"].means is not None


def test_what_halfbyte_wrote_says_how_it_was_made(tmp_path: Path) -> None:
    def said(path: Path) -> list[str]:
        found = lineage(path).hints
        return [hint.found for hint in found if hint.what == "halfbyte.written_by"]

    model = tiny.rounded(tiny.build("e2b", wide=True))
    bf16 = tiny.save_hf(model, tmp_path / "bf16", dtype=torch.bfloat16)
    assert said(bf16) == []
    halfbyte.convert(bf16, tmp_path / "bf16.gguf", format="bf16")
    assert said(tmp_path / "bf16.gguf") == ["convert, bf16"]
    halfbyte.convert(tmp_path / "bf16.gguf", tmp_path / "m.gguf", quantizer="mse")
    assert said(tmp_path / "m.gguf") == ["convert, q4_0: by the lattice, or else mse"]
    halfbyte.convert(bf16, tmp_path / "ct", to="safetensors", format="w4a16-ct")
    assert said(tmp_path / "ct") == ["convert, w4a16-ct: by the lattice, or else rtn"]
    qat.prepare(model)
    qat.export(model, tmp_path / "qat")
    assert said(tmp_path / "qat") == [
        "qat.export, q4_0: levels of fake quantization, trained or not"
    ]


def test_what_a_directory_says_of_itself(tmp_path: Path) -> None:
    tensors = as_mobile(narrow(untrained(0)))
    module = "model.language_model.layers.0.mlp.up_proj."
    tensors[module + "input_activation_scale"] = torch.tensor(0.1)
    tensors[module + "output_activation_scale"] = torch.tensor(0.1)
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N, K // 4)))
    embedding = "model.language_model.embed_tokens.embedding_"
    tensors[embedding + "quantized"] = codes.to(torch.uint8)
    tensors[embedding + "scale"] = torch.ones(N, 1)
    tensors["lm_head.weight"] = codes.to(torch.uint8).clone()
    tensors["lm_head.weight_scale"] = torch.ones(N, 1)
    found = lineage(write_tensors(tmp_path / "a", tensors)).hints
    assert {hint.what: hint.found for hint in found} == {
        "form": "mobile",
        "steps of activations": "2",
        "head and embedding": "equal",
    }
    tensors["lm_head.weight"][-1, -1] ^= 1
    found = lineage(write_tensors(tmp_path / "b", tensors)).hints
    assert found[-1].found == "different"
    # As HalfbyteConfig packs tables: the same name, and no steps.
    for step in ("input", "output"):
        del tensors[f"{module}{step}_activation_scale"]
    found = lineage(write_tensors(tmp_path / "c", tensors)).hints
    assert [hint.what for hint in found] == ["head and embedding"]


# --- The command -----------------------------------------------------------------------


def test_the_picture(tmp_path: Path) -> None:
    path, plot = tmp_path / "m.gguf", tmp_path / "m.svg"
    write_gguf(path, q4_0(on_lattice(1)), q4_0(on_lattice(2)))
    line = [sys.executable, "-m", "halfbyte", "lineage", str(path), "--plot"]
    subprocess.run([*line, str(plot)], check=True, capture_output=True)
    found = lineage(path)
    none = subprocess.run([*line, "no/m.svg"], check=False, capture_output=True)
    assert (none.returncode, none.stdout) == (2, b"")
    assert b"--plot: no: no such folder" in none.stderr
    drawn = plot.read_text(encoding="utf-8")
    assert drawn == found.to_svg()
    root = ElementTree.fromstring(drawn)
    svg = "{http://www.w3.org/2000/svg}"
    bars = [float(bar.attrib["height"]) for bar in root.iter(svg + "rect")]
    assert len(bars) == 9
    assert bars[4] == 0.0 < min(bars[3], bars[5])  # the gap that the verdict rests on
    values = [round(v, 3) for e in found.evidence() for v in set(e.values)]
    assert len(list(root.iter(svg + "circle"))) == len(values)
    done = subprocess.run([*line, "m.png"], check=False, capture_output=True)
    assert done.returncode == 2
    assert b".svg" in done.stderr


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
