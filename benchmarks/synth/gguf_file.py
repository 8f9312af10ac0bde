# benchmarks/synth/gguf_file.py
# SPDX-License-Identifier: Apache-2.0
"""GGUF files with the names, shapes and types of the official Q4_0 files."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value
from numpy.typing import NDArray

from synth import noise
from synth.saving import Contents
from synth.shapes import HEAD, HEAD_FULL, Shape
from synth.vocabulary import vocabulary

__all__ = [
    "Blocks",
    "Tensor",
    "contents",
    "matrix",
    "metadata",
    "parts",
    "tensors",
    "values",
]

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT


# ---- the tensors of the Q4_0 files


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: rows first, as in Python.

    `level` is the standard deviation of a matrix and the size of a vector's values.
    """

    name: str
    shape: tuple[int, ...]
    type: Type
    level: float

    @property
    def num_bytes(self) -> int:
        """Bytes of its data, without padding."""
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block_len * block_bytes


def matrix(name: str, *shape: int, kind: Type = Type.Q4_0) -> Tensor:
    """Return a matrix whose output is as large as its input."""
    return Tensor(f"{name}.weight", shape, kind, 1 / math.sqrt(shape[-1]))


def _vector(name: str, length: int, level: float = 1.0) -> Tensor:
    return Tensor(name, (length,), Type.F32, level)


def tensors(shape: Shape, *, dead: bool = False) -> list[Tensor]:
    """List the tensors of a file in the order of its data.

    With `dead`, shared layers have the matrices for keys and values that nobody reads;
    the released GGUF files lack them.

    The levels make a network that neither fades nor overflows nor blows up rounding
    errors, so that the best tokens of two programs can be compared: the embedding stays
    in the stream, all layers together add about as much again, and attention scores
    have a deviation of 1.
    """
    hidden, vocab = shape.hidden, shape.vocab
    out = [
        matrix("token_embd", vocab, hidden, kind=Type.Q6_K),
        _vector("output_norm.weight", hidden, 3.0),  # deviation of the logits
        _vector("rope_freqs.weight", HEAD_FULL // 2),
    ]
    if width := shape.per_layer:
        rows = width * shape.layers
        # The model multiplies the table by the root of the width.
        level = 1 / math.sqrt(width)
        out += [
            Tensor("per_layer_token_embd.weight", (vocab, rows), Type.Q6_K, level),
            matrix("per_layer_model_proj", rows, hidden, kind=Type.F16),
            _vector("per_layer_proj_norm.weight", width),
        ]
    for layer in range(shape.layers):
        out += _attention(shape, layer, dead=dead) + _feed_forward(shape, layer)
        if shape.experts:
            out += _experts(shape, layer)
        if shape.per_layer:
            out += _per_layer(shape, layer)
    return out


def _loudness(shape: Shape) -> float:
    """Level of the norms behind the two or three branches of each layer."""
    return 0.5 / math.sqrt(shape.layers)


def _attention(shape: Shape, layer: int, *, dead: bool) -> list[Tensor]:
    at, hidden = f"blk.{layer}.", shape.hidden
    owns = layer < shape.first_shared
    full = shape.is_full(layer)
    head = HEAD_FULL if full else HEAD
    queries, keys = shape.heads * head, shape.kv_heads[full] * head
    out = [
        _vector(f"{at}attn_norm.weight", hidden),
        matrix(f"{at}attn_q", queries, hidden),
        # Attention scores are not divided by the root of the head's width.
        _vector(f"{at}attn_q_norm.weight", head, 1 / math.sqrt(head)),
    ]
    if owns or dead:
        out.append(matrix(f"{at}attn_k", keys, hidden))
    if owns:
        out.append(_vector(f"{at}attn_k_norm.weight", head))
    if (owns or dead) and not (full and shape.value_is_key):
        out.append(matrix(f"{at}attn_v", keys, hidden))
    out.append(matrix(f"{at}attn_output", hidden, queries))
    out.append(_vector(f"{at}post_attention_norm.weight", hidden, _loudness(shape)))
    return out


def _feed_forward(shape: Shape, layer: int) -> list[Tensor]:
    at, hidden, ffn = f"blk.{layer}.", shape.hidden, shape.ffn_len(layer)
    return [
        _vector(f"{at}ffn_norm.weight", hidden),
        matrix(f"{at}ffn_gate", ffn, hidden),
        matrix(f"{at}ffn_up", ffn, hidden),
        matrix(f"{at}ffn_down", hidden, ffn),
        _vector(f"{at}post_ffw_norm.weight", hidden, _loudness(shape)),
        _vector(f"{at}layer_output_scale.weight", 1),
    ]


def _experts(shape: Shape, layer: int) -> list[Tensor]:
    at, hidden = f"blk.{layer}.", shape.hidden
    experts, ffn = shape.experts, shape.expert_ffn
    return [
        # A router with a deviation of 3: the last expert chosen counts for little, so
        # noise that swaps it with the next one does too.
        Tensor(f"{at}ffn_gate_inp.weight", (experts, hidden), Type.F32, 3.0),
        _vector(f"{at}ffn_gate_inp.scale", hidden),
        matrix(f"{at}ffn_gate_up_exps", experts, 2 * ffn, hidden),
        matrix(f"{at}ffn_down_exps", experts, hidden, ffn),
        _vector(f"{at}ffn_down_exps.scale", experts),
        _vector(f"{at}pre_ffw_norm_2.weight", hidden),
        _vector(f"{at}post_ffw_norm_1.weight", hidden),
        _vector(f"{at}post_ffw_norm_2.weight", hidden),
    ]


def _per_layer(shape: Shape, layer: int) -> list[Tensor]:
    at, hidden, width = f"blk.{layer}.", shape.hidden, shape.per_layer
    return [
        matrix(f"{at}inp_gate", width, hidden),
        matrix(f"{at}proj", hidden, width),
        _vector(f"{at}post_norm.weight", hidden, _loudness(shape)),
    ]


# ---- the metadata


def _template(shape: Shape) -> str:
    """A chat template that knows turns and no tools."""
    thought = "<|channel>thought\n<channel|>" if shape.empty_thought else ""
    return (
        "{{ bos_token }}{% for message in messages %}<|turn>"
        "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
        "{{ message['content'] | trim }}<turn|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn>model\n" + thought + "{% endif %}"
    )


def metadata(shape: Shape, seed: int = 0) -> dict[str, Any]:
    """List the keys of a file: int is u32, float f32; lists of int are i32."""
    return {
        "general.architecture": "gemma4",
        "general.type": "model",
        "general.name": f"Synthetic Gemma 4 {shape.title}",
        "general.description": f"Random weights, seed {seed}, {shape.layers} layers",
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_Q4_0),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.sampling.top_k": 64,
        "general.sampling.top_p": 0.95,
        "general.sampling.temp": 1.0,
        **{f"gemma4.{key}": value for key, value in _hyperparameters(shape).items()},
        **_tokenizer(shape),
    }


