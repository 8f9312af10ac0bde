# tests/python/test_roles.py
# Bits by the role of a matrix, and the bytes that a text-only run keeps.
# SPDX-License-Identifier: Apache-2.0
"""`halfbyte inspect`: bits by role, scales, and what a text-only run keeps.

The oracles are the modules that tiny checkpoints were written from, what `load` makes
of the same files, and published byte counts of the released ones.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import compressed
import gguf
import halfbyte
import mobile
import numpy as np
import pytest
import tiny
import torch
from halfbyte.cli import main, memory, roles
from halfbyte.files import TensorInfo
from halfbyte.modules import formats_of
from halfbyte.transformers import HalfbyteConfig
from safetensors.torch import save_file
from synth import gguf_file, shapes
from transformers import AutoModelForCausalLM

Inspect = Callable[..., Any]


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Inspect:
    """Runs `halfbyte inspect` and gives its document, or its text."""

    def run(path: Path, *, text: bool = False) -> Any:
        capsys.readouterr()  # what made the file may have written
        code = main(["inspect", str(path), *([] if text else ["--json"])])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out if text else json.loads(out)

    return run


@cache
def reference(name: str) -> Any:
    return mobile.build(name)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Write a mobile checkpoint, as it is or as compressed-tensors has it."""

    @cache
    def make(name: str, rewrap: bool) -> Path:
        folder = tmp_path_factory.mktemp("roles")
        return mobile.save(reference(name), folder, name, rewrap=rewrap)

    return make


def by_role(document: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for group in document["roles"]:
        found.setdefault(group["role"], []).append(group)
    return found


def kept(groups: list[Any]) -> list[tuple[Any, str]]:
    return [(group["layers"], group["kept"]) for group in groups]


# ---- mobile checkpoints, and the same integers as compressed-tensors

EVERY = "every layer"
WIDTHS = {
    "e2b": {
        "MLP": [([[0, 7]], "4 bit, per row"), ([[8, 11]], "2 bit, per row")],
        "PLE table": [([], "4 bit, per 64")],
    },
    "e4b": {
        "MLP": [(EVERY, "4 bit, per row")],
        "PLE table": [([], "2 bit, per 64")],
    },
}
COMMON = {
    "attention": [(EVERY, "4 bit, per row")],
    "embedding": [([], "2 bit, per row")],
    "head": [([], "2 bit, per row")],
    "PLE gate, projection": [(EVERY, "8 bit, per row")],
    "PLE model projection": [([], "BF16")],
    "norms and scalars": [(EVERY, "BF16")],
}


@pytest.mark.parametrize("rewrap", [False, True], ids=["gemma", "compressed-tensors"])
@pytest.mark.parametrize("name", ["e2b", "e4b"])
def test_widths_by_role(
    name: str, rewrap: bool, folders: Callable[..., Path], inspect: Inspect
) -> None:
    layers = reference(name).config.text_config.num_hidden_layers
    document = inspect(folders(name, rewrap))
    found = by_role(document)
    for role, want in (COMMON | WIDTHS[name]).items():
        pairs = [([[0, layers - 1]] if at == EVERY else at, how) for at, how in want]
        assert kept(found[role]) == pairs, role
    # Every byte has one role.
    total = sum(group["bytes"] for group in document["roles"])
    assert total == document["bytes"]
    assert sum(g["tensors"] for g in document["roles"]) == document["tensors"]


@pytest.mark.parametrize("rewrap", [False, True], ids=["gemma", "compressed-tensors"])
def test_weights_bits_and_scales(
    rewrap: bool, folders: Callable[..., Path], inspect: Inspect
) -> None:
    model = reference("e2b")
    deep = by_role(inspect(folders("e2b", rewrap)))["MLP"][1]
    modules = [m for n, m in mobile.linears(model).items() if "mlp" in n]
    modules = [m for m in modules if m.num_bits == 2]
    weights = sum(m.in_features * m.out_features for m in modules)
    assert deep["weights"] == weights
    dtype = torch.bfloat16 if rewrap else torch.float32
    scales = np.concatenate(
        [m.weight_scale.to(dtype).float().numpy().ravel() for m in modules]
    )
    # Two numbers of 8 bytes say the shape of each matrix of compressed-tensors.
    size = weights / 4 + scales.size * dtype.itemsize + 16 * len(modules) * rewrap
    assert deep["bytes"] == size
    assert deep["bits_per_weight"] == round(8 * size / weights, 3)
    assert deep["scales"] == {
        "min": scales.min(),
        "median": np.median(scales),
        "max": scales.max(),
    }


def test_what_is_unused_and_what_encodes_is_apart(
    folders: Callable[..., Path], inspect: Inspect
) -> None:
    document = inspect(folders("e2b", False))
    found, dead = by_role(document), mobile._dead(reference("e2b"))
    matrices = [g for g in found["unused"] if g["weights"] > 100]
    assert kept(matrices) == [([[8, 11]], "4 bit, per row")]
    size = sum(t.nbytes for key, t in dead.items() if "activation" not in key)
    assert matrices[0]["bytes"] == size
    assert matrices[0]["scales"] is None  # they are NaN, and nobody looks
    assert sum(group["bytes"] for group in found["encoders"]) == 3 * 5 + 3 * 4


def test_the_table_for_people(folders: Callable[..., Path], inspect: Inspect) -> None:
    text = inspect(folders("e2b", False), text=True)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith("MLP 0-7 4 bit, per row 3,145,728 ") for line in lines)
    assert any(line.startswith("MLP 8-11 2 bit, per row 3,145,728 ") for line in lines)
    assert "scales of layers kept as min median max" in lines
    assert "text alone, computed size GB" in lines
    table = text[text.index("role ") : text.index("metadata")]
    assert max(map(len, table.splitlines())) <= 80


