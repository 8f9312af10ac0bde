# benchmarks/peer/problem.py
# SPDX-License-Identifier: Apache-2.0
"""What every peer is given: the same matrix product, drawn from the same seeds.

A problem is made anew in each process instead of being sent there, so weights of one
copy are the same for all, and different for each copy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BITS",
    "BLOCK",
    "MOBILE",
    "SHAPES",
    "STATIC",
    "Case",
    "Weights",
    "activations",
    "checked_tokens",
    "codes_in",
    "codes_out",
    "copies",
    "dequantize",
    "levels",
    "nbytes",
    "steps",
    "weights",
]

F32Array = NDArray[np.float32]

# K x N of matrices in released models: inputs, then outputs.
SHAPES = {
    "e2b-up": (1536, 12288),
    "e2b-down": (12288, 1536),
    "e2b-up-narrow": (1536, 6144),  # layers 0 to 14
    "e2b-down-narrow": (6144, 1536),
    "e2b-q": (1536, 2048),
    "e2b-q-full": (1536, 4096),
    "e2b-kv": (1536, 256),  # and what gates the per-layer embedding
    "e2b-kv-full": (1536, 512),
    "e2b-o": (2048, 1536),
    "e2b-o-full": (4096, 1536),
    "e2b-ple": (256, 1536),
    "e2b-head": (1536, 262144),
    "31b-up": (5376, 21504),
    "270m-up": (640, 2048),
}
# How E2B's mobile release packs them, and how many of each a token goes through. Layers
# 0 to 14 of 35 have keys and values of their own, and every fifth is a full one.
MOBILE = {
    ("w2", "e2b-up"): 40,
    ("w2", "e2b-down"): 20,
    ("w4", "e2b-up-narrow"): 30,
    ("w4", "e2b-down-narrow"): 15,
    ("w4", "e2b-q"): 28,
    ("w4", "e2b-q-full"): 7,
    ("w4", "e2b-o"): 28,
    ("w4", "e2b-o-full"): 7,
    ("w4", "e2b-kv"): 24,
    ("w4", "e2b-kv-full"): 6,
    ("w8", "e2b-kv"): 35,
    ("w8", "e2b-ple"): 35,
}
BITS = {"q4_0": 4, "w8": 8, "w4": 4, "w2": 2, "bf16": 16, "f32": 32}
STATIC = ("w8", "w4", "w2")  # a step per output channel, static steps in and out
BLOCK = 32  # weights that share a step in q4_0

# Up to here weights come from memory and not from a cache, so distinct copies are used
# in turn. A prompt reads each weight once for all its tokens and is bound by arithmetic.
MOST_STREAMED = 32
MOST_CHECKED = 16  # tokens of a result that are compared with the reference

_STEP_IN = np.float32(0.03)
_SPREAD = 30.0  # standard deviation of the activations' codes


class Case(NamedTuple):
    """One row of the table: a format, a shape, a number of tokens and of threads."""

    format: str
    shape: str
    tokens: int
    threads: int

    @property
    def k(self) -> int:
        """Inputs."""
        return SHAPES[self.shape][0]

    @property
    def n(self) -> int:
        """Outputs."""
        return SHAPES[self.shape][1]

    @property
    def macs(self) -> int:
        """Multiply-adds of one product."""
        return self.tokens * self.k * self.n


class Weights(NamedTuple):
    """A matrix, in a neutral layout that each peer turns into its own.

    Attributes
    ----------
    format : str
    shape : (int, int)
        N and K.
    codes : uint8 array, shape (N, K * bits / 8)
        Neighbours along K, low bits first: two and four bits offset-binary, eight bits
        two's complement, ``bf16`` and ``f32`` as they are.
    scales : array or None
        ``q4_0``: float16, shape (N, K / 32). Per channel: float32, shape (N,).
    """

    format: str
    shape: tuple[int, int]
    codes: NDArray[np.uint8]
    scales: NDArray[Any] | None


def nbytes(case: Case) -> int:
    """Bytes of one matrix as its format defines them, scales of blocks included."""
    blocks = 2 * case.k * case.n // BLOCK if case.format == "q4_0" else 0
    return case.k * case.n * BITS[case.format] // 8 + blocks


def copies(case: Case, mib: int) -> int:
    """How many distinct matrices are used in turn, so that `mib` MiB are read."""
    if case.tokens > MOST_STREAMED:
        return 1
    return max(1, -(-(mib << 20) // nbytes(case)))


def weights(case: Case, copy: int) -> Weights:
    """Draw one of the matrices: uniform codes, steps within a factor of two.

    Dense weights have magnitudes of 1/8 to 1/2.
    """
    rng = np.random.Generator(np.random.SFC64([copy, BITS[case.format]]))
    k, n, fmt = case.k, case.n, case.format
    raw = np.frombuffer(rng.bytes(n * k * BITS[fmt] // 8), np.uint8).reshape(n, -1)
    if fmt == "f32":
        raw = (raw.view(np.uint32) & 0x80FFFFFF | 0x3E000000).view(np.uint8)
    elif fmt == "bf16":
        raw = (raw.view(np.uint16) & 0x80FF | 0x3E00).view(np.uint8)
    elif fmt == "w8":  # released files do not use -128
        raw = np.maximum(raw.view(np.int8), np.int8(-127)).view(np.uint8)
    scales: NDArray[Any] | None = None
    if fmt == "q4_0":
        scales = rng.uniform(0.01, 0.02, (n, k // BLOCK)).astype(np.float16)
    elif fmt in STATIC:
        scales = rng.uniform(0.01, 0.02, n).astype(np.float32)
    return Weights(fmt, (n, k), raw, scales)


def steps(case: Case) -> tuple[np.float32, np.float32]:
    """Static steps of the input and the output; 127 output codes are three deviations.

    Input codes are normal, levels uniform, steps of 0.015 in the mean.
    """
    spread = 2 ** BITS[case.format] / 12**0.5
    deviation = float(_STEP_IN) * _SPREAD * spread * 0.015 * case.k**0.5
    return _STEP_IN, np.float32(3 * deviation / 127)


def activations(case: Case) -> F32Array:
    """Draw the input, shape (T, K).

    With static steps it keeps a tenth of a step away from ties, so that everybody finds
    the same codes; for ``bf16`` it fits into bfloat16.
    """
    rng = np.random.default_rng(case.tokens)
    x = rng.standard_normal((case.tokens, case.k), np.float32)
    if case.format in STATIC:
        exact = np.clip(_SPREAD * x, -128, 127)
        codes = np.rint(exact)
        return (codes + np.float32(0.8) * (exact - codes)).astype(np.float32) * _STEP_IN
    if case.format == "bf16":
        return (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return x


def codes_in(case: Case, x: F32Array) -> NDArray[np.int8]:
    """Give the input's static codes."""
    return np.rint(x / steps(case)[0]).astype(np.int8)


