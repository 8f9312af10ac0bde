# python/halfbyte/torch/modules.py
# SPDX-License-Identifier: Apache-2.0
"""Layers whose weights stay packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from halfbyte import _core
from halfbyte._arguments import instance, one_of
from halfbyte.errors import ArgumentError, ShapeError
from halfbyte.formats import FormatInfo, format_info
from halfbyte.torch import ops
from halfbyte.torch._dispatch import (
    TYPES,
    at_once,
    check_optional_tensors,
    check_tensors,
    check_vector,
    num_threads,
)
from halfbyte.torch.packed import PackedModule, PackedParameter, frozen

__all__ = ["QuantEmbedding", "QuantLinear", "repack"]


# torch 2.6 only knows that it compiles.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def _check_length(name: str, k: int, info: FormatInfo) -> None:
    if k % info.block_len:
        raise ShapeError(
            f"{name}: expected a multiple of {info.block_len} for {info.name}, got {k}"
        )


def _zeros(*shape: int, device: str | torch.device) -> nn.Parameter:
    # Whatever the default type: a skeleton is often built under another one.
    return frozen(torch.zeros(shape, dtype=torch.float32, device=device))


def _scale(scale: Tensor | None, info: FormatInfo) -> Tensor | None:
    """The scales of rows, which are there if the format needs them, and only then."""
    if info.row_scaled:
        return ops.check_scales(scale, "scale", info)
    if scale is not None:
        raise ArgumentError(f"scale: {info.name} has its scales in the blocks")
    return None


def _empty_rows(n: int, width: int, device: str | torch.device) -> nn.Parameter:
    return frozen(torch.zeros(n, width, dtype=torch.uint8, device=device))


class _View(NamedTuple):
    """The core's view of a layer's tensors, as long as nobody put others in their place."""

    tensors: tuple[Tensor | None, ...]
    # Where each lies, and how often it was written to.
    written: tuple[tuple[Tensor, int, int], ...]
    weight: _core.Weight
    shape: tuple[int, int]

    def holds(self, now: Mapping[str, Tensor | None]) -> bool:
        """Whether `now` has the same tensors, as they were. Every call asks."""
        weight, scale, x_step, y_step = self.tensors
        if now["weight"] is not weight or now["weight_scale"] is not scale:
            return False
        if now["input_activation_scale"] is not x_step:
            return False
        if now["output_activation_scale"] is not y_step:
            return False
        for tensor, at, version in self.written:
            if tensor._version != version or tensor.data_ptr() != at:
                return False
        return True


class QuantLinear(PackedModule, nn.Linear):
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

    Raises
    ------
    ArgumentError
        If the format is unknown, or has no scale a row for `static`, or `activations`
        is none of those it may be.
    ShapeError
        If `in_features` is no whole number of blocks.

    Notes
    -----
    Computes in float32 whatever the input, and rounds once to the input's type. The
    gradient of the input is that of the dequantized weights; rounding counts as identity.
    """

    weight_scale: nn.Parameter | None
    input_activation_scale: nn.Parameter | None
    output_activation_scale: nn.Parameter | None
    panels: Tensor | None
    _kept: _View | None = None

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
        _check_length("in_features", in_features, info)
        if static and not info.row_scaled:
            raise ArgumentError(f"static: {format} has no scale a row")
        one_of(activations, "activations", ("auto", "f32"))
        self.in_features, self.out_features = in_features, out_features
        self.format, self.activations = format, activations
        self.register_buffer("panels", None, persistent=False)

        def floats(wanted: bool, *shape: int) -> nn.Parameter | None:
            return _zeros(*shape, device=device) if wanted else None

        width = ops.row_bytes(info, in_features)
        self.weight = _empty_rows(out_features, width, device)
        scale = floats(info.row_scaled, out_features, 1)
        self.register_parameter("weight_scale", scale)
        self.register_parameter("input_activation_scale", floats(static))
        self.register_parameter("output_activation_scale", floats(static))
        added = torch.zeros(out_features, device=device) if bias else None
        if added is not None and added.dtype == torch.float64:
            added = added.float()  # no product takes it
        self.register_parameter("bias", None if added is None else frozen(added))

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
            Needed by the formats with one scale a row.
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
        check_tensors(weight=weight)
        check_optional_tensors(scale=scale, bias=bias)
        info = format_info(format)
        k, scale = ops.features(weight, info), _scale(scale, info)
        layer = cls(
            k,
            weight.shape[0],
            format,
            bias=bias is not None,
            static=steps is not None,
            activations=activations,
            device="meta",
        )
        layer.weight = frozen(weight)
        if scale is not None:
            layer.weight_scale = frozen(scale.reshape(-1, 1))
        if bias is not None:
            check_vector(bias, "bias", layer.out_features)
            layer.bias = frozen(bias)
        if steps is not None:
            layer.input_activation_scale = frozen(steps[0])
            layer.output_activation_scale = frozen(steps[1])
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

        Raises
        ------
        ArgumentError, DTypeError, NumericalError, ShapeError
            If `linear` is no such layer, or as by `halfbyte.torch.quantize`.
        """
        instance(linear, "linear", nn.Linear, "a torch.nn.Linear")
        weight, scale = ops.quantize(linear.weight, format)
        return cls.from_packed(
            weight, format, scale=scale, bias=linear.bias, activations=activations
        )

    def _packed(self) -> tuple[_core.Weight, tuple[int, int]]:
        """The core's view of the weight, and its shape; made again for other tensors."""
        kept = self._kept
        if kept is None or not kept.holds(self._parameters):
            if any(type(tensor) is Tensor for tensor in self._parameters.values()):
                return self._viewed(None)[2:]  # lent for a call, by torch.func
            self._changed()
            self._kept = kept = self._viewed(None)
        return kept[2:]

    def _viewed(self, panels: Tensor | None) -> _View:
        view = ops.weight_of(
            self.weight,
            self.format,
            scales=self.weight_scale,
            panels=panels,
            x_step=self.input_activation_scale,
            y_step=self.output_activation_scale,
        )
        k = ops.features(self.weight, format_info(self.format))
        ops.check_bias(self.bias, self.output_activation_scale)
        tensors = (
            self.weight,
            self.weight_scale,
            self.input_activation_scale,
            self.output_activation_scale,
        )
        written = tuple(
            (tensor, tensor.data_ptr(), tensor._version)
            for tensor in tensors
            if tensor is not None and not tensor.is_inference()  # which have no version
        )
        return _View(tensors, written, view, (self.weight.shape[0], k))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Set a parameter, as assigning to it does, and forget what was made of it."""
        if name == "weight" and type(param) is nn.Parameter:
            noted = param.__dict__  # such as that transformers has loaded it
            param = PackedParameter(param.detach(), False)
            param.__dict__.update(noted)
        super().register_parameter(name, param)
        self._kept = self.panels = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # torch assigns to `data`; this is no merge.
        packed = self._parameters["weight"]
        self._parameters["weight"] = plain = frozen(self.weight)
        done = super()._apply(fn, recurse)
        if self._parameters["weight"] is plain:
            self._parameters["weight"] = packed  # a cast: the view holds as well
        return done

    def _changed(self) -> None:
        self.register_parameter("weight", self._parameters["weight"])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the view, which is of this process's memory, and the panels."""
        buffers = {**self._buffers, "panels": None}
        return self.__dict__ | {"_kept": None, "_buffers": buffers}

    def repack(self) -> QuantLinear:
        """Copy the weights into the order in which products read them.

        Products then run at the speed of memory. No value changes. State dicts, copies
        and pickles hold the weights as they were, and loading or moving them forgets
        the order: call this again.

        Returns
        -------
        QuantLinear
            Itself, with about as many bytes again.
        """
        view = self._packed()[0]  # which forgets panels of other weights
        if self.panels is None:
            panels = view.panels(num_threads())
            if panels.size:
                self.panels = torch.from_numpy(panels)
                self._kept = self._viewed(self.panels)
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
        parameters = self._parameters  # an attribute takes three times as long
        bias = parameters["bias"]
        if at_once(x, bias):
            return ops.product(*self._packed(), x, bias, self.activations)
        held, panels = self.weight, self.panels
        # A program that is exported may be given other weights, and lie elsewhere.
        if _is_exporting() or not isinstance(held, nn.Parameter):
            panels = None
        weight: Tensor = held
        if isinstance(held, PackedParameter) and not torch.compiler.is_compiling():
            if panels is not None:
                self._packed()  # which forgets them if they are of other weights
                panels = self.panels
            weight = held.as_subclass(Tensor)  # make_fx knows no other class
        return ops.linear(
            x,
            weight,
            self.format,
            scales=self.weight_scale,
            panels=panels,
            bias=bias,
            x_step=self.input_activation_scale,
            y_step=self.output_activation_scale,
            activations=self.activations,
        )

    def _formats(self) -> str:
        return self.format

    def extra_repr(self) -> str:
        """Describe shape, format and order."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, format={self.format}, "
            f"static={self.input_activation_scale is not None}, "
            f"repacked={self.panels is not None}"
        )


def repack(layers: Iterable[QuantLinear], how: str) -> None:
    """Repack layers that are not yet, if memory allows.

    Parameters
    ----------
    layers : iterable of QuantLinear
    how : {"auto", "always", "never"}
        ``"auto"``: if free memory holds them all, with a fifth to spare.
    """
    left = [layer for layer in layers if layer.panels is None]
    size = sum(layer._packed()[0].packed_bytes for layer in left)
    if how == "always" or (how == "auto" and _core.memory_holds(size)):
        for layer in left:
            layer.repack()


class QuantEmbedding(PackedModule):
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

    Raises
    ------
    ArgumentError
        If the format is unknown.
    ShapeError
        If `embedding_dim` is no whole number of blocks.
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
        _check_length("embedding_dim", embedding_dim, info)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.format, self.scalar_embed_scale = format, embed_scale
        self.output_dtype = output_dtype
        width = ops.row_bytes(info, embedding_dim)
        self.embedding_quantized = _empty_rows(num_embeddings, width, device)
        scale = _zeros(num_embeddings, groups, device=device)
        self.register_parameter("embedding_scale", scale if info.row_scaled else None)

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
        scale : float32 tensor, shape (N,) or (N, groups), optional
            Needed by the formats with one scale a row.
        embed_scale : float
        output_dtype : torch.dtype

        Returns
        -------
        QuantEmbedding

        Raises
        ------
        ArgumentError, DTypeError, ShapeError
            If the format is unknown, `table` no matrix of bytes, or `scale` not there
            where the format needs it, not float32 or of another shape.
        """
        check_tensors(table=table)
        check_optional_tensors(scale=scale)
        info = format_info(format)
        k, scale = ops.features(table, info), _scale(scale, info)
        if scale is not None and scale.dim() == 1:
            scale = scale.unsqueeze(1)
        if scale is not None and (scale.dim() != 2 or len(scale) != len(table)):
            raise ShapeError(
                f"scale: expected shape ({len(table)}, groups), "
                f"got {tuple(scale.shape)}"
            )
        layer = cls(
            table.shape[0],
            k,
            format,
            embed_scale=embed_scale,
            output_dtype=output_dtype,
            groups=1 if scale is None else scale.shape[1],
            device="meta",
        )
        layer.embedding_quantized = frozen(table)
        if scale is not None:
            layer.embedding_scale = frozen(scale)
        return layer

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> QuantEmbedding:
        """Have rows come in the type that a cast gives dense layers."""
        super()._apply(fn, recurse)
        to = fn(torch.empty(0, dtype=self.output_dtype)).dtype
        if to in TYPES:
            self.output_dtype = to
        return self

    def rows(self, ids: Tensor) -> Tensor:
        """Rows as they are stored, not multiplied by `embed_scale`.

        Parameters
        ----------
        ids : integer tensor, any shape

        Returns
        -------
        tensor of `output_dtype`, shape (*ids.shape, K)

        Raises
        ------
        ArgumentError, DTypeError
            If an id is out of range, or they are no integers.
        """
        plain = ops.embedding_rows(
            ids, self.embedding_quantized, self.format, scales=self.embedding_scale
        )
        return plain.to(self.output_dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of ``ids``, times `embed_scale`."""
        rows: Tensor = self.rows(ids) * self.scalar_embed_scale
        return rows.to(self.output_dtype)

    @property
    def weight(self) -> TableView:
        """The table to be indexed by rows; nothing is unpacked before."""
        return TableView(self)

    def _formats(self) -> str:
        return self.format

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

    def size(self, dim: int | None = None) -> Any:
        """N and K, or one of them."""
        return self.shape if dim is None else self.shape[dim]

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
        n = self._table.num_embeddings
        plain = isinstance(first, (int, slice))  # pick of a range, without N integers
        picked = range(n)[first] if plain else torch.arange(n, device="cpu")[first]
        ids = torch.as_tensor(picked, dtype=torch.int64, device="cpu")
        rows = self._table.rows(ids)
        return rows[(..., *rest)] if rest else rows
