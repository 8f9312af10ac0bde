# tests/python/test_cpp.py
# SPDX-License-Identifier: Apache-2.0
"""The C++ tests and the fuzz corpora, built for every instruction set there is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str) -> str:
    """Run a command; its output is the message if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-20000:]
    return output


@pytest.mark.timeout(3000)  # two cores compile for some ten minutes
def test_every_room_and_corpus() -> None:
    run("cmake", "--preset", "tests")
    run("cmake", "--build", "--preset", "tests")
    output = run("ctest", "--preset", "tests")
    rooms = {path.name for path in (ROOT / "tests/cpp").iterdir() if path.is_dir()}
    corpora = {f"fuzz_{p.name}_replay" for p in (ROOT / "tests/fuzz/corpus").iterdir()}
    missing = {name for name in rooms | corpora if f": {name} " not in output}
    assert not missing, output