def codes_out(case: Case, codes: NDArray[Any], zero: int = 0) -> F32Array:
    """Give what static codes of a result mean."""
    return (codes.astype(np.float32) - np.float32(zero)) * steps(case)[1]


def checked_tokens(tokens: int) -> NDArray[np.intp]:
    """Which rows of a result are compared: the first, the last, some between."""
    count = min(tokens, MOST_CHECKED)
    return np.unique(np.linspace(0, tokens - 1, count).round().astype(np.intp))


def levels(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Unpack two, four or eight bits a weight into signed levels."""
    if bits == 8:
        return codes.view(np.int8)
    mask, zero = (1 << bits) - 1, 1 << (bits - 1)
    parts = [(codes >> shift) & mask for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(len(codes), -1).view(np.int8) - np.int8(zero)


def dequantize(w: Weights, rows: slice) -> NDArray[np.float64]:
    """Give what some rows of the weights mean, in float64."""
    codes = w.codes[rows]
    if w.format == "f32":
        return codes.view(np.float32).astype(np.float64)
    if w.format == "bf16":
        wide = codes.view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64)
    exact = levels(codes, BITS[w.format]).astype(np.float64)
    assert w.scales is not None
    scales = w.scales[rows].astype(np.float64).reshape(len(codes), -1, 1)
    return (exact.reshape(len(codes), scales.shape[1], -1) * scales).reshape(
        exact.shape
    )
