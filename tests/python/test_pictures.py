# tests/python/test_pictures.py
# SPDX-License-Identifier: Apache-2.0
"""The pictures in docs/ are those that their script draws, and every one is shown."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[2] / "docs"
DRAWN = runpy.run_path(str(DOCS / "pictures" / "lattice.py"))["PICTURES"]


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_the_one_that_is_drawn(name: str) -> None:
    """After a change: python docs/pictures/lattice.py, and look at them."""
    kept = (DOCS / "pictures" / f"lattice-{name}.svg").read_text(encoding="utf-8")
    assert DRAWN[name]() == kept
    assert ElementTree.fromstring(kept).find("{*}title") is not None


def test_every_picture_is_shown_once() -> None:
    text = (DOCS / "lattice.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(pictures/(.+?)\)", text)
    kept = {path.name for path in (DOCS / "pictures").glob("*.svg")}
    assert sorted(shown) == sorted(kept) == sorted(f"lattice-{n}.svg" for n in DRAWN)
