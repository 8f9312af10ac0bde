# tests/python/test_hostile_gguf.py
# Opens every file of tests/hostile/gguf_cases.py through the public API.
# SPDX-License-Identifier: Apache-2.0
"""Hostile GGUF files are refused by class, code and offset; odd ones open."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import halfbyte
import pytest
from gguf_cases import Case, hostile_cases, valid_cases
from refusal import refused

ROOT = Path(__file__).parents[2]

# What no file causes when it is opened with the defaults: an option of the reader,
# questions about single keys, and a defect of the parser. tests/cpp/io/gguf_test.cc
# covers them.
NOT_FROM_OPENING = {
    "GGUF_TRAILING",
    "GGUF_KEY_TYPE",
    "GGUF_MISSING_KEY",
    "GGUF_INTERNAL",
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", hostile_cases(), ids=lambda case: case.name)
def test_hostile_file_is_refused(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    error = refused(halfbyte.open_gguf, case.write(tmp_path))
    assert type(error).__name__ == case.error
    assert error.code == case.code
    assert error.offset == case.offset
    assert error.kind == "gguf"
    assert Path(error.path).parent == tmp_path
    assert Path(error.path).name in case.files
    message = str(error)
    assert message.startswith(Path(error.path).name + ": gguf: ")
    assert message.endswith(f"[{case.code}]")
    assert message.isprintable()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("case", valid_cases(), ids=lambda case: case.name)
def test_odd_file_opens(case: Case, tmp_path: Path) -> None:
    file = halfbyte.open_gguf(case.write(tmp_path))
    names = [t.name for t in file.tensors]
    assert len(set(names)) == len(names)
    sizes = [part.size for part in case.files.values()]
    for t in file.tensors:
        assert t.offset + t.bytes <= max(sizes)


def test_truncation_at_every_byte_is_refused(tmp_path: Path) -> None:
    case = next(c for c in valid_cases() if c.name == "every-value")
    whole = next(iter(case.files.values())).read()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole)
    halfbyte.open_gguf(path)
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(halfbyte.errors.FormatError) as caught:
            halfbyte.open_gguf(path)
        assert caught.value.code.startswith("GGUF_")
        assert 0 <= caught.value.offset <= n


def test_every_code_of_the_reader_has_a_case() -> None:
    sources = (ROOT / "csrc" / "io").glob("gguf*.cc")
    text = "".join(source.read_text() for source in sources)
    in_source = set(re.findall(r'"(GGUF_[A-Z_]+)"', text))
    assert in_source >= NOT_FROM_OPENING
    assert in_source - NOT_FROM_OPENING == {case.code for case in hostile_cases()}


def test_cases_are_distinct() -> None:
    names = [case.name for case in [*hostile_cases(), *valid_cases()]]
    assert len(set(names)) == len(names)
    assert len(hostile_cases()) >= 120
