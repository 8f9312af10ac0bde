# benchmarks/kernels.py
# SPDX-License-Identifier: Apache-2.0
"""Speed of `halfbyte.linear` for every format, by the number of tokens.

    python benchmarks/kernels.py [--formats q4_0,q6_k] [--json FILE]

README.md in this folder says what the columns mean.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import halfbyte
import numpy as np
from halfbyte import reference
from halfbyte.cli import terminal
from halfbyte.formats import format_info
from numpy.typing import NDArray
from roof import ReadLoop, environment, headline, save, summary

# N x K of matrices in released models.
SHAPES = {
    "e2b-up": (12288, 1536),
    "e2b-down": (1536, 12288),
    "270m-up": (2048, 640),
    "270m-down": (640, 2048),
}
TOKENS = (1, 4, 32)
MIN_CALLS = 20

F32Array = NDArray[np.float32]


class Point(NamedTuple):
    """One format, one shape, one number of tokens."""

    format: str
    shape: str
    tokens: int
    seconds: dict[str, Any]
    gb_per_s: float
    gmac_per_s: float
    share: float  # of the read bandwidth


def packed(fmt: str, n: int, k: int) -> NDArray[np.uint8]:
    """Rows of ordinary weights, or of random blocks if the format is only read."""
    info, rng = format_info(fmt), np.random.default_rng(1)
    if info.writable:
        return halfbyte.quantize(rng.standard_normal((n, k), np.float32), fmt).data
    raw = rng.integers(0, 256, n * k // info.block_len * info.block_bytes, np.uint8)
    return raw & np.uint8(0xBB)  # whichever bytes are a scale, it is finite and below 1


def check(w: halfbyte.Weight, x: F32Array) -> None:
    """Compare with the reference.

    A sum of K terms is rounded K times by at most u = 2**-24, up and down alike: about
    u sqrt(K) in all. Eight times that leaves room for minima, which cancel, and none
    for a mistake in a single one of the outputs.
    """
    want = reference.linear(x, w).astype(np.float64)
    off = np.linalg.norm(halfbyte.linear(x, w) - want) / np.linalg.norm(want)
    if not off <= 8 * 2.0**-24 * x.shape[1] ** 0.5:
        raise SystemExit(f"not timed: {w.format} is off by {off:.1e}")


def calls(weights: list[halfbyte.Weight], x: F32Array, count: int) -> list[float]:
    """Seconds of each of `count` calls; neighbours read different memory."""
    out = np.empty((len(x), weights[0].shape[0]), np.float32)
    seconds = []
    for i in range(count):
        w = weights[i % len(weights)]
        start = time.perf_counter()
        halfbyte.linear(x, w, out=out)
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(
    fmt: str, shape: str, arena: NDArray[np.uint8], bandwidth: float
) -> list[Point]:
    """All numbers of tokens for one matrix, copied until the arena is full."""
    n, k = SHAPES[shape]
    data = packed(fmt, n, k)
    x = np.random.default_rng(2).standard_normal((max(TOKENS), k), np.float32)
    few = halfbyte.Weight(data[: 64 * (data.size // n)], fmt, (64, k))
    check(few, x[:5])  # four tokens at a time, and one
    copies = arena.size // data.size
    pieces = arena[: copies * data.size].reshape(copies, -1)
    pieces[:] = data
    weights = [halfbyte.Weight(piece, fmt, (n, k)) for piece in pieces]
    points = []
    for tokens in TOKENS:
        count = max(MIN_CALLS, copies if tokens == 1 else 0)
        seconds = calls(weights, x[:tokens], count)
        middle = statistics.median(seconds)
        speed = data.size / middle / 1e9
        macs = tokens * n * k / middle / 1e9
        told = {"median": middle, "best": min(seconds), "calls": count}
        points.append(Point(fmt, shape, tokens, told, speed, macs, speed / bandwidth))
    return points


def show(points: list[Point]) -> None:
    """Print the table."""
    header = ["format", "matrix", "tokens", "ms", "GB/s", "of roof", "GMAC/s"]
    rows = []
    for point in points:
        n, k = SHAPES[point.shape]
        matrix = f"{point.shape} {n}x{k}"
        ms = f"{1e3 * point.seconds['median']:.3f}"
        share = f"{point.share:.2f}" if point.tokens == 1 else ""
        speeds = [f"{point.gb_per_s:.1f}", share, f"{point.gmac_per_s:.1f}"]
        rows.append([point.format, matrix, str(point.tokens), ms, *speeds])
    terminal.table(header, rows, "llrrrrr")


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--formats", default=",".join(halfbyte.formats()))
    parser.add_argument("--shapes", default="e2b-up", help=", ".join(SHAPES))
    parser.add_argument("--threads", type=int, default=halfbyte.num_threads())
    parser.add_argument(
        "--mib", type=int, default=1024, help="memory to rotate through"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    options = parser.parse_args()
    halfbyte.set_num_threads(options.threads)
    where = environment(options.threads)
    read = ReadLoop(options.threads, options.mib << 20)
    arena = np.zeros(options.mib << 20, np.uint8)
    bandwidth: list[float] = []
    points: list[Point] = []
    for shape in options.shapes.split(","):
        for fmt in options.formats.split(","):
            if SHAPES[shape][1] % format_info(fmt).block_len != 0:
                continue
            bandwidth.append(max(read() for _ in range(3)))
            points += measure(fmt, shape, arena, bandwidth[-1])
    terminal.line(headline(where, bandwidth))
    show(points)
    if options.json is not None:
        content = {
            "benchmark": "kernels",
            "environment": where,
            "read_gb_per_s": summary(bandwidth),
            "points": [point._asdict() for point in points],
        }
        save(options.json, content)


if __name__ == "__main__":
    main()
