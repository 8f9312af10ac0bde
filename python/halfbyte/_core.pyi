# python/halfbyte/_core.pyi
# Types of the compiled module, csrc/bindings. Checked against it by test_stubs.py.
# SPDX-License-Identifier: Apache-2.0
"""The compiled core of halfbyte. Use the functions of `halfbyte` instead."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

_F32: TypeAlias = NDArray[np.float32]
_I64: TypeAlias = NDArray[np.int64]
_U8: TypeAlias = NDArray[np.uint8]

__version__: str

# ---- the machine

def cpu_target() -> str:
    """Name of the instruction set in use."""

def cpu_dot() -> str:
    """How the target in use multiplies bytes: VNNI, MADD, SDOT and so on."""

def cpu_targets() -> list[str]:
    """Instruction sets of this build and this CPU, best first."""

def set_cpu_target(name: str) -> None:
    """Use one of `cpu_targets` from now on."""

def default_threads() -> tuple[int, str]:
    """Threads that make sense here, and why."""

def cpu_quota(root: str | bytes) -> float | None:
    """CPUs' worth of time that the control groups under `root` allow."""

def memory_limit(root: str | bytes) -> int | None:
    """Bytes that the control groups under `root` allow."""

def peak_rss() -> int:
    """Peak resident set of this process in bytes; 0 if unknown."""

def memory_holds(bytes: int) -> bool:
    """Whether free memory holds so many bytes with a fifth to spare, or is unknown."""

# ---- what the machine can do at best

def huge_buffer(bytes: int, threads: int) -> _U8:
    """Memory in huge pages, every page of it written."""

def read_bandwidth(data: _U8, streams: int, threads: int) -> float:
    """GB/s of reading `data` once, with one, two or four streams a thread."""

def dot_peak(threads: int) -> float:
    """GMAC/s of dot products of bytes on registers."""

def fma_peak(threads: int) -> float:
    """GMAC/s of fused multiply-adds of float32 on registers."""

# ---- operations on rows: float32 matrices whose rows are contiguous

def attention(
    q: _F32,
    k: _F32 | NDArray[np.int8],
    v: _F32 | NDArray[np.int8],
    k_steps: _F32 | None,
    v_steps: _F32 | None,
    rotated: bool,
    mask: NDArray[np.bool_] | None,
    scale: float,
    causal: bool,
    window: int,
    out: _F32,
    threads: int,
) -> None:
    """Write the attention of `q` to `k` and `v` to `out`; a window of 0 is none."""

def encode_i8(
    x: _F32,
    rotate: bool,
    step: float,
    codes: NDArray[np.int8],
    steps: _F32,
    threads: int,
) -> None:
    """Write keys or values in 8 bits; a step of 0 is a row's own."""

def decode_i8(
    codes: NDArray[np.int8], steps: _F32, rotated: bool, out: _F32, threads: int
) -> None:
    """Write what such codes stand for."""

def formats() -> list[tuple[str, int, int, int, bool, bool, bool]]:
    """The fields of `halfbyte.FormatInfo`, of each format."""

def quantize(
    x: _F32, format: str, quantizer: str, importance: _F32 | None, threads: int
) -> tuple[_U8, _F32]:
    """Pack the rows of `x`; the second item has their scales, if the format does."""

def recover_lattice(
    bits: NDArray[np.uint16], format: str, threads: int
) -> tuple[_U8, _F32, _U8]:
    """Blocks of bf16 bits, scales of rows, and what each group is."""

def repair_lattice(blocks: _U8, k: int, threads: int) -> tuple[_U8, _U8]:
    """Q4_0 blocks of rows of k weights, repaired, and what was done with each."""

@final
class Weight:
    """A packed n x k matrix, checked, and the arrays that it lies in."""

    def __init__(
        self,
        data: _U8,
        format: str,
        n: int,
        k: int,
        scales: _F32 | None,
        panels: _U8 | None,
        x_step: float,
        y_step: float,
    ) -> None: ...
    @property
    def packed_bytes(self) -> int:
        """Size of `panels`."""

    def panels(self, threads: int) -> _U8:
        """Copy into kernel order; empty where products read the data as it is."""

    def linear(
        self,
        x: _F32,
        bias: _F32 | None,
        out: _F32,
        activations: str,
        threads: int,
    ) -> None:
        """Write ``x @ w.T + bias`` to `out`."""

    def linear_at_once(self, x: object, out: object, threads: int) -> _F32 | None:
        """Return ``x @ w.T`` in `out` or a new array; None if they are not ordinary."""

    def linear_at(
        self,
        x: int,
        type: str,
        rows: int,
        x_ld: int,
        bias: int,
        out: int,
        activations: str,
        threads: int,
    ) -> None:
        """Do so with addresses of rows of `type`: f32, f16 or bf16. Nothing is checked."""

    def linear_codes_at_once(
        self, x: object, x_step: float, y_step: float, out: object, threads: int
    ) -> NDArray[np.int8] | None:
        """Return what `linear_codes` writes; None if `x` or `out` is not ordinary."""

    def linear_codes(
        self,
        x: NDArray[np.int8],
        x_step: float,
        y_step: float,
        out: NDArray[np.int8],
        threads: int,
    ) -> None:
        """Write the codes of ``x_step * x @ w.T / y_step`` to `out`."""

    def linear_each(
        self, x: _F32, out: _F32, begin: int, count: int, threads: int
    ) -> None:
        """Write products with some of the matrices that are stacked here to `out`.

        Each has as many rows as `out` has columns; a full `out` is used from the top.
        """

    def linear_codes_each(
        self,
        x: NDArray[np.int8],
        x_step: float,
        y_step: float,
        out: NDArray[np.int8],
        begin: int,
        count: int,
        threads: int,
    ) -> None:
        """Write the codes of such products to `out`."""

    def rows(self, ids: _I64, out: _F32, threads: int) -> None:
        """Write the rows `ids` to `out`."""

