# python/halfbyte/qat/schemes.py
# SPDX-License-Identifier: Apache-2.0
"""Which numbers a matrix may hold, and which matrix of a model gets which."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from halfbyte.errors import ArgumentError

__all__ = ["Grid", "Scheme", "mobile", "named", "q4_0"]


@dataclass(frozen=True)
class Grid:
    """The numbers that a matrix may hold: integers times a step.

    Raises
    ------
    ArgumentError
        If `bits` or `group` is none of those it may be.
    """

    bits: int = 4
    """2, 4 or 8: the integers go from ``-2**(bits - 1)`` to ``2**(bits - 1) - 1``."""
    group: int | None = 32
    """Neighbours in a row that share a step, 1 or more; the whole row if None."""
    half: bool = True
    """Whether steps are float16 numbers, and not float32."""

    def __post_init__(self) -> None:
        """Refuse what no file holds."""
        if self.bits not in (2, 4, 8):
            raise ArgumentError(f"bits: expected 2, 4 or 8, got {self.bits}")
        if self.group is not None and self.group < 1:
            raise ArgumentError(f"group: expected 1 or more, got {self.group}")

    @property
    def low(self) -> int:
        """The smallest integer."""
        return int(-(2 ** (self.bits - 1)))

    @property
    def high(self) -> int:
        """The largest integer."""
        return int(2 ** (self.bits - 1) - 1)

    def __str__(self) -> str:
        """Describe it in a few words."""
        return f"{self.bits} bits a weight, one step a {self._span()}"

    def _span(self) -> str:
        return "row" if self.group is None else f"group of {self.group}"


@dataclass(frozen=True)
class Scheme:
    """How a whole model is quantized.

    Raises
    ------
    ArgumentError
        If it has the name of one that `export` writes, and is another one.
    """

    name: str
    """``"q4_0"`` is exported as bfloat16 on the lattice, ``"mobile"`` as packed."""
    grid: Grid
    """Of matrices that no pattern of `bits` finds."""
    bits: tuple[tuple[str, int], ...] = ()
    """Patterns of module names and their bits. As in ``quant_method: "gemma"`` the match
    that begins leftmost counts, and the first pattern among those."""
    groups: tuple[tuple[str, int], ...] = ()
    """The same for neighbours that share a step."""
    skip: tuple[str, ...] = ()
    """Ends of the names of linear layers that stay as they are."""
    activations: bool = False
    """Whether inputs and outputs of linear layers are rounded to int8 by learned steps."""

    def __post_init__(self) -> None:
        """Refuse what `export` could not write as the name says."""
        if self.name == "q4_0" and (self.grid, self.bits, self.groups) != (
            Grid(),
            (),
            (),
        ):
            raise ArgumentError(
                "scheme: q4_0 is 4 bits in groups of 32: give it a name"
            )
        if self.name == "mobile" and self.grid != Grid(self.grid.bits, None, False):
            raise ArgumentError("scheme: mobile has one step a row: give it a name")

    @property
    def packed(self) -> bool:
        """Whether it is exported as integers and steps."""
        return self.name == "mobile"

    def grid_of(self, name: str) -> Grid:
        """Return the grid of the module `name`."""
        bits = _first(self.bits, name, self.grid.bits)
        group = _first(self.groups, name, self.grid.group)
        assert bits is not None
        return Grid(bits, group, self.grid.half)


def _first(
    rules: tuple[tuple[str, int], ...], name: str, other: int | None
) -> int | None:
    """Return what the leftmost match says, as one alternation of all patterns would."""
    found = [
        (match.start(), order, value)
        for order, (pattern, value) in enumerate(rules)
        if (match := re.search(pattern, name))
    ]
    return min(found)[2] if found else other


def q4_0() -> Scheme:
    """Return the scheme of Q4_0: groups of 32, 4 bits, float16 steps."""
    return Scheme("q4_0", Grid())


def mobile(config: Any, *, per_layer_steps: bool = False) -> Scheme:
    """Return the mobile scheme of a model: one step a row, static int8 activations.

    Parameters
    ----------
    config : transformers.PretrainedConfig
        Of the text model. Attention has 4 bits. With double-wide MLPs, as in E2B, the
        MLPs of layers that share keys and values have 2 bits and the others 4; with
        per-layer embeddings and no double-wide MLPs, as in E4B, all have 4. Other
        models, of which there is no release, have 4 bits in the first half of their
        MLPs and 2 in the second.
    per_layer_steps : bool
        Whether the table of per-layer embeddings has a step for each token and layer, as
        in the releases. Transformers 5.23 loads only one step a token.

    Returns
    -------
    Scheme
    """
    layers = config.num_hidden_layers
    double = getattr(config, "use_double_wide_mlp", False)
    has_ple = bool(getattr(config, "hidden_size_per_layer_input", 0))
    if double:
        four = layers - getattr(config, "num_kv_shared_layers", 0)
    else:
        four = layers if has_ple else layers // 2
    rules = [
        (r"lm_head$", 2),
        (r"embed_tokens$", 2),
        (r"embed_tokens_per_layer$", 4 if double else 2),
        (r"per_layer_input_gate$", 8),
        (r"per_layer_projection$", 8),
        (r"self_attn\.", 4),
    ]
    if four:
        numbers = "|".join(str(layer) for layer in range(four))
        rules.append((rf"layers\.({numbers})\.mlp\.", 4))
    rules.append((r"layers\.\d+\.mlp\.", 2))
    width = config.hidden_size_per_layer_input if per_layer_steps else None
    return Scheme(
        "mobile",
        Grid(4, None, False),
        bits=tuple(rules),
        groups=((r"embed_tokens_per_layer$", width),) if width else (),
        skip=("per_layer_model_projection",),
        activations=True,
    )


def named(scheme: str | Scheme, config: Any) -> Scheme:
    """Return the scheme of a name, or the one given."""
    if isinstance(scheme, Scheme):
        return scheme
    if scheme == "q4_0":
        return q4_0()
    if scheme == "mobile":
        return mobile(config)
    raise ArgumentError(
        f"scheme: expected 'q4_0', 'mobile' or a halfbyte.qat.Scheme, got {scheme!r}"
    )
