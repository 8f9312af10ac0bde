# benchmarks/peer/openvino.py
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: compressed weights that it recognises, 8-bit activations as it likes.

A matrix is a constant of codes, converted, shifted and scaled before a MatMul; OpenVINO
fuses that. The matrices are different constants, as equal ones would be merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peer.answer import Rounding
from peer.problem import BITS, BLOCK, STATIC, Case, Weights
from peer.side import F32Array, How, Side

__all__ = ["Peer"]


def _group(case: Case) -> int:
    """Activations that share a step.

    Per channel a whole row may: 185 against 125 GMAC/s with 32 to a step at 32 tokens of
    four bits on one Zen 4 core, and no slower at one token.
    """
    return BLOCK if case.format == "q4_0" else case.k


class Peer(Side):
    """See `Side`."""

    name = "openvino"
    packages = ("openvino",)

    @classmethod
    def how(cls, case: Case) -> How | None:
        """See `Side`."""
        if case.format == "f32":
            return How("float32", Rounding())
        if case.format == "bf16":
            return How("bfloat16, result in float32", Rounding())
        group = _group(case)
        where = "token" if group == case.k else str(group)
        return How(f"symmetric int8 per {where}", Rounding(block=group))

    def prepare(self, case: Case, weights: Sequence[Weights], x: F32Array) -> None:
        """See `Side`."""
        import openvino
        from openvino import opset13 as op

        self._kept: list[NDArray[Any]] = []  # constants borrow these
        given = op.parameter(list(x.shape), np.float32)
        results = [
            op.result(op.matmul(given, self._weight(w), False, True)) for w in weights
        ]
        config = {
            "INFERENCE_NUM_THREADS": case.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "bf16" if case.format == "bf16" else "f32",
        }
        if case.format in (*STATIC, "q4_0"):
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _group(case)
        model = openvino.Model(results, [given], "products")
        self._request = (
            openvino.Core().compile_model(model, "CPU", config).create_infer_request()
        )
        self._x = x
        self._request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def run(self) -> None:
        """See `Side`."""
        self._request.infer()

    def output(self, copy: int) -> F32Array:
        """See `Side`."""
        result: F32Array = self._request.get_output_tensor(copy).data
        return result

    def _constant(self, values: NDArray[Any], shape: Sequence[int], kind: Any) -> Any:
        import openvino
        from openvino import opset13 as op

        self._kept.append(values)
        return op.constant(openvino.Tensor(values, openvino.Shape(shape), kind))

    def _weight(self, w: Weights) -> Any:
        from openvino import Type
        from openvino import opset13 as op

        if w.format == "f32":
            return self._constant(w.codes.view(np.float32), w.shape, Type.f32)
        if w.format == "bf16":
            constant = self._constant(w.codes.view(np.uint16), w.shape, Type.bf16)
            return op.convert(constant, np.float32)
        assert w.scales is not None
        bits, (n, k) = BITS[w.format], w.shape
        kind = {8: Type.u8, 4: Type.u4, 2: Type.u2}[bits]
        grouped = w.format == "q4_0"
        shape = [n, k // BLOCK, BLOCK] if grouped else [n, k]
        codes = w.codes ^ np.uint8(0x80) if bits == 8 else w.codes
        zero = self._constant(np.array([1 << (bits - 1)], np.uint8), [1], kind)
        # Scales of rows are float32 here; OpenVINO's own models have float16.
        real = w.scales.dtype
        scale = op.constant(w.scales.reshape(*shape[:-1], 1))
        shifted = op.subtract(
            op.convert(self._constant(codes, shape, kind), real), op.convert(zero, real)
        )
        scaled = op.multiply(shifted, scale)
        if grouped:
            scaled = op.reshape(scaled, np.array([n, k]), False)
        return scaled if real == np.float32 else op.convert(scaled, np.float32)
