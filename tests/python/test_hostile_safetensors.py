# tests/python/test_hostile_safetensors.py
# Wrong safetensors files are refused, quickly, with the promised class, code and offset.
# SPDX-License-Identifier: Apache-2.0
"""Open every file of the hostile table, and every cut of a small valid one."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from pathlib import Path

import halfbyte
import pytest
import safetensors
import safetensors_cases
from refusal import refused
from safetensors_cases import Case

ROOT = Path(__file__).parents[2]
ALL = safetensors_cases.cases()
HOSTILE = [c for c in ALL if c.code]
VALID = [c for c in ALL if not c.code]

# Refusals that no file alone can cause: the option strict_paths (tested in C++).
NOT_FROM_A_FILE = {"IDX_SHARD_PATH"}


def case_id(case: Case) -> str:
    """Name a parametrised test."""
    return str(case.name)


def reference_opens(path: Path) -> bool:
    """Whether the reference reader accepts the file's header."""
    try:
        with safetensors.safe_open(path, framework="np") as f:
            f.keys()
    except (safetensors.SafetensorError, OSError, ValueError):
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", HOSTILE, ids=case_id)
def test_a_hostile_file_is_refused_with_its_code_and_offset(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = case.write(tmp_path)
    error = refused(halfbyte.open_safetensors, path)
    assert type(error).__name__ == case.error
    assert (error.code, error.offset) == (case.code, case.offset)
    assert issubclass(type(error), halfbyte.FormatError)
    assert issubclass(type(error), ValueError)
    message = str(error)
    assert f"[{case.code}]" in message
    named = path if case.code == "IDX_MISSING" else Path(error.path)
    assert message.startswith(named.name)
    assert named.parent == tmp_path or named == tmp_path
    assert message.isprintable()
    assert len(message) < 1000
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("case", VALID, ids=case_id)
def test_a_valid_file_opens(case: Case, tmp_path: Path) -> None:
    opened = halfbyte.open_safetensors(case.write(tmp_path))
    assert all(t.bytes >= 0 for t in opened.tensors)


@pytest.mark.parametrize(
    "case", [c for c in ALL if c.open == safetensors_cases.ONE], ids=case_id
)
def test_what_we_accept_the_reference_accepts(case: Case, tmp_path: Path) -> None:
    """The table says where we are stricter; nowhere are we laxer."""
    accepted = reference_opens(case.write(tmp_path))
    assert accepted == (not case.code or case.stricter)


def test_every_code_in_the_source_has_a_case() -> None:
    source = (ROOT / "csrc" / "io" / "safetensors.cc").read_text(encoding="utf-8")
    codes = set(re.findall(r'"((?:ST|IDX)_[A-Z0-9_]+)"', source))
    assert len(codes) > 20
    assert codes - NOT_FROM_A_FILE == {c.code for c in HOSTILE}


def test_the_table_is_large_and_its_names_are_unique() -> None:
    assert len({c.name for c in ALL}) == len(ALL)
    assert sum(c.open == safetensors_cases.ONE for c in HOSTILE) >= 100
    assert sum(c.code.startswith("IDX_") for c in HOSTILE) >= 30


def test_a_file_cut_anywhere_is_truncated(tmp_path: Path) -> None:
    whole = safetensors_cases.VALID
    path = tmp_path / "cut.safetensors"
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(halfbyte.TruncatedFileError, match=r"^cut\.safetensors: "):
            halfbyte.open_safetensors(path)
    path.write_bytes(whole)
    assert len(halfbyte.open_safetensors(path).tensors) == 1


def test_an_error_survives_pickle_and_copy(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_cases.VALID[:-1])
    with pytest.raises(halfbyte.TruncatedFileError) as caught:
        halfbyte.open_safetensors(path)
    error = caught.value
    assert error.tensor == "a"
    assert error.kind == "safetensors"
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert (twin.code, twin.offset) == (error.code, error.offset)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        halfbyte.open_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        halfbyte.open_safetensors(tmp_path)
