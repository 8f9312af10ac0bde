# benchmarks/peer/torch.py
# SPDX-License-Identifier: Apache-2.0
"""torch: what a Python user has today. Dense layers, its int4 kernel, its int8 layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from peer.answer import Rounding
from peer.problem import BITS, BLOCK, Case, Weights, codes_in, codes_out, levels, steps
from peer.side import F32Array, How, Side

__all__ = ["Peer"]

_BF16 = 2.0**-8
_ZERO = 128  # unsigned activations: signed ones take a reference path

Product = Callable[[Any], Any]  # of a prepared weight


class Peer(Side):
    """See `Side`."""

    name = "torch"
    packages = ("torch",)

    @classmethod
    def how(cls, case: Case) -> How | None:
        """See `Side`."""
        if case.format == "q4_0":  # input, scale and product become bfloat16
            words = "bfloat16, dequantized on the fly"
            return How(words, Rounding(terms=3 * _BF16, result=_BF16))
        return {
            "w8": How("static int8", Rounding(static=True)),
            "bf16": How("bfloat16", Rounding(result=_BF16)),
            "f32": How("float32", Rounding()),
        }.get(case.format)

    def prepare(self, case: Case, weights: Sequence[Weights], x: F32Array) -> None:
        """See `Side`."""
        import torch

        torch.set_num_threads(case.threads)
        prepare = {"q4_0": self._int4, "w8": self._int8}.get(case.format, self._dense)
        self._product, self._weights = prepare(case, weights, torch.from_numpy(x))
        self._torch, self._case, self._out = torch, case, list(self._weights)

    def run(self) -> None:
        """See `Side`."""
        with self._torch.inference_mode():
            for i, w in enumerate(self._weights):
                self._out[i] = self._product(w)

    def output(self, copy: int) -> F32Array:
        """See `Side`."""
        result: F32Array = self._out[copy].float().numpy()
        static = self._case.format == "w8"
        return codes_out(self._case, result, _ZERO) if static else result

    @staticmethod
    def _dense(
        case: Case, weights: Sequence[Weights], x: Any
    ) -> tuple[Product, list[Any]]:
        import torch

        kind = torch.bfloat16 if case.format == "bf16" else torch.float32
        x = x.to(kind)
        ready = [torch.from_numpy(w.codes.copy()).view(kind) for w in weights]
        return lambda w: torch.nn.functional.linear(x, w), ready

    @staticmethod
    def _int4(
        case: Case, weights: Sequence[Weights], x: Any
    ) -> tuple[Product, list[Any]]:
        import torch

        x, pack = x.bfloat16(), torch.ops.aten._convert_weight_to_int4pack_for_cpu
        ready = []
        for w in weights:
            codes = levels(w.codes, BITS[case.format]).astype(np.int32) + 8
            packed = pack(torch.from_numpy(codes), 1)
            assert w.scales is not None
            scales = torch.from_numpy(w.scales.T.astype(np.float32))
            both = torch.stack([scales, torch.zeros_like(scales)], -1)
            ready.append((packed, both.bfloat16().contiguous()))
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        return lambda w: product(x, w[0], BLOCK, w[1]), ready

    @staticmethod
    def _int8(
        case: Case, weights: Sequence[Weights], x: Any
    ) -> tuple[Product, list[Any]]:
        import torch

        step_in, step_out = (float(step) for step in steps(case))
        ready = []
        for w in weights:
            levels = torch.from_numpy(w.codes.copy()).view(torch.int8)
            packed = torch.ops.onednn.qlinear_prepack(levels, list(x.shape))
            ready.append((packed, torch.from_numpy(w.scales)))
        codes = torch.from_numpy(codes_in(case, x.numpy()).view(np.uint8) ^ _ZERO)
        zeros = torch.zeros(case.n, dtype=torch.int32)
        product = torch.ops.onednn.qlinear_pointwise
        out = (None, step_out, _ZERO, torch.uint8, "none", [], "")
        return lambda w: product(codes, step_in, _ZERO, *w, zeros, *out), ready
