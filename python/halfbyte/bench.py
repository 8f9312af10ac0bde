# python/halfbyte/bench.py
# SPDX-License-Identifier: Apache-2.0
"""How fast models and kernels run, and how near that is to what the machine can do.

A roof is measured in this process, beside every repetition: machines change their speed
from second to second, and what slows one slows the other. A wrong answer is not timed.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import halfbyte
from halfbyte import doctor, reference, roof, targets
from halfbyte._arrays import F32Array
from halfbyte.formats import format_info
from halfbyte.model import Model
from halfbyte.records import ModelConfig

__all__ = [
    "MATRICES",
    "TOKENS",
    "KernelSpeed",
    "ModelSpeed",
    "Roofs",
    "WrongAnswerError",
    "kernel_arena",
    "kernel_speeds",
    "load_average",
    "machine",
    "model_speeds",
    "prompt_macs",
]

# Read by the roof, and by kernels in rotation: far above the last cache.
ROOF_BYTES = 512 << 20

# N x K of layers of Gemma 4.
MATRICES = {
    "e2b-up": (12288, 1536),
    "e2b-down": (1536, 12288),
    "31b-up": (21504, 5376),
    "31b-down": (5376, 21504),
}
TOKENS = (1, 4, 32, 512)

_FLOATS = frozenset({"f32", "f16", "bf16"})
_WARM_UP_STEPS = 4
_KERNEL_SECONDS = 0.05


class WrongAnswerError(halfbyte.Error, ArithmeticError):
    """A kernel differs from `halfbyte.reference` by more than rounding."""


# ---- roofs


class Roofs:
    """The roofs of this machine, measured when asked, and what was found.

    Parameters
    ----------
    data : uint8 array
        What the read bandwidth is measured on.
    """

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data = data
        self._found: dict[int, dict[str, list[float]]] = {}

    def read(self, threads: int) -> float:
        """Measure the read bandwidth in bytes per second."""
        return self._keep(
            "read_gb_per_s", threads, roof.read_bandwidth(self.data, threads=threads)
        )

    def macs(self, threads: int, *, floats: bool) -> float:
        """Measure multiply-adds per second: of bytes, or of float32."""
        if floats:
            return self._keep("fma_gmac_per_s", threads, roof.fma_peak(threads=threads))
        return self._keep("dot_gmac_per_s", threads, roof.dot_peak(threads=threads))

    def _keep(self, name: str, threads: int, giga: float) -> float:
        self._found.setdefault(threads, {}).setdefault(name, []).append(giga)
        return giga * 1e9

    def found(self) -> list[dict[str, float]]:
        """Medians of what was measured, by the number of threads."""
        return [
            {"threads": threads}
            | {name: statistics.median(samples) for name, samples in named.items()}
            for threads, named in sorted(self._found.items())
        ]


def machine(roofs: Roofs, load: float) -> dict[str, Any]:
    """Describe where a measurement was made.

    Parameters
    ----------
    roofs : Roofs
    load : float
        Load average when it began: what the machine did besides.

    Returns
    -------
    dict
        JSON-compatible.
    """
    facts = doctor.facts()
    return {
        "cpu": facts["cpu"]["model"],
        "cpus": facts["cpu"]["affinity"] or facts["cpu"]["logical"],
        "target": targets.cpu_target(),
        "memory_bytes": facts["memory"]["total"],
        "platform": facts["python"]["platform"],
        "halfbyte": halfbyte.__version__,
        "load_average": load,
        "roofs": roofs.found(),
    }


def load_average() -> float:
    """Return the load of the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


# ---- models


