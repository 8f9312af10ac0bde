# python/halfbyte/cli/memory.py
# How much memory the keys and values of a context take, from hyperparameters alone:
# also for files that cannot be run here.
# SPDX-License-Identifier: Apache-2.0
"""Memory of the key-value cache by context length, and what the vendor says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["CONTEXTS", "CacheShape", "Layer", "Vendor", "cache_shape", "vendor"]

CONTEXTS = (1024, 4096, 8192, 32768, 131072)

_MAX_LAYERS = 4096
_MAX_VALUE = 1 << 31

# Every n-th layer sees the whole context, the others a window, in files that name a
# window but no pattern.
_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gemma4": 6}
_HF_PERIODS = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3_text": 6,
    "gemma4": 6,
    "gemma4_text": 6,
}


# Layers and width of the released sizes, and the memory that the vendor's overview of
# Gemma 4 states for them.
_VENDOR = {
    (35, 1536): ("E2B", (11.4, 5.7, 2.9, 1.1, 0.84)),
    (42, 2560): ("E4B", (17.9, 8.9, 4.5, 2.5, 2.2)),
    (48, 3840): ("12B", (26.7, 13.4, 6.7)),
    (30, 2816): ("26B-A4B", (57.7, 28.8, 14.4)),
    (60, 5376): ("31B", (69.9, 34.9, 17.5)),
}
_VENDOR_COLUMNS = ("BF16", "SFP8", "Q4_0", "mobile", "mobile, text only")


class Vendor(NamedTuple):
    """A released size, and decimal gigabytes by kind of weights."""

    size: str
    gb: dict[str, float]


class Layer(NamedTuple):
    """What one layer keeps of each position."""

    heads: int
    key: int
    value: int
    window: int | None


class CacheShape(NamedTuple):
    """The layers that keep keys and values, and the context the model was made for."""

    layers: tuple[Layer, ...]
    context: int | None

    def elements(self, context: int) -> int:
        """Count the numbers that `context` positions leave in the cache."""
        return sum(
            (layer.key + layer.value) * rows for layer, rows in self._rows(context)
        )

    def int8_bytes(self, context: int) -> int:
        """Count the bytes of as many in 8 bits, with the steps of keys and of values."""
        return sum(
            (layer.key + layer.value + 2 * 4) * rows
            for layer, rows in self._rows(context)
        )

    def _rows(self, context: int) -> Iterator[tuple[Layer, int]]:
        for layer in self.layers:
            kept = context if layer.window is None else min(context, layer.window)
            yield layer, layer.heads * kept


def cache_shape(metadata: Mapping[str, Any]) -> CacheShape | None:
    """Read the shape of the cache, or None if the hyperparameters do not tell.

    Parameters
    ----------
    metadata : mapping
        The metadata of a GGUF file, or the content of a ``config.json``.
    """
    try:
        if "general.architecture" in metadata:
            return _from_gguf(metadata)
        return _from_config(metadata)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def vendor(metadata: Mapping[str, Any]) -> Vendor | None:
    """Look up a released size in the vendor's table, or None if it is none of them.

    Parameters
    ----------
    metadata : mapping
        As for `cache_shape`.
    """
    text = metadata.get("text_config") or metadata
    if not isinstance(text, Mapping):
        return None
    family = metadata.get("general.architecture") or text.get("model_type")
    if not str(family).startswith("gemma4"):
        return None
    if "general.architecture" in metadata:
        names = (f"{family}.block_count", f"{family}.embedding_length")
    else:
        names = ("num_hidden_layers", "hidden_size")
    found = tuple(text.get(name) for name in names)
    if not all(isinstance(value, int) for value in found) or found not in _VENDOR:
        return None
    size, numbers = _VENDOR[found]
    return Vendor(size, dict(zip(_VENDOR_COLUMNS, numbers, strict=False)))


def _from_gguf(metadata: Mapping[str, Any]) -> CacheShape:
    arch = metadata["general.architecture"]

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"{arch}.{key}", default)

    count = _layer_count(get("block_count"))
    heads = _per_layer(get("attention.head_count"), count)
    kv_heads = _per_layer(get("attention.head_count_kv"), count, heads)
    key = get("attention.key_length") or _natural(get("embedding_length")) // heads[0]
    value = get("attention.value_length") or key
    window = get("attention.sliding_window") or 0
    pattern = get("attention.sliding_window_pattern") or _PERIODS.get(arch, 0)
    sliding = _sliding(pattern if window else 0, count)
    lengths = {
        False: (key, value),
        True: (
            get("attention.key_length_swa") or key,
            get("attention.value_length_swa") or value,
        ),
    }
    owning = count - _natural(get("attention.shared_kv_layers") or 0)
    return CacheShape(
        tuple(
            _layer(kv_heads[i], *lengths[sliding[i]], window if sliding[i] else None)
            for i in range(owning)
        ),
        _natural(get("context_length") or 0) or None,
    )


def _from_config(config: Mapping[str, Any]) -> CacheShape:
    text = config.get("text_config") or config
    count = _layer_count(text["num_hidden_layers"])
    heads = _natural(text["num_attention_heads"])
    kv_heads = text.get("num_key_value_heads") or heads
    head_dim = text.get("head_dim") or _natural(text["hidden_size"]) // heads
    window = text.get("sliding_window") or 0
    if types := text.get("layer_types"):
        pattern: Any = [kind == "sliding_attention" for kind in types]
    else:
        family = str(text.get("model_type"))
        pattern = text.get("sliding_window_pattern") or _HF_PERIODS.get(family, 0)
    sliding = _sliding(pattern if window else 0, count)
    per_layer = {int(k): v for k, v in (text.get("per_layer_config") or {}).items()}
    full = {
        "head_dim": text.get("global_head_dim"),
        "num_key_value_heads": text.get("num_global_key_value_heads")
        if text.get("attention_k_eq_v")
        else None,
    }

    def layer(i: int) -> Layer:
        own = per_layer.get(i, {} if sliding[i] else full)
        width = own.get("head_dim") or head_dim
        n = own.get("num_key_value_heads") or kv_heads
        return _layer(n, width, width, window if sliding[i] else None)

    owning = count - _natural(text.get("num_kv_shared_layers") or 0)
    layers = tuple(layer(i) for i in range(owning))
    return CacheShape(
        layers, _natural(text.get("max_position_embeddings") or 0) or None
    )


def _layer(heads: Any, key: Any, value: Any, window: Any) -> Layer:
    return Layer(
        _natural(heads),
        _natural(key),
        _natural(value),
        None if window is None else _natural(window),
    )


def _natural(value: Any) -> int:
    """`value` if it is a number that a hyperparameter can be."""
    if isinstance(value, bool) or not 0 <= int(value) < _MAX_VALUE:
        raise ValueError(value)
    return int(value)


def _layer_count(value: Any) -> int:
    count = _natural(value)
    if not 1 <= count <= _MAX_LAYERS:
        raise ValueError(count)
    return count


def _per_layer(
    value: Any, count: int, default: Sequence[int] | None = None
) -> Sequence[int]:
    """One number a layer, from one number, from a list of them, or by default."""
    if value is None and default is not None:
        return default
    if hasattr(value, "__len__"):
        if len(value) != count:
            raise ValueError(value)
        return [_natural(item) for item in value]
    return [_natural(value)] * count


def _sliding(pattern: Any, count: int) -> list[bool]:
    """Which layers slide: a list says it, a number n means all but every n-th."""
    if hasattr(pattern, "__len__"):
        if len(pattern) != count:
            raise ValueError(pattern)
        return [bool(item) for item in pattern]
    period = _natural(pattern)
    return [period > 0 and (i + 1) % period != 0 for i in range(count)]
