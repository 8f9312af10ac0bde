# python/halfbyte/cli/errors.py
# Which exception ends with which exit code and which line.
# SPDX-License-Identifier: Apache-2.0
"""Exit codes and one-line messages."""

from __future__ import annotations

__all__ = [
    "FAILURE",
    "INTERRUPTED",
    "MISMATCH",
    "NO_MEMORY",
    "UNDECIDED",
    "UNUSABLE_FILE",
    "USAGE",
    "UsageError",
    "exit_code",
    "one_line",
]

FAILURE = 1
USAGE = 2
MISMATCH = 3
UNUSABLE_FILE = 4
NO_MEMORY = 5
UNDECIDED = 6
INTERRUPTED = 130


class UsageError(Exception):
    """The command was called in a way that cannot work."""


def exit_code(error: BaseException) -> int:
    """Exit code of the program when `error` ends it."""
    from halfbyte import demo, errors

    unusable = (
        errors.FormatError,
        errors.UnsupportedError,
        errors.ModelError,
        errors.NumericalError,
        demo.DemoCorruptError,
    )
    usage = (
        UsageError,
        FileNotFoundError,
        IsADirectoryError,
        NotADirectoryError,
        errors.ArgumentError,
        errors.ContextOverflowError,
        demo.DemoNotInstalledError,
    )
    if isinstance(error, MemoryError):
        return NO_MEMORY
    if isinstance(error, unusable):
        return UNUSABLE_FILE
    if isinstance(error, usage):
        return USAGE
    if hasattr(error, "format_message"):  # typer's own: a wrong option or argument
        return int(getattr(error, "exit_code", USAGE))
    return FAILURE


def one_line(error: BaseException) -> str:
    """Message of `error` in one line that is safe to print."""
    from halfbyte import errors
    from halfbyte.cli.terminal import printable

    if hasattr(error, "format_message"):
        where = getattr(getattr(error, "ctx", None), "command_path", "halfbyte")
        text = f"{error.format_message()} ({where} --help)"
    elif isinstance(error, MemoryError) and not str(error):
        text = "not enough memory"
    elif isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{printable(str(error.filename))}: {error.strerror}"
    elif isinstance(error, OSError) and error.strerror and not error.filename:
        text = error.strerror  # of what is written to: stdout
    elif isinstance(
        error, (UsageError, errors.Error, OSError, ImportError, ValueError)
    ):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error} (--debug shows where)"
    return printable(" ".join(text.split("\n")))
