# benchmarks/synth/shapes.py
# SPDX-License-Identifier: Apache-2.0
"""The sizes of Gemma 4 and what tells them apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["CLUSTERS", "HEAD", "HEAD_FULL", "SIZES", "Shape"]

HEAD, HEAD_FULL = 256, 512  # values a head, in sliding and in full layers

CLUSTERS = 2048  # of the tokens, in the heads of the small sizes' drafters


@dataclass(frozen=True)
class Shape:
    """What tells one size from another.

    A block of `period` layers is sliding but for its last one. The last `shared` layers
    have no keys and values: they read those of the last sliding and the last full layer
    before them.
    """

    title: str
    hidden: int
    layers: int
    heads: int
    kv_heads: tuple[int, int]  # of sliding layers, of full ones
    ffn: int
    official_bytes: int  # of the released file
    period: int = 6
    window: int = 1024
    context: int = 262144
    shared: int = 0
    shared_ffn: int = 1  # how many times as wide the shared layers are
    per_layer: int = 0  # width of the embedding that each layer has of its own
    value_is_key: bool = False  # full layers have no matrix for values
    experts: int = 0
    experts_used: int = 0
    expert_ffn: int = 0
    suppressed: tuple[int, ...] = ()
    empty_thought: bool = True  # the larger models' answers start with one
    vocab: int = 262144
    # Of the mobile checkpoint, if there is one: bytes of its text tensors, bits of the
    # per-layer table and of the feed-forward blocks of shared layers.
    mobile_bytes: int = 0
    table_bits: int = 0
    shared_ffn_bits: int = 4
    packed_projection: bool = False  # in the w4a16 one: that of all layers' inputs

    @property
    def first_shared(self) -> int:
        """The first layer that reads another one's keys and values."""
        return self.layers - self.shared

    def drafter(self) -> Shape:
        """Return the shape of the drafter for this size: four layers without keys."""
        small = self.per_layer != 0
        return replace(
            self,
            title=f"{self.title}'s drafter",
            hidden=256 if small else 1024,
            ffn=2048 if small else 8192,
            heads=4 if small else self.heads,
            layers=4,
            period=4,
            shared=4,
            shared_ffn=1,
            per_layer=0,
            experts=0,
        )

    def is_full(self, layer: int) -> bool:
        """Whether a layer sees everything and not a window."""
        return layer % self.period == self.period - 1

    def ffn_len(self, layer: int) -> int:
        """Width of a layer's dense feed-forward block."""
        return self.ffn * (self.shared_ffn if layer >= self.first_shared else 1)

    def cut(self, layers: int) -> Shape:
        """Keep some of the layers, in whole periods.

        The share of the layers without keys and values stays about the same. What is
        before them ends with a full layer, so both kinds have a source.
        """
        if layers not in range(self.period, self.layers + 1, self.period):
            raise ValueError(
                f"{self.title} can be cut to a multiple of {self.period} layers, "
                f"at most {self.layers}, not to {layers}"
            )
        owners = layers * self.first_shared / self.layers / self.period
        first_shared = max(1, round(owners)) * self.period
        return replace(self, layers=layers, shared=layers - first_shared)


# The byte counts are those of the released files as of July 2026.
SIZES = {
    "e2b": Shape(
        title="E2B",
        hidden=1536,
        layers=35,
        heads=8,
        kv_heads=(1, 1),
        ffn=6144,
        official_bytes=3_349_516_256,
        period=5,
        window=512,
        context=131072,
        shared=20,
        shared_ffn=2,
        per_layer=256,
        empty_thought=False,
        mobile_bytes=2_118_056_254,
        table_bits=4,
        shared_ffn_bits=2,
    ),
    "e4b": Shape(
        title="E4B",
        hidden=2560,
        layers=42,
        heads=8,
        kv_heads=(2, 2),
        ffn=10240,
        official_bytes=5_154_941_280,
        window=512,
        context=131072,
        shared=18,
        per_layer=256,
        empty_thought=False,
        mobile_bytes=3_175_558_524,
        table_bits=2,
        packed_projection=True,
    ),
    "12b": Shape(
        title="12B",
        hidden=3840,
        layers=48,
        heads=16,
        kv_heads=(8, 1),
        ffn=15360,
        official_bytes=6_975_879_296,
        value_is_key=True,
        suppressed=(258883, 258882),
    ),
    "26b": Shape(
        title="26B-A4B",
        hidden=2816,
        layers=30,
        heads=16,
        kv_heads=(8, 2),
        ffn=2112,
        official_bytes=14_439_363_584,
        value_is_key=True,
        experts=128,
        experts_used=8,
        expert_ffn=704,
    ),
    "31b": Shape(
        title="31B",
        hidden=5376,
        layers=60,
        heads=32,
        kv_heads=(16, 4),
        ffn=21504,
        official_bytes=17_651_001_568,
        value_is_key=True,
    ),
}
