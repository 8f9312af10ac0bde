# python/halfbyte/conversion/gemma_source.py
# SPDX-License-Identifier: Apache-2.0
"""What every plan asks of the tensors of a source."""

from __future__ import annotations

from halfbyte import gemma
from halfbyte.errors import UnsupportedError
from halfbyte.files import TensorInfo
from halfbyte.records import ModelConfig

__all__ = ["FLOATS", "is_spare", "refuse_packed", "require_floats"]

FLOATS = ("f32", "f16", "bf16")

_PACKED = (".weight_packed", ".weight_scale", ".embedding_quantized")


def is_spare(name: str | None, config: ModelConfig) -> bool:
    """Whether a tensor is a copy of the embedding, or one that no layer reads.

    Parameters
    ----------
    name : str or None
        In GGUF; None of what has no name there.
    config : ModelConfig
        Of the source.
    """
    if name == "output.weight":
        return not config.untied_head
    block, _, rest = (name or "").removeprefix("blk.").partition(".")
    if rest not in gemma.KEYS_AND_VALUES or not block.isdecimal():
        return False
    layer = int(block)
    return layer < config.num_layers and config.layers[layer].kv_source != layer


def refuse_packed(tensor: TensorInfo) -> None:
    """Raise an `UnsupportedError` if the name of a tensor is that of packed codes."""
    if tensor.name.endswith(_PACKED):
        raise _is_packed(tensor)


def require_floats(tensor: TensorInfo) -> None:
    """Raise an `UnsupportedError` if a tensor is not of floats."""
    if tensor.format not in FLOATS:
        raise _is_packed(tensor)


def _is_packed(tensor: TensorInfo) -> UnsupportedError:
    found = tensor.type if tensor.format not in FLOATS else "a part of packed weights"
    return UnsupportedError(
        f"tensor {tensor.name!r}: expected weights in F32, F16 or BF16, found {found}: "
        "this model is packed already, convert the one it was packed from",
        tensor=tensor.name,
        found=found,
    )
