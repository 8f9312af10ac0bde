# python/halfbyte/torch/foreign.py
# What transformers and compressed-tensors keep packed is known by the classes of modules
# that are imported already: a model cannot hold a layer of one that is not.
# SPDX-License-Identifier: Apache-2.0
"""Layers that other libraries keep packed, and dense ones, as layers of halfbyte."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from halfbyte.errors import NumericalError
from halfbyte.formats import format_info, formats
from halfbyte.torch import ops
from halfbyte.torch._dispatch import BYTES
from halfbyte.torch.modules import QuantEmbedding, QuantLinear

__all__ = ["Kind", "Unsuitable", "is_compressed", "is_packed", "kind_of"]

Packed = QuantLinear | QuantEmbedding


class Unsuitable(Exception):
    """Why a layer is left as it is."""


class Kind(NamedTuple):
    """A sort of layer.

    Attributes
    ----------
    name : str
    convert : callable
        Takes a layer and the name of how activations are rounded, and gives one of ours
        over the same bytes where they lie as ours do; raises `Unsuitable`.
    dense : bool
        Whether its weights are floats.
    """

    name: str
    convert: Callable[[Any, str], Packed]
    dense: bool = False


_WIDTHS = {2: "w2", 4: "w4", 8: "w8"}


def _of_width(bits: int) -> str:
    if bits not in _WIDTHS:
        raise Unsuitable(f"{bits}-bit weights: expected 2, 4 or 8 bits")
    return _WIDTHS[bits]


def _check_bytes(weight: Tensor, format: str, n: int, k: int) -> None:
    """Refuse bytes that are not n rows of k weights."""
    info = format_info(format)
    if k % info.block_len:
        raise Unsuitable(f"rows of {k}: expected a multiple of {info.block_len}")
    want, got = (n, ops.row_bytes(info, k)), tuple(weight.shape)
    if got != want or weight.dtype not in BYTES:
        raise Unsuitable(
            f"weights of shape {got} in {weight.dtype}: expected {want} in uint8"
        )
    if not weight.is_contiguous():
        raise Unsuitable("weights with gaps: call .contiguous() on them")


def _scales(scale: Tensor, n: int, groups: int = 1) -> Tensor:
    """Scales of rows in float32, which copies them only if they are in another type."""
    if tuple(scale.shape) != (n, groups):
        raise Unsuitable(
            f"scales of shape {tuple(scale.shape)}: expected {(n, groups)}"
        )
    if not torch.isfinite(scale).all():
        raise Unsuitable("scales that are not finite: the layer is not in use")
    return scale.detach().float().contiguous()


# ---- steps that activations were trained to be rounded with


def _step(step: Tensor) -> Tensor:
    if step.numel() != 1 or not (torch.isfinite(step).all() and float(step) >= 0):
        raise Unsuitable("a step of activations that is no number from 0 up")
    return step.detach().float().reshape(())


def _check_bias(layer: Any, steps: tuple[Tensor, Tensor]) -> None:
    if layer.bias is not None and float(steps[1]) != 0:
        raise Unsuitable("a bias that is added before the output is rounded")


# ---- transformers' mobile modules


def _mobile_linear(layer: Any, activations: str) -> QuantLinear:
    format, n = _of_width(layer.num_bits), layer.out_features
    _check_bytes(layer.weight, format, n, layer.in_features)
    steps = _step(layer.input_activation_scale), _step(layer.output_activation_scale)
    _check_bias(layer, steps)
    return QuantLinear.from_packed(
        layer.weight,
        format,
        scale=_scales(layer.weight_scale, n),
        bias=layer.bias,
        steps=steps,
        activations=activations,
    )


def _mobile_embedding(layer: Any, activations: str) -> QuantEmbedding:  # noqa: ARG001
    format, n = _of_width(layer.num_bits), layer.num_embeddings
    table, scale = layer.embedding_quantized, layer.embedding_scale
    _check_bytes(table, format, n, layer.embedding_dim)
    groups = scale.shape[-1]
    if groups == 0 or layer.embedding_dim % groups:
        raise Unsuitable(f"{groups} scales for rows of {layer.embedding_dim}")
    return QuantEmbedding.from_packed(
        table,
        format,
        scale=_scales(scale, n, groups),
        embed_scale=layer.scalar_embed_scale,
        output_dtype=layer.output_dtype,
    )


# ---- transformers' GGUF modules

_OF_GGML = {info.type_id: info.name for info in map(format_info, formats())}


def _of_ggml(type_id: int) -> str:
    if type_id not in _OF_GGML:
        raise Unsuitable(f"blocks of ggml's type {type_id}, which halfbyte has not")
    return _OF_GGML[type_id]


def _gguf_linear(layer: Any, activations: str) -> QuantLinear:
    format = _of_ggml(layer.ggml_type)
    _check_bytes(layer.weight, format, layer.out_features, layer.in_features)
    if layer.input_permutation is not None:
        raise Unsuitable("an input that is permuted before the product")
    return QuantLinear.from_packed(
        layer.weight, format, bias=layer.bias, activations=activations
    )


def _gguf_embedding(layer: Any, activations: str) -> QuantEmbedding:  # noqa: ARG001
    format = _of_ggml(layer.ggml_type)
    _check_bytes(layer.weight, format, layer.num_embeddings, layer.embedding_dim)
    return QuantEmbedding.from_packed(
        layer.weight, format, output_dtype=layer.compute_dtype
    )


def _gguf_experts(layer: Any, activations: str) -> Packed:  # noqa: ARG001
    raise Unsuitable("experts in one tensor, for which there is no layer yet")


# ---- compressed-tensors: plain linear layers whose tensors are others


def is_compressed(layer: nn.Module) -> bool:
    """Whether compressed-tensors has yet to expand the layer.

    Parameters
    ----------
    layer : torch.nn.Module

    Returns
    -------
    bool
    """
    if not hasattr(layer, "quantization_scheme"):
        return False
    weight = layer._parameters.get("weight")
    if weight is None:
        return "weight_packed" in layer._parameters
    return not weight.is_floating_point()


def _joined(codes: Tensor, scale: Tensor, k: int) -> Tensor:
    """Blocks of w4g32: a scale, then 16 bytes of codes. The groups may be longer."""
    narrow = scale.detach().bfloat16()
    if not torch.equal(narrow.to(scale.dtype), scale):
        raise Unsuitable("scales of groups that bfloat16 does not hold")
    n, groups = scale.shape
    blocks = torch.empty(n, k // 32, 18, dtype=torch.uint8)
    repeated = narrow.repeat_interleave(k // 32 // groups, dim=1)
    blocks[..., :2] = repeated.view(torch.uint8).view(n, -1, 2)
    blocks[..., 2:] = codes.view(n, -1, 16)
    return blocks.view(n, -1)


def _check_tensors(layer: Any) -> None:
    """Refuse what is more than codes times scales, and steps."""
    known = {"weight", "weight_packed", "weight_scale", "weight_shape", "bias"}
    known |= {"input_scale", "output_scale"}
    held = layer._parameters | layer._buffers
    others = sorted(n for n, tensor in held.items() if tensor is not None)
    if others := [name for name in others if name not in known]:
        raise Unsuitable(f"compressed with {', '.join(others)}")


def _trained_step(layer: Any, side: str) -> Tensor:
    """The step of codes going in or coming out; 0 where none was trained."""
    args = getattr(layer.quantization_scheme, f"{side}_activations")
    step = getattr(layer, f"{side}_scale", None)
    if args is None:
        return torch.zeros(())
    kind = args.type, args.num_bits, args.symmetric, args.strategy, args.dynamic
    if kind != ("int", 8, True, "tensor", False) or step is None:
        raise Unsuitable(
            f"compressed with rounding of activations: expected {side}_activations with "
            "one step of 8 bits, known beforehand"
        )
    # Only calibrated layers have steps in the file. For the others transformers leaves
    # memory as it was, and they lack the mark that it puts on what it has loaded.
    marked = hasattr(layer.weight_scale, "_is_hf_initialized")
    if marked and not hasattr(step, "_is_hf_initialized"):
        return torch.zeros(())
    return _step(step)


def _trained_steps(layer: Any, grouped: bool) -> tuple[Tensor, Tensor] | None:
    steps = _trained_step(layer, "input"), _trained_step(layer, "output")
    if not any(map(float, steps)):
        return None
    if grouped:
        raise Unsuitable("steps of activations beside scales of groups")
    _check_bias(layer, steps)
    return steps


def _codes(layer: Any) -> tuple[Tensor, int]:
    """Bytes of the codes, lowest bits first, and their width."""
    n, k = layer.out_features, layer.in_features
    if "weight_packed" not in layer._parameters:
        return layer.weight, 8
    words = layer.weight_packed.detach()
    shape = tuple(int(size) for size in layer.weight_shape)
    bits = 32 * words.shape[-1] // max(k, 1)
    if words.dtype != torch.int32 or shape != (n, k):
        raise Unsuitable(
            f"{words.dtype} words for a matrix of {shape}: expected int32 for {(n, k)}"
        )
    _check_bytes(words.view(torch.uint8), _of_width(bits), n, k)
    codes = words.view(torch.uint8)
    return codes ^ 0x80 if bits == 8 else codes, bits  # offset binary to signed bytes


def _compressed(layer: Any, activations: str) -> QuantLinear:
    _check_tensors(layer)
    codes, bits = _codes(layer)
    n, k, scale = layer.out_features, layer.in_features, layer.weight_scale
    groups = scale.shape[-1] if scale.dim() == 2 else 0
    format = _of_width(bits)
    if groups > 1:
        if bits != 4 or k % (32 * groups):
            raise Unsuitable(
                f"{bits}-bit weights with {groups} scales for rows of {k}: expected 4 "
                "bits and groups of 32, or a multiple"
            )
        _scales(scale, n, groups)
        codes, format = _joined(codes, scale, k), "w4g32"
    _check_bytes(codes, format, n, k)
    return QuantLinear.from_packed(
        codes,
        format,
        scale=_scales(scale, n) if groups <= 1 else None,
        bias=layer.bias,
        steps=_trained_steps(layer, groups > 1),
        activations=activations,
    )


def _expanded(layer: Any, activations: str) -> Packed:  # noqa: ARG001
    raise Unsuitable(
        "expanded by compressed-tensors: load the model again, and call "
        "halfbyte.accelerate before its first forward"
    )


# ---- dense layers


def _dense(format: str | None) -> Callable[[Any, str], QuantLinear]:
    def convert(layer: Any, activations: str) -> QuantLinear:
        if format is None:
            raise Unsuitable('dense: quantize="q4_0" packs such layers')
        if layer.weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise Unsuitable(f"dense weights in {layer.weight.dtype}")
        if layer.in_features % format_info(format).block_len:
            raise Unsuitable(f"rows of {layer.in_features} do not fit {format}")
        try:
            return QuantLinear.from_linear(layer, format, activations=activations)
        except NumericalError as error:
            raise Unsuitable(f"weights that {format} cannot hold: {error}") from None

    return convert


_TRANSFORMERS = "transformers.integrations."
_CLASSES = (
    (
        f"{_TRANSFORMERS}gemma_quant",
        {
            "QuantizedLinear": Kind("mobile linear", _mobile_linear),
            "QuantizedEmbedding": Kind("mobile embedding", _mobile_embedding),
        },
    ),
    (
        f"{_TRANSFORMERS}gguf.utils",
        {
            "GgufLinear": Kind("GGUF linear", _gguf_linear),
            "GgufEmbedding": Kind("GGUF embedding", _gguf_embedding),
            "GgufExperts": Kind("GGUF experts", _gguf_experts),
        },
    ),
)


def _linear_kind(layer: nn.Linear, format: str | None) -> Kind:
    if is_compressed(layer):
        return Kind("compressed-tensors linear", _compressed)
    if hasattr(layer, "quantization_scheme"):
        return Kind("expanded linear", _expanded)
    return Kind("dense linear", _dense(format), dense=True)


def kind_of(layer: nn.Module, quantize: str | None) -> Kind | None:
    """What sort of layer this is, by its exact class: a subclass may do more.

    Parameters
    ----------
    layer : torch.nn.Module
    quantize : str or None
        Format of dense layers.

    Returns
    -------
    Kind or None
        None for what is no product and no table, or is unknown.
    """
    if type(layer) is nn.Linear:
        return _linear_kind(layer, quantize)
    for place, kinds in _CLASSES:
        module = sys.modules.get(place)
        for name, kind in kinds.items():
            if module is not None and type(layer) is getattr(module, name, None):
                return kind
    return None


def is_packed(layer: nn.Module) -> bool:
    """Whether another library keeps the layer packed now.

    Parameters
    ----------
    layer : torch.nn.Module

    Returns
    -------
    bool
    """
    kind = kind_of(layer, None)
    return kind is not None and not kind.dense and kind.convert is not _expanded
