# benchmarks/attention.py
# SPDX-License-Identifier: Apache-2.0
"""Attention to a long context, from memory: keys in float32 and 8 bits, and torch's.

    python benchmarks/attention.py [--positions 4096,32768] [--threads 1,2] [--rounds 9]

README.md in this folder says what the columns mean.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import halfbyte
import numpy as np
import torch
from halfbyte.cli import terminal
from numpy.typing import NDArray
from roof import ReadLoop, counts, environment, headline, ratio, save, summary
from torch.nn.functional import scaled_dot_product_attention

F32 = NDArray[np.float32]
SCALE = 1.0
READ_AT_LEAST = 256 << 20  # bytes of float32 keys and values, in rotation


class Heads(NamedTuple):
    """What one layer attends with."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None


LAYERS = [
    Heads("e2b full", 8, 1, 512),
    Heads("e2b sliding", 8, 1, 256, 512),
    Heads("31b full", 32, 4, 512),
    Heads("31b sliding", 32, 16, 256, 1024),
]

Attend = Callable[[], Any]


class Side(NamedTuple):
    """One way to attend to each copy of the keys and values."""

    calls: list[Attend]
    bytes: int  # of one copy's keys and values


def sides(layer: Heads, positions: int) -> dict[str, Side]:
    """Make copies of keys and values in every form, and one query."""
    rng = np.random.default_rng(0)
    shape = (1, layer.kv_heads, positions, layer.head_dim)
    copies = max(2, READ_AT_LEAST // (8 * int(np.prod(shape))))
    # Keys of Gemma 4 are normed, and scores not scaled: these have a spread of 2.
    q = rng.standard_normal((1, layer.heads, 1, layer.head_dim), np.float32)
    q *= np.float32(2 / layer.head_dim**0.5)
    pairs = [
        tuple(rng.standard_normal(shape, np.float32) for _ in range(2))
        for _ in range(copies)
    ]
    made: dict[str, Side] = {}

    def add(name: str, call: Callable[[Any, Any], Any], kept: list[Any]) -> None:
        size = sum(x.nbytes for x in kept[0])
        made[name] = Side([lambda k=k, v=v: call(k, v) for k, v in kept], size)

    def ours(k: Any, v: Any) -> F32:
        return halfbyte.attention(q, k, v, scale=SCALE, causal=True)

    def theirs(k: torch.Tensor, v: torch.Tensor) -> F32:
        query = torch.from_numpy(q).to(k.dtype)
        y = scaled_dot_product_attention(query, k, v, scale=SCALE, enable_gqa=True)
        return y.float().numpy()

    add("f32", ours, pairs)
    add("int8", ours, [tuple(map(halfbyte.quantize_kv, pair)) for pair in pairs])
    tensors = [tuple(map(torch.from_numpy, pair)) for pair in pairs]
    add("torch f32", theirs, tensors)
    add("torch bf16", theirs, [tuple(x.bfloat16() for x in pair) for pair in tensors])
    return made


def check(made: dict[str, Side]) -> None:
    """Compare answers: a wrong one is not timed.

    Values are normal, so answers are as large as their weights are few; 8 bits and
    bfloat16 are off by some 1 % of that.
    """
    want = made["torch f32"].calls[0]()
    size = float(np.sqrt(np.mean(want**2)))
    for name, limit in (("f32", 1e-4), ("int8", 0.05), ("torch bf16", 0.05)):
        off = float(np.sqrt(np.mean((made[name].calls[0]() - want) ** 2)))
        if not off < limit * size:
            raise SystemExit(f"not timed: {name} is off by {off / size:.2g}")


def measure(layer: Heads, positions: int, threads: int, rounds: int) -> dict[str, Any]:
    """Time all sides in turn, and print them."""
    made = sides(layer, positions)
    check(made)
    read, bandwidth = ReadLoop(threads, 1 << 28), []
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        bandwidth.append(read())
        for name, side in made.items():
            time.sleep(0.05)  # until the other side's threads have stopped spinning
            side.calls[-1]()  # the threads awake, the code in the cache
            start = time.perf_counter()
            for call in side.calls:
                call()
            seconds[name].append((time.perf_counter() - start) / len(side.calls))
    best = statistics.median(bandwidth)
    told: dict[str, Any] = {"bandwidth": summary(bandwidth)}
    rows = []
    for name, side in made.items():
        median = statistics.median(seconds[name])
        share = side.bytes / median / 1e9 / best
        over = ratio(seconds[name], seconds["int8"])
        told[name] = summary(seconds[name]) | {"bytes": side.bytes, "over_int8": over}
        rows.append((name, f"{median * 1e6:.0f}", f"{share:.2f}", f"{over:.2f}"))
    terminal.line(f"{layer.name}, {positions} positions")
    terminal.table(("", "us", "of bandwidth", "over int8"), rows, "lrrr")
    terminal.line()
    return told


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--positions", type=counts, default=[4096, 32768], help="of full layers")
    add("--threads", type=counts, default=[1, 2], help="numbers of threads")
    add("--rounds", type=int, default=9)
    add("--json", type=Path, help="write all samples to this file")
    options = parser.parse_args()
    results = []
    for threads in options.threads:
        where = environment(threads)
        torch.set_num_threads(threads)
        halfbyte.set_num_threads(threads)
        terminal.line(headline(where, [ReadLoop(threads, 1 << 28)() for _ in range(3)]))
        for layer in LAYERS:
            lengths = [layer.window] if layer.window else options.positions
            for positions in lengths:
                told = measure(layer, positions, threads, options.rounds)
                results.append(
                    {"layer": layer._asdict(), "positions": positions, **told}
                    | {"environment": where}
                )
    if options.json:
        save(options.json, {"script": "attention.py", "results": results})


if __name__ == "__main__":
    main()
