# benchmarks/synth/saving.py
# SPDX-License-Identifier: Apache-2.0
"""Files that are there when they are complete, and not before."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from halfbyte._sizes import size_text

__all__ = ["Contents", "Progress", "save_directory", "save_file"]

Progress = Callable[[int, int], None]  # bytes written, bytes in all


class Contents(NamedTuple):
    """What a file will hold, and how many bytes that is."""

    chunks: Iterable[bytes | memoryview]
    total: int


def save_file(
    path: Path, contents: Contents, *, force: bool, progress: Progress | None
) -> None:
    """Write to a temporary name beside `path` and rename, or leave nothing.

    Raises
    ------
    OSError
        If the file exists and is not to be replaced, or the disk would be full.
    """
    if path.is_dir() or (path.exists() and not force):
        raise FileExistsError(errno.EEXIST, "exists already", str(path))
    _require_room(path.parent, contents.total)
    part = _beside(path)
    try:
        _write(part, contents, progress)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save_directory(
    path: Path,
    files: Mapping[str, Contents],
    *,
    force: bool,
    progress: Progress | None,
) -> None:
    """Write a directory beside `path` and rename it, or leave nothing.

    If there is one, its files of these names are replaced, in the order of `files`, and
    others are left alone. Progress is that of each file.

    Raises
    ------
    OSError
        If the directory exists and is not to be written to, or the disk would be full.
    """
    if path.exists() and not (force and path.is_dir()):
        raise FileExistsError(errno.EEXIST, "exists already", str(path))
    _require_room(path.parent, sum(contents.total for contents in files.values()))
    part = _beside(path)
    part.mkdir()
    try:
        for name, contents in files.items():
            _write(part / name, contents, progress)
        if path.exists():
            for name in files:
                (part / name).replace(path / name)
        else:
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _require_room(folder: Path, total: int) -> None:
    if (free := shutil.disk_usage(folder).free) < total:
        message = f"{size_text(total)} needed, {size_text(free)} free"
        raise OSError(errno.ENOSPC, message, str(folder))


def _write(path: Path, contents: Contents, progress: Progress | None) -> None:
    with path.open("wb") as file:
        for chunk in contents.chunks:
            file.write(chunk)
            if progress is not None:
                progress(file.tell(), contents.total)
