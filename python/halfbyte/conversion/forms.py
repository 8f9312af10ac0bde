# python/halfbyte/conversion/forms.py
# SPDX-License-Identifier: Apache-2.0
"""How a directory's matrices are packed, and what its config.json says of that."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from halfbyte import gemma
from halfbyte.conversion.encoders import Apart, Copied, Lattice, Quantizer
from halfbyte.conversion.plan import Fixed, Job, Output, Stored
from halfbyte.errors import UnsupportedError
from halfbyte.records import ModelConfig

__all__ = ["FORMS", "Form", "Matrix"]

# Modules of encoders, which keep their numbers.
_TOWERS = (
    "vision_tower",
    "audio_tower",
    "embed_vision",
    "embed_audio",
    "multi_modal_projector",
)
_EMBEDDING, _TABLE = "token_embd.weight", "per_layer_token_embd.weight"
_PROJECTION, _ROUTER = "per_layer_model_proj.weight", "ffn_gate_inp.weight"
_LAYER = re.compile(r"blk\.(\d+)\.(attn|ffn|inp_gate|proj)")
_BLOCK = 32  # weights in the smallest unit of all formats here


class Matrix(NamedTuple):
    """A matrix of the text model, to be packed."""

    source: Stored
    module: str
    """Its name without ``.weight``."""
    gguf: str
    """Its name in GGUF, by which roles and importances go."""

    def job(self, encoder: Apart, *outputs: Output) -> Job:
        """Return the job that makes these outputs of it."""
        role = gemma.role(self.gguf, self.source.shape)
        return Job(role, self.source, encoder, outputs)


class Form(Protocol):
    """What is packed in a directory, and how."""

    def takes(self, name: str, columns: int) -> bool:
        """Whether a matrix of this name in GGUF is packed."""

    def jobs(self, matrix: Matrix, quantizer: Quantizer) -> Iterator[Job]:
        """Pack it."""

    def describe(self, config: dict[str, Any], dense: Sequence[str]) -> None:
        """Say it in the content of config.json; `dense` has the other modules."""

    def notes(self) -> tuple[str, ...]:
        """Say what is lacking, after the jobs."""


class W4A16:
    """compressed-tensors: linear layers in 4 bits, a bfloat16 step for each 32."""

    def __init__(self, config: ModelConfig) -> None:
        _refuse_experts(config, "w4a16-ct")

    def takes(self, name: str, columns: int) -> bool:
        """Take what is a linear layer."""
        is_linear = name == _PROJECTION or _LAYER.match(name) is not None
        return is_linear and columns % _BLOCK == 0 and not name.endswith(_ROUTER)

    def jobs(self, matrix: Matrix, quantizer: Quantizer) -> Iterator[Job]:
        """Pack into words of eight codes, and steps."""
        (n, k), module = matrix.source.shape, matrix.module
        yield matrix.job(
            Apart(Lattice("w4g32", quantizer)),
            Output(f"{module}.weight_packed", "I32", (n, k // 8), n * k // 2),
            Output(f"{module}.weight_scale", "BF16", (n, k // _BLOCK), n * k // 16),
        )
        shape = np.array([n, k], "<i8").tobytes()
        yield _fixed(Output(f"{module}.weight_shape", "I64", (2,), len(shape)), shape)

    def describe(self, config: dict[str, Any], dense: Sequence[str]) -> None:
        """Name the scheme, and the linear layers that are not of it."""
        towers = [t for t in _TOWERS if any(t in name for name in dense)]
        others = [name for name in dense if not any(t in name for t in _TOWERS)]
        weights = {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": _BLOCK,
            "dynamic": False,
        }
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "config_groups": {"group_0": group},
            "ignore": ["lm_head", *others, *(f"re:.*{tower}.*" for tower in towers)],
        }

    def notes(self) -> tuple[str, ...]:
        """Lack nothing."""
        return ()


class Mobile:
    """quant_method gemma: a float32 step for a row, levels of 2, 4 and 8 bits."""

    def __init__(self, config: ModelConfig) -> None:
        _refuse_experts(config, "mobile")
        if config.architecture != "gemma4":
            raise UnsupportedError(
                f"mobile: expected a model of gemma4, found {config.architecture}"
            )
        self._four, self._table_bits = _mobile_widths(config)
        self._ple = config.per_layer_embedding
        self._without_steps = 0

    def takes(self, name: str, columns: int) -> bool:
        """Take linear layers and embeddings, but not the projection to PLE."""
        known = name in (_EMBEDDING, _TABLE) or _LAYER.match(name) is not None
        return known and columns % _BLOCK == 0 and not name.endswith(_ROUTER)

    def jobs(self, matrix: Matrix, quantizer: Quantizer) -> Iterator[Job]:
        """Pack into codes and steps; with 0 for steps of activations that are unknown."""
        (n, k), module, bits = matrix.source.shape, matrix.module, self._bits(matrix)
        columns = self._ple if matrix.gguf == _TABLE else k
        groups, width = k // columns, k * bits // 8
        codes = Output("", "I8" if bits == 8 else "U8", (n, width), n * width)
        steps = Output("", "F32", (n, groups), 4 * n * groups)
        packer = Lattice(f"w{bits}", quantizer, columns)
        if matrix.gguf == _TABLE:
            yield matrix.job(Apart(packer), *_embedding(module, codes, steps))
        elif matrix.gguf == _EMBEDDING:  # and its head, which is a copy
            both = (
                *_embedding(module, codes, steps),
                *_linear("lm_head", codes, steps),
            )
            yield matrix.job(Apart(packer, copies=2), *both)
            yield from self._unknown_steps("lm_head", matrix)
        else:
            yield matrix.job(Apart(packer), *_linear(module, codes, steps))
            unknown = list(self._unknown_steps(module, matrix))
            self._without_steps += bool(unknown)
            yield from unknown

    def describe(self, config: dict[str, Any], dense: Sequence[str]) -> None:
        """Name the widths; heads that are packed are not tied."""
        rules = {
            r"lm_head$": 2,
            r"embed_tokens$": 2,
            r"embed_tokens_per_layer$": self._table_bits,
            r"per_layer_input_gate$": 8,
            r"per_layer_projection$": 8,
            r"self_attn\.": 4,
        }
        if self._four:
            numbers = "|".join(str(layer) for layer in range(self._four))
            rules[rf"layers\.({numbers})\.mlp\."] = 4
        rules[r"layers\.\d+\.mlp\."] = 2
        towers = [t for t in _TOWERS if any(t in name for name in dense)]
        others = [name for name in dense if not any(t in name for t in _TOWERS)]
        # A class without a head lacks the name before those of the text model.
        others = [gemma.without_root(name) for name in others]
        config["quantization_config"] = {
            "quant_method": "gemma",
            "num_bits": 4,
            "quantize_embeddings": True,
            "module_quant_configs": {key: {"num_bits": b} for key, b in rules.items()},
            "modules_to_not_convert": [*others, *towers],
        }
        config["tie_word_embeddings"] = False
        if "text_config" in config:
            config["text_config"]["tie_word_embeddings"] = False

    def notes(self) -> tuple[str, ...]:
        """Count the layers whose activations are not rounded as training does it."""
        if not self._without_steps:
            return ()
        lacking = (
            f"{self._without_steps} linear layers have no input_activation_scale and "
            "output_activation_scale in the source: their activations are not rounded to "
            "the steps that the mobile form is trained with"
        )
        return (lacking,)

    def _bits(self, matrix: Matrix) -> int:
        if matrix.gguf in (_EMBEDDING, _TABLE):
            return 2 if matrix.gguf == _EMBEDDING else self._table_bits
        found = _LAYER.match(matrix.gguf)
        layer, kind = (int(found[1]), found[2]) if found else (0, "")
        if kind == "ffn":
            return 4 if layer < self._four else 2
        return 4 if kind == "attn" else 8

    def _unknown_steps(self, module: str, matrix: Matrix) -> Iterator[Job]:
        there = {tensor.name for tensor in matrix.source.file.tensors}
        for side in ("input", "output"):
            name = f"{module}.{side}_activation_scale"
            if name not in there:
                yield _fixed(Output(name, "F32", (), 4), bytes(4))


FORMS: dict[str, Callable[[ModelConfig], Form]] = {"w4a16-ct": W4A16, "mobile": Mobile}


def _mobile_widths(config: ModelConfig) -> tuple[int, int]:
    """Layers from the first whose MLPs have 4 bits, and bits of the PLE table.

    As the released E2B, whose layers that share keys and values have wider MLPs of 2
    bits, and E4B, whose MLPs all have 4. Of others the first half has 4.
    """
    shared = [i for i, layer in enumerate(config.layers) if layer.kv_source != i]
    if len({layer.ffn_len for layer in config.layers}) > 1:
        return shared[0] if shared else config.num_layers, 4
    return (
        config.num_layers if config.per_layer_embedding else config.num_layers // 2,
        2,
    )


def _refuse_experts(config: ModelConfig, format: str) -> None:
    if config.num_experts:
        raise UnsupportedError(
            f"{format}: expected a model without experts, found {config.num_experts} a "
            "layer: no such file holds them packed, --to gguf does"
        )


def _embedding(module: str, codes: Output, steps: Output) -> tuple[Output, Output]:
    return (
        codes._replace(name=f"{module}.embedding_quantized"),
        steps._replace(name=f"{module}.embedding_scale"),
    )


def _linear(module: str, codes: Output, steps: Output) -> tuple[Output, Output]:
    return (
        codes._replace(name=f"{module}.weight"),
        steps._replace(name=f"{module}.weight_scale"),
    )


def _fixed(output: Output, data: bytes) -> Job:
    return Job("shapes and steps", Fixed(output.name, data), Copied(), (output,))
