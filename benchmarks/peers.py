# benchmarks/peers.py
# SPDX-License-Identifier: Apache-2.0
"""halfbyte's matrix products beside those of other libraries, interleaved in one run.

    python benchmarks/peers.py [--only litert,torch] [--formats q4_0,w4] [--json FILE]

Each side has a process of its own, and the processes take turns. README.md in this
folder says what is compared and what the columns mean.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from halfbyte.cli import terminal
from peer import OURS, SIDES, side
from peer.answer import WrongAnswerError, check
from peer.ours import NotInThisBuildError
from peer.problem import BITS, MOBILE, SHAPES, Case, copies, nbytes, weights
from peer.roofs import Roof, measure_roofs, seconds_at_roof
from peer.side import F32Array, How
from peer.worker import SideFailedError, Worker
from roof import counted, environment, save, summary

TOKENS = (1, 4, 32, 512)
TURN = 0.02  # seconds a side's turn takes at least: waking threads costs microseconds
PAUSE = 0.05  # until the threads of the side before have stopped spinning


class Turns(NamedTuple):
    """What one side did in one case."""

    side: str
    how: str
    error: float
    seconds: list[float]  # of a product, one a round
    copies: int = 1  # of the matrix that it uses in turn
    # Of the static codes that were checked, how many are not ours; None of our own and
    # of floats.
    other_codes: int | None = None


def main() -> None:
    """Read the arguments, run, print."""
    options = arguments().parse_args()
    if options.quick:
        options.rounds, options.mib = min(options.rounds, 3), min(options.mib, 64)
    names = chosen(options.only)
    present = [name for name in names if side(name).available()]
    where = environment(max(options.threads))
    where["threads"] = options.threads
    for name in present:
        where["versions"][name] = side(name).version()
    missing = {name: hint(name) for name in names if name not in present}
    result = {
        "benchmark": "peers",
        "environment": where,
        "rounds": options.rounds,
        "mib": options.mib,
        "not_installed": missing,
        "cases": [],
    }
    wanted = list(cases(options))
    with terminal.progress("cases") as update:
        for done, (case, workers) in enumerate(with_workers(wanted, present)):
            update(done, len(wanted))
            result["cases"].append(run(case, workers, options))
            if options.json is not None:  # after each, as all of them take hours
                save(options.json, result)
    show(result)


def arguments() -> argparse.ArgumentParser:
    """Say what can be asked for."""

    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--only", type=words, default=list(SIDES), help=", ".join(SIDES))
    add("--formats", type=words, default=list(BITS), help=", ".join(BITS))
    shapes = f"{', '.join(SHAPES)}; e2b: all of E2B's"
    add("--shapes", type=words, default=list(SHAPES), help=shapes)
    mobile = "instead: E2B's matrices, as its mobile release packs them"
    add("--mobile", action="store_true", help=mobile)
    add("--tokens", type=numbers, default=list(TOKENS), help="default 1,4,32,512")
    add("--threads", type=numbers, default=[1, 2], help="default 1,2")
    add("--rounds", type=int, default=20, help="turns of each side in each case")
    add("--mib", type=int, default=512, help="distinct weights used in turn")
    add("--quick", action="store_true", help="3 rounds through 64 MiB: does it run?")
    add("--json", type=Path, metavar="FILE", help="write the result")
    return parser


def chosen(only: Sequence[str]) -> list[str]:
    """Sides that take part; ours always does, as the ratios are about it."""
    unknown = set(only) - set(SIDES)
    if unknown:
        known = ", ".join(SIDES)
        raise SystemExit(f"--only: expected some of {known}, got {min(unknown)}")
    return [name for name in SIDES if name == OURS or name in only]


def hint(name: str) -> str:
    """Say how to get a side that is missing."""
    return f"not installed: pip install {' '.join(side(name).packages)}"


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All cases that were asked for. Threads vary slowest: they need new processes."""
    for threads in options.threads:
        for fmt, shape in MOBILE if options.mobile else pairs(options):
            for tokens in options.tokens:
                yield Case(fmt, shape, tokens, threads)


