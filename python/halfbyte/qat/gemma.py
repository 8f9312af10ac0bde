# python/halfbyte/qat/gemma.py
# SPDX-License-Identifier: Apache-2.0
"""The parts of a Gemma model of Transformers that training deals with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from halfbyte._arguments import instance
from halfbyte.errors import DTypeError, ShapeError, UnsupportedError

__all__ = ["hidden_states", "text_model", "texts"]

_FAMILIES = ("gemma3", "gemma4")


def text_model(model: nn.Module) -> tuple[str, Any]:
    """Return the name of a model's text part, and that part.

    Raises
    ------
    DTypeError
        If it is no module.
    UnsupportedError
        If it is no Gemma 3 or Gemma 4 model with a language-model head.
    """
    instance(model, "model", nn.Module, "a torch.nn.Module")
    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    inner: Any = getattr(model, "model", None)
    if not kind.startswith(_FAMILIES) or inner is None or not hasattr(model, "lm_head"):
        raise UnsupportedError(
            f"model: expected a Gemma 3 or Gemma 4 model of transformers with a head "
            f"(Gemma4ForCausalLM, AutoModelForCausalLM), got {type(model).__name__}"
        )
    if hasattr(inner, "language_model"):
        return "model.language_model", inner.language_model
    return "model", inner


def texts(tokens: Any, name: str) -> Tensor:
    """Return `tokens` if they are texts of one length: integers, (B, T)."""
    given = instance(tokens, name, Tensor, "tensors of tokens")
    kind = given.dtype
    if kind.is_floating_point or kind.is_complex or kind == torch.bool:
        raise DTypeError(f"{name}: expected integers, got {kind}")
    if given.dim() != 2:
        got = tuple(given.shape)
        raise ShapeError(f"{name}: expected shape (texts, tokens), got {got}")
    return given


def hidden_states(model: nn.Module, tokens: Tensor) -> Tensor:
    """Run the text part, without the head: (B, T) tokens to (B, T, H)."""
    text = text_model(model)[1]
    out: Tensor = text(input_ids=tokens, use_cache=False).last_hidden_state
    return out
