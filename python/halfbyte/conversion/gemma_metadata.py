# python/halfbyte/conversion/gemma_metadata.py
# SPDX-License-Identifier: Apache-2.0
"""Hyperparameters of Gemma 3 and 4 as GGUF has them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from halfbyte.conversion.gguf import F32, U32
from halfbyte.errors import UnsupportedError
from halfbyte.records import LayerConfig, ModelConfig

__all__ = ["hyperparameters", "same"]

_PERIOD = 6  # of Gemma 3's full layers, where a file does not say
_LAYERS_OF_27B = 62


def hyperparameters(c: ModelConfig) -> dict[str, Any]:
    """Say what a file of this model says of it.

    Parameters
    ----------
    c : ModelConfig

    Returns
    -------
    dict
        For `gguf.layout`, with the architecture before each key.

    Raises
    ------
    UnsupportedError
        If GGUF has no words for it.
    """
    own = _gemma4(c) if c.architecture == "gemma4" else _gemma3(c)
    return {
        f"{c.architecture}.{key}": value for key, value in (_common(c) | own).items()
    }


def _common(c: ModelConfig) -> dict[str, Any]:
    return {
        "block_count": U32(c.num_layers),
        "context_length": U32(c.context_length),
        "embedding_length": U32(c.hidden_size),
        "feed_forward_length": _per_layer([layer.ffn_len for layer in c.layers]),
        "attention.head_count": U32(c.num_heads),
        "attention.head_count_kv": _per_layer([x.num_kv_heads for x in c.layers]),
        "attention.layer_norm_rms_epsilon": F32(c.norm_eps),
        "attention.sliding_window": U32(c.sliding_window),
        "rope.freq_base": F32(c.rope_base_full),
        "rope.freq_base_swa": F32(c.rope_base_sliding),
    }


def _per_layer(values: list[int]) -> U32:
    """One number if all are the same."""
    return U32(values if len(set(values)) > 1 else values[0])


def _head_dim(layers: Iterable[LayerConfig]) -> int:
    sizes = {layer.head_dim for layer in layers}
    if len(sizes) > 1:
        raise UnsupportedError(
            f"layers: expected one head_dim for all of a kind, found {sorted(sizes)}: "
            "GGUF holds one"
        )
    return sizes.pop() if sizes else 0


def _gemma4(c: ModelConfig) -> dict[str, Any]:
    full = _head_dim(layer for layer in c.layers if not layer.sliding)
    sliding = _head_dim(layer for layer in c.layers if layer.sliding)
    full, sliding = full or sliding, sliding or full
    shared = sum(layer.kv_source != i for i, layer in enumerate(c.layers))
    out: dict[str, Any] = {
        "attention.sliding_window_pattern": [layer.sliding for layer in c.layers],
        "attention.shared_kv_layers": U32(shared),
        "embedding_length_per_layer_input": U32(c.per_layer_embedding),
        "final_logit_softcapping": F32(c.logit_softcap),  # a missing one means 30
    }
    for suffix, size in (("", full), ("_swa", sliding)):
        out[f"attention.key_length{suffix}"] = U32(size)
        out[f"attention.value_length{suffix}"] = U32(size)
        out[f"rope.dimension_count{suffix}"] = U32(size)
    if c.num_experts:
        out["expert_count"] = U32(c.num_experts)
        out["expert_used_count"] = U32(c.num_experts_used)
        out["expert_feed_forward_length"] = U32(c.expert_ffn_len)
    return out


def _gemma3(c: ModelConfig) -> dict[str, Any]:
    size = _head_dim(c.layers)
    # No key has it: readers divide by this root.
    divisor = c.hidden_size // c.num_heads if c.num_layers == _LAYERS_OF_27B else size
    if not math.isclose(c.attention_scale, divisor**-0.5, rel_tol=1e-6):
        raise UnsupportedError(
            f"query_pre_attn_scalar: expected {divisor}, which is what a GGUF file of "
            f"gemma3 means, found {c.attention_scale**-2:g}"
        )
    out: dict[str, Any] = {
        "attention.key_length": U32(size),
        "attention.value_length": U32(size),
    }
    pattern = [layer.sliding for layer in c.layers]
    usual = [(i + 1) % _PERIOD != 0 for i in range(c.num_layers)]
    if pattern != usual or all(pattern):
        out["attention.sliding_window_pattern"] = pattern
    if c.rope_factor_full != 1.0:
        out["rope.scaling.type"] = "linear"
        out["rope.scaling.factor"] = F32(c.rope_factor_full)
    if c.logit_softcap:
        out["final_logit_softcapping"] = F32(c.logit_softcap)
    return out


def same(a: ModelConfig, b: ModelConfig) -> bool:
    """Whether two files say the same of a model, as far as float32 tells."""

    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, float):
            return math.isclose(x, y, rel_tol=1e-6)
        return bool(x == y)

    return all(equal(getattr(a, name), getattr(b, name)) for name in vars(a))
