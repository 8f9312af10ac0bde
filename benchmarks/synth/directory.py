# benchmarks/synth/directory.py
# SPDX-License-Identifier: Apache-2.0
"""Directories as the mobile, w4a16, unquantized and drafter releases have them.

Without towers.

The matrices and norms are those of `gguf_file.tensors`, by other names: what a form adds
to them, scales, steps and copies, is here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synth import gguf_file, noise
from synth.saving import Contents
from synth.shapes import CLUSTERS, HEAD, HEAD_FULL, Shape
from synth.vocabulary import CONTROL, USER, vocabulary

__all__ = ["FORMS", "Tensor", "config", "contents", "parts", "tensors"]

FORMS = ("mobile", "w4a16", "bf16", "drafter")
ROOT = "model.language_model."

# ---- random values


class Noise:
    """Pools of codes, of scales and of numbers in bfloat16."""

    def __init__(self, seed: int, name: str = "") -> None:
        self.seed = seed
        self._name = name
        self._pools: dict[str, noise.Pool] = {}

    def beginning(self, name: str) -> Noise:
        """Noise of the same seed that starts anew each time it is asked for."""
        return Noise(self.seed, name)

    def codes(self, bits: int, size: int) -> Iterator[memoryview]:
        """Bytes of offset-binary codes, or of signed bytes: their mean is 0.

        Uniform codes have a mean of -1/2. Outputs of a matrix that is not 0 on average
        resemble each other, and the more so the next one's.
        """

        def fill(raw: NDArray[np.uint8], more: NDArray[np.uint8]) -> NDArray[np.uint8]:
            second_bits = {2: 0xAA, 4: 0x22, 8: 0x02}[bits]
            return raw | (more & np.uint8(second_bits))  # set in 3 of 4 codes

        return self._pool(f"codes {bits}", fill).take(size)

    def scales(self, level: float, count: int) -> Iterator[NDArray[np.float32]]:
        """Numbers spread by a quarter to both sides of `level`."""

        def fill(raw: NDArray[np.uint8], _: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return noise.spread(raw.reshape(-1, 4)[:, :2]).view(np.uint8)

        for part in self._pool("scales", fill).take(4 * count):
            yield np.frombuffer(part, "<f4") * np.float32(level)

    def dense(self, level: float, count: int) -> Iterator[memoryview]:
        """Bytes of numbers in bfloat16 around 0 with the deviation `level`."""

        def fill(raw: NDArray[np.uint8], _: NDArray[np.uint8]) -> NDArray[np.uint8]:
            uniform = (raw.view("<u2").astype(np.float32) - 32767.5) / 32768
            return bfloat16(uniform * np.float32(level * math.sqrt(3))).view(np.uint8)

        return self._pool(f"dense {level:.9g}", fill).take(2 * count)

    def lattice(self, level: float, count: int) -> Iterator[memoryview]:
        """Bytes as training for Q4_0 leaves them: bfloat16(step * level), by 32."""
        key = f"lattice {level:.9g}"
        if key not in self._pools:
            raw = noise.raw(2 * noise.POOL, self.seed, noise.tag(self._name + key))
            data = _on_lattice(raw[: noise.POOL], raw[noise.POOL :], level)
            self._pools[key] = _Groups(data.view(np.uint8), data)
        return self._pools[key].take(2 * count)

    def _pool(
        self,
        key: str,
        fill: Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.uint8]],
    ) -> noise.Pool:
        if key not in self._pools:
            raw = noise.raw(2 * noise.POOL, self.seed, noise.tag(self._name + key))
            data = np.ascontiguousarray(fill(raw[: noise.POOL], raw[noise.POOL :]))
            # Whatever it is, its low two bytes change it little.
            self._pools[key] = noise.Pool(data, data.view("<u2")[::64])
        return self._pools[key]


class _Groups(noise.Pool):
    """Groups of 32 bfloat16 numbers, other ones in each page every time around."""

    def _renew(self) -> None:
        groups = self._codes.reshape(-1, _GROUP)
        groups[:] = np.roll(groups, 1, axis=0)


def _on_lattice(
    raw: NDArray[np.uint8], more: NDArray[np.uint8], level: float
) -> NDArray[np.uint16]:
    """Groups with levels of both signs; the largest is 7 or -8 in most, or less."""
    bits = raw.view("<u2").reshape(-1, _GROUP)
    levels = ((bits & 3) + (bits >> 2 & 3) + (bits >> 4 & 1)).astype(np.float32)
    levels *= np.where(bits & 32, np.float32(-1), np.float32(1))
    levels[(levels == -7) & (bits & 64 != 0)] = -8
    spread = noise.spread(more.reshape(len(bits), -1)[:, :2])
    return bfloat16(levels * spread * np.float32(level / math.sqrt(_LEVELS)))


def bfloat16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Round finite numbers to bfloat16, ties away from 0, and give their bits."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    return ((bits + np.uint32(0x8000)) >> 16).astype("<u2")


# ---- tensors


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written, and what makes its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: Callable[[Noise], Iterable[bytes | memoryview]]

    @property
    def num_bytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * _SIZES[self.dtype]


_SIZES = {"I64": 8, "I32": 4, "F32": 4, "BF16": 2, "I8": 1, "U8": 1}

_GROUP = 32

# Mean square of the levels of `_on_lattice`: two numbers from 0 to 3 and one from 0 to 1
# have a mean of 3.5 together, and variances of 1.25, 1.25 and 0.25.
_LEVELS = 3.5**2 + 2.75

# Mean squares of the codes that `Noise.codes` makes.
_MEAN_SQUARES = {2: 1.0, 4: 21.0, 8: 5461.0}


def _step(level: float, bits: int) -> float:
    """Scale of codes that makes a matrix of deviation `level`."""
    return level / math.sqrt(_MEAN_SQUARES[bits])


def _codes(name: str, dtype: str, rows: int, columns: int, bits: int) -> Tensor:
    """Codes of a matrix, packed along its rows."""
    shape = (rows, columns * bits // 8 // _SIZES[dtype])
    size = rows * columns * bits // 8
    return Tensor(name, dtype, shape, lambda made: made.codes(bits, size))


def _scales(name: str, dtype: str, shape: tuple[int, int], level: float) -> Tensor:
    def fill(made: Noise) -> Iterator[bytes]:
        for part in made.scales(level, math.prod(shape)):
            yield (part if dtype == "F32" else bfloat16(part)).tobytes()

    return Tensor(name, dtype, shape, fill)


def _number(name: str, value: float) -> Tensor:
    data = np.array(value, "<f4").tobytes()
    return Tensor(name, "F32", (), lambda _: [data])


def _dense(name: str, source: gguf_file.Tensor) -> Tensor:
    count = math.prod(source.shape)
    return Tensor(
        name, "BF16", source.shape, lambda made: made.dense(source.level, count)
    )


def _trained(name: str, source: gguf_file.Tensor) -> Tensor:
    count = math.prod(source.shape)
    return Tensor(
        name, "BF16", source.shape, lambda made: made.lattice(source.level, count)
    )


def _vector(name: str, source: gguf_file.Tensor) -> Tensor:
    def fill(made: Noise) -> list[bytes]:
        return [bfloat16(gguf_file.values(source, made.seed)).tobytes()]

    return Tensor(name, "BF16", source.shape, fill)


def _copied(tensor: Tensor) -> Tensor:
    """Give a tensor the same bytes under every name: the head is the embedding."""
    return replace(tensor, fill=lambda made: tensor.fill(made.beginning("embedding")))


# ---- names

_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "per_layer_token_embd": "embed_tokens_per_layer",
    "per_layer_model_proj": "per_layer_model_projection",
    "per_layer_proj_norm": "per_layer_projection_norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
    "layer_output_scale": "layer_scalar",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}


def _module(source: gguf_file.Tensor) -> str:
    """Name of a module, without the root."""
    *block, stem, _ = source.name.split(".")
    return (f"layers.{block[1]}." if block else "") + _NAMES[stem]


def _sources(shape: Shape, *, dead: bool) -> Iterator[tuple[str, gguf_file.Tensor]]:
    """All modules, with what GGUF files say of them."""
    for source in gguf_file.tensors(shape, dead=dead):
        if source.name != "rope_freqs.weight":  # follows from the configuration
            yield _module(source), source


def tensors(shape: Shape, form: str) -> list[Tensor]:
    """List the tensors of a directory in the order of its file: wide types first.

    Parameters
    ----------
    shape : Shape
        E2B or E4B, or one of them cut.
    form : {"mobile", "w4a16", "bf16", "drafter"}
        Whose tensors.
    """
    makers = {"mobile": _mobile, "w4a16": _w4a16, "bf16": _bf16, "drafter": _drafter}
    table = makers[form](shape)
    return sorted(table, key=lambda tensor: (-_SIZES[tensor.dtype], tensor.name))


# ---- mobile

# What the codes of static activations reach, before and after a linear layer. A norm
# leaves a deviation of 1, gelu(gate) * up one of 0.65 with longer tails, a mean of
# values less; the stream that the last gates see has grown to about 1.5.
_REACH = {
    "q_proj": (5.0, 5.0),
    "k_proj": (5.0, 5.0),
    "v_proj": (5.0, 5.0),
    "o_proj": (3.0, 3.0),
    "gate_proj": (5.0, 5.0),
    "up_proj": (5.0, 5.0),
    "down_proj": (6.0, 4.0),
    "per_layer_input_gate": (8.0, 8.0),
    "per_layer_projection": (6.0, 4.0),
}
# Steps of keys and values, whose deviation is 1. Full layers were trained with four
# bits, sliding ones with eight.
_CACHE_STEPS = {True: 16 / 56, False: 6 / 127}


def _bits(shape: Shape, module: str) -> int:
    """Width of a linear layer."""
    if ".per_layer_" in module:
        return 8
    is_shared = int(module.split(".")[1]) >= shape.first_shared
    return shape.shared_ffn_bits if ".mlp." in module and is_shared else 4


def _mobile(shape: Shape) -> Iterator[Tensor]:
    for module, source in _sources(shape, dead=True):
        base = ROOT + module
        if module == "embed_tokens":
            yield from _mobile_embedding(base, source, 2, 1)
            yield from _mobile_head(source)
        elif module == "embed_tokens_per_layer":
            yield from _mobile_embedding(base, source, shape.table_bits, shape.layers)
        elif module.endswith("layer_scalar"):
            yield _vector(base, source)
        elif len(source.shape) == 1:
            yield _vector(f"{base}.weight", source)
        elif module == "per_layer_model_projection":
            yield _dense(f"{base}.weight", source)
        else:
            yield from _mobile_linear(base, source, _bits(shape, module))
    for layer in range(shape.layers):
        for kind in "kv":
            name = f"{ROOT}layers.{layer}.self_attn.{kind}_cache_scale"
            yield _number(name, _CACHE_STEPS[shape.is_full(layer)])


def _mobile_linear(base: str, source: gguf_file.Tensor, bits: int) -> Iterator[Tensor]:
    rows, columns = source.shape
    dtype = "I8" if bits == 8 else "U8"
    yield _codes(f"{base}.weight", dtype, rows, columns, bits)
    yield _scales(f"{base}.weight_scale", "F32", (rows, 1), _step(source.level, bits))
    for side, reach in zip(
        ("input", "output"), _REACH[base.rpartition(".")[2]], strict=True
    ):
        yield _number(f"{base}.{side}_activation_scale", reach / 127)


def _mobile_embedding(
    base: str, source: gguf_file.Tensor, bits: int, blocks: int
) -> Iterator[Tensor]:
    """Make a table with so many scales a row."""
    rows, columns = source.shape
    scale = _step(source.level, bits)
    codes = _codes(f"{base}.embedding_quantized", "U8", rows, columns, bits)
    scales = _scales(f"{base}.embedding_scale", "F32", (rows, blocks), scale)
    yield from (codes, scales) if blocks > 1 else map(_copied, (codes, scales))


def _mobile_head(source: gguf_file.Tensor) -> Iterator[Tensor]:
    """Make a copy of the embedding. Its steps are 0: nothing is rounded."""
    codes, scales = _mobile_embedding("", source, 2, 1)
    yield replace(codes, name="lm_head.weight")
    yield replace(scales, name="lm_head.weight_scale")
    for side in ("input", "output"):
        yield _number(f"lm_head.{side}_activation_scale", 0.0)


def _mobile_quantization(shape: Shape) -> dict[str, Any]:
    own = "|".join(map(str, range(shape.first_shared)))
    widths = {
        r"^lm_head$": 2,
        r"language_model\.embed_tokens$": 2,
        r"language_model\.embed_tokens_per_layer$": shape.table_bits,
        rf"layers\.({own})\.mlp\.": 4,
        r"layers\.\d+\.mlp\.": shape.shared_ffn_bits,
        r"per_layer_input_gate$": 8,
        r"per_layer_projection$": 8,
        r"self_attn\.": 4,
    }
    return {
        "quant_method": "gemma",
        "num_bits": 4,
        "quantize_embeddings": True,
        "module_quant_configs": {k: {"num_bits": n} for k, n in widths.items()},
        "modules_to_not_convert": ["per_layer_model_projection"],
    }


# ---- bf16


def _bf16(shape: Shape) -> Iterator[Tensor]:
    for module, source in _sources(shape, dead=True):
        name = ROOT + module + ("" if module.endswith("layer_scalar") else ".weight")
        make = _vector if len(source.shape) == 1 else _trained
        yield make(name, source)


# ---- drafters, in bf16


def _drafter(shape: Shape) -> Iterator[Tensor]:
    small, backbone = shape.drafter(), shape.hidden
    for module, source in _sources(small, dead=False):
        name = f"model.{module}" + (
            "" if module.endswith("layer_scalar") else ".weight"
        )
        make = _vector if len(source.shape) == 1 else _trained
        yield make(name, source)
    outer = {
        "pre_projection": (small.hidden, 2 * backbone),
        "post_projection": (backbone, small.hidden),
    }
    if shape.per_layer:
        outer["masked_embedding.centroids"] = (CLUSTERS, small.hidden)
        yield _ordering("masked_embedding.token_ordering", small.vocab)
    for module, size in outer.items():
        yield _trained(f"{module}.weight", gguf_file.matrix(module, *size))


def _ordering(name: str, count: int) -> Tensor:
    """Put the tokens in some order."""

    def fill(made: Noise) -> list[bytes]:
        rng = np.random.Generator(np.random.PCG64(made.seed))
        return [rng.permutation(count).astype("<i8").tobytes()]

    return Tensor(name, "I64", (count,), fill)


def _drafter_config(shape: Shape) -> dict[str, Any]:
    text = _text_config(shape.drafter()) | {
        "vocab_size_per_layer_input": 0,
        "num_global_key_value_heads": shape.kv_heads[True],
        "attention_k_eq_v": shape.value_is_key,
        "final_logit_softcapping": None,
        "tie_word_embeddings": True,
    }
    return {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "model_type": "gemma4_assistant",
        "dtype": "bfloat16",
        "text_config": text,
        "backbone_hidden_size": shape.hidden,
        "use_ordered_embeddings": shape.per_layer != 0,
        "num_centroids": CLUSTERS,
        "centroid_intermediate_top_k": 32,
        "tie_word_embeddings": True,
    }


# ---- w4a16


def _w4a16(shape: Shape) -> Iterator[Tensor]:
    for module, source in _sources(shape, dead=False):
        base = ROOT + module
        if module.endswith("layer_scalar"):
            yield _vector(base, source)
        elif len(source.shape) == 1:
            yield _vector(f"{base}.weight", source)
        elif module == "embed_tokens":
            yield _copied(_dense(f"{base}.weight", source))
            yield _copied(_dense("lm_head.weight", source))
        elif module.startswith("layers.") or (
            module == "per_layer_model_projection" and shape.packed_projection
        ):
            yield from _w4a16_linear(base, source)
        else:
            yield _dense(f"{base}.weight", source)


def _w4a16_linear(base: str, source: gguf_file.Tensor) -> Iterator[Tensor]:
    rows, columns = source.shape
    groups, size = (rows, columns // _GROUP), np.array(source.shape, "<i8").tobytes()
    yield _codes(f"{base}.weight_packed", "I32", rows, columns, 4)
    yield _scales(f"{base}.weight_scale", "BF16", groups, _step(source.level, 4))
    yield Tensor(f"{base}.weight_shape", "I64", (2,), lambda _: [size])


def _w4a16_quantization(shape: Shape) -> dict[str, Any]:
    ignored = ["lm_head", r"re:.*vision_tower.*", r"re:.*audio_tower.*"]
    if not shape.packed_projection:
        ignored.append(r"re:.*per_layer_model_projection")
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": _GROUP,
        "dynamic": False,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized",
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "kv_cache_scheme": None,
        "ignore": ignored,
    }


# ---- config.json


def config(shape: Shape, form: str) -> dict[str, Any]:
    """Content of config.json.

    Parameters
    ----------
    shape : Shape
        E2B or E4B, or one of them cut; of a drafter any size, of the model it drafts for.
    form : {"mobile", "w4a16", "bf16", "drafter"}
        Whose `quantization_config`, if it has one.
    """
    if form == "drafter":
        return _drafter_config(shape)
    is_mobile = form == "mobile"
    out = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "dtype": "bfloat16",
        "text_config": _text_config(shape) | {"tie_word_embeddings": not is_mobile},
        "vision_config": None,
        "audio_config": None,
        "tie_word_embeddings": not is_mobile,
    }
    makers = {"mobile": _mobile_quantization, "w4a16": _w4a16_quantization}
    if form in makers:
        out["quantization_config"] = makers[form](shape)
    return out


def _text_config(shape: Shape) -> dict[str, Any]:
    kinds = {False: "sliding_attention", True: "full_attention"}
    return {
        "model_type": "gemma4_text",
        "dtype": "bfloat16",
        "vocab_size": shape.vocab,
        "vocab_size_per_layer_input": shape.vocab,
        "hidden_size": shape.hidden,
        "hidden_size_per_layer_input": shape.per_layer,
        "intermediate_size": shape.ffn,
        "use_double_wide_mlp": shape.shared_ffn == 2,
        "num_hidden_layers": shape.layers,
        "num_kv_shared_layers": shape.shared,
        "layer_types": [kinds[shape.is_full(i)] for i in range(shape.layers)],
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads[False],
        "num_global_key_value_heads": None,
        "head_dim": HEAD,
        "global_head_dim": HEAD_FULL,
        "attention_k_eq_v": False,
        "sliding_window": shape.window,
        "max_position_embeddings": shape.context,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
        "rope_parameters": {
            kinds[False]: {"rope_type": "default", "rope_theta": 10000.0},
            kinds[True]: {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
            },
        },
        "enable_moe_block": False,
        "use_bidirectional_attention": None,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }


# ---- tokenizer.json


def tokenizer(shape: Shape) -> dict[str, Any]:
    """Content of tokenizer.json: the vocabulary of the GGUF files."""
    tokens, types, merges = vocabulary(shape.vocab)
    added = [
        {"id": i, "content": tokens[i], "special": True, "normalized": False}
        for i, kind in enumerate(types)
        if kind in (CONTROL, USER)
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {
            "type": "Replace",
            "pattern": {"String": " "},
            "content": "\u2581",
        },
        "pre_tokenizer": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": [_halves(merge) for merge in merges],
        },
    }


def _halves(merge: str) -> list[str]:
    left, _, right = merge.partition(" ")
    return [left, right]


# ---- the directory


def contents(shape: Shape, form: str, seed: int) -> dict[str, Contents]:
    """Make the files; the one that is looked for first is last.

    Parameters
    ----------
    shape : Shape
        E2B or E4B, or one of them cut.
    form : {"mobile", "w4a16", "bf16", "drafter"}
        Which release it is like.
    seed : int
        Of the random values.
    """
    table = tensors(shape, form)
    header = _header(table)
    total = len(header) + sum(tensor.num_bytes for tensor in table)
    files = {"model.safetensors": Contents(_data(header, table, seed), total)}
    texts = {"config.json": config(shape, form)}
    if form == "bf16":  # to be converted, and a GGUF file is to have a vocabulary
        texts = {"tokenizer.json": tokenizer(shape)} | texts
    for name, content in texts.items():
        text = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
        files[name] = Contents([text], len(text))
    return files


def parts(shape: Shape, form: str) -> dict[str, tuple[int, int]]:
    """Number of tensors and bytes by type; last what is not data."""
    table = tensors(shape, form)
    out = {}
    for dtype in _SIZES:
        sizes = [tensor.num_bytes for tensor in table if tensor.dtype == dtype]
        if sizes:
            out[dtype] = (len(sizes), sum(sizes))
    out["metadata"] = (0, len(_header(table)))
    return out


def _header(table: Sequence[Tensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in table:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [at, at := at + tensor.num_bytes],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _data(
    header: bytes, table: Iterable[Tensor], seed: int
) -> Iterator[bytes | memoryview]:
    yield header
    made = Noise(seed)
    for tensor in table:
        yield from tensor.fill(made)
