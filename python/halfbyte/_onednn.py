# python/halfbyte/_onednn.py
# Finds oneDNN's library and turns it on: an installed wheel's, the system's, or none.
# SPDX-License-Identifier: Apache-2.0
"""oneDNN, if it is there and asked for.

Importing this opens nothing and looks for nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from halfbyte import _core
from halfbyte.errors import UnsupportedError

__all__ = ["Status", "open_if_asked", "status", "use_onednn"]

VARIABLE = "HALFBYTE_ONEDNN_LIBRARY"

_WHEEL = "onednn-cpu-gomp"
# As upstream calls it, and as Debian 13 does.
_SONAMES = ("libdnnl.so.3", "libdnnl.so.3.6")

_heard = False  # whether the environment has had its say


class Status(NamedTuple):
    """What there is of oneDNN."""

    version: str | None
    path: str | None
    """Of the library; None, as the version is, if none can be opened."""
    used: bool
    reason: str
    """Why it is used, or not used, or not there."""


def _asked() -> str:
    """Return the library that the environment names; "auto": any; "off": none."""
    return os.environ.get(VARIABLE, "")


def _candidates() -> Iterator[str]:
    """Yield paths, and names for the loader, in the order of preference."""
    if _asked() not in ("", "auto"):
        yield _asked()
        return
    from importlib import metadata  # too slow for `import halfbyte`

    try:
        files = metadata.distribution(_WHEEL).files or ()
    except metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.name in _SONAMES:
            yield str(Path(file.locate()).resolve())
    yield from _SONAMES


def _open() -> None:
    """Open the library, or raise an `UnsupportedError` that says why not."""
    if _core.onednn() is not None:
        return
    if _asked() == "off":
        raise UnsupportedError(f"oneDNN: {VARIABLE}=off")
    why: dict[str, None] = {}  # in order, each once
    for candidate in _candidates():
        try:
            _core.open_onednn(os.fsencode(candidate))
        except UnsupportedError as error:
            why[str(error).removeprefix("oneDNN: ")] = None
        else:
            return
    raise UnsupportedError("oneDNN: " + "; ".join(why))


def use_onednn(on: bool = True) -> None:
    """Multiply by F32 and BF16 weights with oneDNN from now on, in the whole process.

    That concerns prompts: products with 64 rows of `x` or more, or 32 if the weight is
    BF16. They are faster, and their sums run in another order: a row of a batch is no
    longer the same bits as that row alone. A product with BF16 weights also rounds `x`
    to bfloat16, unless ``activations="f32"`` forbids it; it takes a CPU that multiplies
    bfloat16 (AVX512_BF16 or AMX). Any number of threads still gives the same bits.

    Parameters
    ----------
    on : bool
        False goes back to halfbyte's own kernels.

    Raises
    ------
    UnsupportedError
        If the library cannot be opened, or this build was made without its headers. The
        message says why; nothing has changed then.

    Notes
    -----
    The library is the one of the package ``onednn-cpu-gomp``, which the extra
    ``onednn`` installs, or the system's. ``HALFBYTE_ONEDNN_LIBRARY`` may name another
    one, and turns it on without this call; ``auto`` turns on whichever there is, and
    ``off`` forbids it.
    """
    global _heard
    if on:
        _open()
    _heard = True
    _core.use_onednn(on)


def open_if_asked() -> None:
    """Turn it on if the environment asks for it: once, at the first use.

    A library that was named and cannot be used is worth a warning. ``auto`` takes what
    there is.
    """
    global _heard
    if _heard:
        return
    _heard = True
    asked = _asked()
    if asked in ("", "off"):
        return
    try:
        use_onednn()
    except UnsupportedError as error:
        if asked != "auto":
            message = f"{VARIABLE}: {error}; going on without it"
            warnings.warn(message, RuntimeWarning, stacklevel=3)


def status() -> Status:
    """Look for the library, open it, and say what there is.

    Returns
    -------
    Status
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is in `reason`
        open_if_asked()
    try:
        _open()
    except UnsupportedError as error:
        return Status(None, None, False, str(error).removeprefix("oneDNN: "))
    found = _core.onednn()
    assert found is not None
    version, path, used = found
    if used:
        reason = f"{VARIABLE}={_asked()}" if _asked() else "halfbyte.use_onednn"
    else:
        reason = f"off; halfbyte.use_onednn() or {VARIABLE}=auto turns it on"
    return Status(version, path, used, reason)
