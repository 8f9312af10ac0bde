# tests/python/test_hostile_packed.py
# Broken directories of rows that HalfbyteConfig packed are refused in one line.
# SPDX-License-Identifier: Apache-2.0
"""What `halfbyte.load` says of a directory packed by `HalfbyteConfig` that is broken.

Two of them are saved once, and each case breaks a copy: ``blocks`` has rows with their
scales inside (Q4_0, the table Q6_K) and packed experts, ``rows`` has a scale a row (W4).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import pytest
import tiny
import torch
from halfbyte.transformers import HalfbyteConfig
from refusal import refused
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
UP = "model.layers.3.mlp.up_proj"
WEIGHT, SCALE = UP + ".weight", UP + ".weight_scale"
TABLE = "model.embed_tokens.embedding_quantized"
EXPERTS = "model.layers.1.experts.down_proj"
FORMATS = "quantization_config.module_formats"
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "blocks": ("26b", {"embeddings": "q6_k"}),
    "rows": ("e2b", {"format": "w4"}),
}

Change = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The whole directories by their names."""
    found = {}
    for kind, (name, options) in OPTIONS.items():
        dense = tiny.save_hf(
            tiny.build(name, wide=True), tmp_path_factory.mktemp("dense")
        )
        config = HalfbyteConfig(repack="never", **options)
        model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=config)
        found[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(found[kind])
    return found


@pytest.fixture
def folder(saved: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Make a copy of a directory, to be broken."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(saved[kind], tmp_path / "model"))

    return copy


def change_tensors(folder: Path, **changed: torch.Tensor | None) -> None:
    """Replace tensors of the file, or take them out."""
    tensors = load_file(folder / FILE) | changed
    kept = {k: t.contiguous() for k, t in tensors.items() if t is not None}
    save_file(kept, folder / FILE, metadata={"format": "pt"})


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def change_config(folder: Path, **changed: Any) -> None:
    """Replace values of quantization_config."""
    config = config_of(folder)
    config["quantization_config"] |= changed
    (folder / "config.json").write_text(json.dumps(config))


def one_line(error: halfbyte.Error, path: Path) -> str:
    """What it says, after a look at how it says it."""
    text = str(error)
    assert text.isprintable()
    assert text.startswith(f"{path.name}: ")
    assert error.path == str(path)
    assert ": found " in text
    assert "; expected " in text
    return text


def first_row_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0] = float("nan")
    return tensor


# kind, tensor, what becomes of it (None: taken out), code, found, expected
BROKEN: dict[str, tuple[str, str, Change | None, str, str, str]] = {}


def broken(
    kind: str, tensor: str, shape: list[int], expected: str, codes: bool = True
) -> None:
    """Add what can be wrong with any tensor of that shape."""
    cut, outer = [*shape[:-1], shape[-1] - 1], [shape[0] - 1, *shape[1:]]
    name = tensor.rpartition(".")[2]
    own = "U8 " if codes else ""
    cases: dict[str, tuple[Change | None, str, str]] = {
        "missing": (None, "MODEL_MISSING_TENSOR", "none"),
        "cut columns": (lambda t: t[..., :-1], "MODEL_SHAPE", f"{own}{cut}"),
        "cut rows": (lambda t: t[:-1], "MODEL_SHAPE", f"{own}{outer}"),
        "no rows": (lambda t: t[:0], "MODEL_SHAPE", f"{own}{[0, *shape[1:]]}"),
        "one dimension": (
            lambda t: t.flatten(),
            "MODEL_SHAPE",
            f"{own}{[int(np.prod(shape))]}",
        ),
        "one dimension more": (lambda t: t[None], "MODEL_SHAPE", f"{own}{[1, *shape]}"),
        "a scalar": (lambda t: t.flatten()[0], "MODEL_SHAPE", f"{own}[]"),
    }
    if codes:
        cases |= {
            "signed": (lambda t: t.view(torch.int8), "MODEL_SHAPE", f"I8 {shape}"),
            "floats": (lambda t: t.float(), "MODEL_SHAPE", f"F32 {shape}"),
            "halves": (lambda t: t.bfloat16(), "MODEL_SHAPE", f"BF16 {shape}"),
        }
    for label, (change, code, found) in cases.items():
        case = (kind, tensor, change, code, found, expected)
        BROKEN[f"{kind}: {name} {label}"] = case


# 256 weights a row are 8 blocks of 18 bytes in Q4_0, one of 210 in Q6_K and 128 bytes in
# W4; the 96 of an expert's row are 3 blocks.
broken("blocks", WEIGHT, [512, 144], "U8 [512, 144], rows of q4_0")
broken("blocks", TABLE, [512, 210], "U8 [512, 210], rows of q6_k")
broken("blocks", EXPERTS, [8, 256, 54], "U8 [8, 256, 54], rows of q4_0")
broken("rows", WEIGHT, [512, 128], "U8 [512, 128], rows of w4")
broken("rows", SCALE, [512, 1], "[512, 1]", codes=False)
BROKEN |= {
    "a dense matrix that the config calls packed": (
        *("blocks", WEIGHT, lambda _: torch.zeros(512, 256), "MODEL_SHAPE"),
        *("F32 [512, 256]", "U8 [512, 144], rows of q4_0"),
    ),
    "a norm of bytes": (
        *("blocks", "model.norm.weight", lambda t: t.to(torch.uint8), "MODEL_TYPE"),
        *("U8", "a type that can be decoded"),
    ),
    "codes as scales": (
        *("rows", SCALE, lambda t: t.to(torch.uint8), "MODEL_TYPE"),
        *("U8", "a type that can be decoded"),
    ),
    "NaN as a scale": (
        *("rows", SCALE, first_row_nan, "MODEL_SCALE"),
        *("nan at index 0", "finite numbers, none below 0"),
    ),
    "a scale below 0": (
        *("rows", SCALE, lambda t: -t, "MODEL_SCALE"),
        *("at index 0", "finite numbers, none below 0"),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_tensor(case: str, folder: Callable[[str], Path]) -> None:
    kind, tensor, change, code, found, expected = BROKEN[case]
    path = folder(kind)
    old = load_file(path / FILE)[tensor]
    change_tensors(path, **{tensor: None if change is None else change(old.clone())})
    error = refused(halfbyte.load, path)
    assert isinstance(error, halfbyte.ModelError)
    assert (error.code, error.tensor) == (code, tensor)
    text = one_line(error, path)
    assert f"'{tensor}': found " in text
    assert f"{found}; expected {expected}" in text
    assert "download or convert the model again" in text


# ---- config.json

MODULE_FORMAT = f"{FORMATS}.{UP}"
FORMAT = "a format of halfbyte, such as 'q4_0'"

CONFIGS: dict[str, tuple[Any, str, str, str, str]] = {
    "an unknown format": (
        {UP: "q9_9"},
        "QUANTIZATION",
        MODULE_FORMAT,
        "'q9_9'",
        FORMAT,
    ),
    "of another case": ({UP: "Q4_0"}, "QUANTIZATION", MODULE_FORMAT, "'Q4_0'", FORMAT),
    "an empty format": ({UP: ""}, "QUANTIZATION", MODULE_FORMAT, "''", FORMAT),
    "a newline": ({UP: "q4\n"}, "QUANTIZATION", MODULE_FORMAT, r"'q4\x0A'", FORMAT),
    "a long format": (
        *({UP: "q" * 9999}, "QUANTIZATION", MODULE_FORMAT, f"'{'q' * 64}...'", FORMAT),
    ),
    "a module with a newline": (
        *({"a\nb": "q"}, "QUANTIZATION", rf"{FORMATS}.a\x0Ab", "'q'", FORMAT),
    ),
    "a number": ({UP: 4}, "HPARAM", MODULE_FORMAT, "the number 4", FORMAT),
    "null": ({UP: None}, "HPARAM", MODULE_FORMAT, "null", FORMAT),
    "a list": ({UP: ["q4_0"]}, "HPARAM", MODULE_FORMAT, "an array", FORMAT),
    "an object": ({UP: {"q4_0": 1}}, "HPARAM", MODULE_FORMAT, "an object", FORMAT),
    "two formats of a module": (
        {f"model.language_model.{UP.removeprefix('model.')}": "q4_k"},
        *("HPARAM", MODULE_FORMAT, "'q4_0', and 'q4_k' by", "one format of a module"),
    ),
    "no formats": (None, "HPARAM", FORMATS, "none", "the packed modules and their"),
    "formats in a list": ([UP], "HPARAM", FORMATS, "an array", "an object"),
    "formats as text": ("q4_0", "HPARAM", FORMATS, "'q4_0'", "an object"),
    "formats as a number": (4, "HPARAM", FORMATS, "the number 4", "an object"),
    "formats as truth": (True, "HPARAM", FORMATS, "true", "an object"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_broken_formats(case: str, folder: Callable[[str], Path]) -> None:
    formats, code, key, found, expected = CONFIGS[case]
    path = folder("blocks")
    old = config_of(path)["quantization_config"]["module_formats"]
    # What is new comes first: the file's own line is then the second one of a module.
    told = (
        formats | {k: v for k, v in old.items() if k not in formats}
        if (isinstance(formats, dict))
        else formats
    )
    change_config(path, module_formats=told)
    error = refused(halfbyte.load, path)
    assert error.code == f"MODEL_{code}"
    text = one_line(error, path / "config.json")
    assert f"key '{key}': found {found}" in text
    assert f"; expected {expected}" in text


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("q8_0", "U8 [512, 272], rows of q8_0"),
        ("f32", "U8 [512, 1024], rows of f32"),
        ("w2", "U8 [512, 64], rows of w2"),
    ],
)
def test_a_format_of_other_rows(
    format: str, expected: str, folder: Callable[[str], Path]
) -> None:
    path = folder("blocks")
    formats = config_of(path)["quantization_config"]["module_formats"]
    change_config(path, module_formats=formats | {UP: format})
    error = refused(halfbyte.load, path)
    assert (error.code, error.tensor) == ("MODEL_SHAPE", WEIGHT)
    assert f"found U8 [512, 144]; expected {expected}" in one_line(error, path)


@pytest.mark.parametrize(
    ("module", "format", "code", "found", "expected"),
    [
        (EXPERTS, "q6_k", "SHAPE", "96 weights a row", "a multiple of 256 for Q6_K"),
        (EXPERTS, "w2", "SHAPE", "U8 [8, 256, 54]", "U8 [8, 256, 24], rows of w2"),
    ],
)
def test_a_format_that_experts_cannot_have(
    module: str,
    format: str,
    code: str,
    found: str,
    expected: str,
    folder: Callable[[str], Path],
) -> None:
    path = folder("blocks")
    formats = config_of(path)["quantization_config"]["module_formats"]
    change_config(path, module_formats=formats | {module: format})
    error = refused(halfbyte.load, path)
    assert (error.code, error.tensor) == (f"MODEL_{code}", module)
    assert f"found {found}; expected {expected}" in one_line(error, path)


def test_experts_without_scales(folder: Callable[[str], Path]) -> None:
    """Of the right length for W4, which has its scales in another tensor."""
    path = folder("blocks")
    change_tensors(path, **{EXPERTS: torch.zeros(8, 256, 48, dtype=torch.uint8)})
    formats = config_of(path)["quantization_config"]["module_formats"]
    change_config(path, module_formats=formats | {EXPERTS: "w4"})
    error = refused(halfbyte.load, path)
    assert (error.code, error.tensor) == ("MODEL_QUANTIZATION", EXPERTS)
    assert "found W4; expected a format of blocks" in one_line(error, path)


def test_packed_bytes_without_a_format(folder: Callable[[str], Path]) -> None:
    path = folder("blocks")
    formats = config_of(path)["quantization_config"]["module_formats"]
    del formats[UP]
    change_config(path, module_formats=formats)
    error = refused(halfbyte.load, path)
    assert (error.code, error.tensor) == ("MODEL_QUANTIZATION", WEIGHT)
    text = one_line(error, path)
    assert f"found packed bytes; expected its format in {FORMATS}" in text


@pytest.mark.parametrize(
    ("config", "key", "found"),
    [
        ([], "quantization_config", "an array; expected an object"),
        ("halfbyte", "quantization_config", "'halfbyte'; expected an object"),
        ({}, "quantization_config.quant_method", "none; expected gemma"),
        ({"quant_method": 5}, "quantization_config.quant_method", "the number 5"),
        ({"quant_method": "half"}, "quantization_config.quant_method", "'half'"),
    ],
)
def test_a_broken_quantization_config(
    config: Any, key: str, found: str, folder: Callable[[str], Path]
) -> None:
    path = folder("blocks")
    whole = config_of(path) | {"quantization_config": config}
    (path / "config.json").write_text(json.dumps(whole))
    error = refused(halfbyte.load, path)
    assert f"key '{key}': found {found}" in one_line(error, path / "config.json")


def test_a_module_named_twice(folder: Callable[[str], Path]) -> None:
    path = folder("blocks")
    text = (path / "config.json").read_text()
    line = f'"{UP}": "q4_0"'
    assert line in text
    (path / "config.json").write_text(text.replace(line, f"{line}, {line}"))
    error = refused(halfbyte.load, path)
    assert error.code == "JSON_DUPLICATE"
    assert f"key '{UP}'" in one_line_of_a_file(error, path / "config.json")


def test_how_it_was_packed_is_not_read(folder: Callable[[str], Path]) -> None:
    """Wishes for packing say nothing of what lies in the file."""
    path = folder("blocks")
    wishes = {"bits": "4", "format": 4, "embeddings": [], "activations": "int9"}
    whole = halfbyte.load(path).logits([2, 300])
    change_config(path, **wishes)
    np.testing.assert_array_equal(halfbyte.load(path).logits([2, 300]), whole)


# ---- files


def one_line_of_a_file(error: halfbyte.Error, path: Path) -> str:
    """As `one_line`, of an error of the file's own syntax."""
    assert isinstance(error, halfbyte.FormatError)
    return one_line(error, path)


@pytest.mark.parametrize("length", [0, 7, 8, 1000, -1])
def test_a_cut_file(length: int, folder: Callable[[str], Path]) -> None:
    path = folder("blocks")
    data = (path / FILE).read_bytes()
    (path / FILE).write_bytes(data[:length])
    error = refused(halfbyte.load, path)
    assert isinstance(error, halfbyte.TruncatedFileError)
    assert "incomplete download?" in one_line(error, path / FILE)


def index_of(folder: Path) -> dict[str, str]:
    """Call the file a shard, and say what its index would be."""
    names = list(load_file(folder / FILE))
    (folder / FILE).rename(folder / "shard.safetensors")
    return dict.fromkeys(names, "shard.safetensors")


@pytest.mark.parametrize(
    ("shard", "code", "found"),
    [
        ("../outside.safetensors", "IDX_SHARD_NAME", "'../outside.safetensors'"),
        ("/etc/passwd", "IDX_SHARD_NAME", "'/etc/passwd'"),
        ("..", "IDX_SHARD_NAME", "'..'"),
        ("a\nb", "IDX_SHARD_NAME", r"'a\x0Ab'"),
        (7, "IDX_SHARD_NAME", "the number 7"),
        ("gone.safetensors", "IDX_SHARD_MISSING", "'gone.safetensors', which does not"),
    ],
)
def test_a_shard_outside_or_nowhere(
    shard: Any, code: str, found: str, folder: Callable[[str], Path]
) -> None:
    path = folder("blocks")
    shutil.copy(path / FILE, path.parent / "outside.safetensors")
    index = index_of(path) | {WEIGHT: shard}
    (path / INDEX).write_text(json.dumps({"weight_map": index}))
    error = refused(halfbyte.load, path)
    assert (error.code, error.tensor) == (code, WEIGHT)
    assert f"found {found}" in one_line(error, path / INDEX)


def test_a_tensor_of_the_index_that_is_not_there(folder: Callable[[str], Path]) -> None:
    path = folder("blocks")
    change_tensors(path, **{WEIGHT: None})
    index = index_of(path) | {WEIGHT: "shard.safetensors"}
    (path / INDEX).write_text(json.dumps({"weight_map": index}))
    error = refused(halfbyte.load, path)
    assert (error.code, error.tensor) == ("IDX_TENSOR_MISSING", WEIGHT)
    assert "in 'shard.safetensors'" in one_line(error, path / INDEX)


def test_a_tensor_in_two_shards(folder: Callable[[str], Path]) -> None:
    path = folder("blocks")
    index = index_of(path) | {WEIGHT: "other.safetensors"}
    shutil.copy(path / "shard.safetensors", path / "other.safetensors")
    (path / INDEX).write_text(json.dumps({"weight_map": index}))
    error = refused(halfbyte.load, path)
    assert error.code == "IDX_DUPLICATE_TENSOR"
    text = one_line_of_a_file(error, path / INDEX)
    assert "'other.safetensors' and in 'shard.safetensors'" in text


def test_a_tensor_twice_in_the_header(folder: Callable[[str], Path]) -> None:
    path = folder("blocks")
    data = (path / FILE).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:end].rstrip()
    again = json.dumps({WEIGHT: json.loads(header)[WEIGHT]}).encode()
    header = header[:-1] + b"," + again[1:]
    (path / FILE).write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    error = refused(halfbyte.load, path)
    assert error.code == "ST_DUPLICATE"
    assert f"key '{WEIGHT}'" in one_line_of_a_file(error, path / FILE)


def test_a_tensor_by_two_names(folder: Callable[[str], Path]) -> None:
    """The one under the root of all others counts; the other one is told."""
    path = folder("blocks")
    whole = halfbyte.load(path).logits([2, 300])
    other = f"model.language_model.{WEIGHT.removeprefix('model.')}"
    change_tensors(path, **{other: torch.zeros(512, 144, dtype=torch.uint8)})
    loaded = halfbyte.load(path)
    assert loaded.unread_tensors == [other]
    np.testing.assert_array_equal(loaded.logits([2, 300]), whole)
