# python/halfbyte/conversion/gemma_gguf.py
# SPDX-License-Identifier: Apache-2.0
"""Plans of GGUF files: which tensor gets which type, and what the file says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from halfbyte import gemma, lattice
from halfbyte.conversion import gguf
from halfbyte.conversion.encoders import Blocks, Floats, Lattice, QuantizerOf
from halfbyte.conversion.gemma_metadata import hyperparameters, same
from halfbyte.conversion.gemma_source import (
    FLOATS,
    is_spare,
    refuse_packed,
    require_floats,
)
from halfbyte.conversion.gguf import F32, U32
from halfbyte.conversion.plan import (
    Encoder,
    Job,
    Made,
    Output,
    Plan,
    Source,
    Stored,
    size_of,
)
from halfbyte.conversion.vocabulary import vocabulary
from halfbyte.errors import ModelError
from halfbyte.files import File, TensorInfo, open_gguf, open_safetensors, whole_of
from halfbyte.formats import format_info
from halfbyte.model import Model, examine
from halfbyte.records import ModelConfig

__all__ = ["FORMATS", "plan_gguf"]

# Formats of matrices, and what `general.file_type` calls a file of them.
FORMATS = {"q4_0": 2, "q8_0": 7, "bf16": 32}

_TABLES = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")
_ROUTER = "ffn_gate_inp.weight"
# Rows of a table that are looked at to see whether it is on the lattice.
_ROWS, _ON = 32, 0.999


def plan_gguf(
    path: Path, format: str, quantizer_of: QuantizerOf, claim: Mapping[str, str]
) -> Plan:
    """Plan a GGUF file with the types of the official Q4_0 ones.

    Parameters
    ----------
    path : Path
        A directory with config.json and safetensors, or a GGUF file, in F32, F16 or BF16.
    format : {"q4_0", "q8_0", "bf16"}
        Of the matrices.
    quantizer_of : callable
        From the name of a tensor of the target and its shape to what rounds it.
    claim : mapping
        Metadata that says how the file was made.

    Returns
    -------
    Plan

    Raises
    ------
    FormatError, ModelError, OSError
        If the source is damaged, or no model that could run.
    UnsupportedError
        If it is packed already, or GGUF has no words for it.
    """
    model = examine(path)
    if path.is_dir() or path.suffix == ".safetensors":
        folder = path if path.is_dir() else path.parent
        file = open_safetensors(path if path.is_dir() else whole_of(path))
        metadata = _metadata(folder, model, format)
        tensors, left_out = _renamed(file, model.config)
    else:
        file = open_gguf(path)
        metadata = gguf.copied(file.paths[0]) | {
            "general.file_type": U32(FORMATS[format]),
            "general.quantization_version": U32(2),
        }
        tensors, left_out = {tensor.name: tensor for tensor in file.tensors}, []
    jobs = tuple(
        _job(name, Stored(file, tensors[name]), model.config, format, quantizer_of)
        if name in tensors
        else _frequencies(model.config)
        for name in _names(tensors, model.config)
    )
    outputs = [output for job in jobs for output in job.outputs]
    return Plan(
        jobs,
        gguf.layout(metadata | dict(claim), outputs),
        lambda part: _check(part, model.config),
        tuple(left_out),
    )


def _check(path: Path, config: ModelConfig) -> None:
    """Open a finished file as its readers will."""
    written = examine(path).config
    if not same(written, config):
        raise ModelError(f"{path.name}: expected {config}, found {written}")


# ---- which tensors


def _renamed(
    file: File, config: ModelConfig
) -> tuple[dict[str, TensorInfo], list[str]]:
    """Tensors of a directory by their names in GGUF, and the names of the others."""
    root = gemma.root(tensor.name for tensor in file.tensors)
    found: dict[str, TensorInfo] = {}
    left_out = []
    for tensor in file.tensors:
        refuse_packed(tensor)
        name = gemma.gguf_name(tensor.name, root)
        if name is None or is_spare(name, config):
            left_out.append(tensor.name)
        else:
            found[name] = tensor
    return found, left_out


def _names(tensors: dict[str, TensorInfo], config: ModelConfig) -> list[str]:
    """Names of the target's tensors, in the order of its data."""
    names = set(tensors)
    if config.architecture == "gemma4":
        names.add("rope_freqs.weight")
    return sorted(names, key=lambda name: (gemma.order(name), name))


