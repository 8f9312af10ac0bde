# tests/python/tiny.py
# Tiny random models of every supported shape, and the files they are saved as.
# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of every supported shape, and the files they are saved as.

A model is a `transformers` class whose weights are drawn here, from a generator seeded
with the tensor's name, so one tensor never depends on another one's size or order.
Every norm, layer scalar and router scale is random: a loader that drops one of them
changes the logits. Real file layouts are written from the same weights.

Two sizes exist. The narrow one is for float files. The wide one has rows of a whole
number of 256-weight blocks, so every quantised type fits, apart from the expert rows
of the mixture model, which hold 32-weight blocks only (as in the released one).
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType
from safetensors.torch import save_file
from transformers import (
    Gemma3TextConfig,
    Gemma4TextConfig,
)

# The oldest release that is tried, 5.5.0, has all but the 12B.
HAS_12B = hasattr(transformers, "Gemma4UnifiedForCausalLM")
NAMES = ("e2b", "e4b", *(["12b"] if HAS_12B else []), "26b", "31b", "gemma3")
VOCAB = 512
WINDOW = 8
S, G = "sliding_attention", "full_attention"

F32 = npt.NDArray[np.float32]
Shard = dict[str, torch.Tensor]

_ROPE4 = {
    S: {"rope_type": "default", "rope_theta": 1e4},
    G: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}

# Both owners before the first shared layer come in the order sliding, full: llama.cpp
# takes its two sources by that position. Each type owns two layers or more before it,
# so that "the first owner" and "the last owner" are different answers. The hidden sizes
# of e4b and 31b are no squares: their embedding factor is not exact in bfloat16.
_SHAPES: dict[str, dict[str, Any]] = {
    "e2b": {
        "layer_types": [S, S, S, G] * 3,
        "heads": (8, 1, None),
        "shared": 4,
        "double": True,
        "ple": True,
    },
    "e4b": {
        "layer_types": [S, S, G] * 4,
        "heads": (4, 2, None),
        "shared": 6,
        "ple": True,
        "hidden": 96,
    },
    "12b": {"layer_types": [S, S, G] * 2, "heads": (4, 2, 1), "k_eq_v": True},
    "26b": {
        "layer_types": [S, S, G] * 2,
        "heads": (4, 2, 1),
        "k_eq_v": True,
        "experts": (8, 3),
    },
    "31b": {
        "layer_types": [S, S, S, G, S, G],
        "heads": (8, 4, 2),
        "k_eq_v": True,
        "hidden": 96,
    },
    "gemma3": {"layer_types": [S, S, S, S, S, G, S], "heads": (4, 2, None)},
}


def config(name: str, *, wide: bool = False, rope_factor: float | None = None) -> Any:
    """Build the configuration of one tiny model.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    wide : bool
        Rows that hold whole 256-weight blocks instead of the smallest sizes.
    rope_factor : float, optional
        Linear RoPE scaling of the full layers; `gemma3` only.

    Returns
    -------
    PretrainedConfig
        A text configuration.
    """
    shape = _SHAPES[name]
    heads, kv, global_kv = shape["heads"]
    common: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 256 if wide else shape.get("hidden", 64),
        "intermediate_size": 512 if wide else 128,
        "layer_types": list(shape["layer_types"]),
        "num_hidden_layers": len(shape["layer_types"]),
        "num_attention_heads": 8 if wide else heads,
        "num_key_value_heads": kv,
        "head_dim": 32,
        "sliding_window": WINDOW,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    if name == "gemma3":
        rope: dict[str, Any] = {
            S: {"rope_type": "default", "rope_theta": 1e4},
            G: {"rope_type": "default", "rope_theta": 1e6},
        }
        if rope_factor is not None:
            rope[G] |= {"rope_type": "linear", "factor": rope_factor}
        return Gemma3TextConfig(
            **common, rope_parameters=rope, query_pre_attn_scalar=32
        )
    common |= {
        "rope_parameters": copy.deepcopy(_ROPE4),
        "final_logit_softcapping": 30.0,
        "global_head_dim": 64,
        "attention_k_eq_v": shape.get("k_eq_v", False),
        "num_global_key_value_heads": global_kv,
    }
    if name == "12b":
        return transformers.Gemma4UnifiedTextConfig(**common)
    common |= {
        "num_kv_shared_layers": shape.get("shared", 0),
        "use_double_wide_mlp": shape.get("double", False),
        "hidden_size_per_layer_input": (64 if wide else 32) if "ple" in shape else 0,
        "vocab_size_per_layer_input": VOCAB,
        "enable_moe_block": "experts" in shape,
    }
    if "experts" in shape:
        common["num_experts"], common["top_k_experts"] = shape["experts"]
        common["moe_intermediate_size"] = 96 if wide else 32
    return Gemma4TextConfig(**common)


