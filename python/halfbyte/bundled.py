# python/halfbyte/bundled.py
# The models that lie in the package itself.
# SPDX-License-Identifier: Apache-2.0
"""Models that an installation of halfbyte has, with no download."""

from __future__ import annotations

import os
from pathlib import Path

from halfbyte.errors import ArgumentError

__all__ = ["MODELS", "locate", "shadowed"]

# Name to what it is in `_DATA`. `examples/qat` has the recipe and what it was made of.
MODELS = {
    "tiny": "tiny-q4_0.gguf",
    "tiny-mobile": "tiny-mobile",
    "tiny-drafter": "tiny-drafter",
}
_DATA = Path(__file__).parent / "data"


def locate(name: str) -> Path:
    """Path of a model of the package.

    Parameters
    ----------
    name : str
        A key of `MODELS`.

    Returns
    -------
    Path
        A GGUF file, or a directory with config.json and safetensors.

    Raises
    ------
    ArgumentError
        If there is no such model.
    FileNotFoundError
        If the installation lacks it.
    """
    if name not in MODELS:
        known = " or ".join(f"halfbyte:{known}" for known in MODELS)
        raise ArgumentError(f"halfbyte:{name}: expected {known}")
    path = _DATA / MODELS[name]
    if not path.exists():
        raise FileNotFoundError(
            f"{name}: {path} is not there, but belongs to halfbyte - install it again"
        )
    return path


def shadowed(name: str | os.PathLike[str]) -> str | None:
    """Say that a path hides a model of the package.

    Parameters
    ----------
    name : str or path-like
        What was asked for.

    Returns
    -------
    str or None
        What to tell the user; None if `name` has one meaning only.
    """
    if not isinstance(name, str) or name not in MODELS or not os.path.lexists(name):
        return None
    return (
        f"{name} is a file or folder here and is taken; halfbyte:{name} is the model "
        f"of the package, ./{name} says that the path is meant"
    )
