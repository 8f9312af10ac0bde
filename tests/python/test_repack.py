# tests/python/test_repack.py
# SPDX-License-Identifier: Apache-2.0
"""Weights in kernel order: the same bits, whoever reorders them and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import halfbyte
import numpy as np
import pytest
import tiny
from halfbyte import reference
from halfbyte.errors import ArgumentError
from halfbyte.formats import format_info
from samples import assert_same_bits, normal, sane_rows, sizes

PACKED = [f for f in reference.formats() if format_info(f).block_len > 1]
IDS = tiny.prompt(40)


def product(fmt: str, m: int, *, repack: bool) -> np.ndarray:
    k = 2 * max(sizes(fmt)[0], 96)  # an odd number of blocks of 32 for some
    w = halfbyte.Weight(sane_rows(fmt, 37, k), fmt, (37, k))
    return halfbyte.linear(normal(m, k), w.repack() if repack else w)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("fmt", PACKED)
@pytest.mark.parametrize("m", [1, 3, 8, 9])
def test_a_repacked_weight_gives_the_same_bits(fmt: str, m: int) -> None:
    assert_same_bits(product(fmt, m, repack=True), product(fmt, m, repack=False))


# A lane is a row everywhere, so no target sums in an order of its own; SSE2, SSSE3 and
# SSE4 round a product before they add it.
FUSED = [t for t in halfbyte.cpu_targets() if not t.startswith("SS")]


@pytest.mark.parametrize("fmt", PACKED)
@pytest.mark.parametrize("name", FUSED[1:])
def test_targets_that_fuse_agree_in_every_bit(fmt: str, name: str) -> None:
    with halfbyte.use_target(FUSED[0]):
        want = product(fmt, 9, repack=True)
    with halfbyte.use_target(name):
        assert_same_bits(product(fmt, 9, repack=True), want)


@pytest.mark.parametrize("name", ["e2b", "26b"])
def test_a_model_answers_the_same(tiny_gguf: Callable[..., Path], name: str) -> None:
    path = tiny_gguf(name, types=tiny.official_type)
    never = halfbyte.load(path, repack="never")
    assert never.report().repacked_bytes == 0
    seen: list[tuple[int, int]] = []
    for repack in ("auto", "always"):
        model = halfbyte.load(
            path, repack=repack, progress=lambda *step: seen.append(step)
        )
        assert model.report().repacked_bytes > 0
        assert_same_bits(model.logits(IDS), never.logits(IDS))
        total = model.report().repacked_bytes
        assert seen[-1] == (total, total)
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        seen.clear()


def test_an_unknown_way_is_refused(tiny_gguf: Callable[..., Path]) -> None:
    with pytest.raises(
        ArgumentError, match=r"repack.*sometimes.*auto, always or never"
    ):
        halfbyte.load(tiny_gguf("e2b"), repack="sometimes")


def test_progress_may_stop_the_load(tiny_gguf: Callable[..., Path]) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    path = tiny_gguf("e2b", types=tiny.official_type)
    with pytest.raises(KeyboardInterrupt):
        halfbyte.load(path, progress=stop)
    assert np.isfinite(halfbyte.load(path).logits(IDS)).all()
