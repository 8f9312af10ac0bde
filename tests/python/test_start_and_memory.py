# tests/python/test_start_and_memory.py
# SPDX-License-Identifier: Apache-2.0
"""The scripts that measure how soon a process answers, what a model keeps, converting."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import memory
import numpy as np
import pytest
import start
import tiny
import torch

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def run(script: str, *words: Any) -> tuple[dict[str, Any], str]:
    """What a script writes to its JSON file, and what it prints."""
    *words, file = words
    line = [sys.executable, "-W", "error", ROOT / "benchmarks" / script, *words]
    done = subprocess.run(
        [*map(str, line), "--json", str(file)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


def test_what_is_resident_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * MIB))
    before = memory.resident("")
    # Pages of its own: an array might get memory that was resident already.
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    ballast = mmap.mmap(-1, 16 * MIB, flags=anonymous)
    ballast.write(b"1" * len(ballast))
    with path.open("rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            assert memory.resident(str(path)) == 0
            assert sum(data[:: mmap.PAGESIZE]) == 0  # touches every page
            assert memory.resident(str(path)) == 4 * MIB
        assert memory.resident(str(path)) == 0
    # What else the interpreter did meanwhile is small beside it.
    assert len(ballast) <= memory.resident("") - before <= 2 * len(ballast)


def test_memory_adds_up(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    path = tiny_gguf("e2b")
    words = ["--context", 128, "--tokens", 8]
    told, printed = run("memory.py", path, *words, tmp_path / "memory.json")
    parts = told["parts"]
    assert sum(parts.values()) == told["model_bytes"]
    assert parts["weights"] + parts["pages of the file"] > 0
    assert parts["keys and values"] > 0
    assert told["peak_rss_bytes"] >= told["process_before"]
    assert "128 positions" in printed


def test_full_speed_begins_where_tokens_stay_as_fast_as_the_last() -> None:
    def tokens(took: list[float]) -> list[float]:
        return np.cumsum([1.0, *took]).tolist()

    took = [0.5, 0.4, 0.3] + [0.1] * 20
    # Of 0.4, 0.3, 0.1 the median is too slow; of 0.3, 0.1, 0.1 it is not.
    assert start.full_speed(tokens(took)) == pytest.approx(1.0 + 0.5 + 0.4)
    took[10] = 5.0  # one that was disturbed says nothing
    assert start.full_speed(tokens(took)) == pytest.approx(1.9)
    assert start.full_speed([3.0 + 0.1 * i for i in range(24)]) == 3.0


def test_start_measures_both_ways(
    tiny_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    words = ["--rounds", 1, "--threads", 1]
    told, printed = run("start.py", tiny_gguf("e2b"), *words, tmp_path / "start.json")
    assert set(told["ways"]) == {"never", "auto"}
    for found in told["ways"].values():
        order = ["imported", "loaded", "first_token", "full_speed"]
        seconds = [found[name]["median"] for name in order]
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
        assert found["peak_rss_bytes"]["median"] > 8 * MIB
    assert "first token, s" in printed


def test_converting_is_measured_beside_copying(tmp_path: Path) -> None:
    model = tiny.build("gemma3", wide=True)
    folder = tiny.save_hf(model, tmp_path / "model", dtype=torch.bfloat16)
    words = ["--rounds", 1, "--threads", 1, "--folder", tmp_path]
    told, printed = run("convert.py", folder, *words, tmp_path / "convert.json")
    copy, convert = (told["runs"][name] for name in ("copy", "convert"))
    assert told["source_bytes"] == (folder / "model.safetensors").stat().st_size
    assert 0.2 < told["target_bytes"] / told["source_bytes"] < 0.5
    ratio = convert["seconds"]["median"] / copy["seconds"]["median"]
    assert told["times_of_copying"] == pytest.approx(ratio, rel=1e-3)  # of five digits
    # Python alone takes less than NumPy and the library with it.
    assert MIB < copy["peak_rss_bytes"]["median"] < convert["peak_rss_bytes"]["median"]
    assert "times copying" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"model", "convert.json"}
