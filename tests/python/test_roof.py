# tests/python/test_roof.py
# The roofs: what they measure is for benchmarks to say, what they refuse is certain.
# SPDX-License-Identifier: Apache-2.0
"""The roofs: what they measure is for benchmarks to say, what they refuse is certain."""

from __future__ import annotations

import gc
import math

import halfbyte
import numpy as np
import pytest
from halfbyte import _core, roof


def test_every_target_has_a_roof(target: str) -> None:
    data = roof.buffer(1 << 20)
    for speed in (
        roof.read_bandwidth(data, threads=2),
        roof.dot_peak(threads=1),
        roof.fma_peak(threads=2),
    ):
        # From far below to far above what any CPU does; not zero and not nonsense.
        assert 1e-3 < speed < 1e6, target


def test_the_number_of_threads_is_the_usual_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def peak(threads: int) -> float:
        seen.append(threads)
        return 1.0

    monkeypatch.setattr(_core, "dot_peak", peak)
    roof.dot_peak()
    with halfbyte.threads(3):
        roof.dot_peak()
        roof.dot_peak(threads=2)
    assert seen == [halfbyte.num_threads(), 3, 2]


def test_a_buffer_is_an_array_of_its_own() -> None:
    first, second = roof.buffer(5000), roof.buffer(5000)
    assert first.shape == (5000,)
    assert first.dtype == np.uint8
    assert first.flags.writeable
    first[:] = 7
    assert (second != 7).all()
    kept = first[100:200]
    del first, second
    gc.collect()
    assert (kept == 7).all()  # a view keeps the memory
    assert roof.buffer(0).size == 0


def test_any_bytes_can_be_read() -> None:
    data = np.arange(10_000, dtype=np.uint8)
    matrix = data.reshape(100, 100)
    for view in (data, data[1:], matrix, data[:1]):
        assert math.isfinite(roof.read_bandwidth(view, threads=3))


def test_what_cannot_be_read_is_refused() -> None:
    data = np.zeros(64, np.uint8)
    with pytest.raises(halfbyte.DTypeError, match="data: expected dtype uint8"):
        roof.read_bandwidth(np.zeros(64, np.float32), threads=1)
    with pytest.raises(halfbyte.ShapeError, match="data: expected at least one byte"):
        roof.read_bandwidth(data[:0], threads=1)
    with pytest.raises(halfbyte.ShapeError, match="data: expected a contiguous vector"):
        _core.read_bandwidth(data[::2], 1, 1)
    with pytest.raises(
        halfbyte.ArgumentError, match="streams: expected 1, 2 or 4, got 3"
    ):
        _core.read_bandwidth(data, 3, 1)
    for threads in (0, 1025, True):
        with pytest.raises(halfbyte.ArgumentError, match="threads: expected"):
            roof.dot_peak(threads=threads)


def test_more_memory_than_there_is_is_refused() -> None:
    with pytest.raises(halfbyte.OutOfMemoryError, match="bytes asked for") as caught:
        roof.buffer(1 << 60)
    assert caught.value.requested_bytes == 1 << 60
