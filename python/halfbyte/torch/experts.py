# python/halfbyte/torch/experts.py
# SPDX-License-Identifier: Apache-2.0
"""The experts of a mixture, packed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from halfbyte.errors import ArgumentError, ShapeError
from halfbyte.formats import format_info
from halfbyte.torch import ops
from halfbyte.torch.packed import PackedModule, frozen

__all__ = ["QuantExperts"]


class QuantExperts(PackedModule):
    """Gated MLPs side by side, of which every token takes some.

    Parameters
    ----------
    num_experts, hidden_dim, intermediate_dim : int
        E, H and F; H and F are multiples of the block of their format.
    formats : (str, str)
        Of the two matrices of an expert.
    act_fn : callable
        What the gate goes through.
    activations : {"auto", "f32"}
        As for `halfbyte.linear`.
    device : torch device
        ``"meta"`` for a skeleton that a state dict fills.

    Attributes
    ----------
    gate_up_proj : uint8 parameter, shape (E, 2 F, bytes of a row)
        The gates first.
    down_proj : uint8 parameter, shape (E, H, bytes of a row)

    Raises
    ------
    ArgumentError
        If a format is unknown.
    ShapeError
        If H or F is no whole number of blocks, or a format has one scale a row.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_dim: int,
        intermediate_dim: int,
        formats: tuple[str, str],
        act_fn: Callable[[Tensor], Tensor],
        *,
        activations: str = "auto",
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        self.num_experts, self.hidden_dim = num_experts, hidden_dim
        self.intermediate_dim = intermediate_dim
        self.formats, self.activations, self.act_fn = formats, activations, act_fn

        def packed(rows: int, k: int, format: str) -> nn.Parameter:
            info = format_info(format)
            if k % info.block_len or info.row_scaled:
                raise ShapeError(
                    f"experts: {k} weights a row do not fit {format}: expected a "
                    f"multiple of {info.block_len}, and scales in the blocks"
                )
            width = ops.row_bytes(info, k)
            shape = (num_experts, rows, width)
            return frozen(torch.zeros(shape, dtype=torch.uint8, device=device))

        self.gate_up_proj = packed(2 * intermediate_dim, hidden_dim, formats[0])
        self.down_proj = packed(hidden_dim, intermediate_dim, formats[1])

    def forward(
        self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        """Add up what the chosen experts make of each token.

        Parameters
        ----------
        hidden_states : float tensor, shape (T, H)
        top_k_index : integer tensor, shape (T, k)
        top_k_weights : float tensor, shape (T, k)

        Returns
        -------
        tensor like `hidden_states`, shape (T, H)

        Raises
        ------
        ArgumentError, ShapeError
            If there is no such expert, or the shapes do not fit together.
        """
        if top_k_index.shape[:1] != hidden_states.shape[:1]:
            raise ShapeError(
                f"top_k_index: expected {len(hidden_states)} rows, "
                f"got shape {tuple(top_k_index.shape)}"
            )
        if top_k_weights.shape != top_k_index.shape:
            raise ShapeError(
                f"top_k_weights: expected shape {tuple(top_k_index.shape)}, "
                f"got {tuple(top_k_weights.shape)}"
            )
        total = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if not 0 <= expert < self.num_experts:
                raise ArgumentError(
                    f"top_k_index: expected 0 to {self.num_experts - 1}, got {expert}"
                )
            tokens, choices = torch.where(top_k_index == expert)
            y = self._expert(expert, hidden_states[tokens])
            y = y * top_k_weights[tokens, choices, None]
            total.index_add_(0, tokens, y.to(total.dtype))
        return total

    def _expert(self, expert: int, x: Tensor) -> Tensor:
        first, second = self.formats
        both = ops.linear(
            x, self.gate_up_proj[expert], first, activations=self.activations
        )
        gate, up = both.chunk(2, dim=-1)
        return ops.linear(
            self.act_fn(gate) * up,
            self.down_proj[expert],
            second,
            activations=self.activations,
        )

    def _formats(self) -> str:
        return ", ".join(self.formats)

    def extra_repr(self) -> str:
        """Describe shape and formats."""
        return (
            f"num_experts={self.num_experts}, hidden_dim={self.hidden_dim}, "
            f"intermediate_dim={self.intermediate_dim}, "
            f"formats={self._formats()}"
        )
