# python/halfbyte/torch/fused.py
# SPDX-License-Identifier: Apache-2.0
"""What stands between the products of a Gemma model, by halfbyte's kernels.

Each module takes the place of one of transformers, keeps its parameters under their
names, and is differentiated. In float32, beside packed layers and attention by
halfbyte, a model made of them computes the bits of ``halfbyte.load``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from halfbyte import _core
from halfbyte.torch import ops
from halfbyte.torch._dispatch import TYPES, at_once, num_threads
from halfbyte.torch.rowwise import gelu_mul, rms_norm, rope

__all__ = ["FusedGelu", "FusedRMSNorm", "FusedRotary", "FusedRouter", "Turns"]


class FusedRMSNorm(nn.Module):
    """``x / sqrt(mean(x**2) + eps)``, times a weight.

    Parameters
    ----------
    weight : parameter of shape (K,), or None
        Used and not copied; None for ones.
    eps : float
    plus_one : bool
        Whether the factor is ``1 + weight``, as in Gemma 3.
    """

    weight: nn.Parameter | None

    def __init__(
        self, weight: nn.Parameter | None, eps: float, *, plus_one: bool = False
    ) -> None:
        super().__init__()
        self.eps, self.plus_one = eps, plus_one
        self.register_parameter("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """Norm the rows of ``x``, of any shape, in its type."""
        factor: Tensor | None = self.weight
        if factor is not None and self.plus_one:
            factor = 1.0 + factor.float()
        return rms_norm(x, factor, eps=self.eps)

    def extra_repr(self) -> str:
        """Describe the weight."""
        size = None if self.weight is None else tuple(self.weight.shape)
        return f"{size}, eps={self.eps}, plus_one={self.plus_one}"


class FusedGelu(nn.Module):
    """GELU in its tanh form; what it is multiplied by later is as if it were here."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element of ``x``."""
        ones = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device)
        return gelu_mul(x, ones.expand_as(x))


class Turns(NamedTuple):
    """The rotary embedding of layers of one kind.

    Attributes
    ----------
    head_dim : int
    pairs : int
        Pairs of a head that turn; the others stay.
    freq_base : float
    factor : float
        What frequencies are divided by.
    """

    head_dim: int
    pairs: int
    freq_base: float
    factor: float


class FusedRotary(nn.Module):
    """Cosines and sines of the angles of positions, worked out in double.

    Parameters
    ----------
    turns : dict of str to Turns
        By the kind of layer.
    """

    def __init__(self, turns: dict[str, Turns]) -> None:
        super().__init__()
        self.turns = turns

    @torch.no_grad()
    def forward(
        self, x: Tensor, position_ids: Tensor, layer_type: str
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines for a kind of layer.

        Parameters
        ----------
        x : float tensor
            Of the type that they are to have.
        position_ids : integer tensor, shape (batch, tokens)
        layer_type : str

        Returns
        -------
        tuple
            Two tensors of shape (batch, tokens, head_dim), whose halves are equal.
        """
        head_dim, pairs, base, factor = self.turns[layer_type]
        half = head_dim // 2
        # Turned, the pair (1, 0) is the cosine and the sine.
        unit = torch.zeros(head_dim, dtype=torch.float32, device=position_ids.device)
        unit[:half] = 1.0
        turned = rope(
            unit.expand(*position_ids.shape, 1, head_dim),
            position_ids.clamp(min=0),  # -1 is usual for padding, which nothing reads
            freq_base=base,
            rotary_dims=2 * pairs,
            freq_scale=1.0 / factor,
        )
        cos, sin = turned.squeeze(-2).to(x.dtype).split(half, dim=-1)
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)

    def extra_repr(self) -> str:
        """Describe the kinds of layers."""
        return ", ".join(f"{kind}={turns}" for kind, turns in self.turns.items())


class FusedRouter(nn.Module):
    """The choice of a mixture's experts.

    Of equal experts the first is taken, and weights are added up from the largest on.

    Parameters
    ----------
    router : torch.nn.Module
        Whose layers and parameters are used.
    """

    def __init__(self, router: Any) -> None:
        super().__init__()
        self.norm = FusedRMSNorm(None, router.eps)
        self.proj, self.scale = router.proj, router.scale
        self.per_expert_scale = router.per_expert_scale
        self.hidden_size, self.top_k = router.hidden_size, router.config.top_k_experts

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose experts for each token.

        Parameters
        ----------
        hidden_states : float tensor, shape (T, H)

        Returns
        -------
        probabilities : tensor, shape (T, E)
        weights : tensor, shape (T, k)
            What the chosen experts' outputs are multiplied by.
        experts : integer tensor, shape (T, k)
        """
        x = self.norm(hidden_states) * self.scale * self.hidden_size**-0.5
        probabilities = _softmax(self._scores(x))
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        top, experts = ordered[:, : self.top_k], order[:, : self.top_k]
        total = top[:, :1]
        for i in range(1, self.top_k):
            total = total + top[:, i : i + 1]
        return probabilities, top / total * self.per_expert_scale[experts], experts

    def _scores(self, x: Tensor) -> Tensor:
        weight = self.proj.weight
        if type(self.proj) is not nn.Linear or not at_once(x, weight):
            scores: Tensor = self.proj(x)
            return scores
        rows = weight.detach().contiguous().view(torch.uint8)
        return ops.linear(x, rows, TYPES[weight.dtype])


def _softmax(scores: Tensor) -> Tensor:
    """Softmax of rows in float32; torch's where someone traces or wants a gradient."""
    if not at_once(scores, None) or not scores.numel():
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    rows = scores.detach().float().contiguous()
    y = torch.empty_like(rows)
    _core.softmax(rows.numpy(), y.numpy(), num_threads())
    return y
