# python/halfbyte/records.py
# SPDX-License-Identifier: Apache-2.0
"""What a model says of itself and of its answers: plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from halfbyte._sizes import size_text

__all__ = ["LayerConfig", "ModelConfig", "Piece", "Reply", "Report", "Stats"]


@dataclass(frozen=True)
class LayerConfig:
    """Shape of one layer."""

    sliding: bool
    """Whether it sees `ModelConfig.sliding_window` positions, or else all."""
    head_dim: int
    num_kv_heads: int
    ffn_len: int
    kv_source: int
    """The layer whose keys and values it attends to."""
    value_is_key: bool
    """No matrix for values: they are the keys as they come."""


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters, in one form for every family and file kind."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    context_length: int
    """Positions that the model was made for."""
    sliding_window: int
    """Positions that a query of a sliding layer sees, its own included."""
    norm_eps: float
    logit_softcap: float
    """Logits are bent to stay below it; 0: they are not."""
    rope_base_sliding: float
    rope_base_full: float
    rope_factor_full: float
    """Positions of full layers are divided by it."""
    attention_scale: float
    """Scores are multiplied by it."""
    per_layer_embedding: int
    """Numbers that each layer has for a token; 0: none."""
    num_experts: int
    """0 of a dense model, as the next two are."""
    num_experts_used: int
    expert_ffn_len: int
    layers: tuple[LayerConfig, ...]
    untied_head: bool = False
    """Whether the head is a matrix of its own, or else the embedding."""


@dataclass(frozen=True)
class Report:
    """What is loaded and how it runs. Prints as a small table."""

    path: str
    architecture: str
    types: dict[str, tuple[int, int]]
    """Number of tensors and their bytes, by the file's name of the type."""
    file_bytes: int
    repacked_bytes: int
    """Copied into kernel order; 0: used where the file maps them."""
    quantize: str | None
    """What float matrices were rounded to as they were copied."""
    bytes_per_token: int
    """Of weights, that computing a token reads."""
    context: int
    """Positions that a session holds at most."""
    kv: str
    kv_bytes_at_context: int
    """Of keys and values, when a session is full."""
    activations: str
    target: str
    """As `halfbyte.cpu_target` names it."""
    threads: int
    threads_reason: str
    drafter: str | None = None
    """Path of what guesses ahead."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self)

    def __str__(self) -> str:
        """Render the table."""
        file, repacked, read, kv = map(
            size_text,
            (
                self.file_bytes,
                self.repacked_bytes,
                self.bytes_per_token,
                self.kv_bytes_at_context,
            ),
        )
        lines = [
            f"{self.path} ({self.architecture})",
            f"  file        {file}, {read} read per token",
            f"  repacked    {repacked}"
            + (f", floats rounded to {self.quantize}" if self.quantize else ""),
            *(
                f"  {name:<11} {count} tensors, {size_text(size)}"
                for name, (count, size) in self.types.items()
            ),
            f"  context     {self.context} positions, {self.kv} cache of at most {kv}",
            f"  arithmetic  {self.target}, activations {self.activations}",
            f"  threads     {self.threads} ({self.threads_reason})",
            *([f"  drafter     {self.drafter}"] if self.drafter else []),
        ]
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True)
class Stats:
    """What one answer took. Times are in seconds of wall clock."""

    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, found in the session."""
    generated_tokens: int
    prompt_seconds: float
    """Up to the first token."""
    decode_seconds: float
    """From the first token to the last."""
    peak_rss_bytes: int
    """Of the process so far."""
    drafted_tokens: int = 0
    """Guessed ahead, as `draft` of `Model.stream` asks."""
    accepted_tokens: int = 0
    """Of those, the ones that came."""

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens computed per second."""
        computed = self.prompt_tokens - self.cached_tokens
        return computed / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def decode_tps(self) -> float:
        """Tokens generated per second, the first one left out."""
        decoded = max(self.generated_tokens - 1, 0)
        return decoded / self.decode_seconds if self.decode_seconds > 0 else 0.0


class Piece(NamedTuple):
    """Some generated text.

    Attributes
    ----------
    text : str
        Whole characters; may be empty.
    token : int
        The token that brought it.
    finish_reason : {None, "stop", "tool_calls", "length"}
        Set on the last piece: the model or a stop string ended it, which is
        ``"tool_calls"`` of an answer that has any; or the limit did.
    logprob : float or None
        With ``logprobs``: natural logarithm of the token's probability by the model
        itself, the softmax of its logits, before penalty, temperature and filters.
    top_logprobs : tuple of (int, float)
        With ``logprobs=n``: the n likeliest tokens, and the same of each.
    thought : str
        What the model thinks on its way to an answer, no part of `text`.
    tool_calls : tuple of dict
        Calls of tools that ended here, as `Reply.tool_calls` has them.
    tool_call_error : str or None
        Why a call that ended here could not be read: `text` has it as it is spelled.
    """

    text: str
    token: int
    finish_reason: str | None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    thought: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_error: str | None = None


@dataclass(frozen=True)
class Reply:
    """An answer of `Model.chat`."""

    text: str
    """Without thoughts, and without calls of tools."""
    finish_reason: str
    """``"stop"``, ``"tool_calls"`` or ``"length"``, as of the last `Piece`."""
    stats: Stats
    pieces: tuple[Piece, ...] = field(repr=False)
    thought: str = ""
    """What the model thought on its way; several thoughts are lines of their own."""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """Tools it wants called, in the form of the OpenAI API, but for the arguments, which
    are read: ``{"id": "call_0", "type": "function", "function": {"name": "f",
    "arguments": {"city": "Paris"}}}``."""
    tool_call_error: str | None = None
    """Why a call could not be read. It is in `text` then, as the model spelled it."""

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message to go on with.

        Its ``reasoning`` counts until the next message of a user: Gemma 4's template
        leaves it out after that.
        """
        extras = {"reasoning": self.thought, "tool_calls": self.tool_calls}
        filled = {name: value for name, value in extras.items() if value}
        return {"role": "assistant", "content": self.text, **filled}

    def __str__(self) -> str:
        """Return the text."""
        return self.text
