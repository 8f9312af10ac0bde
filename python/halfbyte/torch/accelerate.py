# python/halfbyte/torch/accelerate.py
# SPDX-License-Identifier: Apache-2.0
"""A loaded model's packed layers swapped for ours, and back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from halfbyte import targets
from halfbyte._arguments import instance, one_of
from halfbyte._sizes import size_text
from halfbyte.errors import ArgumentError, UnsupportedError
from halfbyte.formats import format_info, formats
from halfbyte.torch import fuse as fusing
from halfbyte.torch.foreign import Kind, Unsuitable, is_compressed, kind_of
from halfbyte.torch.modules import QuantEmbedding, QuantLinear
from halfbyte.torch.modules import repack as repack_layers
from halfbyte.torch.report import LayerReport

__all__ = ["SKIPPED", "Acceleration", "accelerate", "restore"]

SKIPPED = (r"(^|\.)lm_head$", r"(^|\.)router\.proj$", r"\.lora_[AB]\.")
"""Dense layers that `accelerate` leaves alone unless it is told otherwise."""

_Packed = QuantLinear | QuantEmbedding


@dataclass(frozen=True, repr=False)
class Acceleration(LayerReport):
    """What `accelerate` did to a model."""

    swapped: dict[str, tuple[int, int, int]]
    """Number of layers, and their bytes before and after, by kind and format."""
    copied_bytes: int
    """Of those after: not where the model had them."""
    repacked_bytes: int
    """Beside them, in the order in which products read."""
    kept_bytes: int
    """Held only so that `restore` can put them back."""
    fused: int
    """Modules between the products."""
    threads: int
    threads_reason: str

    def _swapped_rows(self) -> Iterator[tuple[str, str]]:
        for kind, (count, before, after) in self.swapped.items():
            size = size_text(before)
            size += "" if before == after else f" -> {size_text(after)}"
            yield kind, f"{count} layer{'s' * (count > 1)}, {size}"
        sizes = self.bytes_before, self.bytes_after, self.copied_bytes
        yield (
            "bytes",
            "{} before, {} after, {} of it new".format(*map(size_text, sizes)),
        )
        yield "repacked", size_text(self.repacked_bytes)
        yield "kept", f"{size_text(self.kept_bytes)} for halfbyte.restore"
        if self.fused:
            yield "fused", f"{self.fused} modules between the products"
        yield "threads", f"{self.threads} ({self.threads_reason})"


# ---- what was swapped, kept on the model


class _Swap(NamedTuple):
    kind: str
    dense: bool  # before
    packed: _Packed
    original: nn.Module | None  # None: not kept
    bytes_before: int
    copied_bytes: int


@dataclass
class _Swaps:
    done: list[_Swap] = field(default_factory=list)
    fused: dict[str, nn.Module] = field(default_factory=dict)  # what `fuse` took out
    hook: Callable[..., Any] | None = None  # taken: would have expanded the model
    hook_left: bool = False  # as layers that were left need it

    @staticmethod
    def of(model: nn.Module) -> _Swaps | None:
        found: _Swaps | None = model.__dict__.get("_halfbyte_swaps")
        return found


def _bytes(modules: Iterable[nn.Module]) -> dict[int, int]:
    """Address and size of the tensors: what several share is there once."""
    return {
        tensor.data_ptr(): tensor.nbytes
        for module in modules
        for group in (module.parameters(), module.buffers())
        for tensor in group
    }


def _stored(packed: _Packed) -> dict[int, int]:
    """Without the copy in kernel order."""
    panels = getattr(packed, "panels", None)
    taken = _bytes([packed])
    if panels is not None:
        del taken[panels.data_ptr()]
    return taken


# ---- what may be swapped


def _check_place(layer: nn.Module) -> None:
    """Refuse layers that are more than their class says, or elsewhere."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    if any(getattr(layer, name) for name in (*hooks, "_backward_pre_hooks")):
        raise Unsuitable("with hooks: remove them, and call halfbyte.accelerate again")
    # compressed-tensors replaces the forward of every layer that has a scheme.
    replaced = "forward" in layer.__dict__ and not hasattr(layer, "quantization_scheme")
    if replaced or hasattr(layer, "_hf_hook"):
        raise Unsuitable(
            "with a forward of its own, as accelerate gives layers that it moves: load "
            'the model with device_map="cpu", or without one'
        )
    tensors = [*layer.parameters(), *layer.buffers()]
    if elsewhere := sorted({t.device.type for t in tensors if not t.is_cpu}):
        raise Unsuitable(f"on {elsewhere[0]}: move the model to the CPU")


