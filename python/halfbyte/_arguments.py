# python/halfbyte/_arguments.py
# SPDX-License-Identifier: Apache-2.0
"""What a caller gives: checked once where it comes in, shown where it is handed on."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Collection
from typing import Any, TypeVar, cast

import numpy as np

from halfbyte.errors import ArgumentError, DTypeError

__all__ = [
    "flag",
    "instance",
    "not_negative",
    "number",
    "one_of",
    "positive",
    "string",
    "takes_options_of",
    "whole",
]

_T = TypeVar("_T")
_Choice = TypeVar("_Choice", bound=str)
_Method = TypeVar("_Method", bound=Callable[..., Any])


def takes_options_of(
    target: Callable[..., Any], *, but: Collection[str] = ()
) -> Callable[[_Method], _Method]:
    """Show the keywords of `target` in place of the ``**options`` handed on to it.

    All `but` some. `help` and notebooks then name each with its default, and it is
    written down once.
    """
    parameters = inspect.signature(target).parameters.values()
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in but]

    def show(method: _Method) -> _Method:
        own = inspect.signature(method)
        first = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shown = own.replace(parameters=[*first, *keywords])
        vars(method)["__signature__"] = shown
        return method

    return show


def whole(value: Any, name: str, least: int, most: int | None = None) -> int:
    """`value` as an int within both bounds; a NumPy integer will do, a bool not."""
    if isinstance(value, bool):
        raise ArgumentError(f"{name}: expected a whole number, got {value}")
    try:
        number = operator.index(value)
    except TypeError:
        got = type(value).__name__
        raise DTypeError(f"{name}: expected a whole number, got {got}") from None
    if number < least or (most is not None and number > most):
        bounds = f"{least} or more" if most is None else f"{least} to {most}"
        raise ArgumentError(f"{name}: expected {bounds}, got {number}")
    return number


def number(value: Any, name: str) -> float:
    """`value` as a float, finite or not."""
    try:
        if isinstance(value, str | bytes):  # float() would read them
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        got = type(value).__name__
        raise DTypeError(f"{name}: expected a number, got {got}") from None


def not_negative(value: Any, name: str) -> float:
    """`value` as a finite float, 0 or more."""
    result = number(value, name)
    if not 0 <= result < math.inf:
        raise ArgumentError(f"{name}: expected a finite number, 0 or more, got {value}")
    return result


def positive(value: Any, name: str) -> float:
    """`value` as a finite float above 0."""
    if type(value) is float and 0 < value < math.inf:  # soon told, as almost always
        return value
    result = number(value, name)
    if not 0 < result < math.inf:
        raise ArgumentError(f"{name}: expected a finite number above 0, got {value}")
    return result


def instance(
    value: Any, name: str, kind: type[_T] | tuple[type[_T], ...], wanted: str
) -> _T:
    """`value` if it is of the class `kind`, or of one of them, which `wanted` names."""
    if not isinstance(value, kind):
        raise DTypeError(f"{name}: expected {wanted}, got {type(value).__name__}")
    return value


def string(value: Any, name: str) -> str:
    """`value` if it is a str."""
    return instance(value, name, str, "a str")


def flag(value: Any, name: str) -> bool:
    """`value` if it is a bool, NumPy's too; other values have no plain truth here."""
    return bool(instance(value, name, (bool, np.bool_), "a bool"))


def one_of(value: Any, name: str, choices: Collection[_Choice]) -> _Choice:
    """`value` if it is a str that is among `choices`."""
    if string(value, name) not in choices:
        known = ", ".join(choices)
        raise ArgumentError(f"{name}: expected one of {known}, got {value!r}")
    return cast(_Choice, value)
