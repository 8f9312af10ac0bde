# examples/gemv.py
# SPDX-License-Identifier: Apache-2.0
"""Multiply by a packed matrix, and see what the packing and the rounding cost.

python examples/gemv.py
"""

import halfbyte
import numpy as np

rng = np.random.default_rng(0)
dense = rng.standard_normal((4096, 2048), np.float32)
x = rng.standard_normal(2048, np.float32)
want = dense.astype(np.float64) @ x


def error(y: np.ndarray) -> float:
    """Root mean square of the error over that of the answer."""
    return float(np.sqrt(np.mean((y - want) ** 2) / np.mean(want**2)))


print(f"{halfbyte.cpu_target()}, {halfbyte.num_threads()} threads")
for name in ("f32", "bf16", "q8_0", "q6_k", "q4_0"):
    w = halfbyte.quantize(dense, name)
    packed = halfbyte.linear(x, w)  # on the packed bits, activations rounded to 8 bits
    exact = halfbyte.linear(x, w, activations="f32")
    print(
        f"{name:5} {w.bits_per_weight:5.2f} bits  error {error(packed):.2e}, "
        f"with float activations {error(exact):.2e}"
    )
