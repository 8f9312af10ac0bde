# python/halfbyte/transformers/cache.py
# SPDX-License-Identifier: Apache-2.0
"""A cache of transformers whose keys and values are kept in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from halfbyte.errors import ArgumentError, ShapeError, UnsupportedError
from halfbyte.kv import KvCodes, dequantize_kv, quantize_kv
from halfbyte.torch._dispatch import threads

__all__ = ["CompressedCache", "CompressedTensor", "dense"]

_ROOM = 32  # tokens that a buffer holds beside those it is made for


class CompressedTensor(torch.Tensor):
    """Keys or values in 8 bits, as a tensor: whatever is done with it decodes it first.

    ``attn_implementation="halfbyte"`` attends to the codes themselves.

    Attributes
    ----------
    kept : KvCodes
        Part of a cache. Later tokens do not change it.
    """

    kept: KvCodes

    @classmethod
    def of(cls, kept: KvCodes, dtype: torch.dtype) -> CompressedTensor:
        """Wrap codes into what looks like a tensor of `dtype` in CPU memory."""
        tensor: CompressedTensor = torch.Tensor._make_wrapper_subclass(
            cls, kept.shape, dtype=dtype, device=torch.device("cpu")
        )
        tensor.kept = kept
        return tensor

    def dense(self) -> torch.Tensor:
        """Decode into an ordinary tensor."""
        with threads():
            rows = torch.from_numpy(dequantize_kv(self.kept))
        return rows.to(self.dtype)

    def __repr__(self) -> str:  # type: ignore[override]
        """Say how many there are."""
        return f"CompressedTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func` on decoded tensors."""
        return func(*tree_map(dense, args), **tree_map(dense, kwargs or {}))


def dense(x: Any) -> Any:
    """Decode a `CompressedTensor`; anything else is as it was."""
    return x.dense() if isinstance(x, CompressedTensor) else x


