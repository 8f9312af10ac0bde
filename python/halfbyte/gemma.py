# python/halfbyte/gemma.py
# Names and roles of the tensors of Gemma 3 and 4, in safetensors and in GGUF.
# SPDX-License-Identifier: Apache-2.0
"""What the tensors of a model are called in either kind of file, and are for."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "KEYS_AND_VALUES",
    "MATRICES",
    "ROOTS",
    "VECTORS",
    "gguf_name",
    "order",
    "role",
    "root",
    "without_root",
]

# Without a layer, in the order of a file.
_TOP = {
    "embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "norm.weight": "output_norm.weight",
    "": "rope_freqs.weight",  # follows from the configuration
    "embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
}
# Of each layer: modules that are one matrix,
MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
}
# vectors and scalars,
VECTORS = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "layer_scalar": "layer_output_scale.weight",
    "post_per_layer_input_norm.weight": "post_norm.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
}
# and the mixture of experts.
_MIXTURE = {
    "router.proj.weight": "ffn_gate_inp.weight",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
}
_LAYER = {
    **{f"{module}.weight": f"{stem}.weight" for module, stem in MATRICES.items()},
    **_MIXTURE,
    **VECTORS,
}
# What layers that share another one's keys and values do without.
KEYS_AND_VALUES = ("attn_k.weight", "attn_k_norm.weight", "attn_v.weight")

# What the names of text tensors may begin with.
ROOTS = ("model.language_model.", "language_model.model.", "language_model.", "model.")
_NUMBERED = re.compile(r"layers\.(0|[1-9]\d{0,3})\.(.+)")
_BLOCK = re.compile(r"blk\.(\d{1,4})\.(.+)")
_PLACES = {name: i for i, name in enumerate((*_TOP.values(), *_LAYER.values()))}

_ROLES = {
    "token_embd": "embedding",
    "output": "head",
    "per_layer_token_embd": "PLE table",
    "per_layer_model_proj": "PLE projection",
    "inp_gate": "PLE gate, projection",
    "proj": "PLE gate, projection",
    "ffn_gate_inp": "router",
}


def root(names: Iterable[str]) -> str:
    """What stands before the names of a directory's text tensors."""
    known = set(names)
    found = (r for r in ROOTS if r + "embed_tokens.weight" in known)
    return next(found, "model.")


def without_root(name: str) -> str:
    """A name of a text tensor or module as a bare text model has it."""
    root = next((r for r in ROOTS if name.startswith(r)), "")
    return name.removeprefix(root)


def gguf_name(name: str, root: str) -> str | None:
    """Name in GGUF of a tensor of a directory; None if a text model has no such one."""
    if name in _TOP:
        return _TOP[name]  # the head stands outside
    if not name.startswith(root):
        return None
    inner = name.removeprefix(root)
    if inner in _TOP:
        return _TOP[inner]
    layer = _NUMBERED.fullmatch(inner)
    if layer is None or layer[2] not in _LAYER:
        return None
    return f"blk.{layer[1]}.{_LAYER[layer[2]]}"


def order(name: str) -> tuple[int, int]:
    """Where a tensor of this name in GGUF stands in a file."""
    layer = _BLOCK.fullmatch(name)
    rest = layer[2] if layer else name
    return int(layer[1]) if layer else -1, _PLACES.get(rest, len(_PLACES))


def role(name: str, shape: tuple[int, ...]) -> str:
    """What a tensor of this name in GGUF is for."""
    layer = _BLOCK.fullmatch(name)
    stem = (layer[2] if layer else name).rpartition(".")[0]
    if len(shape) < 2:
        return "norms and scalars"
    if stem.endswith("_exps"):
        return "experts"
    if stem.startswith(("attn_", "ffn_")) and stem not in _ROLES:
        return "attention" if stem.startswith("attn_") else "MLP"
    return _ROLES.get(stem, "other")
