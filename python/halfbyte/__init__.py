# python/halfbyte/__init__.py
# SPDX-License-Identifier: Apache-2.0
"""Gemma 4's quantized checkpoints on any CPU, computed on the packed bits."""

import typing as _typing
from importlib import import_module as _import_module

import halfbyte_command as _command

if _command.is_asked_for():
    _command.end_on_interrupt()

from halfbyte import errors, lattice, reference
from halfbyte._onednn import use_onednn
from halfbyte.conversation import Conversation
from halfbyte.errors import (
    ArgumentError,
    ContextOverflowError,
    DTypeError,
    Error,
    FileChangedError,
    FormatError,
    LimitError,
    MissingExtraError,
    ModelError,
    NumericalError,
    OutOfMemoryError,
    ShapeError,
    TruncatedFileError,
    UnsupportedError,
)
from halfbyte.files import (
    File,
    StreamDecoder,
    TensorInfo,
    Tokenizer,
    open_gguf,
    open_safetensors,
)
from halfbyte.formats import FormatInfo, Weight, dequantize, formats, quantize
from halfbyte.kv import KvCodes, dequantize_kv, quantize_kv
from halfbyte.model import Model, Session, load
from halfbyte.ops import (
    attention,
    embedding_rows,
    gelu_mul,
    linear,
    linear_codes,
    rms_norm,
    rope,
    softmax,
)
from halfbyte.records import Piece, Reply, Report, Stats
from halfbyte.streams import Stream
from halfbyte.targets import (
    __version__,
    cpu_target,
    cpu_targets,
    num_threads,
    set_num_threads,
    threads,
    use_target,
)

if _typing.TYPE_CHECKING:
    from halfbyte import imatrix, lineage
    from halfbyte.conversion import convert
    from halfbyte.torch.accelerate import accelerate as accelerate
    from halfbyte.torch.accelerate import restore as restore
    from halfbyte.verification import Verification, verify

__all__ = [
    "ArgumentError",
    "ContextOverflowError",
    "Conversation",
    "DTypeError",
    "Error",
    "File",
    "FileChangedError",
    "FormatError",
    "FormatInfo",
    "KvCodes",
    "LimitError",
    "MissingExtraError",
    "Model",
    "ModelError",
    "NumericalError",
    "OutOfMemoryError",
    "Piece",
    "Reply",
    "Report",
    "Session",
    "ShapeError",
    "Stats",
    "Stream",
    "StreamDecoder",
    "TensorInfo",
    "Tokenizer",
    "TruncatedFileError",
    "UnsupportedError",
    "Verification",
    "Weight",
    "__version__",
    "attention",
    "convert",
    "cpu_target",
    "cpu_targets",
    "dequantize",
    "dequantize_kv",
    "embedding_rows",
    "errors",
    "formats",
    "gelu_mul",
    "imatrix",
    "lattice",
    "lineage",
    "linear",
    "linear_codes",
    "load",
    "num_threads",
    "open_gguf",
    "open_safetensors",
    "quantize",
    "quantize_kv",
    "reference",
    "rms_norm",
    "rope",
    "set_num_threads",
    "softmax",
    "threads",
    "use_onednn",
    "use_target",
    "verify",
]

# What takes an extra, or is seldom used, is imported when it is asked for. The former
# is not in __all__: a star import must not need it.
_LAZY = {
    "imatrix": "halfbyte.imatrix",
    "lineage": "halfbyte.lineage",
    "convert": "halfbyte.conversion",
    "accelerate": "halfbyte.torch.accelerate",
    "restore": "halfbyte.torch.accelerate",
    "Verification": "halfbyte.verification",
    "verify": "halfbyte.verification",
}


def __getattr__(name: str) -> _typing.Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'halfbyte' has no attribute {name!r}")
    module = _import_module(_LAZY[name])
    return module if _LAZY[name] == f"halfbyte.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
