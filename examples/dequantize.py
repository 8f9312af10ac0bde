# examples/dequantize.py
# SPDX-License-Identifier: Apache-2.0
"""What the bytes of a Q4_0 matrix mean, decoded by hand in NumPy.

python examples/dequantize.py
"""

import halfbyte
import numpy as np

rng = np.random.default_rng(0)
original = rng.standard_normal((256, 1024), np.float32)
w = halfbyte.quantize(original, "q4_0")

# A block: a float16 step d, then 16 bytes; their low halves are the codes of weights 0
# to 15, the high halves those of 16 to 31. A weight is d * (code - 8).
blocks = w.data.reshape(-1, 18)
d = blocks[:, :2].copy().view("<f2").astype(np.float32)
codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
by_hand = (d * (codes.astype(np.float32) - 8)).reshape(w.shape)

assert np.array_equal(by_hand, halfbyte.dequantize(w))  # bit for bit
error = np.sqrt(np.mean((by_hand - original) ** 2) / np.mean(original**2))
print(
    f"{w}: {w.bits_per_weight} bits a weight, {original.nbytes / w.nbytes:.1f} x smaller"
)
print(f"equal bit for bit; relative error of the format {error:.1%}")