@dataclass
class ModelSpeed:
    """One test of a model: a prompt (pp) or tokens one by one (tg), repeated."""

    test: str
    threads: int
    samples: list[float] = field(default_factory=list)  # tokens per second
    roofs: list[float] = field(default_factory=list)  # what the machine allowed
    peak_rss_bytes: int = 0  # of the process, less what the roof is measured on

    @property
    def tokens_per_second(self) -> float:
        """Mean of the repetitions."""
        return statistics.fmean(self.samples)

    @property
    def sd(self) -> float:
        """Their standard deviation; 0 of a single one."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0

    @property
    def roof_fraction(self) -> float:
        """Median of the shares of the roof, each with the roof measured beside it."""
        return _median_ratio(self.samples, self.roofs)

    def to_dict(self) -> dict[str, Any]:
        """Return what `halfbyte bench --json` prints of it."""
        names = (
            "test",
            "threads",
            "tokens_per_second",
            "sd",
            "roof_fraction",
            "peak_rss_bytes",
        )
        return {name: getattr(self, name) for name in names}


def prompt_macs(config: ModelConfig, tokens: int) -> int:
    """Count the multiply-adds of a prompt's matrices.

    Only the last token gets logits, and layers that share another one's keys and values
    run for it alone. Attention is not counted: it is no product with weights.

    Parameters
    ----------
    config : ModelConfig
    tokens : int
        Of the prompt, at least one.

    Returns
    -------
    int
    """
    hidden, layers = config.hidden_size, config.layers
    owns = [layer.kv_source == i for i, layer in enumerate(layers)]
    first_shared = owns.index(False) if False in owns else len(layers)
    macs = [_layer_macs(config, i) for i in range(len(layers))]
    every = sum(macs[:first_shared])
    every += len(layers) * config.per_layer_embedding * hidden
    last = sum(macs[first_shared:]) + config.vocab_size * hidden
    return tokens * every + last


def _layer_macs(config: ModelConfig, index: int) -> int:
    layer = config.layers[index]
    columns = 2 * config.num_heads * layer.head_dim  # queries and output
    if layer.kv_source == index:
        kv = 1 if layer.value_is_key else 2
        columns += kv * layer.num_kv_heads * layer.head_dim
    columns += 3 * layer.ffn_len + 2 * config.per_layer_embedding
    columns += config.num_experts + 3 * config.num_experts_used * config.expert_ffn_len
    return config.hidden_size * columns


def _computes_in_float(model: Model) -> bool:
    report = model.report()
    types = {name.lower() for name in report.types}
    return report.activations == "f32" or types <= _FLOATS


def model_speeds(
    model: Model,
    roofs: Roofs,
    *,
    prompts: Sequence[int] = (512,),
    answers: Sequence[int] = (128,),
    threads: Sequence[int] = (1,),
    repetitions: int = 5,
) -> Iterator[ModelSpeed]:
    """Measure a model as llama-bench does.

    ``pp`` runs a prompt of random tokens and asks for the logits after the last one;
    ``tg`` runs tokens one by one from an empty session, with logits after each.

    Parameters
    ----------
    model : Model
        With a context for the longest of them.
    roofs : Roofs
        Its data has to be in memory before the model is: it is taken off the peak.
    prompts, answers : sequences of int
        Tokens of each ``pp`` and ``tg`` test; 0 is none.
    threads : sequence of int
        Every test runs with each number of threads.
    repetitions : int
        Of each test, after a warm-up.

    Yields
    ------
    ModelSpeed
        After each repetition: the same object until the test is done.
    """
    tests = [("pp", n) for n in prompts if n] + [("tg", n) for n in answers if n]
    runner = _Runner(model, roofs)
    for count in threads:
        for kind, tokens in tests:
            speed = ModelSpeed(f"{kind}{tokens}", count)
            runner.warm_up(kind, tokens, count)
            for _ in range(repetitions):
                allowed = runner.roof(kind, tokens, count)
                seconds = runner.seconds(kind, tokens, count)
                speed.roofs.append(allowed)  # not before both are there: Ctrl-C
                speed.samples.append(tokens / seconds)
                speed.peak_rss_bytes = max(0, targets.peak_rss() - roofs.data.nbytes)
                yield speed


class _Runner:
    """Runs the tests of one model."""

    def __init__(self, model: Model, roofs: Roofs) -> None:
        self._model, self._roofs = model, roofs
        self._session = model.session()
        self._floats = _computes_in_float(model)
        self._bytes = model.report().bytes_per_token

    def _ids(self, count: int) -> NDArray[np.int64]:
        rng = np.random.Generator(np.random.PCG64(1))
        return rng.integers(0, self._model.config.vocab_size, count)

    def roof(self, kind: str, tokens: int, threads: int) -> float:
        """Measure how many tokens per second the machine allows now."""
        if kind == "tg":
            return self._roofs.read(threads) / self._bytes
        macs = prompt_macs(self._model.config, tokens) / tokens
        return self._roofs.macs(threads, floats=self._floats) / macs

    def warm_up(self, kind: str, tokens: int, threads: int) -> None:
        """Bring pages, caches and threads to where they will be."""
        steps = tokens if kind == "pp" else min(tokens, _WARM_UP_STEPS)
        self.seconds(kind, steps, threads)

    def seconds(self, kind: str, tokens: int, threads: int) -> float:
        ids = self._ids(tokens)
        self._session.reset()
        with targets.threads(threads):
            start = time.perf_counter()
            if kind == "pp":
                self._session.logits(ids, last=True)
            else:
                for i in range(tokens):
                    self._session.logits(ids[i : i + 1], last=True)
            return time.perf_counter() - start


# ---- kernels


@dataclass
class KernelSpeed:
    """Products in one format, with one matrix, number of tokens and of threads.

    `halfbyte.linear` without its call from Python, which takes microseconds.
    """

    format: str
    matrix: str
    tokens: int
    threads: int
    target: str
    seconds: list[float] = field(default_factory=list)  # a call, by rounds
    read_seconds: list[float] = field(default_factory=list)  # of its weights alone
    math_seconds: list[float] = field(default_factory=list)  # of its products alone

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return MATRICES[self.matrix]

    @property
    def gb_per_s(self) -> float:
        """Packed weights over the median time."""
        return _bytes_of(self.format, *self.shape) / self._middle / 1e9

    @property
    def gmac_per_s(self) -> float:
        """Products over the median time."""
        n, k = self.shape
        return self.tokens * n * k / self._middle / 1e9

    @property
    def _middle(self) -> float:
        return statistics.median(self.seconds)

    @property
    def bound(self) -> str:
        """What limits it here: ``"read"``, ``"dot"`` or, of float weights, ``"fma"``."""
        read, math_ = map(statistics.median, (self.read_seconds, self.math_seconds))
        if read >= math_:
            return "read"
        return "fma" if self.format in _FLOATS else "dot"

    @property
    def roof_fraction(self) -> float:
        """Median of the shares of that limit, each with the one measured beside it."""
        roofs = self.read_seconds if self.bound == "read" else self.math_seconds
        return _median_ratio(roofs, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return what `halfbyte bench --kernels --json` prints of it."""
        n, k = self.shape
        return {
            "format": self.format,
            "matrix": self.matrix,
            "n": n,
            "k": k,
            "tokens": self.tokens,
            "threads": self.threads,
            "target": self.target,
            "seconds": self._middle,
            "gb_per_s": self.gb_per_s,
            "gmac_per_s": self.gmac_per_s,
            "bound": self.bound,
            "roof_fraction": self.roof_fraction,
        }