class _Plan(NamedTuple):
    """What was asked for, checked."""

    quantize: str | None
    repack: str
    activations: str
    skip: tuple[re.Pattern[str], ...] | None
    keep: bool

    def check_skip(self, name: str, kind: Kind, shared: bool) -> None:
        """Refuse layers that are to be left alone."""
        if self.skip is not None:
            if any(pattern.search(name) for pattern in self.skip):
                raise Unsuitable("named in skip")
        elif self.quantize is not None and kind.dense:
            if any(re.search(pattern, name) for pattern in SKIPPED):
                raise Unsuitable("the head or a router: left dense by default")
            if shared:
                raise Unsuitable("shares its weights: left dense by default")


def _plan(
    quantize: str | None,
    repack: str,
    activations: str,
    skip: Sequence[str] | None,
    keep: bool,
) -> _Plan:
    infos = map(format_info, formats())
    packed = [info.name for info in infos if info.writable and info.block_len > 1]
    one_of(repack, "repack", ("auto", "always", "never"))
    one_of(activations, "activations", ("auto", "f32"))
    if quantize is not None:
        one_of(quantize, "quantize", packed)
    if isinstance(skip, str):
        raise ArgumentError(f"skip: expected a list of patterns, got {skip!r}")
    try:
        patterns = None if skip is None else tuple(map(re.compile, skip))
    except re.error as error:
        raise ArgumentError(
            f"skip: {error.pattern!r} is no pattern: {error}"
        ) from error
    return _Plan(quantize, repack, activations, patterns, keep)


# ---- swapping


