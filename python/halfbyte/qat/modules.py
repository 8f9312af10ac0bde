# python/halfbyte/qat/modules.py
# SPDX-License-Identifier: Apache-2.0
"""Layers that compute with the numbers of a grid, and train float32 weights below."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte.qat.fake import (
    fake_quant,
    fake_weight,
    ggml_steps,
    grouped,
    initial_log_step,
    integers,
    step_of,
)
from halfbyte.qat.schemes import Grid

__all__ = [
    "FakeQuantEmbedding",
    "FakeQuantExperts",
    "FakeQuantLinear",
    "FakeQuantModule",
]


def _master(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


class FakeQuantModule(nn.Module):
    """What all layers with fake-quantized weights share.

    A weight `name` lies beside ``name_log_step``, both parameters, and perhaps a buffer
    ``name_sign``.
    """

    grid: Grid
    matrices: tuple[str, ...] = ("weight",)

    def matrix(self, name: str) -> nn.Parameter:
        """Return the float weight `name`."""
        return self.get_parameter(name)

    def _add_steps(self, name: str, rule: str) -> None:
        weight, sign = self.matrix(name), None
        if rule == "ggml":
            weight.data, log_step, sign = ggml_steps(weight)
        else:
            log_step = initial_log_step(weight, self.grid)
        log_step = log_step.to(weight.dtype)
        self.register_parameter(f"{name}_log_step", nn.Parameter(log_step))
        self.register_buffer(f"{name}_sign", sign)

    def quantized(self, name: str = "weight") -> Tensor:
        """Return the weight `name` on its grid, in the type of the float one."""
        steps, sign = self._steps(name)
        return fake_weight(self.matrix(name), steps, self.grid, sign)

    def _steps(self, name: str) -> tuple[Tensor, Tensor | None]:
        return getattr(self, f"{name}_log_step"), getattr(self, f"{name}_sign")

    @torch.no_grad()
    def packed(self) -> tuple[Tensor, Tensor]:
        """Return the integers of ``weight``, int8 (N, K), and steps, float32 (N, groups)."""
        log_step, sign = self._steps("weight")
        weight: Tensor = self.matrix("weight")
        steps = step_of(log_step, self.grid.half)
        if sign is not None:
            weight = (grouped(weight, self.grid) * sign).flatten(-2)
            steps = steps * sign
        return integers(weight, log_step, self.grid), steps[..., 0].float()

    def extra_repr(self) -> str:
        """Describe the grid."""
        return str(self.grid)


class FakeQuantLinear(FakeQuantModule):
    """A linear layer on a grid, perhaps between two static roundings to int8.

    Parameters
    ----------
    linear : torch.nn.Linear
        Its weight becomes the float one, in float32 unless it is float64.
    grid : Grid
    static : bool
        Whether inputs and outputs are rounded, once `calibrate` has set the steps.
    step : {"search", "ggml"}
        Where steps begin: least squared error, or as ggml has them (Q4_0 only).
    """

    calibrated = False
    """Whether activations are rounded."""

    def __init__(
        self,
        linear: nn.Linear,
        grid: Grid,
        *,
        static: bool = False,
        step: str = "search",
    ) -> None:
        super().__init__()
        self.grid, self.static = grid, static
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(_master(linear.weight))
        self.bias = linear.bias
        self._add_steps("weight", step)
        if static:
            # exp(-inf) is the 0 by which the schema says that nothing is rounded.
            unset = self.weight.new_full((), -torch.inf)
            self.input_log_step = nn.Parameter(unset)
            self.output_log_step = nn.Parameter(unset.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply `x`, shape (..., in_features), in its own type."""
        if self.calibrated:
            x = fake_quant(x, self.input_log_step, -128, 127)
        y = F.linear(x, self.quantized().to(x.dtype), self.bias)
        if self.calibrated:
            y = fake_quant(y, self.output_log_step, -128, 127)
        return y

    def tie(self, embedding: FakeQuantEmbedding) -> None:
        """Share weight and steps with `embedding`."""
        self.weight = embedding.weight
        self.weight_log_step = embedding.weight_log_step
        self.weight_sign = embedding.weight_sign

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state, prefix, *args)
        if self.static:
            self.calibrated = bool(self.input_log_step.isfinite())


class FakeQuantEmbedding(FakeQuantModule):
    """A table of embeddings on a grid; only the rows that are looked up are computed.

    Parameters
    ----------
    embedding : torch.nn.Embedding
        Gemma's own, which multiplies rows by a factor, too.
    grid : Grid
    packed_factor : bool
        Whether the factor is multiplied unrounded, as Transformers does with packed
        tables; for dense ones it is rounded to the type of the table.
    step : {"search", "ggml"}
        As of `FakeQuantLinear`.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        grid: Grid,
        *,
        packed_factor: bool = False,
        step: str = "search",
    ) -> None:
        super().__init__()
        self.grid, self.dtype = grid, embedding.weight.dtype
        self.num_embeddings = embedding.num_embeddings
        self.embedding_dim = embedding.embedding_dim
        self.scalar_embed_scale = float(getattr(embedding, "scalar_embed_scale", 1.0))
        self._factor = self.scalar_embed_scale
        if not packed_factor:
            self._factor = float(torch.tensor(self._factor).to(self.dtype))
        self.weight = nn.Parameter(_master(embedding.weight))
        self._add_steps("weight", step)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look up rows, in the type the table had: shape (*ids, embedding_dim)."""
        steps, sign = self._steps("weight")
        rows = F.embedding(input_ids, self.weight)
        at = F.embedding(input_ids, steps[..., 0])[..., None]
        if sign is not None:
            sign = F.embedding(input_ids, sign[..., 0])[..., None]
        return fake_weight(rows, at, self.grid, sign).to(self.dtype) * self._factor


class FakeQuantExperts(FakeQuantModule):
    """The experts of a mixture, whose matrices are stacked, on a grid.

    Parameters
    ----------
    experts : torch.nn.Module
        With 3-D parameters ``gate_up_proj`` and ``down_proj``; runs on what they become.
    grid : Grid
    step : {"search", "ggml"}
        As of `FakeQuantLinear`.
    """

    matrices = ("gate_up_proj", "down_proj")

    def __init__(self, experts: nn.Module, grid: Grid, *, step: str = "search") -> None:
        super().__init__()
        self.grid, self.inner = grid, experts
        for name in self.matrices:
            weight = experts.get_parameter(name)
            self.dtype = weight.dtype
            setattr(experts, name, nn.Parameter(_master(weight)))
            self._add_steps(name, step)

    def matrix(self, name: str) -> nn.Parameter:
        """Return the float weight `name`."""
        return self.inner.get_parameter(name)

    def forward(self, *args: Any) -> Any:
        """Run the experts."""
        made = {name: self.quantized(name).to(self.dtype) for name in self.matrices}
        return torch.func.functional_call(self.inner, made, args)
