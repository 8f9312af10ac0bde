# tests/python/test_instructions.py
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/instructions.py: counts of a disassembly whose loops are known."""

from __future__ import annotations

import instructions
import pytest

TITLE = (
    "{at} <void halfbyte::N_AVX3_DL::Tile<halfbyte::Q4_0, "
    "halfbyte::N_AVX3_DL::DotQuads, {rows}ul, {tokens}ul, halfbyte::N_AVX3_DL::Fetch{fetch}>(int)>:"
)
# An outer loop from 8 to 28, an inner one from c to 24 with a product and a reload.
BODY = """\
   0:\tpush   %rbp
   4:\tvpxord %zmm0,%zmm0,%zmm0
   8:\tmov    %rsi,%rcx
   c:\tvpandd (%rdi),%zmm1,%zmm2
  12:\tvpdpbusd (%rax),%zmm2,%zmm0
  18:\tvmovdqa64 0x88(%rsp),%zmm3
  20:\tadd    $0x40,%rdi
  24:\tjne    c <tile+0xc>
  28:\tjne    8 <tile+0x8>
  2c:\tret"""


def function(rows: int, tokens: int, fetch: str = "Stream") -> str:
    title = TITLE.format(at="0" * 16, rows=rows, tokens=tokens, fetch=fetch)
    return f"{title}\n{BODY}"


def test_the_innermost_loop_with_products_is_counted() -> None:
    loop = instructions.Loop(instructions=5, products=1, stack=1)
    expected = instructions.Tile("Q4_0 AVX3_DL+Quads", 2, 6, False, loop)
    assert list(instructions.tiles(function(2, 6))) == [expected]


def test_tiles_of_one_token_and_of_prompts_are_kept() -> None:
    some = (function(1, 1), function(1, 4), function(2, 1), function(2, 6, "Next"))
    text = "\n".join(some)
    names = [name for name, _ in instructions.hot_tiles(text)]
    assert names == [f"Q4_0 AVX3_DL+Quads {size}" for size in ("1x1", "2x1", "2x6")]


def test_a_function_that_multiplies_nothing_is_left_out() -> None:
    assert not list(instructions.tiles(function(1, 1).replace("vpdpbusd", "vpaddd")))


def test_a_loop_that_grew_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    before = {"a": {"instructions": 5}, "b": {"instructions": 7}}
    now = {"a": {"instructions": 6}, "b": {"instructions": 6}}
    assert instructions.compare(before, now) == 1
    told = capsys.readouterr().err
    assert "a: {'instructions': 5} before, {'instructions': 6} now" in told
    assert instructions.compare(before, before) == 0
