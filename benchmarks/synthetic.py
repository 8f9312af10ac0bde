# benchmarks/synthetic.py
# Model files of the released sizes, with random weights, for measuring without them.
# SPDX-License-Identifier: Apache-2.0
"""Write a GGUF file like one of Gemma 4's QAT releases, with random weights.

    python benchmarks/synthetic.py e2b OUT.gguf [--layers N] [--seed N] [--force]
    python benchmarks/synthetic.py e2b --dry-run
    python benchmarks/synthetic.py --list

Names, shapes and types of the tensors and the hyperparameters are those of the official
Q4_0 files, so speed and memory are those of the real model. The text it writes is noise,
its vocabulary is made up; README.md in this folder says what else differs.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value
from halfbyte.cli import terminal
from numpy.typing import NDArray

__all__ = ["SIZES", "Shape", "Tensor", "metadata", "tensors", "vocabulary", "write"]

Progress = Callable[[int, int], None]  # bytes written, bytes in all

HEAD, HEAD_FULL = 256, 512  # values a head, in sliding and in full layers
ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT


# ---- the sizes


@dataclass(frozen=True)
class Shape:
    """What tells one size from another.

    A block of `period` layers is sliding but for its last one. The last `shared` layers
    have no keys and values: they read those of the last sliding and the last full layer
    before them.
    """

    title: str
    hidden: int
    layers: int
    heads: int
    kv_heads: tuple[int, int]  # of sliding layers, of full ones
    ffn: int
    official_bytes: int  # of the released file
    period: int = 6
    window: int = 1024
    context: int = 262144
    shared: int = 0
    shared_ffn: int = 1  # how many times as wide the shared layers are
    per_layer: int = 0  # width of the embedding that each layer has of its own
    value_is_key: bool = False  # full layers have no matrix for values
    experts: int = 0
    experts_used: int = 0
    expert_ffn: int = 0
    suppressed: tuple[int, ...] = ()
    empty_thought: bool = True  # the larger models' answers start with one
    vocab: int = 262144

    @property
    def first_shared(self) -> int:
        """The first layer that reads another one's keys and values."""
        return self.layers - self.shared

    def is_full(self, layer: int) -> bool:
        """Whether a layer sees everything and not a window."""
        return layer % self.period == self.period - 1

    def ffn_len(self, layer: int) -> int:
        """Width of a layer's dense feed-forward block."""
        return self.ffn * (self.shared_ffn if layer >= self.first_shared else 1)

    def cut(self, layers: int) -> Shape:
        """Keep some of the layers, in whole periods.

        The share of the layers without keys and values stays about the same. What is
        before them ends with a full layer, so both kinds have a source.
        """
        if layers not in range(self.period, self.layers + 1, self.period):
            raise ValueError(
                f"{self.title} can be cut to a multiple of {self.period} layers, "
                f"at most {self.layers}, not to {layers}"
            )
        owners = layers * self.first_shared / self.layers / self.period
        first_shared = max(1, round(owners)) * self.period
        return replace(self, layers=layers, shared=layers - first_shared)


# The byte counts are those of the released files as of July 2026.
SIZES = {
    "e2b": Shape(
        title="E2B",
        hidden=1536,
        layers=35,
        heads=8,
        kv_heads=(1, 1),
        ffn=6144,
        official_bytes=3_349_516_256,
        period=5,
        window=512,
        context=131072,
        shared=20,
        shared_ffn=2,
        per_layer=256,
        empty_thought=False,
    ),
    "e4b": Shape(
        title="E4B",
        hidden=2560,
        layers=42,
        heads=8,
        kv_heads=(2, 2),
        ffn=10240,
        official_bytes=5_154_941_280,
        window=512,
        context=131072,
        shared=18,
        per_layer=256,
        empty_thought=False,
    ),
    "12b": Shape(
        title="12B",
        hidden=3840,
        layers=48,
        heads=16,
        kv_heads=(8, 1),
        ffn=15360,
        official_bytes=6_975_879_296,
        value_is_key=True,
        suppressed=(258883, 258882),
    ),
    "26b": Shape(
        title="26B-A4B",
        hidden=2816,
        layers=30,
        heads=16,
        kv_heads=(8, 2),
        ffn=2112,
        official_bytes=14_439_363_584,
        value_is_key=True,
        experts=128,
        experts_used=8,
        expert_ffn=704,
    ),
    "31b": Shape(
        title="31B",
        hidden=5376,
        layers=60,
        heads=32,
        kv_heads=(16, 4),
        ffn=21504,
        official_bytes=17_651_001_568,
        value_is_key=True,
    ),
}


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


