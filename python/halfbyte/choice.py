# python/halfbyte/choice.py
# Which files of a folder or a repository are the model, told from their names alone.
# SPDX-License-Identifier: Apache-2.0
"""Which files and tensors are the model, and which names come near one not there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from halfbyte.errors import ArgumentError

__all__ = [
    "ENCODERS",
    "gguf_files",
    "is_encoder_tensor",
    "is_gguf_model",
    "listed",
    "nearest",
    "shown",
]

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_LISTED = 8

# Words in the names of tensors that text does without, as in io/safetensors.cc.
ENCODERS = {
    "vision_tower",
    "audio_tower",
    "embed_vision",
    "embed_audio",
    "multi_modal_projector",
}


def gguf_files(names: Iterable[str], wanted: str | None, where: str) -> list[str]:
    """Pick one GGUF model among file names.

    Parameters
    ----------
    names : iterable of str
        Relative paths; those that are no `is_gguf_model` do not count.
    wanted : str or None
        The path or name of the file, or a type that its name ends with or has between
        dashes and dots: ``"Q4_0"``, in any case. None takes the only model there is.
    where : str
        Begins the message of an error.

    Returns
    -------
    list of str
        The file, or all its shards, the first one first.

    Raises
    ------
    FileNotFoundError
        If there is none, or shards are missing.
    ArgumentError
        If there are several.
    """
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if is_gguf_model(name):
            shard = _SHARD.fullmatch(name)
            models.setdefault(f"{shard[1]}.gguf" if shard else name, []).append(name)
    if wanted is None:
        found = list(models)
    else:
        found = [one for one, files in models.items() if wanted in (one, *files)]
        found = found or [one for one in models if _is_called(one, wanted)]
    if not found:
        what = "no GGUF file" if wanted is None else f"no GGUF file for {wanted!r}"
        raise FileNotFoundError(f"{where}: {what}{listed(models)}")
    if len(found) > 1:
        raise ArgumentError(
            f"{where}: {len(found)} GGUF files, name one{listed(found)}"
        )
    files = models[found[0]]
    shard = _SHARD.fullmatch(files[0])
    if shard and int(shard[3]) != len(files):
        raise FileNotFoundError(
            f"{where}: {len(files)} of the {int(shard[3])} shards of {shown(found[0])}"
        )
    return files


def is_gguf_model(name: str) -> bool:
    """Whether a file is a GGUF, and no projector for images and sound (``mmproj``)."""
    return name.endswith(".gguf") and "mmproj" not in PurePosixPath(name).name.lower()


def is_encoder_tensor(name: str) -> bool:
    """Whether a tensor is of a part that sees or hears."""
    return not ENCODERS.isdisjoint(name.split("."))


def _is_called(name: str, wanted: str) -> bool:
    """Whether a file's own name is `wanted`, or has it as the name of a type."""
    own = PurePosixPath(name)
    if wanted == own.name:
        return True
    # "_" ends no type: Q4_K is not Q4_K_M. It may stand before one: E2B_q4_0-it.
    word = rf"(?:^|[^A-Za-z0-9]){re.escape(wanted)}(?:$|[^A-Za-z0-9_])"
    return re.search(word, own.stem, re.IGNORECASE) is not None


def shown(name: str) -> str:
    """A name from elsewhere on one line, whatever it is."""
    return "".join(map(_shown, name))


def _shown(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # how Python keeps a byte that is no text
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return repr(letter)[1:-1]


def listed(names: Iterable[str]) -> str:
    """`names` as the end of a message: the first few, and how many more."""
    every = sorted(names)
    if not every:
        return ""
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return f" - there are: {', '.join(map(shown, every[:_LISTED]))}{more}"


def nearest(name: str, known: Sequence[str]) -> str:
    """Names like `name` as the end of a message; all of them if none is like it."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f" - did you mean {' or '.join(map(shown, close))}?"
    return listed(known)
