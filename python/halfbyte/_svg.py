# python/halfbyte/_svg.py
# SPDX-License-Identifier: Apache-2.0
"""Small pictures as SVG: text, bars, dots and lines, for light and dark pages."""

from __future__ import annotations

from xml.sax.saxutils import escape

__all__ = ["Picture"]

# Colours in the middle between white and black pages for whoever ignores the query.
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #6e7781; }
.head { font-size: 14px; font-weight: 600; fill: #57606a; }
.faint { font-size: 11px; }
rect, circle { fill: #8c959f; }
line { stroke: #8c959f; stroke-opacity: 0.6; }
line.first, line.second { stroke-opacity: 1; stroke-width: 2; }
.first { fill: #1f883d; }
.second { fill: #bc4c00; }
line.first { stroke: #1f883d; }
line.second { stroke: #bc4c00; }
.pale { fill-opacity: 0.25; }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1; }
  .head { fill: #d1d7e0; }
  rect, circle { fill: #656c76; }
  .first { fill: #3fb950; }
  .second { fill: #f0883e; }
  line.first { stroke: #3fb950; }
  line.second { stroke: #f0883e; }
}
"""


class Picture:
    """A picture in the making; the origin is its upper left corner.

    Parameters
    ----------
    title : str
        For whoever cannot see it.
    width, height : int
    """

    def __init__(self, title: str, width: int, height: int) -> None:
        size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
        ]

    def text(
        self, x: float, y: float, words: str, kind: str = "", anchor: str = "start"
    ) -> None:
        """Words whose `anchor` (start, middle, end) lies at a place."""
        self._parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(words)}</text>"
        )

    def bar(
        self, x: float, y: float, width: float, height: float, kind: str = ""
    ) -> None:
        """A filled rectangle."""
        self._parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}"/>'
        )

    def dot(self, x: float, y: float, radius: float, kind: str = "") -> None:
        """A filled circle."""
        self._parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "") -> None:
        """A straight line."""
        self._parts.append(
            f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" '
            f'y2="{y2:.1f}"/>'
        )

    def svg(self) -> str:
        """Return the document."""
        return "\n".join([*self._parts, "</svg>\n"])
