# python/halfbyte/targets.py
# SPDX-License-Identifier: Apache-2.0
"""What the kernels run on: instruction sets and threads."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from halfbyte import _core
from halfbyte._arguments import string, whole
from halfbyte.errors import ArgumentError

__all__ = [
    "__version__",
    "cpu_dot",
    "cpu_quota",
    "cpu_target",
    "cpu_targets",
    "memory_limit",
    "num_threads",
    "peak_rss",
    "set_num_threads",
    "thread_reason",
    "threads",
    "use_target",
]

__version__: str = _core.__version__

_FORCED = "HALFBYTE_FORCE_TARGET"
_THREADS = "HALFBYTE_NUM_THREADS"
_MAX_THREADS = 1024


def cpu_target() -> str:
    """Name of the instruction set the kernels use, such as ``"AVX3_ZEN4"``.

    Returns
    -------
    str
        Highway's name. The best one of this CPU, or ``HALFBYTE_FORCE_TARGET``.
    """
    return _core.cpu_target()


def cpu_dot() -> str:
    """How the kernels multiply bytes.

    Returns
    -------
    {"VNNI", "MADD", "SDOT", "SMULL", "SIGNED"}
        x86: one instruction for four products, or pairs of products in 16 bits. Arm:
        the same two. Elsewhere: signed bytes by whatever Highway finds.
    """
    return _core.cpu_dot()


def cpu_targets() -> list[str]:
    """Instruction sets that are compiled in and known to this CPU.

    Returns
    -------
    list of str
        Best first. Where a CPU has a byte dot product that its instruction set does not
        promise, the set is there twice: ``"AVX3+VNNI"`` and ``"AVX3+MADD"``, or
        ``"NEON_WITHOUT_AES+SDOT"`` and ``"NEON_WITHOUT_AES+SMULL"``.
    """
    return _core.cpu_targets()


def use_target(name: str) -> AbstractContextManager[None]:
    """Make the kernels of the whole process use one instruction set in a ``with`` block.

    For tests and bug reports; no other thread may compute meanwhile.

    Parameters
    ----------
    name : str
        One of `cpu_targets`.

    Raises
    ------
    ArgumentError, DTypeError
        If this CPU or this build does not have it, or `name` is no str.
    """
    with _using(string(name, "target")):  # or the ``with`` block would be told
        return _using(name)


@contextmanager
def _using(name: str) -> Iterator[None]:
    before = _core.cpu_target()
    _core.set_cpu_target(name)
    try:
        yield
    finally:
        _core.set_cpu_target(before)


_scoped: ContextVar[int | None] = ContextVar("halfbyte_threads", default=None)
_chosen: int | None = None


def _valid(n: int, name: str) -> int:
    return whole(n, name, 1, _MAX_THREADS)


def _count(text: str) -> int | None:
    # int() refuses thousands of digits, in an error of its own.
    n = int(text) if text.isdecimal() and len(text) < 10 else 0
    return n if 1 <= n <= _MAX_THREADS else None


# What follows is asked before each operation, and looked up once: the environment takes
# a microsecond, control groups a hundred.


@functools.cache
def _told() -> tuple[int, str] | None:
    text = os.environ.get(_THREADS, "").strip()
    if not text:
        return None
    if (n := _count(text)) is None:
        raise ArgumentError(
            f"{_THREADS}: found {text[:64]!a}; "
            f"expected a whole number from 1 to {_MAX_THREADS}"
        )
    return n, f"{_THREADS}={n}"


@functools.cache
def _default() -> tuple[int, str]:
    # The variable of others: a list, one number for each level of nesting, and what we
    # do not understand in it may be for them.
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    n = _count(text)
    return _core.default_threads() if n is None else (n, f"OMP_NUM_THREADS={n}")


def _asked() -> tuple[int, str] | None:
    """What was asked of halfbyte itself."""
    if (scoped := _scoped.get()) is not None:
        return scoped, "halfbyte.threads"
    if _chosen is not None:
        return _chosen, "halfbyte.set_num_threads"
    return _told()


def _threads_and_reason() -> tuple[int, str]:
    return _asked() or _default()


def num_threads_or(default: int) -> int:
    """`num_threads` if halfbyte itself was told how many, else `default`."""
    asked = _asked()
    return default if asked is None else asked[0]


def num_threads() -> int:
    """Threads that a call uses unless it is told otherwise.

    Returns
    -------
    int
        The innermost `threads` block, else `set_num_threads`, else the environment
        variables ``HALFBYTE_NUM_THREADS`` and ``OMP_NUM_THREADS``, else the CPUs this
        process may use: allowed by affinity and control group, one a physical core.
        Environment and CPUs are looked at once; ``set_num_threads(None)`` has them
        looked at again.

    Raises
    ------
    ArgumentError
        If ``HALFBYTE_NUM_THREADS`` is not from 1 to 1024. Importing `halfbyte` raises
        it, and what would use the number if the variable was set since.
    """
    return _threads_and_reason()[0]


def thread_reason() -> str:
    """Where the number of `num_threads` comes from.

    Returns
    -------
    str
    """
    return _threads_and_reason()[1]


def cpu_quota(root: str | os.PathLike[str] = "") -> float | None:
    """CPUs' worth of time that the control groups of this process allow.

    Parameters
    ----------
    root : str or path-like
        Goes before ``/proc`` and ``/sys``: another tree to read.

    Returns
    -------
    float or None
        None without a limit.
    """
    return _core.cpu_quota(os.fspath(root))


def memory_limit(root: str | os.PathLike[str] = "") -> int | None:
    """Bytes that the control groups of this process allow; None without a limit.

    Parameters
    ----------
    root : str or path-like
        As for `cpu_quota`.

    Returns
    -------
    int or None
    """
    return _core.memory_limit(os.fspath(root))


def peak_rss() -> int:
    """Peak resident set of this process in bytes; 0 if it cannot be known."""
    return _core.peak_rss()


def set_num_threads(n: int | None) -> None:
    """Set the number of threads for the whole process.

    Parameters
    ----------
    n : int or None
        None goes back to the default, and looks at what it depends on again.

    Raises
    ------
    ArgumentError, DTypeError
        If `n` is no number from 1 to 1024; for None, if ``HALFBYTE_NUM_THREADS`` is
        not one.
    """
    global _chosen
    _chosen = None if n is None else _valid(n, "n")
    if n is None:
        _told.cache_clear()
        _default.cache_clear()
        _told()


def threads(n: int) -> AbstractContextManager[None]:
    """Use `n` threads inside a ``with`` block, in this thread or task.

    Parameters
    ----------
    n : int

    Raises
    ------
    ArgumentError, DTypeError
        If `n` is no number from 1 to 1024.
    """
    return _with_threads(_valid(n, "n"))


@contextmanager
def _with_threads(n: int) -> Iterator[None]:
    token = _scoped.set(n)
    try:
        yield
    finally:
        _scoped.reset(token)


def _force(target: str) -> None:
    try:
        # What is no UTF-8 in the environment is no text for the core.
        _core.set_cpu_target(target.encode("utf-8", "backslashreplace").decode())
    except ArgumentError as error:
        raise ArgumentError(f"{_FORCED}: {str(error).partition(': ')[2]}") from None


if _forced := os.environ.get(_FORCED):
    _force(_forced)
_told()
_told.cache_clear()  # a program may set the variable before it computes