# ---- what load makes of it


def computed(path: Path) -> roles.Footprint:
    """The footprint of all that products read: no vectors, no scales of rows."""
    opened = (
        halfbyte.open_gguf(path) if path.is_file() else halfbyte.open_safetensors(path)
    )
    config = path / "config.json"
    told = json.loads(config.read_text()) if path.is_dir() else opened.metadata
    shape = memory.cache_shape(told)
    formats = formats_of(told) if path.is_dir() else None
    parts = roles.parts(opened, len(shape.layers), formats)
    rows = {t.name: 4 * math.prod(t.shape) for t in opened.tensors}
    per_row = [p for p in parts if p.kept.endswith("per row") and p.role != "unused"]
    found = roles.footprint(
        [p for p in parts if p.role not in ("norms and scalars", "steps")]
    )
    scales = sum(rows[p.scales] for p in per_row if p.role != "embedding")
    tables = (p for p in parts if p.role in ("embedding", "PLE table"))
    scales += sum(4 * p.decoded for p in tables)
    return found._replace(resident=found.resident - scales)


def q4(name: str) -> Any:
    kinds = gguf.GGMLQuantizationType
    table = name.startswith(("token_embd", "per_layer_token_embd"))
    return kinds.Q8_0 if table else kinds.F16 if "model_proj" in name else kinds.Q4_0


@pytest.mark.parametrize("name", ["e2b", "12b", "gemma3"])
@pytest.mark.parametrize("types", [None, q4], ids=["f32", "q4_0"])
def test_gguf_keeps_what_load_reads_for_a_token(
    name: str, types: Any, tiny_gguf: Callable[..., Path]
) -> None:
    path = tiny_gguf(name, types=types)
    read = halfbyte.load(path).report().bytes_per_token
    assert computed(path).resident == read


@pytest.mark.parametrize("rewrap", [False, True], ids=["gemma", "compressed-tensors"])
@pytest.mark.parametrize("name", ["e2b", "e4b"])
def test_mobile_keeps_what_load_reads_for_a_token(
    name: str, rewrap: bool, folders: Callable[..., Path]
) -> None:
    folder = folders(name, rewrap)
    read = halfbyte.load(folder).report().bytes_per_token
    assert computed(folder).resident == read


