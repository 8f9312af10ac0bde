# benchmarks/peer/__init__.py
# SPDX-License-Identifier: Apache-2.0
"""The sides that peers.py compares, one file each, and what they are given.

A side that is not installed must not be imported, so they are found by name.
"""

from __future__ import annotations

import importlib

from peer.side import Side

__all__ = ["OURS", "SIDES", "side"]

OURS = "halfbyte"
SIDES = {
    OURS: "ours",
    "litert": "litert",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "torch": "torch",
    "transformers": "transformers",
    "onednn": "onednn",
    "llama.cpp": "llamacpp",
}


def side(name: str) -> type[Side]:
    """Class of a side. Importing it does not import what it measures."""
    found: type[Side] = importlib.import_module(f"peer.{SIDES[name]}").Peer
    return found
