# python/halfbyte/files.py
# SPDX-License-Identifier: Apache-2.0
"""Model files as they are: tensors, metadata, tokenizers. Nothing here is executed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from halfbyte import _core
from halfbyte._arguments import flag, instance, string, whole
from halfbyte._arrays import as_ids
from halfbyte.errors import ArgumentError, DTypeError, UnsupportedError
from halfbyte.formats import Weight

__all__ = [
    "File",
    "StreamDecoder",
    "TensorInfo",
    "Tokenizer",
    "open_file",
    "open_gguf",
    "open_safetensors",
    "whole_of",
]

PathLike = str | os.PathLike[str]
Load = Literal["mmap", "copy", "auto"]


def checked_limits(limits: Mapping[str, int] | None) -> dict[str, int]:
    """`limits` of `open_gguf` as numbers; the names are checked where they are known."""
    if limits is None:
        return {}
    if not isinstance(limits, Mapping):
        got = type(limits).__name__
        raise DTypeError(f"limits: expected a mapping of names to numbers, got {got}")
    return {
        string(name, "limits"): int(value)
        if isinstance(value, bool)
        else whole(value, f"limits[{name!r}]", 0, 2**64 - 1)
        for name, value in limits.items()
    }


class TensorInfo(NamedTuple):
    """One tensor of a file.

    Attributes
    ----------
    name : str
    type : str
        As the file calls it: ``"Q4_0"``, ``"BF16"``.
    shape : tuple of int
        Rows first, the contiguous dimension last.
    bytes : int
    offset : int
        Of the first byte, from the start of the file.
    shard : int
        Index of the file in ``File.paths``.
    format : str or None
        One of `halfbyte.formats`; None if the type cannot be decoded.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    offset: int
    shard: int
    format: str | None


@final
class File:
    """An opened model file, or all shards of one. Made by `open_gguf` and its like.

    The tensors stay in the file until they are used; arrays taken from them keep it
    mapped. It is a context manager, which closes it: see `close`.
    """

    def __init__(self, core: _core.File) -> None:
        self._held: _core.File | None = core
        self._paths = core.paths
        self._tensors = [TensorInfo(*entry) for entry in core.tensors]
        self._index = {tensor.name: i for i, tensor in enumerate(self._tensors)}

    def _opened(self) -> _core.File:
        if self._held is None:
            raise ArgumentError(
                f"{self._paths[0]}: the file was closed: open it again, or use it before "
                "close() and inside of its with block"
            )
        return self._held

    def close(self) -> None:
        """Let go of the files; what is asked for afterwards is an `ArgumentError`.

        The list of tensors stays. Arrays and weights taken before stay valid: the last
        of them takes the mapping, or the copy, with it. A second call does nothing.
        """
        self._held = None

    def __enter__(self) -> File:
        """Return the file itself."""
        self._opened()
        return self

    def __exit__(self, *exc: object) -> None:
        """Close it."""
        self.close()

    @property
    def tensors(self) -> list[TensorInfo]:
        """The tensors, in file order."""
        return list(self._tensors)

    @property
    def metadata(self) -> dict[str, Any]:
        """Keys and values, in file order. Text that is not UTF-8 comes as bytes."""
        return self._opened().metadata

    @property
    def rendered_metadata(self) -> list[tuple[str, str, str]]:
        """Key, type and value as one printable line; long arrays are cut short."""
        return self._opened().rendered_metadata

    @property
    def warnings(self) -> list[str]:
        """What is odd about the file, but harmless."""
        return self._opened().warnings

    @property
    def paths(self) -> list[str]:
        """The files that were opened."""
        return list(self._paths)

    @property
    def file_bytes(self) -> int:
        """Size of all files together."""
        return self._opened().file_bytes

    def tensor_bytes(self, name: str) -> NDArray[np.uint8]:
        """Bytes of a tensor, where the file maps them.

        Parameters
        ----------
        name : str

        Returns
        -------
        uint8 array, read-only

        Raises
        ------
        KeyError
            If there is no such tensor.
        FileChangedError
            If the file was changed in place since it was opened.
        """
        return self._opened().tensor_bytes(self._index[name])

    def read(
        self, name: str, begin: int, out: NDArray[np.uint8], *, once: bool = False
    ) -> None:
        """Copy bytes of a tensor by reading the file, not through the mapping.

        Parameters
        ----------
        name : str
        begin : int
            The first byte, counted from the start of the tensor.
        out : uint8 array, contiguous
            Filled.
        once : bool
            Whether nobody is going to read them again: of such bytes the system keeps no
            copy in memory that it had not before. Linux 6.14 and later can.

        Raises
        ------
        KeyError
            If there is no such tensor.
        ArgumentError, DTypeError, ShapeError
            If `begin` is no whole number from 0, or `out` cannot be written, or is longer
            than what is left of the tensor.
        FileChangedError
            If the file was changed or cut off since it was opened.
        """
        first = min(whole(begin, "begin", 0), 2**64 - 1)  # past the end of any
        instance(out, "out", np.ndarray, "a uint8 array")
        self._opened().read(self._index[name], first, out, flag(once, "once"))

    def weight(self, name: str) -> Weight:
        """Open a matrix as a weight, without copying it.

        Parameters
        ----------
        name : str

        Returns
        -------
        Weight, shape (N, K)
            Leading dimensions of a tensor of higher rank count as rows.

        Raises
        ------
        KeyError
            If there is no such tensor.
        UnsupportedError
            If its type cannot be decoded.
        FileChangedError
            If the file was changed in place since it was opened.
        """
        tensor = self._tensors[self._index[name]]
        if tensor.format is None:
            raise UnsupportedError(
                f"tensor {name!r}: type {tensor.type} cannot be decoded",
                tensor=name,
                found=tensor.type,
            )
        k = tensor.shape[-1] if tensor.shape else 1
        n = int(np.prod(tensor.shape[:-1], dtype=np.int64))
        return Weight(self.tensor_bytes(name), tensor.format, (n, k))

    def __repr__(self) -> str:
        """Name the first file and count its tensors."""
        return f"File({self._paths[0]!r}, {len(self._tensors)} tensors)"


