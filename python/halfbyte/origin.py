# python/halfbyte/origin.py
# SPDX-License-Identifier: Apache-2.0
"""What a file that halfbyte has written says of how its weights were made."""

from __future__ import annotations

__all__ = ["KEY", "claim"]

KEY = "halfbyte.written_by"


def claim(command: str, format: str, how: str | None = None) -> dict[str, str]:
    """Return the metadata, of GGUF and safetensors alike.

    Parameters
    ----------
    command : str
        ``"convert"`` or ``"qat.export"``.
    format : str
        Of the matrices.
    how : str, optional
        What made them, where it was not only rounding to a float format.

    Returns
    -------
    dict
        One key and its text.
    """
    return {KEY: f"{command}, {format}" + (f": {how}" if how else "")}
