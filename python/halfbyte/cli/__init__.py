# python/halfbyte/cli/__init__.py
# The command `halfbyte`: one file a command, app.py puts them together.
# SPDX-License-Identifier: Apache-2.0
"""The command line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; those of the process by default.

    Returns
    -------
    int
        The exit code: 0 ok, 1 failure, 2 usage, 3 not what was asked for, 4 unusable
        file, 5 not enough memory, 6 cannot tell, 130 interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    _die_quietly_on_a_closed_pipe()
    if not _has_streams():
        return 1
    with warnings.catch_warnings():
        if not _wants_debug(args):
            warnings.showwarning = _show_warning
        return _run(args)


def _run(args: list[str]) -> int:
    """Run a command; what goes wrong becomes a line and an exit code."""
    try:
        from halfbyte.cli.app import app

        code = app(args or ["--help"], prog_name="halfbyte", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - nothing may end in a traceback
        from halfbyte.cli.errors import exit_code, one_line

        if isinstance(error.__cause__, KeyboardInterrupt):  # as older typers pass it on
            return 130
        with contextlib.suppress(OSError):  # stderr on a full disk: the code says it
            if _wants_debug(args):
                traceback.print_exc()
            else:
                sys.stderr.write(f"halfbyte: {one_line(error)}\n")
        return exit_code(error)


def _die_quietly_on_a_closed_pipe() -> None:
    """Let `halfbyte … | head` end as any other program does: killed by SIGPIPE."""
    in_main = threading.current_thread() is threading.main_thread()
    if hasattr(signal, "SIGPIPE") and in_main:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _has_streams() -> bool:
    """Whether there is a stdout; the others, if they were closed, are done without."""
    if sys.stdin is None:  # <&-
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stderr is None:  # 2>&-
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stdout is None:
        sys.stderr.write("halfbyte: stdout is closed: send it to a file or /dev/null\n")
    return sys.stdout is not None


def _show_warning(message: object, *_where: Any, **_how: Any) -> None:
    """Tell a warning of the library in one line, without the place in the code."""
    from halfbyte.cli import terminal

    terminal.note(f"halfbyte: warning: {terminal.printable(str(message))}")


def _wants_debug(args: list[str]) -> bool:
    options = args[: args.index("--")] if "--" in args else args
    return "--debug" in options
