# benchmarks/beside.py
# SPDX-License-Identifier: Apache-2.0
"""Two models of our own in turn: what one form of the weights is worth over another.

    python benchmarks/beside.py e2b-mobile e2b.gguf [--threads 1,2] [--json FILE]

The tests are those of `halfbyte bench`. README.md in this folder says what the columns
mean.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
from halfbyte import bench
from halfbyte.bench import ModelSpeed, Roofs
from halfbyte.cli import terminal
from halfbyte.model import Model
from roof import counts, environment, model_path, save, summary

ModelPair = tuple[ModelSpeed, ...]  # one test of both


def check(name: str, model: Model) -> None:
    """Tokens at once and one by one have to give the same logits, bit for bit."""
    ids = np.random.default_rng(2).integers(0, model.config.vocab_size, 8)
    at_once, one_by_one = model.session(), model.session()
    whole = at_once.logits(ids)
    steps = np.concatenate([one_by_one.logits(ids[i : i + 1]) for i in range(len(ids))])
    if not np.isfinite(whole).all() or not np.array_equal(whole, steps):
        raise SystemExit(f"not timed: {name} answers otherwise token by token")


def measure(models: dict[str, Model], options: argparse.Namespace) -> list[ModelPair]:
    """Run every test on both, a repetition of one after a repetition of the other."""
    roofs = Roofs(halfbyte.roof.buffer(bench.ROOF_BYTES))
    runs = [
        bench.model_speeds(
            model,
            roofs,
            prompts=[options.n_prompt],
            answers=[options.n_gen],
            threads=options.threads,
            repetitions=options.repetitions,
        )
        for model in models.values()
    ]
    pairs = {id(pair[0]): pair for pair in zip(*runs, strict=True)}
    return list(pairs.values())


def ratios(pair: ModelPair) -> list[float]:
    """The first's speed over the second's, of neighbours in time."""
    return [a / b for a, b in zip(pair[0].samples, pair[1].samples, strict=True)]


def record(names: list[str], pair: ModelPair) -> dict[str, Any]:
    """One test of both, for JSON."""
    sides = {
        name: summary(speed.samples) | {"roof_fraction": speed.roof_fraction}
        for name, speed in zip(names, pair, strict=True)
    }
    return {
        "test": pair[0].test,
        "threads": pair[0].threads,
        "tokens_per_s": sides,
        "ratio": summary(ratios(pair)),
    }


def show(names: list[str], pairs: list[ModelPair]) -> None:
    """Print the table."""
    rows = []
    for pair in pairs:
        cells = [pair[0].test, str(pair[0].threads)]
        for speed in pair:
            cells += [f"{statistics.median(speed.samples):.1f}"]
            cells += [f"{speed.roof_fraction:.2f}"]
        found = ratios(pair)
        cells += [f"{of(found):.2f}" for of in (statistics.median, min, max)]
        rows.append(cells)
    header = ["test", "threads"]
    for name in names:
        header += [f"{name}, tokens/s", "of roof"]
    terminal.table([*header, "ratio", "least", "most"], rows, "lr" + "r" * 7)


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "models", nargs=2, type=model_path, help="two that halfbyte loads"
    )
    parser.add_argument(
        "--threads",
        type=counts,
        default=[1, 2],
        help="as 1,2: one after the other",
    )
    parser.add_argument("-p", "--n-prompt", type=int, default=512)
    parser.add_argument("-n", "--n-gen", type=int, default=64)
    parser.add_argument("-r", "--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    options = parser.parse_args()
    where = environment(max(options.threads))
    context = max(options.n_prompt, options.n_gen, 8)
    first, second = options.models
    if first.samefile(second):
        parser.error(f"{first} and {second} are one model")
    is_clear = first.name != second.name
    models = {
        path.name if is_clear else str(path): halfbyte.load(path, context=context)
        for path in options.models
    }
    for name, model in models.items():
        check(name, model)
    pairs = measure(models, options)
    names = list(models)
    if options.json is not None:
        runs = [record(names, pair) for pair in pairs]
        result = {"benchmark": "beside", "environment": where, "runs": runs}
        save(options.json, result)
    show(names, pairs)


if __name__ == "__main__":
    main()
