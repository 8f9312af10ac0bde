# python/halfbyte/verification/agreement.py
# SPDX-License-Identifier: Apache-2.0
"""How far two models that should be the same one are apart, measured on a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte._arrays import F32Array
from halfbyte.errors import ArgumentError
from halfbyte.model import Model

__all__ = ["Agreement", "compare", "same_tokens"]

Progress = Callable[[int, int], None]

_ROWS = 32  # logits held at once: 32 MiB of a vocabulary of 262,144, in two precisions
_WINDOW = 1024  # tokens read in a row at most: longer texts are cut
_PROMPT = 32  # tokens of the text that both models go on from


@dataclass(frozen=True)
class Agreement:
    """Distances of a model from a reference, over the positions of a text.

    The divergence is KL(reference ‖ model) in nats, of the distributions of the next
    token.
    """

    positions: int
    kl_mean: float
    kl_p99: float
    """99 of 100 positions are below it."""
    kl_max: float
    top1: float
    """Share of the positions where both have the same likeliest token."""
    perplexity: float
    reference_perplexity: float
    greedy_tokens: int
    """How many were asked for, the likeliest each time."""
    greedy_equal: int
    """How many both choose alike before the first that differs."""


def compare(
    model: Model,
    reference: Model,
    ids: Sequence[int],
    *,
    greedy: int = 32,
    progress: Progress | None = None,
) -> Agreement:
    """Run the same tokens through two models.

    Parameters
    ----------
    model, reference : Model
        Of one vocabulary.
    ids : sequence of int
        Two or more. Texts longer than 1024 tokens, or than what either model holds, are
        cut into windows.
    greedy : int
        Tokens to generate from the first 32.
    progress : callable, optional
        Called with the tokens of the text that are done, and all of them.

    Returns
    -------
    Agreement

    Raises
    ------
    ArgumentError
        If the vocabularies differ in size, or there are fewer than two ids.

    Notes
    -----
    A few positions at a time are computed by both, so memory does not grow with the
    text. The sums are in float64: rounding adds about 1e-15 to a divergence.
    """
    sizes = model.config.vocab_size, reference.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ArgumentError(
            f"vocabulary: {sizes[0]} and {sizes[1]} tokens; expected as many in both"
        )
    if len(ids) < 2:
        raise ArgumentError(f"ids: expected two or more, got {len(ids)}")
    found = []
    for rows in _positions(model, reference, ids):
        found.append(rows)
        if progress is not None:
            progress(min(sum(map(len, found)), len(ids)), len(ids))
    kl, same, own, its = np.concatenate(found).T
    scored = ~np.isnan(own)  # nothing follows the last token of a window
    prompt = ids[:_PROMPT]
    room = min(model.context, reference.context) - len(prompt)
    greedy = min(greedy, room)
    return Agreement(
        len(kl),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.percentile(kl, 99)),
        kl_max=float(kl.max()),
        top1=float(same.mean()),
        perplexity=_perplexity(own[scored]),
        reference_perplexity=_perplexity(its[scored]),
        greedy_tokens=greedy,
        greedy_equal=_greedy(model, reference, prompt, greedy),
    )


def _perplexity(log_p: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore"):  # of what is as good as ruled out
        return float(np.exp(-log_p.mean()))


def same_tokens(model: Model, reference: Model, text: str) -> bool:
    """Whether two tokenizers split a text into the same tokens, spelled the same."""
    ids = model.tokenize(text)
    return ids == reference.tokenize(text) and all(
        model.tokenizer.token_to_piece(id) == reference.tokenizer.token_to_piece(id)
        for id in set(ids)
    )


def _positions(
    model: Model, reference: Model, ids: Sequence[int]
) -> Iterator[NDArray[np.float64]]:
    """Yield rows: divergence, whether the likeliest are one, log p of what follows."""
    length = min(_WINDOW, model.context, reference.context)
    sessions = model.session(), reference.session()
    for _, window in model._windows(np.asarray(ids), length):
        for session in sessions:
            session.reset()
        for at in range(0, len(window), _ROWS):
            part = window[at : at + _ROWS]
            own, its = (session.logits(part) for session in sessions)
            yield np.array(
                [
                    _position(own[i], its[i], *window[at + i + 1 : at + i + 2])
                    for i in range(len(part))
                ]
            )


def _position(
    own: F32Array, its: F32Array, next_id: int | None = None
) -> tuple[float, bool, float, float]:
    q, p = _log_softmax(own), _log_softmax(its)
    kl = max(float(np.exp(p) @ (p - q)), 0.0)
    same = bool(own.argmax() == its.argmax())
    if next_id is None:
        return kl, same, math.nan, math.nan
    return kl, same, float(q[next_id]), float(p[next_id])


def _log_softmax(logits: F32Array) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - math.log(np.exp(shifted).sum())


def _greedy(model: Model, reference: Model, prompt: Sequence[int], count: int) -> int:
    """How many tokens both choose alike, from the first one on."""
    sessions = model.session(), reference.session()
    ids = list(prompt)
    for made in range(count):
        chosen = [int(one.logits(ids, last=True).argmax()) for one in sessions]
        if chosen[0] != chosen[1]:
            return made
        ids = chosen[:1]
    return count
