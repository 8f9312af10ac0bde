# tests/python/test_gguf.py
# Files of the reference writer, read by us and by the reference reader.
# SPDX-License-Identifier: Apache-2.0
"""open_gguf sees what the gguf package's reader sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import halfbyte
import numpy as np
import pytest
from gguf_cases import Case, valid_cases

TYPES = [
    t
    for t in gguf.GGMLQuantizationType
    if t.name in {f.upper() for f in halfbyte.formats()} | {"IQ4_NL", "TQ2_0", "I8"}
]


def write_metadata(writer: gguf.GGUFWriter) -> None:
    """Add a key of every type, and arrays of what the writer knows to write."""
    writer.add_uint8("t.u8", 255)
    writer.add_int8("t.i8", -128)
    writer.add_uint16("t.u16", 65535)
    writer.add_int16("t.i16", -32768)
    writer.add_uint32("t.u32", 2**32 - 1)
    writer.add_int32("t.i32", -(2**31))
    writer.add_uint64("t.u64", 2**64 - 1)
    writer.add_int64("t.i64", -(2**63))
    writer.add_float32("t.f32", 0.1)
    writer.add_float64("t.f64", 0.1)
    writer.add_bool("t.yes", True)
    writer.add_bool("t.no", False)
    writer.add_string("t.text", "größer 重み 🙂\n")
    writer.add_array("t.ints", [1, -2, 3])
    writer.add_array("t.floats", [0.5, -1.5])
    writer.add_array("t.bools", [True, False, True])
    writer.add_array("t.texts", ["", "a", "é"])


def plain(value: Any) -> Any:
    """Return lists and plain numbers for arrays and NumPy scalars."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def assert_same_metadata(ours: dict[str, Any], reader: gguf.GGUFReader) -> None:
    """Compare keys, order and values with the reference reader's."""
    fields = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert list(ours) == list(fields)
    for key, field in fields.items():
        want = plain(field.contents())
        got = plain(ours[key])
        got = list(got) if isinstance(want, list) else got
        assert got == want, key
        assert type(got) is type(want), key


def assert_same_tensors(ours: list[Any], reader: gguf.GGUFReader) -> None:
    """Compare name, type, shape, size and place with the reference reader's."""
    got = [(t.name, t.type, tuple(t.shape), t.bytes, t.offset) for t in ours]
    want = [
        (
            t.name,
            t.tensor_type.name,
            tuple(int(n) for n in reversed(t.shape)),
            t.n_bytes,
            t.data_offset,
        )
        for t in reader.tensors
    ]
    assert got == want


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_agrees_with_the_reference_reader(
    tmp_path: Path, alignment: int | None
) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    write_metadata(writer)
    rng = np.random.default_rng(0)
    shapes = [(3,), (5, 32), (2, 3, 8), (2, 2, 3, 4), (1, 1)]
    for i, shape in enumerate(shapes):
        values = rng.standard_normal(shape, np.float32)
        writer.add_tensor(f"f32.{i}", values)
        writer.add_tensor(f"f16.{i}", values.astype(np.float16))
    for kind in TYPES:
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (4, 3 * block_bytes), np.uint8)
        writer.add_tensor(f"{kind.name}.w", blocks, raw_dtype=kind)
        assert block_len > 0
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, reader = halfbyte.open_gguf(path), gguf.GGUFReader(path)
    assert len(reader.tensors) == 2 * len(shapes) + len(TYPES)
    assert_same_tensors(ours.tensors, reader)
    assert_same_metadata(ours.metadata, reader)


READABLE = [
    case
    for case in valid_cases()
    # The reference reader knows no shards and wants data behind the header; it
    # decodes all text as UTF-8, and maps a terabyte for a terabyte.
    if len(case.files) == 1
    and case.name
    not in {"nothing", "no-tensors", "every-value", "version-2", "sparse-1tib"}
]


@pytest.mark.parametrize("case", READABLE, ids=lambda case: case.name)
def test_agrees_on_odd_files(case: Case, tmp_path: Path) -> None:
    path = case.write(tmp_path)
    ours, reader = halfbyte.open_gguf(path), gguf.GGUFReader(path)
    assert_same_tensors(ours.tensors, reader)
    assert_same_metadata(ours.metadata, reader)


def test_text_that_is_not_utf8_comes_as_bytes(tmp_path: Path) -> None:
    case = next(c for c in valid_cases() if c.name == "every-value")
    metadata = halfbyte.open_gguf(case.write(tmp_path)).metadata
    assert list(metadata["array.8"]) == ["", "é", b"\xff\0\n"]
    assert metadata["scalar.8"] == "text"


def test_split_file_opens_by_any_shard(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma3", split_max_tensors=2)
    write_metadata(writer)
    for i in range(5):
        writer.add_tensor(f"w.{i}", np.full((3, 4), i, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = sorted(tmp_path.glob("m-*.gguf"))
    assert len(paths) == 3
    for path in paths:
        file = halfbyte.open_gguf(path)
        assert [t.name for t in file.tensors] == [f"w.{i}" for i in range(5)]
        assert [t.shard for t in file.tensors] == [0, 0, 1, 1, 2]
        assert file.metadata["general.architecture"] == "gemma3"
        for i, t in enumerate(file.tensors):
            data = paths[t.shard].read_bytes()[t.offset : t.offset + t.bytes]
            np.testing.assert_array_equal(np.frombuffer(data, np.float32), i)