def _places(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Names under which each module is there."""
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    return places


def _converted(
    layer: nn.Module, names: list[str], kind: Kind, plan: _Plan, shared: bool
) -> _Packed:
    plan.check_skip(names[0], kind, shared)
    if "" in names:
        raise Unsuitable("the model itself: put it into a torch.nn.Sequential")
    _check_place(layer)
    return kind.convert(layer, plan.activations)


def _read_elsewhere(model: nn.Module) -> set[nn.Module]:
    """Linear layers whose weights are more than their own business.

    torch's encoder hands those of a layer to one fused operation, and transformers' T5
    casts what goes into some to the type of their weights.
    """
    wide = set[str](getattr(model, "_keep_in_fp32_modules", None) or ())
    read = {m for name, m in model.named_modules() if wide & set(name.split("."))}
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            read.update(module.modules())
    return read


def _swap_layers(model: nn.Module, plan: _Plan, swaps: _Swaps) -> dict[str, list[str]]:
    """Swap what can be, note it in `swaps`; names of the other layers by reason."""
    skipped: dict[str, list[str]] = {}
    owners = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    read = _read_elsewhere(model)
    for layer, names in _places(model).items():
        kind = kind_of(layer, plan.quantize)
        if kind is None:
            continue
        shared = any(owners[id(p)] > 1 for p in layer.parameters(recurse=False))
        try:
            if kind.dense and layer in read:
                raise Unsuitable("others than the layer itself read its weight")
            packed = _converted(layer, names, kind, plan, shared)
        except Unsuitable as reason:
            skipped.setdefault(str(reason), []).append(names[0])
            continue
        before = _bytes([layer])
        new = sum(n for at, n in _bytes([packed]).items() if at not in before)
        kept = layer if plan.keep else None
        swaps.done.append(
            _Swap(kind.name, kind.dense, packed, kept, sum(before.values()), new)
        )
        packed.train(layer.training)
        for name in names:
            model.set_submodule(name, packed)
    return skipped


def _take_hook(model: nn.Module, swaps: _Swaps) -> None:
    """Keep compressed-tensors from expanding the model when it first runs.

    Layers that are still compressed need that: it stays for them, and finds no others.
    """
    handle = model.__dict__.get("ct_decompress_hook")
    if handle is None:
        return
    swaps.hook_left = any(map(is_compressed, model.modules()))
    if not swaps.hook_left:
        swaps.hook = model._forward_pre_hooks[handle.id]
        handle.remove()
        del model.ct_decompress_hook


def _guard_saving(model: nn.Module, swaps: _Swaps) -> None:
    """Refuse to write weights that the model's configuration does not describe.

    A model around which PEFT put adapters writes those alone.
    """
    unsaid = any(s.dense or s.kind.startswith("compressed") for s in swaps.done)
    if (
        unsaid
        and hasattr(model, "save_pretrained")
        and not hasattr(model, "peft_config")
    ):
        model.__dict__["save_pretrained"] = _save_pretrained


def _save_pretrained(*args: Any, **kwargs: Any) -> None:
    del args, kwargs
    raise UnsupportedError(
        "save_pretrained: the model's configuration does not say how its layers are "
        "packed now, so nobody could load what it writes - call halfbyte.restore first, "
        "or pack with halfbyte.transformers.HalfbyteConfig, which saves"
    )


# ---- the report


def _threads() -> tuple[int, str]:
    torch_threads = torch.get_num_threads()
    if targets.num_threads_or(0):
        return targets.num_threads_or(torch_threads), targets.thread_reason()
    return torch_threads, "torch.get_num_threads"


def _report(
    model: nn.Module, swaps: _Swaps, skipped: dict[str, list[str]], plan: _Plan
) -> Acceleration:
    kinds: dict[str, tuple[int, int, int]] = {}
    for swap in swaps.done:
        key = f"{swap.kind}, {swap.packed.format}"
        count, before, after = kinds.get(key, (0, 0, 0))
        after += sum(_stored(swap.packed).values())
        kinds[key] = (count + 1, before + swap.bytes_before, after)
    panels = [getattr(s.packed, "panels", None) for s in swaps.done]
    live = _bytes([model])
    kept = _bytes(s.original for s in swaps.done if s.original is not None)
    threads, reason = _threads()
    return Acceleration(
        model=type(model).__name__,
        swapped=kinds,
        skipped={why: tuple(names) for why, names in skipped.items()},
        bytes_before=sum(before for _, before, _ in kinds.values()),
        bytes_after=sum(after for _, _, after in kinds.values()),
        copied_bytes=sum(s.copied_bytes for s in swaps.done),
        repacked_bytes=sum(p.nbytes for p in panels if p is not None),
        kept_bytes=sum(size for at, size in kept.items() if at not in live),
        fused=len(swaps.fused),
        activations=plan.activations,
        target=targets.cpu_target(),
        threads=threads,
        threads_reason=reason,
    )


def _nothing(model: nn.Module, skipped: dict[str, list[str]]) -> ArgumentError:
    found = [f"{len(names)} {why}" for why, names in skipped.items()]
    if ours := sum(isinstance(m, _Packed) for m in model.modules()):
        found.append(f"{ours} of halfbyte already")
    return ArgumentError(
        f"model: no layer of {type(model).__name__} could be swapped: found "
        + ("; ".join(found) or "none that is known")
    )


@torch.no_grad()
def accelerate(
    model: nn.Module,
    *,
    quantize: str | None = None,
    repack: str = "auto",
    activations: str = "auto",
    skip: Sequence[str] | None = None,
    keep: bool = True,
    fuse: bool = False,
) -> Acceleration:
    """Swap the packed layers of a loaded model for ours, in place.

    Packed bytes are used where they lie; 4-bit groups of compressed-tensors are joined
    with their scales, which copies them. A second call finds nothing new and returns
    the same report. `restore` undoes it.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU. The layers known are transformers' mobile and GGUF ones, and linear
        layers that compressed-tensors has not expanded yet.
    quantize : str, optional
        Pack dense linear layers too, to a format such as ``"q4_0"``. The model then
        refuses `save_pretrained`, as its configuration says nothing of that; so does
        one whose layers compressed-tensors had packed. A model around the one that is
        given does not know, and would save what nobody can load.
    repack : {"auto", "always", "never"}
        Whether to copy the weights into the order in which products read them, beside
        the bytes that the model keeps. ``"auto"`` copies if free memory holds that with
        a fifth to spare.
    activations : {"auto", "f32"}
        As for `halfbyte.linear`. ``"f32"`` also leaves out the rounding that a mobile
        checkpoint was trained with: slow, for comparisons.
    skip : list of str, optional
        Regular expressions; a layer in whose name one is found is left alone. By
        default all packed layers are swapped, and `quantize` leaves alone the head,
        routers, and weights that another layer shares. A list, which may be empty,
        takes the place of that.
    keep : bool
        Whether to keep the layers for `restore`. It costs nothing where bytes are
        used where they lie; elsewhere the report says what.
    fuse : bool
        Whether halfbyte also computes what stands between the products of transformers'
        Gemma 3 and Gemma 4: norms, rotary embeddings, GELU, the choice of experts.

    Returns
    -------
    Acceleration
        Also kept as ``model.halfbyte_report``.

    Raises
    ------
    ArgumentError
        If no layer could be swapped; the message says what was found. If an option is
        none of those it may be.
    DTypeError
        If `model` is no module, or an option of another type.
    """
    instance(model, "model", nn.Module, "a torch.nn.Module")
    plan = _plan(quantize, repack, activations, skip, keep)
    swaps = _Swaps.of(model) or _Swaps()
    model.__dict__["_halfbyte_swaps"] = swaps
    try:
        skipped = _swap_layers(model, plan, swaps)
    finally:  # a call that is cut short leaves a model that cannot be saved either
        _guard_saving(model, swaps)
    if not swaps.done:
        del model.__dict__["_halfbyte_swaps"]
        raise _nothing(model, skipped)
    if fuse:
        swaps.fused |= fusing.fuse(model)
    _take_hook(model, swaps)
    linears = [s.packed for s in swaps.done if isinstance(s.packed, QuantLinear)]
    repack_layers(linears, "never" if activations == "f32" else repack)
    report = _report(model, swaps, skipped, plan)
    model.__dict__["halfbyte_report"] = report
    return report


def restore(model: nn.Module) -> None:
    """Put back the layers that `accelerate` swapped: the same objects.

    Parameters
    ----------
    model : torch.nn.Module

    Raises
    ------
    ArgumentError
        If `accelerate` did not change this model or was told not to keep its layers, or
        if compressed-tensors has expanded layers since that were left to it.
    DTypeError
        If `model` is no module.
    """
    swaps = _Swaps.of(instance(model, "model", nn.Module, "a torch.nn.Module"))
    if swaps is None:
        raise ArgumentError(
            "model: expected one that halfbyte.accelerate changed, got "
            f"{type(model).__name__}"
        )
    originals = {s.packed: s.original for s in swaps.done if s.original is not None}
    if len(originals) < len(swaps.done):
        raise ArgumentError(
            "model: its layers were not kept (keep=False): load it again"
        )
    if swaps.hook_left and not hasattr(model, "ct_decompress_hook"):
        raise ArgumentError(
            "model: compressed-tensors has expanded what was left: load it again"
        )
    fusing.unfuse(model, swaps.fused)
    for layer, names in _places(model).items():
        if layer in originals:
            original = originals[layer].train(layer.training)
            for name in names:
                model.set_submodule(name, original)
    if swaps.hook is not None:
        handle = model.register_forward_pre_hook(swaps.hook)
        model.__dict__["ct_decompress_hook"] = handle
    del model.__dict__["_halfbyte_swaps"]
    model.__dict__.pop("save_pretrained", None)
    model.__dict__.pop("halfbyte_report", None)  # not there if the call was cut short
