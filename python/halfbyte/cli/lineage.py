# python/halfbyte/cli/lineage.py
# `halfbyte lineage`: whether weights were trained for 4 bits.
# SPDX-License-Identifier: Apache-2.0
"""Whether a file's weights were trained for 4 bits."""

from __future__ import annotations

import typer

from halfbyte.cli import errors, models, options, terminal

__all__ = ["EXAMPLES", "lineage"]

SCHEMA = 1

EXAMPLES = """\b
Examples:
  halfbyte lineage gemma-4-E2B-it-qat-q4_0.gguf
  halfbyte lineage gemma-4-E2B-it-qat-q4_0-unquantized/ --json
  halfbyte lineage model.gguf > /dev/null && echo "trained for 4 bits"
"""

# Field, what it counts, and what it is of trained weights and of others.
_ROWS = (
    ("lattice", "blocks on a 4-bit lattice", "1; others: 0"),
    ("finer", "of those, step is no float16 number", "0.02 to 0.1; packed before: 0"),
    ("minus_eight", "blocks with a level of -8", "1, packed as usual; others: 1"),
    ("fours", "levels of +-4 for each of +-3 and +-5", "0, packed as usual; others: 1"),
)


def lineage(
    model: options.ModelArgument = None,
    json: options.Json = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Say whether weights were trained for 4 bits, from the weights alone.

    Ends with 0 if they were, with 3 if not, and with 6 if they do not say.
    """
    from halfbyte.lineage import Verdict
    from halfbyte.lineage import lineage as judge

    found = judge(models.open_file(models.find(model)))
    if json:
        terminal.document({"schema": SCHEMA} | found.to_dict())
    else:
        terminal.line(f"{found.verdict.value}: {found.reason}")
        terminal.line(f"{len(found.tensors)} matrices, at most 32 rows of each:")
        for field, what, expected in _ROWS:
            between = found.range(field)
            if between is None:
                continue
            low, high = (f"{share:.3f}" for share in between)
            terminal.line(f"  {what:<38} {low} to {high}   trained: {expected}")
    code = {Verdict.OTHER: errors.MISMATCH, Verdict.UNKNOWN: errors.UNDECIDED}
    if found.verdict in code:
        raise typer.Exit(code[found.verdict])
