# python/halfbyte/conversion/gguf.py
# SPDX-License-Identifier: Apache-2.0
"""The container GGUF, to be written: metadata, and places for tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from halfbyte.conversion.plan import Layout, Output
from halfbyte.formats import format_info

__all__ = ["F32", "I32", "U32", "copied", "layout"]

_MAGIC, _VERSION, _ALIGNMENT = b"GGUF", 3, 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class U32:
    """A number, or a list of them, of this type. Python's own do not tell."""

    value: int | Sequence[int]


@dataclass(frozen=True)
class I32:
    """A number, or a list of them, of this type."""

    value: int | Sequence[int]


@dataclass(frozen=True)
class F32:
    """A number, or a list of them, of this type."""

    value: float | Sequence[float]


_NUMBERS = {U32: (_U32, "<u4"), I32: (_I32, "<i4"), F32: (_F32, "<f4")}


def layout(metadata: Mapping[str, Any], outputs: Sequence[Output]) -> Layout:
    """Lay out a file.

    Parameters
    ----------
    metadata : mapping
        Values are str, bool, lists of one of these, `U32`, `I32` or `F32`; or bytes: a
        value with its type in front, as a file has it.
    outputs : sequence of Output
        Of types that `halfbyte.formats` has, in upper case.

    Returns
    -------
    Layout
    """
    counts = struct.pack("<IQQ", _VERSION, len(outputs), len(metadata))
    parts = [_MAGIC, counts]
    for key, value in metadata.items():
        parts += [_string(key), _typed(value)]
    offsets, end = [], 0
    for output in outputs:
        dims = output.shape[::-1] or (1,)
        type_id = format_info(output.type.lower()).type_id
        parts += [
            _string(output.name),
            struct.pack(f"<I{len(dims)}Q", len(dims), *dims),
            struct.pack("<IQ", type_id, end),
        ]
        offsets.append(end)
        end += _padded(output.bytes)
    header = b"".join(parts)
    header += bytes(_padded(len(header)) - len(header))
    places = tuple(len(header) + offset for offset in offsets)
    return Layout(header, places, len(header) + end)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Any) -> bytes:
    """A value with its type in front."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if type(value) in _NUMBERS:
        kind, code = _NUMBERS[type(value)]
        data = np.asarray(value.value, code)
        front = struct.pack("<I", kind) if data.ndim == 0 else _array(kind, len(data))
        return front + data.tobytes()
    if value and isinstance(value[0], bool):
        return _array(_BOOL, len(value)) + np.array(value, "?").tobytes()
    return _array(_STRING, len(value)) + b"".join(map(_string, value))


def _array(kind: int, count: int) -> bytes:
    return struct.pack("<IIQ", _ARRAY, kind, count)


# ---- metadata of a file, as it is

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# Of the file itself, not of the model.
_OWN = ("general.alignment", "split.")


def copied(path: str) -> dict[str, bytes]:
    """Metadata of a file for `layout`, byte for byte; of a split one, its first shard.

    Parameters
    ----------
    path : str
        Of a file that `halfbyte.open_gguf` has opened, and so checked.

    Returns
    -------
    dict
    """
    with Path(path).open("rb") as file:
        file.seek(len(_MAGIC) + 12)
        (count,) = struct.unpack("<Q", file.read(8))
        entries = dict(_entry(file) for _ in range(count))
    return {key: value for key, value in entries.items() if not key.startswith(_OWN)}


def _entry(file: BinaryIO) -> tuple[str, bytes]:
    key = _read_string(file)[8:].decode()
    front = file.read(4)
    (kind,) = struct.unpack("<I", front)
    if kind != _ARRAY:
        return key, front + _read_scalars(file, kind, 1)
    rest = file.read(12)
    of, count = struct.unpack("<IQ", rest)
    return key, front + rest + _read_scalars(file, of, count)


def _read_scalars(file: BinaryIO, kind: int, count: int) -> bytes:
    if kind == _STRING:
        return b"".join(_read_string(file) for _ in range(count))
    return file.read(_SIZES[kind] * count)


def _read_string(file: BinaryIO) -> bytes:
    front = file.read(8)
    return front + file.read(*struct.unpack("<Q", front))
