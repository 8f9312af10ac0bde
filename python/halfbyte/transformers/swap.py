# python/halfbyte/transformers/swap.py
# A plan names what is packed and in which format: modules, and the two matrices of a
# mixture's experts, which are parameters of one.
# SPDX-License-Identifier: Apache-2.0
"""The exchange of a skeleton's dense layers for packed ones."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.quantizers.quantizers_utils import should_convert_module

from halfbyte.choice import ENCODERS
from halfbyte.errors import ArgumentError, ModelError
from halfbyte.formats import format_info
from halfbyte.torch import QuantEmbedding, QuantLinear, dequantize, ops
from halfbyte.torch.experts import QuantExperts
from halfbyte.torch.report import Packing
from halfbyte.transformers.config import HalfbyteConfig

__all__ = [
    "Swapped",
    "apply",
    "check_loaded",
    "check_shapes",
    "fill",
    "format_of",
    "let_go",
    "pack",
    "plan",
    "saved_plan",
    "shapes",
]

Plan = dict[str, str]
Shapes = dict[str, torch.Size]

# No QAT release packs these: the choice of experts, and the encoders of images and sound
# with what leads from them to the text.
_NEVER = [
    "router.proj",
    *(f".*{part}" for part in sorted(ENCODERS)),
]
_EXPERTS = {"Gemma4TextExperts"}
_EXPERT_PARTS = ("gate_up_proj", "down_proj")

# A dense tensor is widened to float32 on the way: this many weights at a time.
_CHUNK = 1 << 21

_PAGEOUT = 21  # MADV_PAGEOUT, of Linux 5.4 and later


class Swapped(NamedTuple):
    """What an exchange left behind."""

    report: Packing
    dense: dict[str, nn.Module]  # the layers that were taken out, without memory


def is_experts(module: nn.Module) -> bool:
    """Whether `module` holds the experts of a mixture in a form that is known."""
    return type(module).__name__ in _EXPERTS


# ---- plans


def plan(model: Any, config: HalfbyteConfig, left: list[str]) -> tuple[Plan, Plan]:
    """Choose what is packed of a dense model.

    Parameters
    ----------
    model : PreTrainedModel
    config : HalfbyteConfig
    left : list of str
        Patterns of modules that stay: tied ones, heads, those the user named.

    Returns
    -------
    chosen : dict of str to str
        Names to formats.
    skipped : dict of str to str
        Names to reasons.
    """
    chosen, skipped = _tables(model, config)
    for name, module in model.named_modules():
        if name in chosen or name in skipped:
            continue
        if type(module) is nn.Linear:
            parts = {name: module.in_features}
        elif is_experts(module):
            parts = {
                f"{name}.{part}": getattr(module, part).shape[-1]
                for part in _EXPERT_PARTS
            }
        else:
            continue
        if should_convert_module(name, [*left, *_NEVER]):
            reason = _unfit(parts, config.format)
        else:
            reason = "to stay as it is"
        if reason:
            skipped[name] = reason
        else:
            chosen |= dict.fromkeys(parts, config.format)
    return chosen, skipped


def _unfit(parts: dict[str, int], format: str) -> str:
    """Why rows of these lengths cannot have a format; empty if they can."""
    info = format_info(format)
    for k in parts.values():
        if k % info.block_len:
            return f"{k} weights a row, {format} takes multiples of {info.block_len}"
    if len(parts) > 1 and info.row_scaled:
        return f"experts cannot be {format}, whose scales are kept apart"
    return ""


def _tables(model: Any, config: HalfbyteConfig) -> tuple[Plan, Plan]:
    """The same for embeddings, and for the heads tied to them."""
    chosen: Plan = {}
    skipped: Plan = {}
    format = config.table_format
    tied = _tied_tables(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding):
            continue
        if format is None:
            skipped[name] = "an embedding: see HalfbyteConfig(embeddings=…)"
        elif name in tied:
            skipped[name] = "an embedding tied to another"
        elif type(module) is not nn.Embedding and not hasattr(
            module, "scalar_embed_scale"
        ):
            skipped[name] = f"a {type(module).__name__}, which may do more"
        elif not should_convert_module(
            name, [*(config.modules_to_not_convert or []), *_NEVER]
        ):
            skipped[name] = "to stay as it is"
        elif reason := _unfit({name: module.embedding_dim}, format):
            skipped[name] = reason
        else:
            chosen[name] = format
    for target, source in model.all_tied_weights_keys.items():
        if (table := source.removesuffix(".weight")) in chosen:
            chosen[target.removesuffix(".weight")] = chosen[table]
    return chosen, skipped


def _tied_tables(model: Any) -> set[str]:
    """Embeddings that share their weights with embeddings."""
    tied: set[str] = set()
    for pair in model.all_tied_weights_keys.items():
        names = [name.removesuffix(".weight") for name in pair]
        modules = [model.get_submodule(name.rpartition(".")[0]) for name in pair]
        if all(isinstance(module, nn.Embedding) for module in modules):
            tied.update(names)
    return tied


def saved_plan(model: Any, config: HalfbyteConfig) -> tuple[Plan, Plan]:
    """What a checkpoint says is packed in it; see `plan`.

    Raises
    ------
    ModelError
        If it says nothing, or names what the model does not have.
    """
    if not config.module_formats:
        raise ModelError(
            "quantization_config: expected module_formats, the packed modules of the "
            "checkpoint, found none: save it again with save_pretrained"
        )
    prefix = f"{model.base_model_prefix}."
    known = {name for name, _ in model.named_modules()}
    chosen: Plan = {}
    for name, format in config.module_formats.items():
        # A model with a head and the bare one differ by a prefix.
        spellings = (name, name.removeprefix(prefix), prefix + name)
        found = [s for s in spellings if _owner(s, known)]
        if not found:
            raise ModelError(
                f"module_formats: {name!r} is no module of {type(model).__name__}: load "
                "the checkpoint with the class that saved it"
            )
        chosen[found[0]] = format
    return chosen, {}


def _owner(name: str, known: set[str]) -> str:
    """The module that a name of a plan is about; empty if there is none."""
    if name in known:  # a layer of its own, such as shared_experts.down_proj
        return name
    parent, _, leaf = name.rpartition(".")
    is_part = leaf in _EXPERT_PARTS and parent.endswith("experts")
    return parent if is_part and parent in known else ""


# ---- the exchange


def apply(model: Any, chosen: Plan, skipped: Plan, config: HalfbyteConfig) -> Swapped:
    """Put packed layers, without memory yet, in the place of dense ones.

    Parameters
    ----------
    model : PreTrainedModel
        On the device ``meta``.
    chosen, skipped : dict of str to str
        See `plan`.
    config : HalfbyteConfig

    Returns
    -------
    Swapped

    Raises
    ------
    ModelError
        If nothing is chosen.
    """
    if not chosen:
        reasons = "; ".join(sorted(set(skipped.values()))) or "it has no linear layer"
        raise ModelError(f"nothing of {type(model).__name__} can be packed: {reasons}")
    known = {name for name, _ in model.named_modules()}
    shared = {name.removesuffix(".weight") for name in model.all_tied_weights_keys}
    dense: dict[str, nn.Module] = {}
    before = after = 0
    for name in dict.fromkeys(_owner(name, known) for name in chosen):
        old = model.get_submodule(name)
        new = _packed(old, name, chosen, config)
        as_it_comes(new)
        model.set_submodule(name, new)
        dense[name] = old
        if name not in shared:
            before, after = before + _num_bytes(old), after + _num_bytes(new)
    _tie_packed(model)
    report = Packing.of(
        type(model).__name__, chosen, skipped, (before, after), config.activations
    )
    return Swapped(report, dense)


def _num_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _packed(
    old: nn.Module, name: str, chosen: Plan, config: HalfbyteConfig
) -> nn.Module:
    if isinstance(old, nn.Linear):
        return QuantLinear(
            old.in_features,
            old.out_features,
            chosen[name],
            bias=old.bias is not None,
            activations=config.activations,
            device="meta",
        )
    if isinstance(old, nn.Embedding):
        return QuantEmbedding(
            old.num_embeddings,
            old.embedding_dim,
            chosen[name],
            embed_scale=_embed_scale(old),
            output_dtype=old.weight.dtype,
            device="meta",
        )
    if is_experts(old):
        experts: Any = old
        return QuantExperts(
            experts.num_experts,
            experts.hidden_dim,
            experts.intermediate_dim,
            (chosen[f"{name}.gate_up_proj"], chosen[f"{name}.down_proj"]),
            experts.act_fn,
            activations=config.activations,
            device="meta",
        )
    raise ModelError(
        f"module_formats: {name!r} is a {type(old).__name__}: expected a linear layer, "
        "an embedding or experts"
    )


def _embed_scale(table: nn.Embedding) -> float:
    """What rows are multiplied by: rounded to their type, as the dense layer does."""
    scale = getattr(table, "scalar_embed_scale", 1.0)
    return float(torch.tensor(scale, device="cpu").to(table.weight.dtype))


def _tie_packed(model: Any) -> None:
    """Tie heads to packed tables by the name that those give their bytes."""
    tied: dict[str, str] = {}
    for target, source in model.all_tied_weights_keys.items():
        name = source.removesuffix(".weight")
        table = model.get_submodule(name) if name != source else None
        packed = isinstance(table, QuantEmbedding)
        tied[target] = f"{name}.embedding_quantized" if packed else source
    if tied != model.all_tied_weights_keys:
        model.all_tied_weights_keys = model._tied_weights_keys = tied


# ---- what a checkpoint lacks


def as_it_comes(layer: nn.Module) -> None:
    """Keep Transformers from drawing numbers for what a checkpoint lacks of a layer.

    Bytes take none: it would fail before `check_loaded` could say what is missing.
    """
    layer._is_hf_initialized = True  # type: ignore[assignment]


# Of compressed-tensors: only layers that were calibrated have them.
_OPTIONAL = ("input_scale", "output_scale")


def check_loaded(model: Any, layers: Mapping[str, nn.Module], advice: str) -> None:
    """Refuse packed layers of which a tensor is missing in the checkpoint.

    Transformers gives it memory as it finds it, and a line in a report. What it has read
    it marks, in all releases from 5.5 on.

    Parameters
    ----------
    model : PreTrainedModel
        As it was loaded, with ties in place.
    layers : mapping of str to torch.nn.Module
        Of it, by name.
    advice : str
        What to do.

    Raises
    ------
    ModelError
        If one is missing; the first are named.
    """
    needed = {
        f"{name}.{key}": tensor
        for name, layer in layers.items()
        for key, tensor in (layer._parameters | layer._buffers).items()
        if tensor is not None and key not in _OPTIONAL
    }
    tied = model.all_tied_weights_keys
    absent = [
        name
        for name, tensor in needed.items()
        if not hasattr(tensor, "_is_hf_initialized")
        and tied.get(name) not in needed  # it is not in the file, and its source counts
    ]
    if absent:
        more = len(absent) - 3
        names = ", ".join(absent[:3]) + (f" and {more} more" if more > 0 else "")
        raise ModelError(
            f"{names}: found none in the checkpoint; packed layers need all of their "
            f"tensors: {advice}",
            code="MODEL_MISSING_TENSOR",
            tensor=absent[0],
            found="none",
        )


def check_shapes(layers: Mapping[str, nn.Module], skeleton: Shapes) -> None:
    """Refuse packed layers whose tensors are not those of the configuration.

    Transformers compares no shapes of what a quantizer makes, and older releases none of
    a packed checkpoint.

    Parameters
    ----------
    layers : mapping of str to torch.nn.Module
        By name, as they were loaded.
    skeleton : dict of str to torch.Size
        From `shapes`, before that.

    Raises
    ------
    ModelError
        If one has another shape.
    """
    for name, found in shapes(layers).items():
        if found != skeleton[name]:
            raise ModelError(
                f"{name}: found {tuple(found)} in the checkpoint, as it is packed; "
                f"config.json asks for {tuple(skeleton[name])}: load it with its own",
                code="MODEL_SHAPE",
                tensor=name,
                found=str(tuple(found)),
                expected=str(tuple(skeleton[name])),
            )


def shapes(layers: Mapping[str, nn.Module]) -> Shapes:
    """Shapes of all parameters of layers, by name."""
    return {
        f"{name}.{key}": parameter.shape
        for name, layer in layers.items()
        for key, parameter in layer.named_parameters(recurse=False)
    }


# ---- weights


def format_of(module: nn.Module, parameter: str) -> str:
    """Format of a parameter of a packed layer."""
    if isinstance(module, QuantExperts):
        return module.formats[_EXPERT_PARTS.index(parameter)]
    return str(module.format)


def pack(dense: Tensor, format: str) -> tuple[Tensor, Tensor | None]:
    """Pack a dense tensor, some rows at a time.

    Parameters
    ----------
    dense : float tensor, shape (..., K)
    format : str

    Returns
    -------
    packed : uint8 tensor, shape (..., bytes of a row)
    scales : float32 tensor, or None
        One a row, of the formats that keep them apart.

    Raises
    ------
    ArgumentError
        If a weight is not finite.
    """
    info = format_info(format)
    rows = dense.reshape(-1, dense.shape[-1])
    n, k = rows.shape
    packed = torch.empty(n, ops.row_bytes(info, k), dtype=torch.uint8)
    scales = torch.empty(n, dtype=torch.float32) if info.row_scaled else None
    step = max(1, _CHUNK // k)
    for at in range(0, n, step):
        part = rows[at : at + step]
        if not torch.isfinite(part).all():
            raise ArgumentError("weights: expected finite numbers")
        packed[at : at + step], steps = ops.quantize(part, format)
        if scales is not None and steps is not None:
            scales[at : at + step] = steps
    return packed.view(*dense.shape[:-1], -1), scales


def let_go(dense: Tensor) -> None:
    """Take a tensor that was read out of memory, if it lies in a mapped file.

    The pages of a checkpoint else stay with the process until it is loaded. No byte is
    lost: they are read again if they are asked for. Where the system cannot do that,
    nothing happens.

    Parameters
    ----------
    dense : tensor
    """
    if not sys.platform.startswith("linux"):
        return
    begin = -(-dense.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (dense.data_ptr() + dense.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _PAGEOUT)


def fill(dense: Any, packed: nn.Module, dtype: torch.dtype | None) -> None:
    """Give a dense layer memory, and the weights of the packed one.

    Parameters
    ----------
    dense : torch.nn.Module
        Without memory, from `Swapped`.
    packed : QuantLinear, QuantEmbedding or QuantExperts
    dtype : torch.dtype, optional
        Of the weights; that of the dense layer by default.
    """
    dense.to_empty(device="cpu")
    if dtype is not None:
        dense.to(dtype)
    if hasattr(dense, "embed_scale"):
        dense.embed_scale.fill_(dense.scalar_embed_scale)
    fill_weights(dense, packed)


@torch.no_grad()
def fill_weights(dense: Any, packed: nn.Module) -> None:
    """Copy the weights of a packed layer into a dense one of its shape.

    Parameters
    ----------
    dense : torch.nn.Module
    packed : QuantLinear, QuantEmbedding or QuantExperts
    """
    if isinstance(packed, QuantLinear):
        dense.weight.copy_(packed.dequantize())
        if packed.bias is not None:
            dense.bias.copy_(packed.bias)
    elif isinstance(packed, QuantEmbedding):
        dense.weight.copy_(packed.rows(torch.arange(packed.num_embeddings)))
    elif isinstance(packed, QuantExperts):
        for part, format in zip(_EXPERT_PARTS, packed.formats, strict=True):
            for expert, block in enumerate(getattr(packed, part)):
                getattr(dense, part)[expert] = dequantize(block, format)
