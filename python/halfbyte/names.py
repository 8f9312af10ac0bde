# python/halfbyte/names.py
# What a model may be called, and where each kind of name leads.
# SPDX-License-Identifier: Apache-2.0
"""From the name of a model to its file or folder."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

from halfbyte import bundled, hub, stores
from halfbyte.errors import ArgumentError

__all__ = ["is_path", "resolve"]

_PREFIXES = ("hf", "ollama", "lmstudio", "halfbyte")
# What a browser shows.
_ADDRESS = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repository>[^/?#]+/[^/?#]+)"
)
# A file that is not there, rather than a repository that is called like one.
_FILES = (".gguf", ".safetensors", ".json")


def resolve(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Find a model, and fetch it if it is one of the Hugging Face Hub.

    Parameters
    ----------
    name : str or path-like
        A path; or ``tiny`` and ``tiny-mobile``, the models of this package, and
        ``tiny-drafter``, with ``halfbyte:`` in front where a file or folder is called
        so too;
        ``owner/repo``, ``owner/repo@revision``, ``owner/repo:Q4_0``,
        ``owner/repo/file.gguf`` on the Hugging Face Hub, with ``hf:`` in front for the
        same reason; ``ollama:model:tag``; ``lmstudio:publisher/model``.
    revision : str, optional
        Branch, tag or commit of a repository.
    local_files_only : bool
        Take a repository from the cache, and ask no server.
    progress : callable, optional
        Called with the bytes fetched and their total.

    Returns
    -------
    Path
        Where it lies. Of a name that is a path, that path, whether there is something
        or not.

    Raises
    ------
    ArgumentError
        If the name cannot be read, says less or more than it should, or is an address.
    FileNotFoundError, PermissionError, ConnectionError, FormatError, ImportError
        As `bundled.locate`, `hub.fetch`, `stores.ollama` and `stores.lmstudio` do.

    Warns
    -----
    UserWarning
        If a path here hides a model of the package.
    """
    text = os.fsdecode(name)
    if not text:
        raise FileNotFoundError("the name of the model is empty")
    if (address := _ADDRESS.match(text)) is not None:
        raise ArgumentError(
            f"{text}: expected a name, found an address - of this repository it is "
            f"{address['repository']}"
        )
    if is_path(name):
        _no_revision(text, revision)
        if (hint := bundled.shadowed(name)) is not None:
            warnings.warn(hint, stacklevel=3)
        return Path(text)
    prefix, _, rest = text.partition(":")
    if prefix == "halfbyte" or text in bundled.MODELS:
        _no_revision(text, revision)
        return bundled.locate(text.removeprefix("halfbyte:"))
    if prefix == "ollama":
        _no_revision(text, revision)
        return stores.ollama(rest)
    if prefix == "lmstudio":
        _no_revision(text, revision)
        return stores.lmstudio(rest)
    repository = hub.parse(text.removeprefix("hf:"))
    if repository is None:
        raise ArgumentError(
            f"{text}: expected hf:OWNER/REPO, then @REVISION, then :TYPE, all but the "
            "first optional"
        )
    if revision is not None:
        if repository.revision not in (None, revision):
            raise ArgumentError(f"revision: {text} has one, and it is not {revision!r}")
        repository = repository._replace(revision=revision)
    return hub.fetch(repository, local_files_only=local_files_only, progress=progress)


def is_path(name: str | os.PathLike[str]) -> bool:
    """Whether `name` is that of a file or folder, there or not.

    Parameters
    ----------
    name : str or path-like
        Anything that is no str is a path.

    Returns
    -------
    bool
    """
    if not isinstance(name, str) or os.path.lexists(name):
        return True
    if name in bundled.MODELS:
        return False
    if name.partition(":")[0] in _PREFIXES and ":" in name:
        return False
    repository = hub.parse(name)
    if repository is None or os.path.lexists(name.partition("/")[0]):
        return True  # models/gemma.gguf, mistyped, is no question for a server
    return repository.wanted is None and name.endswith(_FILES)


def _no_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise ArgumentError(
            f"revision: {name} is no repository of the Hugging Face Hub"
        )
