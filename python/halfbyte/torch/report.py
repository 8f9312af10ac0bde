# python/halfbyte/torch/report.py
# SPDX-License-Identifier: Apache-2.0
"""What became of a model's layers, as a small table."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from halfbyte import targets
from halfbyte._sizes import size_text

__all__ = ["LayerReport", "Packing"]


@dataclass(frozen=True, repr=False)
class LayerReport:
    """What all reports say. Prints as a small table, also in a notebook."""

    model: str
    """Its class."""
    skipped: dict[str, tuple[str, ...]]
    """Names of layers, by the reason."""
    bytes_before: int
    """Of the layers that were swapped."""
    bytes_after: int
    """Of those in their place."""
    activations: str
    target: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self)

    def _swapped_rows(self) -> Iterator[tuple[str, str]]:
        raise NotImplementedError

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield from self._swapped_rows()
        yield "arithmetic", f"{self.target}, activations {self.activations}"
        for why, layers in self.skipped.items():
            more = "" if len(layers) == 1 else ", ..."
            yield "skipped", f"{len(layers)} {why} ({layers[0]}{more})"

    def __str__(self) -> str:
        """Render the table."""
        rows = list(self._rows())
        width = max(len(name) for name, _ in rows)
        return "\n".join(
            [self.model, *(f"  {name:<{width}}  {text}" for name, text in rows)]
        )

    def __repr__(self) -> str:
        """Render the table."""
        return str(self)

    def _repr_html_(self) -> str:
        """Render the table for a notebook."""
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
            for name, text in self._rows()
        )
        return f"<table><caption>{html.escape(self.model)}</caption>{rows}</table>"


@dataclass(frozen=True, repr=False)
class Packing(LayerReport):
    """What was packed of a model while it was loaded."""

    swapped: dict[str, str]
    """Names of layers to their formats."""

    @classmethod
    def of(
        cls,
        model: str,
        swapped: dict[str, str],
        skipped: dict[str, str],
        sizes: tuple[int, int],
        activations: str,
    ) -> Packing:
        """Sum up an exchange of layers.

        Parameters
        ----------
        model : str
            Its class.
        swapped : dict of str to str
            Names of layers to their formats.
        skipped : dict of str to str
            Names of layers to the reason.
        sizes : (int, int)
            Bytes of the swapped layers before and after.
        activations : str
            How the inputs of products are rounded.

        Returns
        -------
        Packing
        """
        reasons: dict[str, tuple[str, ...]] = {}
        for name, why in skipped.items():
            reasons[why] = (*reasons.get(why, ()), name)
        return cls(
            model, reasons, *sizes, activations, targets.cpu_target(), dict(swapped)
        )

    def _swapped_rows(self) -> Iterator[tuple[str, str]]:
        for format, count in sorted(Counter(self.swapped.values()).items()):
            yield "packed", f"{count} in {format}"
        before, after = size_text(self.bytes_before), size_text(self.bytes_after)
        yield "bytes", f"{before} before, {after} after"