def _hyperparameters(shape: Shape) -> dict[str, Any]:
    layers = range(shape.layers)
    ffn = [shape.ffn_len(i) for i in layers]
    kv_heads = [shape.kv_heads[shape.is_full(i)] for i in layers]
    out: dict[str, Any] = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        # One number, or one a layer where they are not the same.
        "feed_forward_length": ffn if shape.shared_ffn > 1 else shape.ffn,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": kv_heads if len(set(kv_heads)) > 1 else kv_heads[0],
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": shape.window,
        "attention.sliding_window_pattern": [not shape.is_full(i) for i in layers],
        "attention.shared_kv_layers": shape.shared,
        "embedding_length_per_layer_input": shape.per_layer,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "final_logit_softcapping": 30.0,
    }
    for suffix, head in (("", HEAD_FULL), ("_swa", HEAD)):
        for key in ("attention.key_length", "attention.value_length"):
            out[key + suffix] = head
        out["rope.dimension_count" + suffix] = head
    if shape.experts:
        out["expert_count"] = shape.experts
        out["expert_used_count"] = shape.experts_used
        out["expert_feed_forward_length"] = shape.expert_ffn
    return out


def _tokenizer(shape: Shape) -> dict[str, Any]:
    tokens, types, merges = vocabulary(shape.vocab)
    out: dict[str, Any] = {
        "model": "gemma4",
        "tokens": tokens,
        "scores": [-1000.0] * len(tokens),  # nobody reads them, every file has them
        "token_type": types,
        "merges": merges,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "padding_token_id": 0,
        "mask_token_id": 4,
        "add_space_prefix": False,
        "add_bos_token": True,
    }
    if shape.suppressed:
        out["suppress_tokens"] = list(shape.suppressed)
    named = {f"tokenizer.ggml.{key}": value for key, value in out.items()}
    return named | {"tokenizer.chat_template": _template(shape)}


# ---- the container


