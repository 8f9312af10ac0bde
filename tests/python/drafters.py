# tests/python/drafters.py
# Tiny drafters for the models of tiny.py, and transformers' own drafting, as an oracle.
# SPDX-License-Identifier: Apache-2.0
"""Tiny drafters for the models of tiny.py, and transformers' own drafting, as an oracle."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

# What transformers calls the drafters of the sizes: those of the 12B, and all others.
_CLASSES = {
    False: ("Gemma4AssistantConfig", "Gemma4AssistantForCausalLM"),
    True: ("Gemma4UnifiedAssistantConfig", "Gemma4UnifiedAssistantForCausalLM"),
}
CLUSTERS, USED = 32, 4  # of 16 tokens each


def build(
    target: Any,
    *,
    seed: int = 5,
    ordered: bool = False,
    clusters: int = CLUSTERS,
    used: int = USED,
) -> Any:
    """Build a drafter with random weights for a model of `tiny.build`.

    Parameters
    ----------
    target : PreTrainedModel
        The model that it drafts for.
    seed : int
        Seed of its weights.
    ordered : bool
        Whether its head is read by clusters, as those of the small sizes are.
    clusters, used : int
        How many there are, and how many of them are looked through.

    Returns
    -------
    PreTrainedModel
        A float32 drafter in evaluation mode with eager attention.
    """
    text = type(target.config)(**_text(target))
    kinds = _CLASSES["unified" in target.config.model_type]
    make_config, make = (getattr(transformers, name) for name in kinds)
    config = make_config(
        text_config=text,
        backbone_hidden_size=target.config.hidden_size,
        use_ordered_embeddings=ordered,
        num_centroids=clusters,
        centroid_intermediate_top_k=used,
    )
    config._attn_implementation = text._attn_implementation = "eager"
    drafter = make(config).float().eval()
    with torch.no_grad():
        for key, tensor in drafter.state_dict().items():
            shape = tuple(tensor.shape)
            if key.endswith("token_ordering"):
                order = torch.randperm(*shape, generator=torch.manual_seed(seed))
                tensor.copy_(order)
            elif key != "lm_head.weight":
                name = key.removeprefix("model.")
                tensor.copy_(tiny._draw(name, shape, seed, plus_one=False))
    drafter.tie_weights()
    return drafter


def _text(model: Any) -> dict[str, Any]:
    """Return the text configuration of a drafter, whose heads are the target's."""
    layers = [tiny.S, tiny.S, tiny.S, tiny.G]
    target = model.config
    sliding, full = model.model.layers[0].self_attn, model.model.layers[-1].self_attn
    heads = target.num_attention_heads
    text: dict[str, Any] = {
        "vocab_size": target.vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "layer_types": layers,
        "num_hidden_layers": len(layers),
        "num_kv_shared_layers": len(layers),
        "num_attention_heads": heads,
        "num_key_value_heads": heads // sliding.num_key_value_groups,
        "num_global_key_value_heads": heads // full.num_key_value_groups,
        "attention_k_eq_v": target.attention_k_eq_v,
        "head_dim": sliding.head_dim,
        "global_head_dim": full.head_dim,
        "sliding_window": target.sliding_window,
        "max_position_embeddings": target.max_position_embeddings,
        "rope_parameters": target.rope_parameters,
        "final_logit_softcapping": None,
        "tie_word_embeddings": True,
    }
    if "unified" not in target.model_type:
        text |= {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    return text


def quotes(drafter: Any, target: Any, ids: list[int]) -> Any:
    """Change a drafter to guess, behind each of `ids`, the token after it.

    Its layers add nothing, it looks at the token alone, and its head has a row for each
    pair of neighbours: behind a token that stands in `ids` several times it guesses one
    of those that followed.

    Returns
    -------
    PreTrainedModel
        `drafter`.
    """
    width = drafter.config.text_config.hidden_size
    assert width >= target.config.hidden_size
    table = target.model.embed_tokens.weight.data
    with torch.no_grad():
        for layer in drafter.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            layer.layer_scalar.fill_(1)
        drafter.model.norm.weight.fill_(1)
        drafter.pre_projection.weight.zero_()
        drafter.pre_projection.weight[:, : target.config.hidden_size].fill_diagonal_(1)
        head = drafter.model.embed_tokens.weight
        head.zero_()
        for token, following in dict(pairwise(ids)).items():
            head[following, : table.shape[1]] += table[token] / table[token].norm()
    return drafter


def drafted(drafter: Any, target: Any, ids: list[int], count: int) -> list[int]:
    """Draft as transformers' generation does, from a sequence that nothing cut.

    Parameters
    ----------
    drafter, target : PreTrainedModel
        Both in float32.
    ids : list of int
        The sequence, its last token among them, which the target has not seen.
    count : int
        How many tokens.

    Returns
    -------
    list of int
        What may follow.
    """
    with torch.no_grad():
        seen = target(
            input_ids=torch.tensor([ids[:-1]]),
            use_cache=False,
            output_hidden_states=True,
            return_shared_kv_states=True,
        )
        # transformers lets a drafter see one key more than a window has.
        window = target.config.sliding_window
        shared = dict(seen.shared_kv_states)
        shared[tiny.S] = tuple(x[:, :, -window:] for x in shared[tiny.S])
        state, token, answer = seen.hidden_states[-1][:, -1:], ids[-1], []
        for _ in range(count):
            row = target.get_input_embeddings()(torch.tensor([[token]]))
            out = drafter(
                inputs_embeds=torch.cat([row, state], dim=-1),
                position_ids=torch.tensor([[len(ids) - 1]]),
                shared_kv_states=shared,
                use_cache=False,
            )
            state, token = out.last_hidden_state, int(out.logits.argmax())
            answer.append(token)
    return answer


def save(drafter: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a drafter as transformers does."""
    drafter.to(dtype).save_pretrained(folder)
    drafter.float()
    return folder


def with_row_scales(source: Path, folder: Path) -> Path:
    """Copy a saved drafter, its embedding in int8 with one scale a row."""
    tensors = load_file(source / "model.safetensors")
    table = tensors.pop("model.embed_tokens.weight")
    scales = table.abs().amax(1, keepdim=True) / 127
    tensors["model.embed_tokens.embedding_quantized"] = (table / scales).round().char()
    tensors["model.embed_tokens.embedding_scale"] = scales
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gemma", "num_bits": 8}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# What GGUF files call its two matrices: llama.cpp's now, before that, and ik_llama.cpp's.
GGUF_NAMES = (
    ("gemma4-assistant", "nextn.pre_projection", "nextn.post_projection"),
    ("gemma4_assistant", "mtp.pre_projection", "mtp.post_projection"),
    ("gemma4-assistant", "mtp_pre_proj", "mtp_post_proj"),
)


def save_gguf(
    drafter: Any, path: Path, names: tuple[str, str, str] = GGUF_NAMES[0]
) -> Path:
    """Write a drafter in F32 as llama.cpp's converter does, which drops the clusters."""
    arch, *outer = names
    text = drafter.config.text_config
    sliding = [kind == tiny.S for kind in text.layer_types]
    own = [layer.self_attn for layer in drafter.model.layers]
    meta: dict[str, Any] = {
        "block_count": len(own),
        "context_length": text.max_position_embeddings,
        "embedding_length": text.hidden_size,
        "embedding_length_out": drafter.config.backbone_hidden_size,
        "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": [
            text.num_attention_heads // layer.num_key_value_groups for layer in own
        ],
        "attention.key_length": own[-1].head_dim,
        "attention.key_length_swa": own[0].head_dim,
        "attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        "attention.sliding_window": text.sliding_window,
        "attention.sliding_window_pattern": sliding,
        "attention.shared_kv_layers": len(own),
        "rope.freq_base": float(text.rope_parameters[tiny.G]["rope_theta"]),
        "rope.freq_base_swa": float(text.rope_parameters[tiny.S]["rope_theta"]),
    }
    writer = gguf.GGUFWriter(path, arch)
    tiny._write_metadata(writer, arch, meta, arrays=False, signed=False)
    renamed = dict(zip(("pre_projection", "post_projection"), outer, strict=True))
    for key, value in drafter.state_dict().items():
        module = key.removesuffix(".weight")
        if module in renamed:
            writer.add_tensor(renamed[module] + ".weight", np.asarray(value))
        elif key.startswith("model."):
            name = tiny.gguf_name(key.removeprefix("model."))
            writer.add_tensor(name, np.asarray(value))
    pairs = own[-1].head_dim // 2  # of full layers, a quarter of which turns
    stopped = np.arange(pairs) >= pairs // 4
    writer.add_tensor("rope_freqs.weight", np.where(stopped, 1e30, 1).astype("<f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def break_config(folder: Path, **changes: Any) -> Path:
    """Change keys of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder
