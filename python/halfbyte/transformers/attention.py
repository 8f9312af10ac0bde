# python/halfbyte/transformers/attention.py
# SPDX-License-Identifier: Apache-2.0
"""Attention by halfbyte in any model of transformers: ``attn_implementation="halfbyte"``.

float32 tensors are read where they lie; float16 and bfloat16 ones are widened first, and
the result is rounded back. What `halfbyte.attention` does not compute is left to torch's
own function, from the same mask: gradients, dropout, a mask of numbers, a bias by
position, and what is traced or transformed (`torch.compile`, `vmap`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from halfbyte import ops
from halfbyte.errors import ArgumentError, UnsupportedError
from halfbyte.kv import KvCodes
from halfbyte.torch._dispatch import is_watched, threads
from halfbyte.torch.attention import aligned_mask
from halfbyte.transformers.cache import CompressedTensor, dense

__all__ = ["NAME", "forward", "make_mask", "register"]

NAME = "halfbyte"

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def register() -> None:
    """Make `NAME` known to transformers; a second call changes nothing."""
    if NAME not in AttentionInterface():
        AttentionInterface.register(NAME, forward)
    # Without a mask function of the same name there would be no masks at all.
    if NAME not in AttentionMaskInterface():
        AttentionMaskInterface.register(NAME, make_mask)


def make_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> torch.Tensor | None:
    """Return what each query sees, shape (batch, 1, q_length, kv_length).

    It is what transformers makes for its ``sdpa``, except that None stands for "causal"
    only where the last query stands at the last key. With a static cache, whose end is
    still empty, None would mean something else: and models that drop all queries but the
    last ones after the mask was made could not be told from it.
    """
    # A static cache gives its offset as a tensor.
    aligned = isinstance(q_offset, int) and q_offset + q_length == kv_offset + kv_length
    mask: torch.Tensor | None = sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        allow_is_causal_skip=allow_is_causal_skip and aligned,
        **kwargs,
    )
    return mask


def forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, as an attention function of transformers.

    Parameters
    ----------
    module : torch.nn.Module
        The layer; its ``is_causal`` counts where the argument is missing.
    query : tensor, shape (batch, heads, tokens, head_dim)
    key, value : tensors, shape (batch, kv_heads, kv_tokens, head_dim)
        Those of a `CompressedCache` are attended to in 8 bits.
    attention_mask : bool tensor, shape (batch, 1 or heads, tokens, kv_tokens), optional
        What each query sees, a window included. Without it a causal layer's last query
        stands at the last key, and sees `sliding_window` keys, if that is given.
    dropout : float
        Above 0, torch computes.
    scaling : float, optional
        ``head_dim ** -0.5`` if missing.
    **kwargs
        Whatever else transformers passes along; ignored.

    Returns
    -------
    tuple
        The result, shape (batch, tokens, heads, head_dim), in the type of `query`, zeros
        for a query that sees nothing; and None for the weights.

    Raises
    ------
    ArgumentError
        If a tensor is not in CPU memory.
    UnsupportedError
        If the model caps its scores or has attention sinks.
    """
    tensors = query, key, value
    _refuse_what_would_be_wrong(tensors, kwargs)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None
    window = sliding_window if causal else None
    if _is_for_torch(tensors, attention_mask, dropout, kwargs):
        tokens, kv_tokens = query.shape[2], key.shape[2]
        if causal and (tokens != kv_tokens or (window or kv_tokens) < kv_tokens):
            # Torch would put the first query at the first key, and knows no window.
            seen = aligned_mask(tokens, kv_tokens, window, query.device)
            attention_mask = seen[None, None]
        kwargs |= {"dropout": dropout, "scaling": scaling, "is_causal": causal}
        key, value = dense(key), dense(value)
        answer: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return answer
    batch, heads, tokens, head_dim = query.shape
    shape = batch, tokens, heads, head_dim
    out = torch.empty(shape, dtype=torch.float32, device="cpu")
    with threads():
        ops.attention(
            query.detach().float().numpy(),
            _kept(key),
            _kept(value),
            mask=None if attention_mask is None else attention_mask.numpy(),
            causal=causal,
            window=window,
            scale=scaling,
            out=out.transpose(1, 2).numpy(),
        )
    return out.to(query.dtype), None


def _kept(x: torch.Tensor) -> NDArray[np.float32] | KvCodes:
    return x.kept if isinstance(x, CompressedTensor) else x.detach().float().numpy()


def _refuse_what_would_be_wrong(
    tensors: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
) -> None:
    for tensor in tensors:
        if tensor.device.type != "cpu":
            raise ArgumentError(
                f"attention: expected tensors in CPU memory, got {tensor.device}; "
                f'move the model with .to("cpu"), or use attn_implementation="sdpa"'
            )
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise UnsupportedError(
                f"attention: {name} is not computed here; "
                'use attn_implementation="eager"'
            )


def _is_for_torch(
    tensors: tuple[torch.Tensor, ...],
    mask: torch.Tensor | None,
    dropout: float,
    kwargs: dict[str, Any],
) -> bool:
    """Whether `halfbyte.attention` would compute something else, or cannot be traced."""
    query, key, value = tensors
    return bool(
        dropout > 0
        or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        or (mask is not None and mask.dtype != torch.bool)
        or kwargs.get("position_bias") is not None
        or kwargs.get("cache") is not None
        or key.shape != value.shape
        or key.shape[0] != query.shape[0]
        or query.dtype not in _DTYPES
        or any(t.is_neg() for t in tensors)
        or is_watched()
    )
