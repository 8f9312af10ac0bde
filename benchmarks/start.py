# benchmarks/start.py
# SPDX-License-Identifier: Apache-2.0
"""How soon a new process answers: the first token, and when it runs at full speed.

    python benchmarks/start.py MODEL.gguf [--rounds 5] [--threads 2] [--json FILE]

Each round starts a process for each way of loading. README.md in this folder says what
the columns mean.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfbyte.cli import terminal
from roof import counted, environment, model_file, save, summary

WAYS = ("never", "auto")
PROMPT, TOKENS = "The river", 16
LAST = 8  # tokens that say what full speed is
FULL = 1.1  # times the time of those

# Runs in a process of its own; the clock is the parent's.
ANSWER = """
import json, sys, time
import halfbyte
facts = {"imported": time.monotonic()}
path, way, threads, prompt, tokens = sys.argv[1:]
model = halfbyte.load(path, repack=way, threads=int(threads))
facts["loaded"] = time.monotonic()
stream = model.stream(prompt, max_tokens=int(tokens))
facts["tokens"] = [time.monotonic() for _ in stream]
facts["peak_rss_bytes"] = stream.stats.peak_rss_bytes
report = model.report()
facts["weights_bytes"] = report.repacked_bytes or report.file_bytes
print(json.dumps(facts))
"""


def main() -> None:
    """Read the arguments, run, print."""
    options = arguments().parse_args()
    read(options.model)
    size = options.model.stat().st_size
    result = {
        "benchmark": "start",
        "environment": environment(options.threads),
        "model": options.model.name,
        "prompt": PROMPT,
        "rounds": options.rounds,
        "new_memory_bytes_per_s": [],
        "ways": {way: [] for way in WAYS},
    }
    for _ in range(options.rounds):
        for way in WAYS:
            result["new_memory_bytes_per_s"].append(new_memory(size))
            result["ways"][way].append(answer(options.model, way, options.threads))
    result["ways"] = {way: told(runs) for way, runs in result["ways"].items()}
    if options.json is not None:
        save(options.json, result)
    show(result)


def arguments() -> argparse.ArgumentParser:
    """Say what can be asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("model", type=model_file, help="a GGUF file")
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=2)
    add("--json", type=Path, metavar="FILE", help="write the result")
    return parser


def read(path: Path) -> None:
    """Bring a file into the page cache."""
    buffer = bytearray(1 << 24)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def new_memory(size: int) -> float:
    """Write to new memory and give it back: bytes a second.

    A virtual machine waits for its host when it writes to a page that the host has not
    given it, or has taken back: seconds after memory was freed, that may be all of it.
    Right after this there are `size` bytes that it has.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory has small pages
    with mmap.mmap(-1, size, flags=flags) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        start = time.monotonic()
        memory[:: mmap.PAGESIZE] = b"1" * -(-size // mmap.PAGESIZE)
        return size / (time.monotonic() - start)


def answer(path: Path, way: str, threads: int) -> dict[str, Any]:
    """Let a new process answer; what it did when, in seconds after its start."""
    words = [path, way, threads, PROMPT, TOKENS]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, *map(str, words)],
        check=True,
        stdout=subprocess.PIPE,
    )
    facts = json.loads(done.stdout)
    tokens = [at - start for at in facts["tokens"]]
    return {
        "imported": facts["imported"] - start,
        "loaded": facts["loaded"] - start,
        "first_token": tokens[0],
        "full_speed": full_speed(tokens),
        "tokens": tokens,
        "peak_rss_bytes": facts["peak_rss_bytes"],
        "over_weights_bytes": facts["peak_rss_bytes"] - facts["weights_bytes"],
    }


def full_speed(tokens: Sequence[float]) -> float:
    """When the first token came from which on none took longer than the last ones do.

    Of each three in a row the median counts: any single one may have been disturbed.
    """
    took = [b - a for a, b in itertools.pairwise(tokens)]
    limit = FULL * statistics.median(took[-LAST:])
    for i in range(len(took) - 2):
        if statistics.median(took[i : i + 3]) <= limit:
            return tokens[i]
    return tokens[-1]


def told(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summaries of what each round measured."""
    names = [name for name in runs[0] if name != "tokens"]
    found = {name: summary([run[name] for run in runs]) for name in names}
    return found | {"tokens": [run["tokens"] for run in runs]}


def show(result: dict[str, Any]) -> None:
    """Print the machine and a line for each way of loading."""
    where = result["environment"]
    threads = counted(where["threads"], "thread")
    terminal.line(f"{where['cpu']['model']}, {threads}, {where['commit']}")
    rates = [rate / 1e9 for rate in result["new_memory_bytes_per_s"]]
    terminal.line(f"new memory: {min(rates):.1f} to {max(rates):.1f} GB/s")
    names = ("imported", "loaded", "first_token", "full_speed")
    rows = []
    for way, found in result["ways"].items():
        seconds = [f"{found[name]['median']:.2f}" for name in names]
        sizes = ("peak_rss_bytes", "over_weights_bytes")
        rows.append(
            [way, *seconds, *(f"{found[s]['median'] / 1e6:.0f}" for s in sizes)]
        )
    header = ["repack", *(f"{name.replace('_', ' ')}, s" for name in names)]
    terminal.table([*header, "peak, MB", "over the weights"], rows, "lrrrrrr")


if __name__ == "__main__":
    main()
