# python/halfbyte/torch/modules.py
# SPDX-License-Identifier: Apache-2.0
"""Layers whose weights stay packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte import _core, targets
from halfbyte.errors import ArgumentError, ShapeError
from halfbyte.formats import format_info
from halfbyte.torch import ops

__all__ = ["QuantEmbedding", "QuantLinear"]


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


class _Packed(nn.Module):
    """Bytes that no cast touches and that stay on the CPU.

    The core's view of them is made when it is first needed, and again after anything
    that may have moved them.
    """

    _view: _core.Weight | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def moved(tensor: Tensor) -> Tensor:
            to = fn(tensor)
            if not (to.is_cpu or to.is_meta):
                raise ArgumentError(
                    f"device: {type(self).__name__} computes on the CPU, got "
                    f"{to.device}: keep the model there, or call halfbyte.restore first"
                )
            return to if to.dtype == tensor.dtype else tensor

        self._forget()
        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]

    def _forget(self) -> None:
        self._view = None

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the view: it is of this process's memory."""
        return {name: v for name, v in self.__dict__.items() if name != "_view"}


class QuantLinear(_Packed, nn.Linear):
    """A linear layer that multiplies by packed weights.

    Parameters
    ----------
    in_features, out_features : int
        K, a multiple of the format's block, and N.
    format : str
        One of `halfbyte.formats`.
    bias : bool
    static : bool
        With steps that activations were trained to be rounded with, going in and coming
        out; for formats with one scale a row.
    activations : {"auto", "f32"}
        As for `halfbyte.linear`.
    device : torch device
        ``"meta"`` for a skeleton that a state dict fills.

    Attributes
    ----------
    weight : uint8 parameter, shape (N, bytes of a row)
    weight_scale : float32 parameter, shape (N, 1)
        Formats with one scale a row.
    input_activation_scale, output_activation_scale : float32 parameters, shape ()
        With `static`; 0 means that none was trained.
    bias : float parameter, shape (N,), or None

    Notes
    -----
    Computes in float32 whatever the input, and rounds once to the input's type. The
    gradient of the input is that of the dequantized weights; rounding counts as identity.
    """

    weight_scale: nn.Parameter | None
    input_activation_scale: nn.Parameter | None
    output_activation_scale: nn.Parameter | None
    panels: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        format: str,
        *,
        bias: bool = False,
        static: bool = False,
        activations: str = "auto",
        device: str | torch.device = "cpu",
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a dense weight
        info = format_info(format)
        if in_features % info.block_len:
            raise ShapeError(
                f"in_features: expected a multiple of {info.block_len} for {format}, "
                f"got {in_features}"
            )
        if static and not info.row_scaled:
            raise ArgumentError(f"static: {format} has no scale a row")
        self.in_features, self.out_features = in_features, out_features
        self.format, self.activations = format, activations

        def floats(*shape: int) -> nn.Parameter:
            # Whatever the default type: a skeleton is often built under another one.
            return _frozen(torch.zeros(shape, dtype=torch.float32, device=device))

        width = ops.row_bytes(info, in_features)
        packed = torch.zeros(out_features, width, dtype=torch.uint8, device=device)
        self.weight = _frozen(packed)
        scaled = floats(out_features, 1) if info.row_scaled else None
        self.register_parameter("weight_scale", scaled)
        for name in ("input_activation_scale", "output_activation_scale"):
            self.register_parameter(name, floats() if static else None)
        added = _frozen(torch.zeros(out_features, device=device)) if bias else None
        self.register_parameter("bias", added)
        self.register_buffer("panels", None, persistent=False)

    @classmethod
    def from_packed(
        cls,
        weight: Tensor,
        format: str,
        *,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        steps: tuple[Tensor, Tensor] | None = None,
        activations: str = "auto",
    ) -> QuantLinear:
        """Build a layer around tensors, which are used and not copied.

        Parameters
        ----------
        weight : uint8 or int8 tensor, shape (N, bytes of a row)
        format : str
        scale : float32 tensor of N elements, optional
        bias : float tensor, shape (N,), optional
        steps : two float32 tensors of one element, optional
            Of the codes going in and coming out.
        activations : {"auto", "f32"}

        Returns
        -------
        QuantLinear

        Raises
        ------
        ArgumentError, DTypeError, ShapeError
            If the tensors do not fit together.
        """
        k = ops.features(weight, format_info(format))
        layer = cls(
            k,
            weight.shape[0],
            format,
            bias=bias is not None,
            static=steps is not None,
            activations=activations,
            device="meta",
        )
        layer.weight = _frozen(weight.detach())
        if layer.weight_scale is not None and scale is not None:
            layer.weight_scale = _frozen(scale.detach().reshape(-1, 1))
        if bias is not None:
            layer.bias = _frozen(bias.detach())
        if steps is not None:
            layer.input_activation_scale = _frozen(steps[0].detach())
            layer.output_activation_scale = _frozen(steps[1].detach())
        layer._packed()
        return layer

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, format: str, *, activations: str = "auto"
    ) -> QuantLinear:
        """Pack the weights of a dense layer.

        Parameters
        ----------
        linear : torch.nn.Linear
            Its bias is shared.
        format : str
            One that can be written.
        activations : {"auto", "f32"}

        Returns
        -------
        QuantLinear
        """
        weight, scale = ops.quantize(linear.weight, format)
        return cls.from_packed(
            weight, format, scale=scale, bias=linear.bias, activations=activations
        )

    def _packed(self) -> _core.Weight:
        if self._view is None:
            self._added = (
                None if self.bias is None else self.bias.detach().float().contiguous()
            )
            self._view = ops.weight_of(
                self.weight,
                self.format,
                scales=self.weight_scale,
                panels=self.panels,
                x_step=self.input_activation_scale,
                y_step=self.output_activation_scale,
            )
        return self._view

    def _forget(self) -> None:
        super()._forget()
        self.panels = None

    def repack(self) -> QuantLinear:
        """Copy the weights into the order in which products read them.

        Products then run at the speed of memory. No value changes; state dicts hold the
        weights as they were.

        Returns
        -------
        QuantLinear
            Itself, with about as many bytes again.
        """
        if self.panels is None:
            panels = self._packed().panels(
                targets.num_threads_or(torch.get_num_threads())
            )
            if panels.size:
                self._view, self.panels = None, torch.from_numpy(panels)
        return self

    def dequantize(self) -> Tensor:
        """Unpack the weights.

        Returns
        -------
        float32 tensor, shape (N, K)
        """
        return ops.dequantize(self.weight, self.format, scales=self.weight_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``x``, of shape (..., K), into shape (..., N) of the same type."""
        # The dispatcher costs more than a small product: past it where nobody traces
        # and nobody wants a gradient.
        wants_grad = torch.is_grad_enabled() and x.requires_grad
        if torch.compiler.is_compiling() or wants_grad or type(x) is not Tensor:
            return ops.linear(
                x,
                self.weight,
                self.format,
                scales=self.weight_scale,
                panels=self.panels,
                bias=self.bias,
                x_step=self.input_activation_scale,
                y_step=self.output_activation_scale,
                activations=self.activations,
            )
        weight = self._packed()
        shape = (self.out_features, self.in_features)
        return ops.product(weight, shape, x, self._added, self.activations)

    def extra_repr(self) -> str:
        """Describe shape, format and order."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, format={self.format}, "
            f"static={self.input_activation_scale is not None}, "
            f"repacked={self.panels is not None}"
        )


