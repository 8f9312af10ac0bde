# benchmarks/peer/transformers.py
# SPDX-License-Identifier: Apache-2.0
"""transformers: the layer that runs mobile checkpoints there, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from peer.answer import Rounding
from peer.problem import BITS, STATIC, Case, Weights, steps
from peer.side import F32Array, How, Side

__all__ = ["Peer"]


class Peer(Side):
    """See `Side`."""

    name = "transformers"
    packages = ("transformers", "torch")

    @classmethod
    def how(cls, case: Case) -> How | None:
        """See `Side`."""
        if case.format not in STATIC:
            return None
        words = "static int8 in float32, unpacked in each call; one matrix"
        return How(words, Rounding(static=True, float_sums=True), streams=False)

    def prepare(self, case: Case, weights: Sequence[Weights], x: F32Array) -> None:
        """See `Side`."""
        import torch

        torch.set_num_threads(case.threads)
        self._torch, self._x = torch, torch.from_numpy(x)
        self._layers = [_layer(case, w) for w in weights]
        self._out: list[Any] = [None for _ in weights]

    def run(self) -> None:
        """See `Side`."""
        with self._torch.inference_mode():
            for i, layer in enumerate(self._layers):
                self._out[i] = layer(self._x)

    def output(self, copy: int) -> F32Array:
        """See `Side`."""
        result: F32Array = self._out[copy].numpy()
        return result


def _layer(case: Case, w: Weights) -> Any:
    """Give a layer the bytes as they are: its layout is the neutral one."""
    import torch
    from transformers.integrations.gemma_quant import QuantizedLinear

    layer = QuantizedLinear(case.k, case.n, num_bits=BITS[case.format])
    step_in, step_out = steps(case)
    kind = np.int8 if case.format == "w8" else np.uint8
    assert w.scales is not None
    values = {
        "weight": w.codes.view(kind),
        "weight_scale": w.scales.reshape(-1, 1),
        "input_activation_scale": np.array(step_in),
        "output_activation_scale": np.array(step_out),
    }
    layer.requires_grad_(False)
    layer.load_state_dict({name: torch.tensor(v) for name, v in values.items()})
    return layer
