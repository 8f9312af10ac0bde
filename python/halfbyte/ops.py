# python/halfbyte/ops.py
# SPDX-License-Identifier: Apache-2.0
"""The operations of a layer on NumPy arrays and packed weights.

Inputs are float32, float16 or bfloat16: NumPy arrays (bfloat16 through `ml_dtypes`) or
anything in CPU memory that speaks DLPack. float32 rows are used where they lie if the
elements of a row are side by side, and copied otherwise. Results are float32. Each
operation has a slow twin of the same signature in `halfbyte.reference`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfbyte import _core, _onednn
from halfbyte._arguments import flag, not_negative, number, one_of, positive, whole
from halfbyte._arrays import (
    Array,
    F32Array,
    as_f32,
    as_indices,
    as_out_rows,
    as_vector,
    heads_of,
    new_or_checked,
    no_mask,
    output,
    rows_of,
)
from halfbyte.errors import ArgumentError, DTypeError, ShapeError
from halfbyte.formats import Weight, packed
from halfbyte.kv import KvCodes, as_heads, core_arrays
from halfbyte.targets import num_threads

__all__ = [
    "attention",
    "embedding_rows",
    "gelu_mul",
    "linear",
    "linear_codes",
    "rms_norm",
    "rope",
    "softmax",
]

# Positions up to here keep their angle's precision.
_MAX_POSITION = 2**24

_F32_MIN, _F32_MAX = 1.401298464324817e-45, 3.4028234663852886e38


def _input(x: Array, name: str) -> F32Array:
    values = as_f32(x, name, _core.from_dlpack)
    if values.ndim == 0:
        raise ShapeError(f"{name}: expected at least one dimension, got shape ()")
    return values


def linear(
    x: Array,
    w: Weight,
    *,
    bias: Array | None = None,
    out: F32Array | None = None,
    activations: Literal["auto", "f32"] = "auto",
) -> F32Array:
    """Multiply by a packed weight: ``y = x @ w.T + bias``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 array, shape (..., K)
    w : Weight, shape (N, K)
    bias : array, shape (N,), optional
    out : float32 array, shape (..., N), optional
        Written and returned; must not overlap the others.
    activations : {"auto", "f32"}
        ``"auto"`` rounds `x` to 8-bit codes if `w` is quantized: 32 neighbours share a
        step, or all of a row if `w` has one scale a row. ``"f32"`` never does and is
        slow.

    Returns
    -------
    float32 array, shape (..., N)
        The same bits for any number of threads and any split of the rows of `x` (the
        split is left out while `use_onednn` is on). A row of `x` that is not finite
        gives NaN.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.

    Notes
    -----
    8-bit codes are ``rint(x / d)`` with ``d = max |x| / 127`` over those that share the
    step, so each product is off by at most ``d / 2 * |w|``. Integer sums are exact.

    Examples
    --------
    >>> w = Weight(np.eye(2, 4, dtype=np.float32).view(np.uint8), "f32", (2, 4))
    >>> linear(np.arange(4, dtype=np.float32), w)
    array([0., 1.], dtype=float32)
    """
    if packed(w).format in ("f32", "bf16"):
        _onednn.open_if_asked()
    # A product of one token with a small matrix takes as long as the checks below.
    if bias is None and activations == "auto":
        done = w._core.linear_at_once(x, out, num_threads())
        if done is not None:
            return done
    values, (n, k) = _input(x, "x"), w.shape
    one_of(activations, "activations", ("auto", "f32"))
    if values.shape[-1] != k:
        raise ShapeError(f"x: expected shape (..., {k}), got {values.shape}")
    added = None if bias is None else as_vector(bias, "bias", _core.from_dlpack)
    if added is not None and added.shape != (n,):
        raise ShapeError(f"bias: expected shape ({n},), got {added.shape}")
    result, target = output(out, (*values.shape[:-1], n))
    w._core.linear(rows_of(values), added, target, activations, num_threads())
    return result


def linear_codes(
    x: NDArray[np.int8],
    w: Weight,
    *,
    x_step: float,
    y_step: float,
    out: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Multiply 8-bit codes by a weight with one scale a row, into 8-bit codes.

    The layer of a model trained with static activation steps: what enters stands for
    ``x_step * x``, what leaves for ``y_step * y``, and the sums between are exact
    integers, the same on every instruction set.

    Parameters
    ----------
    x : int8 array, shape (..., K)
        Rows are used where they lie if their elements are side by side.
    w : Weight, shape (N, K)
        Of format ``"w8"``, ``"w4"`` or ``"w2"``.
    x_step, y_step : float
        What a code stands for; above 0.
    out : int8 array, shape (..., N), optional
        Written and returned.

    Returns
    -------
    int8 array, shape (..., N)
        ``round(x_step * scale * (levels @ x) / y_step)``, halves to even, within -128
        and 127.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> w = Weight(np.full(16, 0x99, np.uint8), "w4", (1, 32))  # levels of 1
    >>> linear_codes(np.full((1, 32), 3, np.int8), w, x_step=0.5, y_step=2.0)
    array([[24]], dtype=int8)
    """
    n, k = packed(w).shape
    if w.scales is None:
        raise ArgumentError(f"w: expected one scale a row (w8, w4, w2), got {w.format}")
    x_step, y_step = _step(x_step, "x_step"), _step(y_step, "y_step")
    done = w._core.linear_codes_at_once(x, x_step, y_step, out, num_threads())
    if done is not None:
        return done
    no_mask(x, "x")
    if not isinstance(x, np.ndarray) or x.dtype != np.int8:
        got = getattr(x, "dtype", type(x).__name__)
        raise DTypeError(f"x: expected an int8 array, got {got}")
    if x.ndim == 0 or x.shape[-1] != k:
        raise ShapeError(f"x: expected shape (..., {k}), got {x.shape}")
    shape = (*x.shape[:-1], n)
    result = np.empty(shape, np.int8) if out is None else out
    no_mask(result, "out")
    if not isinstance(result, np.ndarray) or result.dtype != np.int8:
        raise DTypeError("out: expected an int8 array")
    if result.shape != shape or not result.flags.c_contiguous:
        raise ShapeError(f"out: expected a contiguous array of shape {shape}")
    rows, to = rows_of(x), as_out_rows(result, n)
    w._core.linear_codes(rows, x_step, y_step, to, num_threads())
    return result


