# python/halfbyte/errors.py
# SPDX-License-Identifier: Apache-2.0
"""What goes wrong, and where.

Every exception of the library derives from `Error` and from the built-in class that an
ordinary ``except`` clause would name. Operating-system trouble is plain `OSError`.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ArgumentError",
    "ContextOverflowError",
    "DTypeError",
    "Error",
    "FileChangedError",
    "FormatError",
    "LimitError",
    "MissingExtraError",
    "ModelError",
    "NumericalError",
    "OutOfMemoryError",
    "ShapeError",
    "TruncatedFileError",
    "UnsupportedError",
]

_FIELDS = (
    "path",
    "kind",
    "code",
    "offset",
    "tensor",
    "key",
    "index",
    "found",
    "expected",
    "requested_bytes",
)


class Error(Exception):
    """Base class of the library's errors.

    Attributes
    ----------
    path : str or None
        The file, as it was given.
    kind : str or None
        What was being read: ``"gguf"``, ``"safetensors"``, ``"model"``, ...
    code : str or None
        A stable upper-case name of the rule that was broken.
    offset : int or None
        Absolute byte offset of the field in question.
    tensor, key : str or None
        The tensor or key in question.
    index : int or None
        Its position in the file.
    found, expected : str or None
        The value, and the rule.
    requested_bytes : int
        Of an `OutOfMemoryError`: how much was asked for.
    """

    path: str | None
    kind: str | None
    code: str | None
    offset: int | None
    tensor: str | None
    key: str | None
    index: int | None
    found: str | None
    expected: str | None
    requested_bytes: int

    def __init__(self, message: str = "", **fields: Any) -> None:
        super().__init__(message)
        for name in _FIELDS:
            setattr(self, name, fields.get(name))
        self.requested_bytes = self.requested_bytes or 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the fields."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return (_rebuild, (type(self), self.args, self.__dict__ | fields))


def _rebuild(cls: type[Error], args: tuple[Any, ...], state: dict[str, Any]) -> Error:
    error = cls(*args)
    for name, value in state.items():  # ImportError keeps `path` outside of __dict__
        setattr(error, name, value)
    return error


class FormatError(Error, ValueError):
    """The bytes of a file break its format's rules."""


class TruncatedFileError(FormatError):
    """A file ends before what it declares."""


class LimitError(FormatError):
    """Valid, but above a safety limit."""


class UnsupportedError(Error, ValueError):
    """Well formed, but a version, type or architecture that is not handled."""


class ModelError(Error, ValueError):
    """Well formed, but not a model that can run."""


class FileChangedError(Error, OSError):
    """A file was truncated or rewritten in place while it was in use."""


class ShapeError(Error, ValueError):
    """Shapes, strides or overlap of arrays do not fit."""


class DTypeError(Error, TypeError):
    """An argument is of a type that does not fit, or an array's elements are."""


class ArgumentError(Error, ValueError):
    """An argument is outside its range."""


class ContextOverflowError(Error, ValueError):
    """More tokens than the context holds."""


class NumericalError(Error, ArithmeticError):
    """A value is not finite where it has to be."""


class MissingExtraError(Error, ImportError):
    """The packages of an extra are not installed."""


class OutOfMemoryError(Error, MemoryError):
    """Memory is or would be too small; see ``requested_bytes``."""
