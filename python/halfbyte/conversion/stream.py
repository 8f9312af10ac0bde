# python/halfbyte/conversion/stream.py
# SPDX-License-Identifier: Apache-2.0
"""A conversion as it runs: some rows at a time, several threads, in the target's place."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import numpy as np

from halfbyte import targets
from halfbyte.conversion.plan import Job, Layout, Plan, Tally, U8Array
from halfbyte.draft import Draft

__all__ = ["PIECE_BYTES", "Progress", "stream"]

Progress = Callable[[int, int], None]  # bytes of the source done, bytes in all

# Of the source, that a thread has in hand: large enough for the disk and for numbers of
# calls that do not matter, small enough for the second-level cache's neighbourhood.
PIECE_BYTES = 4 << 20


class _Piece(NamedTuple):
    """Rows of a job."""

    job: int
    begin: int
    rows: int


class _Done(NamedTuple):
    """What became of a piece."""

    number: int
    piece: _Piece
    tally: Tally
    digest: int  # of its bytes
    again: bool  # it was found written


def stream(
    plan: Plan, draft: Draft, threads: int, progress: Progress | None
) -> tuple[list[Tally], int]:
    """Write all tensors of a plan into a draft.

    Memory peaks at a few pieces of the source a thread, and what they become.

    Parameters
    ----------
    plan : Plan
    draft : Draft
        Of the layout's size. What its records say is written is checked, not trusted.
    threads : int
    progress : callable, optional
        Called with bytes of the source that are done, and all of them.

    Returns
    -------
    tallies : list of Tally
        One a job.
    resumed : int
        Bytes of the target that an earlier attempt wrote.

    Raises
    ------
    OSError, FileChangedError
        If the target cannot be written, or the source has changed.
    Exception
        What an encoder raises.
    """
    draft.write(plan.layout.header, 0)
    worker = _Worker(plan.jobs, plan.layout, draft, threads)
    pieces = list(_pieces(plan.jobs))
    total = sum(job.source.shape[0] * job.source.row_bytes for job in plan.jobs)
    tallies = [Tally()] * len(plan.jobs)
    done = resumed = 0
    # Closed before anybody closes the draft, also when the loop ends with an error.
    with closing(_in_threads(worker, pieces, threads)) as results:
        for result in results:
            job = result.piece.job
            done += result.piece.rows * plan.jobs[job].source.row_bytes
            tallies[job] = tallies[job].plus(result.tally)
            if result.again:
                resumed += worker.bytes_of(result.piece)
            else:
                draft.record(_record(result))
            if progress is not None:
                progress(done, total)
    return tallies, resumed


def _pieces(jobs: Sequence[Job]) -> Iterator[_Piece]:
    for i, job in enumerate(jobs):
        rows = job.source.shape[0]
        step = max(1, PIECE_BYTES // max(1, job.source.row_bytes))
        for begin in range(0, rows, step):
            yield _Piece(i, begin, min(step, rows - begin))


def _in_threads(
    worker: _Worker, pieces: Sequence[_Piece], threads: int
) -> Generator[_Done]:
    """Results as they come. The first error ends it, and so does Ctrl-C."""
    # Half of them wait for the disk, so that the others always have something to do.
    pool = ThreadPoolExecutor(2 * threads, thread_name_prefix="halfbyte-convert")
    tasks = iter(enumerate(pieces))
    running: set[Future[_Done]] = set()
    try:
        while True:
            # Nothing waits but in a thread: no more than they have is in memory.
            for task in islice(tasks, 2 * threads - len(running)):
                running.add(pool.submit(worker, *task))
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    finally:
        # What is under way ends within moments; it must not write to a closed file.
        pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """Does one piece; called in many threads."""

    def __init__(
        self, jobs: Sequence[Job], layout: Layout, draft: Draft, threads: int
    ) -> None:
        self._jobs, self._draft = jobs, draft
        self._processors = threading.Semaphore(threads)
        self._recorded = dict(_parsed(draft.records))
        self._buffers = threading.local()
        offsets = iter(layout.offsets)
        # Offset, and bytes for a row, of each output of each job.
        self._places = [
            [(next(offsets), out.bytes // job.source.shape[0]) for out in job.outputs]
            for job in jobs
        ]

    def bytes_of(self, piece: _Piece) -> int:
        """Bytes that a piece takes in the target."""
        return piece.rows * sum(size for _, size in self._places[piece.job])

    def __call__(self, number: int, piece: _Piece) -> _Done:
        found = self._recorded.get(number)
        if found is not None and self._stands(piece, found[0]):
            return _Done(number, piece, found[1], found[0], again=True)
        data, tally = self._encode(piece)
        digest = 0
        for part, (offset, row_bytes) in zip(
            data, self._places[piece.job], strict=True
        ):
            if part.size != piece.rows * row_bytes:
                raise AssertionError(
                    f"encoder: {part.size} bytes for {piece.rows} rows of {row_bytes}"
                )
            digest = zlib.crc32(part.data, digest)
            self._draft.write(part.data, offset + piece.begin * row_bytes)
        return _Done(number, piece, tally, digest, again=False)

    def _encode(self, piece: _Piece) -> tuple[tuple[U8Array, ...], Tally]:
        job = self._jobs[piece.job]
        buffer = self._buffer(piece.rows * job.source.row_bytes)
        rows = job.source.read(piece.begin, piece.rows, buffer)
        with self._processors, targets.threads(1):
            return job.encoder(rows)

    def _buffer(self, size: int) -> U8Array:
        """Memory of this thread; fresh pages for every piece would cost a tenth."""
        buffer: U8Array | None = getattr(self._buffers, "data", None)
        if buffer is None or buffer.size < size:
            buffer = self._buffers.data = np.empty(max(size, PIECE_BYTES), np.uint8)
        return buffer

    def _stands(self, piece: _Piece, digest: int) -> bool:
        """Whether the target holds a piece as it was recorded."""
        found = 0
        for offset, row_bytes in self._places[piece.job]:
            part = np.empty(piece.rows * row_bytes, np.uint8)
            if not self._draft.read(part.data, offset + piece.begin * row_bytes):
                return False
            found = zlib.crc32(part.data, found)
        return found == digest


# ---- records: number of the piece, digest, tally


def _record(done: _Done) -> str:
    return " ".join(map(str, (done.number, done.digest, *done.tally)))


def _parsed(records: Sequence[str]) -> Iterator[tuple[int, tuple[int, Tally]]]:
    for line in records:
        words = line.split(" ")
        if len(words) == 2 + len(Tally()) and all(word.isdecimal() for word in words):
            number, digest, *counts = map(int, words)
            yield number, (digest, Tally(*counts))
