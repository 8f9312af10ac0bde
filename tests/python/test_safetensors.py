# tests/python/test_safetensors.py
# Files that the reference library wrote are listed as the reference library lists them.
# SPDX-License-Identifier: Apache-2.0
"""Compare open_safetensors with the safetensors package."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import halfbyte
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
SHAPES = [(), (1,), (0,), (7,), (3, 5), (4, 0, 2), (2, 1, 3, 1)]


def some_arrays(seed: int) -> dict[str, NDArray[Any]]:
    """Make an array of every dtype and shape, of random bytes."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for type_name, dtype in DTYPES.items():
        for shape in SHAPES:
            n = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            raw = rng.integers(0, 2 if type_name == "BOOL" else 256, n, np.uint8)
            name = f"layer.{type_name}.{len(shape)}.{'x'.join(map(str, shape))}é"
            arrays[name] = raw.view(dtype).reshape(shape)
    return arrays


def check_tensors(
    opened: Any, arrays: dict[str, NDArray[Any]], files: list[Path]
) -> None:
    """Compare names, shapes and types, and the bytes at each tensor's offset."""
    assert {t.name for t in opened.tensors} == set(arrays)
    assert len(opened.tensors) == len(arrays)
    contents = [f.read_bytes() for f in files]
    for t in opened.tensors:
        want = arrays[t.name]
        assert tuple(t.shape) == want.shape
        assert DTYPES[t.type] == want.dtype
        assert t.bytes == want.nbytes
        assert contents[t.shard][t.offset : t.offset + t.bytes] == want.tobytes()


def test_every_dtype_and_shape(tmp_path: Path) -> None:
    arrays = some_arrays(0)
    path = tmp_path / "model.safetensors"
    metadata = {"format": "np", "é": 'a "quoted"\tvalue\n😀'}
    safetensors.numpy.save_file(arrays, path, metadata)
    for opened in (
        halfbyte.open_safetensors(path),
        halfbyte.open_safetensors(tmp_path),
    ):
        check_tensors(opened, arrays, [path])
        assert dict(opened.metadata) == metadata


def test_the_reference_reads_the_same_shapes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(some_arrays(1), path)
    opened = halfbyte.open_safetensors(path)
    with safetensors.safe_open(path, framework="np") as f:
        assert {t.name for t in opened.tensors} == set(f.keys())
        for t in opened.tensors:
            one = f.get_slice(t.name)
            assert list(t.shape) == one.get_shape()
            assert t.type == one.get_dtype()


def test_shards_and_their_index(tmp_path: Path) -> None:
    arrays = some_arrays(2)
    names = sorted(arrays)
    weight_map, files = {}, []
    for i in range(3):
        file = tmp_path / f"model-{i + 1:05}-of-00003.safetensors"
        part = {name: arrays[name] for name in names[i::3]}
        safetensors.numpy.save_file(part, file, {"format": "np", f"part{i}": "here"})
        weight_map.update(dict.fromkeys(part, file.name))
        files.append(file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    for path in (tmp_path, index):
        opened = halfbyte.open_safetensors(path)
        check_tensors(opened, arrays, files)
        assert {files[t.shard].name for t in opened.tensors if t.name == names[1]} == {
            files[1].name
        }
        assert set(opened.metadata) == {"format", "part0", "part1", "part2"}


def test_no_tensors_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({}, path, {"format": "np"})
    opened = halfbyte.open_safetensors(path)
    assert list(opened.tensors) == []
    assert dict(opened.metadata) == {"format": "np"}


def test_a_path_may_be_text_or_a_path(tmp_path: Path) -> None:
    path = tmp_path / "weights é.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, path)
    assert halfbyte.open_safetensors(str(path)).tensors[0].name == "a"
    assert halfbyte.open_safetensors(path).tensors[0].name == "a"


@pytest.mark.parametrize("count", [1, 2, 5000])
def test_many_tensors_keep_their_bytes_apart(tmp_path: Path, count: int) -> None:
    arrays = {f"t{i}": np.full(i % 3, i, np.int32) for i in range(count)}
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, path)
    opened = halfbyte.open_safetensors(path)
    content = path.read_bytes()
    for t in opened.tensors:
        got = np.frombuffer(content, np.int32, t.bytes // 4, t.offset)
        np.testing.assert_array_equal(got, arrays[t.name])


def resident(path: Path, begin: int, size: int) -> float:
    """Share of some pages of a file that the system has in memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as m:
        pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
        view = np.frombuffer(m, np.uint8)
        at = ctypes.c_void_p(view.ctypes.data + begin)
        assert ctypes.CDLL(None).mincore(at, ctypes.c_size_t(size), pages) == 0
        del view
        return float(np.mean([page & 1 for page in pages]))


@pytest.mark.skipif(sys.platform != "linux", reason="mincore and preadv2 of Linux")
def test_what_is_read_once_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    values = np.random.default_rng(0).integers(0, 256, 40 << 20, np.uint8)
    safetensors.numpy.save_file({"a": values}, path)
    with path.open("r+b") as file:
        os.fsync(file.fileno())  # what is not on the disk yet stays in memory
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, 0x80)  # RWF_DONTCACHE
        except OSError as error:
            pytest.skip(f"this system or file system keeps all it reads: {error}")
    opened, out = halfbyte.open_safetensors(path), np.empty(4 << 20, np.uint8)
    begin = 32 << 20  # far behind what the system reads along with the header
    for once, low, high in ((True, 0, 0.1), (False, 0.9, 1), (True, 0.9, 1)):
        opened.read("a", begin, out, once=once)
        np.testing.assert_array_equal(out, values[begin:][: out.size])
        assert low <= resident(path, begin, out.size) <= high, once


def test_bytes_are_read_without_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    values = np.arange(3000, dtype=np.int32)
    safetensors.numpy.save_file({"a": np.zeros(5, np.int8), "b": values}, path)
    opened = halfbyte.open_safetensors(path)
    out = np.zeros(400, np.uint8)
    opened.read("b", 4000, out)
    np.testing.assert_array_equal(out.view(np.int32), values[1000:1100])
    opened.read("b", 12_000, out[:0])
    for begin, size in ((11_900, 101), (12_001, 0), (2**63, 1)):
        with pytest.raises(halfbyte.ShapeError, match="out: expected at most"):
            opened.read("b", begin, np.zeros(size, np.uint8))
    out.flags.writeable = False
    with pytest.raises(halfbyte.ArgumentError, match="read-only"):
        opened.read("b", 0, out)
    with pytest.raises(halfbyte.DTypeError):
        opened.read("b", 0, np.zeros(4, np.int8))
    with path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(halfbyte.FileChangedError):
        opened.read("b", 0, np.zeros(4, np.uint8))