def _median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _bytes_of(fmt: str, n: int, k: int) -> int:
    info = format_info(fmt)
    return n * k // info.block_len * info.block_bytes


def _copies(fmt: str, matrix: str) -> int:
    """How many copies of a matrix fill what is rotated through."""
    return -(-ROOF_BYTES // _bytes_of(fmt, *MATRICES[matrix]))


def kernel_arena(formats: Sequence[str], matrices: Sequence[str]) -> NDArray[np.uint8]:
    """Allocate the memory that the weights of `kernel_speeds` rotate through.

    Parameters
    ----------
    formats, matrices : sequences of str
        What will be measured.

    Returns
    -------
    uint8 array
        `ROOF_BYTES`, rounded up to whole copies of the matrix that needs most.
    """
    sizes = (
        _copies(fmt, matrix) * _bytes_of(fmt, *MATRICES[matrix])
        for fmt in formats
        for matrix in matrices
    )
    return roof.buffer(max(sizes))


def kernel_speeds(
    roofs: Roofs,
    *,
    formats: Sequence[str],
    matrices: Sequence[str] = tuple(MATRICES),
    tokens: Sequence[int] = TOKENS,
    threads: Sequence[int] = (1,),
    repetitions: int = 5,
) -> Iterator[KernelSpeed]:
    """Measure `halfbyte.linear`, after comparing its answer with the reference.

    Neighbouring calls read different copies of the matrix, so that weights come from
    memory, where those of a model are.

    Parameters
    ----------
    roofs : Roofs
        Its data is a `kernel_arena`; it is overwritten.
    formats : sequence of str
    matrices : sequence of str
        Of `MATRICES`.
    tokens, threads : sequences of int
    repetitions : int
        Rounds: the roofs, then calls for a while.

    Yields
    ------
    KernelSpeed
        Each when it is complete.

    Raises
    ------
    WrongAnswerError
        Before a wrong kernel is timed.
    """
    for matrix in matrices:
        k = MATRICES[matrix][1]
        x = np.random.default_rng(2).standard_normal((max(tokens), k), np.float32)
        for fmt in formats:
            stack = _stack(fmt, matrix, roofs.data)
            for count in threads:
                for t in tokens:
                    speed = KernelSpeed(fmt, matrix, t, count, targets.cpu_target())
                    _check(speed, stack, x[:t])
                    for _ in range(repetitions):
                        _kernel_round(speed, roofs, stack, x[:t])
                    yield speed


def _stack(fmt: str, matrix: str, arena: NDArray[np.uint8]) -> halfbyte.Weight:
    """Fill the arena with copies of a matrix, repacked into one memory as a model is."""
    n, k = MATRICES[matrix]
    copies, rows = _copies(fmt, matrix), math.gcd(n, 192)
    used = arena[: copies * _bytes_of(fmt, n, k)]
    used.reshape(copies * n // rows, -1)[:] = _rows(fmt, rows, k)
    return halfbyte.Weight(used, fmt, (copies * n, k)).repack()


def _rows(fmt: str, n: int, k: int) -> NDArray[np.uint8]:
    """Rows of ordinary weights, or of random blocks if the format is only read."""
    info, rng = format_info(fmt), np.random.default_rng(1)
    if info.writable:
        return halfbyte.quantize(rng.standard_normal((n, k), np.float32), fmt).data
    raw = rng.integers(0, 256, _bytes_of(fmt, n, k), np.uint8)
    return raw & np.uint8(0xBB)  # whichever bytes are a scale, it is finite and below 1


def _check(speed: KernelSpeed, stack: halfbyte.Weight, x: F32Array) -> None:
    """Compare the product that will be timed with the reference, in some outputs.

    A sum of K terms is rounded K times by at most u = 2**-24, up and down alike: about
    u sqrt(K) in all. Eight times that leaves room for minima, which cancel, and none
    for a mistake in a single one of the outputs.
    """
    n, k = speed.shape
    rows = np.unique([*range(16), *range(n // 2, n // 2 + 16), *range(n - 16, n)])
    tokens = np.unique(np.linspace(0, len(x) - 1, 8).astype(int))
    blocks = stack.data.reshape(stack.shape[0], -1)[rows]
    some = halfbyte.Weight(blocks, speed.format, (len(rows), k))
    want = reference.linear(x[tokens], some).astype(np.float64)
    out = np.empty((len(x), n), np.float32)
    stack._core.linear_each(x, out, 0, 1, speed.threads)
    got = out[np.ix_(tokens, rows)]
    off = np.linalg.norm(got - want) / np.linalg.norm(want)
    if not off <= 8 * 2.0**-24 * k**0.5:
        raise WrongAnswerError(
            f"{speed.format}, {n} x {k}, {len(x)} tokens: off by {off:.1e}, not timed"
        )


def _kernel_round(
    speed: KernelSpeed, roofs: Roofs, stack: halfbyte.Weight, x: F32Array
) -> None:
    """Add one round: both roofs, then products for a while."""
    n, k = speed.shape
    read = roofs.read(speed.threads)
    macs = roofs.macs(speed.threads, floats=speed.format in _FLOATS)
    speed.read_seconds.append(_bytes_of(speed.format, n, k) / read)
    speed.math_seconds.append(len(x) * n * k / macs)
    speed.seconds.append(_seconds_a_product(speed, stack, x))


def _seconds_a_product(
    speed: KernelSpeed, stack: halfbyte.Weight, x: F32Array
) -> float:
    n = speed.shape[0]
    out, copies = np.empty((len(x), n), np.float32), stack.shape[0] // n
    products, seconds, count = 0, 0.0, 1
    while seconds < _KERNEL_SECONDS:
        begin = products % copies
        count = min(2 * count, copies - begin)  # soon a call is worth many products
        start = time.perf_counter()
        stack._core.linear_each(x, out, begin, count, speed.threads)
        seconds += time.perf_counter() - start
        products += count
    return seconds / products
