# tests/hostile/refusal.py
# SPDX-License-Identifier: Apache-2.0
"""What a refused file may cost: a tenth of a second, 64 MiB, and nothing left open."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from pathlib import Path

import halfbyte
import pytest

MAX_SECONDS = 0.1
MAX_GROWTH = 64 << 20


def _open_files() -> set[tuple[str, str]]:
    """Return each descriptor of this process, and what it leads to."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one of this very listing
            found.add((entry.name, str(entry.readlink())))
    return found


def _status_bytes(field: str) -> int:
    """Return a memory figure of this process, such as VmRSS."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(field)


def _attempt(open_file: Callable[[Path], object], path: Path) -> tuple[float, int, str]:
    """Return seconds, growth of the peak memory in bytes, and the message."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status_bytes("VmHWM")
    begin = time.perf_counter()
    with pytest.raises(halfbyte.Error) as caught:
        open_file(path)
    seconds = time.perf_counter() - begin
    return seconds, _status_bytes("VmHWM") - before, str(caught.value)


def refused(open_file: Callable[[Path], object], path: Path) -> halfbyte.Error:
    """Return the error that opening a file gives, after checking what it cost."""
    # What earlier tests left to the collector may close now, and free its numbers.
    gc.collect()
    before = _open_files()
    with pytest.raises(halfbyte.Error) as caught:
        open_file(path)
    # The fastest of three: another process may hold up one.
    runs = [_attempt(open_file, path) for _ in range(3)]
    assert {message for _, _, message in runs} == {str(caught.value)}
    assert min(seconds for seconds, _, _ in runs) <= MAX_SECONDS
    assert max(growth for _, growth, _ in runs) <= MAX_GROWTH
    del runs
    assert _open_files() <= before
    return caught.value
