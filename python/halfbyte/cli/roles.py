# python/halfbyte/cli/roles.py
# What the tensors of a file are for, and how many bits each purpose takes.
# SPDX-License-Identifier: Apache-2.0
"""Bits by the role of a matrix, told from names and shapes of tensors alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from halfbyte.choice import is_encoder_tensor
from halfbyte.modules import (
    CODES,
    SCALES,
    STEP_NAMES,
    Codes,
    Module,
    codes_of,
    modules_of,
)

if TYPE_CHECKING:
    from halfbyte.files import File, TensorInfo

__all__ = [
    "Footprint",
    "Group",
    "Part",
    "ScaleRange",
    "footprint",
    "groups",
    "parts",
    "ranges",
    "scale_range",
]

_EMBEDDING, _PLE_TABLE, _HEAD = "embedding", "PLE table", "head"
_VECTORS, _STEPS, _OTHER = "norms and scalars", "steps", "other"
_UNUSED, _ENCODERS = "unused", "encoders"

# Names in GGUF and in safetensors, without the layer's number and ".weight".
_MATRICES = {
    _EMBEDDING: ("token_embd", "embed_tokens"),
    _PLE_TABLE: ("per_layer_token_embd", "embed_tokens_per_layer"),
    "PLE model projection": ("per_layer_model_proj", "per_layer_model_projection"),
    "attention": (
        *("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output"),
        *(f"self_attn.{kind}_proj" for kind in ("q", "k", "v", "qkv", "o")),
    ),
    "MLP": (
        *("ffn_gate", "ffn_up", "ffn_down"),
        *(f"mlp.{kind}_proj" for kind in ("gate", "up", "down")),
    ),
    "experts": (
        *(f"ffn_{kind}_exps" for kind in ("gate_up", "gate", "up", "down")),
        *(f"experts.{kind}_proj" for kind in ("gate_up", "gate", "up", "down")),
    ),
    "router": ("ffn_gate_inp", "router.proj"),
    "PLE gate, projection": (
        *("inp_gate", "proj"),
        *("per_layer_input_gate", "per_layer_projection"),
    ),
    _HEAD: ("output", "lm_head"),
}
_ROLES = {leaf: role for role, leaves in _MATRICES.items() for leaf in leaves}
_ORDER = (*_MATRICES, _VECTORS, _STEPS, _OTHER, _UNUSED, _ENCODERS)
# What shared layers do not need: they read the keys and values of another one.
_KEYS_AND_VALUES = ("attn_k", "attn_v", "self_attn.k_proj", "self_attn.v_proj")

# Names in a GGUF file of encoders (``mmproj``).
_GGUF_ENCODERS = ("v.", "a.", "mm.")
_CACHE_STEP = re.compile(r".*\.[kv]_cache_scale", re.DOTALL)

# Of a group, to tell how its scales spread; more is no header any more.
_MAX_SCALE_BYTES = 16 << 20


class Part(NamedTuple):
    """A matrix with its scales, or one vector."""

    role: str
    layer: int | None
    kept: str  # its type, or the bits of its codes and what shares a scale
    tensors: int
    weights: int  # 0: not told by the file
    bytes: int
    resident: int  # bytes once it is loaded, if every token reads it
    scales: str | None  # the tensor that has them
    decoded: int = 0  # scales that are copied as float32, also of a table in the file


class Group(NamedTuple):
    """All parts of a role that are kept in one way."""

    role: str
    kept: str
    layers: tuple[int, ...]
    tensors: int
    weights: int
    bytes: int
    scales: tuple[str, ...]

    @property
    def bits(self) -> float | None:
        """Bits a weight, scales included."""
        return 8 * self.bytes / self.weights if self.weights else None


class Footprint(NamedTuple):
    """Bytes of a model that reads and writes text alone, without its context."""

    resident: int  # read for every token
    mapped: int  # gathered by rows from the mapped file
    unused: int  # never touched


class ScaleRange(NamedTuple):
    """How the scales of a group spread."""

    min: float
    median: float
    max: float


def parts(
    opened: File, owners: int | None, formats: Mapping[str, Any] | None = None
) -> list[Part]:
    """Tell what the tensors of a file are for.

    Parameters
    ----------
    opened : File
        Its header is read, and two numbers for each matrix of compressed-tensors.
    owners : int or None
        Layers with keys and values of their own, the first ones; None: all.
    formats : mapping of str to object, optional
        What bytes are rows of, from `formats_of`.

    Returns
    -------
    list of Part
        In no particular order. What is not understood is `other`, so the bytes of all
        parts are those of all tensors.
    """
    found, text = [], []
    for tensor in opened.tensors:
        name = tensor.name
        if is_encoder_tensor(name) or name.startswith(_GGUF_ENCODERS):
            found.append(_encoder(tensor))
        else:
            text.append(tensor)
    modules = modules_of(text)
    packed_embedding = any(
        _role(module) == _EMBEDDING and module.find(SCALES) is not None
        for module in modules.values()
    )
    for module in modules.values():
        for part in _module_parts(opened, module, modules, formats):
            dead = (
                owners is not None
                and part.layer is not None
                and part.layer >= owners
                and module.leaf in _KEYS_AND_VALUES
            )
            # Beside a dense embedding it is a copy of that: the loader ties them.
            copy = (
                module.leaf == "lm_head"
                and module.find(SCALES) is None
                and not packed_embedding
            )
            found.append(part._replace(role=_UNUSED) if dead or copy else part)
    return found


def _encoder(tensor: TensorInfo) -> Part:
    kept, size = tensor.type, tensor.bytes
    return Part(_ENCODERS, None, kept, 1, 0, size, 0, None)


def _role(module: Module) -> str:
    codes = module.find(CODES)
    if _CACHE_STEP.fullmatch(module.name) or codes is None:
        return _STEPS if codes is not None else _OTHER
    if role := _ROLES.get(module.leaf):
        return role
    return _VECTORS if len(codes.shape) <= 1 else _OTHER


def _module_parts(
    opened: File,
    module: Module,
    modules: Mapping[str, Module],
    formats: Mapping[str, Any] | None,
) -> list[Part]:
    steps = [t for end, t in module.tensors.items() if end in STEP_NAMES]
    found = [
        Part(_STEPS, module.layer, t.type, 1, _count(t), t.bytes, 4 * _count(t), None)
        for t in steps
    ]
    own = [t for end, t in module.tensors.items() if end not in STEP_NAMES]
    if not own:
        return found
    role, size = _role(module), sum(t.bytes for t in own)
    tensor, scale = module.find(CODES) or own[0], module.find(SCALES)
    if scale is None:
        kept, count = tensor.type, _count(tensor)
        if formats is not None and tensor.type == "U8":
            kept, count = _rows(tensor, formats.get(module.name))
        is_float = role in (_VECTORS, _STEPS)
        resident = 4 * count if is_float else size
        part = Part(role, module.layer, kept, len(own), count, size, resident, None)
    else:
        codes = codes_of(opened, module, modules)
        part = _packed(role, module.layer, tensor, scale, codes)
        part = part._replace(tensors=len(own), bytes=size)
    return [*found, part]


def _rows(tensor: TensorInfo, format: object) -> tuple[str, int]:
    """How a tensor of bytes is kept, and how many weights it has, by its format."""
    from halfbyte.formats import format_info, formats

    if isinstance(format, str) and format in formats() and tensor.shape:
        info = format_info(format)
        if tensor.shape[-1] % info.block_bytes == 0:
            blocks = tensor.bytes // info.block_bytes
            return format.upper(), blocks * info.block_len
    return f"{tensor.type}, unclear", 0


def _packed(
    role: str,
    layer: int | None,
    tensor: TensorInfo,
    scale: TensorInfo,
    c: Codes | None,
) -> Part:
    """Describe codes whose scales are a tensor of their own."""
    if c is None:
        kept = f"{tensor.type}, unclear"
        return Part(role, layer, kept, 0, 0, 0, tensor.bytes, scale.name)
    weights = c.rows * c.columns
    if _count(scale) <= c.rows:
        kept, resident = f"{c.width} bit, per row", tensor.bytes + 4 * c.rows
    else:
        kept = f"{c.width} bit, per {weights // _count(scale)}"
        # Loaded, every 32 weights have a 16-bit scale, whatever the groups are.
        resident = weights * c.width // 8 + weights // 32 * 2
    decoded = 0 if scale.type == "F32" else _count(scale)
    return Part(role, layer, kept, 0, weights, 0, resident, scale.name, decoded)


def _count(tensor: TensorInfo) -> int:
    count = 1
    for extent in tensor.shape:
        count *= extent
    return count


def groups(every: Iterable[Part]) -> list[Group]:
    """Put together what has one role and is kept in one way.

    Parameters
    ----------
    every : iterable of Part

    Returns
    -------
    list of Group
        By role, and by depth in it.
    """
    found: dict[tuple[str, str], list[Part]] = defaultdict(list)
    for part in every:
        found[part.role, part.kept].append(part)
    summed = [
        Group(
            role,
            kept,
            tuple(sorted({p.layer for p in same if p.layer is not None})),
            sum(p.tensors for p in same),
            sum(p.weights for p in same),
            sum(p.bytes for p in same),
            tuple(p.scales for p in same if p.scales is not None),
        )
        for (role, kept), same in found.items()
    ]
    return sorted(summed, key=lambda g: (_ORDER.index(g.role), g.layers, g.kept))


def footprint(every: Sequence[Part]) -> Footprint:
    """Sum up where the bytes of a file are when its model runs on text.

    Parameters
    ----------
    every : sequence of Part

    Returns
    -------
    Footprint
        As `halfbyte.load` leaves it by default, computed and not measured.
    """
    resident = mapped = unused = 0
    tied = not any(part.role == _HEAD for part in every)
    for part in every:
        if part.role in (_UNUSED, _ENCODERS):
            unused += part.bytes
        elif part.role not in (_EMBEDDING, _PLE_TABLE):
            resident += part.resident
        elif part.role == _EMBEDDING and tied:
            # The head of quantised weights is a copy in another order, floats are read
            # where the file has them.
            resident += part.resident
            mapped += 0 if part.kept in ("F32", "F16", "BF16") else part.bytes
        else:
            resident += 4 * part.decoded
            mapped += part.bytes - 2 * part.decoded
    return Footprint(resident, mapped, unused)


def ranges(layers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last layer of every stretch.

    Parameters
    ----------
    layers : sequence of int
        Ascending.

    Returns
    -------
    list of (int, int)
    """
    found: list[tuple[int, int]] = []
    for layer in layers:
        if found and layer == found[-1][1] + 1:
            found[-1] = (found[-1][0], layer)
        else:
            found.append((layer, layer))
    return found


