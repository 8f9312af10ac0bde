# python/halfbyte/transformers/__init__.py
# SPDX-License-Identifier: Apache-2.0
"""halfbyte inside of Hugging Face Transformers. Importing it registers it there."""

try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"halfbyte.transformers takes torch and transformers ({error}): "
        'run pip install "halfbyte[transformers]"'
    ) from error

from halfbyte.transformers import quantizer
from halfbyte.transformers.config import HalfbyteConfig
from halfbyte.transformers.gguf import from_gguf
from halfbyte.transformers.takeover import disable, enable

__all__ = ["HalfbyteConfig", "disable", "enable", "from_gguf"]

quantizer.register()
