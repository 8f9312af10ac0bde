# benchmarks/synth/vocabulary.py
# SPDX-License-Identifier: Apache-2.0
"""A made-up vocabulary with the special tokens of the real one at their places."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

__all__ = ["CONTROL", "USER", "vocabulary"]

_CONTROL = {
    0: "<pad>",
    1: "<eos>",
    2: "<bos>",
    3: "<unk>",
    4: "<mask>",
    46: "<|tool>",
    47: "<tool|>",
    98: "<|think|>",
    105: "<|turn>",
    106: "<turn|>",
    255999: "<|image>",
    256000: "<|audio>",
    258880: "<|image|>",
    258881: "<|audio|>",
    258882: "<image|>",
    258883: "<audio|>",
}
_USER = {
    48: "<|tool_call>",
    49: "<tool_call|>",
    50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    100: "<|channel>",
    101: "<channel|>",
}
# The released file counts sixteen control tokens and names seventeen candidates; which
# one is not is not known. Here it is <|video|>.
_TEXT = {107: "\n", 108: "\n\n", 109: "\n\n\n", 212: "</s>", 258884: "<|video|>"}
_FIRST_BYTE = 238
_MARK = "\u2581"  # a space
_NORMAL, CONTROL, USER, _BYTE = 1, 3, 4, 6


def _words() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Made-up words, each with the merges that make it of earlier ones.

    With the mark, a word of three syllables has nine bytes and two merges: what the
    real vocabulary has on average, so that loading costs the same.
    """
    for char in [*map(chr, range(ord("!"), ord("~") + 1)), _MARK]:
        yield char, []
    syllables = [a + b for a in "bcdfghjklmnprstvwxyz" for b in "aeiou"]
    for word in syllables:
        yield word, [(word[0], word[1])]
    for word in syllables:
        yield _MARK + word, [(_MARK, word)]
    for a, b in itertools.product(syllables, repeat=2):
        yield a + b, [(a, b)]
    for a, b in itertools.product(syllables, repeat=2):
        yield _MARK + a + b, [(_MARK + a, b), (_MARK, a + b)]
    for c, b, a in itertools.product(syllables, repeat=3):
        yield _MARK + a + b + c, [(_MARK + a + b, c), (_MARK + a, b + c)]


def vocabulary(size: int) -> tuple[list[str], list[int], list[str]]:
    """Make up a vocabulary with the special tokens at their official places.

    Parameters
    ----------
    size : int
        Number of tokens; special ones beyond it are left out.

    Returns
    -------
    tokens : list of str
        All different.
    types : list of int
        GGUF's token types.
    merges : list of str
        ``"left right"``, most urgent first.
    """
    fixed = {
        token: (text, kind)
        for table, kind in (
            (dict(enumerate((f"<0x{i:02X}>" for i in range(256)), _FIRST_BYTE)), _BYTE),
            (_TEXT, _NORMAL),
            (_CONTROL, CONTROL),
            (_USER, USER),
        )
        for token, text in table.items()
    }
    tokens, types, merges = [], [], ["\n \n", "\n\n \n"]
    words = _words()
    for i in range(size):
        if i in fixed:
            text, kind = fixed[i]
        else:
            (text, splits), kind = next(words), _NORMAL
            merges += [f"{left} {right}" for left, right in splits]
        tokens.append(text)
        types.append(kind)
    return tokens, types, merges