def _header(keys: dict[str, Any], table: Sequence[Tensor]) -> bytes:
    """Everything before the data.

    Not by `gguf.GGUFWriter`: that one writes to a file and takes seconds for the
    vocabulary, and the size has to be known before the first byte is on the disk.
    """
    magic = struct.pack("<II", gguf.GGUF_MAGIC, gguf.GGUF_VERSION)
    parts = [magic, struct.pack("<QQ", len(table), len(keys))]
    for key, value in keys.items():
        parts += [_string(key), _typed(value)]
    offset = 0
    for tensor in table:
        dims = tensor.shape[::-1]
        parts.append(_string(tensor.name))
        parts.append(struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        parts.append(struct.pack("<IQ", tensor.type, offset))
        offset += _padded(tensor.num_bytes)
    header = b"".join(parts)
    return header + bytes(_padded(len(header)) - len(header))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _typed(value: Any) -> bytes:
    """A value with its type in front of it."""
    if isinstance(value, list):
        kind = Value.get_type(value[0])
        front = struct.pack("<IIQ", Value.ARRAY, kind, len(value))
        if kind == Value.STRING:
            return front + b"".join(map(_string, value))
        codes = {Value.BOOL: "?", Value.INT32: "<i4", Value.FLOAT32: "<f4"}
        return front + np.array(value, codes[kind]).tobytes()
    if isinstance(value, str):
        return struct.pack("<I", Value.STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", Value.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", Value.UINT32, value)
    return struct.pack("<If", Value.FLOAT32, value)


# ---- the weights


class Blocks(noise.Pool):
    """An endless row of random blocks of one type and level."""

    def __init__(self, kind: Type, level: float, seed: int) -> None:
        block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
        count = noise.POOL // block_bytes
        key = noise.tag(f"{kind.name} {level:.9g}")
        blocks = noise.raw(count * block_bytes, seed, key).reshape(count, block_bytes)
        super().__init__(blocks, _FILL[kind](blocks, level))


# Each sets the scales among random bytes, in place, and returns two bytes of codes a
# block as numbers. Scales are spread by a quarter to both sides.


def _fill_q4_0(blocks: NDArray[np.uint8], level: float) -> NDArray[np.uint16]:
    raw = blocks[:, :2]
    # The mean square of the levels -8 to 7 is 21.5. Half of the scales are negative,
    # as the reference quantizer's are; so the mean of the weights is 0.
    sign = np.where(raw[:, 1:] & 0x80, np.float32(-1), np.float32(1))
    scale = np.float32(level / math.sqrt(21.5)) * noise.spread(raw) * sign
    raw[:] = scale.astype("<f2").view(np.uint8)
    return blocks[:, 2:4].view("<u2")


def _fill_q6_k(blocks: NDArray[np.uint8], level: float) -> NDArray[np.uint16]:
    # Sub-scales of 64 to 127 and both signs: mean square 9461.5; of -32 to 31: 341.5.
    sub = blocks[:, 192:208]
    signed = (sub & 63).astype(np.int8) + np.int8(64)
    sub[:] = np.where(sub & 64, signed, -signed).view(np.uint8)
    scale = np.float32(level / math.sqrt(9461.5 * 341.5)) * noise.spread(
        blocks[:, 208:]
    )
    blocks[:, 208:] = scale.astype("<f2").view(np.uint8)
    return blocks[:, :2].view("<u2")


def _fill_f16(blocks: NDArray[np.uint8], level: float) -> NDArray[np.uint16]:
    codes = blocks.view("<u2")
    uniform = (codes.astype(np.float32) - np.float32(32767.5)) / 32768
    codes[:] = (np.float32(level * math.sqrt(3)) * uniform).astype("<f2").view("<u2")
    return codes


_FILL = {Type.Q4_0: _fill_q4_0, Type.Q6_K: _fill_q6_k, Type.F16: _fill_f16}


def values(tensor: Tensor, seed: int) -> NDArray[np.float64]:
    """Values of a float tensor: a vector near its level, a matrix around 0."""
    if tensor.name == "rope_freqs.weight":
        # Divisors of the frequencies of full layers: a quarter of them turns.
        length, turning = tensor.shape[0], tensor.shape[0] // 4
        return np.array([1.0] * turning + [1e30] * (length - turning))
    count = math.prod(tensor.shape)
    raw = noise.raw(4 * count, seed, noise.tag(tensor.name)).view("<u4")
    uniform = raw / 2**31 - 1  # from -1 to 1
    centre, reach = (1, 0.1) if len(tensor.shape) == 1 else (0, math.sqrt(3))
    out = tensor.level * (centre + reach * uniform)
    if tensor.name == "output_norm.weight":
        # Both signs: the head is the embedding, and would find in the stream what
        # went in; every answer would be its last token, again and again.
        out *= np.where(raw & 1, 1, -1)
    return np.asarray(out)


def _data(table: Iterable[Tensor], seed: int) -> Iterator[bytes | memoryview]:
    """All tensors in turn, padded."""
    pools: dict[tuple[Type, float], Blocks] = {}
    for tensor in table:
        if tensor.type == Type.F32:
            yield values(tensor, seed).astype("<f4").tobytes()
        else:
            key = (tensor.type, tensor.level)
            if key not in pools:
                pools[key] = Blocks(*key, seed)
            yield from pools[key].take(tensor.num_bytes)
        yield bytes(_padded(tensor.num_bytes) - tensor.num_bytes)


# ---- the file


def contents(shape: Shape, seed: int) -> Contents:
    """Make the whole file."""
    table = tensors(shape)
    header = _header(metadata(shape, seed), table)
    total = len(header) + sum(_padded(tensor.num_bytes) for tensor in table)
    return Contents(itertools.chain([header], _data(table, seed)), total)


def parts(shape: Shape) -> dict[str, tuple[int, int]]:
    """Number of tensors and bytes by type; last what is not data."""
    table = tensors(shape)
    out = {}
    for kind in (Type.Q4_0, Type.Q6_K, Type.F16, Type.F32):
        sizes = [_padded(tensor.num_bytes) for tensor in table if tensor.type == kind]
        if sizes:
            out[kind.name] = (len(sizes), sum(sizes))
    out["metadata"] = (0, len(_header(metadata(shape), table)))
    return out
