# examples/qat/sampling.py
# SPDX-License-Identifier: Apache-2.0
"""Texts that a model writes by itself: what it believes, without a corpus between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def sample(model: Any, count: int, length: int, *, bos: int, batch: int) -> Tensor:
    """Sample texts at temperature 1 and over the whole vocabulary.

    An end of text is a token like any other: texts go on after it.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    count, length : int
        Texts, and tokens of each, the first included.
    bos : int
        The token that each begins with.
    batch : int
        Texts at a time.

    Returns
    -------
    int64 tensor, shape (count, length)
        On the CPU.
    """
    parts = []
    for begin in range(0, count, batch):
        size = min(batch, count - begin)
        made = [torch.full((size, 1), bos, device=model.device)]
        past = None
        while len(made) < length:
            step = model(input_ids=made[-1], past_key_values=past, use_cache=True)
            past = step.past_key_values
            # Gumbel's trick draws from the softmax without summing it.
            noise = torch.empty_like(step.logits[:, -1], dtype=torch.float32)
            drawn = step.logits[:, -1].float() - noise.exponential_().log()
            made.append(drawn.argmax(-1, keepdim=True))
        parts.append(torch.cat(made, 1).cpu())
    return torch.cat(parts)
