# benchmarks/generate.py
# SPDX-License-Identifier: Apache-2.0
"""Prompt and decode speed of a model beside llama.cpp's, interleaved in one run.

    python benchmarks/generate.py [MODEL.gguf] [--threads 1,2] [--json FILE]

Both sides get the same tokens and hand out the logits after the last of them; nobody
samples. README.md in this folder says what the columns mean.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import halfbyte
import numpy as np
from halfbyte.cli import terminal
from numpy.typing import NDArray
from roof import (
    ReadLoop,
    counts,
    environment,
    headline,
    model_path,
    save,
    summary,
)

TEXT = """
The harbour lay under fog when the first boats came home. Nobody on the quay spoke much;
they listened for the bell on the outer rock and counted its strokes. A boy with a
lantern walked up and down, as he had been told to, and every time he reached the end of
the wall he held the light as high as he could. Far out, somebody answered with a horn.
The women put down their baskets. It took another quarter of an hour before a mast could
be seen, then a sail, grey on grey, and at last the whole boat, low in the water, heavy
with fish, and with one man more aboard than had left in the morning.
"""

# Both round activations to eight bits, each in its own way, so a near-tie may fall
# either way. Below this something is wrong, and a wrong answer is not timed.
MIN_AGREEMENT = 0.9
CHECKED = 128  # tokens of the text; the second half is fed one by one

F32Array = NDArray[np.float32]


class Side(Protocol):
    """One of the two that are compared."""

    def start(self, ids: Sequence[int]) -> F32Array:
        """Forget everything, run a prompt and return the last token's logits."""

    def step(self, token: int) -> F32Array:
        """Append one token and return its logits."""

    def close(self) -> None:
        """Give the memory back."""


class Halfbyte:
    """halfbyte, as `halfbyte.load` makes it."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self.model = halfbyte.load(path, threads=threads, context=context)
        self._session = self.model.session()

    def start(self, ids: Sequence[int]) -> F32Array:
        """See `Side`."""
        self._session.reset()
        return self._session.logits(ids, last=True).reshape(-1)

    def step(self, token: int) -> F32Array:
        """See `Side`."""
        return self._session.logits([token], last=True).reshape(-1)

    def close(self) -> None:
        """See `Side`."""
        del self.model, self._session


class LlamaCpp:
    """llama.cpp with its own defaults, apart from threads and what is asked for."""

    def __init__(
        self, path: Path, threads: int, context: int, *, extra: bool, flash: bool
    ) -> None:
        import llama_cpp

        self._library = llama_cpp.llama_cpp
        self._library.llama_log_set(_silence(), ctypes.c_void_p(0))
        with _extra_buffers(self._library, extra):
            self._model = llama_cpp.Llama(
                str(path),
                n_ctx=context,
                n_threads=threads,
                n_threads_batch=threads,
                flash_attn=flash,
                verbose=False,
            )

    def start(self, ids: Sequence[int]) -> F32Array:
        """See `Side`."""
        self._model.n_tokens = 0
        return self._eval(ids)

    def step(self, token: int) -> F32Array:
        """See `Side`."""
        return self._eval([token])

    def close(self) -> None:
        """See `Side`."""
        self._model.close()

    def _eval(self, ids: Sequence[int]) -> F32Array:
        self._model.eval(ids)
        logits = self._library.llama_get_logits_ith(self._model.ctx, -1)
        return np.ctypeslib.as_array(logits, (self._model.n_vocab(),))


@functools.cache  # llama.cpp keeps it until the process ends
def _silence() -> Any:
    """Give a logger without a voice: warnings come in spite of ``verbose=False``."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda *_: None)


@contextlib.contextmanager
def _extra_buffers(library: Any, wanted: bool) -> Iterator[None]:
    """Let llama.cpp load with or without its own weight layouts.

    The constructor has no argument for it.
    """
    defaults = library.llama_model_default_params
    params = defaults()
    params.use_extra_bufts = wanted
    library.llama_model_default_params = lambda: params
    try:
        yield
    finally:
        library.llama_model_default_params = defaults


def _try_extra(path: Path, threads: int) -> None:
    LlamaCpp(path, threads, 64, extra=True, flash=False).start([2] * 32)


