# benchmarks/peer/onednn.py
# SPDX-License-Identifier: Apache-2.0
"""oneDNN's matmul through its C interface; weights in the layout it asks for.

The wheel is version 3.2 of 2023, the last that PyPI has with OpenMP alone; torch carries
a newer one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peer.answer import Rounding
from peer.problem import Case, Weights, codes_in, codes_out, steps
from peer.side import F32Array, How, Side

__all__ = ["Peer"]

# From the library's public headers.
_CPU, _IN_ORDER, _TAG_ANY, _QUERY_WEIGHTS = 1, 1, 1, 131
_BF16, _F32, _S32, _S8, _U8 = 2, 3, 4, 5, 6
_SRC, _DST, _WEIGHTS, _SCALES, _ZEROS = 1, 17, 33, 4096, 8192
_PER_COLUMN = 2  # mask of a scale along N
# Unsigned activations: with signed ones it corrects sums on x86, at half the speed.
_ZERO = np.uint8(128)


class _Argument(ctypes.Structure):
    _fields_ = (("index", ctypes.c_int), ("memory", ctypes.c_void_p))


class _Library:
    """The few calls that a product takes, each checked."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_path())
        self.engine = self._new("engine_create", _CPU, ctypes.c_size_t(0))
        self.stream = self._new("stream_create", self.engine, _IN_ORDER)
        self._kept: list[Any] = []  # what memories borrow
        self._memories: list[Any] = []

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; a status other than success raises."""
        status = getattr(self._library, f"dnnl_{name}")(*arguments)
        if status != 0:
            raise RuntimeError(f"dnnl_{name}: status {status}")

    def _new(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self.call(name, ctypes.byref(made), *arguments)
        return made

    def layout(
        self, shape: Sequence[int], kind: int, *, tag: int = 0, t: bool = False
    ) -> Any:
        """Describe a row-major tensor, its transpose, or one of any layout."""
        sizes = (ctypes.c_int64 * 12)(*shape)
        if tag:
            return self._new(
                "memory_desc_create_with_tag", len(shape), sizes, kind, tag
            )
        step = [1, shape[0]] if t else [shape[-1], 1][-len(shape) :]
        strides = (ctypes.c_int64 * 12)(*step)
        return self._new(
            "memory_desc_create_with_strides", len(shape), sizes, kind, strides
        )

    def memory(self, layout: Any, values: NDArray[Any] | None = None) -> Any:
        """Memory of an array, which has to outlive it, or of the library's own."""
        where = ctypes.c_void_p(-1 if values is None else values.ctypes.data)
        self._kept.append(values)
        self._memories.append(self._new("memory_create", layout, self.engine, where))
        return self._memories[-1]

    def attributes(self, scales: Mapping[int, int], zeros: Sequence[int] = ()) -> Any:
        """Attributes with a scale, by argument and mask, and zero points."""
        made = self._new("primitive_attr_create")
        for argument, mask in scales.items():
            self.call("primitive_attr_set_scales_mask", made, argument, mask)
        for argument in zeros:
            self.call("primitive_attr_set_zero_points_mask", made, argument, 0)
        return made

    def matmul(self, source: Any, weight: Any, result: Any, attributes: Any) -> Any:
        """Describe ``result = source @ weight``."""
        return self._new(
            "matmul_primitive_desc_create",
            *(self.engine, source, weight, None, result, attributes),
        )

    def reorder(self, source: Any, result: Any, attributes: Any = None) -> Any:
        """Make a conversion of layout or type."""
        described = self._new(
            "reorder_primitive_desc_create",
            *(source, self.engine, result, self.engine, attributes),
        )
        return self.primitive(described)

    def primitive(self, described: Any) -> Any:
        """Make what was described."""
        return self._new("primitive_create", described)

    def weights_of(self, described: Any) -> Any:
        """Layout of the weights that a product wants."""
        query = self._library.dnnl_primitive_desc_query_md
        query.restype = ctypes.c_void_p
        return ctypes.c_void_p(query(described, _QUERY_WEIGHTS, 0))

    def free(self) -> None:
        """Give back all memories. Descriptions are small and stay."""
        for memory in self._memories:
            self.call("memory_destroy", memory)
        self._memories.clear()

    def run(self, primitive: Any, arguments: Any) -> None:
        """Start it; the stream of a CPU has ended it on return."""
        self.call(
            "primitive_execute", primitive, self.stream, len(arguments), arguments
        )


