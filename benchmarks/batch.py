# benchmarks/batch.py
# SPDX-License-Identifier: Apache-2.0
"""Several sequences decoded in one pass, beside llama.cpp's batches, in turn.

    python benchmarks/batch.py [MODEL.gguf] [--sizes 1,2,4,8,16] [--json FILE]

README.md in this folder says what the columns mean.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import halfbyte
import numpy as np
from generate import TEXT, llama_opener
from halfbyte.cli import terminal
from numpy.typing import NDArray
from roof import counts, environment, model_path, ratio, save, summary

PROMPT = 64  # tokens of every sequence, each from another place of the text
# Both round activations, each in its own way: see generate.py.
MIN_AGREEMENT = 0.9

F32Array = NDArray[np.float32]


class Side(Protocol):
    """One of the two that are compared."""

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        """Forget everything and run a prompt for each sequence."""

    def step(self, ids: Sequence[int]) -> F32Array:
        """Append a token to each, and return the logits, one row each."""


class Halfbyte:
    """`Model.step`."""

    def __init__(self, path: Path, threads: int) -> None:
        self.model = halfbyte.load(path, threads=threads, context=512)
        self._sessions: list[halfbyte.Session] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        """See `Side`."""
        self._sessions = [self.model.session() for _ in prompts]
        for session, ids in zip(self._sessions, prompts, strict=True):
            session.logits(ids, last=True)

    def step(self, ids: Sequence[int]) -> F32Array:
        """See `Side`."""
        return self.model.step(self._sessions, ids)

    def alone(self, ids: Sequence[int]) -> F32Array:
        """Do the same, one session after the other."""
        rows = [s.logits([id]) for s, id in zip(self._sessions, ids, strict=True)]
        return np.concatenate(rows)


class LlamaCpp:
    """`llama_decode` of a batch, a token of each of its sequences."""

    def __init__(self, path: Path, threads: int, size: int) -> None:
        import llama_cpp

        self._c = llama_cpp.llama_cpp
        model = self._c.llama_model_default_params()
        self._model = self._c.llama_model_load_from_file(str(path).encode(), model)
        context = self._c.llama_context_default_params()
        context.n_ctx, context.n_seq_max = 512 * size, size
        context.n_threads = context.n_threads_batch = threads
        self._context = self._c.llama_init_from_model(self._model, context)
        self._batch = self._c.llama_batch_init(max(PROMPT, size), 0, 1)
        vocabulary = self._c.llama_model_get_vocab(self._model)
        self._vocab = self._c.llama_vocab_n_tokens(vocabulary)
        self._at = 0

    def _decode(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Run (token, position, sequence): all of several sequences with logits.

        Of a single one only the last has some.
        """
        batch, several = self._batch, rows[0][2] != rows[-1][2]
        batch.n_tokens = len(rows)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = several or i + 1 == len(rows)
        if self._c.llama_decode(self._context, batch) != 0:
            raise SystemExit("llama_decode failed")

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        """See `Side`."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        for sequence, ids in enumerate(prompts):
            self._decode([(token, i, sequence) for i, token in enumerate(ids)])
        self._at = len(prompts[0])

    def step(self, ids: Sequence[int]) -> F32Array:
        """See `Side`."""
        self._decode([(token, self._at, i) for i, token in enumerate(ids)])
        self._at += 1
        found = self._c.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, (len(ids), self._vocab))

    def close(self) -> None:
        """Give the memory back."""
        self._c.llama_batch_free(self._batch)
        self._c.llama_free(self._context)
        self._c.llama_model_free(self._model)


def silent() -> Any:
    """Keep llama.cpp from writing; the result has to be kept."""
    import llama_cpp

    voice = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_cpp.llama_log_set(voice, ctypes.c_void_p(0))
    return voice


def check(sides: dict[str, Side], prompts: list[list[int]], text: list[int]) -> float:
    """Share of equal best tokens, over 8 steps; ours have the bits of sessions alone."""
    ours = sides["halfbyte"]
    assert isinstance(ours, Halfbyte)
    ours.start(prompts)
    tokens = [[*np.roll(text, -i)[: len(prompts)]] for i in range(8)]
    expected = [ours.alone(ids) for ids in tokens]
    equal = []
    for side in sides.values():
        side.start(prompts)
        for ids, rows in zip(tokens, expected, strict=True):
            found = side.step(ids)
            if side is ours and not np.array_equal(found, rows):
                raise SystemExit("not timed: a batch has other bits")
            equal.append(float((found.argmax(1) == rows.argmax(1)).mean()))
    if (share := statistics.fmean(equal[8:] or [1.0])) < MIN_AGREEMENT:
        raise SystemExit(f"not timed: the best tokens agree at {share:.0%} only")
    return share


def measure(side: Side, size: int, steps: int, text: list[int]) -> float:
    """Seconds of a step."""
    time.sleep(0.05)  # until the other side's threads have stopped spinning
    side.step(text[:size])
    start = time.perf_counter()
    for _ in range(steps):
        side.step(text[:size])
    return (time.perf_counter() - start) / steps


def take_turns(
    sides: dict[str, Side], prompts: list[list[int]], text: list[int], how: Any
) -> dict[str, list[float]]:
    """Tokens per second of each side, round by round."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side.start(prompts)
    size = len(prompts)
    for _ in range(how.rounds):
        for name, side in sides.items():
            speeds[name].append(size / measure(side, size, how.steps, text))
    return speeds