def llama_opener(
    path: Path, threads: int, context: int, *, flash: bool
) -> tuple[Callable[[], LlamaCpp] | None, str]:
    """How to open the peer, in code and in words; None if it is not installed.

    Its own weight layouts include AMX code that crashes where a host names AMX without
    granting it, so a child process goes first.
    """
    try:
        import llama_cpp  # noqa: F401 - asked here, used in the class
    except ImportError:
        return None, 'not installed: pip install ".[bench]"'
    child = multiprocessing.get_context("spawn").Process(
        target=_try_extra, args=(path, threads)
    )
    child.start()
    child.join()
    extra = child.exitcode == 0
    how = "as it loads by itself" if extra else "without use_extra_bufts (it crashes)"
    if flash:
        how += ", with flash attention"
    return functools.partial(
        LlamaCpp, path, threads, context, extra=extra, flash=flash
    ), how


class Opened:
    """Keeps a side open from its first use on, or opens it anew for each use."""

    def __init__(self, opener: Callable[[], Side], *, apart: bool) -> None:
        self._opener, self._apart = opener, apart
        self._side: Side | None = None

    @contextlib.contextmanager
    def use(self) -> Iterator[Side]:
        """Yield the side."""
        if self._side is None:
            self._side = self._opener()
        yield self._side
        if self._apart:
            self.close()

    def close(self) -> None:
        """Give the memory back."""
        if self._side is not None:
            self._side.close()
            self._side = None


def best_tokens(side: Side, ids: Sequence[int]) -> list[int]:
    """The best token after each of the later half of `ids`, fed one by one."""
    half = len(ids) // 2
    best = [side.start(ids[:half]).argmax()]
    best += [side.step(token).argmax() for token in ids[half:-1]]
    return [int(token) for token in best]


def agreement(sides: dict[str, Opened], ids: Sequence[int]) -> float | None:
    """Share of the later half of `ids` after which all have the same best token."""
    found = []
    for opened in sides.values():
        with opened.use() as side:
            found.append(best_tokens(side, ids))
    if len(found) < 2:
        return None
    share = statistics.fmean(float(a == b) for a, b in zip(*found, strict=True))
    if share < MIN_AGREEMENT:
        raise SystemExit(f"not timed: the best tokens agree at {share:.0%} only")
    return share


