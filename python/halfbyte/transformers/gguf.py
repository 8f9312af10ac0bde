# python/halfbyte/transformers/gguf.py
# The core reads and checks the file; here its tensors get the names that Transformers
# knows them by, where they lie.
# SPDX-License-Identifier: Apache-2.0
"""GGUF files as models of Transformers, packed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma4ForCausalLM, PreTrainedTokenizerFast

from halfbyte import gemma, names
from halfbyte._arguments import instance
from halfbyte.errors import FileChangedError, UnsupportedError
from halfbyte.files import File, TensorInfo, open_gguf
from halfbyte.formats import dequantize
from halfbyte.model import load
from halfbyte.records import LayerConfig, ModelConfig
from halfbyte.transformers.config import HalfbyteConfig
from halfbyte.transformers.gguf_config import text_config
from halfbyte.transformers.gguf_tokenizer import fast_tokenizer, special_ids

__all__ = ["from_gguf"]

_CLASSES = {"gemma3": Gemma3ForCausalLM, "gemma4": Gemma4ForCausalLM}

# Names of a layer's matrices and vectors, there and here.
_MATRICES = {there: here for here, there in gemma.MATRICES.items()}
_VECTORS = {there: here for here, there in gemma.VECTORS.items()}
# What a file may hold and a model not use.
_KEYS = {"attn_k", "attn_v", "attn_k_norm.weight"}
_PLE = {"inp_gate", "proj", "post_norm.weight"}
_MOE = {
    "ffn_gate_inp.scale",
    "ffn_down_exps.scale",
    "pre_ffw_norm_2.weight",
    "post_ffw_norm_1.weight",
    "post_ffw_norm_2.weight",
}


def from_gguf(
    path: str | os.PathLike[str],
    *,
    activations: str = "auto",
    repack: str = "auto",
    dtype: torch.dtype | str | None = None,
) -> tuple[Any, PreTrainedTokenizerFast]:
    """Open a Gemma 3 or Gemma 4 GGUF file as a model and a tokenizer of Transformers.

    Parameters
    ----------
    path : str or path-like
        The file, any shard of a split one, or a name as for `halfbyte.load`.
    activations : {"auto", "f32"}
        As for `halfbyte.linear`.
    repack : {"auto", "always", "never"}
        As for `HalfbyteConfig`; what is not copied stays in the mapped file.
    dtype : torch.dtype or its name, optional
        Expand every matrix to this type, as for training, instead of keeping it packed;
        the other two arguments say nothing then.

    Returns
    -------
    model : PreTrainedModel
        Text only, with the sampling that the file recommends. Matrices keep the file's
        bytes, also the head's, which are those of the embedding if they are tied; norms
        are float32, and so are activations. Writing to a weight changes memory, never
        the file. With `dtype`, an ordinary model of that type.
    tokenizer : PreTrainedTokenizerFast
        The file's vocabulary, and its chat template, if it has one.

    Raises
    ------
    FormatError, ModelError
        If the file is damaged, or no model that can run. The message names the tensor
        or key.
    UnsupportedError
        If Transformers has no words for what the file holds.
    OSError
        If it cannot be opened.
    """
    expand = _dtype(dtype)
    where = names.resolve(path)
    file = open_gguf(where)
    checked = load(where, repack="never")
    if not checked.has_tokenizer:
        raise UnsupportedError(
            f"{os.fsdecode(where)}: expected a tokenizer, found none: use halfbyte.load"
        )
    source = _Source(file, checked.config, expand)
    ids = special_ids(checked.tokenizer)
    config = text_config(checked.config, **ids)
    source.check_rope()
    state, module_formats = source.state(config)
    if expand is None:
        packing = HalfbyteConfig(
            module_formats=module_formats,
            activations=activations,
            repack=repack,
            fuse=True,
        )
        config.quantization_config = packing.to_dict()  # as config.json would have it
    model = _CLASSES[checked.config.architecture].from_pretrained(
        None, config=config, state_dict=state, dtype=expand or torch.float32
    )
    generation = model.generation_config
    for name, value in ids.items():
        setattr(generation, name, value)
    if checked.sampling:
        generation.update(do_sample=True, **checked.sampling)
    suppressed = file.metadata.get("tokenizer.ggml.suppress_tokens")
    if suppressed:
        generation.suppress_tokens = list(suppressed)
    return model, fast_tokenizer(file, checked.tokenizer)


def _dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    """A type of torch, or that of a name, as `from_pretrained` takes it."""
    if given is None:
        return None
    found = getattr(torch, given, given) if isinstance(given, str) else given
    return instance(found, "dtype", torch.dtype, "a torch.dtype")


class _Source:
    """Tensors of a checked file under the names of Transformers."""

    def __init__(
        self, file: File, config: ModelConfig, dtype: torch.dtype | None
    ) -> None:
        self._file, self._config, self._dtype = file, config, dtype
        self.infos = {tensor.name: tensor for tensor in file.tensors}
        # Private to this process: a write copies its page, and torch may take the
        # bytes for writable.
        self._maps = [np.memmap(path, np.uint8, "c") for path in file.paths]
        if sum(len(m) for m in self._maps) != file.file_bytes:
            raise FileChangedError(f"{file.paths[0]}: changed while it was opened")

    def state(self, config: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors, and the formats of the packed ones.

        Parameters
        ----------
        config : PretrainedConfig
            Of the model that they are for.

        Returns
        -------
        state : dict of str to tensor
        module_formats : dict of str to str
        """
        self._state: dict[str, Tensor] = {}
        self._formats: dict[str, str] = {}
        self._table("token_embd.weight", "embed_tokens")
        self._vector("output_norm.weight", "norm.weight")
        head = "token_embd" if config.tie_word_embeddings else "output"
        self._matrix(f"{head}.weight", "lm_head")
        if config.tie_word_embeddings:
            del self._state["lm_head.weight"]  # tied by name when the model is loaded
        if self._config.per_layer_embedding:
            self._table("per_layer_token_embd.weight", "embed_tokens_per_layer")
            self._matrix(
                "per_layer_model_proj.weight", "model.per_layer_model_projection"
            )
            self._vector(
                "per_layer_proj_norm.weight", "per_layer_projection_norm.weight"
            )
        k_is_v = bool(getattr(config, "attention_k_eq_v", False))
        for i, layer in enumerate(self._config.layers):
            self._layer(i, layer, k_is_v=k_is_v)
        return self._state, self._formats

    def _layer(self, i: int, layer: LayerConfig, *, k_is_v: bool) -> None:
        there, here = f"blk.{i}.", f"layers.{i}."
        owner = layer.kv_source == i
        unused = set() if owner else set(_KEYS)
        unused |= set() if self._config.per_layer_embedding else _PLE
        unused |= set() if self._config.num_experts else _MOE
        for name, leaf in _MATRICES.items():
            if name not in unused and f"{there}{name}.weight" in self.infos:
                self._matrix(f"{there}{name}.weight", f"model.{here}{leaf}")
        for name, leaf in _VECTORS.items():
            if name not in unused and there + name in self.infos:
                self._vector(there + name, here + leaf)
        attention = f"model.{here}self_attn."
        if f"{there}attn_qkv.weight" in self.infos:
            self._fused(f"{there}attn_qkv.weight", layer, attention, owner=owner)
        elif owner and layer.value_is_key and not k_is_v:
            # Some layers have values and some do not: keys a second time, same bytes.
            self._matrix(f"{there}attn_k.weight", f"{attention}v_proj")
        if self._config.num_experts:
            self._experts(there, here)

    # ---- tensors where they lie

    def _rows(self, info: TensorInfo) -> Tensor:
        """Bytes of a tensor, one row of weights a row; leading dimensions stay.

        Its numbers, if they are asked for.
        """
        if self._dtype is not None:
            return self._floats(info.name).to(self._dtype)
        self._file.tensor_bytes(info.name)  # says so if the file was changed
        data = self._maps[info.shard][info.offset : info.offset + info.bytes]
        return torch.from_numpy(np.asarray(data)).view(*info.shape[:-1], -1)

    def _matrix(self, name: str, module: str) -> None:
        info = self.infos[name]
        self._state[f"{module}.weight"] = self._rows(info)
        self._note(module, info)

    def _note(self, module: str, info: TensorInfo) -> None:
        if self._dtype is None:
            self._formats[module] = str(info.format)

    def _table(self, name: str, leaf: str) -> None:
        info = self.infos[name]
        key = "embedding_quantized" if self._dtype is None else "weight"
        self._state[f"model.{leaf}.{key}"] = self._rows(info)
        self._note(f"model.{leaf}", info)

    def _fused(
        self, name: str, layer: LayerConfig, attention: str, *, owner: bool
    ) -> None:
        """Queries, keys and values of one tensor, in this order."""
        rows = self._rows(self.infos[name])
        q = self._config.num_heads * layer.head_dim
        kv = layer.num_kv_heads * layer.head_dim
        parts = rows.split([q, kv, kv])
        for leaf, part in zip("qkv" if owner else "q", parts, strict=False):
            self._state[f"{attention}{leaf}_proj.weight"] = part
            self._note(f"{attention}{leaf}_proj", self.infos[name])

    def _floats(self, name: str) -> Tensor:
        info = self.infos[name]
        return torch.from_numpy(dequantize(self._file.weight(name))).view(info.shape)

    def _vector(self, name: str, leaf: str) -> None:
        values = self._floats(name)
        # Files have what is multiplied by; Gemma 3's modules add the 1 themselves.
        if self._config.architecture == "gemma3":
            values -= 1.0
        self._state[f"model.{leaf}"] = values

    # ---- the mixture

    def _experts(self, there: str, here: str) -> None:
        module = f"model.{here}experts"
        self._state[f"model.{here}router.proj.weight"] = self._floats(
            f"{there}ffn_gate_inp.weight"
        )
        down = self.infos[f"{there}ffn_down_exps.weight"]
        parts = list(self._gate_up(there))
        both = {str(part.format) for part in parts}
        if len(both) != 1 and self._dtype is None:
            raise UnsupportedError(
                f"{parts[0].name}: expected the format of {parts[1].name}, found "
                f"{' and '.join(sorted(both))}: use halfbyte.load"
            )
        rows = [self._rows(part) for part in parts]
        # Gates and the other halves apart have to be put together, in memory.
        joined = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
        self._state[f"{module}.gate_up_proj"] = joined
        self._state[f"{module}.down_proj"] = self._rows(down)
        self._note(f"{module}.gate_up_proj", parts[0])
        self._note(f"{module}.down_proj", down)

    def _gate_up(self, there: str) -> Iterator[TensorInfo]:
        fused = f"{there}ffn_gate_up_exps.weight"
        apart = (f"{there}ffn_gate_exps.weight", f"{there}ffn_up_exps.weight")
        for name in apart if apart[0] in self.infos else (fused,):
            yield self.infos[name]

    # ---- what has to be as Transformers makes it

    def check_rope(self) -> None:
        """Refuse frequencies other than the family's: a quarter turns, or all."""
        if "rope_freqs.weight" not in self.infos:
            return
        freqs = self._floats("rope_freqs.weight")
        turning = (
            len(freqs) // 4 if self._config.architecture == "gemma4" else len(freqs)
        )
        if not (freqs[:turning] == 1).all() or not (freqs[turning:] > 1e20).all():
            raise UnsupportedError(
                f"tensor 'rope_freqs.weight': expected {turning} times 1 and "
                f"{len(freqs) - turning} huge numbers: use halfbyte.load"
            )
