# tests/hostile/gguf_cases.py
# The GGUF files that tests and fuzzers start from, described one by one.
# SPDX-License-Identifier: Apache-2.0
"""GGUF files that must be refused, and odd ones that must open.

Every refusal is described once: what is in the file, and the class, code and byte
offset of the error it has to cause. Run as a script, this writes the files and a
manifest into a folder: ``python gguf_cases.py FOLDER``.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
T_F32, T_F16, T_Q4_0, T_Q8_0, T_Q6_K, T_I8, T_F64 = 0, 1, 2, 8, 14, 24, 28

HEADER = 24  # bytes before the first key
FORMAT, TRUNCATED = "FormatError", "TruncatedFileError"
LIMIT, UNSUPPORTED = "LimitError", "UnsupportedError"


@dataclass(frozen=True)
class Part:
    """A file of `size` bytes, zero except for `chunks` of (offset, bytes)."""

    chunks: tuple[tuple[int, bytes], ...]
    size: int

    def write(self, path: Path) -> None:
        """Write it to `path`; the zeros between chunks take no disk space."""
        with path.open("wb") as file:
            for offset, data in self.chunks:
                file.seek(offset)
                file.write(data)
            file.truncate(self.size)

    def read(self) -> bytes:
        """Return the whole content."""
        out = bytearray(self.size)
        for offset, data in self.chunks:
            out[offset : offset + len(data)] = data
        return bytes(out)


@dataclass(frozen=True)
class Case:
    """A file, the files beside it, and the error that opening it has to cause.

    Attributes
    ----------
    name : str
        Says what is wrong; unique.
    files : dict of str to Part
        By file name. The first is the one to open.
    error, code : str
        Name of the exception and its code. Empty if the file opens.
    offset : int
        The absolute offset that the error names.
    """

    name: str
    files: dict[str, Part]
    error: str = ""
    code: str = ""
    offset: int = 0

    def write(self, folder: Path) -> Path:
        """Write all files into `folder` and return the path of the one to open."""
        for name, part in self.files.items():
            part.write(folder / name)
        return folder / next(iter(self.files))


# ------------------------------------------------------------------ building blocks


def u32(value: int) -> bytes:
    """Return 4 bytes, little-endian."""
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    """Return 8 bytes, little-endian."""
    return struct.pack("<Q", value)


def header(
    keys: int = 0, tensors: int = 0, version: int = 3, magic: bytes = b"GGUF"
) -> bytes:
    """Return the fixed 24 bytes."""
    return magic + u32(version) + u64(tensors) + u64(keys)


def text(data: bytes, length: int | None = None) -> bytes:
    """Return a string, perhaps with a length that is wrong."""
    return u64(len(data) if length is None else length) + data


def kv(key: bytes, kind: int, value: bytes, length: int | None = None) -> bytes:
    """Return a key with its value."""
    return text(key, length) + u32(kind) + value


def array(element: int, count: int, payload: bytes = b"") -> bytes:
    """Return the value of an array key."""
    return u32(element) + u64(count) + payload


def tensor(
    name: bytes,
    dims: Sequence[int],
    kind: int = T_F32,
    offset: int = 0,
    *,
    rank: int | None = None,
    length: int | None = None,
) -> bytes:
    """Return an entry of the tensor table."""
    shape = b"".join(u64(d) for d in dims)
    rank = len(dims) if rank is None else rank
    return text(name, length) + u32(rank) + shape + u32(kind) + u64(offset)


def pad(data: bytes, alignment: int = 32) -> bytes:
    """Return `data` with zeros up to the alignment."""
    return data + bytes(-len(data) % alignment)


def whole(data: bytes, size: int | None = None) -> dict[str, Part]:
    """Return the only file of a case, extended by zeros to `size`."""
    return {"bad.gguf": Part(((0, data),), len(data) if size is None else size)}


FILLER = bytes(512)  # so that the wrong field is the first thing to stumble over


def in_header(
    name: str, data: bytes, code: str, offset: int = 0, error: str = FORMAT
) -> Case:
    """Return a case about the fixed header or the file as a whole."""
    return Case(name, whole(data), error, code, offset)


def in_key(
    name: str,
    entry: bytes,
    at: int,
    code: str,
    error: str = FORMAT,
    *,
    before: Sequence[bytes] = (),
    filler: bytes = FILLER,
    size: int | None = None,
) -> Case:
    """Return a case whose last key is wrong at byte `at` of its entry."""
    start = header(keys=len(before) + 1) + b"".join(before)
    files = whole(start + entry + filler, size)
    return Case(name, files, error, code, len(start) + at)


def in_tensor(
    name: str,
    entry: bytes,
    at: int,
    code: str,
    error: str = FORMAT,
    *,
    before: Sequence[bytes] = (),
    keys: Sequence[bytes] = (),
    data: bytes = FILLER,
) -> Case:
    """Return a case whose last tensor is wrong at byte `at` of its entry."""
    start = header(len(keys), len(before) + 1) + b"".join([*keys, *before])
    return Case(name, whole(pad(start + entry) + data), error, code, len(start) + at)


def dim_at(name: bytes, i: int) -> int:
    """Return where dimension `i` is in a tensor's entry."""
    return 8 + len(name) + 4 + 8 * i


