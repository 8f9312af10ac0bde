# tests/python/test_errors.py
# What an exception is, carries and says.
# SPDX-License-Identifier: Apache-2.0
"""What an exception is, carries and says."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_cases as g
import halfbyte
import numpy as np
import pytest
from halfbyte import errors

BASES: dict[str, type[Exception]] = {
    "FormatError": ValueError,
    "TruncatedFileError": ValueError,
    "LimitError": ValueError,
    "UnsupportedError": ValueError,
    "ModelError": ValueError,
    "FileChangedError": OSError,
    "ShapeError": ValueError,
    "DTypeError": TypeError,
    "ArgumentError": ValueError,
    "ContextOverflowError": ValueError,
    "NumericalError": ArithmeticError,
    "MissingExtraError": ImportError,
    "OutOfMemoryError": MemoryError,
}
FIELDS: dict[str, Any] = {
    "path": "/a/m.gguf",
    "kind": "gguf",
    "code": "GGUF_KEY_TEXT",
    "offset": 2**40,
    "tensor": "blk.0",
    "key": "k",
    "index": 7,
    "found": "3",
    "expected": "4",
    "requested_bytes": 2**40,
}

# --- Classes ---------------------------------------------------------------------------


def test_the_list_is_complete() -> None:
    assert set(errors.__all__) == {"Error", *BASES}
    for name in errors.__all__:
        assert getattr(halfbyte, name) is getattr(errors, name)


@pytest.mark.parametrize(("name", "builtin"), BASES.items())
def test_an_ordinary_except_clause_catches_it(
    name: str, builtin: type[Exception]
) -> None:
    cls = getattr(errors, name)
    assert issubclass(cls, errors.Error)
    assert issubclass(cls, builtin)


def test_damage_is_a_kind_of_format_error() -> None:
    assert issubclass(errors.TruncatedFileError, errors.FormatError)
    assert issubclass(errors.LimitError, errors.FormatError)
    assert not issubclass(errors.ModelError, errors.FormatError)


def pickled(error: errors.Error) -> errors.Error:
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("name", ["Error", *BASES])
def test_a_copy_is_equal(name: str, copied: Any) -> None:
    error = getattr(errors, name)("what happened", **FIELDS)
    again = copied(error)
    assert type(again) is type(error)
    assert str(again) == str(error) == "what happened"
    assert repr(again) == repr(error)
    assert {field: getattr(again, field) for field in FIELDS} == FIELDS


def test_what_does_not_apply_is_none() -> None:
    error = errors.ShapeError("x: expected shape (4,), got (5,)")
    fields = dict.fromkeys(FIELDS) | {"requested_bytes": 0}
    assert {field: getattr(error, field) for field in FIELDS} == fields


# --- Errors of files -------------------------------------------------------------------


def refused(path: Path) -> errors.Error:
    with pytest.raises(errors.Error) as caught:
        halfbyte.open_gguf(path)
    error = caught.value
    assert pickled(error).__dict__ == error.__dict__
    return error


def test_a_key_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    good = g.kv(b"general.name", g.STRING, g.text(b"x"))
    bad = g.kv(b"general.alignment", g.U32, g.u32(3))
    path.write_bytes(g.header(keys=2) + good + bad)
    error = refused(path)
    assert type(error) is errors.FormatError
    assert error.path == str(path)
    assert (error.kind, error.code) == ("gguf", "GGUF_ALIGNMENT")
    assert (error.key, error.index, error.tensor) == ("general.alignment", 1, None)
    assert error.offset == 24 + len(good) + len(bad) - 4
    assert error.found == "3"
    assert "power of two" in str(error.expected)
    assert str(error) == (
        f"m.gguf: gguf: key 'general.alignment' (#1): value at byte {error.offset}: "
        f"found 3; expected {error.expected} [GGUF_ALIGNMENT]"
    )


def test_a_tensor_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    entry = g.text(b"blk.0") + g.u32(1) + g.u64(32) + g.u32(4) + g.u64(0)
    path.write_bytes(g.header(tensors=1) + entry + bytes(64))
    error = refused(path)
    assert (error.code, error.tensor, error.index) == ("GGUF_TENSOR_TYPE", "blk.0", 0)
    assert error.offset == 24 + len(entry) - 12
    assert str(error).startswith("m.gguf: gguf: tensor 'blk.0' (#0): type at byte ")
    assert "found 4" in str(error)


HOSTILE = [
    b"\x1b[2J\x07",  # clears the terminal and rings
    b"a\r\nroot: fake line",
    "\u009b31m".encode(),  # the same escape in one character
    b"\x7f" * 200,
    "\u4e2d\u6587".encode() * 100,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_stays_on_its_line(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    architecture = g.kv(b"general.architecture", g.STRING, g.text(text))
    path.write_bytes(g.header(keys=1) + architecture)
    with pytest.raises(errors.Error) as caught:
        halfbyte.load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert len(message) < 500  # 64 characters of at most 4 each, and our own words


@pytest.mark.parametrize("text", HOSTILE[:4])
def test_a_hostile_key_stays_on_its_line(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(g.header(keys=1) + g.kv(text, 99, b""))
    message = str(refused(path))
    assert message.isprintable()
    assert len(message) < 500


def test_a_hostile_file_name_stays_on_its_line(tmp_path: Path) -> None:
    path = tmp_path / "m\n\x1b[2J.gguf"
    path.write_bytes(b"FUGG" + bytes(20))
    error = refused(path)
    assert str(error).isprintable()
    assert error.path == str(path)


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.gguf")
    Path(path).write_bytes(g.header())
    assert halfbyte.open_gguf(path).paths == [path]
    Path(path).write_bytes(b"FUGG" + bytes(20))
    assert refused(Path(path)).path == path
    with pytest.raises(FileNotFoundError) as caught:
        halfbyte.open_gguf(path + "x")
    assert caught.value.filename == path + "x"


@pytest.mark.parametrize("opened", [halfbyte.open_gguf, halfbyte.load])
def test_a_zero_byte_does_not_cut_the_name(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(g.header())
    with pytest.raises(errors.ArgumentError, match=r"m.gguf\\x00.txt: file: "):
        opened(f"{tmp_path}/m.gguf\0.txt")


@pytest.mark.parametrize("opened", [halfbyte.open_gguf, halfbyte.load])
def test_trouble_of_the_system_is_plain_os_error(opened: Any, tmp_path: Path) -> None:
    missing = tmp_path / "missing.gguf"
    with pytest.raises(FileNotFoundError) as caught:
        opened(missing)
    assert caught.value.errno == 2
    assert caught.value.filename == str(missing)
    assert not isinstance(caught.value, errors.Error)


def test_the_first_error_of_a_model_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma3_text"')
    with pytest.raises(errors.FormatError) as caught:
        halfbyte.load(tmp_path)
    assert caught.value.path == str(tmp_path / "config.json")
    assert str(caught.value).startswith("config.json: json: ")


def test_safetensors_name_the_tensor(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}
    header = json.dumps({"\u4e2d": entry}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(errors.FormatError) as caught:
        halfbyte.open_safetensors(path)
    error = caught.value
    assert (error.kind, error.code) == ("safetensors", "ST_SIZE")
    assert error.tensor == "\u4e2d"
    assert "tensor '\u4e2d'" in str(error)


# --- Errors of arguments ---------------------------------------------------------------

X = np.zeros((2, 32), np.float32)
W = halfbyte.quantize(np.zeros((4, 32), np.float32), "q8_0")
V = np.zeros(32, np.float32)


@pytest.mark.parametrize(
    ("call", "cls", "message"),
    [
        (
            lambda: halfbyte.linear(X.astype(np.float64), W),
            errors.DTypeError,
            "x: expected float32, float16 or bfloat16, got float64",
        ),
        (
            lambda: halfbyte.linear(X[:, :31], W),
            errors.ShapeError,
            "x: expected shape (..., 32), got (2, 31)",
        ),
        (
            lambda: halfbyte.linear(X, W, bias=V[:3]),
            errors.ShapeError,
            "bias: expected shape (4,), got (3,)",
        ),
        (
            lambda: halfbyte.linear(X, W, out=np.zeros((2, 5), np.float32)),
            errors.ShapeError,
            "out: expected shape (2, 4), got (2, 5)",
        ),
        (
            lambda: halfbyte.linear(X, W, activations="f64"),
            errors.ArgumentError,
            "activations: expected one of auto, f32, got 'f64'",
        ),
        (
            lambda: halfbyte.rms_norm(X, V.astype(np.int32)),
            errors.DTypeError,
            "weight: expected float32, float16 or bfloat16, got int32",
        ),
        (
            lambda: halfbyte.rms_norm(X.astype(">f4")),
            errors.DTypeError,
            "x: expected float32, float16 or bfloat16, got >f4",
        ),
        (
            lambda: halfbyte.softmax([1.0]),  # type: ignore[list-item]
            errors.DTypeError,
            "x: expected an array, got list",
        ),
        (
            lambda: halfbyte.embedding_rows(W, [0, 4]),
            errors.ArgumentError,
            "ids: expected 0 to 3, got 4 at (1,)",
        ),
        (
            lambda: halfbyte.embedding_rows(W, [0.5]),
            errors.DTypeError,
            "ids: expected integers, got float64",
        ),
        (
            lambda: halfbyte.gelu_mul(X, X[:1]),
            errors.ShapeError,
            "up: expected shape (2, 32), got (1, 32)",
        ),
        (
            lambda: halfbyte.quantize(X[:, :31], "q8_0"),
            errors.ShapeError,
            "x: expected K a multiple of 32 for q8_0, got 31",
        ),
        (
            lambda: halfbyte.Weight(np.zeros(33, np.uint8), "q8_0", (1, 32)),
            errors.ShapeError,
            "data: expected 34 bytes, got 33",
        ),
        (
            lambda: halfbyte.use_target("AVX9"),
            errors.ArgumentError,
            "AVX9",
        ),
    ],
)
def test_an_argument_is_named_with_what_came_and_what_was_wanted(
    call: Callable[[], object], cls: type[errors.Error], message: str
) -> None:
    with pytest.raises(cls) as caught:
        call()
    assert type(caught.value) is cls
    if cls is errors.ArgumentError:
        assert message in str(caught.value)
    else:
        assert str(caught.value) == message


# --- Memory ----------------------------------------------------------------------------

STARVED = """
import resource, sys
import halfbyte
model = halfbyte.load(sys.argv[1], threads=1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + (1 << 20)  # a chunk of the prompt needs more than that
resource.setrlimit(resource.RLIMIT_AS, (limit, -1))
try:
    model.logits([2] * 256, last=True)
except halfbyte.OutOfMemoryError as error:
    assert isinstance(error, MemoryError)
    print(error)
"""


def test_an_allocation_that_fails(tiny_gguf: Callable[..., Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARVED, tiny_gguf()],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    # Of a vector, or of the pages for results: whichever comes first.
    failed = r"memory: (an allocation failed|found \d+ bytes asked for; expected .*)"
    remedy = r" - a smaller context, .* take less \[OUT_OF_MEMORY\]\n"
    assert re.fullmatch(failed + remedy, done.stdout)
