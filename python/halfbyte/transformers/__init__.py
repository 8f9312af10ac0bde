# python/halfbyte/transformers/__init__.py
# SPDX-License-Identifier: Apache-2.0
"""What halfbyte adds to Hugging Face Transformers. Importing it registers it there."""

from halfbyte.errors import MissingExtraError

try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise MissingExtraError(
        f"halfbyte.transformers needs torch and transformers ({error}): "
        'run pip install "halfbyte[transformers]"'
    ) from None

from halfbyte.transformers import attention, quantizer
from halfbyte.transformers.cache import CompressedCache
from halfbyte.transformers.config import HalfbyteConfig
from halfbyte.transformers.engine import EngineModel, engine
from halfbyte.transformers.gguf import from_gguf
from halfbyte.transformers.sessions import SessionCache
from halfbyte.transformers.takeover import disable, enable

__all__ = [
    "CompressedCache",
    "EngineModel",
    "HalfbyteConfig",
    "SessionCache",
    "attention",
    "disable",
    "enable",
    "engine",
    "from_gguf",
]

attention.register()
quantizer.register()