class QuantEmbedding(_Packed):
    """A table whose rows are unpacked as they are looked up.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        N and K.
    format : str
        One of `halfbyte.formats`.
    embed_scale : float
        Rows are multiplied by it.
    output_dtype : torch.dtype
        Of the rows.
    groups : int
        Scales a row, for formats that keep them apart: more than one where a table
        holds several embeddings side by side.
    device : torch device
        ``"meta"`` for a skeleton that a state dict fills.

    Attributes
    ----------
    embedding_quantized : uint8 parameter, shape (N, bytes of a row)
    embedding_scale : float32 parameter, shape (N, groups)
        Formats with one scale a row.
    """

    embedding_scale: nn.Parameter | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        format: str,
        *,
        embed_scale: float = 1.0,
        output_dtype: torch.dtype = torch.float32,
        groups: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        info = format_info(format)
        if embedding_dim % info.block_len:
            raise ShapeError(
                f"embedding_dim: expected a multiple of {info.block_len} for {format}, "
                f"got {embedding_dim}"
            )
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.format, self.scalar_embed_scale = format, embed_scale
        self.output_dtype = output_dtype
        width = ops.row_bytes(info, embedding_dim)
        packed = torch.zeros(num_embeddings, width, dtype=torch.uint8, device=device)
        self.embedding_quantized = _frozen(packed)
        scale = torch.zeros(num_embeddings, groups, dtype=torch.float32, device=device)
        scaled = _frozen(scale) if info.row_scaled else None
        self.register_parameter("embedding_scale", scaled)

    @classmethod
    def from_packed(
        cls,
        table: Tensor,
        format: str,
        *,
        scale: Tensor | None = None,
        embed_scale: float = 1.0,
        output_dtype: torch.dtype = torch.float32,
    ) -> QuantEmbedding:
        """Build a table around tensors, which are used and not copied.

        Parameters
        ----------
        table : uint8 or int8 tensor, shape (N, bytes of a row)
        format : str
        scale : float32 tensor, shape (N, groups), optional
        embed_scale : float
        output_dtype : torch.dtype

        Returns
        -------
        QuantEmbedding
        """
        layer = cls(
            table.shape[0],
            ops.features(table, format_info(format)),
            format,
            embed_scale=embed_scale,
            output_dtype=output_dtype,
            groups=1 if scale is None else scale.shape[1],
            device="meta",
        )
        layer.embedding_quantized = _frozen(table.detach())
        if scale is not None:
            layer.embedding_scale = _frozen(scale.detach())
        return layer

    def rows(self, ids: Tensor) -> Tensor:
        """Rows as they are stored, not multiplied by `embed_scale`.

        Parameters
        ----------
        ids : integer tensor, any shape

        Returns
        -------
        tensor of `output_dtype`, shape (*ids.shape, K)
        """
        scale = self.embedding_scale
        one_each = scale is not None and scale.shape[1] == 1
        if scale is None or one_each:
            plain = ops.embedding_rows(
                ids, self.embedding_quantized, self.format, scales=scale
            )
            return plain.to(self.output_dtype)
        ones = torch.ones(1).expand(self.num_embeddings).contiguous()
        levels = ops.embedding_rows(
            ids, self.embedding_quantized, self.format, scales=ones
        )
        parts = levels.view(*ids.shape, scale.shape[1], -1) * scale[ids].unsqueeze(-1)
        rows: Tensor = parts.flatten(-2)
        return rows.to(self.output_dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of ``ids``, times `embed_scale`."""
        rows: Tensor = self.rows(ids) * self.scalar_embed_scale
        return rows.to(self.output_dtype)

    @property
    def weight(self) -> TableView:
        """The table to be indexed by rows; nothing is unpacked before."""
        return TableView(self)

    def extra_repr(self) -> str:
        """Describe shape and format."""
        return (
            f"num_embeddings={self.num_embeddings}, "
            f"embedding_dim={self.embedding_dim}, format={self.format}, "
            f"embed_scale={self.scalar_embed_scale}"
        )


class TableView:
    """What code expects of ``embedding.weight``, a row at a time."""

    def __init__(self, table: QuantEmbedding) -> None:
        self._table = table

    @property
    def shape(self) -> torch.Size:
        """N and K."""
        return torch.Size((self._table.num_embeddings, self._table.embedding_dim))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the rows."""
        return self._table.output_dtype

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self._table.embedding_quantized.device

    def __getitem__(self, index: Any) -> Tensor:
        """Unpack the rows that the first index names; the other indices go on there."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        ids = torch.arange(self._table.num_embeddings)[first]
        rows = self._table.rows(ids)
        return rows[(..., *rest)] if rest else rows
