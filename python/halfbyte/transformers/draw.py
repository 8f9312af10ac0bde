# python/halfbyte/transformers/draw.py
# SPDX-License-Identifier: Apache-2.0
"""Drawing a token among those that top-k keeps."""

from __future__ import annotations

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

__all__ = ["draw_among_few"]


def draw_among_few(processors: LogitsProcessorList) -> LogitsProcessorList | None:
    """Let top-k be the last that sees the whole vocabulary, and draw there.

    Transformers sorts all scores again for top-p, and `torch.multinomial` takes a random
    number for each of them: of 262144, where top-k has left 64.

    Parameters
    ----------
    processors : LogitsProcessorList
        As `generate` makes it.

    Returns
    -------
    LogitsProcessorList or None
        One that leaves a single score, that of the token drawn. None if there is no
        top-k, or something after it that is neither top-p nor min-p.
    """
    kinds = [type(processor) for processor in processors]
    if TopKLogitsWarper not in kinds:
        return None
    at = kinds.index(TopKLogitsWarper)
    if not {TopPLogitsWarper, MinPLogitsWarper}.issuperset(kinds[at + 1 :]):
        return None
    drawing = _Draw(processors[at].top_k, processors[at + 1 :])
    return LogitsProcessorList([*processors[:at], drawing])


class _Draw(LogitsProcessor):
    def __init__(self, top_k: int, then: list[LogitsProcessor]) -> None:
        self._top_k, self._then = top_k, then

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        top, ids = torch.topk(scores, min(self._top_k, scores.shape[-1]))
        for processor in self._then:
            top = processor(input_ids, top)
        drawn = ids.gather(1, torch.multinomial(top.softmax(-1), 1))
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)
