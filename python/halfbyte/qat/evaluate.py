# python/halfbyte/qat/evaluate.py
# SPDX-License-Identifier: Apache-2.0
"""How far a quantized model is from the one it was made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from halfbyte._arguments import whole
from halfbyte.errors import ArgumentError
from halfbyte.qat.gemma import hidden_states, texts
from halfbyte.qat.loss import CHUNK, head_of

__all__ = ["compare"]


@torch.no_grad()
def compare(
    student: Any,
    teacher: Any,
    tokens: Tensor | Iterable[Tensor],
    *,
    batch: int = 8,
    chunk: int = CHUNK,
) -> dict[str, float]:
    """Compare two models on texts.

    Parameters
    ----------
    student, teacher : transformers.PreTrainedModel
        Gemma models of one vocabulary, wherever they are.
    tokens : int tensor of shape (N, T), or an iterable of such
        Texts of T tokens.
    batch : int
        Texts that are run at once.
    chunk : int
        Tokens whose logits exist at once.

    Returns
    -------
    dict
        ``kl``, the mean of KL(teacher || student) in nats; ``ppl`` and ``teacher_ppl``,
        perplexities of the texts; ``top1``, the share of tokens after which both find the
        same one likeliest; ``tokens``, how many were predicted.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If no text has two tokens, or an argument does not fit.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    count, groups = 0, [tokens] if isinstance(tokens, Tensor) else tokens
    whole(batch, "batch", 1)
    whole(chunk, "chunk", 1)
    for part in (part for g in groups for part in texts(g, "tokens").split(batch)):
        pairs = [_hidden(model, part) for model in (student, teacher)]
        labels = part[:, 1:].reshape(-1)
        for begin in range(0, len(labels), chunk):
            span = slice(begin, begin + chunk)
            logps = [
                torch.log_softmax(logits(rows[span]), -1) for rows, logits in pairs
            ]
            sums += _sums(logps[0], logps[1].to(logps[0].device), labels[span])
        count += len(labels)
    if count == 0:
        raise ArgumentError("tokens: expected texts of two tokens or more, got none")
    kl, loss, teacher_loss, same = (sums / count).tolist()
    return {
        "kl": kl,
        "ppl": math.exp(min(loss, 700.0)),
        "teacher_ppl": math.exp(min(teacher_loss, 700.0)),
        "top1": same,
        "tokens": count,
    }


def _hidden(model: Any, tokens: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return hidden states before each predicted token, and what makes logits of them."""
    device = model.lm_head.weight.device
    hidden = hidden_states(model, tokens.to(device))[:, :-1].flatten(0, 1)
    return hidden, head_of(model, hidden).logits


def _sums(logp: Tensor, want: Tensor, labels: Tensor) -> Tensor:
    at = labels[:, None].to(logp.device, torch.int64)
    found = (
        (want.exp() * (want - logp)).sum(),
        -logp.gather(-1, at).sum(),
        -want.gather(-1, at).sum(),
        (logp.argmax(-1) == want.argmax(-1)).sum(),
    )
    return torch.stack([value.double() for value in found]).cpu()
