# benchmarks/chart.py
# SPDX-License-Identifier: Apache-2.0
"""Draw the shares of the roof that peers.py found, as an SVG for light and dark pages.

python benchmarks/chart.py RESULT.json CHART.svg [--shape e2b-up] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from halfbyte._svg import Picture
from peer import OURS
from peer.problem import BITS, SHAPES
from roof import counted, counts

WIDTH, LABELS, RIGHT = 720, 190, 60  # of the picture, left of the bars, right of them
BAR, GAP, TITLE, FOOT = 15, 14, 66, 34  # heights: a bar, between groups, above, below
STEPS = 4  # lines of the grid up to 1


class Group(NamedTuple):
    """The bars of one case: names and shares, ours first."""

    title: str
    bars: list[tuple[str, float]]


def main() -> None:
    """Read a result, write a picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("result", type=Path, help="what peers.py wrote")
    parser.add_argument("chart", type=Path, help="an SVG file")
    parser.add_argument("--shape", help="of the matrices; the first in the file")
    parser.add_argument("--threads", type=int, help="the first in the file")
    parser.add_argument("--formats", default=",".join(BITS), help="all")
    parser.add_argument("--tokens", type=counts, help="all")
    options = parser.parse_args()
    result = json.loads(options.result.read_text(encoding="utf-8"))
    formats, tokens = options.formats.split(","), options.tokens
    result["cases"] = [
        case
        for case in result["cases"]
        if case["format"] in formats and (tokens is None or case["tokens"] in tokens)
    ]
    svg = draw(result, options.shape, options.threads)
    options.chart.write_text(svg, encoding="utf-8")


def draw(result: dict[str, Any], shape: str | None, threads: int | None) -> str:
    """Give the picture of one shape and one number of threads.

    Parameters
    ----------
    result : dict
        As peers.py writes it.
    shape, threads : optional
        Those of the first case by default.

    Returns
    -------
    str
        An SVG document.
    """
    if not result["cases"]:
        raise SystemExit("nothing to draw: no cases")
    first = result["cases"][0]
    shape, threads = shape or first["shape"], threads or first["threads"]
    groups = list(chosen(result["cases"], shape, threads))
    count = counted(threads, "thread")
    if not groups:
        raise SystemExit(f"nothing to draw: no shares for {shape}, {count}")
    cpu = result["environment"]["cpu"]["model"]
    k, n = SHAPES[shape]
    told = f"{cpu}, {count}, matrices of {k} x {n}"
    top = max([1.0, *(share for group in groups for _, share in group.bars)])
    return document(told, groups, top)


def chosen(
    cases: Sequence[dict[str, Any]], shape: str, threads: int
) -> Iterator[Group]:
    """Cases of that shape and threads in which somebody's share is known."""
    for case in cases:
        if (case["shape"], case["threads"]) != (shape, threads):
            continue
        shares = {name: side["roof_share"] for name, side in case["sides"].items()}
        bars = [(name, share) for name, share in shares.items() if share is not None]
        bars.sort(key=lambda bar: (bar[0] != OURS, -bar[1]))
        if bars:
            tokens = counted(case["tokens"], "token")
            yield Group(f"{case['format']}, {tokens}", bars)


def document(told: str, groups: Sequence[Group], top: float) -> str:
    """Put title, grid and bars together."""
    height = TITLE + FOOT + sum(GAP + BAR * (1 + len(g.bars)) for g in groups)
    picture = Picture(f"Shares of the roof, {told}", WIDTH, height)
    picture.text(10, 22, "Share of what the machine can do at best", "head")
    picture.text(10, 42, told)
    draw_grid(picture, height, top)
    y = TITLE
    for group in groups:
        picture.text(10, y + BAR - 4, group.title, "head")
        y += BAR
        for name, share in group.bars:
            draw_bar(picture, y, name, share, top)
            y += BAR
        y += GAP
    return picture.svg()


def at(share: float, top: float) -> float:
    """Where a share ends, from the left."""
    return LABELS + (WIDTH - LABELS - RIGHT) * share / top


def draw_grid(picture: Picture, height: int, top: float) -> None:
    """Lines from 0 to 1, with their numbers below."""
    for i in range(STEPS + 1):
        x, low = at(i / STEPS, top), height - FOOT
        picture.line(x, TITLE, x, low)
        picture.text(x, low + 16, f"{i / STEPS:g}", anchor="middle")


def draw_bar(picture: Picture, y: float, name: str, share: float, top: float) -> None:
    """A name, a bar and a number; ours in colour."""
    kind, end = "first" if name == OURS else "", at(share, top)
    picture.text(LABELS - 8, y + BAR - 3, name, anchor="end")
    picture.bar(LABELS, y + 2, end - LABELS, BAR - 4, kind)
    picture.text(end + 5, y + BAR - 3, f"{share:.2f}")


if __name__ == "__main__":
    main()
