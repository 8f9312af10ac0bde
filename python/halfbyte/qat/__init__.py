# python/halfbyte/qat/__init__.py
# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training of Gemma 3 and Gemma 4 models of Transformers.

`prepare` swaps a model's matrices for ones that compute with the numbers of a packed
format and pass gradients, `distill` trains them towards the model as it was, and
`export` writes what halfbyte and Transformers load. `ptq` stops before the training.

Takes the extra ``transformers``, and computes wherever torch does: nothing here needs
the C++ core.
"""

from halfbyte.errors import MissingExtraError

try:
    import safetensors  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise MissingExtraError(
        f"halfbyte.qat needs torch, transformers and safetensors ({error}): "
        'run pip install "halfbyte[transformers]"'
    ) from None

from halfbyte.qat.calibrate import calibrate
from halfbyte.qat.distill import DivergenceError, distill
from halfbyte.qat.evaluate import compare
from halfbyte.qat.export import export
from halfbyte.qat.modules import FakeQuantEmbedding, FakeQuantExperts, FakeQuantLinear
from halfbyte.qat.prepare import Preparation, prepare, ptq
from halfbyte.qat.schemes import Grid, Scheme, mobile, q4_0

__all__ = [
    "DivergenceError",
    "FakeQuantEmbedding",
    "FakeQuantExperts",
    "FakeQuantLinear",
    "Grid",
    "Preparation",
    "Scheme",
    "calibrate",
    "compare",
    "distill",
    "export",
    "mobile",
    "prepare",
    "ptq",
    "q4_0",
]
