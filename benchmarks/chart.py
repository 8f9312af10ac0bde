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
from xml.sax.saxutils import escape

from peer import OURS
from peer.problem import BITS, SHAPES

WIDTH, LABELS, RIGHT = 720, 190, 60  # of the picture, left of the bars, right of them
BAR, GAP, TITLE, FOOT = 15, 14, 66, 34  # heights: a bar, between groups, above, below
STEPS = 4  # lines of the grid up to 1

# Colours in the middle between white and black pages for whoever ignores the query.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #6e7781; }
.head { font-size: 14px; font-weight: 600; fill: #57606a; }
.ours { font-weight: 600; }
rect { fill: #8c959f; }
rect.ours { fill: #1f883d; }
line { stroke: #8c959f; stroke-opacity: 0.35; }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1; }
  .head { fill: #d1d7e0; }
  rect { fill: #656c76; }
  rect.ours { fill: #3fb950; }
}
"""


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
    options = parser.parse_args()
    result = json.loads(options.result.read_text(encoding="utf-8"))
    formats = options.formats.split(",")
    result["cases"] = [case for case in result["cases"] if case["format"] in formats]
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
    if not groups:
        raise SystemExit(f"nothing to draw: no shares for {shape}, {threads} threads")
    cpu = result["environment"]["cpu"]["model"]
    k, n = SHAPES[shape]
    count = f"{threads} thread" + "s" * (threads > 1)
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
            tokens = f"{case['tokens']} token" + "s" * (case["tokens"] > 1)
            yield Group(f"{case['format']}, {tokens}", bars)


def document(told: str, groups: Sequence[Group], top: float) -> str:
    """Put title, grid and bars together."""
    height = TITLE + FOOT + sum(GAP + BAR * (1 + len(g.bars)) for g in groups)
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>Shares of the roof, {escape(told)}</title>",
        f"<style>{STYLE}</style>",
        text(10, 22, "Share of what the machine can do at best", "head"),
        text(10, 42, told),
        *grid(height, top),
    ]
    y = TITLE
    for group in groups:
        parts.append(text(10, y + BAR - 4, group.title, "head"))
        y += BAR
        for name, share in group.bars:
            parts += bar(y, name, share, top)
            y += BAR
        y += GAP
    return "\n".join([*parts, "</svg>\n"])


def at(share: float, top: float) -> float:
    """Where a share ends, from the left."""
    return LABELS + (WIDTH - LABELS - RIGHT) * share / top


def grid(height: int, top: float) -> Iterator[str]:
    """Lines from 0 to 1, with their numbers below."""
    for i in range(STEPS + 1):
        x, low = at(i / STEPS, top), height - FOOT
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TITLE}" y2="{low}"/>'
        yield text(x, low + 16, f"{i / STEPS:g}", anchor="middle")


def bar(y: float, name: str, share: float, top: float) -> Iterator[str]:
    """A name, a bar and a number."""
    kind, end = "ours" if name == OURS else "", at(share, top)
    yield text(LABELS - 8, y + BAR - 3, name, kind, anchor="end")
    yield (
        f'<rect class="{kind}" x="{LABELS}" y="{y + 2}" width="{end - LABELS:.1f}" '
        f'height="{BAR - 4}"/>'
    )
    yield text(end + 5, y + BAR - 3, f"{share:.2f}", kind)


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Words whose `anchor` lies at a place."""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


if __name__ == "__main__":
    main()