def _matrix(name: str, *shape: int, kind: Type = Type.Q4_0) -> Tensor:
    """A matrix whose output is as large as its input."""
    return Tensor(f"{name}.weight", shape, kind, 1 / math.sqrt(shape[-1]))


def _vector(name: str, length: int, level: float = 1.0) -> Tensor:
    return Tensor(name, (length,), Type.F32, level)


def tensors(shape: Shape) -> list[Tensor]:
    """List the tensors of a file in the order of its data.

    The levels make a network that neither fades nor overflows nor blows up rounding
    errors, so that the best tokens of two programs can be compared: the embedding stays
    in the stream, all layers together add about as much again, and attention scores
    have a deviation of 1.
    """
    hidden, vocab = shape.hidden, shape.vocab
    out = [
        _matrix("token_embd", vocab, hidden, kind=Type.Q6_K),
        _vector("output_norm.weight", hidden, 3.0),  # deviation of the logits
        _vector("rope_freqs.weight", HEAD_FULL // 2),
    ]
    if width := shape.per_layer:
        rows = width * shape.layers
        # The model multiplies the table by the root of the width.
        level = 1 / math.sqrt(width)
        out += [
            Tensor("per_layer_token_embd.weight", (vocab, rows), Type.Q6_K, level),
            _matrix("per_layer_model_proj", rows, hidden, kind=Type.F16),
            _vector("per_layer_proj_norm.weight", width),
        ]
    for layer in range(shape.layers):
        out += _attention(shape, layer) + _feed_forward(shape, layer)
        if shape.experts:
            out += _experts(shape, layer)
        if shape.per_layer:
            out += _per_layer(shape, layer)
    return out


def _loudness(shape: Shape) -> float:
    """Level of the norms behind the two or three branches of each layer."""
    return 0.5 / math.sqrt(shape.layers)


def _attention(shape: Shape, layer: int) -> list[Tensor]:
    at, hidden = f"blk.{layer}.", shape.hidden
    full = shape.is_full(layer)
    head = HEAD_FULL if full else HEAD
    queries, keys = shape.heads * head, shape.kv_heads[full] * head
    out = [
        _vector(f"{at}attn_norm.weight", hidden),
        _matrix(f"{at}attn_q", queries, hidden),
        # Attention scores are not divided by the root of the head's width.
        _vector(f"{at}attn_q_norm.weight", head, 1 / math.sqrt(head)),
    ]
    if layer < shape.first_shared:  # the released files have no dead tensors
        out.append(_matrix(f"{at}attn_k", keys, hidden))
        out.append(_vector(f"{at}attn_k_norm.weight", head))
        if not (full and shape.value_is_key):
            out.append(_matrix(f"{at}attn_v", keys, hidden))
    out.append(_matrix(f"{at}attn_output", hidden, queries))
    out.append(_vector(f"{at}post_attention_norm.weight", hidden, _loudness(shape)))
    return out


def _feed_forward(shape: Shape, layer: int) -> list[Tensor]:
    at, hidden, ffn = f"blk.{layer}.", shape.hidden, shape.ffn_len(layer)
    return [
        _vector(f"{at}ffn_norm.weight", hidden),
        _matrix(f"{at}ffn_gate", ffn, hidden),
        _matrix(f"{at}ffn_up", ffn, hidden),
        _matrix(f"{at}ffn_down", hidden, ffn),
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
        _matrix(f"{at}ffn_gate_up_exps", experts, 2 * ffn, hidden),
        _matrix(f"{at}ffn_down_exps", experts, hidden, ffn),
        _vector(f"{at}ffn_down_exps.scale", experts),
        _vector(f"{at}pre_ffw_norm_2.weight", hidden),
        _vector(f"{at}post_ffw_norm_1.weight", hidden),
        _vector(f"{at}post_ffw_norm_2.weight", hidden),
    ]


def _per_layer(shape: Shape, layer: int) -> list[Tensor]:
    at, hidden, width = f"blk.{layer}.", shape.hidden, shape.per_layer
    return [
        _matrix(f"{at}inp_gate", width, hidden),
        _matrix(f"{at}proj", hidden, width),
        _vector(f"{at}post_norm.weight", hidden, _loudness(shape)),
    ]


# ---- the vocabulary

_CONTROL = {
    0: "<pad>",
    1: "<eos>",
    2: "<bos>",
    3: "<unk>",
    4: "<mask>",
    46: "<|tool>",
    47: "<tool|>",
    98: "<|think|>",
    105: "<|turn>",
    106: "<turn|>",
    255999: "<|image>",
    256000: "<|audio>",
    258880: "<|image|>",
    258881: "<|audio|>",
    258882: "<image|>",
    258883: "<audio|>",
}
_USER = {
    48: "<|tool_call>",
    49: "<tool_call|>",
    50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    100: "<|channel>",
    101: "<channel|>",
}
# The released file counts sixteen control tokens and names seventeen candidates; which
# one is not is not known. Here it is <|video|>.
_TEXT = {107: "\n", 108: "\n\n", 109: "\n\n\n", 212: "</s>", 258884: "<|video|>"}
_FIRST_BYTE = 238
_MARK = "\u2581"  # a space
_NORMAL, _CONTROL_TYPE, _USER_TYPE, _BYTE = 1, 3, 4, 6


def _words() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Made-up words, each with the merges that make it of earlier ones.

    With the mark, a word of three syllables has nine bytes and two merges: what the
    real vocabulary has on average, so that loading costs the same.
    """
    for char in [*map(chr, range(ord("!"), ord("~") + 1)), _MARK]:
        yield char, []
    syllables = [a + b for a in "bcdfghjklmnprstvwxyz" for b in "aeiou"]
    for word in syllables:
        yield word, [(word[0], word[1])]
    for word in syllables:
        yield _MARK + word, [(_MARK, word)]
    for a, b in itertools.product(syllables, repeat=2):
        yield a + b, [(a, b)]
    for a, b in itertools.product(syllables, repeat=2):
        yield _MARK + a + b, [(_MARK + a, b), (_MARK, a + b)]
    for c, b, a in itertools.product(syllables, repeat=3):
        yield _MARK + a + b + c, [(_MARK + a + b, c), (_MARK + a, b + c)]


def vocabulary(size: int) -> tuple[list[str], list[int], list[str]]:
    """Make up a vocabulary with the special tokens at their official places.

    Parameters
    ----------
    size : int
        Number of tokens; special ones beyond it are left out.

    Returns
    -------
    tokens : list of str
        All different.
    types : list of int
        GGUF's token types.
    merges : list of str
        ``"left right"``, most urgent first.
    """
    fixed = {
        token: (text, kind)
        for table, kind in (
            (dict(enumerate((f"<0x{i:02X}>" for i in range(256)), _FIRST_BYTE)), _BYTE),
            (_TEXT, _NORMAL),
            (_CONTROL, _CONTROL_TYPE),
            (_USER, _USER_TYPE),
        )
        for token, text in table.items()
    }
    tokens, types, merges = [], [], ["\n \n", "\n\n \n"]
    words = _words()
    for i in range(size):
        if i in fixed:
            text, kind = fixed[i]
        else:
            (text, splits), kind = next(words), _NORMAL
            merges += [f"{left} {right}" for left, right in splits]
        tokens.append(text)
        types.append(kind)
    return tokens, types, merges


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


def _gguf_header(keys: dict[str, Any], table: Sequence[Tensor]) -> bytes:
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

# Bytes of random blocks that exist at a time, of one type and level. There are up to
# nine of them; half as much made nothing faster.
POOL = 16 << 20


def _raw(size: int, *seed: int) -> NDArray[np.uint8]:
    """Random bytes, the same everywhere: NumPy keeps its bit generators as they are."""
    words = np.random.PCG64(seed).random_raw(-(-size // 8))
    return words.astype("<u8", copy=False).view(np.uint8)[:size]


class Blocks:
    """An endless row of random blocks of one type and level.

    They come from a pool that is handed out again and again. Each time around, two
    bytes of codes in every block are other ones, so no two pages of weights are equal
    and none is served twice from a cache.
    """

    def __init__(self, kind: Type, level: float, seed: int) -> None:
        block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
        count = POOL // block_bytes
        tag = zlib.crc32(f"{kind.name} {level:.9g}".encode())
        blocks = _raw(count * block_bytes, seed, tag).reshape(count, block_bytes)
        self._codes = _FILL[kind](blocks, level)
        self._bytes = blocks.reshape(-1)
        self._at = 0

    def take(self, size: int) -> Iterator[memoryview]:
        """Hand out the next bytes, which are gone when the next are asked for."""
        while size:
            part = self._bytes[self._at : self._at + size]
            yield part.data
            size -= len(part)
            self._at += len(part)
            if self._at == len(self._bytes):
                self._at = 0
                self._codes += np.uint16(1)


# Each sets the scales among random bytes, in place, and returns two bytes of codes a
# block as numbers. Scales are spread by a quarter to both sides.


def _spread(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Two random bytes a row as numbers from 0.75 to 1.25."""
    return (raw.view("<u2") & 0x7FFF).astype(np.float32) / np.float32(
        65536
    ) + np.float32(0.75)


def _fill_q4_0(blocks: NDArray[np.uint8], level: float) -> NDArray[np.uint16]:
    raw = blocks[:, :2]
    # The mean square of the levels -8 to 7 is 21.5. Half of the scales are negative,
    # as the reference quantizer's are; so the mean of the weights is 0.
    sign = np.where(raw[:, 1:] & 0x80, np.float32(-1), np.float32(1))
    scale = np.float32(level / math.sqrt(21.5)) * _spread(raw) * sign
    raw[:] = scale.astype("<f2").view(np.uint8)
    return blocks[:, 2:4].view("<u2")


def _fill_q6_k(blocks: NDArray[np.uint8], level: float) -> NDArray[np.uint16]:
    # Sub-scales of 64 to 127 and both signs: mean square 9461.5; of -32 to 31: 341.5.
    sub = blocks[:, 192:208]
    signed = (sub & 63).astype(np.int8) + np.int8(64)
    sub[:] = np.where(sub & 64, signed, -signed).view(np.uint8)
    scale = np.float32(level / math.sqrt(9461.5 * 341.5)) * _spread(blocks[:, 208:])
    blocks[:, 208:] = scale.astype("<f2").view(np.uint8)
    return blocks[:, :2].view("<u2")


def _fill_f16(blocks: NDArray[np.uint8], level: float) -> NDArray[np.uint16]:
    codes = blocks.view("<u2")
    uniform = (codes.astype(np.float32) - np.float32(32767.5)) / 32768
    codes[:] = (np.float32(level * math.sqrt(3)) * uniform).astype("<f2").view("<u2")
    return codes


_FILL = {Type.Q4_0: _fill_q4_0, Type.Q6_K: _fill_q6_k, Type.F16: _fill_f16}


def _floats(tensor: Tensor, seed: int) -> bytes:
    """Values of a float tensor: a vector near its level, a matrix around 0."""
    if tensor.name == "rope_freqs.weight":
        # Divisors of the frequencies of full layers: a quarter of them turns.
        length, turning = tensor.shape[0], tensor.shape[0] // 4
        values = np.array([1.0] * turning + [1e30] * (length - turning))
    else:
        count = math.prod(tensor.shape)
        raw = _raw(4 * count, seed, zlib.crc32(tensor.name.encode())).view("<u4")
        uniform = raw / 2**31 - 1  # from -1 to 1
        centre, reach = (1, 0.1) if len(tensor.shape) == 1 else (0, math.sqrt(3))
        values = tensor.level * (centre + reach * uniform)
        if tensor.name == "output_norm.weight":
            # Both signs: the head is the embedding, and would find in the stream what
            # went in; every answer would be its last token, again and again.
            values *= np.where(raw & 1, 1, -1)
    return values.astype("<f4").tobytes()


def _data(table: Iterable[Tensor], seed: int) -> Iterator[bytes | memoryview]:
    """All tensors in turn, padded."""
    pools: dict[tuple[Type, float], Blocks] = {}
    for tensor in table:
        if tensor.type == Type.F32:
            yield _floats(tensor, seed)
        else:
            key = (tensor.type, tensor.level)
            if key not in pools:
                pools[key] = Blocks(*key, seed)
            yield from pools[key].take(tensor.num_bytes)
        yield bytes(_padded(tensor.num_bytes) - tensor.num_bytes)


# ---- writing


def write(
    path: Path | str,
    size: str,
    *,
    layers: int | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a model file with random weights.

    Parameters
    ----------
    path : Path or str
        Where. The file appears there when it is complete.
    size : str
        A key of `SIZES`.
    layers : int, optional
        Cut the model to so many layers.
    seed : int
        The same one gives the same bytes on every machine.
    force : bool
        Replace an existing file.
    progress : callable, optional
        Called with bytes written and bytes in all.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        If there is no such size, or it cannot be cut so.
    OSError
        If the file exists, or the disk is full or would be.
    """
    shape = _shape(size, layers)
    table = tensors(shape)
    header = _gguf_header(metadata(shape, seed), table)
    total = len(header) + sum(_padded(tensor.num_bytes) for tensor in table)
    chunks = itertools.chain([header], _data(table, seed))
    return _save(Path(path), chunks, total, force, progress)


def _shape(size: str, layers: int | None) -> Shape:
    if size not in SIZES:
        raise ValueError(f"no size {size!r}: there are {', '.join(SIZES)}")
    return SIZES[size] if layers is None else SIZES[size].cut(layers)


def _save(
    path: Path,
    chunks: Iterable[bytes | memoryview],
    total: int,
    force: bool,
    progress: Progress | None,
) -> Path:
    """Write to a temporary name beside `path` and rename, or leave nothing."""
    if path.is_dir() or (path.exists() and not force):
        raise FileExistsError(errno.EEXIST, "exists already", str(path))
    if (free := shutil.disk_usage(path.parent).free) < total:
        message = f"{terminal.gib(total)} needed, {terminal.gib(free)} free"
        raise OSError(errno.ENOSPC, message, str(path.parent))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                if progress is not None:
                    progress(file.tell(), total)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


# ---- the command line


def _by_type(shape: Shape) -> dict[str, tuple[int, int]]:
    """Number of tensors and bytes by type; last what is not data."""
    table = tensors(shape)
    out = {}
    for kind in (Type.Q4_0, Type.Q6_K, Type.F16, Type.F32):
        sizes = [_padded(tensor.num_bytes) for tensor in table if tensor.type == kind]
        if sizes:
            out[kind.name] = (len(sizes), sum(sizes))
    out["metadata"] = (0, len(_gguf_header(metadata(shape), table)))
    return out


def _show(shape: Shape, *, cut: bool) -> None:
    """Print the content of one file by type, beside the released one."""
    parts = _by_type(shape)
    rows = [
        [name, str(number or ""), f"{size:,}"] for name, (number, size) in parts.items()
    ]
    numbers, sizes = zip(*parts.values(), strict=True)
    rows.append(["in all", str(sum(numbers)), f"{sum(sizes):,}"])
    if not cut:
        own = sum(sizes)
        theirs = shape.official_bytes - own + parts["metadata"][1]
        rows.append(["released file", "", f"{shape.official_bytes:,}"])
        rows.append(["its metadata", "", f"{theirs:,}"])
        rows.append(["difference", "", f"{own - shape.official_bytes:+,}"])
    terminal.table(["", "tensors", "bytes"], rows, "lrr")


def _show_all() -> None:
    """Print all sizes beside the released files."""
    rows = []
    for name, shape in SIZES.items():
        sizes = {kind: size for kind, (_, size) in _by_type(shape).items()}
        own = sum(sizes.values())
        cells = [
            f"{sizes.get(kind, 0) / 1e6:,.1f}"
            for kind in ("Q4_0", "Q6_K", "F16", "F32", "metadata")
        ]
        official = shape.official_bytes
        totals = [f"{own / 1e9:.3f}", f"{official / 1e9:.3f}", f"{own - official:+,}"]
        rows.append([name, *cells, *totals])
    header = ["", "Q4_0 MB", "Q6_K MB", "F16 MB", "F32 MB", "metadata MB"]
    terminal.table(
        [*header, "in all GB", "released GB", "difference B"], rows, "l" + "r" * 8
    )
    terminal.line()
    terminal.line(
        "Tensors are the same to the byte. The difference is metadata: a made-up\n"
        "vocabulary with other words and fewer merges, and a short chat template."
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("size", nargs="?", choices=SIZES)
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT.gguf")
    parser.add_argument("--layers", type=int, help="cut the model, in whole periods")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--list", action="store_true", help="show all sizes")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what there would be"
    )
    options = parser.parse_args(argv)
    if not options.list and options.size is None:
        parser.error("a size or --list is needed")
    if not (options.list or options.dry_run) and options.out is None:
        parser.error("a file to write or --dry-run is needed")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments; write, or show what would be written."""
    options = _parse(argv)
    try:
        if options.list:
            _show_all()
        elif options.dry_run:
            _show(_shape(options.size, options.layers), cut=options.layers is not None)
        else:
            with terminal.progress(options.out.name) as update:
                write(
                    options.out,
                    options.size,
                    layers=options.layers,
                    seed=options.seed,
                    force=options.force,
                    progress=update,
                )
    except (OSError, ValueError) as error:
        raise SystemExit(f"synthetic.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