def embedding_rows(
    w: Weight, ids: ArrayLike, *, out: F32Array | None = None
) -> F32Array:
    """Look up rows of a packed table.

    Parameters
    ----------
    w : Weight, shape (N, K)
    ids : integers, any shape
        Rows, 0 to N - 1.
    out : float32 array, shape (*ids.shape, K), optional
        Written and returned.

    Returns
    -------
    float32 array, shape (*ids.shape, K)

    Raises
    ------
    ArgumentError
        If an id is out of range.
    DTypeError, ShapeError
        If an argument does not fit.
    """
    n, k = packed(w).shape
    indices = as_indices(ids, "ids", n)
    result, target = output(out, (*indices.shape, k))
    rows = np.ascontiguousarray(indices.reshape(-1))
    w._core.rows(rows, target, num_threads())
    return result


def rms_norm(
    x: Array,
    weight: Array | None = None,
    *,
    eps: float = 1e-6,
    out: F32Array | None = None,
) -> F32Array:
    """Divide each row by its root mean square: ``x / sqrt(mean(x**2) + eps) * weight``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 array, shape (..., K)
    weight : array, shape (K,), optional
        Ones if missing.
    eps : float
        Inside the root; 0 or more.
    out : float32 array, shape of `x`, optional
        Written and returned; may be `x`.

    Returns
    -------
    float32 array, shape of `x`
        Zeros for a row of zeros; NaN for a row that holds NaN or infinity.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit.

    Examples
    --------
    >>> rms_norm(np.array([3.0, 4.0], np.float32), eps=0.0)
    array([0.84852815, 1.1313709 ], dtype=float32)
    """
    values = _input(x, "x")
    added = not_negative(eps, "eps")
    factor = None if weight is None else as_vector(weight, "weight", _core.from_dlpack)
    if factor is not None and factor.shape != values.shape[-1:]:
        want = values.shape[-1:]
        raise ShapeError(f"weight: expected shape {want}, got {factor.shape}")
    result, target = output(out, values.shape)
    _core.rms_norm(rows_of(values), factor, added, target, num_threads())
    return result