def _path() -> str:
    files = metadata.files("onednn-cpu-gomp") or []
    found = next(file for file in files if file.name == "libdnnl.so.3")
    return str(found.locate())


def _arguments(memories: Mapping[int, Any]) -> Any:
    return (_Argument * len(memories))(
        *(_Argument(index, memory.value) for index, memory in memories.items())
    )


class Peer(Side):
    """See `Side`."""

    name = "onednn"
    packages = ("onednn-cpu-gomp",)

    @classmethod
    def how(cls, case: Case) -> How | None:
        """See `Side`."""
        return {
            "w8": How("static int8", Rounding(static=True)),
            "bf16": How("bfloat16, result in float32", Rounding()),
            "f32": How("float32", Rounding()),
        }.get(case.format)

    def prepare(self, case: Case, weights: Sequence[Weights], x: F32Array) -> None:
        """See `Side`; threads are OpenMP's, which were set before."""
        self._library, self._case = _Library(), case
        self._x: NDArray[Any] = x
        kind: Any = np.float32
        if case.format == "w8":
            self._x, kind = codes_in(case, x).view(np.uint8) ^ _ZERO, np.uint8
        elif case.format == "bf16":  # it fits: see `activations`
            self._x = (x.view(np.uint32) >> 16).astype(np.uint16)
        make = self._static if case.format == "w8" else self._dense
        self._out = [np.empty((case.tokens, case.n), kind) for _ in weights]
        self._calls = [make(w, out) for w, out in zip(weights, self._out, strict=True)]

    def run(self) -> None:
        """See `Side`."""
        for primitive, arguments in self._calls:
            self._library.run(primitive, arguments)
        self._library.call("stream_wait", self._library.stream)

    def output(self, copy: int) -> F32Array:
        """See `Side`."""
        static, result = self._case.format == "w8", self._out[copy]
        return codes_out(self._case, result, _ZERO) if static else result

    def close(self) -> None:
        """See `Side`."""
        self._library.free()

    def _packed(self, values: NDArray[Any], kind: int, described: Any) -> Any:
        """Weights in the layout that a product wants, once for all its calls."""
        dnn, shape = self._library, (self._case.k, self._case.n)
        given, wanted = dnn.layout(shape, kind, t=True), dnn.weights_of(described)
        memory = dnn.memory(wanted)
        arguments = _arguments({_SRC: dnn.memory(given, values), _DST: memory})
        dnn.run(dnn.reorder(given, wanted), arguments)
        return memory

    def _dense(self, w: Weights, out: F32Array) -> tuple[Any, Any]:
        dnn, case = self._library, self._case
        kind = _BF16 if case.format == "bf16" else _F32
        source = dnn.layout((case.tokens, case.k), kind)
        result = dnn.layout((case.tokens, case.n), _F32)
        weight = dnn.layout((case.k, case.n), kind, tag=_TAG_ANY)
        described = dnn.matmul(source, weight, result, None)
        arguments = _arguments(
            {
                _SRC: dnn.memory(source, self._x),
                _WEIGHTS: self._packed(w.codes, kind, described),
                _DST: dnn.memory(result, out),
            }
        )
        return dnn.primitive(described), arguments

    def _static(self, w: Weights, out: F32Array) -> tuple[Any, Any]:
        dnn, case = self._library, self._case
        codes = dnn.layout((case.tokens, case.k), _U8)
        sums = dnn.layout((case.tokens, case.n), _U8)
        step_in, step_out = (
            dnn.memory(dnn.layout((1,), _F32), np.array([step])) for step in steps(case)
        )
        zero = dnn.memory(dnn.layout((1,), _S32), np.array([_ZERO], np.int32))
        scales = dnn.memory(dnn.layout((case.n,), _F32), w.scales)
        weight = dnn.layout((case.k, case.n), _S8, tag=_TAG_ANY)
        scaled = {_SRC: 0, _WEIGHTS: _PER_COLUMN, _DST: 0}
        attributes = dnn.attributes(scaled, (_SRC, _DST))
        described = dnn.matmul(codes, weight, sums, attributes)
        arguments = {
            _SRC: dnn.memory(codes, self._x),
            _WEIGHTS: self._packed(w.codes, _S8, described),
            _DST: dnn.memory(sums, out),
            _SCALES | _SRC: step_in,
            _SCALES | _WEIGHTS: scales,
            _SCALES | _DST: step_out,
            _ZEROS | _SRC: zero,
            _ZEROS | _DST: zero,
        }
        return dnn.primitive(described), _arguments(arguments)