class _Buffer:
    """Rows [begin, end) of a buffer with room for more.

    What was handed out stays as it is: rows are written once, and a full buffer is left
    to those who still look at it.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        batch, heads, _, head_dim = shape
        self.codes = np.empty((batch, heads, 0, head_dim), np.int8)
        self.steps = np.empty((batch, heads, 0), np.float32)
        self.begin = self.end = 0

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.steps.nbytes

    def __len__(self) -> int:
        return self.end - self.begin

    def check(self, x: torch.Tensor) -> None:
        """Refuse what is of another batch, or of another model."""
        batch, heads, _, head_dim = self.codes.shape
        got = (x.shape[0], x.shape[1], x.shape[3])
        if got != (batch, heads, head_dim):
            raise ShapeError(
                f"CompressedCache: holds a batch of {batch} with {heads} heads of "
                f"{head_dim}, got a batch of {got[0]} with {got[1]} heads of {got[2]}; "
                "begin with a cache of its own"
            )

    def append(self, x: torch.Tensor) -> None:
        tokens = x.shape[2]
        self._make_room(tokens)
        rows = slice(self.end, self.end + tokens)
        with threads():
            quantize_kv(x.detach().float().numpy(), out=self._codes(rows))
        self.end += tokens

    def all(self) -> KvCodes:
        return self._codes(slice(self.begin, self.end))

    def last(self, tokens: int) -> KvCodes:
        return self._codes(slice(max(self.begin, self.end - tokens), self.end))

    def keep_last(self, tokens: int) -> None:
        self.begin = max(self.begin, self.end - tokens)

    def drop_last(self, tokens: int) -> None:
        # What comes next would be written over rows that were handed out.
        self._move(self.begin, self.end - tokens, _ROOM)

    def take(self, rows: NDArray[np.int64]) -> None:
        """Make a batch of these rows of the batch."""
        self.codes, self.steps = self.codes[rows], self.steps[rows]

    def _codes(self, rows: slice) -> KvCodes:
        return KvCodes(self.codes[:, :, rows], self.steps[:, :, rows], rotated=True)

    def _make_room(self, tokens: int) -> None:
        # An eighth more than is needed: copies are rare, and little lies idle. A long
        # prompt leaves a sliding layer with a buffer that it does not need again.
        wanted = len(self) + tokens
        too_large = self.codes.shape[2] > wanted + wanted // 4 + 2 * _ROOM
        if self.end + tokens > self.codes.shape[2] or too_large:
            self._move(self.begin, self.end, tokens + max(_ROOM, wanted // 8))

    def _move(self, begin: int, end: int, room: int) -> None:
        """Go on with rows [begin, end) in a new buffer."""
        kept = slice(begin, end)
        old_codes, old_steps = self.codes[:, :, kept], self.steps[:, :, kept]
        batch, heads, tokens, head_dim = old_codes.shape
        self.codes = np.empty((batch, heads, tokens + room, head_dim), np.int8)
        self.steps = np.empty((batch, heads, tokens + room), np.float32)
        self.codes[:, :, :tokens], self.steps[:, :, :tokens] = old_codes, old_steps
        self.begin, self.end = 0, tokens


class _Compressed(DynamicLayer):
    """What full and sliding layers have in common."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._buffers: tuple[_Buffer, _Buffer] | None = None
        self._dtype = torch.float32

    @property
    def keys(self) -> torch.Tensor | None:
        """The keys that are kept, decoded."""
        return None if self._buffers is None else self._tensors()[0].dense()

    @keys.setter
    def keys(self, value: None) -> None:
        """Leave what the parents begin with."""

    @property
    def values(self) -> torch.Tensor | None:
        """The values that are kept, decoded."""
        return None if self._buffers is None else self._tensors()[1].dense()

    @values.setter
    def values(self, value: None) -> None:
        """Leave what the parents begin with."""

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated."""
        return sum(buffer.nbytes for buffer in self._buffers or ())

    def lazy_initialization(
        self, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> None:
        """Make buffers of the right shape."""
        self._buffers = _Buffer(key_states.shape), _Buffer(value_states.shape)
        self._dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def _append(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        for x in (key_states, value_states):
            if x.device.type != "cpu":
                raise ArgumentError(
                    f"CompressedCache: expected tensors in CPU memory, got {x.device}"
                )
            if x.requires_grad and torch.is_grad_enabled():
                raise UnsupportedError(
                    "CompressedCache: rounding has no gradient; run the model under "
                    "torch.no_grad()"
                )
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
        pairs = list(zip(self._buffers or (), (key_states, value_states), strict=True))
        for buffer, x in pairs:  # both, before either grows
            buffer.check(x)
        for buffer, x in pairs:
            buffer.append(x)

    def _tensors(self, last: int | None = None) -> list[CompressedTensor]:
        """Keys and values: of the last tokens, or all that are kept."""
        return [
            CompressedTensor.of(
                buffer.all() if last is None else buffer.last(last), self._dtype
            )
            for buffer in self._buffers or ()
        ]

    def _drop(self, tokens: int) -> None:
        for buffer in self._buffers or ():
            buffer.drop_last(min(tokens, len(buffer)))

    def offload(self) -> None:
        """Stay in CPU memory."""

    def prefetch(self) -> None:
        """Stay in CPU memory."""

    def reset(self) -> None:
        """Forget all tokens."""
        self._buffers = None
        self.is_initialized = False
        super().reset()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Make a batch of these rows of the batch."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        for buffer in self._buffers or ():
            buffer.take(np.repeat(np.arange(buffer.codes.shape[0]), repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Make a batch of these rows of the batch."""
        for buffer in self._buffers or ():
            rows = np.arange(buffer.codes.shape[0])
            buffer.take(rows[indices.cpu().numpy()])


