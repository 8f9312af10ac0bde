# benchmarks/instructions.py
# SPDX-License-Identifier: Apache-2.0
"""Count the instructions of the hot loops, as the compiler left them.

python benchmarks/instructions.py BUILD [--json FILE] [--against FILE]

Counts do not depend on the machine or on what else it does. objdump takes the tiles
apart; counted is the innermost loop that multiplies, over one or two units of 32
weights. Results of one compiler can be compared, those of two hardly.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Tiles<format, policy, registers of rows, tokens, Fetch>, of one target. FetchNext is
# that of long prompts.
TILE = re.compile(
    r"halfbyte::N_(?P<target>\w+)::(?P<tile>Tile|ChannelTile)<halfbyte::(?P<format>\w+), "
    r"halfbyte::N_\w+::Dot(?P<policy>\w+), (?P<rows>\d+)ul, (?P<tokens>\d+)ul, "
    r"halfbyte::N_\w+::Fetch(?P<fetch>Stream|Next)"
)
LINE = re.compile(r"\s*(?P<at>[0-9a-f]+):\s+(?P<name>\S+)\s*(?P<operands>.*)")
PRODUCTS = (
    "vpdpbusd",
    "vpmaddubsw",
    "pmaddubsw",
    "vpmaddwd",
    "pmaddwd",
    "sdot",
    "smull",
)
JUMPS = re.compile(r"j[a-z]+|b|b\.[a-z]+|cbn?z|tbn?z")
STACK = re.compile(r"\((%rsp|%rbp)|\[sp")


class Instruction(NamedTuple):
    """One line of the disassembly."""

    at: int
    name: str
    operands: str

    def target(self) -> int | None:
        """Where a jump goes; None for anything else."""
        if not JUMPS.fullmatch(self.name):
            return None
        found = re.search(r"\b([0-9a-f]+) <", self.operands)
        return int(found[1], 16) if found else None


class Loop(NamedTuple):
    """What is counted in one loop."""

    instructions: int
    products: int
    stack: int  # operands that found no register


def main() -> int:
    """Print the table; with --against, what changed in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("build", type=Path, help="a build folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with it")
    parser.add_argument("--objdump", default="objdump", help="for another processor")
    options = parser.parse_args()
    if shutil.which(options.objdump) is None:
        parser.error(f"no {options.objdump}: it is part of binutils")
    objects = sorted(options.build.rglob("halfbyte_fmt_*.dir/format_tu.cc.o"))
    if not objects:
        parser.error(f"{options.build}: no objects of formats; build it first")
    table: dict[str, dict[str, int]] = {}
    for path in objects:
        for name, loop in hot_tiles(disassembly(options.objdump, path)):
            table[name] = loop._asdict()
            counts = "  ".join(f"{value:4} {key}" for key, value in table[name].items())
            sys.stdout.write(f"{name:36} {counts}\n")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    if not options.against:
        return 0
    return compare(json.loads(options.against.read_text(encoding="utf-8")), table)


def compare(before: dict[str, dict[str, int]], now: dict[str, dict[str, int]]) -> int:
    """Print what differs; 1 if some loop has grown."""
    grown = 0
    for name in sorted(before.keys() & now.keys()):
        was, is_now = before[name], now[name]
        if was != is_now:
            grown |= is_now["instructions"] > was["instructions"]
            sys.stderr.write(f"{name}: {was} before, {is_now} now\n")
    return grown


def disassembly(objdump: str, path: Path) -> str:
    """All functions of an object file, names demangled."""
    command = [objdump, "-d", "-C", "-w", "--no-show-raw-insn", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def hot_tiles(text: str) -> list[tuple[str, Loop]]:
    """Those that decide a model's speed: of one token, and of prompts."""
    kept = (
        (f"{tile.kind} {tile.rows}x{tile.tokens}", tile.loop)
        for tile in tiles(text)
        if tile.tokens == 1 or tile.is_for_prompts
    )
    return sorted(kept)


class Tile(NamedTuple):
    """A product of some registers of rows with some tokens."""

    kind: str
    rows: int
    tokens: int
    is_for_prompts: bool
    loop: Loop


def tiles(text: str) -> Iterator[Tile]:
    """Every tile in a disassembly."""
    for function in re.split(r"\n(?=[0-9a-f]+ <)", text):
        title, _, body = function.partition("\n")
        found = TILE.search(title)
        if found is None:
            continue
        lines = map(LINE.fullmatch, body.splitlines())
        code = [
            Instruction(int(line["at"], 16), line["name"], line["operands"])
            for line in lines
            if line is not None
        ]
        loop = hot_loop(code)
        if loop is not None:
            kind = "{format} {target}+{policy}".format(**found.groupdict())
            rows, tokens = int(found["rows"]), int(found["tokens"])
            yield Tile(kind, rows, tokens, found["fetch"] == "Next", loop)


def hot_loop(code: list[Instruction]) -> Loop | None:
    """The shortest loop with products in it: what is around it runs less often."""
    best: Loop | None = None
    for end, instruction in enumerate(code):
        target = instruction.target()
        if target is None or target > instruction.at:
            continue
        loop = count([c for c in code[: end + 1] if c.at >= target])
        if loop.products and (best is None or loop.instructions < best.instructions):
            best = loop
    return best


def count(code: list[Instruction]) -> Loop:
    """Count what one run through `code` executes."""
    return Loop(
        len(code),
        sum(c.name in PRODUCTS for c in code),
        sum(bool(STACK.search(c.operands)) for c in code),
    )


if __name__ == "__main__":
    sys.exit(main())