def test_scales_of_tables_are_copied_unless_they_are_f32(
    folders: Callable[..., Path], inspect: Inspect
) -> None:
    own, other = (
        inspect(folders("e2b", rewrap))["text_only_bytes"] for rewrap in (False, True)
    )
    tensors = mobile.tensors(reference("e2b"))
    scales = sum(t.numel() for k, t in tensors.items() if k.endswith("embedding_scale"))
    # The head's two steps, which are 0, are left out there.
    assert other["resident"] == own["resident"] + 4 * scales - 2 * 4
    # Each of the two tables says its shape in 16 bytes.
    assert other["mapped"] == own["mapped"] - 4 * scales + 2 * 16


@pytest.mark.parametrize("size", [32, 64, 128])
def test_groups_keep_what_load_reads_for_a_token(
    size: int, tmp_path: Path, inspect: Inspect
) -> None:
    model = tiny.build("12b", wide=True)
    made = compressed.compress(model, [compressed.group(["Linear"], 4, size)])
    folder = compressed.save(model, tmp_path, *made)
    read = halfbyte.load(folder).report().bytes_per_token
    assert computed(folder).resident == read
    found = by_role(inspect(folder))
    assert [group["kept"] for group in found["MLP"]] == [f"4 bit, per {size}"]
    assert [group["kept"] for group in found["embedding"]] == ["BF16"]


# ---- rows that HalfbyteConfig packed


