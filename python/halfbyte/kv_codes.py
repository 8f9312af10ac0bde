# python/halfbyte/kv_codes.py
# SPDX-License-Identifier: Apache-2.0
"""Keys or values in 8 bits, as `halfbyte.quantize_kv` makes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import DTypeError, ShapeError

__all__ = ["KvCodes"]


@dataclass(frozen=True, eq=False)
class KvCodes:
    """Keys or values in 8 bits: each row of a head is its codes times its step.

    Parts of larger arrays will do, so that a cache can grow without being copied.

    Attributes
    ----------
    codes : int8 array, shape (batch, kv_heads, tokens, head_dim)
    steps : float32 array, shape (batch, kv_heads, tokens)
    rotated : bool
        Whether the codes are of rows behind a Hadamard transform.

    Raises
    ------
    DTypeError, ShapeError
        If an array is of another type, or has another shape.
    """

    codes: NDArray[np.int8]
    steps: NDArray[np.float32]
    rotated: bool

    def __post_init__(self) -> None:
        for name, want in (("codes", np.int8), ("steps", np.float32)):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != want:
                got = getattr(array, "dtype", type(array).__name__)
                wanted = np.dtype(want).name
                raise DTypeError(f"{name}: expected {wanted} array, got {got}")
        if self.codes.ndim != 4:
            shape = "(batch, kv_heads, tokens, head_dim)"
            raise ShapeError(f"codes: expected shape {shape}, got {self.codes.shape}")
        if self.steps.shape != self.codes.shape[:3]:
            want_shape = self.codes.shape[:3]
            raise ShapeError(
                f"steps: expected shape {want_shape}, got {self.steps.shape}"
            )
        if not isinstance(self.rotated, bool | np.bool_):
            got = type(self.rotated).__name__
            raise DTypeError(f"rotated: expected a bool, got {got}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, kv_heads, tokens, head_dim)."""
        batch, heads, tokens, head_dim = self.codes.shape
        return batch, heads, tokens, head_dim

    @property
    def nbytes(self) -> int:
        """Bytes of codes and steps."""
        return self.codes.nbytes + self.steps.nbytes
