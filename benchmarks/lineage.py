# benchmarks/lineage.py
# How long `halfbyte lineage` takes on files of the released sizes.
# SPDX-License-Identifier: Apache-2.0
"""Time `halfbyte lineage` on a file that is not in memory.

    python benchmarks/synthetic.py e2b /tmp/e2b.gguf
    python benchmarks/lineage.py /tmp/e2b.gguf [--rounds 3]

Once as it is, and once hashing the file, as it does where the size is that of a published
one. Before each round the file's pages are given back to the system.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

from halfbyte._sizes import size_text
from halfbyte.cli import terminal
from halfbyte.lineage import Lineage, lineage
from halfbyte.lineage.identity import identify
from roof import model_file

__all__ = ["seconds"]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=model_file)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    path = options.file
    judged: list[Lineage] = []
    looks: dict[str, Callable[[], object]] = {
        "the weights": lambda: judged.append(lineage(path)),
        "the hash": lambda: identify([str(path)], hash=True),
    }
    rows = []
    for what, do in looks.items():
        times = sorted(seconds(path, do) for _ in range(options.rounds))
        rows.append((what, f"{times[0]:.2f}", f"{times[-1]:.2f}"))
    terminal.line(f"{size_text(path.stat().st_size)}: {judged[0].verdict.value}")
    terminal.table(("looked at", "s, best", "s, worst"), rows, "lrr")


def seconds(path: Path, do: Callable[[], object]) -> float:
    """Time something that reads a file from the disk.

    Parameters
    ----------
    path : Path
        The file.
    do : callable

    Returns
    -------
    float
        Seconds of wall clock.
    """
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
