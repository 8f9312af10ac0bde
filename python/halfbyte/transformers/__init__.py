# python/halfbyte/transformers/__init__.py
# SPDX-License-Identifier: Apache-2.0
"""halfbyte inside of Hugging Face Transformers."""

from importlib.util import find_spec

if not (find_spec("transformers") and find_spec("torch")):
    raise ImportError(
        "halfbyte.transformers: transformers or torch is not installed - "
        'pip install "halfbyte[transformers]"'
    )

from halfbyte.transformers.engine import EngineModel, engine
from halfbyte.transformers.sessions import SessionCache

__all__ = ["EngineModel", "SessionCache", "engine"]
