# tests/python/mobile.py
# Tiny checkpoints of the mobile schema, and transformers' own modules that run them.
# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints of the mobile schema, and transformers' own modules that run them.

transformers cannot save such a model, so the files are written here, from the tensors
of the reference. Scales are drawn as a training would leave them: a step of a matrix
row that fits its weights, and steps of activations from a run over some tokens, a
little too small, so both ends of the codes are reached.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiny
import torch
from safetensors.torch import save_file
from transformers import Gemma4Config, Gemma4ForConditionalGeneration
from transformers.integrations import gemma_quant
from transformers.utils.quantization_config import GemmaQuantizationConfig

F32 = npt.NDArray[np.float32]
ROOT = "model.language_model."
PLE = "embed_tokens_per_layer"

# As the released E2B and E4B have them; the tiny e2b shares its keys from layer 8 on.
_COMMON = {
    r"^lm_head$": {"num_bits": 2},
    r"language_model\.embed_tokens$": {"num_bits": 2},
    r"per_layer_input_gate$": {"num_bits": 8},
    r"per_layer_projection$": {"num_bits": 8},
    r"self_attn\.": {"num_bits": 4},
    r"vision_tower": {"num_bits": 8},
    r"audio_tower(?!.*lconv1d\.linear_start)": {"num_bits": 2},
}
WIDTHS: dict[str, dict[str, dict[str, int]]] = {
    "e2b": {
        r"language_model\.embed_tokens_per_layer$": {"num_bits": 4},
        r"layers\.[0-7]\.mlp\.": {"num_bits": 4},
        r"layers\.\d+\.mlp\.": {"num_bits": 2},
        **_COMMON,
    },
    "e4b": {
        r"language_model\.embed_tokens_per_layer$": {"num_bits": 2},
        r"layers\.\d+\.mlp\.": {"num_bits": 4},
        **_COMMON,
    },
}


def quantization(name: str) -> dict[str, Any]:
    """Return the `quantization_config` of a checkpoint.

    Parameters
    ----------
    name : {"e2b", "e4b"}
        Which map of widths.

    Returns
    -------
    dict
        As config.json has it.
    """
    return {
        "quant_method": "gemma",
        "num_bits": 4,
        "quantize_embeddings": True,
        "module_quant_configs": WIDTHS[name],
        "modules_to_not_convert": ["per_layer_model_projection"],
    }


def _levels(weight: torch.Tensor, bits: int, group: int) -> tuple[Any, torch.Tensor]:
    """Round a matrix to levels of its row, or of a group of a row.

    Parameters
    ----------
    weight : torch.Tensor
        (N, K).
    bits : int
        2, 4 or 8.
    group : int
        Weights that share a scale.

    Returns
    -------
    levels : torch.Tensor
        (N, K) whole numbers.
    scale : torch.Tensor
        (N, K / group) float32.
    """
    rows = weight.float().unflatten(-1, (-1, group))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    # Two bits reach one and a half deviations, more bits nearly all weights.
    spread = rows.std(-1, keepdim=True) * {2: 1.0, 4: 3.0, 8: 4.0}[bits]
    scale = spread / high
    levels = torch.clamp(torch.round(rows / scale), low, high)
    return levels.flatten(-2).to(torch.int32), scale[..., 0].contiguous()


def pack(levels: Any, bits: int) -> torch.Tensor:
    """Pack levels as the schema has them: offset binary, the first in the low bits.

    Parameters
    ----------
    levels : torch.Tensor
        (N, K) whole numbers.
    bits : int
        2, 4 or 8.

    Returns
    -------
    torch.Tensor
        uint8 (N, K * bits / 8), or int8 (N, K).
    """
    if bits == 8:
        return levels.to(torch.int8)
    per_byte = 8 // bits
    codes = (levels + 2 ** (bits - 1)).unflatten(-1, (-1, per_byte))
    shifts = torch.arange(per_byte) * bits
    return (codes << shifts).sum(-1).to(torch.uint8)


def _replace_weights(model: Any, source: Any, ple_blocks: bool) -> None:
    """Give every quantised module of `model` codes made of `source`'s weights.

    Parameters
    ----------
    model : Gemma4ForConditionalGeneration
        With quantised modules.
    source : Gemma4ForCausalLM
        With float weights.
    ple_blocks : bool
        Whether each layer's part of the per-layer table has a scale of its own.
    """
    floats = {ROOT + key: value for key, value in tiny.weights(source).items()}
    floats["lm_head.weight"] = floats[ROOT + "embed_tokens.weight"]
    for name, module in model.named_modules():
        if isinstance(module, gemma_quant.QuantizedLinear):
            levels, scale = _levels(
                floats[name + ".weight"], module.num_bits, module.in_features
            )
            module.weight.data = pack(levels, module.num_bits)
            module.weight_scale.data = scale
        elif isinstance(module, gemma_quant.QuantizedEmbedding):
            width = module.embedding_dim
            if name.endswith(PLE) and ple_blocks:
                width = source.config.hidden_size_per_layer_input
            levels, scale = _levels(floats[name + ".weight"], module.num_bits, width)
            module.embedding_quantized.data = pack(levels, module.num_bits)
            module.embedding_scale.data = scale
    for key, value in model.state_dict().items():
        if key in floats and value.is_floating_point():
            value.copy_(floats[key].to(torch.bfloat16))