def _draw(name: str, shape: tuple[int, ...], seed: int, plus_one: bool) -> torch.Tensor:
    """Draw the values of one tensor from its name and the seed.

    Parameters
    ----------
    name : str
        Name without the `model.` prefix.
    shape : tuple of int
        Its shape.
    seed : int
        Seed of the whole model.
    plus_one : bool
        Whether norms multiply by `1 + weight`.

    Returns
    -------
    torch.Tensor
        float32 values.
    """
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    if name.endswith(
        ("norm.weight", "_1.weight", "_2.weight", "scale", "layer_scalar")
    ):
        values = rng.uniform(0.5, 1.5, shape)
        if name == "norm.weight":
            values *= (
                16 / shape[0] ** 0.5
            )  # logits that the soft cap bends, not flattens
        if name.endswith("q_norm.weight") and not plus_one:
            values *= 0.4  # attention that is neither flat nor a choice of one position
        if plus_one:
            values = values - 1
    else:
        # A router that is sure of its first choices: noise that swaps the last expert
        # chosen with the first one left out then moves the logits a little, not a lot.
        values = rng.standard_normal(shape) * (3.0 if "router" in name else 0.2)
    return torch.from_numpy(values.astype(np.float32))


def build(
    name: str, seed: int = 0, *, wide: bool = False, rope_factor: float | None = None
) -> Any:
    """Build one tiny model with random weights.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    seed : int
        The same seed gives the same weights on every machine.
    wide, rope_factor
        See `config`.

    Returns
    -------
    PreTrainedModel
        A float32 model in evaluation mode with eager attention and experts.
    """
    made = config(name, wide=wide, rope_factor=rope_factor)
    made._attn_implementation = "eager"
    made._experts_implementation = "eager"
    classes = {"gemma3": "Gemma3ForCausalLM", "12b": "Gemma4UnifiedForCausalLM"}
    kind = getattr(transformers, classes.get(name, "Gemma4ForCausalLM"))
    model = kind(made).float().eval()
    state = model.model.state_dict()
    with torch.no_grad():
        for key, tensor in state.items():
            tensor.copy_(_draw(key, tuple(tensor.shape), seed, name == "gemma3"))
    model.tie_weights()
    return model


def talkative(name: str, *, wide: bool = False) -> Any:
    """Build a model whose answers only a limit ends: the logits of the ends are 0.

    Parameters
    ----------
    name, wide
        See `build`.

    Returns
    -------
    PreTrainedModel
    """
    model, tokens = build(name, wide=wide), vocabulary()[0]
    for token in ("<eos>", "<turn|>", "<|tool_response>"):
        model.model.embed_tokens.weight.data[tokens.index(token)] = 0
    return model


def prompt(length: int = 40, seed: int = 0) -> list[int]:
    """Return token ids that avoid the special ones.

    Parameters
    ----------
    length : int
        Number of ids.
    seed : int
        Seed.

    Returns
    -------
    list of int
        The first id is 2, the beginning of a text.
    """
    rng = np.random.Generator(np.random.PCG64([seed, length]))
    return [2, *rng.integers(270, VOCAB, length - 1).tolist()]


def reference_logits(model: Any, ids: list[int]) -> F32:
    """Run transformers in float32 over a whole prompt, without a cache.

    Parameters
    ----------
    model : PreTrainedModel
        The model.
    ids : list of int
        Token ids, length T.

    Returns
    -------
    ndarray
        (T, vocab) float32 logits.
    """
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return np.asarray(out.float().numpy())


