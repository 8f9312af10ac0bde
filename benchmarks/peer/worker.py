# benchmarks/peer/worker.py
# SPDX-License-Identifier: Apache-2.0
"""A process for each side, told over a pipe what to do and when.

Thread pools of different libraries in one process get in each other's way, and a crash
of one would end the others.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from peer import problem, side
from peer.problem import Case
from peer.side import F32Array, Side

__all__ = ["SideFailedError", "Worker"]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PATIENCE = 900.0  # seconds for one answer; loading may repack half a gigabyte


class SideFailedError(Exception):
    """A side raised, crashed or hung."""


class Worker:
    """The parent's end of one side's process.

    Parameters
    ----------
    name : str
        One of `peer.SIDES`.
    threads : int
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self._log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(end, name, threads, self._log.name), daemon=True
        )
        self._process.start()
        end.close()

    def prepare(self, case: Case, copies: int) -> list[F32Array]:
        """Load a case; give checked tokens of the first and the last matrix."""
        results: list[F32Array] = self._ask("prepare", case, copies)
        return results

    def run(self, passes: int) -> float:
        """Seconds of a product, over some passes through all matrices."""
        return float(self._ask("run", passes))

    def close(self) -> None:
        """End the process."""
        self._pipe.close()  # which it takes as a wish to end
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._log.close()

    def _ask(self, *request: Any) -> Any:
        try:
            self._pipe.send(request)
            if not self._pipe.poll(_PATIENCE):
                raise SideFailedError(f"silent for {_PATIENCE:.0f} s")
            good, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(10)
            raise SideFailedError(self._last_words()) from error
        if not good:
            raise SideFailedError(value)
        return value

    def _last_words(self) -> str:
        text = Path(self._log.name).read_text(errors="replace").strip()
        last = text.splitlines()[-1] if text else "said nothing"
        return f"process ended with {self._process.exitcode}: {last}"


def _serve(pipe: Connection, name: str, threads: int, log: str) -> None:
    """Answer until the parent closes the pipe."""
    for variable in _THREADS:
        os.environ[variable] = str(threads)
    with Path(log).open("w") as file:  # libraries greet on stderr, and on stdout
        os.dup2(file.fileno(), sys.stderr.fileno())
        os.dup2(file.fileno(), sys.stdout.fileno())
    served = _Served(side(name))
    handlers: dict[str, Callable[..., Any]] = {
        "prepare": served.prepare,
        "run": served.run,
    }
    while True:
        try:
            command, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, handlers[command](*arguments))
        except Exception as error:  # noqa: BLE001 - whatever it raises is its result
            answer = (False, f"{type(error).__name__}: {error}"[:500])
        pipe.send(answer)


class _Served:
    """The child's end: at most one prepared case."""

    def __init__(self, kind: type[Side]) -> None:
        self._kind = kind
        self._side: Side | None = None

    def prepare(self, case: Case, copies: int) -> list[F32Array]:
        if self._side is not None:  # two cases at once need not fit
            self._side.close()
            self._side = None
        made = self._kind()
        weights = [problem.weights(case, i) for i in range(copies)]
        made.prepare(case, weights, problem.activations(case))
        self._side, self._products = made, copies
        made.run()
        tokens = problem.checked_tokens(case.tokens)
        return [made.output(i)[tokens].copy() for i in (0, copies - 1)]

    def run(self, passes: int) -> float:
        assert self._side is not None
        start = time.perf_counter()
        for _ in range(passes):
            self._side.run()
        return (time.perf_counter() - start) / passes / self._products
