# benchmarks/peer/onnxruntime.py
# SPDX-License-Identifier: Apache-2.0
"""onnxruntime: MatMulNBits with 8-bit activations, QLinearMatMul, MatMul.

One node for each matrix in one model. The weights are handed over as external
initializers, so that no protobuf of half a gigabyte is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peer.answer import Rounding
from peer.problem import BITS, BLOCK, Case, Weights, codes_in, codes_out, steps
from peer.side import F32Array, How, Side

__all__ = ["Peer"]

_INT8_ACTIVATIONS = 4  # accuracy_level
# x86 multiplies unsigned by signed codes: with signed activations QLinearMatMul falls
# back to scalar code, 15 to 60 times slower. Zero at 128 makes the same sums.
_ZERO = np.uint8(128)


class _Model:
    """An ONNX graph in the making."""

    def __init__(self, case: Case) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self._case, self._helper, self._types = case, helper, TensorProto
        self._nodes: list[Any] = []
        self._outputs: list[Any] = []
        self._small: list[Any] = []
        self.large: dict[str, NDArray[Any]] = {}
        self._kind = TensorProto.UINT8 if case.format == "w8" else TensorProto.FLOAT
        if case.format != "w8":  # unused constants make onnxruntime warn
            return
        step_in, step_out = steps(case)
        for name, value in (
            ("step_in", step_in),
            ("step_out", step_out),
            ("zero", _ZERO),
            ("zeros", np.zeros(case.n, np.int8)),
        ):
            self._small.append(numpy_helper.from_array(np.asarray(value), name))

    def append(self, w: Weights) -> None:
        """Add the product with one matrix."""
        i, result = len(self._outputs), f"y{len(self._outputs)}"
        if w.format == "f32":
            weight = self._external(f"w{i}", _transposed(w.codes.view(np.float32)))
            self._node("MatMul", ["x", weight], result)
        elif w.format == "w8":
            self._static(i, w, result)
        else:
            self._blocks(i, w, result)
        shape = [self._case.tokens, self._case.n]
        make = self._helper.make_tensor_value_info
        self._outputs.append(make(result, self._kind, shape))

    def bytes(self) -> bytes:
        """Give the file, without the large tensors."""
        make, helper = self._helper.make_opsetid, self._helper
        shape = [self._case.tokens, self._case.k]
        x = helper.make_tensor_value_info("x", self._kind, shape)
        graph = helper.make_graph(self._nodes, "g", [x], self._outputs, self._small)
        opsets = [make("", 21), make("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        content: bytes = model.SerializeToString()
        return content

    def _node(
        self, kind: str, inputs: list[str], output: str, **attributes: Any
    ) -> None:
        self._nodes.append(self._helper.make_node(kind, inputs, [output], **attributes))

    def _static(self, i: int, w: Weights, result: str) -> None:
        weight = self._external(f"w{i}", _transposed(w.codes.view(np.int8)))
        scale = self._external(f"s{i}", w.scales)
        left, right = ["x", "step_in", "zero"], [weight, scale, "zeros"]
        self._node("QLinearMatMul", [*left, *right, "step_out", "zero"], result)

    def _blocks(self, i: int, w: Weights, result: str) -> None:
        n, k = w.shape
        block, bits = _block(self._case), BITS[w.format]
        assert w.scales is not None
        scales = w.scales.astype(np.float32).reshape(n, -1)
        scales = np.repeat(scales, k // block // scales.shape[1], 1).reshape(-1)
        codes = w.codes.reshape(n, k // block, block * bits // 8)
        inputs = ["x", self._external(f"w{i}", codes), self._external(f"s{i}", scales)]
        self._node(
            "MatMulNBits",
            inputs,
            result,
            domain="com.microsoft",
            K=k,
            N=n,
            bits=bits,
            block_size=block,
            accuracy_level=_INT8_ACTIVATIONS,
        )

    def _external(self, name: str, value: NDArray[Any] | None) -> str:
        assert value is not None
        tensor = self._types()
        tensor.name = name
        tensor.data_type = self._helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor.dims.extend(value.shape)
        tensor.data_location = self._types.EXTERNAL
        facts = {"location": "memory", "offset": 0, "length": value.nbytes}
        for key, fact in facts.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(fact)
        self._small.append(tensor)
        self.large[name] = value
        return name


def _transposed(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values.T)


def _block(case: Case) -> int:
    """Weights that share a step: a power of two.

    MatMulNBits has no scale per channel, so the row's is repeated. On one Zen 4 core the
    fastest block was 256 at four bits (110 against 95 GMAC/s with 128, at 32 tokens) and
    128 at two, where 256 is 15 times slower.
    """
    if case.format == "q4_0":
        return BLOCK
    return 256 if case.format == "w4" and case.k % 256 == 0 else 128


class Peer(Side):
    """See `Side`."""

    name = "onnxruntime"
    packages = ("onnxruntime", "onnx")

    @classmethod
    def how(cls, case: Case) -> How | None:
        """See `Side`."""
        if case.format == "bf16":
            return None  # no such kernel on CPUs
        if case.format == "f32":
            return How("float32", Rounding())
        if case.format == "w8":
            return How("static int8", Rounding(static=True))
        block = _block(case)
        return How(f"symmetric int8 per {block}", Rounding(block=block))

    def prepare(self, case: Case, weights: Sequence[Weights], x: F32Array) -> None:
        """See `Side`."""
        import onnxruntime

        model = _Model(case)
        for w in weights:
            model.append(w)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        to_value = onnxruntime.OrtValue.ortvalue_from_numpy
        values = [to_value(value) for value in model.large.values()]
        options.add_external_initializers(list(model.large), values)
        self._session = onnxruntime.InferenceSession(
            model.bytes(), options, providers=["CPUExecutionProvider"]
        )
        self._binding, self._case = self._session.io_binding(), case
        self._x: NDArray[Any] = x
        if case.format == "w8":
            self._x = codes_in(case, x).view(np.uint8) ^ _ZERO
        self._binding.bind_cpu_input("x", self._x)
        make, kind = onnxruntime.OrtValue.ortvalue_from_shape_and_type, self._x.dtype
        self._out = [make([case.tokens, case.n], kind) for _ in weights]
        for i, value in enumerate(self._out):
            self._binding.bind_ortvalue_output(f"y{i}", value)

    def run(self) -> None:
        """See `Side`."""
        self._session.run_with_iobinding(self._binding)

    def output(self, copy: int) -> F32Array:
        """See `Side`."""
        result: F32Array = self._out[copy].numpy()
        static = self._case.format == "w8"
        return codes_out(self._case, result, _ZERO) if static else result