def open_onednn(path: str | bytes) -> None:
    """Open the library at `path`, or of that name."""

def use_onednn(on: bool) -> None:
    """Whether products go to the opened library from now on."""

def onednn() -> tuple[str, str, bool] | None:
    """Version, path, and whether it is used, of the library if one is open."""

def rms_norm(x: _F32, weight: _F32 | None, eps: float, out: _F32, threads: int) -> None:
    """Write the normalised rows to `out`, which may be `x`."""

def rope(
    x: _F32,
    heads: int,
    positions: _I64,
    pairs: int,
    base: float,
    factor: float,
    out: _F32,
    threads: int,
) -> None:
    """Turn the first `pairs` pairs of each head; `out` may be `x`."""

def softmax(x: _F32, out: _F32, threads: int) -> None:
    """Write the softmax of each row to `out`, which may be `x`."""

def gelu_mul(gate: _F32, up: _F32, out: _F32, threads: int) -> None:
    """Write ``gelu(gate) * up`` to `out`, which may be either."""

def from_dlpack(capsule: object) -> tuple[NDArray[Any], bool]:
    """Array over the capsule's memory, and whether it holds bfloat16 bits."""

# ---- files

@final
class File:
    """An opened file, or all shards of one."""

    @property
    def tensors(
        self,
    ) -> list[tuple[str, str, tuple[int, ...], int, int, int, str | None]]:
        """Name, type, shape, bytes, offset, shard and format of each tensor."""

    @property
    def metadata(self) -> dict[str, Any]:
        """Keys and values, in file order."""

    @property
    def rendered_metadata(self) -> list[tuple[str, str, str]]:
        """Key, type and value as one line."""

    @property
    def warnings(self) -> list[str]:
        """What is odd, but harmless."""

    @property
    def paths(self) -> list[str]:
        """The files."""

    @property
    def file_bytes(self) -> int:
        """Size of all files together."""

    def tensor_bytes(self, index: int) -> _U8:
        """Bytes of a tensor, read-only, where the file maps them."""

    def read(self, index: int, begin: int, out: _U8, once: bool) -> None:
        """Fill `out` with bytes of a tensor by reading the file."""

def open_gguf(path: str | bytes, load: str, limits: dict[str, int]) -> File:
    """Open a GGUF file."""

def open_safetensors(path: str | bytes, load: str, limits: dict[str, int]) -> File:
    """Open a safetensors file, an index or a directory."""

def whole_of(path: str | bytes) -> str:
    """The index beside a safetensors file that names it as a shard, or the file."""

@final
class Tokenizer:
    """A vocabulary. Ids are -1 where there is no such token."""

    @staticmethod
    def from_gguf(path: str | bytes) -> Tokenizer:
        """Read the tokenizer of a GGUF file."""

    @staticmethod
    def from_json(path: str | bytes) -> Tokenizer:
        """Read a tokenizer.json."""

    def encode(self, text: bytes, special: bool) -> list[int]:
        """Split bytes into tokens; no bos is added."""

    def decode(self, ids: Sequence[int], special: bool) -> bytes:
        """Join tokens."""

    def piece(self, id: int) -> bytes:
        """Spelling of a token."""

    def find(self, text: str) -> int:
        """Token of that spelling, or -1."""

    def is_control(self, id: int) -> bool:
        """Whether it is a marker rather than text."""

    def is_eog(self, id: int) -> bool:
        """Whether generation ends with it."""

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""

    @property
    def bos(self) -> int:
        """Begins a text."""

    @property
    def eos(self) -> int:
        """Ends a text."""

    @property
    def unk(self) -> int:
        """Stands for the unknown."""

    @property
    def pad(self) -> int:
        """Fills rows of a batch."""

    @property
    def add_bos(self) -> bool:
        """Whether the file wants texts to begin with `bos`."""

    @property
    def eog(self) -> list[int]:
        """Every token that ends generation, ascending."""

    @property
    def chat_template(self) -> str | bytes:
        """As the file has it."""

