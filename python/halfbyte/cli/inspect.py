# python/halfbyte/cli/inspect.py
# `halfbyte inspect`: what is in a model file, also in one that cannot be run here.
# SPDX-License-Identifier: Apache-2.0
"""What is in a model file."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.cli import memory, models, options, terminal

if TYPE_CHECKING:
    from halfbyte.files import File, TensorInfo

__all__ = ["EXAMPLES", "inspect"]

SCHEMA = 1

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
    """Show tensors, types, bits per weight, metadata, and memory by context length.

    Only the header is read. The file need not be a model that can be run here.
    """
    path = models.find(file)
    opened = _open(path)
    metadata = dict(opened.metadata)
    config = _config(path)
    shape = memory.cache_shape(config or metadata)
    if json:
        terminal.document(
            _document(path, opened, metadata | config, shape, tensors=tensors)
        )
        return
    _show_summary(path, opened, metadata | config)
    if tensors:
        _show_tensors(opened)
    _show_metadata(metadata | config)
    _show_memory(opened, shape)


def _open(path: Path) -> File:
    """Open by content where it tells, else by name."""
    import halfbyte

    if path.is_dir():
        return halfbyte.open_safetensors(path)
    with path.open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    if not is_gguf and path.name.endswith((".safetensors", ".json")):
        return halfbyte.open_safetensors(path)
    return halfbyte.open_gguf(path)


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
            tensor.type, {"type": tensor.type, "count": 0, "bytes": 0, "weights": 0}
        )
        group["count"] += 1
        group["bytes"] += tensor.bytes
        group["weights"] += _weights(tensor)
    for group in found.values():
        group["bits_per_weight"] = _bits(group["bytes"], group["weights"])
    return sorted(found.values(), key=lambda group: (-group["bytes"], group["type"]))


def _weights(tensor: TensorInfo) -> int:
    count = 1
    for extent in tensor.shape:
        count *= extent
    return count


def _bits(size: int, weights: int) -> float | None:
    return round(8 * size / weights, 3) if weights else None


def _document(
    path: Path,
    opened: File,
    metadata: Mapping[str, Any],
    shape: memory.CacheShape | None,
    *,
    tensors: bool,
) -> dict[str, Any]:
    size = sum(tensor.bytes for tensor in opened.tensors)
    weights = sum(map(_weights, opened.tensors))
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "file": str(path),
        "architecture": _architecture(metadata),
        "tensors": len(opened.tensors),
        "bytes": size,
        "weights": weights,
        "bits_per_weight": _bits(size, weights),
        "types": _groups(opened.tensors),
        "metadata": {key: _brief(value) for key, value in metadata.items()},
        "memory": _by_context(shape),
    }
    if tensors:
        document["tensor_list"] = [
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
    return document


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
        }
        for context in memory.CONTEXTS
    ]


def _brief(value: Any) -> Any:
    """A value as it is if small, else its beginning and how much there is."""
    items = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(items, (list, tuple)) and len(items) > _SHOWN_ITEMS:
        return {"count": len(items), "first": list(items[:_SHOWN_ITEMS])}
    return items


def _show_summary(path: Path, opened: File, metadata: Mapping[str, Any]) -> None:
    size = sum(tensor.bytes for tensor in opened.tensors)
    weights = sum(map(_weights, opened.tensors))
    terminal.line(f"file          {terminal.printable(str(path))}")
    architecture = _architecture(metadata) or "unknown"
    terminal.line(f"architecture  {terminal.printable(architecture)}")
    bits = f", {8 * size / weights:.2f} bits a weight" if weights else ""
    terminal.line(
        f"tensors       {len(opened.tensors):,} with {weights:,} weights "
        f"in {terminal.gib(size)}{bits}"
    )
    terminal.line()
    rows = [
        (
            terminal.printable(group["type"]),
            f"{group['count']:,}",
            f"{group['weights']:,}",
            terminal.gib(group["bytes"]),
            f"{8 * group['bytes'] / group['weights']:.2f}" if group["weights"] else "-",
        )
        for group in _groups(opened.tensors)
    ]
    header = ("type", "tensors", "weights", "size", "bits a weight")
    terminal.table(header, rows, "lrrrr")


def _show_tensors(opened: File) -> None:
    rows = [
        (
            terminal.printable(tensor.name),
            terminal.printable(tensor.type),
            " x ".join(map(str, tensor.shape)) or "scalar",
            terminal.gib(tensor.bytes),
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


def _show_memory(opened: File, shape: memory.CacheShape | None) -> None:
    terminal.line()
    if shape is None:
        terminal.line("memory by context length: not told by this file")
        return
    weights = sum(tensor.bytes for tensor in opened.tensors)
    rows = []
    for context in memory.CONTEXTS:
        size = shape.elements(context)
        beyond = shape.context is not None and context > shape.context
        rows.append(
            (
                f"{context:,}{' *' if beyond else '  '}",
                terminal.gib(4 * size),
                terminal.gib(2 * size),
                terminal.gib(weights + 4 * size),
                terminal.gib(weights + 2 * size),
            )
        )
    header = ("context  ", "KV f32", "KV f16", "with weights f32", "f16")
    terminal.table(header, rows, "rrrrr")
    if shape.context is not None and shape.context < memory.CONTEXTS[-1]:
        terminal.line(f"* beyond the model's context of {shape.context:,}")
