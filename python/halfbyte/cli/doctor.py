# python/halfbyte/cli/doctor.py
# `halfbyte doctor`: the facts of halfbyte/doctor.py, for people and bug reports.
# SPDX-License-Identifier: Apache-2.0
"""This machine and this installation."""

from __future__ import annotations

from typing import Any

from halfbyte._sizes import size_text
from halfbyte.cli import options, terminal

__all__ = ["EXAMPLES", "doctor"]

EXAMPLES = """\b
Examples:
  halfbyte doctor
  halfbyte doctor --json > report.json
"""


def doctor(
    json: options.Json = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Show what this machine and this installation have, to paste in a bug report."""
    from halfbyte.doctor import facts

    found = facts()
    if json:
        terminal.document(found)
        return
    terminal.table(("fact", "value"), _rows(found), "ll")


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Flatten the facts to one line each."""
    rows = []
    for section, values in found.items():
        if not isinstance(values, dict):
            continue
        for name, value in values.items():
            shown = _shown(section, value)
            rows.append((f"{section}.{name}", terminal.printable(shown)))
    return rows


def _shown(section: str, value: object) -> str:
    """Show a fact in words."""
    if value is None:
        return "-"
    if section == "memory" and isinstance(value, int):
        return size_text(value)
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "-"
    return str(value)
