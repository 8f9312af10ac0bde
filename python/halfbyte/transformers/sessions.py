# python/halfbyte/transformers/sessions.py
# SPDX-License-Identifier: Apache-2.0
"""Sessions in the place of Transformers' cache: one for each row of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Cache, GenerationMixin

from halfbyte._arrays import F32Array
from halfbyte.errors import ArgumentError, UnsupportedError
from halfbyte.model import Model, Session
from halfbyte.torch._dispatch import threads

__all__ = ["CACHE_NAME", "SessionCache", "only_cache", "wrong_padding"]

Ids = NDArray[np.int64]

# What `generate` and a forward pass call their cache: transformers 5.24 renamed it.
_PREPARED = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE_NAME = "cache" if "cache" in _PREPARED else "past_key_values"

# Older releases of transformers (5.5 to 5.10 at least) take the length that stays.
_CROPS_TO_A_LENGTH = "max_length" in inspect.signature(Cache.crop).parameters


class _Row:
    """A sequence, and a session that holds it or a beginning of it.

    A session may lose what it held when it is cut: sliding layers remember only so
    much. What it lacks is run again before the next tokens.
    """

    def __init__(self, session: Session, tokens: Iterable[int] = ()) -> None:
        self.session, self._tokens = session, list(tokens)
        self._held = session.position

    def __len__(self) -> int:
        return len(self._tokens)

    def copy(self) -> _Row:
        return _Row(self.session.copy(), self._tokens)

    def begun(self) -> bool:
        """Whether there is something to go on from, and the session holds all of it."""
        return 0 < len(self._tokens) == self._held

    def run(self, ids: Ids, rows: int) -> F32Array:
        """Logits after the last `rows` of `ids`, which `accept` appends."""
        lacking = np.asarray(self._tokens[self._held :], np.int64)
        return self.session.logits(np.concatenate([lacking, ids]), last=rows)

    def accept(self, ids: Ids) -> None:
        self._tokens.extend(ids.tolist())
        self._held = len(self._tokens)

    def cut(self, length: int) -> None:
        """Keep the first `length` tokens, whatever the session has run beyond them."""
        del self._tokens[length:]
        self._held = self.session.truncate(length)


class SessionCache(Cache):
    """What `EngineModel` remembers of a batch: a `halfbyte.Session` for each row.

    It is made by `generate`, and given back by it on request, as other caches are. Rows
    that were padded on the left hold their own tokens alone.

    Parameters
    ----------
    model : halfbyte.Model
        The model that the sessions run through.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(layers=[])  # keys and values never come up into Python
        self._model = model
        self._rows: list[_Row] = []
        self._length = 0  # of the rows with their padding

    def __len__(self) -> int:
        """Return the number of the model's layers, as other caches do."""
        return self._model.config.num_layers

    def __copy__(self) -> SessionCache:
        """Make another that goes on by itself, of the same model."""
        copy = SessionCache(self._model)
        copy._rows = [row.copy() for row in self._rows]
        copy._length = self._length
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> SessionCache:
        """Do as `copy.copy` does: a model is never changed."""
        del memo
        return self.__copy__()

    def __repr__(self) -> str:
        """Say how much is in it."""
        return f"SessionCache({len(self._rows)} rows of {self._length})"

    @property
    def model(self) -> Model:
        """The model that the sessions run through."""
        return self._model

    @property
    def batch_size(self) -> int:
        """Number of rows; -1 before the first tokens."""
        return len(self._rows) or -1

    @property
    def is_linear(self) -> list[bool]:
        """That every layer attends to keys: `generate` asks whether all do without."""
        return [False] * len(self)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length of the rows, padding included."""
        del layer_idx
        return self._length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Tokens that a session holds at most."""
        del layer_idx
        return self._model.context

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse keys and values: a session makes its own.

        Raises
        ------
        UnsupportedError
        """
        del args, kwargs
        raise UnsupportedError("SessionCache: only an EngineModel can run with it")

    # ---- what generate does between two calls of the model

    def reset(self) -> None:
        """Forget everything."""
        self._rows, self._length = [], 0

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens off the end of every row.

        Parameters
        ----------
        tokens_to_remove : int
            Their number, below 0; 0 does nothing. Where transformers' own caches take
            the length that stays, a number from 0 up is that.

        Raises
        ------
        ArgumentError
            If the number is above 0, and transformers' caches refuse that.
        """
        if tokens_to_remove < 0:
            length = max(self._length + tokens_to_remove, 0)
        elif _CROPS_TO_A_LENGTH:
            length = min(self._length, tokens_to_remove)
        elif tokens_to_remove == 0:
            length = self._length
        else:
            raise ArgumentError(
                f"tokens_to_remove: expected 0 or less, got {tokens_to_remove}"
            )
        for row in self._rows if length < self._length else ():
            padding = self._length - len(row)
            row.cut(max(length - padding, 0))
        self._length = length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let row i go on where row ``beam_idx[i]`` is."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        rows = torch.arange(len(self._rows))
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be there more than once."""
        if not self._rows:
            return
        chosen = torch.arange(len(self._rows))[indices.cpu()].tolist()
        first = {index: at for at, index in reversed([*enumerate(chosen)])}
        self._rows = [
            self._rows[index] if first[index] == at else self._rows[index].copy()
            for at, index in enumerate(chosen)
        ]

    # ---- what the model does

    def run(
        self,
        input_ids: torch.Tensor,
        keep: int,
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Append tokens to every row.

        Parameters
        ----------
        input_ids : integer tensor, shape (B, T)
        keep : int
            Of how many of the last columns to return logits.
        mask : tensor, shape (B, length + T), optional
            0 where there is padding, which has to come before a row's first token.
        positions : integer tensor, shape (B, T) or (1, T), optional
            Compared with those that follow from the mask.

        Returns
        -------
        float32 tensor, shape (B, keep, vocab_size)
            0 at padding.

        Raises
        ------
        ArgumentError
            If shapes do not fit.
        UnsupportedError
            If there is padding elsewhere, or positions are not the usual ones.
        ContextOverflowError
            If a row becomes longer than the context.

        Notes
        -----
        After an error, and after Ctrl-C, all rows are as they were before.
        """
        batch, columns = input_ids.shape
        if not self._rows:
            self._rows = [_Row(self._model.session()) for _ in range(batch)]
        try:
            fed = self._fed(input_ids, mask, positions)
            with threads():
                logits = self._run(fed, keep)
        except BaseException:
            for row in self._rows:
                row.cut(len(row))
            if self._length == 0:
                self._rows = []  # whose number nothing fixes yet
            raise
        for row, new in zip(self._rows, fed, strict=True):
            row.accept(new)
        self._length += columns
        return logits

    def _fed(
        self,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor | None,
    ) -> list[Ids]:
        """Rows without their padding, once everything is found to fit."""
        batch, columns = input_ids.shape
        if batch != len(self._rows):
            raise ArgumentError(
                f"input_ids: expected {len(self._rows)} rows as in the cache, got {batch}"
            )
        counts = self._new_tokens(columns, mask)
        if positions is not None:
            self._check(positions, columns, counts)
        ids = input_ids.numpy(force=True).astype(np.int64, copy=False)
        return [row[columns - n :] for row, n in zip(ids, counts, strict=True)]

    def _run(self, fed: list[Ids], keep: int) -> torch.Tensor:
        if len(fed) == 1 and keep <= len(fed[0]):  # decoding: nothing to copy
            return torch.from_numpy(self._rows[0].run(fed[0], keep))[None]
        if keep == 1 and self._go_on(fed):  # in one pass over the weights
            sessions = [row.session for row in self._rows]
            step = self._model.step(sessions, np.concatenate(fed))
            return torch.from_numpy(step)[:, None]
        shape = len(fed), keep, self._model.config.vocab_size
        logits = torch.zeros(shape, dtype=torch.float32, device="cpu")
        begun: dict[bytes, int] = {}  # prompts that are run: beams share theirs
        for at, (row, new) in enumerate(zip(self._rows, fed, strict=True)):
            rows = min(keep, len(new))
            if rows == 0:
                continue
            same = begun.setdefault(new.tobytes(), at) if len(row) == 0 else at
            if same < at:
                self._rows[at] = self._rows[same].copy()
                logits[at] = logits[same]
            else:
                logits[at, keep - rows :] = torch.from_numpy(row.run(new, rows))
        return logits

    def _go_on(self, fed: list[Ids]) -> bool:
        """Whether one token follows in each row."""
        return all(
            row.begun() and len(new) == 1
            for row, new in zip(self._rows, fed, strict=True)
        )

    def _new_tokens(self, columns: int, mask: torch.Tensor | None) -> list[int]:
        """How many of so many new columns are tokens, row by row."""
        lengths = [len(row) for row in self._rows]
        if mask is None:
            if lengths == [self._length] * len(lengths):
                return [columns] * len(lengths)
            raise ArgumentError("attention_mask: expected one, as rows are padded")
        shape = (len(lengths), self._length + columns)
        if tuple(mask.shape) != shape:
            raise ArgumentError(
                f"attention_mask: expected shape {shape}, got {tuple(mask.shape)}"
            )
        given = mask.cpu() != 0
        if given[:, : self._length].sum(1).tolist() != lengths:
            raise ArgumentError(
                "attention_mask: differs from the one that the cache was filled with"
            )
        if reason := wrong_padding(given):
            raise UnsupportedError(reason)
        return [int(n) for n in given[:, self._length :].sum(1).tolist()]

    def _check(self, positions: torch.Tensor, columns: int, counts: list[int]) -> None:
        if tuple(positions.shape) not in ((1, columns), (len(counts), columns)):
            raise ArgumentError(
                f"position_ids: expected shape {(len(counts), columns)}, "
                f"got {tuple(positions.shape)}"
            )
        given = positions.expand(len(counts), columns).numpy(force=True)
        for row, line, n in zip(self._rows, given, counts, strict=True):
            usual = np.arange(len(row), len(row) + n)
            if not np.array_equal(line[columns - n :], usual):
                raise UnsupportedError(
                    "position_ids: expected those that follow from attention_mask"
                )


def only_cache(cache: Any, past_key_values: Any) -> Any:
    """What was given by either of its names, in any release.

    Raises
    ------
    ArgumentError
        If something was given by both.
    """
    if cache is not None and past_key_values is not None:
        raise ArgumentError("cache: past_key_values is its other name; expected one")
    return past_key_values if cache is None else cache


def wrong_padding(mask: torch.Tensor) -> str | None:
    """What is wrong with a mask that has padding after a token.

    Parameters
    ----------
    mask : bool tensor, shape (B, T)

    Returns
    -------
    str or None
    """
    if not bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        return None
    return (
        "attention_mask: found padding after a token; expected it on the left alone - "
        "set padding_side='left' on the tokenizer"
    )
