# tests/python/test_pictures.py
# SPDX-License-Identifier: Apache-2.0
"""The pictures in docs/ are those that scripts draw, and every one is shown."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import chart
import pytest

DOCS = Path(__file__).parents[2] / "docs"
DRAWN = runpy.run_path(str(DOCS / "pictures" / "lattice.py"))["PICTURES"]


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_the_one_that_is_drawn(name: str) -> None:
    """After a change: python docs/pictures/lattice.py, and look at them."""
    kept = (DOCS / "pictures" / f"lattice-{name}.svg").read_text(encoding="utf-8")
    assert DRAWN[name]() == kept
    assert ElementTree.fromstring(kept).find("{*}title") is not None


def test_the_chart_is_that_of_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After new figures: this command, with docs/pictures/peers.svg, and look at it."""
    figures = DOCS.parent / "benchmarks" / "results" / "zen5-peers.json"
    words = ["--formats", "q4_0,w4,w2", "--tokens", "1,512"]
    monkeypatch.setattr(
        sys, "argv", ["chart", str(figures), str(tmp_path / "a.svg"), *words]
    )
    chart.main()
    kept = (DOCS / "pictures" / "peers.svg").read_text(encoding="utf-8")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8") == kept


def test_every_picture_is_shown_once() -> None:
    pages = [DOCS.parent / "README.md", *DOCS.glob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    shown = re.findall(r"!\[[^\]]+\]\((?:docs/)?pictures/(.+?)\)", text)
    kept = {path.name for path in (DOCS / "pictures").glob("*.svg")}
    drawn = [*(f"lattice-{n}.svg" for n in DRAWN), "peers.svg"]
    assert sorted(shown) == sorted(kept) == sorted(drawn)
