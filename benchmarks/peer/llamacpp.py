# benchmarks/peer/llamacpp.py
# SPDX-License-Identifier: Apache-2.0
"""llama.cpp: ggml's mul_mat, in the libraries that llama-cpp-python brings.

One graph with a product for each matrix. Weights go into the CPU's own layouts where it
has one for their type ("repacking"), as llama.cpp puts them when it loads a model.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from importlib import metadata
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from peer.answer import Rounding
from peer.ours import pack_q4_0
from peer.problem import BLOCK, Case, Weights
from peer.side import F32Array, How, Side

__all__ = ["Peer"]

_TYPES = {"f32": 0, "q4_0": 2, "bf16": 30}
_WEIGHTS = 1  # usage of a buffer
# Generous: a description takes 368 bytes, a node of a graph a few pointers and a hash.
_DESCRIPTION, _GRAPH = 512, 256
# Not "AMX": its kernels crash where a host names AMX without granting it. generate.py
# tries them.
_EXTRA = b"CPU_REPACK"


class _Context(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("memory", ctypes.c_void_p),
        ("descriptions_only", ctypes.c_bool),
    )


class _Library:
    """ggml's functions; nearly all give a pointer."""

    def __init__(self) -> None:
        files = metadata.files("llama-cpp-python") or []
        found = {file.name: str(file.locate()) for file in files}
        names = ("libggml-base.so", "libggml-cpu.so", "libggml.so")
        flag = ctypes.RTLD_GLOBAL
        self._libraries = [ctypes.CDLL(found[name], flag) for name in names]

    def __getattr__(self, name: str) -> Any:
        for library in self._libraries:
            if hasattr(library, f"ggml_{name}"):
                function = getattr(library, f"ggml_{name}")
                function.restype = ctypes.c_void_p
                return lambda *arguments: function(*map(_wide, arguments))
        raise AttributeError(f"ggml_{name}")


def _wide(value: Any) -> Any:
    """Pointers and sizes are 64 bits; ctypes would pass an int as 32."""
    return ctypes.c_void_p(value) if isinstance(value, int) else value


class Peer(Side):
    """See `Side`."""

    name = "llama.cpp"
    packages = ("llama-cpp-python",)
    _how: ClassVar[dict[str, How]] = {
        # The steps of activations are stored as float16.
        "q4_0": How("symmetric int8 per 32", Rounding(block=BLOCK, terms=2.0**-11)),
        "bf16": How("bfloat16, result in float32", Rounding()),
        "f32": How("float32", Rounding()),
    }

    @classmethod
    def how(cls, case: Case) -> How | None:
        """See `Side`."""
        return cls._how.get(case.format)

    def prepare(self, case: Case, weights: Sequence[Weights], x: F32Array) -> None:
        """See `Side`."""
        self._ggml = ggml = _Library()
        self._shape = (case.tokens, case.n)
        plain = ggml.backend_cpu_buffer_type()
        matrices, rest = self._context(len(weights)), self._context(2 * len(weights))
        sizes = (case.k, case.n)
        codes = [self._tensor(matrices, case.format, sizes) for _ in weights]
        given = self._tensor(rest, "f32", (case.k, case.tokens))
        self._products = [ggml.mul_mat(rest, matrix, given) for matrix in codes]
        wanted = self._repacking() if case.format == "q4_0" else plain
        allocate = ggml.backend_alloc_ctx_tensors_from_buft
        self._contexts = (matrices, rest)
        self._buffers = (allocate(matrices, wanted), allocate(rest, plain))
        if None in self._buffers:
            raise MemoryError("ggml could not allocate")
        ggml.backend_buffer_set_usage(self._buffers[0], _WEIGHTS)
        for w, matrix in zip(weights, codes, strict=True):
            self._fill(matrix, pack_q4_0(w).data if w.format == "q4_0" else w.codes)
        self._fill(given, x)
        self._graph = ggml.new_graph_custom(rest, 2 * len(weights), 0)
        for product in self._products:
            ggml.build_forward_expand(self._graph, product)
        self._backend = ggml.backend_cpu_init()
        ggml.backend_cpu_set_n_threads(self._backend, case.threads)

    def run(self) -> None:
        """See `Side`."""
        self._ggml.backend_graph_compute(self._backend, self._graph)

    def output(self, copy: int) -> F32Array:
        """See `Side`."""
        out = np.empty(self._shape, np.float32)
        where = ctypes.c_void_p(out.ctypes.data)
        self._ggml.backend_tensor_get(self._products[copy], where, 0, out.nbytes)
        return out

    def close(self) -> None:
        """See `Side`."""
        self._ggml.backend_free(self._backend)
        for buffer in self._buffers:
            self._ggml.backend_buffer_free(buffer)
        for context in self._contexts:
            self._ggml.free(context)

    def _context(self, tensors: int) -> int:
        """Room for descriptions of tensors; their contents come later."""
        size = (tensors + 1) * _DESCRIPTION + _GRAPH * (tensors + 1)
        made: int = self._ggml.init(_Context(size, None, True))
        return made

    def _tensor(self, context: int, kind: str, sizes: tuple[int, int]) -> int:
        made: int = self._ggml.new_tensor_2d(context, _TYPES[kind], *sizes)
        return made

    def _fill(self, tensor: int, values: NDArray[Any]) -> None:
        content = np.ascontiguousarray(values)
        where = ctypes.c_void_p(content.ctypes.data)
        self._ggml.backend_tensor_set(tensor, where, 0, content.nbytes)

    def _repacking(self) -> int:
        """Find the buffer type that repacks; a build may lack it."""
        registry = self._ggml.backend_cpu_reg()
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self._ggml.backend_reg_get_proc_address(registry, name)
        kind = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
        found = kind(address)(self._ggml.backend_reg_dev_get(registry, 0))
        for i in itertools.count():
            if found[i] is None:
                break
            title = ctypes.string_at(self._ggml.backend_buft_name(found[i]))
            if title == _EXTRA:
                return int(found[i])
        raise RuntimeError("this build of llama.cpp does not repack")
