# python/halfbyte/lineage/hints.py
# SPDX-License-Identifier: Apache-2.0
"""What the metadata and the types of a file say of who made it.

Anybody can write that: it is shown, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from halfbyte import origin
from halfbyte.choice import shown
from halfbyte.files import File
from halfbyte.modules import CODES, STEP_NAMES, Module, modules_of

__all__ = ["Hint", "hints"]

_SHOWN = 64  # characters of a value from the file

# Keys that are shown where they are there, and what they mean; None: no more than that.
_KEYS = {
    "general.name": None,
    "general.finetune": None,
    "general.base_model.0.repo_url": None,
    "general.repo_url": None,
    "general.quantized_by": "packed by somebody else; official files have no such key",
    origin.KEY: "what halfbyte did, if that is true; the weights count for more",
    "halfbyte.repaired": "trained levels, as far as a requantized file still told them",
    "quantize.imatrix.file": "packed with an importance matrix; official files are not",
}
_ROLES = {"token_embd.weight": "embedding", "per_layer_token_embd.weight": "PLE table"}
_MOSTLY_Q4_0 = 2  # general.file_type
# Tensors of the official files, and of files with the unused keys and values of layers
# that share those of another one, as conversions of the original checkpoints have them.
_COUNTS = {541: "E2B", 666: "E4B"}
_WITH_UNUSED = {601: "E2B", 720: "E4B"}


@dataclass(frozen=True)
class Hint:
    """Something that a file says of itself."""

    what: str
    """A key, or what was looked at."""
    found: str
    """The value there, on one line; a long one is cut off."""
    means: str | None
    """What that says of the file; None: no more than it is."""


def hints(file: File) -> tuple[Hint, ...]:
    """Look for signs of a publisher.

    Parameters
    ----------
    file : File

    Returns
    -------
    tuple of Hint
        From keys; for GGUF from types, for safetensors from the kinds of tensors.
    """
    metadata = file.metadata
    own = tuple(_of_keys(metadata))
    if "general.architecture" not in metadata:
        return (*own, *_of_directory(file))
    return (*own, *_of_types(file), *_of_count(file))


def _of_keys(metadata: dict[str, Any]) -> Iterator[Hint]:
    for key, means in _KEYS.items():
        if key in metadata:
            yield Hint(key, _text(metadata[key]), means)
    kind = metadata.get("general.file_type")
    if kind is not None and kind != _MOSTLY_Q4_0:
        means = "not mostly Q4_0, which the official files are"
        yield Hint("general.file_type", _text(kind), means)


def _of_types(file: File) -> Iterator[Hint]:
    for tensor in file.tensors:
        if tensor.name in _ROLES:
            same = tensor.type == "Q6_K"
            means = "as in the official files" if same else "Q6_K in the official files"
            yield Hint(f"{_ROLES[tensor.name]} in", tensor.type, means)
    others = {t.type for t in file.tensors if t.type.endswith("_K")} - {"Q6_K"}
    if others:
        found = ", ".join(sorted(others))
        yield Hint("types", found, "the official files have no such tensors")


def _of_count(file: File) -> Iterator[Hint]:
    count = len(file.tensors)
    if size := _COUNTS.get(count):
        yield Hint("tensors", str(count), f"as many as the official {size}")
    if size := _WITH_UNUSED.get(count):
        means = f"as a conversion of the original {size} has, the official one fewer"
        yield Hint("tensors", str(count), means)


def _of_directory(file: File) -> Iterator[Hint]:
    modules = modules_of(file.tensors)
    ends = {end for module in modules.values() for end in module.tensors}
    steps = sum(end in STEP_NAMES for m in modules.values() for end in m.tensors)
    # Tables of the same name, but no steps: rows that HalfbyteConfig packed.
    if "embedding_quantized" in ends and steps:
        yield Hint("form", "mobile", "its own codes, scales and steps of activations")
    elif "weight_packed" in ends:
        yield Hint("form", "compressed-tensors", None)
    if steps:
        means = "trained, or measured on some text"
        yield Hint("steps of activations", str(steps), means)
    embedding, head = modules.get("embed_tokens"), modules.get("lm_head")
    if embedding is not None and head is not None:
        same = _same(file, embedding, head)
        means = "tied, as Google's are" if same else "not tied, as Google's are"
        yield Hint("head and embedding", "equal" if same else "different", means)


def _same(file: File, one: Module, other: Module) -> bool:
    a, b = one.find(CODES), other.find(CODES)
    if a is None or b is None or a.bytes != b.bytes:
        return False
    x, y = file.tensor_bytes(a.name), file.tensor_bytes(b.name)
    piece = 4 << 20  # compared at a time
    return all(
        (x[at : at + piece] == y[at : at + piece]).all()
        for at in range(0, x.size, piece)
    )


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return shown(str(value)[:_SHOWN])