def run_with(options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Measure all sizes with a number of threads."""
    ours = Halfbyte(options.model, threads)
    theirs, how = llama_opener(options.model, threads, 512, flash=False)
    text = ours.model.tokenize(TEXT)
    told: dict[str, Any] = {"environment": environment(threads), "llama_cpp": how}
    for size in options.sizes:
        prompts = [[2, *text[i + 1 : i + PROMPT]] for i in range(size)]
        sides: dict[str, Side] = {"halfbyte": ours}
        with contextlib.ExitStack() as stack:
            if theirs is not None and not options.only_ours:
                peer = LlamaCpp(options.model, threads, size)
                stack.callback(peer.close)
                sides["llama.cpp"] = peer
            agreed = check(sides, prompts, text)
            speeds = take_turns(sides, prompts, text, options)
        told[str(size)] = {
            "best_token_agreement": agreed,
            "tokens_per_s": {name: summary(speeds[name]) for name in speeds},
        }
    terminal.line(f"{ours.model!r}, {threads} threads; llama.cpp {how}")
    show(told, options.sizes)
    return told


def show(told: dict[str, Any], sizes: list[int]) -> None:
    """Print a table: speeds, how many times the first size's they are, their ratio."""
    names = list(told[str(sizes[0])]["tokens_per_s"])
    rows = []
    for size in sizes:
        samples = [told[str(size)]["tokens_per_s"][name]["samples"] for name in names]
        row = [str(size)]
        for name, own in zip(names, samples, strict=True):
            first = told[str(sizes[0])]["tokens_per_s"][name]["samples"]
            row += [f"{statistics.median(own):.1f}", f"{ratio(own, first):.2f}"]
        rows.append((*row, f"{ratio(*samples):.2f}") if len(names) == 2 else (*row,))
    heads = ["sequences"]
    for name in names:
        heads += [f"{name}, tokens/s", "of the first"]
    heads += ["ratio"] * (len(names) == 2)
    terminal.table(tuple(heads), rows, "r" * len(heads))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("model", nargs="?", type=model_path, default="", help="GGUF; else the demo")
    add("--sizes", type=counts, default=[1, 2, 4, 8, 16], help="sequences of a pass")
    add("--threads", type=counts, default=[1, 2], help="numbers of threads")
    add("--steps", type=int, default=6, help="of a measurement")
    add("--rounds", type=int, default=7)
    add("--only-ours", action="store_true", help="without llama.cpp")
    add("--json", type=Path, metavar="FILE", help="write all samples to this file")
    options = parser.parse_args()
    voice = None
    with contextlib.suppress(ImportError):
        voice = silent()
    results = [run_with(options, threads) for threads in options.threads]
    del voice
    if options.json is not None:
        save(
            options.json,
            {"script": "batch.py", "model": options.model.name, "results": results},
        )


if __name__ == "__main__":
    main()