def rope(
    x: Array,
    positions: ArrayLike,
    *,
    freq_base: float = 10000.0,
    rotary_dims: int | None = None,
    freq_scale: float = 1.0,
    out: F32Array | None = None,
) -> F32Array:
    """Rotate pairs of elements by their position.

    Element i of a head makes a pair with element i + head_dim / 2, which is turned by
    ``position * freq_scale * freq_base ** (-2 * i / head_dim)``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 array, shape (T, heads, head_dim)
        head_dim is even.
    positions : integers, shape (T,)
        0 to 2**24: with a `freq_scale` of at most 1 angles stay within 1e-5.
    freq_base : float
        Above 0: ``rope_theta`` in a model's configuration.
    rotary_dims : int, optional
        Only the first ``rotary_dims // 2`` pairs turn; all by default. Gemma 4 turns a
        quarter of the 512 dimensions of its full-attention heads.
    freq_scale : float
        Above 0: what positions are multiplied by. Models with linear scaling have 1 over
        its factor: 0.125 in the full-attention layers of Gemma 3 from 4B on.
    out : float32 array, shape of `x`, optional
        Written and returned; may be `x`.

    Returns
    -------
    float32 array, shape of `x`

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit.

    Examples
    --------
    >>> x = np.array([[[1, 0, 0, 0]]], np.float32)
    >>> rope(x, [8], freq_scale=0.125).round(4)  # as at position 1: cosine and sine of 1
    array([[[0.5403, 0.    , 0.8415, 0.    ]]], dtype=float32)
    """
    values = _input(x, "x")
    if values.ndim != 3 or values.shape[-1] % 2 != 0:
        raise ShapeError(
            f"x: expected shape (T, heads, even head_dim), got {values.shape}"
        )
    at: NDArray[np.int64] = as_indices(positions, "positions", _MAX_POSITION + 1)
    if at.shape != values.shape[:1]:
        raise ShapeError(
            f"positions: expected shape {values.shape[:1]}, got {at.shape}"
        )
    head_dim = values.shape[-1]
    dims = head_dim
    if rotary_dims is not None:
        dims = whole(rotary_dims, "rotary_dims", 0)
    if dims % 2 != 0 or dims > head_dim:
        raise ArgumentError(
            f"rotary_dims: expected an even number up to {head_dim}, got {dims}"
        )
    base, scale = positive(freq_base, "freq_base"), positive(freq_scale, "freq_scale")
    result, _ = output(out, values.shape)
    if result.size == 0:
        return result
    heads = values.shape[1]
    width = heads * head_dim
    _core.rope(
        rows_of(values.reshape(-1, width)),
        heads,
        at,
        dims // 2,
        base,
        1.0 / scale,
        as_out_rows(result, width),
        num_threads(),
    )
    return result