@final
class StreamDecoder:
    """Tokens to whole characters."""

    def __init__(self, tokenizer: Tokenizer, special: bool) -> None: ...
    def push(self, id: int) -> str:
        """Text that a token completes."""

    def finish(self) -> str:
        """What was held back."""

# ---- models

@final
class Model:
    """A loaded checkpoint."""

    @staticmethod
    def load(
        path: str | bytes,
        context: int,
        kv: str,
        activations: str,
        repack: str,
        quantize: str | None,
        load: str,
        limits: dict[str, int],
        progress: Callable[[int, int], None] | None,
        threads: int,
        runs: bool,
        must_quantize: bool,
        drafter: bool,
    ) -> Model:
        """Load a GGUF file or a directory; context 0: what it was made for.

        Unless it `runs`, it need not fit into memory. `must_quantize`: refuse a model
        that has nothing to `quantize`. `drafter`: take one, and nothing else.
        """

    @property
    def config(self) -> dict[str, Any]:
        """Hyperparameters; ``layers`` is a list of dictionaries."""

    @property
    def types(self) -> list[tuple[str, int, int]]:
        """Type, number of tensors and bytes."""

    @property
    def kv_scales(self) -> list[tuple[float, float] | None]:
        """Trained steps of each layer's keys and values."""

    @property
    def unread_tensors(self) -> list[str]:
        """Names of the tensors that the network has no place for, in file order."""

    @property
    def num_quantized(self) -> int:
        """Matrices that were rounded as load's `quantize` asked."""

    @property
    def has_steps(self) -> bool:
        """Whether products round by the checkpoint's own steps."""

    @property
    def context(self) -> int:
        """Tokens that a session holds at most."""

    @property
    def sampling(self) -> list[tuple[str, float]]:
        """Recommended settings."""

    @property
    def file_bytes(self) -> int:
        """Size of the weight files."""

    @property
    def repacked_bytes(self) -> int:
        """Size of the weights copied into kernel order."""

    @property
    def bytes_per_token(self) -> int:
        """Weights that one token reads."""

    @property
    def chat_template(self) -> str:
        """As the files have it; empty if they have none."""

    def kv_bytes(self, positions: int) -> int:
        """Keys and values of a session of so many tokens."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, if the files have one."""

@final
class Sampler:
    """Chooses tokens; draw i is a function of the seed and i."""

    def __init__(
        self,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        seed: int,
    ) -> None: ...
    def sample(self, logits: _F32, history: Sequence[int]) -> int:
        """Choose from a vector of logits."""

@final
class Session:
    """One sequence of tokens. One thread at a time."""

    def __init__(self, model: Model, drafter: Model | None) -> None:
        """Begin a sequence; guesses are the drafter's, if there is one."""

    def run(self, ids: _I64, rows: int, threads: int) -> _F32:
        """Append tokens; logits after the last `rows` of them."""

    def step(
        self, ids: _I64, sampler: Sampler, threads: int, draft: int, top: int | None
    ) -> tuple[int, list[tuple[int, float]]]:
        """Append tokens and choose the next; run up to `draft` guesses along.

        With `top`, log p of that token, then of so many of the likeliest.
        """

    def guess(self, id: int, threads: int, most: int) -> list[int]:
        """Return the tokens that a step of `id` would guess behind it."""

    def score(self, ids: _I64, next: int, threads: int) -> NDArray[np.float64]:
        """Append tokens; log p of each one's successor, the last one's being `next`."""

    def copy(self) -> Session:
        """Another session with the same tokens."""

    def truncate(self, length: int) -> int:
        """Keep at most `length` tokens; how many are left."""

    @property
    def tokens(self) -> list[int]:
        """Tokens held."""

    @property
    def drafts(self) -> tuple[int, int]:
        """Tokens that steps have guessed, and those of them that came."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values allocated."""

def run_each(sessions: Sequence[Session], ids: _I64, threads: int) -> _F32:
    """Append a token to each of several sessions; the logits behind it, (B, vocab)."""

def step_each(
    sessions: Sequence[Session],
    ids: _I64,
    samplers: Sequence[Sampler],
    threads: int,
    top: int | None,
) -> list[tuple[int, list[tuple[int, float]]]]:
    """Append a token to each and choose the next of each, as Session.step does."""

@final
class Stages:
    """A model's parts one at a time. For tests."""

    def __init__(self, model: Model) -> None: ...
    def inputs(self, ids: _I64) -> tuple[_F32, _F32]:
        """The stream before the first layer, and what the layers add per token."""

    def layer(self, layer: int, h: _F32, ple: _F32) -> _F32:
        """The stream after a layer; its keys and values are kept for those that share."""

    def head(self, h: _F32) -> _F32:
        """Logits of the stream after the last layer."""

    def product(self, layer: int, name: str, x: _F32) -> _F32:
        """What a layer's matrix makes of x."""