def linears(model: Any) -> dict[str, Any]:
    """Name the quantised linear layers of the decoder.

    Parameters
    ----------
    model : Gemma4ForConditionalGeneration
        The reference.

    Returns
    -------
    dict
        Names without the prefix to modules.
    """
    return {
        name.removeprefix(ROOT): module
        for name, module in model.named_modules()
        if isinstance(module, gemma_quant.QuantizedLinear) and name != "lm_head"
    }


def _calibrate(model: Any) -> None:
    """Set the steps of the linear layers from a run over some tokens.

    Parameters
    ----------
    model : Gemma4ForConditionalGeneration
        Whose steps are all 0: nothing is rounded.
    """
    peaks: dict[str, tuple[float, float]] = {}
    hooks = []
    for name, module in linears(model).items():

        def note(_: Any, args: Any, out: Any, name: str = name) -> None:
            peaks[name] = (float(args[0].abs().max()), float(out.abs().max()))

        hooks.append(module.register_forward_hook(note))
    logits(model, tiny.prompt(64, seed=9))
    for hook in hooks:
        hook.remove()
    assert all(min(both) > 0 for both in peaks.values())
    for name, module in linears(model).items():
        # q, k and v see one input; every second layer gives it three different steps.
        tight = 0.9 - 0.1 * ("k_proj" in name) * (int(name.split(".")[1]) % 2)
        tight -= 0.05 * ("v_proj" in name) * (int(name.split(".")[1]) % 2)
        module.input_activation_scale.data.fill_(tight * peaks[name][0] / 127)
        module.output_activation_scale.data.fill_(0.8 * peaks[name][1] / 127)


def build(name: str, *, ple_blocks: bool = True) -> Any:
    """Build the reference: transformers' classes with its quantised modules.

    Parameters
    ----------
    name : {"e2b", "e4b"}
        Shape and map of widths.
    ple_blocks : bool
        Whether each layer's part of the per-layer table has a scale of its own, as the
        released files, or each row, as transformers loads it.

    Returns
    -------
    Gemma4ForConditionalGeneration
        In float32 and evaluation mode, without towers.
    """
    source = tiny.build(name, wide=True)
    config = Gemma4Config(
        text_config=source.config.to_dict(),
        vision_config=None,
        audio_config=None,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "eager"
    model = Gemma4ForConditionalGeneration(config).float().eval()
    made = quantization(name)
    gemma_quant.replace_with_quant_layers(
        model, GemmaQuantizationConfig(**made), made["modules_to_not_convert"]
    )
    with torch.no_grad():
        _replace_weights(model, source, ple_blocks)
    _calibrate(model)
    return model


def logits(model: Any, ids: list[int], **options: Any) -> F32:
    """Run the reference over a whole prompt.

    Parameters
    ----------
    model : Gemma4ForConditionalGeneration
        The reference.
    ids : list of int
        Token ids, length T.
    **options
        For its forward.

    Returns
    -------
    ndarray
        (T, vocab) float32.
    """
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), **{"use_cache": False} | options)
    return np.asarray(out.logits[0].float().numpy())


def kv_scales(model: Any) -> dict[str, torch.Tensor]:
    """Make the steps of keys and values: every layer's, shared ones' those they share.

    Parameters
    ----------
    model : Gemma4ForConditionalGeneration
        The reference.

    Returns
    -------
    dict
        Names to scalars.
    """
    config, out = model.config.text_config, {}
    owners = config.num_hidden_layers - config.num_kv_shared_layers
    for layer in range(config.num_hidden_layers):
        kind = config.layer_types[layer]
        same = [i for i in range(owners) if config.layer_types[i] == kind]
        owner = layer if layer < owners else same[-1]
        base = f"{ROOT}layers.{layer}.self_attn."
        out[base + "k_cache_scale"] = torch.tensor(0.001 * (owner + 1))
        out[base + "v_cache_scale"] = torch.tensor(0.01 * (owner + 1))
    return out