def open_gguf(
    path: PathLike, *, load: Load = "mmap", limits: Mapping[str, int] | None = None
) -> File:
    """Open a GGUF file, version 2 or 3. All shards of a split file, given any of them.

    Parameters
    ----------
    path : str or path-like
    load : {"mmap", "copy", "auto"}
        Whether bytes come from the file when they are touched, or are all read now, so
        that nothing that becomes of the file matters any more. ``"auto"`` copies from
        network and FUSE file systems, where another machine may cut a file short under
        a mapping, which ends the process.
    limits : mapping, optional
        What a file may ask for, where the default is too tight for one that you trust:
        ``header_bytes``, ``tensors``, ``shards``; of GGUF also ``keys``,
        ``string_bytes``, ``array_elements``, ``alignment``, and ``strict``, which
        refuses bytes after the last tensor; of safetensors ``rank``, and
        ``strict_paths``, which refuses links out of the directory.

    Returns
    -------
    File

    Raises
    ------
    FormatError
        If the file breaks a rule; ``code``, ``offset``, ``found`` and ``expected`` say
        which, where and how. `TruncatedFileError` and `LimitError` are kinds of it.
    UnsupportedError
        If it is a GGUF file of a version or byte order that is not handled, or a pipe,
        a socket or a device.
    ArgumentError, DTypeError
        If `load` is none of those, or a limit has no such name or is no number.
    OutOfMemoryError
        If it is to be copied and is larger than the memory there is.
    OSError
        If it cannot be opened.
    """
    string(load, "load")
    return File(_core.open_gguf(os.fsencode(path), load, checked_limits(limits)))


def open_safetensors(
    path: PathLike, *, load: Load = "mmap", limits: Mapping[str, int] | None = None
) -> File:
    """Open a safetensors file, an index of shards, or the directory they lie in.

    Parameters
    ----------
    path : str or path-like
    load, limits
        As for `open_gguf`.

    Returns
    -------
    File

    Raises
    ------
    FormatError
        If a file or the index breaks a rule, as for `open_gguf`.
    UnsupportedError
        If it is a pipe, a socket or a device.
    ArgumentError, DTypeError, OutOfMemoryError
        As for `open_gguf`.
    OSError
        If it cannot be opened.
    """
    string(load, "load")
    return File(_core.open_safetensors(os.fsencode(path), load, checked_limits(limits)))


def open_file(
    path: PathLike, *, load: Load = "mmap", limits: Mapping[str, int] | None = None
) -> File:
    """Open a model file of either kind: told by content where it tells, else by name.

    Parameters
    ----------
    path : str or path-like
        What `open_gguf` or `open_safetensors` takes.
    load, limits
        As for `open_gguf`.

    Returns
    -------
    File

    Raises
    ------
    FormatError, UnsupportedError, ArgumentError, DTypeError, OutOfMemoryError, OSError
        As those do.
    """
    path = Path(os.fsdecode(path))
    if path.is_dir():
        return open_safetensors(path, load=load, limits=limits)
    is_gguf = True  # or nothing that can be read: the reader says so without waiting
    if path.is_file():
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    if not is_gguf and path.name.endswith((".safetensors", ".json")):
        return open_safetensors(path, load=load, limits=limits)
    return open_gguf(path, load=load, limits=limits)


def whole_of(path: Path) -> Path:
    """Find what has all tensors of the model that a safetensors file belongs to.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Path
        The index beside it that names it as a shard, or the file itself.

    Raises
    ------
    FormatError, OSError
        If the index cannot be read.
    """
    return Path(_core.whole_of(os.fsencode(path)))


class StreamDecoder:
    """Turns ids into text one by one, whole characters only. See `Tokenizer`."""

    def __init__(self, core: _core.StreamDecoder) -> None:
        self._core = core

    def push(self, id: int) -> str:
        """Text that `id` completes; often all of it, sometimes nothing yet.

        Parameters
        ----------
        id : int

        Returns
        -------
        str

        Raises
        ------
        ArgumentError, DTypeError
            If the id is not in the vocabulary, or no whole number.
        """
        try:
            return self._core.push(id)
        except TypeError:
            return self._core.push(_refused(id))

    def finish(self) -> str:
        """Return what was held back, incomplete bytes as U+FFFD, and start anew.

        Returns
        -------
        str
        """
        return self._core.finish()


class Tokenizer:
    """Text to token ids and back.

    Made by `from_gguf` or `from_json`, or taken from a model. Immutable; any number of
    threads may use one.
    """

    def __init__(self, core: _core.Tokenizer) -> None:
        self._core = core

    @classmethod
    def from_gguf(cls, path: PathLike) -> Tokenizer:
        """Read the tokenizer of a GGUF file.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        Tokenizer

        Raises
        ------
        FormatError, ModelError, OSError
            If the file or its vocabulary is not sound.
        UnsupportedError
            If the vocabulary is of a kind that is not handled.
        """
        return cls(_core.Tokenizer.from_gguf(os.fsencode(path)))

    @classmethod
    def from_json(cls, path: PathLike) -> Tokenizer:
        """Read a tokenizer.json in the Hugging Face layout.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        Tokenizer

        Raises
        ------
        FormatError, ModelError, OSError
            If the file or its vocabulary is not sound.
        UnsupportedError
            If the vocabulary is of a kind that is not handled.
        """
        return cls(_core.Tokenizer.from_json(os.fsencode(path)))

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return self._core.num_tokens

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins a text."""
        return None if self._core.bos < 0 else self._core.bos

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends a text."""
        return None if self._core.eos < 0 else self._core.eos

    @property
    def pad_id(self) -> int | None:
        """Id of the token that fills up short rows."""
        return None if self._core.pad < 0 else self._core.pad

    @property
    def chat_template(self) -> str:
        """The template stored with the vocabulary: data, never rendered."""
        template = self._core.chat_template
        return template if isinstance(template, str) else template.decode("latin-1")

    def encode(
        self, text: str | bytes, *, bos: bool = True, special: bool = False
    ) -> list[int]:
        """Split text into tokens.

        Parameters
        ----------
        text : str or bytes
            Bytes need not be UTF-8, and neither do the lone surrogates of a str.
        bos : bool
            Begin with the begin-of-text token, if the vocabulary has one.
        special : bool
            Whether spellings of control tokens become those tokens. If not, they are
            ordinary text.

        Returns
        -------
        list of int

        Raises
        ------
        DTypeError
            If `text` is neither.
        """
        if not isinstance(text, str | bytes):
            got = type(text).__name__
            raise DTypeError(f"text: expected a str or bytes, got {got}")
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        ids = self._core.encode(raw, flag(special, "special"))
        return (
            [self._core.bos, *ids] if flag(bos, "bos") and self._core.bos >= 0 else ids
        )

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Join tokens to text.

        Parameters
        ----------
        ids : sequence of int
        special : bool
            Whether control tokens show as their spelling, or not at all.

        Returns
        -------
        str
            Bytes that are not UTF-8 become U+FFFD.

        Raises
        ------
        ArgumentError, DTypeError
            If they are not integers of one dimension, or not in the vocabulary.
        """
        known = as_ids(ids, "ids", self._core.num_tokens).tolist()
        return self._core.decode(known, flag(special, "special")).decode(
            "utf-8", "replace"
        )

    def stream_decoder(self, *, special: bool = False) -> StreamDecoder:
        """Return a decoder for tokens as they come.

        Parameters
        ----------
        special : bool
            As for `decode`.

        Returns
        -------
        StreamDecoder
        """
        return StreamDecoder(_core.StreamDecoder(self._core, flag(special, "special")))

    def token_to_piece(self, id: int) -> str:
        """Spelling of a token in the vocabulary.

        Parameters
        ----------
        id : int

        Returns
        -------
        str

        Raises
        ------
        ArgumentError, DTypeError
            If the id is not in the vocabulary, or no whole number.
        """
        known = whole(id, "id", 0, self._core.num_tokens - 1)
        return self._core.piece(known).decode("utf-8", "replace")

    def is_control(self, id: int) -> bool:
        """Whether a token is a marker rather than text."""
        try:
            return self._core.is_control(id)
        except TypeError:
            return self._core.is_control(_refused(id))

    def is_end(self, id: int) -> bool:
        """Whether generation ends with this token."""
        try:
            return self._core.is_eog(id)
        except TypeError:
            return self._core.is_eog(_refused(id))

    def __copy__(self) -> Tokenizer:
        """Return the tokenizer itself: nothing in it changes."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokenizer:
        """Do as `copy.copy` does."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be pickled, and say what to do."""
        raise UnsupportedError(
            "a Tokenizer is not pickled: make it of its file in each process"
        )

    def __contains__(self, text: str) -> bool:
        """Whether a token is spelled `text`."""
        try:
            return self._core.find(text) >= 0
        except TypeError:
            string(text, "text")
            return False  # no token is spelled with a lone surrogate


def _refused(id: Any) -> int:
    """Say in one line what is wrong. Checked before the core, it would cost each token."""
    return whole(id, "id", 0, 2**31 - 1)
