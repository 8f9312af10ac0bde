# python/halfbyte/transformers/gguf_config.py
# SPDX-License-Identifier: Apache-2.0
"""The hyperparameters of a GGUF file as Transformers has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import Gemma3TextConfig, Gemma4TextConfig

from halfbyte.errors import UnsupportedError
from halfbyte.records import LayerConfig, ModelConfig

__all__ = ["text_config"]

_SLIDING, _FULL = "sliding_attention", "full_attention"


def text_config(c: ModelConfig, **special_ids: Any) -> Any:
    """Translate a checked configuration.

    Parameters
    ----------
    c : ModelConfig
    **special_ids
        ``bos_token_id`` and its like.

    Returns
    -------
    Gemma3TextConfig or Gemma4TextConfig
        Also of files whose model has encoders: a GGUF file holds the text part.

    Raises
    ------
    UnsupportedError
        If layers differ in a way that Transformers has no words for.
    """
    sliding = [layer for layer in c.layers if layer.sliding]
    full = [layer for layer in c.layers if not layer.sliding]
    common: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.layers[0].ffn_len,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": _one("num_kv_heads", sliding or full),
        "head_dim": _one("head_dim", sliding or full),
        "max_position_embeddings": c.context_length,
        "rms_norm_eps": c.norm_eps,
        "sliding_window": c.sliding_window,
        "layer_types": [_SLIDING if layer.sliding else _FULL for layer in c.layers],
        "final_logit_softcapping": c.logit_softcap or None,
        "tie_word_embeddings": not c.untied_head,
        **special_ids,
    }
    if c.architecture == "gemma3":
        return _gemma3(c, common)
    return _gemma4(c, common, full)


def _one(name: str, layers: Iterable[LayerConfig]) -> int:
    """What all the layers have; layers of one kind, to Transformers, are alike."""
    values = {getattr(layer, name) for layer in layers}
    if len(values) != 1:
        raise UnsupportedError(
            f"layers: expected one {name} for all layers of a kind, found "
            f"{sorted(values)}: Transformers cannot hold it, use halfbyte.load"
        )
    return int(values.pop())


def _gemma3(c: ModelConfig, common: dict[str, Any]) -> Any:
    common["intermediate_size"] = _one("ffn_len", c.layers)
    common["num_key_value_heads"] = _one("num_kv_heads", c.layers)
    full: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_base_full}
    if c.rope_factor_full != 1.0:
        full |= {"rope_type": "linear", "factor": c.rope_factor_full}
    return Gemma3TextConfig(
        **common,
        query_pre_attn_scalar=round(c.attention_scale**-2),
        rope_parameters={
            _SLIDING: {"rope_type": "default", "rope_theta": c.rope_base_sliding},
            _FULL: full,
        },
    )


def _gemma4(c: ModelConfig, common: dict[str, Any], full: list[LayerConfig]) -> Any:
    if c.layers[-1].sliding:
        raise UnsupportedError(
            "layers: the last one is sliding: Transformers makes it a full one, use "
            "halfbyte.load"
        )
    owners = [i for i, layer in enumerate(c.layers) if layer.kv_source == i]
    shared = c.layers[len(owners) :]
    _one("ffn_len", c.layers[: len(owners)])
    wide = bool(shared) and _one("ffn_len", shared) != common["intermediate_size"]
    if wide and shared[0].ffn_len != 2 * common["intermediate_size"]:
        raise UnsupportedError(
            f"feed_forward_length: expected {common['intermediate_size']} or twice as "
            f"much on layers that share keys, found {shared[0].ffn_len}: use "
            "halfbyte.load"
        )
    full_owners = [c.layers[i] for i in owners if not c.layers[i].sliding]
    heads = _one("num_kv_heads", full)
    # Transformers 5.5 knows only these two of a full layer's own numbers.
    spelled: dict[str, Any] = {"num_global_key_value_heads": heads}
    if hasattr(Gemma4TextConfig, "per_layer_config"):
        spelled = {"per_layer_config": _overrides(c, heads)}
    return Gemma4TextConfig(
        **common,
        global_head_dim=_one("head_dim", full),
        **spelled,
        attention_k_eq_v=all(layer.value_is_key for layer in full_owners),
        num_kv_shared_layers=len(shared),
        use_double_wide_mlp=wide,
        hidden_size_per_layer_input=c.per_layer_embedding,
        vocab_size_per_layer_input=c.vocab_size,
        enable_moe_block=c.num_experts > 0,
        num_experts=c.num_experts or None,
        top_k_experts=c.num_experts_used or None,
        moe_intermediate_size=c.expert_ffn_len or None,
        rope_parameters={
            _SLIDING: {"rope_type": "default", "rope_theta": c.rope_base_sliding},
            _FULL: {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": c.rope_base_full,
            },
        },
    )


def _overrides(c: ModelConfig, full_kv_heads: int) -> dict[int, dict[str, int]]:
    return {
        i: {"head_dim": layer.head_dim, "num_key_value_heads": full_kv_heads}
        for i, layer in enumerate(c.layers)
        if not layer.sliding
    }
