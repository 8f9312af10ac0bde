# benchmarks/convert.py
# SPDX-License-Identifier: Apache-2.0
"""How long converting a model takes, in times of copying it, and how much memory.

    python benchmarks/synthetic.py e2b-bf16 e2b-bf16
    python benchmarks/convert.py e2b-bf16 [--format q4_0] [--rounds 3] [--json FILE]

Each round copies the weights and converts the model, each in a process of its own, with
the source dropped from the page cache before it and the result synced to the disk at
its end. README.md in this folder says what the lines mean. Linux only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import halfbyte
from halfbyte import conversion
from halfbyte.cli import terminal
from roof import counted, environment, model_path, save, summary

# What the system counts of a child begins with its parent's peak: each tells its own.
_PEAK = """
from pathlib import Path
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM:"):
        print(int(line.split()[1]) * 1024)
"""
_COPY = """
import os, shutil, sys
source, target = sys.argv[1:]
shutil.copyfile(source, target)
with open(target, "rb") as file:
    os.fsync(file.fileno())
"""
_CONVERT = """
import sys
import halfbyte
source, target, format, threads = sys.argv[1:]
halfbyte.convert(source, target, format=format, threads=int(threads))
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, run, print."""
    options = arguments().parse_args(argv)
    weights = [Path(path) for path in halfbyte.open_safetensors(options.model).paths]
    runs: dict[str, list[dict[str, float]]] = {"copy": [], "convert": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        target = Path(folder) / "out"
        for _ in range(options.rounds):
            runs["copy"].append(copy(weights, target))
            words = (options.model, target, options.format, options.threads)
            runs["convert"].append(measured(_CONVERT, weights, *words))
            target.unlink()
    plan = conversion.convert(
        options.model, "out.gguf", format=options.format, dry_run=True
    )
    result = {
        "benchmark": "convert",
        "environment": environment(options.threads),
        "model": options.model.name,
        "format": options.format,
        "source_bytes": sum(path.stat().st_size for path in weights),
        "target_bytes": plan.bytes,
        "runs": {name: told(found) for name, found in runs.items()},
        "times_of_copying": statistics.median(
            convert["seconds"] / copy["seconds"]
            for copy, convert in zip(runs["copy"], runs["convert"], strict=True)
        ),
    }
    if options.json is not None:
        save(options.json, result)
    show(result)


def arguments() -> argparse.ArgumentParser:
    """Say what can be asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("model", type=model_path, help="a directory in BF16")
    add("--format", default="q4_0", help="what its matrices become")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=halfbyte.num_threads())
    add("--folder", type=Path, default=Path(), help="where to write, for a while")
    add("--json", type=Path, metavar="FILE", help="write the result")
    return parser


def copy(weights: Sequence[Path], target: Path) -> dict[str, float]:
    """Copy files one after the other to the same name."""
    parts = [measured(_COPY, [path], path, target) for path in weights]
    return {
        "seconds": sum(part["seconds"] for part in parts),
        "peak_rss_bytes": max(part["peak_rss_bytes"] for part in parts),
    }


def measured(script: str, cold: Sequence[Path], *words: object) -> dict[str, float]:
    """Run Python code in a new process; seconds from its start to its end, and memory."""
    for path in cold:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script + _PEAK, *map(str, words)],
        check=True,
        stdout=subprocess.PIPE,
    )
    seconds = time.monotonic() - start
    return {"seconds": seconds, "peak_rss_bytes": float(done.stdout)}


def told(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Summaries of what each round measured."""
    return {name: summary([run[name] for run in runs]) for name in runs[0]}


def show(result: dict[str, Any]) -> None:
    """Print the machine, a line for each, and what came out."""
    where = result["environment"]
    threads = counted(where["threads"], "thread")
    terminal.line(f"{where['cpu']['model']}, {threads}, {where['commit']}")
    terminal.line(
        f"{result['model']} to {result['format']}: {result['source_bytes'] / 1e9:.2f} GB "
        f"to {result['target_bytes'] / 1e9:.2f} GB"
    )
    rows = [
        [
            name,
            f"{found['seconds']['median']:.1f}",
            f"{found['seconds']['sd']:.1f}",
            f"{found['peak_rss_bytes']['median'] / 1e6:.0f}",
        ]
        for name, found in result["runs"].items()
    ]
    terminal.table(["", "seconds", "±", "peak, MB"], rows, "lrrr")
    terminal.line(f"converting takes {result['times_of_copying']:.2f} times copying")


if __name__ == "__main__":
    main()
