# python/halfbyte/cli/inspect.py
# `halfbyte inspect`: what is in a model file, also in one that cannot be run here.
# SPDX-License-Identifier: Apache-2.0
"""What is in a model file."""

from __future__ import annotations

import json as json_text
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte._sizes import size_text
from halfbyte.cli import memory, models, options, roles, terminal

if TYPE_CHECKING:
    from halfbyte.files import File, TensorInfo

__all__ = ["EXAMPLES", "inspect"]

EXAMPLES = """\b
Examples:
  halfbyte inspect model.gguf
  halfbyte inspect model.gguf --tensors
  halfbyte inspect ~/models/gemma-3-270m     a directory with safetensors
  halfbyte inspect model.gguf --json
"""

_SHOWN_TEXT = 60
_SHOWN_ITEMS = 4
_MAX_CONFIG_BYTES = 16 << 20


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A GGUF file, a safetensors file, a Hugging Face directory, or a name "
            "as run takes it.",
        ),
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor.")
    ] = False,
    json: options.Json = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Show tensors, types, bits by role, metadata, and memory by context length.

    Only the header and small scales are read. The file need not be a model that can be
    run here.
    """
    from halfbyte.files import open_file
    from halfbyte.modules import formats_of

    path = models.find(file)
    opened = open_file(path)
    metadata = dict(opened.metadata)
    config = _config(path)
    shape = memory.cache_shape(config or metadata)
    owners = len(shape.layers) if shape else None
    parts = roles.parts(opened, owners, formats_of(config))
    vendor = memory.vendor(config or metadata)
    if json:
        document = _document(path, opened, metadata | config, shape, parts)
        document |= _by_role(opened, parts, vendor)
        if tensors:
            document["tensor_list"] = _tensor_list(opened)
        terminal.document(document)
        return
    _show_summary(path, opened, metadata | config, parts)
    _show_roles(opened, parts)
    _show_footprint(parts, vendor)
    if tensors:
        _show_tensors(opened)
    _show_metadata(metadata | config)
    _show_memory(parts, shape)


def _config(path: Path) -> dict[str, Any]:
    """Read the config.json of a directory, or the one beside a safetensors file."""
    if path.suffix == ".gguf":
        return {}
    beside = (path if path.is_dir() else path.parent) / "config.json"
    try:
        if beside.stat().st_size > _MAX_CONFIG_BYTES:
            return {}
        value = json_text.loads(beside.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _groups(tensors: Iterable[TensorInfo]) -> list[dict[str, Any]]:
    """Sum up the tensors of each type, the largest first."""
    found: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        group = found.setdefault(
            tensor.type, {"type": tensor.type, "count": 0, "bytes": 0, "elements": 0}
        )
        group["count"] += 1
        group["bytes"] += tensor.bytes
        group["elements"] += math.prod(tensor.shape)
    for group in found.values():
        group["bits_per_element"] = _bits(group["bytes"], group["elements"])
    return sorted(found.values(), key=lambda group: (-group["bytes"], group["type"]))


def _bits(size: int, weights: int) -> float | None:
    return round(8 * size / weights, 3) if weights else None


def _document(
    path: Path,
    opened: File,
    metadata: Mapping[str, Any],
    shape: memory.CacheShape | None,
    parts: Sequence[roles.Part],
) -> dict[str, Any]:
    weights, bits = _weights(parts)
    return {
        "file": str(path),
        "architecture": _architecture(metadata),
        "tensors": len(opened.tensors),
        "bytes": sum(tensor.bytes for tensor in opened.tensors),
        "weights": weights,
        "bits_per_weight": bits,
        "types": _groups(opened.tensors),
        "metadata": {key: _brief(value) for key, value in metadata.items()},
        "memory": _by_context(shape),
    }


def _weights(parts: Sequence[roles.Part]) -> tuple[int, float | None]:
    """Count what the file tells the weights of, and the bits that one takes."""
    told = [part for part in parts if part.weights]
    weights = sum(part.weights for part in told)
    return weights, _bits(sum(part.bytes for part in told), weights)


def _by_role(
    opened: File, parts: Sequence[roles.Part], vendor: memory.Vendor | None
) -> dict[str, Any]:
    """Make the part of the document that is about roles."""
    groups = []
    for group in roles.groups(parts):
        scales = roles.scale_range(opened, group)
        groups.append(
            {
                "role": group.role,
                "layers": [list(pair) for pair in roles.ranges(group.layers)],
                "kept": group.kept,
                "tensors": group.tensors,
                "bytes": group.bytes,
                "weights": group.weights or None,
                "bits_per_weight": _bits(group.bytes, group.weights),
                "scales": None if scales is None else scales._asdict(),
            }
        )
    return {
        "roles": groups,
        "text_only_bytes": roles.footprint(parts)._asdict(),
        "vendor": None if vendor is None else vendor._asdict(),
    }


def _tensor_list(opened: File) -> list[dict[str, Any]]:
    return [
        {
            "name": tensor.name,
            "type": tensor.type,
            "shape": list(tensor.shape),
            "bytes": tensor.bytes,
            "offset": tensor.offset,
            "shard": tensor.shard,
        }
        for tensor in opened.tensors
    ]


def _architecture(metadata: Mapping[str, Any]) -> str | None:
    value = metadata.get("general.architecture") or metadata.get("model_type")
    return value if isinstance(value, str) else None


def _by_context(shape: memory.CacheShape | None) -> list[dict[str, int]] | None:
    if shape is None:
        return None
    return [
        {
            "context": context,
            "kv_f32_bytes": 4 * shape.elements(context),
            "kv_f16_bytes": 2 * shape.elements(context),
            "kv_int8_bytes": shape.int8_bytes(context),
        }
        for context in memory.CONTEXTS
    ]


def _brief(value: Any) -> Any:
    """A value as it is if small, else its beginning and how much there is."""
    items = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(items, (list, tuple)) and len(items) > _SHOWN_ITEMS:
        return {"count": len(items), "first": list(items[:_SHOWN_ITEMS])}
    return items


def _show_summary(
    path: Path,
    opened: File,
    metadata: Mapping[str, Any],
    parts: Sequence[roles.Part],
) -> None:
    size = sum(tensor.bytes for tensor in opened.tensors)
    weights, each = _weights(parts)
    terminal.line(f"file          {terminal.printable(str(path))}")
    architecture = _architecture(metadata) or "unknown"
    terminal.line(f"architecture  {terminal.printable(architecture)}")
    bits = f", {each:.2f} bits a weight" if each is not None else ""
    terminal.line(
        f"tensors       {len(opened.tensors):,} with {weights:,} weights "
        f"in {size_text(size)}{bits}"
    )
    terminal.line()
    rows = [
        (
            terminal.printable(group["type"]),
            f"{group['count']:,}",
            f"{group['elements']:,}",
            size_text(group["bytes"]),
            _shown_bits(group["bits_per_element"]),
        )
        for group in _groups(opened.tensors)
    ]
    header = ("type", "tensors", "elements", "size", "bits each")
    terminal.table(header, rows, "lrrrr")


def _shown_bits(bits: float | None) -> str:
    return "-" if bits is None else f"{bits:.2f}"


def _show_roles(opened: File, parts: Sequence[roles.Part]) -> None:
    groups = roles.groups(parts)
    if not groups:
        return
    rows = [
        (
            group.role,
            _shown_layers(group),
            terminal.printable(group.kept),
            f"{group.weights:,}" if group.weights else "-",
            size_text(group.bytes),
            _shown_bits(group.bits),
        )
        for group in groups
    ]
    terminal.line()
    header = ("role", "layers", "kept as", "weights", "size", "bits")
    terminal.table(header, rows, "lllrrr")
    _show_scales(opened, groups)


def _show_scales(opened: File, groups: Sequence[roles.Group]) -> None:
    rows = []
    for group in groups:
        scales = roles.scale_range(opened, group)
        if scales is not None:
            told = [f"{value:.3g}" for value in scales]
            rows.append([group.role, _shown_layers(group), group.kept, *told])
    if rows:
        terminal.line()
        header = ("scales of", "layers", "kept as", "min", "median", "max")
        terminal.table(header, rows, "lllrrr")


def _shown_layers(group: roles.Group) -> str:
    pairs = roles.ranges(group.layers)
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in pairs[:_SHOWN_ITEMS]]
    return ", ".join(shown) + (", ..." if len(pairs) > _SHOWN_ITEMS else "")


def _show_footprint(parts: Sequence[roles.Part], vendor: memory.Vendor | None) -> None:
    text = roles.footprint(parts)
    rows = [
        (label, size_text(size), f"{size / 1e9:.2f}")
        for label, size in (
            ("in memory, read for every token", text.resident),
            ("in the file, gathered by rows", text.mapped),
            ("never read", text.unused),
        )
    ]
    terminal.line()
    terminal.table(("text alone, computed", "size", "GB"), rows, "lrr")
    if vendor is not None:
        told = ", ".join(f"{name} {size:g}" for name, size in vendor.gb.items())
        terminal.line(f"the vendor's table for {vendor.size}, GB: {told}")


def _show_tensors(opened: File) -> None:
    rows = [
        (
            terminal.printable(tensor.name),
            terminal.printable(tensor.type),
            " x ".join(map(str, tensor.shape)) or "scalar",
            size_text(tensor.bytes),
            str(tensor.offset),
        )
        for tensor in opened.tensors
    ]
    terminal.line()
    terminal.table(("tensor", "type", "shape", "size", "offset"), rows, "lllrr")


def _show_metadata(metadata: Mapping[str, Any]) -> None:
    if not metadata:
        return
    rows = [(terminal.printable(key), _shown(value)) for key, value in metadata.items()]
    terminal.line()
    terminal.table(("metadata", "value"), rows, "ll")


def _shown(value: Any) -> str:
    """A metadata value in one short line."""
    brief = _brief(value)
    if isinstance(brief, dict) and brief.keys() == {"count", "first"}:
        first = ", ".join(_shown(item) for item in brief["first"])
        return f"{brief['count']:,} of them: {first}, ..."
    if isinstance(brief, (list, tuple)):
        return "[" + ", ".join(_shown(item) for item in brief) + "]"
    if isinstance(brief, float):
        return f"{brief:.7g}"
    text = terminal.printable(str(brief))
    if len(text) > _SHOWN_TEXT:
        return f"{text[:_SHOWN_TEXT]}... ({len(str(brief)):,} characters)"
    return text


def _show_memory(parts: Sequence[roles.Part], shape: memory.CacheShape | None) -> None:
    terminal.line()
    if shape is None:
        terminal.line("memory by context length: not told by this file")
        return
    weights = roles.footprint(parts).resident
    rows = []
    for context in memory.CONTEXTS:
        size = shape.elements(context)
        beyond = shape.context is not None and context > shape.context
        rows.append(
            (
                f"{context:,}{' *' if beyond else '  '}",
                size_text(4 * size),
                size_text(2 * size),
                size_text(shape.int8_bytes(context)),
                size_text(weights + 4 * size),
                size_text(weights + shape.int8_bytes(context)),
            )
        )
    header = ("context  ", "KV f32", "f16", "int8", "in memory, f32", "int8")
    terminal.table(header, rows, "rrrrrr")
    if shape.context is not None and shape.context < memory.CONTEXTS[-1]:
        terminal.line(f"* beyond the model's context of {shape.context:,}")
