# docs/pictures/lattice.py
# SPDX-License-Identifier: Apache-2.0
"""Draw the pictures of docs/lattice.md beside this file, the same bytes every time.

python docs/pictures/lattice.py
"""

from __future__ import annotations

from pathlib import Path

import halfbyte
import numpy as np
from halfbyte._svg import Picture
from numpy.typing import NDArray

F32 = NDArray[np.float32]

WIDTH = 720
GROUP = 32
STEP = np.float32(0.0123)  # of the group in the pictures: no float16 number


def main() -> None:
    """Write every picture."""
    for name, draw in PICTURES.items():
        path = Path(__file__).with_name(f"lattice-{name}.svg")
        path.write_text(draw(), encoding="utf-8")


def bf16(x: F32) -> F32:
    """Round to bfloat16, half to even: the upper 16 bits of a float32."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def trained_levels() -> NDArray[np.int64]:
    """32 levels as training leaves them; the largest magnitude is +7."""
    drawn = np.random.default_rng(7).standard_normal(GROUP) * 3
    levels = np.clip(np.rint(drawn), -7, 6).astype(np.int64)
    levels[5] = 7
    return levels


# ---- a comb, and no comb


def comb() -> str:
    """Weights of a trained group on its levels; others between any levels."""
    trained = bf16(trained_levels().astype(np.float32) * STEP)
    drawn = np.random.default_rng(8).standard_normal(GROUP) * trained.std()
    other = bf16(drawn.astype(np.float32))
    picture = Picture("32 trained weights on a comb; 32 others on none", WIDTH, 300)
    strip(picture, 20, "trained for 4 bits: every weight is step * level", trained)
    strip(picture, 165, "not trained: no step makes integers of them", other)
    return picture.svg()


def strip(picture: Picture, top: int, title: str, weights: F32) -> None:
    """A dot for each weight, equal ones above each other, over the lines of a comb."""

    def place(value: float) -> float:
        return WIDTH / 2 + 38 * value / float(STEP)

    picture.text(20, top + 8, title, "head")
    low = top + 105
    for level in range(-8, 8):
        x = place(level * float(STEP))
        picture.line(x, top + 22, x, low)
        picture.text(x, low + 16, str(level), "faint", anchor="middle")
    heights: dict[float, int] = {}
    for weight in weights.tolist():
        heights[weight] = heights.get(weight, 0) + 1
        level = round(weight / float(STEP))
        on = abs(weight - level * STEP) <= 2**-8 * abs(weight)  # half an ulp of it
        y = low - 4 - 9 * (heights[weight] - 1)
        picture.dot(place(weight), y, 4, "first" if on else "second")


# ---- what the ordinary quantizer does


def quantizer() -> str:
    """Trained levels, and where those of the ordinary quantizer lie."""
    levels = np.arange(-7, 8)
    group = np.zeros((1, GROUP), np.float32)
    group[0, : len(levels)] = levels * STEP
    group[0, 0] = 7 * STEP  # the first of the largest magnitude decides
    group[0, 14] = -7 * STEP
    packed = halfbyte.quantize(bf16(group), "q4_0")
    got = packed.dequantize()[0, : len(levels)]
    order = np.argsort(group[0, : len(levels)])
    step = abs(float(packed.data[:2].view(np.float16)[0]))
    picture = Picture("Trained levels between those of the quantizer", WIDTH, 240)

    def place(value: float) -> float:
        return WIDTH / 2 + 42 * value / float(STEP)

    picture.text(20, 22, "trained levels, the largest is +7", "head")
    picture.text(20, 226, "levels of the ordinary quantizer: 7/8 of the step", "head")
    for number in range(-7, 9):  # of a negative step
        picture.line(place(number * step), 160, place(number * step), 172)
        x = place(number * step)
        picture.text(x, 190, str(-number), "faint", anchor="middle")
    for level, at in zip(levels, order, strict=True):
        x, landed = place(float(group[0, at])), place(float(got[at]))
        kind = "first" if abs(x - landed) < 1 else "second"
        picture.text(x, 48, f"{level:+d}" if level else "0", "faint", anchor="middle")
        picture.line(x, 60, landed, 156, kind)
        picture.dot(x, 60, 4, kind)
        picture.dot(landed, 156, 3, kind)
    return picture.svg()


# ---- the intervals of the step


def intervals() -> str:
    """For each weight of a group the steps that round to it, and what they share."""
    levels = (5 * np.arange(GROUP)) % 16 - 8
    weights = np.abs(bf16(levels.astype(np.float32) * STEP)).astype(np.float64)
    magnitudes = np.abs(levels)
    picture = Picture("Steps that give each weight, and all of them", WIDTH, 330)
    low, high = 0.012255, 0.012345

    def place(step: float) -> float:
        return 60 + (WIDTH - 120) * (min(max(step, low), high) - low) / (high - low)

    picture.text(20, 22, "steps that round to each weight, by its level", "head")
    order = [i for i in np.argsort(magnitudes, kind="stable") if levels[i]]
    ends = []
    for row, i in enumerate(order):
        half_ulp = 2.0 ** (np.floor(np.log2(weights[i])) - 8)
        a, b = ((weights[i] + d) / magnitudes[i] for d in (-half_ulp, half_ulp))
        ends.append((a, b))
        y = 40 + 7.5 * row
        picture.line(place(a), y, place(b), y, "first")
        if row == 0 or magnitudes[i] != magnitudes[order[row - 1]]:
            picture.text(40, y + 4, str(magnitudes[i]), "faint", anchor="middle")
    bottom = 40 + 7.5 * len(order)
    a, b = max(a for a, _ in ends), min(b for _, b in ends)
    picture.bar(place(a), 34, place(b) - place(a), bottom - 34, "second pale")
    picture.line(place(float(STEP)), 34, place(float(STEP)), bottom, "second")
    bits = np.arange(0x2240, 0x2260, dtype=np.uint16)
    for step in bits.view(np.float16).astype(np.float64):
        if low < step < high:
            kind = "second" if a <= step <= b else ""
            picture.dot(place(step), bottom + 12, 4, kind)
    words = "float16 numbers; those in the band give every weight back"
    picture.text(20, bottom + 40, words)
    return picture.svg()


# ---- lineage


def lineage() -> str:
    """Levels of the ordinary quantizer, of trained weights and of others."""
    rng = np.random.default_rng(9)
    groups = rng.standard_normal((4096, GROUP)).astype(np.float32)
    steps = np.abs(groups).max(1, keepdims=True) / 8 * rng.uniform(0.75, 1.2, (4096, 1))
    steps = steps.astype(np.float32)
    trained = bf16(np.clip(np.rint(groups / steps), -8, 7) * steps)
    picture = Picture("Levels of +-4: none of trained weights", WIDTH, 224)
    titles = ("of trained weights: no level 4", "of others")
    for left, title, x in zip((20, 380), titles, (trained, groups), strict=True):
        counts = levels_of_positive_extremes(halfbyte.quantize(x, "q4_0"))
        picture.text(left, 22, f"Q4_0 {title}", "head")
        for level, count in enumerate(counts):
            height = 130 * float(count / counts.max())
            kind = "second" if level == 4 else "first"
            picture.bar(left + 34 * level, 170 - height, 27, height, kind)
            middle = left + 34 * level + 13.5
            picture.text(middle, 190, str(level), anchor="middle")
        picture.text(
            left, 212, "magnitude of the level, largest weight above 0", "faint"
        )
    return picture.svg()


def levels_of_positive_extremes(packed: halfbyte.Weight) -> NDArray[np.int64]:
    """How often each magnitude occurs in blocks with a negative step."""
    blocks = packed.data.reshape(-1, 18)
    negative = blocks[blocks[:, 1] >= 128, 2:]
    codes = np.concatenate([negative & 15, negative >> 4]).astype(np.int64)
    return np.bincount(np.abs(codes - 8).reshape(-1), minlength=9)


# ---- repair


def repair() -> str:
    """Which levels the ordinary quantizer can make, by the largest trained one."""
    picture = Picture("Levels that can occur, by the largest trained one", WIDTH, 290)
    picture.text(20, 22, "trained levels (in the dots) and where they land", "head")
    left, top, cell = 190, 60, 54
    for stored in range(9):
        x = left + cell * stored
        picture.text(x, top - 12, str(stored), anchor="middle")
    for row, largest in enumerate(range(8, 0, -1)):
        y = top + 10 + 26 * row
        picture.text(20, y + 4, f"largest {largest}", "head")
        landed = {round(8 * level / largest): level for level in range(largest + 1)}
        for stored in range(9):
            x = left + cell * stored
            if stored in landed:
                picture.dot(x, y, 10, "first pale")
                picture.text(x, y + 4, str(landed[stored]), anchor="middle")
            else:
                picture.dot(x, y, 2)
    return picture.svg()


PICTURES = {
    "comb": comb,
    "quantizer": quantizer,
    "intervals": intervals,
    "lineage": lineage,
    "repair": repair,
}

if __name__ == "__main__":
    main()