@cache
def dense(name: str, folder: Path) -> Path:
    """A float checkpoint, and beside it what is packed from it."""
    return tiny.save_hf(tiny.build(name, wide=True), folder / name)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Write a checkpoint and a packed copy of it; both their directories."""
    base = tmp_path_factory.mktemp("packed")

    @cache
    def make(name: str, format: str, embeddings: str | bool) -> tuple[Path, Path]:
        source, folder = dense(name, base), base / f"{name}-{format}-{embeddings}"
        config = HalfbyteConfig(format=format, embeddings=embeddings, repack="never")
        model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
        model.save_pretrained(folder)
        return source, folder

    return make


# Bits of a weight: a block of 32 has 18 bytes in Q4_0 and 34 in Q8_0, one of 256 has 210
# in Q6_K.
PACKED = [
    ("e2b", "q4_0", "q6_k", {"MLP": ("Q4_0", 4.5), "embedding": ("Q6_K", 6.562)}),
    ("26b", "q4_0", "q6_k", {"experts": ("Q4_0", 4.5), "router": ("F32", 32.0)}),
    ("12b", "q8_0", False, {"attention": ("Q8_0", 8.5), "embedding": ("F32", 32.0)}),
    ("e2b", "w4", False, {"MLP": ("4 bit, per row", None)}),
]


@pytest.mark.parametrize(("name", "format", "embeddings", "want"), PACKED)
def test_packed_rows_have_the_weights_that_were_packed(
    name: str,
    format: str,
    embeddings: str | bool,
    want: dict[str, tuple[str, float | None]],
    packed: Callable[..., tuple[Path, Path]],
    inspect: Inspect,
) -> None:
    source, folder = packed(name, format, embeddings)
    before, document = inspect(source), inspect(folder)
    assert document["weights"] == before["weights"]
    bits = 8 * document["bytes"] / before["weights"]
    assert document["bits_per_weight"] == round(bits, 3)
    found = by_role(document)
    for role, groups in by_role(before).items():
        assert [g["weights"] for g in found[role]] == [g["weights"] for g in groups]
    for role, (how, each) in want.items():
        (group,) = found[role]
        assert group["kept"] == how
        assert each in (None, group["bits_per_weight"])
    assert sum(g["bytes"] for g in document["roles"]) == document["bytes"]


@pytest.mark.parametrize(
    ("name", "format", "embeddings"), [case[:3] for case in PACKED if case[0] != "26b"]
)
def test_packed_rows_keep_what_load_reads_for_a_token(
    name: str,
    format: str,
    embeddings: str | bool,
    packed: Callable[..., tuple[Path, Path]],
) -> None:
    _, folder = packed(name, format, embeddings)
    assert computed(folder).resident == halfbyte.load(folder).report().bytes_per_token


@pytest.fixture
def with_formats(
    packed: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> Callable[[Callable[[Any], Any]], Path]:
    """Copy a packed checkpoint, its ``module_formats`` as the function gives them."""

    def make(change: Callable[[Any], Any]) -> Path:
        _, whole = packed("e2b", "q4_0", "q6_k")
        folder = Path(shutil.copytree(whole, tmp_path / "model"))
        config = json.loads((folder / "config.json").read_text())
        told = config["quantization_config"]
        told["module_formats"] = change(told["module_formats"])
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize("formats", [None, {}, [], "q4_0", {"mlp": 4}, {"": "q4_0"}])
def test_packed_rows_without_formats_are_unclear(
    formats: Any, with_formats: Callable[..., Path], inspect: Inspect
) -> None:
    folder = with_formats(lambda _: formats)
    (group,) = by_role(inspect(folder))["MLP"]
    assert (group["kept"], group["weights"]) == ("U8, unclear", None)


@pytest.mark.parametrize("format", ["q9", "Q4_0", 4, None, ["q4_0"], "q6_k"])
def test_packed_rows_of_another_format_are_unclear(
    format: Any, with_formats: Callable[..., Path], inspect: Inspect
) -> None:
    """No rows of 144 bytes are blocks of Q6_K."""
    module = "model.layers.1.mlp.up_proj"
    folder = with_formats(lambda formats: formats | {module: format})
    found = {g["kept"]: g["layers"] for g in by_role(inspect(folder))["MLP"]}
    assert found == {"Q4_0": [[0, 11]], "U8, unclear": [[1, 1]]}


# ---- the released sizes, by their published bytes


def listing(tensors: Iterator[tuple[str, str, tuple[int, ...]]]) -> Any:
    """An opened file without data."""
    sizes = {"U8": 1, "I8": 1, "BF16": 2, "F32": 4}
    return SimpleNamespace(
        tensors=[
            TensorInfo(name, kind, shape, sizes[kind] * math.prod(shape), 0, 0, None)
            for name, kind, shape in tensors
        ],
        tensor_bytes=None,
    )


def mobile_tensors(size: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of every text tensor of a released mobile checkpoint."""
    s, root = shapes.SIZES[size], mobile.ROOT
    wide, ple = s.first_shared if size == "e2b" else s.layers, s.per_layer * s.layers
    ple_bits = 4 if size == "e2b" else 2

    def linear(name: str, rows: int, columns: int, bits: int) -> Iterator[Any]:
        kind = "I8" if bits == 8 else "U8"
        yield f"{name}.weight", kind, (rows, columns * bits // 8)
        yield f"{name}.weight_scale", "F32", (rows, 1)
        yield f"{name}.input_activation_scale", "F32", ()
        yield f"{name}.output_activation_scale", "F32", ()

    def vector(name: str, length: int) -> Any:
        return f"{root}{name}", "BF16", (length,)

    yield from linear("lm_head", s.vocab, s.hidden, 2)
    for name, columns, blocks, bits in (
        ("embed_tokens", s.hidden, 1, 2),
        (mobile.PLE, ple, s.layers, ple_bits),
    ):
        packed = (s.vocab, columns * bits // 8)
        yield f"{root}{name}.embedding_quantized", "U8", packed
        yield f"{root}{name}.embedding_scale", "F32", (s.vocab, blocks)
    yield f"{root}per_layer_model_projection.weight", "BF16", (ple, s.hidden)
    yield vector("norm.weight", s.hidden)
    yield vector("per_layer_projection_norm.weight", s.per_layer)
    for layer in range(s.layers):
        head = shapes.HEAD_FULL if s.is_full(layer) else shapes.HEAD
        queries, keys = s.heads * head, s.kv_heads[0] * head
        at, ffn = f"layers.{layer}.", s.ffn_len(layer)
        attention, mlp = f"{root}{at}self_attn.", f"{root}{at}mlp."
        bits = 4 if layer < wide else 2
        yield from linear(f"{attention}q_proj", queries, s.hidden, 4)
        yield from linear(f"{attention}k_proj", keys, s.hidden, 4)
        yield from linear(f"{attention}v_proj", keys, s.hidden, 4)
        yield from linear(f"{attention}o_proj", s.hidden, queries, 4)
        yield from linear(f"{mlp}gate_proj", ffn, s.hidden, bits)
        yield from linear(f"{mlp}up_proj", ffn, s.hidden, bits)
        yield from linear(f"{mlp}down_proj", s.hidden, ffn, bits)
        for end, n, k in (
            ("per_layer_input_gate", s.per_layer, s.hidden),
            ("per_layer_projection", s.hidden, s.per_layer),
        ):
            yield from linear(f"{root}{at}{end}", n, k, 8)
        for kind in ("k", "v"):
            yield f"{attention}{kind}_cache_scale", "F32", ()
        yield vector(f"{at}layer_scalar", 1)
        yield vector(f"{at}self_attn.q_norm.weight", head)
        if layer < s.first_shared:
            yield vector(f"{at}self_attn.k_norm.weight", head)
        for norm in (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
            "post_per_layer_input_norm",
        ):
            yield vector(f"{at}{norm}.weight", s.hidden)


# Tensors and bytes of the text part, then of the parts, as published for E2B and by the
# same rules for E4B: codes without scales, and what is dead with them.
MOBILE = {
    "e2b": (
        (1601, 2_118_056_254),
        {
            ("embedding", "2 bit, per row"): 100_663_296 + 1_048_576,
            ("PLE table", "4 bit, per 256"): 1_174_405_120 + 36_700_160,
            ("unused", "4 bit, per row"): 9_486_656 - 20 * 2 * 2 * 4,
        },
        {
            ("MLP", "4 bit, per row"): 212_336_640,
            ("MLP", "2 bit, per row"): 283_115_520,
            ("attention", "4 bit, per row"): 139_198_464,
            ("PLE gate, projection", "8 bit, per row"): 27_525_120,
        },
    ),
    "e4b": (
        (1925, 3_175_558_524),
        {("PLE table", "2 bit, per 256"): 704_643_072 + 44_040_192},
        {
            ("MLP", "4 bit, per row"): 1_651_507_200,
            ("attention", "4 bit, per row"): 293_601_280,
            ("PLE gate, projection", "8 bit, per row"): 55_050_240,
        },
    ),
}


@pytest.mark.parametrize("size", MOBILE)
def test_bytes_of_the_released_mobile_files(size: str) -> None:
    opened, (total, whole, codes) = listing(mobile_tensors(size)), MOBILE[size]
    assert (len(opened.tensors), sum(t.bytes for t in opened.tensors)) == total
    parts = roles.parts(opened, shapes.SIZES[size].first_shared)
    groups = {(g.role, g.kept): g for g in roles.groups(parts)}
    for key, size_bytes in whole.items():
        assert groups[key].bytes == size_bytes, key
    for key, size_bytes in codes.items():
        bits = int(key[1][0])
        assert groups[key].weights * bits // 8 == size_bytes, key


def test_the_vendor_counts_what_is_read_for_every_token() -> None:
    # 0.84 and 2.2 GB, with a context of unknown length: within a fifteenth.
    for size, stated in (("e2b", 0.84), ("e4b", 2.2)):
        shape = shapes.SIZES[size]
        parts = roles.parts(listing(mobile_tensors(size)), shape.first_shared)
        resident = roles.footprint(parts).resident / 1e9
        assert abs(resident - stated) < stated / 15


def test_the_footprint_of_the_released_e2b_gguf() -> None:
    shape = shapes.SIZES["e2b"]
    opened = SimpleNamespace(
        tensors=[
            TensorInfo(t.name, t.type.name, t.shape, t.num_bytes, 0, 0, None)
            for t in gguf_file.tensors(shape)
        ]
    )
    found = roles.footprint(roles.parts(opened, shape.first_shared))
    vectors = sum(t.bytes for t in opened.tensors if t.type == "F32")
    assert found.resident == 1_047_969_792 + 330_301_440 + 27_525_120 + vectors
    assert found.mapped == 1_926_758_400 + 330_301_440
    assert found.unused == 0


@pytest.mark.parametrize("size", shapes.SIZES)
def test_the_vendors_table_is_found_by_either_config(size: str) -> None:
    shape = shapes.SIZES[size]
    text = {"num_hidden_layers": shape.layers, "hidden_size": shape.hidden}
    nested = {
        "model_type": "gemma4",
        "text_config": text | {"model_type": "gemma4_text"},
    }
    found = memory.vendor(nested)
    assert found is not None
    assert found.size == shape.title
    assert found == memory.vendor(
        {
            "general.architecture": "gemma4",
            "gemma4.block_count": shape.layers,
            "gemma4.embedding_length": shape.hidden,
        }
    )
    assert found.gb["BF16"] > found.gb["Q4_0"]
    assert ("mobile" in found.gb) == (size in MOBILE)
    assert memory.vendor(text | {"model_type": "llama"}) is None
    assert memory.vendor(nested | {"text_config": []}) is None
    assert memory.vendor(text | {"model_type": "gemma4", "hidden_size": 64}) is None


# ---- files that do not say what they hold


@pytest.mark.parametrize(
    ("name", "stated", "want"),
    [
        ("whole", [8, 64], "4 bit, per row"),
        ("other rows", [9, 64], "I32, unclear"),
        ("no width", [8, 40], "I32, unclear"),
        ("negative", [8, -64], "I32, unclear"),
        ("huge", [8, 2**62], "I32, unclear"),
    ],
)
def test_a_stated_shape_is_held_against_the_codes(
    name: str, stated: list[int], want: str, tmp_path: Path, inspect: Inspect
) -> None:
    base = "model.layers.0.mlp.up_proj."
    tensors = {
        f"{base}weight_packed": torch.zeros(8, 8, dtype=torch.int32),
        f"{base}weight_scale": torch.ones(8, 1),
        f"{base}weight_shape": torch.tensor(stated),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    [group] = inspect(tmp_path / "model.safetensors")["roles"]
    assert (group["role"], group["kept"]) == ("MLP", want), name
    assert group["bytes"] == 8 * 8 * 4 + 8 * 4 + 16


def test_codes_without_a_neighbour_are_unclear(
    tmp_path: Path, inspect: Inspect
) -> None:
    base = "model.language_model.layers.0.mlp.up_proj."
    tensors = {
        f"{base}weight": torch.zeros(8, 8, dtype=torch.uint8),
        f"{base}weight_scale": torch.full((8, 1), float("inf")),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    [group] = inspect(path)["roles"]
    assert (group["kept"], group["weights"]) == ("U8, unclear", None)
    assert group["scales"] is None
    norm = {"model.language_model.norm.weight": torch.ones(32)}
    save_file(tensors | norm, path)
    [group, _] = inspect(path)["roles"]
    assert (group["kept"], group["weights"]) == ("2 bit, per row", 8 * 32)


def test_large_scales_are_not_read(
    folders: Callable[..., Path], inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = by_role(inspect(folders("e2b", False)))
    assert found["PLE table"][0]["scales"] is not None
    embedding = found["embedding"][0]
    scales = embedding["bytes"] - embedding["weights"] // 4
    monkeypatch.setattr(roles, "_MAX_SCALE_BYTES", scales)
    found = by_role(inspect(folders("e2b", False)))
    assert found["PLE table"][0]["scales"] is None
    assert found["embedding"][0]["scales"] is not None


def test_a_projector_is_all_encoder(tmp_path: Path, inspect: Inspect) -> None:
    writer = gguf.GGUFWriter(tmp_path / "mmproj.gguf", "clip")
    for name in ("v.blk.0.attn_q.weight", "mm.input_projection.weight"):
        writer.add_tensor(name, np.ones((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    document = inspect(tmp_path / "mmproj.gguf")
    assert [group["role"] for group in document["roles"]] == ["encoders"]
    assert document["text_only_bytes"] == {"resident": 0, "mapped": 0, "unused": 256}
