# benchmarks/engine.py
# SPDX-License-Identifier: Apache-2.0
"""What `generate` of Transformers costs over our own stream, on the same weights.

    python benchmarks/engine.py [MODEL.gguf] [--threads 1,2] [--rounds 7] [--json FILE]

Both decode greedily from the same prompt, in turn. README.md in this folder says what
the columns mean.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from halfbyte.cli import terminal
from halfbyte.transformers import EngineModel, engine
from roof import (
    ReadLoop,
    counts,
    environment,
    headline,
    model_path,
    save,
    summary,
)

PROMPT = "The harbour lay under fog when the first boats came home. Nobody on the quay"


def streamed(model: EngineModel, prompt: str, tokens: int) -> tuple[list[int], float]:
    """Tokens of our own stream, and tokens per second from the first to the last."""
    times, ids = [], []
    for piece in model.core.stream(prompt, max_tokens=tokens, temperature=0):
        times.append(time.perf_counter())
        ids.append(piece.token)
    return ids, (len(times) - 1) / (times[-1] - times[0])


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Take a token, or the prompt, which comes first."""
        self.times.append(time.perf_counter())
        self.ids.extend(value.reshape(-1).tolist())

    def end(self) -> None:
        """Nothing is left to write."""


def generated(model: EngineModel, prompt: str, tokens: int) -> tuple[list[int], float]:
    """Do the same through `generate`."""
    ids = torch.tensor([model.core.tokenize(prompt)])
    clock = Clock()
    model.generate(ids, max_new_tokens=tokens, do_sample=False, streamer=clock)
    times = clock.times[1:]
    return clock.ids[ids.shape[1] :], (len(times) - 1) / (times[-1] - times[0])


SIDES = {"stream": streamed, "generate": generated}


def run_with(path: Path, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Check that both say the same, then measure in turn."""
    model = engine(path, threads=threads)
    answers = [side(model, PROMPT, options.tokens)[0] for side in SIDES.values()]
    if answers[0] != answers[1]:
        raise SystemExit(f"not timed: the tokens differ: {answers}")
    read = ReadLoop(threads)
    bandwidth: list[float] = []
    speeds: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(options.rounds):
        bandwidth.append(max(read() for _ in range(3)))
        # Each goes first every other time: what drifts, drifts for both.
        for name in list(SIDES)[:: 1 - 2 * (turn % 2)]:
            speeds[name].append(SIDES[name](model, PROMPT, options.tokens)[1])
    return {
        "threads": threads,
        "tokens": len(answers[0]),
        "read_gb_per_s": summary(bandwidth),
        "tokens_per_s": {name: summary(found) for name, found in speeds.items()},
        "ratio": summary(
            [g / s for s, g in zip(speeds["stream"], speeds["generate"], strict=True)]
        ),
    }


def show(result: dict[str, Any]) -> None:
    """Print a table for each number of threads."""
    for run in result["runs"]:
        where = {**result["environment"], "threads": run["threads"]}
        terminal.line(headline(where, run["read_gb_per_s"]["samples"]))
        rows = [
            [name, *(f"{value(found['samples']):.1f}" for value in (_median, min, max))]
            for name, found in run["tokens_per_s"].items()
        ]
        found = run["ratio"]["samples"]
        rows.append(["ratio", *(f"{of(found):.3f}" for of in (_median, min, max))])
        header = ["tokens/s, greedy", "median", "slowest", "fastest"]
        terminal.table(header, rows, "lrrr")
        terminal.line()


def _median(samples: list[float]) -> float:
    return statistics.median(samples)


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "model", nargs="?", type=model_path, default="", help="GGUF; else the demo"
    )
    parser.add_argument(
        "--threads",
        type=counts,
        default=[1, 2],
        help="as 1,2: one after the other",
    )
    parser.add_argument("--tokens", type=int, default=64, help="to decode")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    options = parser.parse_args()
    path = options.model
    result = {
        "benchmark": "engine",
        "environment": environment(max(options.threads)),
        "model": path.name,
        "runs": [run_with(path, threads, options) for threads in options.threads],
    }
    if options.json is not None:
        save(options.json, result)
    show(result)


if __name__ == "__main__":
    main()
