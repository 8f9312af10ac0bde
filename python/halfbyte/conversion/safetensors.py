# python/halfbyte/conversion/safetensors.py
# SPDX-License-Identifier: Apache-2.0
"""The container safetensors, to be written: a header in JSON, and places for tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.conversion.plan import Layout, Output

__all__ = ["layout"]

_SIZES = {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1}
_ALIGNMENT = 8


def layout(metadata: Mapping[str, str], outputs: Sequence[Output]) -> Layout:
    """Lay out a file. The widest numbers come first, so that all are aligned.

    Parameters
    ----------
    metadata : mapping
        Without ``format``, which Transformers asks for.
    outputs : sequence of Output
        Of the types that a file may have.

    Returns
    -------
    Layout
    """
    order = sorted(range(len(outputs)), key=lambda i: -_SIZES[outputs[i].type])
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    begins, end = [0] * len(outputs), 0
    for i in order:
        output = outputs[i]
        begins[i], end = end, end + output.bytes
        entries[output.name] = {
            "dtype": output.type,
            "shape": output.shape,
            "data_offsets": [begins[i], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    places = tuple(len(header) + begin for begin in begins)
    return Layout(header, places, len(header) + end)
