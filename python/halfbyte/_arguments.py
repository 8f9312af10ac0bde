# python/halfbyte/_arguments.py
# SPDX-License-Identifier: Apache-2.0
"""Numbers and texts that a caller gave, checked once where they come in."""

from __future__ import annotations

import operator
from typing import Any

from halfbyte.errors import ArgumentError, DTypeError

__all__ = ["number", "string", "whole"]


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


def string(value: Any, name: str) -> str:
    """`value` if it is a str."""
    if not isinstance(value, str):
        raise DTypeError(f"{name}: expected a str, got {type(value).__name__}")
    return value
