# python/halfbyte/conversion/gemma_directory.py
# SPDX-License-Identifier: Apache-2.0
"""Plans of directories: one safetensors file, and what stands beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from halfbyte import gemma
from halfbyte.conversion import safetensors
from halfbyte.conversion.encoders import Copied, Floats, QuantizerOf
from halfbyte.conversion.forms import FORMS, Matrix
from halfbyte.conversion.gemma_source import (
    FLOATS,
    is_spare,
    refuse_packed,
    require_floats,
)
from halfbyte.conversion.plan import Encoder, Job, Output, Plan, Stored, size_of
from halfbyte.errors import UnsupportedError
from halfbyte.files import open_safetensors
from halfbyte.model import examine
from halfbyte.sidecars import TOKENIZER

__all__ = ["FILE", "plan_directory"]

FILE = "model.safetensors"

# Measured with the model, in float32, and kept as they are.
_STEPS = ("_activation_scale", "_cache_scale")
# The configuration comes last: without it nothing takes the folder for a model.
_CONFIG = "config.json"
_BESIDE = (*TOKENIZER, "preprocessor_config.json", "processor_config.json")


def plan_directory(
    path: Path, format: str, quantizer_of: QuantizerOf, claim: Mapping[str, str]
) -> Plan:
    """Plan a directory.

    Parameters
    ----------
    path : Path
        A directory with config.json and safetensors in F32, F16 or BF16.
    format : {"w4a16-ct", "mobile", "bf16"}
        Of the matrices of the text model. All else is BF16.
    quantizer_of : callable
        From the name in GGUF of a tensor and its shape to what rounds it.
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
        If it is no directory, packed already, or nothing that has such a form.
    """
    if not path.is_dir():
        raise UnsupportedError(
            f"{path}: expected a directory with config.json, which safetensors need"
        )
    config = examine(path).config
    form = FORMS[format](config) if format in FORMS else None
    file = open_safetensors(path)
    root = gemma.root(tensor.name for tensor in file.tensors)
    made = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
    jobs: list[Job] = []
    left_out, dense = list[str](), list[str]()
    for tensor in file.tensors:
        name = gemma.gguf_name(tensor.name, root)
        if is_spare(name, config):
            left_out.append(tensor.name)
            continue
        source, module = Stored(file, tensor), tensor.name.removesuffix(".weight")
        is_matrix = len(tensor.shape) == 2 and module != tensor.name
        if form and name and is_matrix and form.takes(name, tensor.shape[-1]):
            require_floats(tensor)
            jobs += form.jobs(
                Matrix(source, module, name), quantizer_of(name, tensor.shape)
            )
        else:
            jobs.append(_dense(source, name))
            if is_matrix:
                dense.append(module)
    if form:
        form.describe(made, dense)
    made["dtype"] = "bfloat16"
    return Plan(
        tuple(jobs),
        safetensors.layout(claim, [output for job in jobs for output in job.outputs]),
        open_safetensors,
        tuple(left_out),
        form.notes() if form else (),
        (*_beside(path), (_CONFIG, (json.dumps(made, indent=2) + "\n").encode())),
    )


def _dense(source: Stored, name: str | None) -> Job:
    """Float tensors in BF16; those that are measured, and integers, as they are."""
    tensor = source.tensor
    encoder: Encoder
    refuse_packed(tensor)
    if tensor.format in FLOATS and not tensor.name.endswith(_STEPS):
        encoder = Floats("bf16")
        size = size_of("bf16", tensor.shape)
        output = Output(tensor.name, "BF16", tensor.shape, size)
    else:
        encoder = Copied()
        output = Output(tensor.name, tensor.type, tensor.shape, tensor.bytes)
    role = gemma.role(name, tensor.shape) if name else "encoders and others"
    return Job(role, source, encoder, (output,))


def _beside(path: Path) -> list[tuple[str, bytes]]:
    return [(n, (path / n).read_bytes()) for n in _BESIDE if os.path.lexists(path / n)]