def _frequencies(config: ModelConfig) -> Job:
    """Divisors of the full layers' frequencies: a quarter turns, the others never do."""
    pairs = next(x.head_dim for x in reversed(config.layers) if not x.sliding) // 2
    values = np.full(pairs, 1e30, np.float32)
    values[: pairs // 4] = 1.0
    output = Output("rope_freqs.weight", "F32", (pairs,), values.nbytes)
    source = Made(output.name, values)
    return Job(gemma.role(output.name, output.shape), source, Floats("f32"), (output,))


# ---- which types


def _job(
    name: str,
    source: Stored,
    config: ModelConfig,
    format: str,
    quantizer_of: QuantizerOf,
) -> Job:
    tensor = source.tensor
    require_floats(tensor)
    target = _format(name, source, format)
    encoder: Encoder
    if target in ("q4_0", "q8_0"):  # the second holds the levels of the first
        encoder = Lattice(target, quantizer_of(name, tensor.shape))
    elif target not in FLOATS:
        encoder = Blocks(target, quantizer_of(name, tensor.shape))
    else:
        # Gemma 3's modules add the 1 themselves, and readers of GGUF do not.
        is_less = config.architecture == "gemma3" and "norm" in name
        from_gguf = tensor.name == name
        encoder = Floats(target, 1.0 if is_less and not from_gguf else 0.0)
    shape = tensor.shape or (1,)
    output = Output(name, target.upper(), shape, size_of(target, shape))
    return Job(gemma.role(name, shape), source, encoder, (output,))


def _format(name: str, source: Stored, format: str) -> str:
    """The type that official files have, but for tables on the lattice: see below."""
    shape = source.tensor.shape
    if len(shape) < 2 or name.endswith(_ROUTER):
        return "f32"
    if name == "per_layer_model_proj.weight" and format != "bf16":
        return "f16"
    # Official files have Q6_K there, which is larger and less exact than the lattice.
    if name in _TABLES and format == "q4_0" and not _on_lattice(source):
        format = "q6_k"
    candidates = (format, "q8_0") if format != "bf16" else ()
    fits = (f for f in candidates if shape[-1] % format_info(f).block_len == 0)
    return next(fits, "bf16")


def _on_lattice(source: Source) -> bool:
    """Whether rows from all over a table are on the lattice of Q4_0."""
    rows, columns = source.shape
    if columns % 32:
        return False
    buffer = np.empty(source.row_bytes, np.uint8)
    on = counted = 0
    for row in np.unique(np.linspace(0, rows - 1, _ROWS).astype(int)):
        bits = source.read(int(row), 1, buffer).bfloat16()
        if bits is None:
            return False
        groups = lattice.recover_bits(bits).groups
        some = bits.reshape(-1, 32).any(axis=1)
        on += int((groups.reshape(-1) >= lattice.Group.LEVELS)[some].sum())
        counted += int(some.sum())
    return counted > 0 and on >= _ON * counted


# ---- what the file says of itself


def _metadata(folder: Path, model: Model, format: str) -> dict[str, Any]:
    config = model.config
    out: dict[str, Any] = {
        "general.architecture": config.architecture,
        "general.type": "model",
        "general.name": _name(folder.resolve()),
        "general.file_type": U32(FORMATS[format]),
        "general.quantization_version": U32(2),
    }
    for key, value in cast(dict[str, float], model.sampling).items():
        name = {"temperature": "temp"}.get(key, key)
        kept = U32(value) if isinstance(value, int) else F32(value)
        out[f"general.sampling.{name}"] = kept
    out |= hyperparameters(config)
    if model.has_tokenizer:
        out |= vocabulary(
            folder,
            model.tokenizer,
            config.vocab_size,
            ranked=config.architecture == "gemma4",
            template=model._core.chat_template,
        )
    return out


def _name(folder: Path) -> str:
    """Name of a model's folder; of the repository, in the cache of the Hub."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name
