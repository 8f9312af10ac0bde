# tests/python/compressed.py
# Tiny checkpoints written by compressed-tensors, and the floats they stand for.
# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints written by compressed-tensors, and the floats they stand for."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import tiny
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

# Beside the head, as in the released w4a16 files, and a module by its name.
IGNORE = ["lm_head", "re:.*router.*", "re:.*per_layer_model_projection"]


def group(targets: list[str], bits: int, size: int | None = None) -> QuantizationScheme:
    """Return the scheme of integers in groups, or with one scale a row.

    Parameters
    ----------
    targets : list of str
        Classes, names or patterns of modules.
    bits : int
        Width.
    size : int, optional
        Weights of a group; a row by default.

    Returns
    -------
    QuantizationScheme
    """
    return QuantizationScheme(
        targets=targets,
        weights=QuantizationArgs(
            num_bits=bits,
            symmetric=True,
            strategy="channel" if size is None else "group",
            group_size=size,
        ),
    )


def compress(
    model: Any,
    schemes: list[QuantizationScheme],
    *,
    ignore: list[str] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    form: str | None = None,
) -> tuple[Tensors, dict[str, Any]]:
    """Compress a copy of a model with the library.

    Parameters
    ----------
    model : PreTrainedModel
        A model of `tiny`.
    schemes : list of QuantizationScheme
        In order: the first whose target a module is.
    ignore : list of str, optional
        What stays float.
    dtype : torch.dtype
        Of the scales and of what stays float.
    form : str, optional
        The format, where it does not follow from the schemes.

    Returns
    -------
    tensors : dict
        Names to tensors of the checkpoint.
    config : dict
        Its `quantization_config`.
    """
    twin = copy.deepcopy(model).to(dtype)
    config = QuantizationConfig(
        config_groups={f"group_{i}": scheme for i, scheme in enumerate(schemes)},
        ignore=IGNORE if ignore is None else ignore,
    )
    apply_quantization_config(twin, config)
    for module in twin.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        args, weight = scheme.weights, module.weight.data
        size = args.group_size or weight.shape[-1]
        peak = weight.float().unflatten(-1, (-1, size)).abs().amax(-1)
        scale = peak / ((2**args.num_bits - 1) / 2)
        module.weight_scale.data = scale.to(dtype)
    compressor = ModelCompressor.from_pretrained_model(twin, form)
    compressor.compress_model(twin)
    made = compressor.quantization_config.model_dump(mode="json")
    tensors = {k: v for k, v in twin.state_dict().items() if k != "lm_head.weight"}
    return tensors, made | {"quant_method": "compressed-tensors"}


def expand(model: Any, tensors: Tensors, config: dict[str, Any]) -> Any:
    """Return a float32 copy of a model with the weights that the tensors stand for.

    Parameters
    ----------
    model : PreTrainedModel
        The model they were made of.
    tensors : dict
        Names to tensors.
    config : dict
        Their `quantization_config`.

    Returns
    -------
    PreTrainedModel
        Codes times scales, which float32 holds exactly.
    """
    twin = tiny.rounded(model, next(iter(tensors.values())).dtype)
    state = twin.state_dict()
    for name, packed in tensors.items():
        base, _, last = name.rpartition(".")
        if last == "weight_packed":
            rows, columns = (int(n) for n in tensors[base + ".weight_shape"])
            bits = 32 * packed.shape[1] // columns
            levels = unpack_from_int32(packed, bits, torch.Size((rows, columns)))
        elif last == "weight" and packed.dtype == torch.int8:
            levels = packed
        else:
            continue
        scale = tensors[base + ".weight_scale"].float()
        wide = scale.repeat_interleave(levels.shape[1] // scale.shape[1], dim=1)
        with torch.no_grad():
            state[base + ".weight"].copy_(levels.float() * wide)
    assert config["quant_method"] == "compressed-tensors"
    return twin


def save(
    model: Any, folder: Path, tensors: Tensors, config: dict[str, Any] | None
) -> Path:
    """Write a checkpoint.

    Parameters
    ----------
    model : PreTrainedModel
        Gives the configuration.
    folder : Path
        Where; made if it does not exist.
    tensors, config
        See `compress`. Without a config there is no such key.

    Returns
    -------
    Path
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {key: value.contiguous().clone() for key, value in tensors.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    made = tiny.text_config(model, released=False)
    if config is not None:
        made["quantization_config"] = config
    (folder / "config.json").write_text(json.dumps(made, indent=1))
    return folder