def softmax(x: Array, *, out: F32Array | None = None) -> F32Array:
    """Softmax over the last axis.

    Parameters
    ----------
    x : float32, float16 or bfloat16 array, shape (..., K)
    out : float32 array, shape of `x`, optional
        Written and returned; may be `x`.

    Returns
    -------
    float32 array, shape of `x`
        Zeros for a row of -inf; NaN for a row that holds NaN or +inf.

    Raises
    ------
    DTypeError, ShapeError
        If an argument does not fit.

    Examples
    --------
    >>> softmax(np.zeros(4, np.float32))
    array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    values = _input(x, "x")
    result, target = output(out, values.shape)
    _core.softmax(rows_of(values), target, num_threads())
    return result


def gelu_mul(gate: Array, up: Array, *, out: F32Array | None = None) -> F32Array:
    """Gate by GELU in its tanh form: ``gelu(gate) * up``.

    Parameters
    ----------
    gate, up : float32, float16 or bfloat16 arrays of one shape
    out : float32 array of that shape, optional
        Written and returned; may be `gate` or `up`.

    Returns
    -------
    float32 array of that shape

    Raises
    ------
    DTypeError, ShapeError
        If an argument does not fit.
    """
    g, u = _input(gate, "gate"), _input(up, "up")
    if u.shape != g.shape:
        raise ShapeError(f"up: expected shape {g.shape}, got {u.shape}")
    result, target = output(out, g.shape)
    _core.gelu_mul(rows_of(g), rows_of(u), target, num_threads())
    return result


def attention(
    q: Array,
    k: Array | KvCodes,
    v: Array | KvCodes,
    *,
    mask: ArrayLike | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    out: F32Array | None = None,
) -> F32Array:
    """Attend to keys and values: ``softmax(scale * q @ k.T) @ v`` for each head.

    Parameters
    ----------
    q : float32, float16 or bfloat16 array, shape (batch, heads, tokens, head_dim)
    k, v : the same, shape (batch, kv_heads, kv_tokens, head_dim)
        `heads` is a multiple of `kv_heads`; query head h uses key head
        ``h // (heads // kv_heads)``. float32 arrays are used where they lie if the
        elements of a row are side by side, as those of transposed heads are. Or both
        in 8 bits, as `halfbyte.quantize_kv` makes them: decoded 32 positions at a time,
        once for all queries that see them.
    mask : bool array that broadcasts to (batch, heads, tokens, kv_tokens), optional
        True where a query sees a key.
    causal : bool
        A query does not see later keys. The last query stands at the last key.
    window : int, optional
        With `causal`: how many keys a query sees, its own included.
    scale : float, optional
        ``head_dim ** -0.5`` if missing; Gemma 4 takes 1.
    out : float32 array, shape of `q`, optional
        Written and returned; must not overlap the others. Any strides will do that
        leave the elements of a row side by side.

    Returns
    -------
    float32 array, shape of `q`
        Zeros for a query that sees no key. The same bits for any number of threads, and
        whatever there is in the keys that a query does not see: NaN, or nothing.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> x = np.eye(2, dtype=np.float32)[None, None]
    >>> attention(x, x, x, causal=True, scale=0.0)
    array([[[[1. , 0. ],
             [0.5, 0.5]]]], dtype=float32)
    """
    queries = heads_of(as_heads(q, "q"))
    head_dim = queries.shape[3]
    keys, k_steps, rotated = _kept(k, "k")
    values, v_steps, v_rotated = _kept(v, "v")
    check_heads(queries.shape, keys.shape, values.shape)
    if (k_steps is None, rotated) != (v_steps is None, v_rotated):
        raise ArgumentError(
            "v: expected what is kept as k is, in 8 bits and rotated, or not"
        )
    factor, in_order, seen_keys = attention_options(head_dim, causal, window, scale)
    seen = None if mask is None else _mask(mask, (*queries.shape[:3], keys.shape[2]))
    result = new_or_checked(out, queries.shape)
    _core.attention(
        queries,
        keys,
        values,
        k_steps,
        v_steps,
        rotated,
        seen,
        factor,
        in_order,
        seen_keys,
        result,
        num_threads(),
    )
    return result


def check_heads(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> None:
    """Demand shapes of queries, keys and values that belong together."""
    batch, heads, _, head_dim = q
    if k[0] != batch or k[3] != head_dim:
        want = f"({batch}, kv_heads, kv_tokens, {head_dim})"
        raise ShapeError(f"k: expected shape {want}, got {k}")
    if v != k:
        raise ShapeError(f"v: expected shape {k}, got {v}")
    if heads and (k[1] == 0 or heads % k[1]):
        raise ShapeError(f"k: {k[1]} heads do not divide the {heads} of q")


def attention_options(
    head_dim: int, causal: object, window: object, scale: float | None
) -> tuple[float, bool, int]:
    """The factor of scores, whether keys are in order, and how many are seen: 0, all."""
    seen_keys = 0 if window is None else whole(window, "window", 1, 2**62)
    in_order = flag(causal, "causal")
    if seen_keys and not in_order:
        raise ArgumentError(f"window: expected causal with it, got {window} alone")
    factor = max(head_dim, 1) ** -0.5 if scale is None else number(scale, "scale")
    if not abs(factor) <= _F32_MAX:
        raise ArgumentError(f"scale: expected a finite number, got {factor}")
    return factor, in_order, seen_keys


def _kept(x: Array | KvCodes, name: str) -> tuple[NDArray[Any], F32Array | None, bool]:
    """Rows as the core reads them, their steps, and whether they are rotated."""
    if isinstance(x, KvCodes):
        return *core_arrays(x), x.rotated
    return heads_of(as_heads(x, name)), None, False


def _step(value: float, name: str) -> float:
    step = positive(value, name)
    if not _F32_MIN <= step <= _F32_MAX:
        raise ArgumentError(f"{name}: expected a float32 above 0, got {value}")
    return step


def _mask(mask: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    try:
        array = np.asarray(mask)
    except ValueError:
        raise ShapeError("mask: expected rows of one length") from None
    no_mask(mask, "mask")
    if array.dtype != np.bool_:
        raise DTypeError(f"mask: expected dtype bool, got {array.dtype}")
    try:
        spread = np.broadcast_to(array, shape)
    except ValueError:
        raise ShapeError(
            f"mask: expected what broadcasts to {shape}, got shape {array.shape}"
        ) from None
    return heads_of(spread)
