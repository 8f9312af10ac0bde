# python/halfbyte/lineage/identity.py
# SPDX-License-Identifier: Apache-2.0
"""Which published file a file is, told from its bytes.

A SHA-256 is proof. A size alone is a hint: publishers replace metadata, which moves it by
a kilobyte or two. The table of published files is ``data/known_files.json``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from halfbyte.files import File

__all__ = ["Identity", "KnownFile", "identify", "tensor_hashes", "tensors_digest"]

Progress = Callable[[int, int], None]

_TABLE = Path(__file__).parents[1] / "data" / "known_files.json"
_PIECE = 4 << 20  # bytes hashed at a time


@dataclass(frozen=True)
class KnownFile:
    """A published file."""

    kind: str
    """``"official"``: trained for 4 bits or for mobile, by Google; ``"encoder"``: of
    images, beside one of those; ``"repack"``: the same weights, packed by somebody else;
    ``"ptq"``: weights that were not trained for it."""
    of: str
    """Repository or publisher."""
    name: str
    bytes: int
    sha256: str | None
    """None: only the size is known."""


@dataclass(frozen=True)
class Identity:
    """What the size of a file, and its hash where it was computed, say of it."""

    bytes: int
    sha256: str | None
    """None where it was not computed: no published file has this size."""
    known: KnownFile | None
    """The published file of this hash."""
    as_large_as: KnownFile | None
    """A published file of this size, if no hash tells more."""


@cache
def _known_files() -> tuple[KnownFile, ...]:
    entries = json.loads(_TABLE.read_text(encoding="utf-8"))
    return tuple(KnownFile(**entry) for entry in entries)


def identify(
    paths: Sequence[str], *, hash: bool = False, progress: Progress | None = None
) -> Identity:
    """Compare a file with those that were published.

    Parameters
    ----------
    paths : sequence of str
        The file. Shards are known by none of their sizes: of several, nothing is hashed.
    hash : bool
        Compute the hash also where no published file has that size.
    progress : callable, optional
        Called with the bytes hashed and those of the file.

    Returns
    -------
    Identity

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    size = sum(Path(path).stat().st_size for path in paths)
    if len(paths) != 1:
        return Identity(size, None, None, None)
    alike = next((one for one in _known_files() if one.bytes == size), None)
    if not hash and (alike is None or alike.sha256 is None):
        return Identity(size, None, None, alike)
    digest = _sha256(paths[0], size, progress)
    known = next((one for one in _known_files() if one.sha256 == digest), None)
    return Identity(size, digest, known, None if known else alike)


def _sha256(path: str, size: int, progress: Progress | None) -> str:
    digest, piece, done = hashlib.sha256(), memoryview(bytearray(_PIECE)), 0
    with Path(path).open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
            done += count
            if progress is not None:
                progress(done, size)
    return digest.hexdigest()


def tensor_hashes(
    file: File, *, progress: Progress | None = None
) -> Iterator[tuple[str, str]]:
    """Hash each tensor by itself, in the order of the names.

    Parameters
    ----------
    file : File
    progress : callable, optional
        Called with the bytes hashed and those of all tensors.

    Yields
    ------
    (str, str)
        Name and SHA-256 of the data, in hexadecimal digits.
    """
    tensors = sorted(file.tensors, key=lambda tensor: tensor.name)
    total, done = sum(tensor.bytes for tensor in tensors), 0
    for tensor in tensors:
        digest, data = hashlib.sha256(), file.tensor_bytes(tensor.name)
        for start in range(0, data.size, _PIECE):
            digest.update(data[start : start + _PIECE].data)
            if progress is not None:
                progress(min(done + start + _PIECE, total), total)
        done += tensor.bytes
        yield tensor.name, digest.hexdigest()


def tensors_digest(hashes: Sequence[tuple[str, str]]) -> str:
    """One hash for all tensors, which new metadata or another order do not change.

    Parameters
    ----------
    hashes : sequence of (str, str)
        As `tensor_hashes` gives them.

    Returns
    -------
    str
        SHA-256 of the lines ``<hash>  <name>``, each with a line break: what
        ``sha256sum`` prints for files of those names.
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in hashes)
    return hashlib.sha256(lines.encode()).hexdigest()
