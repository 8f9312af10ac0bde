# benchmarks/peer/litert.py
# SPDX-License-Identifier: Apache-2.0
"""LiteRT with XNNPACK, on a model that is built here: FULLY_CONNECTED for each matrix.

Per channel it is given int8 and gives int8, as in a mobile Gemma; with blocks of 32, and
in float32, it takes floats. The weights lie behind the flatbuffer, where `Buffer.offset`
finds them: packing them as its vectors would copy them several times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peer.answer import Rounding
from peer.problem import BLOCK, STATIC, Case, Weights, codes_in, codes_out, steps
from peer.side import F32Array, How, Side

__all__ = ["Peer"]

_ALIGN = 64
_FAR = 1 << 40  # an offset that takes as many bytes in the file as the true ones
# What operator versions brought the type of the weights.
_VERSIONS = {"f32": 1, "w8": 5, "w4": 10, "q4_0": 13, "w2": 14}
_TWOS_COMPLEMENT = {"q4_0": 0x88, "w4": 0x88, "w2": 0xAA, "w8": 0, "f32": 0}


class _Model:
    """A .tflite file in the making."""

    def __init__(self, case: Case) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema, self._case = schema, case
        self._blobs: list[NDArray[Any]] = []
        self._model, self._graph = schema.ModelT(), schema.SubGraphT()
        self._model.version, self._model.subgraphs = 3, [self._graph]
        self._model.buffers = [schema.BufferT()]  # number 0 is the empty one
        code = schema.OperatorCodeT()
        code.builtinCode = schema.BuiltinOperator.FULLY_CONNECTED
        code.deprecatedBuiltinCode = code.builtinCode
        code.version = _VERSIONS[case.format]
        self._model.operatorCodes = [code]
        self._graph.tensors, self._graph.operators = [], []
        step_in, self._step_out = steps(case)
        self._input = self._activations(case.k, step_in)
        self._graph.inputs, self._graph.outputs = [self._input], []

    def append(self, w: Weights) -> None:
        """Add the product with one matrix."""
        kinds = self._schema.BuiltinOptions
        operator = self._schema.OperatorT()
        operator.inputs = [self._input, self._weight(w), -1]
        operator.outputs = [self._activations(self._case.n, self._step_out)]
        operator.builtinOptionsType = kinds.FullyConnectedOptions
        operator.builtinOptions = self._schema.FullyConnectedOptionsT()
        operator.builtinOptions.keepNumDims = True
        self._graph.operators.append(operator)
        self._graph.outputs += operator.outputs

    def bytes(self) -> bytes:
        """Give the file."""
        size = len(self._pack())
        at = size
        for buffer, blob in zip(self._model.buffers[1:], self._blobs, strict=True):
            buffer.offset = at = -(-at // _ALIGN) * _ALIGN
            at += blob.nbytes
        content = bytearray(at)
        content[:size] = self._pack()
        for buffer, blob in zip(self._model.buffers[1:], self._blobs, strict=True):
            content[buffer.offset : buffer.offset + blob.nbytes] = blob.data.cast("B")
        return bytes(content)

    def _pack(self) -> bytes:
        import flatbuffers

        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _blob(self, blob: NDArray[Any]) -> int:
        buffer = self._schema.BufferT()
        buffer.offset, buffer.size = _FAR, blob.nbytes
        self._blobs.append(blob)
        self._model.buffers.append(buffer)
        return len(self._blobs)

    def _tensor(
        self,
        shape: tuple[int, int],
        kind: int,
        quantization: Any = None,
        buffer: int = 0,
    ) -> int:
        tensor = self._schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), kind, buffer
        tensor.name = f"t{len(self._graph.tensors)}".encode()
        tensor.quantization = quantization
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _activations(self, width: int, step: np.float32) -> int:
        shape, kinds = (self._case.tokens, width), self._schema.TensorType
        if self._case.format in STATIC:
            return self._tensor(shape, kinds.INT8, self._steps(np.array([step])))
        return self._tensor(shape, kinds.FLOAT32)

    def _steps(self, scale: NDArray[np.float32]) -> Any:
        quantization = self._schema.QuantizationParametersT()
        quantization.scale = scale
        quantization.zeroPoint = np.zeros(len(scale), np.int64)
        return quantization

    def _blocks(self, scales: NDArray[np.float16]) -> Any:
        kind = self._schema.TensorType.FLOAT16
        blocks = self._schema.BlockwiseQuantizationT()
        blocks.scales = self._tensor(scales.shape, kind, buffer=self._blob(scales))
        blocks.zeroPoints, blocks.blockSize = -1, BLOCK
        quantization = self._schema.QuantizationParametersT()
        quantization.details = blocks
        kinds = self._schema.QuantizationDetails
        quantization.detailsType = kinds.BlockwiseQuantization
        return quantization

    def _weight(self, w: Weights) -> int:
        kinds = self._schema.TensorType
        kind = {
            "f32": kinds.FLOAT32,
            "w8": kinds.INT8,
            "w4": kinds.INT4,
            "q4_0": kinds.INT4,
            "w2": kinds.INT2,
        }[w.format]
        buffer = self._blob(w.codes ^ np.uint8(_TWOS_COMPLEMENT[w.format]))
        if w.scales is None:
            return self._tensor(w.shape, kind, buffer=buffer)
        make = self._blocks if w.format == "q4_0" else self._steps
        return self._tensor(w.shape, kind, make(w.scales), buffer)


class Peer(Side):
    """See `Side`."""

    name = "litert"
    packages = ("ai-edge-litert",)

    @classmethod
    def how(cls, case: Case) -> How | None:
        """See `Side`; blocks of 32 were found by comparing with each candidate."""
        if case.format in STATIC:
            return How("static int8", Rounding(static=True))
        if case.format == "q4_0":
            words = "asymmetric int8 per token, scales in bfloat16"
            rounding = Rounding(block=case.k, asymmetric=True, terms=2.0**-8)
            return How(words, rounding)
        return How("float32", Rounding()) if case.format == "f32" else None

    def prepare(self, case: Case, weights: Sequence[Weights], x: F32Array) -> None:
        """See `Side`."""
        from ai_edge_litert.interpreter import Interpreter

        model = _Model(case)
        for w in weights:
            model.append(w)
        self._interpreter = Interpreter(
            model_content=model.bytes(), num_threads=case.threads
        )
        self._interpreter.allocate_tensors()
        details = self._interpreter.get_output_details()
        self._outputs = [entry["index"] for entry in details]
        inputs, self._case = self._interpreter.get_input_details(), case
        given = codes_in(case, x) if case.format in STATIC else x
        self._interpreter.set_tensor(inputs[0]["index"], given)

    def run(self) -> None:
        """See `Side`."""
        self._interpreter.invoke()

    def output(self, copy: int) -> F32Array:
        """See `Side`."""
        result: F32Array = self._interpreter.get_tensor(self._outputs[copy])
        static = self._case.format in STATIC
        return codes_out(self._case, result) if static else result