def type_at(name: bytes, rank: int) -> int:
    """Return where the type is in a tensor's entry."""
    return dim_at(name, rank)


def offset_at(name: bytes, rank: int) -> int:
    """Return where the offset is in a tensor's entry."""
    return type_at(name, rank) + 4


# -------------------------------------------------------------------- what is wrong


def header_cases() -> Iterator[Case]:
    """Yield wrong magic, versions and counts."""
    for name, data in (
        ("empty", b""),
        ("three-bytes", b"GGU"),
        ("magic-only", b"GGUF"),
        ("one-byte-short", header()[:23]),
        ("server-says-no", b"Entry not found"),
    ):
        yield in_header(name, data, "GGUF_TOO_SHORT", 0, TRUNCATED)
    for name, start in (
        ("magic-swapped", header(magic=b"FUGG")),
        ("magic-lower-case", header(magic=b"gguf")),
        ("zip", b"PK\x03\x04\x14\x00\x00\x00\x08\x00archive/data.pkl"),
        ("pickle", b"\x80\x02}q\x00X\x06\x00\x00\x00weightq\x01"),
        ("safetensors", u64(64) + b'{"a":{"dtype":"F32","shape":[1]'),
        ("html", b"<!DOCTYPE html><html><head><title>404</title>"),
        ("html-after-spaces", b"\r\n  <HTML lang=en><body>no</body></html>"),
        ("lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        ("gzip", b"\x1f\x8b\x08\x00" + bytes(30)),
        ("ggml", b"lmgg" + bytes(30)),
        ("zeros", bytes(64)),
        ("terminal-escape", b"\x1b]0;" + bytes(30)),
    ):
        yield in_header(f"magic-{name}", start + bytes(64), "GGUF_BAD_MAGIC")
    for version in (0, 1, 4, 2**32 - 1):
        data = header(version=version) + FILLER
        yield in_header(f"version-{version}", data, "GGUF_VERSION", 4, UNSUPPORTED)
    for version in (2 << 24, 3 << 24):
        data = header(version=version) + FILLER
        yield in_header(
            f"big-endian-{version}", data, "GGUF_BIG_ENDIAN", 4, UNSUPPORTED
        )
    for field, code, least in (
        ("tensors", "GGUF_TENSOR_COUNT", 24),
        ("keys", "GGUF_KV_COUNT", 14),
    ):
        offset = 8 if field == "tensors" else 16

        def counts(n: int, field: str = field) -> bytes:
            return header(tensors=n) if field == "tensors" else header(keys=n)

        for count in (2**60, 2**63, 2**64 - 1):
            data = counts(count) + FILLER
            yield in_header(f"{field}-{count:#x}", data, code, offset)
        data = counts(11) + bytes(least * 10)
        yield in_header(f"{field}-one-too-many", data, code, offset, TRUNCATED)
        files = whole(counts(2**20 + 1), 2**26)
        yield Case(f"{field}-above-limit", files, LIMIT, code, offset)


def key_cases() -> Iterator[Case]:
    """Yield wrong keys and value types."""
    for length in (0, 65536, 2**30, 2**63, 2**64 - 8, 2**64 - 1):
        entry = kv(b"k", U8, b"\0", length)
        yield in_key(f"key-length-{length:#x}", entry, 0, "GGUF_KEY_LENGTH")
    entry = kv(b"k", U8, b"\0", 14)
    yield in_key(
        "key-one-byte-long", entry, 0, "GGUF_KEY_LENGTH", TRUNCATED, filler=b"1234567"
    )
    for name, key, bad in (
        ("nul", b"a\0b", 1),
        ("lone-ff", b"ab\xff", 2),
        ("overlong", b"a\xc0\xafb", 1),
        ("overlong-3", b"\xe0\x80\xaf", 0),
        ("surrogate", b"\xed\xa0\x80", 0),
        ("above-10ffff", b"\xf4\x90\x80\x80", 0),
        ("cut-sequence", b"ab\xe2\x82", 2),
        ("escape", b"a\x1b[31m", 1),
        ("delete", b"abc\x7f", 3),
        ("c1-control", b"\xc2\x9b31m", 0),
    ):
        entry = kv(key, U8, b"\0")
        yield in_key(f"key-text-{name}", entry, 8 + bad, "GGUF_KEY_TEXT")
    one = kv(b"one", U8, b"\1")
    yield in_key("duplicate-key", one, 8, "GGUF_DUPLICATE_KEY", before=[one])
    alignments = [kv(b"general.alignment", U32, u32(a)) for a in (32, 64)]
    yield in_key(
        "duplicate-alignment",
        alignments[1],
        8,
        "GGUF_DUPLICATE_KEY",
        before=alignments[:1],
    )
    many = [kv(b"%06d" % i, U8, b"\0") for i in range(20000)]
    yield in_key("duplicate-among-20000", many[0], 8, "GGUF_DUPLICATE_KEY", before=many)
    # Two errors: the one that comes first in the file counts.
    other = kv(b"also", U8, b"\1")
    data = header(keys=4) + one + one + other + other + FILLER
    at = HEADER + len(one) + 8
    yield in_header("duplicate-key-twice", data, "GGUF_DUPLICATE_KEY", at)
    start = header(keys=3) + one
    data = start + one + kv(b"x", 99, b"") + FILLER
    yield in_header(
        "duplicate-then-bad-type", data, "GGUF_DUPLICATE_KEY", len(start) + 8
    )
    for kind in (13, 2**31, 2**32 - 1):
        entry = kv(b"key", kind, b"")
        yield in_key(f"value-type-{kind:#x}", entry, 11, "GGUF_VALUE_TYPE")
    for kind, width in ((U16, 2), (U32, 4), (F64, 8)):
        entry = kv(b"key", kind, bytes(width - 1))
        yield in_key(
            f"value-cut-{kind}",
            entry,
            15,
            "GGUF_HEADER_TRUNCATED",
            TRUNCATED,
            filler=b"",
        )
    yield in_key(
        "type-cut",
        text(b"long enough a key") + b"\0\0",
        25,
        "GGUF_HEADER_TRUNCATED",
        TRUNCATED,
        filler=b"",
    )


def value_cases() -> Iterator[Case]:
    """Yield wrong bools, strings, arrays and alignments."""
    for value in (2, 255):
        entry = kv(b"key", BOOL, bytes([value]))
        yield in_key(f"bool-{value}", entry, 15, "GGUF_BOOL")
    entry = kv(b"key", ARRAY, array(BOOL, 4, b"\0\1\2\1"))
    yield in_key("bool-in-array", entry, 15 + 12 + 2, "GGUF_BOOL")
    for length in (2**63, 2**64 - 1, 2**64 - 8):
        entry = kv(b"key", STRING, u64(length))
        yield in_key(f"string-length-{length:#x}", entry, 15, "GGUF_STRING_LENGTH")
    entry = kv(b"key", STRING, text(b"abc", 4))
    yield in_key(
        "string-one-short", entry, 15, "GGUF_STRING_LENGTH", TRUNCATED, filler=b""
    )
    entry = kv(b"key", STRING, u64(2**26 + 1))
    yield in_key(
        "string-above-limit", entry, 15, "GGUF_STRING_LENGTH", LIMIT, size=2**27
    )
    payload = text(b"good") + u64(2**64 - 4)
    entry = kv(b"key", ARRAY, array(STRING, 2, payload))
    at = 15 + 12 + len(text(b"good"))
    yield in_key("string-in-array", entry, at, "GGUF_STRING_LENGTH")
    for name, element, count in (
        ("u8-2^64-1", U8, 2**64 - 1),
        ("u32-2^62", U32, 2**62),
        ("f64-2^61", F64, 2**61),
        ("strings-2^61", STRING, 2**61),
        ("bools-2^63", BOOL, 2**63),
    ):
        entry = kv(b"key", ARRAY, array(element, count))
        yield in_key(f"array-{name}", entry, 19, "GGUF_ARRAY_LENGTH")
    for name, element, payload in (
        ("u16", U16, bytes(7)),
        ("strings", STRING, bytes(31)),
    ):
        entry = kv(b"key", ARRAY, array(element, 4, payload))
        yield in_key(
            f"array-{name}-one-short",
            entry,
            19,
            "GGUF_ARRAY_LENGTH",
            TRUNCATED,
            filler=b"",
        )
    entry = kv(b"key", ARRAY, array(U8, 2**24 + 1))
    yield in_key("array-above-limit", entry, 19, "GGUF_ARRAY_LENGTH", LIMIT, size=2**25)
    for element in (13, 2**31, 2**32 - 1):
        entry = kv(b"key", ARRAY, array(element, 2**60))
        yield in_key(f"array-type-{element:#x}", entry, 15, "GGUF_ARRAY_TYPE")
    entry = kv(b"key", ARRAY, array(ARRAY, 1, array(U8, 1, b"\0")))
    yield in_key("nested-array", entry, 15, "GGUF_NESTED_ARRAY", UNSUPPORTED)
    entry = kv(b"key", ARRAY, array(ARRAY, 1) * 10000)
    yield in_key("nested-array-10000", entry, 15, "GGUF_NESTED_ARRAY", UNSUPPORTED)
    key = b"general.alignment"
    for value in (0, 3, 13, 33, 2**32 - 1):
        entry = kv(key, U32, u32(value))
        yield in_key(f"alignment-{value}", entry, 12 + len(key), "GGUF_ALIGNMENT")
    entry = kv(key, U32, u32(2**31))
    yield in_key("alignment-2^31", entry, 12 + len(key), "GGUF_ALIGNMENT", LIMIT)
    for name, kind, raw in (
        ("i32", I32, u32(32)),
        ("u64", U64, u64(32)),
        ("string", STRING, text(b"32")),
        ("array", ARRAY, array(U32, 1, u32(32))),
    ):
        entry = kv(key, kind, raw)
        at = 12 + len(key)
        yield in_key(f"alignment-{name}", entry, at, "GGUF_ALIGNMENT")
    # Five strings of 60 MiB, each allowed, pass 256 MiB together.
    size, keys, chunks, offset = 60 << 20, 5, [(0, header(keys=5))], HEADER
    for i in range(keys):
        entry = kv(b"k%d" % i, STRING, u64(size))
        chunks.append((offset, entry))
        last, offset = offset + len(entry), offset + len(entry) + size
    files = {"bad.gguf": Part(tuple(chunks), offset)}
    yield Case("header-above-limit", files, LIMIT, "GGUF_HEADER_TOO_LARGE", last)


def table_cases() -> Iterator[Case]:
    """Yield wrong names, dimensions and types."""
    yield in_tensor("name-empty", tensor(b"", [1]), 0, "GGUF_NAME")
    yield in_tensor("name-65", tensor(b"n" * 65, [1]), 0, "GGUF_NAME")
    for length in (2**31, 2**63, 2**64 - 1):
        entry = tensor(b"n", [1], length=length)
        yield in_tensor(f"name-length-{length:#x}", entry, 0, "GGUF_NAME")
    entry = tensor(b"n", [1], length=60)
    yield in_header(
        "name-cut",
        header(tensors=1) + entry,
        "GGUF_NAME",
        HEADER,
        TRUNCATED,
    )
    for name, bad in (
        ("ff", b"a\xffb"),
        ("nul", b"a\0c"),
        ("newline", b"a\nb"),
        ("surrogate", b"\xed\xbf\xbf"),
    ):
        yield in_tensor(f"name-{name}", tensor(bad, [1]), 8, "GGUF_NAME")
    nul = [tensor(b"a\0b", [1]), tensor(b"a\0c", [1], T_F32, 32)]
    start = header(tensors=2)
    yield in_header(
        "name-equal-up-to-nul",
        pad(start + b"".join(nul)) + FILLER,
        "GGUF_NAME",
        HEADER + 8,
    )
    pair = [tensor(b"same", [1]), tensor(b"same", [1], T_F32, 32)]
    yield in_tensor(
        "duplicate-tensor", pair[1], 8, "GGUF_DUPLICATE_TENSOR", before=pair[:1]
    )
    many = [tensor(b"%06d" % i, [8], T_F32, 32 * i) for i in range(20000)]
    yield in_tensor(
        "duplicate-among-20000-tensors",
        many[0],
        8,
        "GGUF_DUPLICATE_TENSOR",
        before=many,
    )
    later = tensor(b"x", [1], rank=7)
    start = header(tensors=3) + pair[0]
    yield in_header(
        "duplicate-tensor-then-bad-rank",
        start + pair[1] + later + FILLER,
        "GGUF_DUPLICATE_TENSOR",
        len(start) + 8,
    )
    for rank in (5, 9, 2**32 - 1):
        entry = tensor(b"w", [1, 1, 1, 1, 1], rank=rank)
        yield in_tensor(f"rank-{rank}", entry, 9, "GGUF_RANK")
    yield in_tensor("scalar-of-blocks", tensor(b"w", [], T_Q4_0), 9, "GGUF_RANK")
    for name, dims, first in (
        ("2^32x2^32", [2**32, 2**32], 1),
        ("2^63-1x2", [2**63 - 1, 2], 1),
        ("wraps-to-small", [2**42 + 32, 2**22], 1),
        ("zero-hides-2^63", [0, 2**63], 1),
        ("minus-one", [2**64 - 1], 0),
        ("minus-one-last", [32, 1, 1, 2**64 - 1], 3),
        ("2^16-four-times", [2**16, 2**16, 2**16, 2**16], 3),
        ("zero-then-wrap", [2**32, 0, 2**32], 2),
    ):
        entry = tensor(b"w", dims)
        yield in_tensor(
            f"dims-{name}", entry, dim_at(b"w", first), "GGUF_DIMS_OVERFLOW"
        )
    for kind in (4, 5, 31, 32, 33, 36, 38, 43, 60, 142, 2**31, 2**32 - 1):
        entry = tensor(b"w", [32], kind)
        yield in_tensor(
            f"type-{kind}", entry, type_at(b"w", 1), "GGUF_TENSOR_TYPE", UNSUPPORTED
        )
    for name, dims, kind in (
        ("33-q4_0", [33], T_Q4_0),
        ("1-q8_0", [1, 32], T_Q8_0),
        ("128-q6_k", [128, 2], T_Q6_K),
        ("100-q1_0", [100], 41),
    ):
        entry = tensor(b"w", dims, kind)
        yield in_tensor(f"row-{name}", entry, dim_at(b"w", 0), "GGUF_ROW_BLOCK")
    for name, dims, kind in (
        ("f32-2^62-1", [2**62 - 1], T_F32),
        ("f64-2^60x2", [2**60, 2], T_F64),
        ("f16-2^62x1", [2**62, 1], T_F16),
    ):
        entry = tensor(b"w", dims, kind)
        yield in_tensor(f"bytes-{name}", entry, 0, "GGUF_BYTES_OVERFLOW")
    entry = tensor(b"w", [(2**64 // 18) * 32 % 2**64], T_Q4_0)
    yield in_tensor(
        "bytes-q4_0-near-2^64", entry, dim_at(b"w", 0), "GGUF_DIMS_OVERFLOW"
    )
    entry = tensor(b"w", [4, 4])
    for name, cut, at in (
        ("rank", 9 + 3, 9),
        ("dimension", dim_at(b"w", 1) + 5, dim_at(b"w", 1)),
        ("type", type_at(b"w", 2) + 1, type_at(b"w", 2)),
        ("offset", offset_at(b"w", 2) + 7, offset_at(b"w", 2)),
    ):
        # A key in front, so that the count of tensors is believed.
        start = header(1, 1) + kv(b"k", STRING, text(bytes(64)))
        yield in_header(
            f"table-cut-in-{name}",
            start + entry[:cut],
            "GGUF_HEADER_TRUNCATED",
            len(start) + at,
            TRUNCATED,
        )


def data_cases() -> Iterator[Case]:
    """Yield wrong offsets and missing data."""
    entry = tensor(b"w", [8])
    start = header(tensors=1)
    end = len(start + entry)
    yield in_header("no-padding", start + entry, "GGUF_DATA_START", end, TRUNCATED)
    yield in_header(
        "padding-one-short",
        pad(start + entry)[:-1],
        "GGUF_DATA_START",
        end,
        TRUNCATED,
    )
    big = kv(b"general.alignment", U32, u32(2**20))
    start = header(1, 1) + big + entry
    yield in_header(
        "alignment-1mib-tiny-file",
        start + FILLER,
        "GGUF_DATA_START",
        len(start),
        TRUNCATED,
    )
    at = offset_at(b"w", 1)
    for offset in (1, 31, 2**64 - 1):
        entry = tensor(b"w", [8], T_F32, offset)
        yield in_tensor(f"offset-{offset}", entry, at, "GGUF_OFFSET_ALIGN")
    cut: list[tuple[str, list[int], int, int, int]] = [
        ("data-missing", [8], T_F32, 0, 0),
        ("data-one-short", [8], T_F32, 0, 31),
        ("data-half", [64, 2], T_Q8_0, 0, 68),
        ("offset-2^64-32", [8], T_F32, 2**64 - 32, 512),
        ("offset-behind-the-end", [8], T_F32, 2**20, 512),
        ("bytes-2^63-64", [2**63 - 64], T_I8, 0, 512),
        ("bytes-2^62", [2**60], T_F32, 0, 512),
    ]
    for name, dims, kind, offset, present in cut:
        entry = tensor(b"w", dims, kind, offset)
        yield in_tensor(
            name,
            entry,
            offset_at(b"w", len(dims)),
            "GGUF_DATA_TRUNCATED",
            TRUNCATED,
            data=bytes(present),
        )
    huge = [tensor(name, [2**63 - 64], T_I8) for name in (b"a", b"b")]
    yield in_header(
        "two-tensors-of-2^63-64",
        pad(header(tensors=2) + b"".join(huge)) + FILLER,
        "GGUF_DATA_TRUNCATED",
        HEADER + offset_at(b"a", 1),
        TRUNCATED,
    )
    for name, offsets, bad in (
        ("overlap", (0, 32, 64), 1),
        ("gap", (0, 96, 160), 1),
        ("swapped", (64, 0, 128), 0),
        ("all-zero", (0, 0, 0), 1),
        ("hole-in-front", (32, 96, 160), 0),
        ("last-overlaps", (0, 64, 96), 2),
    ):
        entries = [
            tensor(bytes([97 + i]), [16], T_F32, offset)
            for i, offset in enumerate(offsets)
        ]
        field = HEADER + len(entries[0]) * bad + offset_at(b"a", 1)
        data = pad(header(tensors=3) + b"".join(entries)) + bytes(256)
        yield in_header(f"layout-{name}", data, "GGUF_LAYOUT", field)


# ---------------------------------------------------------------------------- shards


def split_keys(no: int, count: int, total: int) -> list[bytes]:
    """Return the three keys of a shard, with the types of the reference tool."""
    return [
        kv(b"split.no", U16, struct.pack("<H", no)),
        kv(b"split.count", U16, struct.pack("<H", count)),
        kv(b"split.tensors.count", I32, struct.pack("<i", total)),
    ]


def shard(keys: Sequence[bytes], *names: bytes) -> bytes:
    """Return a shard that holds tensors of 8 floats."""
    table = [tensor(n, [8], T_F32, 32 * i) for i, n in enumerate(names)]
    start = header(len(keys), len(names)) + b"".join([*keys, *table])
    return pad(start) + bytes(32 * len(names))


def value_offset(keys: Sequence[bytes], i: int) -> int:
    """Return where the value of key `i`, a number, begins."""
    key_bytes = struct.unpack_from("<Q", keys[i])[0]
    return HEADER + sum(len(k) for k in keys[:i]) + 12 + int(key_bytes)


def shards(*contents: bytes, first: int = 0) -> dict[str, Part]:
    """Return the files of a split model, the one to open in front."""
    names = [f"m-{i + 1:05d}-of-{len(contents):05d}.gguf" for i in range(len(contents))]
    parts = {n: Part(((0, c),), len(c)) for n, c in zip(names, contents, strict=True)}
    return {names[first]: parts[names[first]]} | parts


def split_cases() -> Iterator[Case]:
    """Yield split keys and shards that contradict each other."""
    code = "GGUF_SPLIT"
    good = split_keys(0, 2, 2)
    for i, name in enumerate(("no", "count", "total")):
        keys = [k for j, k in enumerate(good) if j != i]
        at = value_offset(keys, 1)
        yield in_header(f"split-without-{name}", shard(keys, b"a", b"b"), code, at)
    for name, no, count, at in (
        ("no-equals-count", 2, 2, 0),
        ("no-above-count", 9, 2, 0),
        ("count-zero", 1, 0, 0),
    ):
        keys = split_keys(no, count, 2)
        offset = value_offset(keys, at)
        yield in_header(f"split-{name}", shard(keys, b"a", b"b"), code, offset)
    keys = split_keys(0, 65535, 2)
    yield in_header(
        "split-count-65535", shard(keys, b"a"), code, value_offset(keys, 1), LIMIT
    )
    for name, i, key in (
        ("no-string", 0, kv(b"split.no", STRING, text(b"0"))),
        ("no-negative", 0, kv(b"split.no", I16, struct.pack("<h", -1))),
        ("count-array", 1, kv(b"split.count", ARRAY, array(U16, 1, b"\2\0"))),
        ("count-float", 1, kv(b"split.count", F32, struct.pack("<f", 2.0))),
        ("total-negative", 2, kv(b"split.tensors.count", I32, b"\xff" * 4)),
        ("total-bool", 2, kv(b"split.tensors.count", BOOL, b"\1")),
    ):
        keys = [*good[:i], key, *good[i + 1 :]]
        offset = value_offset(keys, i)
        yield in_header(f"split-{name}", shard(keys, b"a", b"b"), code, offset)
    yield in_header("split-file-name", shard(good, b"a"), code, value_offset(good, 0))
    first, second = shard(good, b"a"), shard(split_keys(1, 2, 2), b"b")
    files = shards(first, second)
    del files["m-00002-of-00002.gguf"]
    yield Case("split-shard-missing", files, FORMAT, code, value_offset(good, 1))
    for name, other, at in (
        ("other-total", split_keys(1, 2, 3), 2),
        ("other-count", split_keys(1, 3, 2), 1),
        ("same-no-twice", split_keys(0, 2, 2), 0),
    ):
        files = shards(first, shard(other, b"b"))
        offset = value_offset(other, at)
        yield Case(f"split-{name}", files, FORMAT, code, offset)
    files = shards(first, shard([], b"b"))
    yield Case("split-shard-without-keys", files, FORMAT, code, 16)
    keys = split_keys(1, 2, 2)
    files = shards(first, shard(keys, b"a"))
    entry = HEADER + sum(len(k) for k in keys)
    yield Case("split-tensor-twice", files, FORMAT, code, entry)
    keys = split_keys(0, 2, 3)
    files = shards(shard(keys, b"a"), shard(split_keys(1, 2, 3), b"b"))
    yield Case("split-total-wrong", files, FORMAT, code, value_offset(keys, 2))
    files = shards(first, second[:-1])
    at = HEADER + sum(len(k) for k in split_keys(1, 2, 2)) + offset_at(b"b", 1)
    yield Case("split-shard-cut", files, TRUNCATED, "GGUF_DATA_TRUNCATED", at)


def hostile_cases() -> list[Case]:
    """Return every file that has to be refused."""
    return [
        *header_cases(),
        *key_cases(),
        *value_cases(),
        *table_cases(),
        *data_cases(),
        *split_cases(),
    ]


# ------------------------------------------------------------------ odd, but allowed


def every_value() -> list[bytes]:
    """Return a key of each type and an array of each element type."""
    numbers = [
        (U8, "<B", 200), (I8, "<b", -100), (U16, "<H", 60000), (I16, "<h", -30000),
        (U32, "<I", 2**32 - 1), (I32, "<i", -(2**31)), (F32, "<f", 0.1),
        (BOOL, "<?", True), (U64, "<Q", 2**64 - 1), (I64, "<q", -(2**63)),
        (F64, "<d", 0.1),
    ]  # fmt: skip
    keys = []
    for kind, code, value in numbers:
        raw = struct.pack(code, value)
        keys.append(kv(b"scalar.%d" % kind, kind, raw))
        keys.append(kv(b"array.%d" % kind, ARRAY, array(kind, 3, raw * 3)))
        keys.append(kv(b"empty.%d" % kind, ARRAY, array(kind, 0)))
    strings = text(b"") + text("é".encode()) + text(b"\xff\0\n")
    keys.append(kv(b"scalar.8", STRING, text(b"text")))
    keys.append(kv(b"array.8", ARRAY, array(STRING, 3, strings)))
    keys.append(kv(b"empty.8", ARRAY, array(STRING, 0)))
    return keys


def model(
    tensors: Sequence[tuple[bytes, Sequence[int], int, int]],
    keys: Sequence[bytes] = (),
    alignment: int = 32,
    version: int = 3,
) -> bytes:
    """Return a file with tensors of (name, dims, type, bytes) laid out in order."""
    table, data = b"", b""
    for name, dims, kind, size in tensors:
        data = pad(data, alignment)
        table += tensor(name, dims, kind, len(data))
        data += bytes(i % 251 for i in range(size))
    start = header(len(keys), len(tensors), version) + b"".join(keys) + table
    return pad(start, alignment) + data


def valid_cases() -> list[Case]:
    """Return files that have to open."""
    align = {a: kv(b"general.alignment", U32, u32(a)) for a in (1, 8, 64, 2**20)}
    two = [(b"a", [8], T_F32, 32), (b"b.weight", [64, 3], T_Q8_0, 204)]
    blobs = {
        "nothing": header(),
        "version-2": model(two, every_value(), version=2),
        "every-value": model(two, every_value()),
        "no-tensors": header(1) + kv(b"k", U8, b"\1"),
        "scalar": model([(b"s", [], T_F32, 4)]),
        "zero-dimension": model([(b"z", [0, 4], T_F32, 0), (b"a", [3], T_F32, 12)]),
        "zero-rows-of-blocks": model([(b"z", [32, 0], T_Q4_0, 0)]),
        "four-dimensions": model([(b"w", [32, 2, 3, 2], T_Q4_0, 216)]),
        "one-element-rows": model([(b"w", [1, 1, 1, 7], T_F32, 28)]),
        "no-padding-after-last": model([(b"a", [3], T_F32, 12)]),
        "padded-after-last": pad(model([(b"a", [3], T_F32, 12)])),
        "trailing-zip": model(two) + b"PK\x05\x06" + bytes(400),
        "alignment-1": model(two, [align[1]], 1),
        "alignment-8": model(two, [align[8]], 8),
        "alignment-64": model(two, [align[64]], 64),
        "alignment-1mib": model(two, [align[2**20]], 2**20),
        "name-64": model([(b"n" * 64, [1], T_F32, 4)]),
        "name-utf8": model([("größe.重み".encode(), [1], T_F32, 4)]),
        "key-65535": header(1) + kv(b"k" * 65535, U8, b"\1"),
        "not-decodable-here": model([(b"w", [256], 16, 66), (b"i", [2], T_I8, 2)]),
        "merged-from-shards": shard(split_keys(0, 0, 1), b"a"),
        "one-shard": shard(split_keys(0, 1, 2), b"a", b"b"),
    }
    cases = [Case(name, whole(blob)) for name, blob in blobs.items()]
    first, second = (
        shard(split_keys(0, 2, 3), b"a"),
        shard(split_keys(1, 2, 3), b"b", b"c"),
    )
    cases.append(Case("two-shards", shards(first, second)))
    cases.append(Case("two-shards-by-the-second", shards(first, second, first=1)))
    cases.append(
        Case(
            "first-shard-without-tensors",
            shards(shard(split_keys(0, 2, 1)), shard(split_keys(1, 2, 1), b"a")),
        )
    )
    # Opening reads only the header: 1 TiB takes no longer than 1 KiB.
    huge = pad(header(tensors=1) + tensor(b"w", [2**40], T_I8))
    cases.append(Case("sparse-1tib", whole(huge, len(huge) + 2**40)))
    return cases


def main(folder: Path) -> None:
    """Write every case and a manifest: path, class, code, offset, tab-separated."""
    lines = []
    for case in [*hostile_cases(), *valid_cases()]:
        place = folder / (case.name if case.error else f"valid-{case.name}")
        place.mkdir(parents=True, exist_ok=True)
        path = case.write(place).relative_to(folder)
        lines.append(
            f"{path}\t{case.error or '-'}\t{case.code or '-'}\t{case.offset}\n"
        )
    (folder / "manifest.tsv").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
