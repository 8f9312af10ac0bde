# python/halfbyte/qat/export.py
# SPDX-License-Identifier: Apache-2.0
"""Trained models as directories that Transformers and halfbyte load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from halfbyte.errors import ArgumentError, UnsupportedError
from halfbyte.origin import claim
from halfbyte.qat.gemma import text_model
from halfbyte.qat.modules import FakeQuantEmbedding, FakeQuantLinear, FakeQuantModule
from halfbyte.qat.prepare import fake_modules, prepared
from halfbyte.qat.schemes import Scheme
from halfbyte.sidecars import TOKENIZER

__all__ = ["export"]


@torch.no_grad()
def export(model: Any, directory: str | Path, *, tokenizer: Any = None) -> Path:
    """Write a prepared model as a directory.

    Q4_0 becomes ``bfloat16(step * level)``, of which `halfbyte.lattice.recover` finds
    every step and level, and which Transformers loads as any other model. The mobile
    scheme becomes a checkpoint of ``quant_method: "gemma"``, packed, which both run as it
    is. All other tensors are bfloat16.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Prepared, trained or not, calibrated if its scheme has static activations.
    directory : path
        Made if there is none; files in it are replaced.
    tokenizer : transformers.PreTrainedTokenizerBase or path, optional
        To be saved beside it, or the directory to copy one from. By default the one that
        the model was loaded from, if it is there.

    Returns
    -------
    Path
        `directory`.

    Raises
    ------
    ArgumentError
        If the model was not prepared, or `tokenizer` is neither a tokenizer nor a
        directory.
    UnsupportedError
        If its scheme has no form in files.
    """
    scheme = prepared(model).scheme
    beside = _tokenizer_folder(model, tokenizer)
    if scheme.name not in ("q4_0", "mobile"):
        raise UnsupportedError(
            f"model: expected a scheme named q4_0 or mobile, got {scheme.name}"
        )
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    tensors = dict(_tensors(model, scheme.packed))
    config = _config(model, _quantization(model, scheme) if scheme.packed else None)
    if config["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    how = "levels of fake quantization, trained or not"
    _save(tensors, target / "model.safetensors", claim("qat.export", scheme.name, how))
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(target)
    elif beside is not None and beside.resolve() != target.resolve():
        for name in TOKENIZER:
            if (beside / name).exists():
                shutil.copyfile(beside / name, target / name)
    generation = getattr(model, "generation_config", None)
    if generation is not None:  # of the model that was trained, whatever was copied
        text = generation.to_json_string()
        (target / "generation_config.json").write_text(text)
    return target


def _tokenizer_folder(model: Any, tokenizer: Any) -> Path | None:
    """Return the directory to copy a tokenizer from, if there is one."""
    if hasattr(tokenizer, "save_pretrained"):
        return None
    if tokenizer is None:
        own = getattr(model, "name_or_path", None)
        return Path(own) if own and Path(own).is_dir() else None
    given = Path(tokenizer)
    if not given.is_dir():
        raise ArgumentError(
            f"tokenizer: expected a tokenizer or a directory, got {given}"
        )
    return given


def _tensors(model: nn.Module, packed: bool) -> Iterator[tuple[str, Tensor]]:
    fakes = dict(fake_modules(model))
    owned = tuple(name + "." for name in fakes)
    for name, value in model.state_dict().items():
        if not name.startswith(owned):
            yield name, _plain(value)
    for name, module in fakes.items():
        made = _packed(module) if packed else _dense(module)
        for key, value in made.items():
            yield f"{name}.{key}", value.contiguous().cpu()


def _plain(value: Tensor) -> Tensor:
    kept = value.detach()
    if kept.is_floating_point():
        kept = kept.to(torch.bfloat16)
    return kept.contiguous().cpu()


def _dense(module: FakeQuantModule) -> dict[str, Tensor]:
    made = {name: module.quantized(name).to(torch.bfloat16) for name in module.matrices}
    return made | _bias(module)


def _bias(module: FakeQuantModule) -> dict[str, Tensor]:
    bias = getattr(module, "bias", None)
    return {} if bias is None else {"bias": bias.to(torch.bfloat16)}


def _packed(module: FakeQuantModule) -> dict[str, Tensor]:
    levels, steps = module.packed()
    codes = _pack(levels, module.grid.bits)
    if isinstance(module, FakeQuantEmbedding):
        return {"embedding_quantized": codes, "embedding_scale": steps}
    made = {"weight": codes, "weight_scale": steps} | _bias(module)
    for side in ("input", "output"):
        step = torch.zeros(())
        if isinstance(module, FakeQuantLinear) and module.calibrated:
            step = getattr(module, f"{side}_log_step").exp().float()
        made[f"{side}_activation_scale"] = step
    return made


def _pack(levels: Tensor, bits: int) -> Tensor:
    """Pack integers as the schema has them: offset binary, the first in the low bits."""
    if bits == 8:
        return levels
    codes = (levels.to(torch.int32) + 2 ** (bits - 1)).unflatten(-1, (-1, 8 // bits))
    shifts = torch.arange(8 // bits, device=levels.device) * bits
    packed: Tensor = (codes << shifts).sum(-1).to(torch.uint8)
    return packed


def _quantization(model: Any, scheme: Scheme) -> dict[str, Any]:
    """Return the ``quantization_config`` of a packed checkpoint.

    Names in the text model are relative to it, as a model without a head lacks its name.
    """
    fakes = dict(fake_modules(model))
    inside = text_model(model)[0] + "."
    left = [name.removeprefix(inside) for name in prepared(model).skipped]
    for name, module in model.named_modules():
        if name in fakes or not isinstance(module, nn.Linear | nn.Embedding):
            continue
        is_text = name.startswith(inside)
        left.append(name.removeprefix(inside) if is_text else name.split(".layers.")[0])
    return {
        "quant_method": "gemma",
        "num_bits": scheme.grid.bits,
        "quantize_embeddings": any(
            isinstance(module, FakeQuantEmbedding) for module in fakes.values()
        ),
        "module_quant_configs": {key: {"num_bits": bits} for key, bits in scheme.bits},
        "modules_to_not_convert": sorted(set(left)),
    }


def _config(model: Any, quantization: dict[str, Any] | None) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    made["architectures"] = [type(model).__name__]
    made["dtype"] = "bfloat16"
    for part in ("text_config", "vision_config", "audio_config"):
        if made.get(part):
            made[part]["dtype"] = "bfloat16"
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    if quantization is not None:
        made["quantization_config"] = quantization
        # Packed tables cannot be tied: the head is a copy of its own.
        tied = tied and not isinstance(model.lm_head, FakeQuantLinear)
    made["tie_word_embeddings"] = tied
    if "text_config" in made:
        made["text_config"]["tie_word_embeddings"] = tied
    return made


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    whole = path.with_suffix(".partial")
    save_file(tensors, whole, metadata={"format": "pt"} | metadata)
    whole.replace(path)
