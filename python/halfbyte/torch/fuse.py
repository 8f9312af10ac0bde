# python/halfbyte/torch/fuse.py
# Modules are known by the names of their classes, and what they compute is read off
# their own numbers: no release of transformers is asked for its version.
# SPDX-License-Identifier: Apache-2.0
"""The exchange of what stands between a Gemma model's products, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from halfbyte.torch.fused import (
    FusedGelu,
    FusedRMSNorm,
    FusedRotary,
    FusedRouter,
    Turns,
)

__all__ = ["fuse", "unfuse"]


def _gemma3_norm(old: Any) -> nn.Module:
    return FusedRMSNorm(old.weight, old.eps, plus_one=True)


def _gemma4_norm(old: Any) -> nn.Module:
    return FusedRMSNorm(old.weight if old.with_scale else None, old.eps)


def _gelu(old: Any) -> nn.Module:  # noqa: ARG001
    return FusedGelu()


def _rotary(old: Any) -> nn.Module | None:
    found = {kind: _turns(old, kind) for kind in set(old.config.layer_types)}
    turns = {kind: turn for kind, turn in found.items() if turn is not None}
    return FusedRotary(turns) if len(turns) == len(found) else None


# float32 powers: 1e-6 and less beside those in double. Another exponent or factor
# changes a frequency by more than a hundred times that.
_POWERS = 1e-5


def _turns(old: Any, kind: str) -> Turns | None:
    """The numbers of a kind of layer; None if they do not make its frequencies."""
    freqs = getattr(old, f"{kind}_inv_freq", None)
    if freqs is None or getattr(old, f"{kind}_attention_scaling", 1.0) != 1.0:
        return None
    numbers = old.config.rope_parameters[kind]
    base, factor = float(numbers["rope_theta"]), float(numbers.get("factor", 1.0))
    pairs, head_dim = int(freqs.count_nonzero()), 2 * freqs.numel()
    exponents = torch.arange(pairs, dtype=torch.float64) * (-2.0 / head_dim)
    want = base**exponents / factor
    if not torch.allclose(freqs[:pairs].double(), want, rtol=_POWERS, atol=0.0):
        return None
    return Turns(head_dim, pairs, base, factor)


_MODELS = "transformers.models."
_GEMMA3 = f"{_MODELS}gemma3.modeling_gemma3.Gemma3"
_GEMMA4 = f"{_MODELS}gemma4.modeling_gemma4.Gemma4"
_UNIFIED = f"{_MODELS}gemma4_unified.modeling_gemma4_unified.Gemma4Unified"
_FUSED: dict[str, Callable[[Any], nn.Module | None]] = {
    f"{_GEMMA3}RMSNorm": _gemma3_norm,
    f"{_GEMMA3}RotaryEmbedding": _rotary,
    f"{_GEMMA4}RMSNorm": _gemma4_norm,
    f"{_GEMMA4}TextRotaryEmbedding": _rotary,
    f"{_GEMMA4}TextRouter": FusedRouter,
    f"{_UNIFIED}RMSNorm": _gemma4_norm,
    f"{_UNIFIED}TextRotaryEmbedding": _rotary,
    "transformers.activations.GELUTanh": _gelu,
}


def _is_plain(module: nn.Module) -> bool:
    """Whether it does what its class says, and no more."""
    hooks = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks"
    hooked = any(getattr(module, name) for name in (*hooks, "_backward_pre_hooks"))
    return not hooked and "forward" not in module.__dict__


def fuse(model: nn.Module) -> dict[str, nn.Module]:
    """Swap norms, rotary embeddings, GELUs and routers for ours, in place.

    Modules with hooks, or with a forward of their own, are left.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    dict of str to torch.nn.Module
        What was taken out, by name, for `unfuse`; empty if nothing is known.
    """
    taken: dict[str, nn.Module] = {}
    for name, old in list(model.named_modules()):
        cls = type(old)
        make = _FUSED.get(f"{cls.__module__}.{cls.__qualname__}")
        inside = any(name.startswith(f"{outer}.") for outer in taken)
        known = make is not None and not inside and _is_plain(old)
        new = make(old) if make is not None and known else None
        if new is not None:
            taken[name] = old
            model.set_submodule(name, new.train(old.training))
    return taken


def unfuse(model: nn.Module, taken: dict[str, nn.Module]) -> None:
    """Put back what `fuse` took out.

    Parameters
    ----------
    model : torch.nn.Module
    taken : dict of str to torch.nn.Module
    """
    for name, old in taken.items():
        model.set_submodule(name, old.train(model.get_submodule(name).training))
