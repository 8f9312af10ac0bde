# tests/python/test_imatrix.py
# SPDX-License-Identifier: Apache-2.0
"""Importance matrices of llama.cpp, in both forms, sound and hostile."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from halfbyte.errors import FormatError, TruncatedFileError
from halfbyte.imatrix import read_imatrix
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

F32 = NDArray[np.float32]
NAME, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight"


def squares(*shape: int) -> F32:
    rng = np.random.default_rng(sum(shape))
    return np.square(rng.standard_normal(shape)).astype(np.float32)


def write_gguf(path: Path, tensors: dict[str, F32], kind: str = "imatrix") -> Path:
    writer = gguf.GGUFWriter(path, "unused")
    writer.kv_data[0].pop("general.architecture")  # these files have none
    writer.add_type(kind)
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_array("imatrix.datasets", ["a.txt"])
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def entry(name: bytes, calls: int, values: F32) -> bytes:
    front = struct.pack(f"<i{len(name)}sii", len(name), name, calls, values.size)
    return front + values.astype("<f4").tobytes()


def dat(*entries: bytes, count: int | None = None) -> bytes:
    number = len(entries) if count is None else count
    tail = struct.pack("<ii5s", 7, 5, b"a.txt")
    return struct.pack("<i", number) + b"".join(entries) + tail


def test_the_form_in_gguf(tmp_path: Path) -> None:
    sums, experts = squares(1, 64), squares(3, 32)
    found = read_imatrix(
        write_gguf(
            tmp_path / "i.gguf",
            {
                f"{NAME}.in_sum2": sums,
                f"{NAME}.counts": np.full((1, 1), 512, np.float32),
                f"{NAME}.in_sum": -sums,  # of newer files, and not wanted
                f"{EXPERTS}.in_sum2": experts,
                f"{EXPERTS}.counts": np.array([[4], [0], [5]], np.float32),
            },
        )
    )
    assert set(found) == {NAME, EXPERTS}
    np.testing.assert_array_equal(found[NAME], sums[0] / 512)
    want = [experts[0] / 4, np.ones(32), experts[2] / np.float32(5)]
    np.testing.assert_array_equal(found[EXPERTS], np.concatenate(want))


def test_the_older_form(tmp_path: Path) -> None:
    path, values = tmp_path / "i.dat", squares(64)
    path.write_bytes(dat(entry(NAME.encode(), 7, values), entry(b"b", 1, values[:3])))
    found = read_imatrix(path)
    np.testing.assert_array_equal(found[NAME], values / np.float32(7))
    np.testing.assert_array_equal(found["b"], values[:3])


SUMS, COUNTS = f"{NAME}.in_sum2", f"{NAME}.counts"
ONE = np.ones((1, 1), np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({SUMS: squares(1, 8)}, r"expected 'blk.0.attn_q.weight.counts' beside it"),
        ({SUMS: -squares(1, 8), COUNTS: ONE}, "expected finite numbers, 0 or more"),
        ({SUMS: squares(1, 8) * np.inf, COUNTS: ONE}, "0 or more, found inf at 0"),
        ({SUMS: squares(1, 8), COUNTS: -ONE}, r"counts': expected finite numbers"),
        ({SUMS: squares(1, 8), COUNTS: np.ones((3, 1), np.float32)}, "divisor of"),
        ({SUMS: squares(1, 8).astype(np.float16), COUNTS: ONE}, "F32, found F16"),
    ],
)
def test_what_is_wrong_in_gguf(
    tmp_path: Path, tensors: dict[str, F32], message: str
) -> None:
    path = write_gguf(tmp_path / "i.gguf", tensors)
    with pytest.raises(FormatError, match=message) as caught:
        read_imatrix(path)
    assert str(caught.value).startswith(str(path))


def test_a_model_is_none(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, kind="model")
    with pytest.raises(FormatError, match="expected imatrix, found 'model'"):
        read_imatrix(path)


GOOD = entry(b"a", 2, squares(8))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", TruncatedFileError, "expected 4 bytes at byte 0, found 0"),
        (dat(GOOD, count=0), FormatError, "1 or more, found 0"),
        (dat(GOOD, count=-5), FormatError, "1 or more, found -5"),
        (dat(GOOD, count=2**31 - 1), FormatError, "imatrix: "),
        (dat(GOOD, GOOD), FormatError, "'a': found twice"),
        (dat(entry(b"", 1, squares(8))), FormatError, "1 to 1024 bytes at byte 8"),
        (struct.pack("<ii", 1, 2**31 - 1), FormatError, "found 2147483647"),
        (dat(entry(b"\xff", 1, squares(8))), FormatError, "a name in UTF-8"),
        (dat(entry(b"a", 0, squares(8))), FormatError, "found 0 and 8"),
        (dat(entry(b"a", 1, squares(0))), FormatError, "found 1 and 0"),
        (dat(entry(b"a", 1, -squares(8))), FormatError, "'a': expected finite"),
        (
            struct.pack("<ii1sii", 1, 1, b"a", 1, 2**29),
            TruncatedFileError,
            "2147483648",
        ),
        (b"<!DOCTYPE html>", FormatError, "importance matrix"),
    ],
)
def test_what_is_wrong_in_the_older_form(
    tmp_path: Path, data: bytes, error: type[FormatError], message: str
) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        read_imatrix(path)
    assert str(caught.value).startswith(str(path))


@given(cut=st.integers(0, 200), at=st.integers(0, 200), value=st.integers(0, 255))
def test_any_bytes_give_numbers_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, at: int, value: int
) -> None:
    data = bytearray(dat(GOOD, entry(b"b", 1, squares(16))))[:cut]
    if at < len(data):
        data[at] = value
    path = tmp_path_factory.getbasetemp() / "any.dat"
    path.write_bytes(data)
    try:
        found = read_imatrix(path)
    except FormatError:
        return
    for values in found.values():
        assert values.dtype == np.float32
        assert (values >= 0).all()
