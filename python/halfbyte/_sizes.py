# python/halfbyte/_sizes.py
# How sizes are written wherever a person reads them.
# SPDX-License-Identifier: Apache-2.0
"""Sizes in bytes, for reports and for the command line."""

from __future__ import annotations

__all__ = ["size_text"]


def size_text(size: float) -> str:
    """Write a size in GiB with one digit after the point; smaller ones in MiB or KiB.

    Parameters
    ----------
    size : float
        Bytes.

    Returns
    -------
    str
    """
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale * 0.95:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:.0f} B"
