# tests/python/test_repair.py
# SPDX-License-Identifier: Apache-2.0
"""Q4_0 that the ordinary quantizer made of trained weights, put right again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import halfbyte
import numpy as np
import pytest
from gguf.quants import quantize
from halfbyte import lattice, reference
from halfbyte.cli import main
from halfbyte.conversion import repair
from halfbyte.errors import ArgumentError, UnsupportedError
from halfbyte.lattice import Mend
from numpy.typing import NDArray
from test_lattice import bf16, levels_of, trained

F32 = NDArray[np.float32]


def requantized(x: F32) -> halfbyte.Weight:
    """By the gguf package, as official files are made."""
    packed = quantize(x, gguf.GGMLQuantizationType.Q4_0)
    return halfbyte.Weight(packed, "q4_0", x.shape)


def error(w: halfbyte.Weight, x: F32) -> float:
    """Root mean square, of that of the weights."""
    off = np.square(w.dequantize().astype(np.float64) - x).sum()
    return float(np.sqrt(off / np.square(x.astype(np.float64)).sum()))


def trained_by_error(seed: int, n: int) -> tuple[F32, NDArray[np.int64]]:
    """Groups with steps of least error, from which training begins."""
    rng = np.random.default_rng(seed)
    groups = rng.standard_normal((n, 1, 32)) * 0.02
    tried = np.linspace(0.55, 1.2, 40)[:, np.newaxis]
    steps = (np.abs(groups).max(axis=-1, keepdims=True) / 8 * tried).astype(np.float32)
    levels = np.clip(np.rint(groups / steps), -8, 7)
    best = ((levels * steps - groups) ** 2).sum(axis=-1).argmin(axis=-1)
    at = np.arange(n)
    x = bf16(steps[at, best] * levels[at, best].astype(np.float32))
    return x, levels[at, best].astype(np.int64)


def test_the_specified_group() -> None:
    step = np.float32(0.0123)
    levels = np.clip(5 * np.arange(32) % 16 - 8, -7, 7).astype(np.float32)
    levels[0] = 7
    packed = requantized(bf16(step * levels)[np.newaxis])
    assert packed.data.tobytes().hex() == "80a1f0bb6600dd7711ee8822ff9933ffaa55"
    found = lattice.repair(packed)
    assert found.groups.tolist() == [[Mend.AMBIGUOUS]]
    want = np.where(levels == -7, -6, levels)  # became +7 like -6, the likelier
    assert levels_of(found.weight).tolist() == [want.tolist()]
    stored = found.weight.data[:2].view(np.float16)[0]
    assert stored == np.float16(0.012276786)


def of_levels(levels: NDArray[np.int64]) -> F32:
    """One group with a step that is no 16-bit number."""
    return bf16(np.float32(0.0371) * levels.astype(np.float32))[np.newaxis]


@pytest.mark.parametrize("m", range(1, 8))
@pytest.mark.parametrize("sign", [1, -1])
def test_levels_of_each_extreme(m: int, sign: int) -> None:
    """All levels from the extreme m to the one beside it on the other side."""
    levels = sign * np.arange(m, -max(m - 1, 1), -1)[np.arange(32) % (2 * m - 1)]
    found = lattice.repair(requantized(of_levels(levels)))
    assert found.groups.tolist() == [[Mend.RESTORED]]
    assert levels_of(found.weight).tolist() == [levels.tolist()]
    cut = m in (6, 7)  # m - 1 on the other side becomes 7, as m does
    for other in (1 - m, -m):
        levels[5] = sign * other
        found = lattice.repair(requantized(of_levels(levels)))
        assert found.groups.tolist() == [[Mend.AMBIGUOUS if cut else Mend.RESTORED]]
        if cut:
            levels[5] = sign * (1 - m)
        assert levels_of(found.weight).tolist() == [levels.tolist()]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_that_is_right_stays(sign: int) -> None:
    levels = sign * (np.arange(32) % 16 - 8)
    packed = requantized(of_levels(levels))
    found = lattice.repair(packed)
    assert found.groups.tolist() == [[Mend.KEPT]]
    assert found.weight.data.tobytes() == packed.data.tobytes()
    assert levels_of(found.weight).tolist() == [levels.tolist()]


@pytest.mark.parametrize("source", ["uniform", "least error"])
def test_what_a_file_gets_back(source: str) -> None:
    """The shares that `formats.md` derives, and those that the documentation names."""
    if source == "uniform":
        x, levels = trained(41, 640, 1024)
    else:
        x, levels = trained_by_error(42, 20480)
    packed = requantized(x)
    found = lattice.repair(packed)
    right = (levels_of(found.weight) == levels).all(axis=1)
    before = (levels_of(packed) == levels).all(axis=1)
    assert 0.40 < before.mean() < 0.50
    assert 0.80 < right.mean() < 0.87
    assert 0.055 < error(packed, x) < 0.065
    assert error(found.weight, x) < 0.027
    kinds = found.groups.reshape(-1)
    # Of a block without +-4 that is thought to have had +-7, one in fifty or so has none
    # by chance.
    assert right[kinds == Mend.RESTORED].mean() > 0.97
    assert right[kinds == Mend.KEPT].mean() > 0.999
    assert 0.5 < right[kinds == Mend.AMBIGUOUS].mean() < 0.8
    assert not (kinds == Mend.FOREIGN).any()


def test_what_needs_nothing_is_left_as_it_is() -> None:
    x = trained(43, 16, 256)[0]
    on = lattice.recover(x).weight
    found = lattice.repair(on)
    foreign = found.groups.reshape(-1) == Mend.FOREIGN
    assert foreign.mean() > 0.5  # as no level is -8
    blocks = found.weight.data.reshape(-1, 18), on.data.reshape(-1, 18)
    np.testing.assert_array_equal(blocks[0][foreign], blocks[1][foreign])
    zeros = halfbyte.quantize(np.zeros((2, 64), np.float32), "q4_0")
    same = lattice.repair(zeros)
    assert same.groups.tolist() == [[Mend.KEPT] * 2] * 2
    np.testing.assert_array_equal(same.weight.data, zeros.data)


def test_steps_at_the_ends_of_float16() -> None:
    """What has no f16 step stays as it is; nothing becomes infinite or less exact."""
    for bits in (0x0001, 0x0400, 0x7BFF, 0x7C00, 0x7E00, 0xFBFF):
        block = np.full((1, 18), 0x88, np.uint8)
        block[0, :2] = np.array([bits], np.uint16).view(np.uint8)
        block[0, 2] = 0x80  # one level of -8, and zeros: a trained level of 1
        found = lattice.repair(halfbyte.Weight(block, "q4_0", (1, 32)))
        step = abs(float(np.array([bits], np.uint16).view(np.float16)[0]))
        if 8 * step < 65504:
            assert found.groups.tolist() == [[Mend.RESTORED]]
        else:
            np.testing.assert_array_equal(found.weight.data, block.reshape(-1))
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(
                found.weight.dequantize(),
                halfbyte.Weight(block, "q4_0", (1, 32)).dequantize(),
            )


def test_it_is_what_the_reference_does() -> None:
    rng = np.random.default_rng(44)
    raw = rng.integers(0, 256, (2000, 18)).astype(np.uint8)
    raw[:1000, 2:] = np.where(rng.uniform(size=(1000, 16)) < 0.9, 0x88, raw[:1000, 2:])
    w = np.concatenate(
        [raw, requantized(trained(45, 64, 1024)[0]).data.reshape(-1, 18)]
    )
    packed = halfbyte.Weight(w, "q4_0", (len(w), 32))
    found = lattice.repair(packed)
    weight, groups = reference.repair(packed)
    np.testing.assert_array_equal(found.groups, groups)
    np.testing.assert_array_equal(found.weight.data, weight.data.reshape(-1))
    assert set(np.unique(groups)) == {0, 1, 2, 3}


def test_any_number_of_threads_does_the_same() -> None:
    packed = requantized(trained(46, 128, 1024)[0])
    with halfbyte.threads(1):
        one = lattice.repair(packed)
    with halfbyte.threads(2):
        two = lattice.repair(packed)
    assert one.weight.data.tobytes() == two.weight.data.tobytes()
    np.testing.assert_array_equal(one.groups, two.groups)


def test_other_formats_and_empty_ones() -> None:
    with pytest.raises(ArgumentError, match="expected format q4_0, got w4"):
        lattice.repair(halfbyte.quantize(np.zeros((1, 32), np.float32), "w4"))
    for shape in ((0, 64), (3, 0)):
        empty = halfbyte.quantize(np.zeros(shape, np.float32), "q4_0")
        assert lattice.repair(empty).groups.shape == (shape[0], shape[1] // 32)


# ---- files


def write_file(path: Path, kind: str = "trained", *, blocks: int = 3) -> Path:
    """A file as official ones are, or of weights that nobody trained for 4 bits."""
    writer = gguf.GGUFWriter(path, "gemma4")
    writer.add_name("some model")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    q4_0 = gguf.GGMLQuantizationType.Q4_0
    for i in range(blocks):
        x = trained(50 + i, 32, 1024)[0]
        if kind == "other":
            x = bf16(np.random.default_rng(i).standard_normal(x.shape) * 0.02)
        name = f"blk.{i}.ffn_up.weight"
        writer.add_tensor(name, quantize(x, q4_0), raw_dtype=q4_0)
    router = bf16(np.random.default_rng(9).standard_normal((8, 1024)))
    name = "blk.0.router.weight"  # is not trained for 4 bits, whatever its type
    writer.add_tensor(name, quantize(router, q4_0), raw_dtype=q4_0)
    writer.add_tensor("output_norm.weight", np.arange(1024, dtype=np.float32))
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    table = quantize(np.ones((4, 256), np.float32), q8_0)
    writer.add_tensor("token_embd.weight", table, raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_is_repaired(tmp_path: Path) -> None:
    source, target = write_file(tmp_path / "a.gguf"), tmp_path / "b.gguf"
    report = repair(source, target)
    assert report.verdict == "qat-requantized"
    assert (report.tensors, report.foreign) == (3, 0)
    assert report.restored + report.ambiguous + report.kept == 3 * 32 * 32
    assert report == replace(repair(source), target=str(target))
    before, after = halfbyte.open_gguf(source), halfbyte.open_gguf(target)
    assert after.metadata == before.metadata | {"halfbyte.repaired": True}
    assert [t.name for t in after.tensors] == [t.name for t in before.tensors]
    for tensor in before.tensors:
        same = np.array_equal(
            before.tensor_bytes(tensor.name), after.tensor_bytes(tensor.name)
        )
        assert same == ("ffn_up" not in tensor.name)
    for i in range(3):
        x = trained(50 + i, 32, 1024)[0]
        weights = (file.weight(f"blk.{i}.ffn_up.weight") for file in (before, after))
        old, new = (error(w, x) for w in weights)
        assert new < old / 2
    reader = gguf.GGUFReader(target)
    assert len(reader.tensors) == len(before.tensors)


def test_it_may_replace_itself(tmp_path: Path) -> None:
    source, other = write_file(tmp_path / "a.gguf"), tmp_path / "b.gguf"
    repair(source, other)
    repair(source, source)
    assert source.read_bytes() == other.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_others_are_refused(tmp_path: Path) -> None:
    source, target = write_file(tmp_path / "a.gguf", "other"), tmp_path / "b.gguf"
    for dst in (None, target):
        with pytest.raises(
            UnsupportedError,
            match=r"a\.gguf: expected weights trained .* found ptq",
        ):
            repair(source, dst)
    assert not target.exists()
    assert repair(source, target, force=True).verdict == "ptq"
    assert target.exists()
    again = tmp_path / "c.gguf"
    repaired = repair(write_file(tmp_path / "d.gguf"), again)
    assert repaired.verdict == "qat-requantized"
    with pytest.raises(UnsupportedError, match="found cannot-tell"):  # not twice
        repair(again, target)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write_file(tmp_path / "a.gguf"), tmp_path / "b.gguf"
    assert main(["repair", str(source)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("qat-requantized; blocks of 3 Q4_0 matrices:\n")
    assert shown.endswith("nothing written\n")
    assert main(["repair", str(source), str(target), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"schema": 1} | repair(source, target).to_dict()
    other = write_file(tmp_path / "other.gguf", "other")
    assert main(["repair", str(other), str(target)]) == 4
    assert "found ptq" in capsys.readouterr().err
