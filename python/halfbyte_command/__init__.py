# python/halfbyte_command/__init__.py
# The command `halfbyte` from its first moment, until halfbyte.cli takes over.
# SPDX-License-Identifier: Apache-2.0
"""Where the command starts.

A package of its own: any module of `halfbyte` has NumPy and the compiled core imported
before its own first line, and what goes wrong meanwhile would end in a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["end_on_interrupt", "is_asked_for", "main"]


def main() -> int:
    """Import the command line and run it.

    Returns
    -------
    int
        The exit code.
    """
    end_on_interrupt()
    try:
        from halfbyte.cli import main as run
    except ValueError as error:  # a variable of the environment that asks too much
        if sys.stderr is not None:  # 2>&-
            sys.stderr.write(f"halfbyte: {error}\n")
        return 2

    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def is_asked_for() -> bool:
    """Whether the process is ``python -m halfbyte``, which imports the package first.

    Returns
    -------
    bool
        False also once Python has found what it was to run.
    """
    line = sys.orig_argv
    is_finding = sys.argv[:1] == ["-m"]
    return is_finding and "-m" in line and line[line.index("-m") + 1] == "halfbyte"


def end_on_interrupt() -> None:
    """Have Ctrl-C end the process at once, until `main` has imported everything."""
    # Where the shell has Ctrl-C ignored, as for a job in the background, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(_signal: int, _frame: FrameType | None) -> None:
    """End at once, with the exit code of `halfbyte.cli.errors.INTERRUPTED`.

    Nothing is open yet. An exception would have to get through the imports of others,
    who may report it or make another one of it.
    """
    os._exit(130)
