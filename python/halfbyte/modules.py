# python/halfbyte/modules.py
# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a file belong together, and how wide the codes among them are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from halfbyte.files import File, TensorInfo
from halfbyte.gemma import without_root

__all__ = [
    "CODES",
    "SCALES",
    "STEP_NAMES",
    "Codes",
    "Module",
    "codes_of",
    "formats_of",
    "modules_of",
]

_LAYER = re.compile(r"(?:blk|layers)\.(\d{1,4})\.(.+)", re.DOTALL)
# Ends of the names of a matrix: its codes or floats, its scales, its activations'.
CODES = ("weight_packed", "embedding_quantized", "weight", "")
SCALES = ("weight_scale", "embedding_scale")
STEP_NAMES = (
    "input_activation_scale",
    "output_activation_scale",
    "input_scale",
    "output_scale",
)
_SUFFIXES = (*CODES[:3], *SCALES, *STEP_NAMES, "weight_shape")


class Module(NamedTuple):
    """Tensors that belong together, by the end of their names."""

    name: str  # without what all text tensors begin with
    layer: int | None
    leaf: str
    tensors: dict[str, TensorInfo]

    def find(self, ends: Iterable[str]) -> TensorInfo | None:
        """Find the first of these that is there."""
        return next((self.tensors[end] for end in ends if end in self.tensors), None)


class Codes(NamedTuple):
    """What a tensor of codes holds."""

    width: int
    rows: int
    columns: int


def formats_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read which modules `HalfbyteConfig` packed, and in what formats.

    Parameters
    ----------
    config : mapping
        The content of a ``config.json``, not checked: nor are the formats.

    Returns
    -------
    dict of str to object, or None
        By the names of `Module`. None if the config is of no such checkpoint.
    """
    for outer in (config, config.get("text_config")):
        told = outer.get("quantization_config") if isinstance(outer, Mapping) else None
        if isinstance(told, Mapping) and told.get("quant_method") == "halfbyte":
            formats = told.get("module_formats")
            known = formats if isinstance(formats, Mapping) else {}
            return {without_root(name): format for name, format in known.items()}
    return None


def modules_of(tensors: Iterable[TensorInfo]) -> dict[str, Module]:
    """Put tensors together by their names, without what these begin and end with."""
    found: dict[str, Module] = {}
    for tensor in tensors:
        own = without_root(tensor.name)
        name, _, end = own.rpartition(".")
        if not name or end not in _SUFFIXES:
            name, end = own, ""
        layer = _LAYER.fullmatch(name)
        leaf = layer[2] if layer else name
        number = int(layer[1]) if layer else None
        module = found.setdefault(name, Module(name, number, leaf, {}))
        module.tensors[end] = tensor
    return found


def codes_of(
    opened: File, module: Module, modules: Mapping[str, Module]
) -> Codes | None:
    """Find the width of a module's codes.

    Parameters
    ----------
    opened : File
    module : Module
    modules : mapping of str to Module
        All of the file.

    Returns
    -------
    Codes or None
        None if the tensors do not agree on one.
    """
    tensor = module.find(CODES)
    if tensor is None or len(tensor.shape) != 2:
        return None
    rows = tensor.shape[0]
    if tensor.type == "I8":
        return Codes(8, *tensor.shape)
    if "weight_shape" in module.tensors:
        columns = _stated_columns(opened, module.tensors["weight_shape"], rows)
    else:
        columns = _columns(module, modules)
    # Rows of compressed-tensors end with a whole word of 32 bits.
    widths = [
        width
        for width in (2, 4, 8)
        if columns and 0 <= 8 * tensor.bytes - width * rows * columns < 32 * rows
    ]
    return Codes(widths[0], rows, columns) if len(widths) == 1 else None


def _stated_columns(opened: File, shape: TensorInfo, rows: int) -> int:
    if shape.type != "I64" or shape.bytes != 16:
        return 0
    stated_rows, columns = opened.tensor_bytes(shape.name).view("<i8").tolist()
    return int(columns) if stated_rows == rows and columns > 0 else 0


def _columns(module: Module, modules: Mapping[str, Module]) -> int:
    """Inputs of a matrix: the outputs of what comes before it; 0 if that is not there.

    The bytes of a row of codes do not tell how many there are, and no other tensor of
    a mobile checkpoint says it.
    """
    sources = {
        "self_attn.o_proj": "self_attn.q_proj",
        "mlp.down_proj": "mlp.gate_proj",
        "per_layer_projection": "per_layer_input_gate",
        "embed_tokens_per_layer": "per_layer_model_projection",
    }
    before = module.name.removesuffix(module.leaf)
    source = modules.get(before + sources.get(module.leaf, ""))
    if module.leaf not in sources:
        source = modules.get("norm")
    tensor = source.find(CODES) if source is not None else None
    return tensor.shape[0] if tensor is not None and tensor.shape else 0
