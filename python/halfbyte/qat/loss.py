# python/halfbyte/qat/loss.py
# SPDX-License-Identifier: Apache-2.0
"""Losses over a whole vocabulary, some tokens at a time.

Logits of 262144 words are the largest tensors of a training by far. They are made, used
and dropped in chunks, and autograd never sees them: the gradient of the logits is known
in closed form, and is multiplied back through the head by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from halfbyte.qat.modules import FakeQuantLinear

__all__ = ["CHUNK", "Head", "Loss", "hard_loss", "head_of", "head_weight", "kl_loss"]

CHUNK = 2048
"""Tokens whose logits exist at once."""


@dataclass(frozen=True)
class Head:
    """What makes logits of hidden states."""

    weight: Tensor
    """(V, H), in the type that products are computed in."""
    cap: float | None
    """Logits are bent to stay below it."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits, at least float32, shape (T, V), of hidden states (T, H)."""
        return _logits(hidden, self.weight, self.cap)


class Loss(NamedTuple):
    """A loss and its gradients, as means over tokens."""

    value: Tensor
    """A scalar."""
    hidden: Tensor
    """Gradient of the student's hidden states, shape (T, H)."""
    weight: Tensor | None
    """Gradient of the student's head, float32 (V, H), if it was asked for."""


def head_weight(model: Any) -> Tensor:
    """Return the weight of a model's head, on its grid if it has one."""
    head = model.lm_head
    if isinstance(head, FakeQuantLinear):
        return head.quantized()
    # transformers' packed layers have bytes for a weight.
    unpack = getattr(head, "_dequantize_weights", None)
    weight: Tensor = head.weight if unpack is None else unpack()
    return weight


def head_of(model: Any, like: Tensor, weight: Tensor | None = None) -> Head:
    """Return the head of a model whose hidden states are of the type of `like`.

    16-bit models have their products computed in float16 on a GPU, since bfloat16 would
    round a logit of 20 by up to 0.06, and in float32 elsewhere.
    """
    weight = (head_weight(model) if weight is None else weight).detach().to(like.dtype)
    if like.dtype in (torch.bfloat16, torch.float16):
        weight = weight.to(torch.float16 if like.is_cuda else torch.float32)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return Head(weight, cap)


def kl_loss(
    student: tuple[Tensor, Head],
    teacher: tuple[Tensor, Head],
    *,
    chunk: int = CHUNK,
    with_weight: bool = False,
    compile: bool = False,
) -> Loss:
    """Mean of KL(teacher || student) over tokens, and its gradients.

    Parameters
    ----------
    student, teacher : (tensor of shape (T, H), Head)
        Hidden states and what makes logits of them.
    chunk : int
        Tokens whose logits exist at once.
    with_weight : bool
        Whether the gradient of the student's head is wanted.
    compile : bool
        Whether what happens to a chunk is compiled: on a GPU its time is that of reading
        and writing logits, and fewer are written.

    Returns
    -------
    Loss
    """
    hidden, head = student
    sums = _Sums(hidden, head, with_weight)
    kl = _compiled_kl() if compile else _kl_chunk
    for rows, other in zip(hidden.split(chunk), teacher[0].split(chunk), strict=True):
        two_heads = (head.weight, head.cap, teacher[1].weight, teacher[1].cap)
        value, grad = kl(rows, other, *two_heads)
        sums.add(value, rows, grad)
    return sums.loss()


def hard_loss(
    student: tuple[Tensor, Head],
    labels: Tensor,
    *,
    chunk: int = CHUNK,
    with_weight: bool = False,
) -> Loss:
    """Mean cross entropy of `labels`, int64 (T,), as `kl_loss` has its mean.

    Parameters
    ----------
    student : (tensor of shape (T, H), Head)
    labels : int64 tensor, shape (T,)
    chunk, with_weight
        As of `kl_loss`.

    Returns
    -------
    Loss
    """
    hidden, head = student
    sums = _Sums(hidden, head, with_weight)
    for rows, wanted in zip(hidden.split(chunk), labels.split(chunk), strict=True):
        logits, at = head.logits(rows), wanted[:, None]
        logp = torch.log_softmax(logits, -1)
        value = -logp.gather(-1, at).sum()
        grad = logp.exp_().scatter_add_(-1, at, logits.new_full(at.shape, -1.0))
        sums.add(value, rows, _back(grad, logits, head.weight, head.cap))
    return sums.loss()


def _kl_chunk(
    rows: Tensor,
    other_rows: Tensor,
    weight: Tensor,
    cap: float | None,
    other_weight: Tensor,
    other_cap: float | None,
) -> tuple[Tensor, Tensor]:
    """Return the sum of KL over some tokens, and its gradient before logits are bent."""
    logits = _logits(rows, weight, cap)
    logp = torch.log_softmax(logits, -1)
    want = torch.log_softmax(_logits(other_rows, other_weight, other_cap), -1)
    p = want.exp()
    value = (p * (want - logp)).sum()
    return value, _back(logp.exp() - p, logits, weight, cap)


@cache
def _compiled_kl() -> Callable[..., tuple[Tensor, Tensor]]:
    made: Callable[..., tuple[Tensor, Tensor]] = torch.compile(_kl_chunk)
    return made


def _logits(hidden: Tensor, weight: Tensor, cap: float | None) -> Tensor:
    logits = F.linear(hidden.to(weight.dtype), weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _back(grad: Tensor, logits: Tensor, weight: Tensor, cap: float | None) -> Tensor:
    """Turn the gradient of `logits` into that before they were bent, to multiply back."""
    if cap is not None:
        grad = grad * (1 - (logits / cap).square())
    return grad.to(weight.dtype)


class _Sums:
    """What chunks add up to."""

    def __init__(self, hidden: Tensor, head: Head, with_weight: bool) -> None:
        self.head, self.like, self.rows = head, hidden, list[Tensor]()
        self.wide = torch.promote_types(head.weight.dtype, torch.float32)
        self.value = hidden.new_zeros((), dtype=torch.float64)
        self.weight: Tensor | None = None
        if with_weight:
            self.weight = torch.zeros_like(head.weight, dtype=self.wide)

    def add(self, value: Tensor, rows: Tensor, grad: Tensor) -> None:
        """Multiply the gradient of a chunk's logits back through the head."""
        self.value += value
        self.rows.append((grad @ self.head.weight).to(self.wide))
        if self.weight is not None:
            self.weight += grad.t() @ rows.to(grad.dtype)

    def loss(self) -> Loss:
        """Divide by the tokens."""
        tokens = len(self.like)
        hidden = torch.cat(self.rows).div_(tokens).to(self.like.dtype)
        if self.weight is not None:
            self.weight /= tokens
        return Loss(self.value / tokens, hidden, self.weight)