class _FullLayer(_Compressed):
    """A layer that keeps all tokens."""

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the tokens, and return all."""
        self._append(key_states, value_states)
        keys, values = self._tensors()
        return keys, values

    def get_seq_length(self) -> int:
        """Return how many tokens were seen."""
        return 0 if self._buffers is None else len(self._buffers[0])

    def crop(self, tokens_to_remove: int) -> None:
        """Remove as many tokens; a positive number, of older releases, is kept."""
        self._drop(_removed(tokens_to_remove, self.get_seq_length()))


class _SlidingLayer(_Compressed, DynamicSlidingWindowLayer):
    """A layer that keeps what a window sees."""

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the tokens, and return what the new ones see."""
        self._append(key_states, value_states)
        tokens = key_states.shape[2]
        self.cumulative_length += tokens
        keys, values = self._tensors(self.sliding_window - 1 + tokens)
        if not getattr(self, "record_past", False):
            self._keep_window()
        return keys, values

    def get_seq_length(self) -> int:
        """Return how many tokens were seen."""
        return int(self.cumulative_length)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove as many tokens; a positive number, of older releases, is kept.

        Raises
        ------
        RuntimeError
            If what a window would see then has been let go of: see
            ``activate_past_recording``.
        """
        length = self.get_seq_length()
        removed = _removed(tokens_to_remove, length)
        left = length - removed
        kept = 0 if self._buffers is None else len(self._buffers[0])
        if removed and kept - removed < min(left, self.sliding_window - 1):
            raise RuntimeError(
                f"crop: {removed} tokens less would see some that a window of "
                f"{self.sliding_window} has passed; call activate_past_recording before"
            )
        if removed:
            self._drop(removed)
            self.cumulative_length = left
        self._keep_window()

    def _keep_window(self) -> None:
        for buffer in self._buffers or ():
            buffer.keep_last(self.sliding_window - 1)


def _removed(tokens: int, length: int) -> int:
    return min(-tokens, length) if tokens <= 0 else max(length - tokens, 0)


class CompressedCache(DynamicCache):
    """Keys and values in 8 bits: three tenths of float32, six of bfloat16.

    For ``generate`` and forward passes of any model of transformers, sliding layers
    and layers that share keys and values included. Tokens are rounded once, as
    `halfbyte.quantize_kv` does, when they come in. With
    ``attn_implementation="halfbyte"`` attention reads the codes; other functions get
    them decoded, layer by layer.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the model: says which layers slide.

    Raises
    ------
    UnsupportedError
        If a layer keeps something else than keys and values.

    Examples
    --------
    .. code-block:: python

        model.set_attn_implementation("halfbyte")
        cache = CompressedCache(model.config)
        model.generate(**inputs, past_key_values=cache)
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        # Not DynamicCache's own way, which makes layers of floats.
        Cache.__init__(self, layers=[_compressed(layer) for layer in _plain(config)])

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated for keys and values."""
        return sum(getattr(layer, "nbytes", 0) for layer in self.layers)


def _plain(config: PreTrainedConfig) -> list[Any]:
    """The layers of transformers' own cache."""
    if layers := DynamicCache(config=config).layers:
        return list(layers)
    # 5.5 takes "no layer shares" for "all do", and makes full ones as it needs them.
    text = config.get_text_config(decoder=True)
    return [
        DynamicSlidingWindowLayer(sliding_window=text.sliding_window)
        if kind == "sliding_attention"
        else DynamicLayer()
        for kind in text.layer_types
    ]


def _compressed(layer: Any) -> Any:
    if type(layer) is DynamicSlidingWindowLayer:
        return _SlidingLayer(sliding_window=layer.sliding_window)
    if type(layer) is DynamicLayer:
        return _FullLayer()
    if type(layer).__name__ == "DummyLayer":  # of a layer that shares another's
        return layer
    raise UnsupportedError(
        f"CompressedCache: {type(layer).__name__} keeps no keys and values alone"
    )