def pairs(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Formats and shapes that were asked for."""
    models = {shape.split("-")[0] for shape in SHAPES}
    for given, known in ((options.formats, BITS), (options.shapes, {*SHAPES, *models})):
        unknown = set(given) - set(known)
        if unknown:
            expected = ", ".join(sorted(known))
            raise SystemExit(f"expected some of {expected}, got {min(unknown)}")
    asked = set(options.shapes)
    shapes = [s for s in SHAPES if not asked.isdisjoint({s, s.split("-")[0]})]
    yield from itertools.product(options.formats, shapes)


def with_workers(
    wanted: Sequence[Case], names: Sequence[str]
) -> Iterator[tuple[Case, dict[str, Worker]]]:
    """Go through the cases with a process a side; new ones for new threads."""
    workers: dict[str, Worker] = {}
    threads = 0
    try:
        for case in wanted:
            if case.threads != threads:
                for worker in workers.values():
                    worker.close()
                threads = case.threads
                workers = {name: Worker(name, threads) for name in names}
            yield case, workers
    finally:
        for worker in workers.values():
            worker.close()


def run(
    case: Case, workers: dict[str, Worker], options: argparse.Namespace
) -> dict[str, Any]:
    """Check the answers of all sides, then measure those that are right in turn."""
    count = copies(case, options.mib)
    notes: dict[str, str] = {}
    turns: list[Turns] = []
    answers: dict[str, Answer] = {}
    for name in list(workers):  # which a failure gives a new process
        with noting(case, name, workers, notes):
            if (how := side(name).how(case)) is not None:
                used, ours = count if how.streams else 1, answers.get(OURS)
                found = answers[name] = answer(case, used, workers[name], how, ours)
                other = other_codes(found, ours, how)
                turns.append(Turns(name, how.words, found.error, [], used, other))
    roofs = take_turns(case, turns, workers, notes, options)
    whole = [turn for turn in turns if len(turn.seconds) == len(roofs)]
    head = {**case._asdict(), "copies": count, "notes": notes}
    return head | told(case, whole, roofs)


@contextlib.contextmanager
def noting(
    case: Case, name: str, workers: dict[str, Worker], notes: dict[str, str]
) -> Iterator[None]:
    """Turn what goes wrong with one side into a note; the others go on."""
    where = f"{case.format} {case.k} x {case.n}, {case.tokens} tokens"
    try:
        yield
    except NotInThisBuildError as error:
        notes[name] = str(error)
    except WrongAnswerError as error:
        notes[name] = f"{where}: not timed, {error}"
    except SideFailedError as error:
        notes[name] = f"{where}: failed, {error}"
        workers[name].close()
        workers[name] = Worker(name, case.threads)


class Answer(NamedTuple):
    """Results of the first and of the last matrix, and the larger relative error."""

    results: dict[int, F32Array]
    error: float


def answer(
    case: Case, count: int, worker: Worker, how: How, ours: Answer | None = None
) -> Answer:
    """Load a case and compare two of its results with the reference.

    What equals our results has been compared.
    """
    first, last = worker.prepare(case, count)
    results = {0: first, count - 1: last}
    if ours is not None and results.keys() == ours.results.keys():
        both = zip(results.values(), ours.results.values(), strict=True)
        if all(np.array_equal(theirs, own) for theirs, own in both):
            return Answer(results, ours.error)
    errors = [
        check(case, weights(case, copy), result, how.rounding)
        for copy, result in results.items()
    ]
    return Answer(results, max(errors))


def other_codes(found: Answer, ours: Answer | None, how: How) -> int | None:
    """Count the codes in which a side differs from us; None if they are floats."""
    if ours is None or not how.rounding.static:
        return None
    both = found.results.keys() & ours.results.keys()
    return sum(
        int(np.count_nonzero(found.results[copy] != ours.results[copy]))
        for copy in both
    )


def take_turns(
    case: Case,
    turns: Sequence[Turns],
    workers: dict[str, Worker],
    notes: dict[str, str],
    options: argparse.Namespace,
) -> list[Roof]:
    """Fill in the seconds of all sides, round by round; give the rounds' roofs."""
    roof = measure_roofs(case.threads, max(options.mib, 256))
    passes: dict[str, int] = {}
    for turn in turns:
        with noting(case, turn.side, workers, notes):
            seconds = workers[turn.side].run(1) * turn.copies
            passes[turn.side] = math.ceil(TURN / seconds)
    roofs = []
    for i in range(options.rounds if turns else 1):
        time.sleep(PAUSE)
        roofs.append(roof())
        at = i % max(len(turns), 1)  # so that nobody always follows the same side
        for turn in (*turns[at:], *turns[:at]):
            if turn.side in notes:
                continue
            with noting(case, turn.side, workers, notes):
                time.sleep(PAUSE)
                turn.seconds.append(workers[turn.side].run(passes[turn.side]))
    return roofs


def told(case: Case, turns: Sequence[Turns], roofs: Sequence[Roof]) -> dict[str, Any]:
    """Medians, ratios and shares of one case, for the file and the table."""
    ours = next((turn.seconds for turn in turns if turn.side == OURS), None)
    best = zip(Roof._fields, zip(*roofs, strict=True), strict=True)
    return {
        **{name: summary(found) for name, found in best},
        "sides": {turn.side: line(case, turn, ours, roofs) for turn in turns},
    }


def line(
    case: Case, turn: Turns, ours: Sequence[float] | None, roofs: Sequence[Roof]
) -> dict[str, Any]:
    """What is said of one side in one case.

    Ratios and shares are medians over the rounds: neighbours in time, as what slows the
    machine slows both.
    """
    middle = statistics.median(turn.seconds)
    limits = [seconds_at_roof(case, roof) for roof in roofs]
    shares = [
        limit / seconds
        for limit, seconds in zip(limits, turn.seconds, strict=True)
        if limit is not None
    ]
    ratios = (
        [] if ours is None else [a / b for a, b in zip(ours, turn.seconds, strict=True)]
    )
    return {
        "how": turn.how,
        "relative_error": turn.error,
        "other_codes": turn.other_codes,
        "seconds": {
            "median": middle,
            "best": min(turn.seconds),
            "samples": turn.seconds,
        },
        "gb_per_s": nbytes(case) / middle / 1e9,
        "gmac_per_s": case.macs / middle / 1e9,
        "roof_share": statistics.median(shares) if shares else None,
        "our_time_over_theirs": statistics.median(ratios) if ratios else None,
    }


def show(result: dict[str, Any]) -> None:
    """Print the machine, the versions, the table and what is missing from it."""
    where = result["environment"]
    terminal.line(f"{where['cpu']['model']}, {where['target']}, {where['commit']}")
    terminal.line(f"load in the minute before: {where['load_average']:.1f}")
    versions = where["versions"].items()
    terminal.line(", ".join(f"{name} {v}" for name, v in versions if v is not None))
    terminal.line()
    header = ["format", "K x N", "tokens", "threads", "side", "ms", "GB/s", "GMAC/s"]
    header += ["of roof", "ours/theirs", "error", "other codes", "how"]
    rows = [row for case in result["cases"] for row in table_rows(case)]
    terminal.table(header, rows, "llrrlrrrrrrrl")
    for found in whole_layers(result["cases"]):
        terminal.line(describe(found))
    for name, text in result["not_installed"].items():
        terminal.line(f"{name}: {text}")
    notes = {f"{k}: {v}" for case in result["cases"] for k, v in case["notes"].items()}
    for text in sorted(notes):
        terminal.line(text)


def whole_layers(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What all products of E2B's mobile layers take, where each of them was timed.

    Returns
    -------
    list of dict
        ``tokens``, ``threads``, and ``seconds`` of each side that took part in all.
    """
    found = []
    for key in dict.fromkeys((case["tokens"], case["threads"]) for case in cases):
        timed = {
            (case["format"], case["shape"]): case["sides"]
            for case in cases
            if (case["tokens"], case["threads"]) == key
        }
        if not timed.keys() >= MOBILE.keys():
            continue
        names = [
            n for n in timed[next(iter(MOBILE))] if all(n in timed[m] for m in MOBILE)
        ]
        seconds = {
            name: sum(
                count * timed[matrix][name]["seconds"]["median"]
                for matrix, count in MOBILE.items()
            )
            for name in names
        }
        found.append({"tokens": key[0], "threads": key[1], "seconds": seconds})
    return found


def describe(layers: dict[str, Any]) -> str:
    """Say what all layers take, and how many times as long elsewhere."""
    seconds = dict(layers["seconds"])
    own = seconds.pop(OURS)
    words = [f"{name} {took / own:.2f} times as long" for name, took in seconds.items()]
    what = f"all products of E2B's layers, {counted(layers['tokens'], 'token')}"
    what += f", {counted(layers['threads'], 'thread')}"
    return f"{what}: {OURS} {1e3 * own:.1f} ms" + "".join(f", {text}" for text in words)


def table_rows(case: dict[str, Any]) -> list[list[str]]:
    """Cells of one case, a row a side."""

    def two(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    k, n = SHAPES[case["shape"]]
    head = [case["format"], f"{k} x {n}", str(case["tokens"]), str(case["threads"])]
    rows = []
    for name, told in case["sides"].items():
        ms = terminal.quantity(1e3 * told["seconds"]["median"])
        speeds = [f"{told['gb_per_s']:.1f}", f"{told['gmac_per_s']:.1f}"]
        ratio = two(told["our_time_over_theirs"]) if name != OURS else ""
        error = f"{told['relative_error']:.1e}"
        share = two(told["roof_share"])
        other = "" if told["other_codes"] is None else str(told["other_codes"])
        cells = [ms, *speeds, share, ratio, error, other, told["how"]]
        rows.append([*head, name, *cells])
    return rows


if __name__ == "__main__":
    main()
