# benchmarks/memory.py
# SPDX-License-Identifier: Apache-2.0
"""What a model takes in memory once its context is full, and what of it is what.

    python benchmarks/memory.py MODEL [--context 4096] [--tokens 64] [--json FILE]

README.md in this folder says what the lines mean. Linux only.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
from halfbyte import targets
from halfbyte.cli import terminal
from halfbyte.files import open_file
from roof import environment, model_path, save


def main() -> None:
    """Read the arguments, run, print."""
    options = arguments().parse_args()
    before = resident("")
    model = halfbyte.load(
        options.model, context=options.context, repack=options.repack, kv=options.kv
    )
    loaded = resident("")
    session = model.session()
    fill(session, options.context - options.tokens, options.tokens)
    total, report = resident(""), model.report()
    parts = {
        "weights": report.repacked_bytes,
        "keys and values": session.kv_bytes,
        "pages of the file": sum(
            resident(os.path.realpath(path)) for path in open_file(options.model).paths
        ),
    }
    result = {
        "benchmark": "memory",
        "environment": environment(model.threads),
        "model": options.model.name,
        "context": options.context,
        "kv": options.kv,
        "process_before": before,
        "loaded": loaded - before,
        "parts": parts | {"everything else": total - before - sum(parts.values())},
        "model_bytes": total - before,
        "peak_rss_bytes": targets.peak_rss(),
    }
    if options.json is not None:
        save(options.json, result)
    show(result)


def arguments() -> argparse.ArgumentParser:
    """Say what can be asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("model", type=model_path, help="a GGUF file or a directory")
    add("--context", type=int, default=4096, help="positions, all of them used")
    add("--tokens", type=int, default=64, help="the last ones, one by one")
    add("--kv", choices=["f32", "f16", "int8"], default="f32")
    add("--repack", choices=["auto", "always", "never"], default="auto")
    add("--json", type=Path, metavar="FILE", help="write the result")
    return parser


def fill(session: halfbyte.Session, prompt: int, tokens: int) -> None:
    """Run a prompt, then tokens one by one; they are from all over the vocabulary."""
    vocab = session.model.config.vocab_size
    ids = np.arange(prompt + tokens) * 40503 % vocab  # 2^16 over the golden ratio
    session.logits(ids[:prompt], last=True)
    for i in range(prompt, len(ids)):
        session.logits(ids[i : i + 1], last=True)


def resident(prefix: str) -> int:
    """Bytes in memory of mappings of files under `prefix`; ``""``: of everything.

    The kernel's own sum over this process's pages, not the counters of /proc/self/status,
    which each thread updates in steps.
    """
    found, counts = 0, True
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):  # a mapping's addresses, and its file at the end
            counts = not prefix or (len(rest) == 5 and rest[4].startswith(prefix))
        elif first == "Rss:" and counts:
            found += int(rest[0]) << 10
    return found


def show(result: dict[str, Any]) -> None:
    """Print the parts, largest unit first: decimal megabytes."""
    where = result["environment"]
    terminal.line(
        f"{result['model']}, {result['context']} positions, {where['commit']}"
    )
    rows = [[name, f"{size / 1e6:.1f}"] for name, size in result["parts"].items()]
    rows += [
        ["the model in all", f"{result['model_bytes'] / 1e6:.1f}"],
        ["the process before", f"{result['process_before'] / 1e6:.1f}"],
        ["peak of the process", f"{result['peak_rss_bytes'] / 1e6:.1f}"],
    ]
    terminal.table(["", "MB"], rows, "lr")


if __name__ == "__main__":
    main()