def _dead(model: Any) -> dict[str, torch.Tensor]:
    """Make the unused key and value matrices of shared layers, of codes and NaN.

    Parameters
    ----------
    model : Gemma4ForConditionalGeneration
        The reference.

    Returns
    -------
    dict
        Names to tensors.
    """
    config, out = model.config.text_config, {}
    first = config.num_hidden_layers - config.num_kv_shared_layers
    for layer in range(first, config.num_hidden_layers):
        own = config.per_layer_config[layer]
        rows = own.num_key_value_heads * own.head_dim
        for kind in ("k_proj", "v_proj"):
            base = f"{ROOT}layers.{layer}.self_attn.{kind}."
            out[base + "weight"] = torch.full(
                (rows, config.hidden_size // 2), 0x77, dtype=torch.uint8
            )
            out[base + "weight_scale"] = torch.full((rows, 1), float("nan"))
            for step in ("input", "output"):
                out[base + f"{step}_activation_scale"] = torch.tensor(float("nan"))
    return out


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return all tensors of the file, towers and dead ones among them.

    Parameters
    ----------
    model : Gemma4ForConditionalGeneration
        The reference.

    Returns
    -------
    dict
        Names to tensors of the released types.
    """
    out = {
        key: value.to(torch.bfloat16)
        if value.dtype == torch.float32 and not key.endswith("scale")
        else value
        for key, value in model.state_dict().items()
    }
    tower = "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear."
    out[tower + "weight"] = torch.ones(3, 5, dtype=torch.int8)
    out[tower + "weight_scale"] = torch.full((3, 1), float("nan"))
    return out | kv_scales(model) | _dead(model)


def rewrapped(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Give the same integers in the form of compressed-tensors, scales in bfloat16.

    Parameters
    ----------
    model : Gemma4ForConditionalGeneration
        The reference.

    Returns
    -------
    tensors : dict
        Names to tensors.
    config : dict
        The `quantization_config`.
    """
    modules = {
        name: module
        for name, module in model.named_modules()
        if isinstance(
            module, gemma_quant.QuantizedLinear | gemma_quant.QuantizedEmbedding
        )
    }
    out = {
        k: v for k, v in tensors(model).items() if k.rpartition(".")[0] not in modules
    }
    for name, module in modules.items():
        linear = isinstance(module, gemma_quant.QuantizedLinear)
        codes = module.weight if linear else module.embedding_quantized
        scale = module.weight_scale if linear else module.embedding_scale
        out[f"{name}.weight_scale"] = scale.data.bfloat16()
        if module.num_bits == 8:
            out[f"{name}.weight"] = codes.data
        else:
            columns = codes.shape[1] * 8 // module.num_bits
            out[f"{name}.weight_packed"] = codes.data.view(torch.int32)
            out[f"{name}.weight_shape"] = torch.tensor([len(codes), columns])
        if linear and float(module.input_activation_scale) != 0:
            out[f"{name}.input_scale"] = module.input_activation_scale.data
            out[f"{name}.output_scale"] = module.output_activation_scale.data
    static = {"type": "int", "num_bits": 8, "symmetric": True, "dynamic": False}
    groups = {
        f"group_{bits}": {
            "weights": {"type": "int", "num_bits": bits, "symmetric": True},
            "input_activations": static,
            "output_activations": static,
            "format": "int-quantized" if bits == 8 else "pack-quantized",
        }
        for bits in (2, 4, 8)
    }
    config = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
    return out, config | {"config_groups": groups}


def save(
    model: Any,
    folder: Path,
    name: str,
    *,
    replace: dict[str, torch.Tensor | None] | None = None,
    config: dict[str, Any] | None = None,
    rewrap: bool = False,
) -> Path:
    """Write the checkpoint of a reference.

    Parameters
    ----------
    model : Gemma4ForConditionalGeneration
        The reference.
    folder : Path
        Where; made if it does not exist.
    name : {"e2b", "e4b"}
        Whose map of widths.
    replace : dict, optional
        Tensors to write instead, or None to leave one out.
    config : dict, optional
        What to change in `quantization_config`; None values leave a key out.
    rewrap : bool
        In the form of compressed-tensors.

    Returns
    -------
    Path
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out, made = tensors(model), quantization(name)
    if rewrap:
        out, made = rewrapped(model)
    out, made = out | (replace or {}), made | (config or {})
    kept = {k: v.contiguous().clone() for k, v in out.items() if v is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    source = tiny.build(name, wide=True)
    text = tiny.text_config(source, released=True) | {"dtype": "bfloat16"}
    outer = tiny._outer(text, released=True)
    outer["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    outer["quantization_config"] = {k: v for k, v in made.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(outer, indent=1))
    return folder