def rounded(model: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a float32 copy whose weights are rounded to a narrower type.

    Parameters
    ----------
    model : PreTrainedModel
        The model.
    dtype : torch.dtype
        Type to round to.

    Returns
    -------
    PreTrainedModel
        The rounded copy.
    """
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in twin.model.state_dict().values():
            tensor.copy_(tensor.to(dtype))
    return twin


def weights(model: Any) -> Shard:
    """Return the text weights by name, without the `model.` prefix.

    Parameters
    ----------
    model : PreTrainedModel
        The model.

    Returns
    -------
    dict
        Names to tensors, in the model's order.
    """
    return {key: value.detach() for key, value in model.model.state_dict().items()}


def text_config(model: Any, *, released: bool) -> dict[str, Any]:
    """Return the configuration as JSON would hold it.

    Parameters
    ----------
    model : PreTrainedModel
        The model.
    released : bool
        The spelling of the released checkpoints (`global_head_dim`,
        `num_global_key_value_heads`) instead of `per_layer_config`, which is what
        `save_pretrained` writes now.

    Returns
    -------
    dict
        Text configuration.
    """
    made: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    made["architectures"] = [type(model).__name__]
    if released and "per_layer_config" in made:
        full = next(iter(made.pop("per_layer_config").values()))
        made["global_head_dim"] = full["head_dim"]
        made["num_global_key_value_heads"] = full.get("num_key_value_heads")
        made["expert_intermediate_size"] = None
    return made


def _full_layer(model: Any) -> int:
    return int(model.config.layer_types.index("full_attention"))


def _dead_tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Make the unused key and value tensors that shared layers carry in some files.

    Parameters
    ----------
    model : PreTrainedModel
        The model.

    Yields
    ------
    tuple
        Name without prefix and values, far from any useful ones.
    """
    cfg = model.config
    shared = getattr(cfg, "num_kv_shared_layers", 0)
    for layer in range(cfg.num_hidden_layers - shared, cfg.num_hidden_layers):
        own = cfg.per_layer_config[layer]
        rows, base = own.num_key_value_heads * own.head_dim, f"layers.{layer}.self_attn"
        for kind in ("k_proj", "v_proj"):
            yield f"{base}.{kind}.weight", torch.full((rows, cfg.hidden_size), 7.0)
        yield f"{base}.k_norm.weight", torch.full((own.head_dim,), 7.0)


def save_hf(
    model: Any,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    released: bool = False,
    released_config: bool | None = None,
    shards: int = 1,
    lm_head: bool = False,
    dead_kv: bool = False,
    tokenizer: bool = True,
) -> Path:
    """Write a Hugging Face folder: weights, config.json and a tokenizer.

    Parameters
    ----------
    model : PreTrainedModel
        What to save.
    folder : Path
        Where; made if it does not exist.
    dtype : torch.dtype
        Type of every tensor.
    released : bool
        The layout of the released multimodal files: `model.language_model.` before
        every name, a vision tensor to skip, the text configuration nested.
    released_config : bool, optional
        Spelling of the configuration; follows `released` by default.
    shards : int
        Number of weight files; above 1 an index is written.
    lm_head : bool
        Whether to repeat the tied head.
    dead_kv : bool
        Whether shared layers carry key and value tensors that must not be used.
    tokenizer : bool
        Whether to write `tokenizer.json`.

    Returns
    -------
    Path
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "model.language_model." if released else "model."
    state = weights(model)
    if dead_kv:
        state |= dict(_dead_tensors(model))
    named = {prefix + key: value for key, value in state.items()}
    if lm_head:
        named["lm_head.weight"] = state["embed_tokens.weight"].clone()
    if released:
        named["model.vision_tower.encoder.layers.0.weight"] = torch.ones(3, 5)
    named = {key: value.to(dtype).contiguous() for key, value in named.items()}
    _save_shards(named, folder, shards)
    spelling = released if released_config is None else released_config
    made = text_config(model, released=spelling)
    made["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(_outer(made, released), indent=1))
    if tokenizer:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    return folder


def _save_shards(named: Shard, folder: Path, shards: int) -> None:
    """Write tensors to one file, or to several with an index.

    Parameters
    ----------
    named : dict
        Names to tensors.
    folder : Path
        Where.
    shards : int
        Number of files.
    """
    meta = {"format": "pt"}
    if shards == 1:
        save_file(named, folder / "model.safetensors", metadata=meta)
        return
    parts: list[Shard] = [{} for _ in range(shards)]
    for i, (key, value) in enumerate(named.items()):
        parts[i % shards][key] = value
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    index: dict[str, Any] = {"metadata": {"total_size": 0}, "weight_map": {}}
    for file, part in zip(files, parts, strict=True):
        save_file(part, folder / file, metadata=meta)
        for key, value in part.items():
            index["weight_map"][key] = file
            index["metadata"]["total_size"] += value.numel() * value.element_size()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _outer(made: dict[str, Any], released: bool) -> dict[str, Any]:
    """Nest a text configuration as the multimodal checkpoints do.

    Parameters
    ----------
    made : dict
        Text configuration.
    released : bool
        Whether to nest it.

    Returns
    -------
    dict
        Content of config.json.
    """
    if not released:
        return made
    kind = str(made["model_type"]).removesuffix("_text")
    classes = {
        "gemma3": "Gemma3ForConditionalGeneration",
        "gemma4": "Gemma4ForConditionalGeneration",
        "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
    }
    return {
        "architectures": [classes[kind]],
        "model_type": kind,
        "dtype": made["dtype"],
        "text_config": made,
        "vision_config": None,
        "audio_config": None,
        "tie_word_embeddings": True,
    }


# --- Tokenizer -------------------------------------------------------------------------

_MARK = "\u2581"
_CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>"]
_USER = ["<|tool_response>", "<tool_response|>"]
# One merge a pair of pieces, most urgent first; the blanks are U+2581 and newlines.
_MERGES = [
    *("t h", "th e", "i n", "a n", "e r", "o n", "r e", "n d", "in g"),
    *("▁ t", "▁ a", "▁t h", "▁th e", "▁a nd", "a nd", "o r", "e n", "l l", "o u"),
    *("h e", "▁ ▁", "▁▁ ▁▁", "\n \n", "é e"),
]


def vocabulary() -> tuple[list[str], list[int], list[tuple[str, str]]]:
    """Return a small byte-fallback vocabulary in Gemma's manner.

    Returns
    -------
    tokens : list of str
        512 pieces.
    types : list of int
        GGUF token types: 1 normal, 3 control, 4 user-defined, 5 unused, 6 byte.
    merges : list of tuple
        Pairs, most urgent first.
    """
    merges = [tuple(pair.split(" ")) for pair in _MERGES]
    letters = [chr(c) for c in range(33, 127)] + [_MARK, "\n", "é", "ü", "中", "😀"]
    normal = letters + [left + right for left, right in merges]
    tokens = _CONTROL + _USER + [f"<0x{b:02X}>" for b in range(256)] + normal
    types = [3] * len(_CONTROL) + [4] * len(_USER) + [6] * 256 + [1] * len(normal)
    spare = VOCAB - len(tokens)
    tokens += [f"<unused{i}>" for i in range(spare)]
    return tokens, types + [5] * spare, [(left, right) for left, right in merges]


def tokenizer_json() -> dict[str, Any]:
    """Return the same vocabulary as `tokenizer.json` holds it.

    Returns
    -------
    dict
        Content of the file.
    """
    tokens, types, merges = vocabulary()
    added = [
        {
            "id": i,
            "content": tokens[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[i] == 3,
        }
        for i in range(VOCAB)
        if types[i] in (3, 4)
    ]
    replace = {"pattern": {"String": " "}, "content": _MARK}
    back = {"pattern": {"String": _MARK}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", **replace},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", **back},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(pair) for pair in merges],
        },
    }


def _add_tokenizer(writer: gguf.GGUFWriter, arch: str) -> None:
    """Write the vocabulary as GGUF metadata.

    Parameters
    ----------
    writer : GGUFWriter
        Open writer.
    arch : str
        `gemma4` (merge ranks) or `gemma3` (SentencePiece scores).
    """
    tokens, types, merges = vocabulary()
    writer.add_tokenizer_model("gemma4" if arch == "gemma4" else "llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    rank = {
        left + right: -float(i) for i, (left, right) in reversed([*enumerate(merges)])
    }
    writer.add_token_scores([rank.get(token, -1000.0) for token in tokens])
    if arch == "gemma4":
        writer.add_token_merges([f"{left} {right}" for left, right in merges])
    else:
        writer.add_tokenizer_pre("default")
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


# --- GGUF ------------------------------------------------------------------------------

_TOP = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
}
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "layer_scalar": "layer_output_scale.weight",
    "per_layer_input_gate.weight": "inp_gate.weight",
    "per_layer_projection.weight": "proj.weight",
    "post_per_layer_input_norm.weight": "post_norm.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
}


def gguf_name(name: str) -> str:
    """Translate a weight's name to its GGUF name.

    Parameters
    ----------
    name : str
        Name without the `model.` prefix.

    Returns
    -------
    str
        GGUF tensor name.
    """
    if name in _TOP:
        return _TOP[name]
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{_LAYER[rest]}"


def official_type(name: str) -> Type:
    """Return the type a tensor has in the official Q4_0 files.

    Parameters
    ----------
    name : str
        GGUF tensor name.

    Returns
    -------
    GGMLQuantizationType
        Q6_K tables, F16 PLE projection, F32 vectors and router, Q4_0 for the rest.
    """
    if name in ("token_embd.weight", "per_layer_token_embd.weight", "output.weight"):
        return Type.Q6_K
    if name == "per_layer_model_proj.weight":
        return Type.F16
    if "norm" in name or "scale" in name or "gate_inp" in name or "freqs" in name:
        return Type.F32
    return Type.Q4_0


_MIXED = {
    "attn_q": Type.Q5_0,
    "attn_k": Type.Q8_0,
    "attn_v": Type.Q6_K,
    "attn_output": Type.Q4_K,
    "ffn_gate": Type.Q5_K,
    "ffn_up": Type.Q3_K,
    "ffn_down": Type.Q2_K,
    "inp_gate": Type.Q4_1,
    "proj": Type.Q5_1,
    "ffn_gate_up_exps": Type.Q5_1,
    "ffn_down_exps": Type.Q8_0,
}


def mixed_type(name: str) -> Type:
    """Return a type so that one file holds every supported block format.

    Parameters
    ----------
    name : str
        GGUF tensor name.

    Returns
    -------
    GGMLQuantizationType
        The type.
    """
    if name in ("token_embd.weight", "output.weight"):
        return Type.Q8_0
    if name == "per_layer_model_proj.weight":
        return Type.BF16
    if official_type(name) == Type.F32 or not name.endswith(".weight"):
        return Type.F32
    return _MIXED.get(name.split(".")[-2], official_type(name))


def encode_q6_k(values: F32) -> npt.NDArray[np.uint8]:
    """Encode rows as Q6_K: one f16 step, sixteen i8 sub-scales, 256 six-bit codes.

    The encoder is plain nearest rounding. That suffices, since every comparison is
    made with the decoded weights.

    Parameters
    ----------
    values : ndarray
        (..., columns) float32; columns a multiple of 256.

    Returns
    -------
    ndarray
        (..., columns / 256 * 210) bytes.
    """
    groups = values.reshape(-1, 16, 16).astype(np.float32)
    extreme = np.take_along_axis(
        groups, np.abs(groups).argmax(-1)[..., None], -1
    ).squeeze(-1)
    ideal = extreme / -32.0
    step = (np.abs(ideal).max(-1, keepdims=True) / 127.0).astype(np.float16)
    wide = np.where(step == 0, 1, step).astype(np.float32)
    scales = np.clip(np.rint(ideal / wide), -128, 127)
    real = (wide * scales)[..., None]
    quotient = np.divide(groups, real, out=np.zeros_like(groups), where=real != 0)
    codes = (np.clip(np.rint(quotient), -32, 31) + 32).astype(np.uint8)
    codes = codes.reshape(-1, 2, 4, 32)
    low, high = codes & 15, codes >> 4
    ql = np.concatenate([low[:, :, :2] | (low[:, :, 2:] << 4)], -1).reshape(-1, 128)
    qh = np.zeros((len(codes), 2, 32), np.uint8)
    for j in range(4):
        qh |= high[:, :, j] << (2 * j)
    parts = [ql, qh.reshape(-1, 64), scales.astype(np.int8).view(np.uint8)]
    blocks = np.concatenate([*parts, step.view(np.uint8)], 1)
    return blocks.reshape(*values.shape[:-1], -1)


def _random_k_blocks(values: F32, kind: Type, seed: int) -> npt.NDArray[np.uint8]:
    """Make random valid blocks whose values are about as large as the given ones.

    Parameters
    ----------
    values : ndarray
        (..., columns) float32; only the shape and the spread are used.
    kind : GGMLQuantizationType
        Q2_K, Q3_K, Q4_K or Q5_K.
    seed : int
        Seed.

    Returns
    -------
    ndarray
        (..., bytes a row).
    """
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.Generator(np.random.PCG64([seed, int(kind)]))
    count = values.size // block
    raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
    # Offset of the step, offset of the step of the minima, mean code, mean sub-scale
    # over mean sub-minimum (equal, except that Q3_K has signed sub-scales and no minima).
    at, at_min, code = {
        Type.Q2_K: (80, 82, 1.5),
        Type.Q3_K: (108, None, 0.0),
        Type.Q4_K: (0, 2, 7.5),
        Type.Q5_K: (0, 2, 15.5),
    }[kind]

    def put(offset: int, step: npt.NDArray[np.float64]) -> None:
        raw[:, offset : offset + 2] = step.astype(np.float16).view(np.uint8)

    spread = rng.uniform(0.5, 1.5, (count, 1))
    put(at, spread)
    if at_min is not None:
        put(at_min, spread * code)
    now = gguf.dequantize(raw, kind)
    factor = float(np.std(values)) / float(np.std(now))
    put(at, spread * factor)
    if at_min is not None:
        put(at_min, spread * code * factor)
    return raw.reshape(*values.shape[:-1], -1)


def encode(values: F32, kind: Type, seed: int = 0) -> npt.NDArray[Any]:
    """Encode a tensor in a GGUF type.

    Parameters
    ----------
    values : ndarray
        (..., columns) float32.
    kind : GGMLQuantizationType
        Target type. Q2_K to Q5_K give random blocks of similar size.
    seed : int
        Seed of the random blocks.

    Returns
    -------
    ndarray
        float32, float16 or bytes, as `GGUFWriter.add_tensor` wants it.
    """
    if kind == Type.Q6_K:
        return encode_q6_k(values)
    if kind in (Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K):
        return _random_k_blocks(values, kind, seed)
    return np.asarray(gguf.quantize(values, kind))


def _gguf_tensors(
    model: Any, *, fused_qkv: bool, split_experts: bool, dead_kv: bool
) -> dict[str, F32]:
    """List the tensors of a GGUF file in float32.

    Parameters
    ----------
    model : PreTrainedModel
        The model.
    fused_qkv, split_experts, dead_kv
        See `save_gguf`.

    Returns
    -------
    dict
        GGUF names to arrays, rows first.
    """
    gemma3 = model.config.model_type == "gemma3_text"
    state = weights(model)
    if dead_kv:
        state |= dict(_dead_tensors(model))
    out: dict[str, F32] = {}
    for key, value in state.items():
        if "rotary_emb" in key or "embed_scale" in key:
            continue
        array = value.float().numpy()
        out[gguf_name(key)] = array + 1 if gemma3 and "norm" in key else array
    if not gemma3:
        full = model.model.layers[_full_layer(model)].self_attn.head_dim // 2
        rotated = int(full * 0.25)
        out["rope_freqs.weight"] = np.array(
            [1.0] * rotated + [1e30] * (full - rotated), np.float32
        )
    for name in [n for n in out if split_experts and "ffn_gate_up_exps" in n]:
        gate, up = np.split(out.pop(name), 2, axis=1)
        out[name.replace("gate_up", "gate")] = np.ascontiguousarray(gate)
        out[name.replace("gate_up", "up")] = np.ascontiguousarray(up)
    for name in [n for n in out if fused_qkv and n.endswith("attn_q.weight")]:
        kinds = [
            name,
            name.replace("attn_q", "attn_k"),
            name.replace("attn_q", "attn_v"),
        ]
        if all(kind in out for kind in kinds):
            rows = np.concatenate([out.pop(kind) for kind in kinds])
            out[name.replace("attn_q", "attn_qkv")] = rows
    return out


def _metadata(model: Any, arch: str) -> dict[str, Any]:
    """List the hyperparameters under their GGUF keys, arrays where they vary.

    Parameters
    ----------
    model : PreTrainedModel
        The model.
    arch : str
        `gemma3` or `gemma4`.

    Returns
    -------
    dict
        Keys without the architecture prefix.
    """
    cfg = model.config
    layers = cfg.num_hidden_layers
    sliding = [kind == S for kind in cfg.layer_types]
    meta: dict[str, Any] = {
        "block_count": layers,
        "context_length": cfg.max_position_embeddings,
        "embedding_length": cfg.hidden_size,
        "feed_forward_length": [cfg.intermediate_size] * layers,
        "attention.head_count": [cfg.num_attention_heads] * layers,
        "attention.layer_norm_rms_epsilon": float(cfg.rms_norm_eps),
        "attention.sliding_window": cfg.sliding_window,
        "rope.freq_base": float(cfg.rope_parameters[G]["rope_theta"]),
    }
    if arch == "gemma3":
        meta["attention.head_count_kv"] = [cfg.num_key_value_heads] * layers
        meta["attention.key_length"] = meta["attention.value_length"] = cfg.head_dim
        if "factor" in cfg.rope_parameters[G]:
            meta["rope.scaling.type"] = "linear"
            meta["rope.scaling.factor"] = float(cfg.rope_parameters[G]["factor"])
        return meta
    first = layers - getattr(cfg, "num_kv_shared_layers", 0)
    if getattr(cfg, "use_double_wide_mlp", False):
        wide = [2 * cfg.intermediate_size] * (layers - first)
        meta["feed_forward_length"] = [cfg.intermediate_size] * first + wide
    own = [layer.self_attn for layer in model.model.layers]
    meta["attention.head_count_kv"] = [
        cfg.num_attention_heads // layer.num_key_value_groups for layer in own
    ]
    for suffix, dim in (("", own[-1].head_dim), ("_swa", own[0].head_dim)):
        meta[f"attention.key_length{suffix}"] = dim
        meta[f"attention.value_length{suffix}"] = dim
        meta[f"rope.dimension_count{suffix}"] = dim
    meta |= {
        "attention.sliding_window_pattern": sliding,
        "attention.shared_kv_layers": layers - first,
        "embedding_length_per_layer_input": getattr(
            cfg, "hidden_size_per_layer_input", 0
        ),
        "rope.freq_base_swa": float(cfg.rope_parameters[S]["rope_theta"]),
        "final_logit_softcapping": float(cfg.final_logit_softcapping),
    }
    if getattr(cfg, "enable_moe_block", False):
        meta["expert_count"] = cfg.num_experts
        meta["expert_used_count"] = cfg.top_k_experts
        meta["expert_feed_forward_length"] = [cfg.moe_intermediate_size] * layers
    return meta


def _write_metadata(
    writer: gguf.GGUFWriter,
    arch: str,
    meta: Mapping[str, Any],
    arrays: bool,
    signed: bool,
) -> None:
    """Write hyperparameters in the wanted spelling.

    Parameters
    ----------
    writer : GGUFWriter
        Open writer.
    arch : str
        Prefix of the keys.
    meta : mapping
        Values by key; lists of equal numbers become one number unless `arrays`.
    arrays : bool
        Whether lists stay arrays.
    signed : bool
        Whether integers are i32 rather than u32.
    """
    whole = GGUFValueType.INT32 if signed else GGUFValueType.UINT32
    for key, value in meta.items():
        full = f"{arch}.{key}"
        if isinstance(value, list) and isinstance(value[0], bool):
            writer.add_array(full, value)
        elif isinstance(value, list) and (arrays or len(set(value)) > 1):
            writer.add_key_value(full, value, GGUFValueType.ARRAY, sub_type=whole)
        elif isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        else:
            number = value[0] if isinstance(value, list) else value
            writer.add_key_value(full, number, whole)


def save_gguf(
    model: Any,
    path: Path,
    *,
    types: Callable[[str], Type] = lambda _: Type.F32,
    fused_qkv: bool = False,
    split_experts: bool = False,
    dead_kv: bool = False,
    values_on_k_eq_v: bool = False,
    separate_output: bool = False,
    arrays: bool = False,
    signed: bool = False,
    tokenizer: bool = True,
    without_keys: Collection[str] = (),
    without_tensors: Collection[str] = (),
    extra: Mapping[str, Any] | None = None,
    writer_class: type[gguf.GGUFWriter] = gguf.GGUFWriter,
) -> Path:
    """Write a GGUF file in one of the spellings that occur.

    Parameters
    ----------
    model : PreTrainedModel
        What to save.
    path : Path
        File name.
    types : callable
        GGUF tensor name to type, for example `official_type`.
    fused_qkv : bool
        One `attn_qkv` on the layers that have all three.
    split_experts : bool
        `ffn_gate_exps` and `ffn_up_exps` instead of the fused tensor.
    dead_kv : bool
        Unused key and value tensors on shared layers.
    values_on_k_eq_v : bool
        A separate, random `attn_v` on layers whose values come from the keys.
    separate_output : bool
        An `output.weight` that is not the embedding.
    arrays, signed : bool
        One number a layer instead of one; i32 instead of u32.
    tokenizer : bool
        Whether to write tokenizer metadata.
    without_keys, without_tensors : collection of str
        Metadata keys (no prefix) and tensor names left out.
    extra : mapping, optional
        Further metadata, no prefix.
    writer_class : type
        What writes it.

    Returns
    -------
    Path
        `path`.
    """
    arch = "gemma3" if model.config.model_type == "gemma3_text" else "gemma4"
    tensors = _gguf_tensors(
        model, fused_qkv=fused_qkv, split_experts=split_experts, dead_kv=dead_kv
    )
    if values_on_k_eq_v:
        for name in [n for n in tensors if n.endswith("attn_k.weight")]:
            value = name.replace("attn_k", "attn_v")
            shape = tensors[name].shape
            tensors.setdefault(value, _draw(value, shape, 99, False).numpy())
    if separate_output:
        shape = tensors["token_embd.weight"].shape
        tensors["output.weight"] = _draw("output.weight", shape, 99, False).numpy()
    writer = writer_class(path, arch)
    meta = {k: v for k, v in _metadata(model, arch).items() if k not in without_keys}
    _write_metadata(writer, arch, meta | dict(extra or {}), arrays, signed)
    if tokenizer:
        _add_tokenizer(writer, arch)
    for name, values in tensors.items():
        if name not in without_tensors:
            kind = types(name) if values.ndim > 1 else Type.F32
            raw = encode(values, kind, zlib.crc32(name.encode()))
            writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class _Vast(gguf.GGUFWriter):
    """Writes a model of 900 wide layers, 2.6 TiB, whose data are a hole."""

    LAYERS = 900
    WIDTH = 1 << 20

    def add_tensor(self, name: str, tensor: Any, **_: Any) -> None:
        first, _, rest = name.partition(".1.")
        if rest and first == "blk":
            for i in range(1, self.LAYERS):
                self._add(f"blk.{i}.{rest}", tensor)
        elif not name.startswith("blk.") or name.startswith("blk.0."):
            self._add(name, tensor)

    def _add(self, name: str, tensor: Any) -> None:
        wide = "ffn_" in name
        shape = [self.WIDTH if wide and n == 512 else n for n in tensor.shape]
        size = 4 * np.prod(shape, dtype=int)
        self.add_tensor_info(name, shape, tensor.dtype, size)

    def write_tensors_to_file(self, **_: Any) -> None:
        self.write_ti_data_to_file()
        assert self.fout is not None
        for file, tensors in zip(self.fout, self.tensors, strict=True):
            self.write_padding(file, file.tell())
            sizes = (self.ggml_pad(t.nbytes, 32) for t in tensors.values())
            file.truncate(file.tell() + sum(sizes))


def save_vast_gguf(path: Path) -> Path:
    """Write a model larger than any memory, in a file that takes no room on the disk.

    Parameters
    ----------
    path : Path
        File name.

    Returns
    -------
    Path
        `path`.
    """
    extra = {"feed_forward_length": _Vast.WIDTH, "block_count": _Vast.LAYERS}
    return save_gguf(build("gemma3", wide=True), path, extra=extra, writer_class=_Vast)


def decoded_tensors(path: Path) -> tuple[dict[str, F32], dict[str, Type]]:
    """Read a GGUF file with the `gguf` package and decode every tensor.

    Parameters
    ----------
    path : Path
        File name.

    Returns
    -------
    values : dict
        Names to float32 arrays, rows first.
    types : dict
        Names to stored types.
    """
    values: dict[str, F32] = {}
    types: dict[str, Type] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = [int(n) for n in tensor.shape][::-1]
        decoded = gguf.dequantize(tensor.data, tensor.tensor_type)
        values[tensor.name] = np.array(decoded, np.float32).reshape(shape)
        types[tensor.name] = tensor.tensor_type
    return values, types


def _unfold(values: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Split the fused tensors of a file into the plain ones.

    Parameters
    ----------
    values : mapping
        GGUF names to arrays.
    model : PreTrainedModel
        Gives the head counts.

    Returns
    -------
    dict
        The same with `attn_qkv` split and experts fused.
    """
    out = dict(values)
    for name in [n for n in out if "attn_qkv" in n]:
        attention = model.model.layers[int(name.split(".")[1])].self_attn
        rows = out.pop(name)
        queries = attention.q_proj.out_features
        keys = (len(rows) - queries) // 2
        for kind, part in zip(
            "qkv", np.split(rows, [queries, queries + keys]), strict=True
        ):
            out[name.replace("attn_qkv", f"attn_{kind}")] = part
    for name in [n for n in out if n.endswith("ffn_gate_exps.weight")]:
        up = out.pop(name.replace("gate_exps", "up_exps"))
        fused = np.concatenate([out.pop(name), up], axis=1)
        out[name.replace("gate_exps", "gate_up_exps")] = fused
    return out


def with_file_weights(model: Any, path: Path) -> Any:
    """Return a copy of a model that computes with a GGUF file's decoded weights.

    Parameters
    ----------
    model : PreTrainedModel
        The model the file was made from.
    path : Path
        GGUF file.

    Returns
    -------
    PreTrainedModel
        float32 copy: the oracle for the file.
    """
    values = _unfold(decoded_tensors(path)[0], model)
    twin = copy.deepcopy(model)
    gemma3 = twin.config.model_type == "gemma3_text"
    with torch.no_grad():
        for key, tensor in twin.model.state_dict().items():
            array = values[gguf_name(key)]
            tensor.copy_(
                torch.from_numpy(array - 1 if gemma3 and "norm" in key else array)
            )
        for i, layer in enumerate(twin.model.layers):
            attention, value = layer.self_attn, values.get(f"blk.{i}.attn_v.weight")
            if getattr(attention, "v_proj", 0) is None and value is not None:
                attention.v_proj = torch.nn.Linear(
                    value.shape[1], len(value), bias=False
                )
                attention.v_proj.weight.copy_(torch.from_numpy(value))
        if "output.weight" in values:
            head = torch.from_numpy(values["output.weight"])
            twin.lm_head.weight = torch.nn.Parameter(head)
    return twin


def quantised_linears(path: Path) -> frozenset[str]:
    """Name the matrices of a file whose input our engine rounds to eight bits.

    Parameters
    ----------
    path : Path
        GGUF file.

    Returns
    -------
    frozenset of str
        Weight names in the transformers spelling, without the `model.` prefix;
        `lm_head.weight` is the head, tied or not.
    """
    types = decoded_tensors(path)[1]
    plain = (Type.F32, Type.F16, Type.BF16)
    blocks = {name for name, kind in types.items() if kind not in plain}
    out = set()
    if ("output.weight" if "output.weight" in types else "token_embd.weight") in blocks:
        out.add("lm_head.weight")
    out |= {key for key, name in _TOP.items() if name in blocks and "proj" in key}
    for name in blocks:
        parts = name.split(".", 2)
        if parts[0] != "blk":
            continue
        rest = parts[2].replace("ffn_gate_exps", "ffn_gate_up_exps")
        for kind in ("q", "k", "v") if "attn_qkv" in rest else ("",):
            plain_name = rest.replace("attn_qkv", f"attn_{kind}")
            out |= {
                f"layers.{parts[1]}.{k}" for k, v in _LAYER.items() if v == plain_name
            }
    return frozenset(out)
