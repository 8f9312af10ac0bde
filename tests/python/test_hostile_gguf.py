# tests/python/test_hostile_gguf.py
# Opens every file of tests/hostile/gguf_cases.py through the public API.
# SPDX-License-Identifier: Apache-2.0
"""Hostile GGUF files are refused by class, code and offset; odd ones open."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from pathlib import Path

import halfbyte
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "hostile"))

from gguf_cases import Case, hostile_cases, valid_cases

MAX_SECONDS = 0.1
MAX_GROWTH = 64 << 20

# What no file causes when it is opened with the defaults: an option of the reader,
# questions about single keys, and a defect of the parser. tests/cpp/io/gguf_test.cc
# covers them.
NOT_FROM_OPENING = {
    "GGUF_TRAILING",
    "GGUF_KEY_TYPE",
    "GGUF_MISSING_KEY",
    "GGUF_INTERNAL",
}


def descriptors() -> list[str]:
    """Return what this process has open."""
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def status_bytes(field: str) -> int:
    """Return a memory figure of this process, such as VmRSS."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(field)


def open_timed(path: Path) -> tuple[float, int, halfbyte.errors.Error]:
    """Return seconds, growth of the peak memory in bytes, and the error."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status_bytes("VmHWM")
    begin = time.perf_counter()
    with pytest.raises(halfbyte.errors.Error) as caught:
        halfbyte.open_gguf(path)
    seconds = time.perf_counter() - begin
    return seconds, status_bytes("VmHWM") - before, caught.value


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", hostile_cases(), ids=lambda case: case.name)
def test_hostile_file_is_refused(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = case.write(tmp_path)
    before = descriptors()
    # The fastest of three: another process may hold up one.
    runs = [open_timed(path) for _ in range(3)]
    error = runs[0][2]
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
    assert {str(e) for _, _, e in runs} == {message}
    assert min(seconds for seconds, _, _ in runs) <= MAX_SECONDS
    assert max(growth for _, growth, _ in runs) <= MAX_GROWTH
    assert descriptors() == before
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
