# benchmarks/peer/answer.py
# SPDX-License-Identifier: Apache-2.0
"""Is a result right, given how its maker says it rounds? A wrong one is not timed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from peer.problem import Case, Weights, activations, checked_tokens, dequantize, steps

__all__ = ["Rounding", "WrongAnswerError", "check"]

F64Array = NDArray[np.float64]

_UNIT = 2.0**-24  # float32
_ROWS = 1024  # of the weights at a time: a whole matrix in float64 is large


class WrongAnswerError(Exception):
    """A result is further from the reference than its arithmetic explains."""


class Rounding(NamedTuple):
    """What a side gives up before and after float32 sums of exact products.

    Attributes
    ----------
    static : bool
        Static codes in and out, from integer sums: nothing but ties may differ.
    float_sums : bool
        Static codes from sums in float32 of weights times their steps.
    block : int
        Activations become 8-bit codes, this many neighbours to a step; 0 if they do not.
    asymmetric : bool
        255 steps span a block's values and zero, instead of 254 twice the largest.
    terms : float
        Relative rounding of a term: of its factors, or of their scales.
    result : float
        Relative rounding of the sum.
    """

    static: bool = False
    float_sums: bool = False
    block: int = 0
    asymmetric: bool = False
    terms: float = 0.0
    result: float = 0.0


def check(case: Case, w: Weights, got: NDArray[np.float32], how: Rounding) -> float:
    """Compare the checked tokens of a result with float64.

    Parameters
    ----------
    case : Case
    w : Weights
    got : float32 array, shape (checked tokens, N)
    how : Rounding

    Returns
    -------
    float
        Root mean square of the error over that of the exact result.

    Raises
    ------
    WrongAnswerError
    """
    x = activations(case)[checked_tokens(case.tokens)].astype(np.float64)
    if got.shape != (len(x), case.n):
        raise WrongAnswerError(f"shape {got.shape} instead of {(len(x), case.n)}")
    if not np.isfinite(got).all():
        raise WrongAnswerError("not finite")
    judge = _codes if how.static else _floats
    scores, errors, powers, means, squares = [], 0.0, 0.0, 0.0, 0.0
    for begin in range(0, case.n, _ROWS):
        rows = slice(begin, min(begin + _ROWS, case.n))
        wide = dequantize(w, rows)
        exact, score = judge(case, x, wide, got[:, rows], how)
        scores.append(score)
        means += float(np.square(wide.mean(1)).sum())
        squares += float(np.square(wide).mean(1).sum())
        errors += float(np.square(got[:, rows] - exact).sum())
        powers += float(np.square(exact).sum())
    if not how.static:
        _looks_like_rounding(np.concatenate(scores, 1), case.k, means / squares)
    return (errors / powers) ** 0.5


def _codes(
    case: Case, x: F64Array, w: F64Array, got: NDArray[np.float32], how: Rounding
) -> tuple[F64Array, F64Array]:
    """Compare codes: each within half a step of the exact sum of codes.

    The sum becomes a float32, is multiplied by up to three steps, one by one or by
    their product, and may get a zero point: six roundings of at most 256 steps. Sums in
    float32 are off by rounding themselves: by six deviations, as in `_floats`.
    """
    step_in, step = map(float, steps(case))
    x = np.rint(x / step_in) * step_in
    exact = np.clip(x @ w.T / step, -128, 127)
    codes = np.rint(got / step)
    if np.abs(codes - got / step).max() > 1e-3:
        raise WrongAnswerError("results are no multiples of the output's step")
    off, allowed = np.abs(codes - exact), 0.5 + 256 * 6 * _UNIT
    if how.float_sums:
        terms = np.square(x) @ np.square(w).T
        allowed = allowed + 6 * _UNIT * np.sqrt((case.k + 10) * terms) / step
    if (off > allowed).any():
        raise WrongAnswerError(f"off by {off.max():.3f} steps")
    return exact * step, off


def _floats(
    case: Case, x: F64Array, w: F64Array, got: NDArray[np.float32], how: Rounding
) -> tuple[F64Array, F64Array]:
    """Compare with the largest possible error; also give errors over their deviation.

    A code is off by half a step. With a rounded zero point the ends of the range may
    lose another half. A float32 sum of K terms passes through at most K + 10 roundings;
    drawn at random their deviation stays below u * sqrt(K) of the terms' root of sum
    of squares even if added one after the other.
    """
    k, exact, size, power = case.k, x @ w.T, np.abs(w).T, np.square(w).T
    step = _step(x, how)
    worst = step * (1.0 if how.asymmetric else 0.5)
    sums = (k + 10) * _UNIT
    bound = worst @ size + (how.terms + sums) * ((np.abs(x) + worst) @ size)
    bound += how.result * (np.abs(exact) + bound)
    off = np.abs(got - exact)
    if (off > bound).any():
        share = np.max(off / bound)
        raise WrongAnswerError(f"off by {share:.2g} times the largest possible error")
    variance = np.square(step) / 12 @ power + np.square(how.result * exact) / 3
    variance += (how.terms**2 / 3 + k * _UNIT**2) * (np.square(x) @ power)
    return exact, off / np.sqrt(variance)


def _step(x: F64Array, how: Rounding) -> F64Array:
    """Step of each activation's codes."""
    if how.block == 0:
        return np.zeros_like(x)
    blocks = x.reshape(len(x), -1, how.block)
    if how.asymmetric:
        top, bottom = blocks.max(-1, initial=0.0), blocks.min(-1, initial=0.0)
        step = (top - bottom) / 255
    else:
        step = np.abs(blocks).max(-1) / 127
    return np.repeat(step, how.block, -1)


def _looks_like_rounding(scores: F64Array, k: int, shared: float) -> None:
    """Ask for errors no larger than uniform rounding makes them.

    The largest possible error grows with K, actual ones with its root: a mistake in a
    few terms hides below the bound and not here. All N outputs of a token see the same
    K rounding errors, so the root of their mean square has a variance of 0.2 / K from
    those, and of 0.5 / N as a mean. The errors' own sum weighs in by the mean of a row
    of weights and is a single draw; `shared` is its part of the variance. Six
    deviations of all of it are allowed.
    """
    n = scores.shape[1]
    share = float(np.sqrt(np.square(scores).mean(-1)).max())
    if share > (1 + 35 * shared) ** 0.5 + 6 * (0.2 / k + 0.5 / n) ** 0.5:
        raise WrongAnswerError(f"off by {share:.2f} times what rounding explains")