def scale_range(opened: File, group: Group) -> ScaleRange | None:
    """Least, middle and largest scale of a group.

    Parameters
    ----------
    opened : File
    group : Group

    Returns
    -------
    ScaleRange or None
        None if there are no scales, not all are finite floats, or they are larger than
        anything one would call a header: tables, and small groups of large models.
    """
    import numpy as np

    sizes = {t.name: t for t in opened.tensors if t.name in set(group.scales)}
    total = sum(tensor.bytes for tensor in sizes.values())
    if not 0 < total <= _MAX_SCALE_BYTES or group.role in (_UNUSED, _ENCODERS):
        return None
    floats: dict[str, Callable[[str], np.ndarray]] = {
        "F32": lambda name: opened.tensor_bytes(name).view("<f4"),
        "F16": lambda name: opened.tensor_bytes(name).view("<f2").astype("<f4"),
        "BF16": lambda name: (
            opened.tensor_bytes(name).view("<u2").astype("<u4") << 16
        ).view("<f4"),
    }
    if not all(tensor.type in floats for tensor in sizes.values()):
        return None
    values = np.concatenate([floats[t.type](name) for name, t in sizes.items()])
    if not np.isfinite(values).all():
        return None
    low, middle, high = values.min(), np.median(values), values.max()
    return ScaleRange(float(low), float(middle), float(high))
