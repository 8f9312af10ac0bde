# tests/python/test_synthetic.py
# Models with random weights: the released shapes, read by us and by others.
# SPDX-License-Identifier: Apache-2.0
"""Models with random weights: the released shapes, read by us and by others.

The numbers are written by hand from descriptions of the released files. Files are cut
and narrow, but for one; a narrow model has all the heads, layers and keys of a real one.
"""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import gguf
import halfbyte
import numpy as np
import pytest
import safetensors
import synthetic
import transformers
from synth import directory, gguf_file, noise, saving, shapes

ROOT = Path(__file__).parents[2]
SIZES = ("e2b", "e4b", "12b", "26b", "31b")


def narrow(size: str) -> shapes.Shape:
    """Two periods of a released model with short rows."""
    shape = shapes.SIZES[size]
    shape = replace(shape.cut(2 * shape.period), hidden=256, ffn=512, vocab=2048)
    if shape.suppressed:
        shape = replace(shape, suppressed=(2000, 2001))
    return replace(shape, experts=16, expert_ffn=64) if shape.experts else shape


@pytest.fixture
def narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all sizes narrow, and the pool of blocks with them."""
    made = {size: narrow(size) for size in SIZES}
    monkeypatch.setattr(synthetic, "SIZES", made)
    monkeypatch.setattr(noise, "POOL", 1 << 16)


# ---- what the released files contain


def test_the_sizes_are_the_released_ones() -> None:
    assert tuple(shapes.SIZES) == SIZES


# Tensors, by type; official file size.
CONTENT = {
    "e2b": (541, {"Q4_0": 275, "Q6_K": 2, "F16": 1, "F32": 263}, 3_349_516_256),
    "e4b": (666, {"Q4_0": 342, "Q6_K": 2, "F16": 1, "F32": 321}, 5_154_941_280),
    "12b": (667, {"Q4_0": 328, "Q6_K": 1, "F32": 338}, 6_975_879_296),
    "26b": (658, {"Q4_0": 265, "Q6_K": 1, "F32": 392}, 14_439_363_584),
    "31b": (833, {"Q4_0": 410, "Q6_K": 1, "F32": 422}, 17_651_001_568),
}


@pytest.mark.parametrize("size", SIZES)
def test_number_of_tensors_by_type(size: str) -> None:
    table = gguf_file.tensors(shapes.SIZES[size])
    total, by_type, _ = CONTENT[size]
    assert len({tensor.name for tensor in table}) == len(table) == total
    assert Counter(tensor.type.name for tensor in table) == by_type


@pytest.mark.parametrize("size", SIZES)
def test_the_data_leave_the_same_room_for_metadata(size: str) -> None:
    # All released files have the same vocabulary and nearly the same other keys: what
    # is left of a file after tensors and their entries is the same for every size.
    table = gguf_file.tensors(shapes.SIZES[size])
    data = sum(-(-tensor.num_bytes // 32) * 32 for tensor in table)
    entries = sum(24 + len(t.name) + 8 * len(t.shape) for t in table)
    assert CONTENT[size][2] - data - entries == pytest.approx(15_783_450, abs=250)


@pytest.mark.parametrize(
    ("size", "kind", "want"),
    [
        ("e2b", "Q4_0", 1_047_969_792),
        ("e2b", "Q6_K", 1_926_758_400 + 330_301_440),
        ("e2b", "F16", 27_525_120),
        ("e4b", "Q4_0", 2_219_212_800),
        ("e4b", "Q6_K", 2_312_110_080 + 550_502_400),
        ("e4b", "F16", 55_050_240),
    ],
)
def test_bytes_by_type(size: str, kind: str, want: int) -> None:
    table = gguf_file.tensors(shapes.SIZES[size])
    assert sum(t.num_bytes for t in table if t.type.name == kind) == want


# Weights by what they are for, in the order of SIZES.
PARAMETERS = {
    "token_embd": (402653184, 671088640, 1006632960, 738197504, 1409286144),
    "attention": (278396928, 587202560, 2406481920, 1110179840, 8477736960),
    "dense": (1557135360, 3303014400, 8493465600, 535265280, 20808990720),
    "experts": (0, 0, 0, 22837985280, 0),
    "router": (0, 0, 0, 10901760, 0),
    "norms": (231936, 452352, 769792, 612096, 1331456),
    "scalars": (35, 42, 48, 30, 60),
    "table": (2348810240, 2818572288, 0, 0, 0),
    "per layer": (41341696, 82683136, 0, 0, 0),
    "rope": (256, 256, 256, 256, 256),
}
PURPOSES = {
    "token_embd": "token_embd",
    "rope_freqs": "rope",
    "per_layer_token_embd": "table",
    **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), "attention"),
    **dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), "dense"),
    **dict.fromkeys(("ffn_gate_up_exps", "ffn_down_exps"), "experts"),
    "ffn_gate_inp": "router",
    "layer_output_scale": "scalars",
    **dict.fromkeys(("per_layer_model_proj", "per_layer_proj_norm"), "per layer"),
    **dict.fromkeys(("inp_gate", "proj", "post_norm"), "per layer"),
}


@pytest.mark.parametrize("size", SIZES)
def test_number_of_weights_by_purpose(size: str) -> None:
    found: Counter[str] = Counter()
    for tensor in gguf_file.tensors(shapes.SIZES[size]):
        stem, kind = tensor.name.split(".")[-2:]
        # The scale of each expert belongs to the router, although its name does not.
        purpose = "router" if kind == "scale" else PURPOSES.get(stem, "norms")
        found[purpose] += math.prod(tensor.shape)
    column = SIZES.index(size)
    assert found == {k: v[column] for k, v in PARAMETERS.items() if v[column]}


@pytest.mark.parametrize(
    ("size", "name", "shape"),
    [
        ("e2b", "token_embd.weight", (262144, 1536)),
        ("e2b", "per_layer_token_embd.weight", (262144, 8960)),
        ("e2b", "per_layer_model_proj.weight", (8960, 1536)),
        ("e2b", "rope_freqs.weight", (256,)),
        ("e2b", "blk.0.attn_q.weight", (2048, 1536)),
        ("e2b", "blk.4.attn_q.weight", (4096, 1536)),
        ("e2b", "blk.4.attn_output.weight", (1536, 4096)),
        ("e2b", "blk.13.attn_k.weight", (256, 1536)),
        ("e2b", "blk.14.attn_v.weight", (512, 1536)),
        ("e2b", "blk.14.attn_k_norm.weight", (512,)),
        ("e2b", "blk.15.attn_k.weight", None),
        ("e2b", "blk.15.attn_v.weight", None),
        ("e2b", "blk.34.attn_k_norm.weight", None),
        ("e2b", "blk.34.attn_q_norm.weight", (512,)),
        ("e2b", "blk.14.ffn_down.weight", (1536, 6144)),
        ("e2b", "blk.15.ffn_down.weight", (1536, 12288)),
        ("e2b", "blk.34.inp_gate.weight", (256, 1536)),
        ("e2b", "blk.34.proj.weight", (1536, 256)),
        ("e2b", "blk.35.attn_q.weight", None),
        ("e4b", "blk.4.attn_q.weight", (2048, 2560)),
        ("e4b", "blk.5.attn_k.weight", (1024, 2560)),
        ("e4b", "blk.23.attn_k.weight", (1024, 2560)),
        ("e4b", "blk.24.attn_k.weight", None),
        ("e4b", "blk.41.ffn_gate.weight", (10240, 2560)),
        ("12b", "blk.0.attn_v.weight", (2048, 3840)),
        ("12b", "blk.5.attn_k.weight", (512, 3840)),
        ("12b", "blk.5.attn_v.weight", None),
        ("12b", "blk.0.inp_gate.weight", None),
        ("26b", "blk.0.ffn_gate_inp.weight", (128, 2816)),
        ("26b", "blk.0.ffn_gate_inp.scale", (2816,)),
        ("26b", "blk.0.ffn_gate_up_exps.weight", (128, 1408, 2816)),
        ("26b", "blk.0.ffn_down_exps.weight", (128, 2816, 704)),
        ("26b", "blk.0.ffn_down_exps.scale", (128,)),
        ("26b", "blk.29.attn_k.weight", (1024, 2816)),
        ("26b", "blk.29.pre_ffw_norm_2.weight", (2816,)),
        ("31b", "blk.59.attn_q.weight", (16384, 5376)),
        ("31b", "blk.59.attn_k.weight", (2048, 5376)),
        ("31b", "blk.58.attn_k.weight", (4096, 5376)),
        ("31b", "output.weight", None),
    ],
)
def test_shapes(size: str, name: str, shape: tuple[int, ...] | None) -> None:
    table = {t.name: t.shape for t in gguf_file.tensors(shapes.SIZES[size])}
    assert table.get(name) == shape


KEYS = {
    "block_count": (35, 42, 48, 30, 60),
    "context_length": (131072, 131072, 262144, 262144, 262144),
    "embedding_length": (1536, 2560, 3840, 2816, 5376),
    "attention.head_count": (8, 8, 16, 16, 32),
    "attention.sliding_window": (512, 512, 1024, 1024, 1024),
    "attention.shared_kv_layers": (20, 18, 0, 0, 0),
    "attention.key_length": (512,) * 5,
    "attention.value_length_swa": (256,) * 5,
    "embedding_length_per_layer_input": (256, 256, 0, 0, 0),
    "feed_forward_length": ([6144] * 15 + [12288] * 20, 10240, 15360, 2112, 21504),
    "attention.head_count_kv": (
        *(1, 2, [8, 8, 8, 8, 8, 1] * 8),
        *([8, 8, 8, 8, 8, 2] * 5, [16, 16, 16, 16, 16, 4] * 10),
    ),
    "attention.sliding_window_pattern": (
        ([True] * 4 + [False]) * 7,
        *(([True] * 5 + [False]) * n for n in (7, 8, 5, 10)),
    ),
    "expert_count": (None, None, None, 128, None),
    "expert_used_count": (None, None, None, 8, None),
    "expert_feed_forward_length": (None, None, None, 704, None),
    "rope.freq_base": (1e6,) * 5,
    "rope.freq_base_swa": (1e4,) * 5,
    "final_logit_softcapping": (30.0,) * 5,
}


@pytest.mark.parametrize("size", SIZES)
def test_hyperparameters(size: str) -> None:
    keys = gguf_file.metadata(replace(shapes.SIZES[size], vocab=1))
    for name, values in KEYS.items():
        assert keys.get(f"gemma4.{name}") == values[SIZES.index(size)], name


# ---- the vocabulary


@cache
def vocabulary() -> tuple[list[str], list[int], list[str]]:
    return gguf_file.vocabulary(262144)


def test_special_tokens_are_at_their_places() -> None:
    tokens, types, _ = vocabulary()
    assert tokens[:5] == ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    assert tokens[105:110] == ["<|turn>", "<turn|>", "\n", "\n\n", "\n\n\n"]
    assert tokens[50] == "<|tool_response>"
    assert tokens[212] == "</s>"
    assert tokens[238:494] == [f"<0x{i:02X}>" for i in range(256)]
    assert tokens[258880:258885] == [
        *("<|image|>", "<|audio|>", "<image|>", "<audio|>", "<|video|>")
    ]
    # The released file: 256 bytes, 16 control, 7 user-defined tokens, the rest normal.
    assert Counter(types) == {6: 256, 3: 16, 4: 7, 1: 261865}
    assert all(types[i] == 4 for i in (48, 49, 50, 51, 52, 100, 101))


def test_all_tokens_differ_and_merges_join_them() -> None:
    tokens, types, merges = vocabulary()
    known = set(tokens)
    assert len(known) == len(tokens) == len(types) == 262144
    assert len(set(merges)) == len(merges)
    assert len(merges) == pytest.approx(514_906, rel=0.005)
    for merge in merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= known


# ---- files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a narrow file of a size, once."""
    folder = tmp_path_factory.mktemp("narrow")

    @cache
    def make(size: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(shapes.SIZES, size, narrow(size))
            patch.setattr(noise, "POOL", 1 << 20)
            return synthetic.write(folder / f"{size}.gguf", size)

    return make


@pytest.mark.parametrize("size", SIZES)
def test_both_readers_see_the_tensors(size: str, files: Callable[[str], Path]) -> None:
    table = gguf_file.tensors(narrow(size))
    ours = halfbyte.open_gguf(files(size))
    reader = gguf.GGUFReader(files(size))
    theirs = reader.tensors
    assert not ours.warnings
    assert len(ours.tensors) == len(theirs) == len(table)
    for want, own, other in zip(table, ours.tensors, theirs, strict=True):
        assert own.name == other.name == want.name
        assert own.type == other.tensor_type.name == want.type.name
        assert own.shape == tuple(other.shape.tolist()[::-1]) == want.shape
        assert own.offset == other.data_offset
        assert own.offset % 32 == 0
    last = ours.tensors[-1]
    assert 0 <= ours.file_bytes - (last.offset + last.bytes) < 32


@pytest.mark.parametrize("size", SIZES)
def test_both_readers_see_the_metadata(size: str, files: Callable[[str], Path]) -> None:
    ours = halfbyte.open_gguf(files(size)).metadata
    theirs = gguf.GGUFReader(files(size)).fields
    wanted = gguf_file.metadata(narrow(size))
    assert list(ours) == list(wanted)
    for key, value in wanted.items():
        found = theirs[key].contents()
        assert found == (pytest.approx(value) if isinstance(value, float) else value)
        kinds = theirs[key].types
        if isinstance(value, int) and not isinstance(value, bool):
            assert kinds == [gguf.GGUFValueType.UINT32]
        own = ours[key]
        if isinstance(value, list):
            assert list(own) == value
        else:
            assert own == found


@pytest.mark.parametrize("size", SIZES)
def test_weights_are_as_large_as_meant(size: str, files: Callable[[str], Path]) -> None:
    table = {tensor.name: tensor for tensor in gguf_file.tensors(narrow(size))}
    for tensor in gguf.GGUFReader(files(size)).tensors:
        want = table[tensor.name]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(values).all()
        if want.name == "rope_freqs.weight":
            assert values.tolist() == [1.0] * 64 + [float(np.float32(1e30))] * 192
        elif len(want.shape) == 1:
            signs = np.sign(values)
            assert np.abs(signs * values / want.level - 1).max() <= 0.1001
            both = want.name == "output_norm.weight"
            assert set(signs.tolist()) == ({-1.0, 1.0} if both else {1.0})
        else:
            assert values.std() == pytest.approx(want.level, rel=0.03)
            assert abs(values.mean()) < 0.05 * want.level


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_sane(size: str, files: Callable[[str], Path]) -> None:
    model = halfbyte.load(files(size), context=64)
    shape, layers = narrow(size), model.config.layers
    sources = [layer.kv_source for layer in layers]
    assert [not layer.sliding for layer in layers] == [
        shape.is_full(i) for i in range(shape.layers)
    ]
    if size == "e2b":
        assert sources == [0, 1, 2, 3, 4, 3, 3, 3, 3, 4]
    elif size == "e4b":
        assert sources == [0, 1, 2, 3, 4, 5, 4, 4, 4, 4, 4, 5]
    else:
        assert sources == [*range(12)]
    ids = [2, *range(600, 620)]
    logits = model.session().logits(ids)
    assert logits.shape == (21, 2048)
    assert np.isfinite(logits).all()
    # One deviation for all, as the norm of the head says, and another answer each time.
    np.testing.assert_allclose(logits.std(axis=1), 3.0, rtol=0.2)
    answers = logits.argmax(axis=1).tolist()
    assert len(set(answers)) > 10
    assert answers != ids


def test_the_same_seed_gives_the_same_bytes(
    narrowed: None,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    def digest(name: str, seed: int) -> str:
        path = synthetic.write(tmp_path / name, "e2b", seed=seed)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    first = digest("a", 1)
    assert digest("b", 1) == first
    assert digest("c", 2) != first
    # On every machine and with every NumPy. To be replaced when the content changes.
    assert first == "b30e687f9214e75c107aebf13dbed71ee39ce8a652a2ac28b8cd2b42226ad868"


def test_another_seed_gives_other_blocks(files: Callable[[str], Path]) -> None:
    def blocks(seed: int) -> bytes:
        pool = gguf_file.Blocks(gguf.GGMLQuantizationType.Q4_0, 0.02, seed)
        return b"".join(map(bytes, pool.take(18 * 1000)))

    assert blocks(3) == blocks(3)
    assert blocks(3) != blocks(4)
    assert files("e2b").stat().st_size % 32 == 0


def test_no_page_of_weights_is_written_twice(
    narrowed: None,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    path = synthetic.write(tmp_path / "a.gguf", "26b")
    start = halfbyte.open_gguf(path).tensors[0].offset
    data = path.read_bytes()[start:]
    assert len(data) > 100 * noise.POOL  # many times around
    pages = [data[i : i + 4096] for i in range(0, len(data), 4096)]
    assert len(set(pages)) == len(pages)


def test_a_cut_e2b_of_full_width(tmp_path: Path) -> None:
    path = synthetic.write(tmp_path / "cut.gguf", "e2b", layers=10)
    try:
        model = halfbyte.load(path, context=64)
        assert model.config.vocab_size == 262144
        ids = model.tokenize("Nobody on the quay spoke much.\n\nÄ 7", bos=True)
        assert model.detokenize(ids[1:]) == "Nobody on the quay spoke much.\n\nÄ 7"
        assert len(ids) < 30
        logits = model.session().logits(ids)
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(logits.std(axis=1), 3.0, rtol=0.2)
        assert len(set(logits.argmax(axis=1).tolist())) > len(ids) // 2
        del model
    finally:
        path.unlink()  # 1.2 GB, which pytest would keep


# ---- cutting


@pytest.mark.parametrize(
    ("size", "layers", "shared"),
    [
        ("e2b", 5, 0),
        ("e2b", 10, 5),
        ("e2b", 20, 10),
        ("e2b", 35, 20),
        ("e4b", 6, 0),
        ("e4b", 12, 6),
        ("e4b", 42, 18),
        ("31b", 6, 0),
    ],
)
def test_a_cut_keeps_whole_periods(size: str, layers: int, shared: int) -> None:
    whole = shapes.SIZES[size]
    shape = whole.cut(layers)
    assert (shape.layers, shape.shared) == (layers, shared)
    assert shape.is_full(layers - 1)
    # The two layers that others read: a sliding and a full one.
    assert shape.is_full(shape.first_shared - 1)
    assert not shape.is_full(shape.first_shared - 2)
    assert (shape == whole) == (layers == whole.layers)


@pytest.mark.parametrize("layers", [-5, 0, 1, 7, 40])
def test_other_cuts_are_refused(layers: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="E2B can be cut to a multiple of 5 layers"):
        synthetic.write(tmp_path / "a.gguf", "e2b", layers=layers)
    assert not list(tmp_path.iterdir())


# ---- writing, and not writing


def test_progress_goes_to_the_end(narrowed: None, tmp_path: Path) -> None:  # noqa: ARG001
    seen: list[tuple[int, int]] = []
    path = synthetic.write(
        str(tmp_path / "a.gguf"), "e4b", progress=lambda *step: seen.append(step)
    )
    assert path == tmp_path / "a.gguf"
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {path.stat().st_size}
    assert seen[-1][0] == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_kept(narrowed: None, tmp_path: Path) -> None:  # noqa: ARG001
    path = tmp_path / "a.gguf"
    path.write_text("dear to somebody")
    with pytest.raises(FileExistsError, match=r"a\.gguf"):
        synthetic.write(path, "e2b")
    assert path.read_text() == "dear to somebody"
    synthetic.write(path, "e2b", force=True)
    assert halfbyte.open_gguf(path).metadata["general.architecture"] == "gemma4"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileExistsError):
        synthetic.write(tmp_path, "e2b", force=True)


def test_an_interrupt_leaves_no_file(narrowed: None, tmp_path: Path) -> None:  # noqa: ARG001
    old = tmp_path / "old.gguf"
    old.write_text("dear to somebody")

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    for path in (old, tmp_path / "new.gguf"):
        with pytest.raises(KeyboardInterrupt):
            synthetic.write(path, "e2b", force=True, progress=stop)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_text() == "dear to somebody"


def test_a_full_disk_is_noticed_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = SimpleNamespace(free=2 << 30)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"3\.1 GiB needed, 2\.0 GiB free"):
        synthetic.write(tmp_path / "a.gguf", "e2b")
    assert not list(tmp_path.iterdir())


def test_an_unknown_size_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no size '7b': there are e2b, e4b, 12b"):
        synthetic.write(tmp_path / "a.gguf", "7b")


# ---- the command


def table(text: str) -> dict[str, list[str]]:
    """Rows of a printed table by their first cell."""
    rows = (line.split("  ") for line in text.splitlines())
    return {row[0].strip(): " ".join(row[1:]).split() for row in rows}


@pytest.mark.parametrize("size", SIZES)
def test_a_dry_run_agrees_with_the_released_file(
    size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.main([size, "--dry-run"])
    rows = table(capsys.readouterr().out)
    number, _, official = CONTENT[size]
    assert rows["in all"][0] == str(number)
    assert rows["released file"] == [f"{official:,}"]
    own = int(rows["in all"][1].replace(",", ""))
    assert abs(own - official) < 200_000
    assert int(rows["difference"][0].replace(",", "")) == own - official
    assert rows["Q4_0"][0] == str(CONTENT[size][1]["Q4_0"])


def test_the_list_has_all_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.main(["--list"])
    rows = table(capsys.readouterr().out)
    assert set(SIZES) < set(rows)
    # In all, as released: what the vendor's files are known as, in GB.
    for size, gigabytes in zip(SIZES, (3.35, 5.15, 6.98, 14.44, 17.65), strict=True):
        for cell in rows[size][-3:-1]:
            assert float(cell) == pytest.approx(gigabytes, abs=0.0051)


def test_the_command_writes_and_refuses(
    narrowed: None,  # noqa: ARG001
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(tmp_path / "a.gguf")
    synthetic.main(["12b", path])
    with pytest.raises(SystemExit, match="exists already"):
        synthetic.main(["12b", path])
    synthetic.main(["12b", path, "--force", "--layers", "6", "--seed", "5"])
    assert halfbyte.load(path, context=64).config.num_layers == 6
    with pytest.raises(SystemExit, match="multiple of 6"):
        synthetic.main(["12b", path, "--force", "--layers", "5"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("words", [[], ["e2b"], ["9b", "a.gguf"]])
def test_missing_words_are_asked_for(words: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        synthetic.main(words)
    assert error.value.code == 2


def test_it_runs_as_a_script() -> None:
    script = ROOT / "benchmarks" / "synthetic.py"
    line = [sys.executable, "-W", "error", str(script), "e2b", "--dry-run"]
    done = subprocess.run(
        [*line, "--layers", "5"], check=True, capture_output=True, text=True
    )
    assert "Q6_K" in done.stdout
    assert "released" not in done.stdout
    assert done.stderr == ""


# ---- directories

DIRECTORIES = tuple(
    f"{size}-{form}" for size in ("e2b", "e4b") for form in ("mobile", "w4a16", "bf16")
)
# Tensors of a drafter, and its parameters in millions, as Google counts them.
DRAFTERS = {
    "e2b-drafter": (50, 76),
    "e4b-drafter": (50, 77),
    "12b-drafter": (48, 400),
    "26b-drafter": (48, 430),
    "31b-drafter": (48, 500),
}
PACKED = [kind for kind in DIRECTORIES if not kind.endswith("bf16")]


def layout(kind: str) -> dict[str, directory.Tensor]:
    """Tensors of a directory by name, in the order of the file."""
    size, form = kind.split("-")
    return {t.name: t for t in directory.tensors(shapes.SIZES[size], form)}


def test_the_kinds_are_sizes_and_directories() -> None:
    assert set(synthetic.kinds()) == {*SIZES, *DIRECTORIES, *DRAFTERS}
    assert len(set(synthetic.kinds())) == len(synthetic.kinds())


@pytest.mark.parametrize(
    ("kind", "number", "want"),
    [("e2b-mobile", 1601, 2_118_056_254), ("e4b-mobile", 1925, 3_175_558_524)],
)
def test_the_text_part_is_as_large_as_the_released_one(
    kind: str, number: int, want: int
) -> None:
    tensors = layout(kind).values()
    assert len(tensors) == number
    assert sum(tensor.num_bytes for tensor in tensors) == want


# Published bytes of the text part of E2B, by what they are for.
MOBILE_BYTES = {
    "embedding codes": 100_663_296,
    "embedding scales": 1_048_576,
    "head codes": 100_663_296,
    "head scales": 1_048_576,
    "head steps": 8,
    "table codes": 1_174_405_120,
    "table scales": 36_700_160,
    "projection": 27_525_120,
    "attention": 139_198_464,
    "dead": 9_486_656,
    "own feed-forward": 212_336_640,
    "shared feed-forward": 283_115_520,
    "per layer": 27_525_120,
    "scales": 3_765_248,
    "steps": 2_200,
    "norms": 571_904,
    "layer scalars": 70,
    "cache steps": 280,
}
TOP = {
    "embed_tokens.embedding_quantized": "embedding codes",
    "embed_tokens.embedding_scale": "embedding scales",
    "lm_head.weight": "head codes",
    "lm_head.weight_scale": "head scales",
    "lm_head.input_activation_scale": "head steps",
    "lm_head.output_activation_scale": "head steps",
    "embed_tokens_per_layer.embedding_quantized": "table codes",
    "embed_tokens_per_layer.embedding_scale": "table scales",
    "per_layer_model_projection.weight": "projection",
    "per_layer_projection_norm.weight": "norms",
    "norm.weight": "norms",
}


def purpose(name: str) -> str:
    """What the table above counts a tensor of E2B as."""
    name = name.removeprefix("model.language_model.")
    if name in TOP:
        return TOP[name]
    _, number, *rest = name.split(".")
    module, last = ".".join(rest[:-1]), rest[-1]
    shared = int(number) >= 15
    if last == "layer_scalar":
        return "layer scalars"
    if last.endswith("_cache_scale"):
        return "cache steps"
    if module.endswith("norm"):
        return "norms"
    if shared and module in ("self_attn.k_proj", "self_attn.v_proj"):
        return "dead"
    if last.endswith("_activation_scale"):
        return "steps"
    if last == "weight_scale":
        return "scales"
    if module.startswith("mlp."):
        return "shared feed-forward" if shared else "own feed-forward"
    return "attention" if module.startswith("self_attn.") else "per layer"


def test_mobile_bytes_by_purpose() -> None:
    found: Counter[str] = Counter()
    for name, tensor in layout("e2b-mobile").items():
        found[purpose(name)] += tensor.num_bytes
    assert found == MOBILE_BYTES


L0, L30 = "model.language_model.layers.0.", "model.language_model.layers.30."


@pytest.mark.parametrize(
    ("kind", "name", "dtype", "shape"),
    [
        ("e2b-mobile", L0 + "mlp.gate_proj.weight", "U8", (6144, 768)),
        ("e2b-mobile", L30 + "mlp.down_proj.weight", "U8", (1536, 3072)),
        ("e2b-mobile", L30 + "self_attn.k_proj.weight", "U8", (256, 768)),
        ("e2b-mobile", L30 + "self_attn.k_proj.weight_scale", "F32", (256, 1)),
        ("e2b-mobile", L0 + "per_layer_input_gate.weight", "I8", (256, 1536)),
        ("e2b-mobile", L0 + "self_attn.q_proj.input_activation_scale", "F32", ()),
        ("e2b-mobile", L30 + "self_attn.k_cache_scale", "F32", ()),
        ("e2b-mobile", L0 + "layer_scalar", "BF16", (1,)),
        ("e4b-mobile", L30 + "mlp.down_proj.weight", "U8", (2560, 5120)),
        ("e2b-w4a16", L30 + "mlp.down_proj.weight_packed", "I32", (1536, 1536)),
        ("e2b-w4a16", L30 + "mlp.down_proj.weight_scale", "BF16", (1536, 384)),
        ("e2b-w4a16", L0 + "per_layer_projection.weight_packed", "I32", (1536, 32)),
        ("e2b-w4a16", L0 + "mlp.up_proj.weight_shape", "I64", (2,)),
        ("e2b-w4a16", "lm_head.weight", "BF16", (262144, 1536)),
    ],
)
def test_some_tensors_of_directories(
    kind: str, name: str, dtype: str, shape: tuple[int, ...]
) -> None:
    tensor = layout(kind)[name]
    assert (tensor.dtype, tensor.shape) == (dtype, shape)


def test_what_directories_lack() -> None:
    for kind in DIRECTORIES:
        assert L30 + "self_attn.k_norm.weight" not in layout(kind)
    assert L30 + "self_attn.k_proj.weight_packed" not in layout("e2b-w4a16")
    projection = "model.language_model.per_layer_model_projection.weight"
    assert layout("e2b-w4a16")[projection].dtype == "BF16"
    assert layout("e4b-w4a16")[projection + "_packed"].shape == (10752, 320)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a narrow directory, once."""
    folder = tmp_path_factory.mktemp("directories")

    @cache
    def make(kind: str) -> Path:
        size = kind.split("-")[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(shapes.SIZES, size, narrow(size))
            patch.setattr(noise, "POOL", 1 << 20)
            return synthetic.write(folder / kind, kind)

    return make


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_the_library_reads_what_was_meant(
    kind: str, directories: Callable[[str], Path]
) -> None:
    size, form = kind.split("-")
    path = directories(kind)
    files = {"config.json", "model.safetensors"}
    files |= {"tokenizer.json"} if form == "bf16" else set()
    assert {p.name for p in path.iterdir()} == files
    want = {t.name: t for t in directory.tensors(narrow(size), form)}
    with safetensors.safe_open(path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(want)
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            assert part.get_dtype() == want[name].dtype, name
            assert tuple(part.get_shape()) == want[name].shape, name


@pytest.mark.parametrize("kind", PACKED)
def test_packed_weights_are_as_large_as_meant(
    kind: str, directories: Callable[[str], Path]
) -> None:
    size, form = kind.split("-")
    root = "model.language_model."
    with safetensors.safe_open(
        directories(kind) / "model.safetensors", "np" if form == "mobile" else "pt"
    ) as file:
        for layer, last in ((0, "mlp.up_proj"), (9, "mlp.down_proj")):
            base = f"{root}layers.{layer}.{last}"
            columns = narrow(size).ffn_len(layer) if last[4] == "d" else 256
            if form == "w4a16":
                packed = file.get_tensor(f"{base}.weight_packed").numpy()
                shape = file.get_tensor(f"{base}.weight_shape").tolist()
                assert shape == [len(packed), columns]
                scale = file.get_tensor(f"{base}.weight_scale").float().numpy()
            else:
                packed = file.get_tensor(f"{base}.weight")
                scale = file.get_tensor(f"{base}.weight_scale")
            bits = 8 * packed.nbytes // len(packed) // columns
            assert bits == (2 if kind == "e2b-mobile" and layer == 9 else 4)
            raw = packed.view(np.uint8)[..., None] >> np.arange(0, 8, bits)
            levels = (raw & (2**bits - 1)).reshape(len(packed), columns)
            values = levels.astype(np.float32) - 2.0 ** (bits - 1)
            values *= scale.repeat(columns // scale.shape[1], axis=1)
            level = 1 / math.sqrt(columns)
            # 131,072 weights at least: both are 0.3 % of their level off by chance.
            assert values.std() == pytest.approx(level, rel=0.03)
            assert abs(values.mean()) < 0.02 * level


@pytest.mark.parametrize("kind", ["e2b-bf16", "e4b-bf16"])
def test_float_weights_are_on_the_lattice(
    kind: str, directories: Callable[[str], Path], tmp_path: Path
) -> None:
    file = halfbyte.open_safetensors(directories(kind))
    for tensor in file.tensors:
        if len(tensor.shape) < 2:
            continue
        values = file.weight(tensor.name).dequantize()
        columns = values.shape[1]
        level = 1 / math.sqrt(256 if "per_layer.weight" in tensor.name else columns)
        if values.size > 100_000:
            assert values.std() == pytest.approx(level, rel=0.03), tensor.name
        # Whole pages are alike nowhere.
        pages = values.reshape(-1)[: values.size // 2048 * 2048].reshape(-1, 2048)
        assert len({page.tobytes() for page in pages[:300]}) == len(pages[:300])
    report = halfbyte.convert(directories(kind), tmp_path / "out.gguf")
    for role in report.roles:
        assert role.share("off") == 0, role
        # A step has more digits than float16 in two groups of a hundred.
        assert role.share("exact") > 0.95, role
    assert {role.type for role in report.roles} == {"Q4_0", "F16", "F32"}
    model = halfbyte.load(tmp_path / "out.gguf")
    assert model.has_tokenizer
    assert model.tokenizer.num_tokens == narrow(kind[:3]).vocab


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_a_directory_runs(kind: str, directories: Callable[[str], Path]) -> None:
    model = halfbyte.load(directories(kind), context=64)
    assert model.config.num_layers == narrow(kind.split("-")[0]).layers
    activations = "static" if kind.endswith("mobile") else "auto"
    assert model.report().activations == activations
    ids = [2, *range(600, 620)]
    session = model.session()
    logits = np.concatenate([session.logits([token]) for token in ids])
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits.std(axis=1), 3.0, rtol=0.2)
    answers = logits.argmax(axis=1).tolist()
    assert len(set(answers)) > 10
    assert answers != ids


@pytest.mark.parametrize("kind", ["e2b-mobile", "e4b-mobile"])
def test_static_activations_neither_saturate_nor_vanish(
    kind: str, directories: Callable[[str], Path]
) -> None:
    # Steps that were too large or too small by an order would leave little of a layer:
    # with them and without, a network's answers would have nothing in common.
    ids = [2, *range(600, 640)]
    static, dynamic = (
        halfbyte.load(directories(kind), context=64, activations=mode).logits(ids)
        for mode in ("static", "dynamic")
    )
    for ours, exact in zip(static, dynamic, strict=True):
        assert np.corrcoef(ours, exact)[0, 1] > 0.9


def test_the_head_is_a_copy_of_the_embedding(
    directories: Callable[[str], Path],
) -> None:
    base = "model.language_model.embed_tokens.embedding_"
    with safetensors.safe_open(
        directories("e2b-mobile") / "model.safetensors", "np"
    ) as file:
        pairs = (("quantized", "lm_head.weight"), ("scale", "lm_head.weight_scale"))
        for last, head in pairs:
            own = file.get_tensor(base + last)
            np.testing.assert_array_equal(own, file.get_tensor(head))
        assert file.get_tensor("lm_head.input_activation_scale") == 0


def test_the_configuration_is_one_that_transformers_reads(
    directories: Callable[[str], Path],
) -> None:
    for kind in DIRECTORIES:
        found = transformers.AutoConfig.from_pretrained(directories(kind))
        text, shape = found.text_config, narrow(kind.split("-")[0])
        assert type(found).__name__ == "Gemma4Config"
        assert text.num_kv_shared_layers == shape.shared
        full = text.per_layer_config[shape.layers - 1]
        assert (full.head_dim, full.num_key_value_heads) == (512, shape.kv_heads[1])


@pytest.mark.parametrize("kind", ["e2b-mobile", "e2b-w4a16"])
def test_the_same_seed_gives_the_same_directory(
    narrowed: None,  # noqa: ARG001
    kind: str,
    tmp_path: Path,
) -> None:
    def digest(name: str, seed: int) -> str:
        path = synthetic.write(tmp_path / name, kind, seed=seed)
        return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()

    assert digest("a", 1) == digest("b", 1)
    assert digest("a2", 1) != digest("c", 2)


@pytest.mark.parametrize("kind", ["e2b-mobile", "e2b-w4a16"])
def test_no_page_but_the_head_is_written_twice(
    narrowed: None,  # noqa: ARG001
    kind: str,
    tmp_path: Path,
) -> None:
    path = synthetic.write(tmp_path / "a", kind) / "model.safetensors"
    file = halfbyte.open_safetensors(path)
    pages = []
    for tensor in file.tensors:
        if not tensor.name.startswith("lm_head."):
            data = file.tensor_bytes(tensor.name).tobytes()
            pages += [data[i : i + 4096] for i in range(0, len(data) - 4095, 4096)]
    assert 4096 * len(pages) > 50 * noise.POOL  # many times around
    assert len(set(pages)) == len(pages)


def test_an_existing_directory_is_kept(
    narrowed: None,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "notes").write_text("dear to somebody")
    (path / "config.json").write_text("old")
    with pytest.raises(FileExistsError, match="exists already"):
        synthetic.write(path, "e2b-mobile")
    assert (path / "config.json").read_text() == "old"
    synthetic.write(path, "e2b-mobile", force=True)
    assert (path / "notes").read_text() == "dear to somebody"
    assert halfbyte.load(path, context=64).config.num_layers == 10
    assert list(tmp_path.iterdir()) == [path]
    file = tmp_path / "file"
    file.write_text("dear to somebody")
    with pytest.raises(FileExistsError):
        synthetic.write(file, "e2b-mobile", force=True)


def test_an_interrupt_leaves_no_directory(
    narrowed: None,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.write(tmp_path / "a", "e2b-mobile", progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_a_dry_run_of_a_directory(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.main([kind, "--dry-run"])
    rows = table(capsys.readouterr().out)
    assert rows["in all"][0] == str(len(layout(kind)))
    wanted = ["+0"] if kind.endswith("mobile") else None
    assert rows.get("difference of tensors") == wanted


# ---- drafters


@pytest.mark.parametrize("kind", DRAFTERS)
def test_the_size_of_drafters(kind: str) -> None:
    tensors = layout(kind).values()
    number, millions = DRAFTERS[kind]
    assert len(tensors) == number
    found = sum(math.prod(t.shape) for t in tensors if t.dtype == "BF16")
    # Google rounds those of the large sizes, it seems, to what is near.
    assert found / 1e6 == pytest.approx(millions, rel=0.07)


@pytest.mark.parametrize("kind", DRAFTERS)
def test_a_drafter_guesses(
    kind: str, files: Callable[[str], Path], directories: Callable[[str], Path]
) -> None:
    size, path = kind.split("-")[0], directories(kind)
    found = transformers.AutoConfig.from_pretrained(path)
    assert type(found).__name__ == "Gemma4AssistantConfig"
    assert found.backbone_hidden_size == narrow(size).hidden
    model = halfbyte.load(files(size), drafter=path, context=64)
    prompt = [2, *range(600, 620)]
    plain = [
        model.stream(prompt, max_tokens=12, draft=0),
        model.stream(prompt, max_tokens=12),
    ]
    tokens = []
    for stream in plain:
        for _ in stream:
            pass
        tokens.append(stream.tokens)
    assert tokens[0] == tokens[1]
    assert plain[1].stats is not None
    assert plain[1].stats.drafted_tokens > 0
