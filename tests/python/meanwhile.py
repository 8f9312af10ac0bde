# tests/python/meanwhile.py
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a session's core, to come between two steps of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Meanwhile:
    """A core that does something before each call of its methods, or of those named."""

    def __init__(self, core: Any, act: Callable[[], Any], *names: str) -> None:
        self._core, self._act, self._names = core, act, names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._core, name)
        if not callable(found) or (self._names and name not in self._names):
            return found

        def call(*args: Any) -> Any:
            self._act()
            return found(*args)

        return call