def measure(side: Side, ids: Sequence[int], steps: int) -> tuple[float, float]:
    """Prompt and decode tokens per second of one run."""
    time.sleep(0.05)  # until the other side's threads have stopped spinning
    start = time.perf_counter()
    side.start(ids)
    middle = time.perf_counter()
    for token in ids[:steps]:
        side.step(token)
    end = time.perf_counter()
    return len(ids) / (middle - start), steps / (end - middle)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure with each number of threads."""
    where = environment(max(options.threads))
    where["threads"] = options.threads
    return {
        "benchmark": "generate",
        "environment": where,
        "model": options.model.name,
        "prompt_tokens": options.prompt,
        "decode_tokens": options.tokens,
        "runs": [
            run_with(options.model, threads, options) for threads in options.threads
        ],
    }


def run_with(path: Path, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Check the answers, then measure in turn."""
    context = max(options.prompt + options.tokens, CHECKED)
    model = halfbyte.load(path, threads=threads, repack="never")
    text, bytes_per_token = model.tokenize(TEXT), model.report().bytes_per_token
    del model
    ids = (text * (1 + options.prompt // len(text)))[: options.prompt]
    openers: dict[str, Callable[[], Side]] = {
        "halfbyte": functools.partial(Halfbyte, path, threads, context)
    }
    how = "not asked for"
    if not options.only_ours:
        theirs, how = llama_opener(path, threads, context, flash=options.flash)
        if theirs is not None:
            openers["llama.cpp"] = theirs
    sides = {
        name: Opened(open_, apart=options.apart) for name, open_ in openers.items()
    }
    agreed = agreement(sides, text[:CHECKED])
    bandwidth, speeds = take_turns(sides, ids, threads, options)
    for side in sides.values():
        side.close()
    return {
        "threads": threads,
        "bytes_per_token": bytes_per_token,
        "llama_cpp": how,
        "best_token_agreement": agreed,
        "read_gb_per_s": summary(bandwidth),
        "sides": {
            name: {
                "prompt_tokens_per_s": summary([speed[0] for speed in pairs]),
                "decode_tokens_per_s": summary([speed[1] for speed in pairs]),
            }
            for name, pairs in speeds.items()
        },
    }


def take_turns(
    sides: dict[str, Opened],
    ids: Sequence[int],
    threads: int,
    options: argparse.Namespace,
) -> tuple[list[float], dict[str, list[tuple[float, float]]]]:
    """Read bandwidths of the rounds, and the speeds of each side."""
    read = ReadLoop(threads, options.mib << 20)
    bandwidth: list[float] = []
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(options.rounds):
        bandwidth.append(max(read() for _ in range(3)))
        for name, opened in sides.items():
            with opened.use() as side:
                if options.apart or turn == 0:
                    measure(side, ids, 4)  # pages, caches, threads
                speeds[name].append(measure(side, ids, options.tokens))
    return bandwidth, speeds


def roof_share(run: dict[str, Any], side: str) -> float:
    """Bytes of weights read per second over what the machine reads."""
    speeds = run["sides"][side]["decode_tokens_per_s"]["samples"]
    reads = run["read_gb_per_s"]["samples"]
    size = run["bytes_per_token"] / 1e9
    return statistics.median(
        speed * size / read for speed, read in zip(speeds, reads, strict=True)
    )


def show(result: dict[str, Any]) -> None:
    """Print a table for each number of threads."""
    for run in result["runs"]:
        where = {**result["environment"], "threads": run["threads"]}
        terminal.line(headline(where, run["read_gb_per_s"]["samples"]))
        size = run["bytes_per_token"] / 1e9
        terminal.line(f"{result['model']}: {size:.3f} GB of weights a token")
        terminal.line(f"llama.cpp: {run['llama_cpp']}")
        if (agreed := run["best_token_agreement"]) is not None:
            terminal.line(f"same best token: {agreed:.1%} of {CHECKED // 2} positions")
        terminal.line()
        show_speeds(result, run)
        terminal.line()


def show_speeds(result: dict[str, Any], run: dict[str, Any]) -> None:
    """Print the speeds of one number of threads."""
    sides, rows = run["sides"], []
    for title, key in (
        (f"prompt of {result['prompt_tokens']}, tokens/s", "prompt_tokens_per_s"),
        (f"decode of {result['decode_tokens']}, tokens/s", "decode_tokens_per_s"),
    ):
        samples = [side[key]["samples"] for side in sides.values()]
        row = [title, *map(middle, samples)]
        if len(samples) == 2:
            # Pairs of neighbours in time: what slows the machine slows both.
            pairs = [a / b for a, b in zip(*samples, strict=True)]
            row.append(f"{statistics.median(pairs):.2f}")
        rows.append(row)
    shares = [f"{roof_share(run, name):.2f}" for name in sides]
    rows.append(["decode, share of the read bandwidth", *shares, ""][: len(rows[0])])
    header = ["", *sides, "ratio"][: len(rows[0])]
    terminal.table(header, rows, "lrrr"[: len(header)])


def middle(samples: Sequence[float]) -> str:
    """Median, and the slowest and fastest round."""
    digits = 0 if min(samples) >= 100 else 1
    found = (statistics.median(samples), min(samples), max(samples))
    told = [f"{speed:.{digits}f}" for speed in found]
    return f"{told[0]} ({told[1]} to {told[2]})"


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "model", nargs="?", type=model_path, default="", help="GGUF; else the demo"
    )
    parser.add_argument(
        "--threads",
        type=counts,
        default=[halfbyte.num_threads()],
        help="as 1,2: one after the other",
    )
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="to decode")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=1024, help="buffer of the read loop")
    parser.add_argument("--flash", action="store_true", help="flash attention there")
    parser.add_argument("--only-ours", action="store_true", help="without llama.cpp")
    parser.add_argument(
        "--apart", action="store_true", help="one in memory at a time, loaded each turn"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    options = parser.parse_args()
    result = run(options)
    show(result)
    if options.json is not None:
        save(options.json, result)


if __name__ == "__main__":
    main()
