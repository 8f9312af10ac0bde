# python/halfbyte/torch/__init__.py
# SPDX-License-Identifier: Apache-2.0
"""halfbyte in torch: operators of the namespace ``halfbyte``, and modules over them.

Takes the extra ``torch``. Everything computes on the CPU; weights are never copied on
the way in, and activations are read as they lie in float32, float16 or bfloat16.
"""

from halfbyte.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingExtraError(
        f'halfbyte.torch takes torch ({error}): run pip install "halfbyte[torch]"'
    ) from error

from halfbyte.torch.attention import attention, dequantize_kv, quantize_kv
from halfbyte.torch.modules import QuantEmbedding, QuantLinear
from halfbyte.torch.ops import dequantize, embedding_rows, linear, quantize
from halfbyte.torch.rowwise import gelu_mul, rms_norm, rope

__all__ = [
    "QuantEmbedding",
    "QuantLinear",
    "attention",
    "dequantize",
    "dequantize_kv",
    "embedding_rows",
    "gelu_mul",
    "linear",
    "quantize",
    "quantize_kv",
    "rms_norm",
    "rope",
]
