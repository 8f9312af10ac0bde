# python/halfbyte/model.py
# SPDX-License-Identifier: Apache-2.0
"""Models: load one, ask it, look at its numbers."""

from __future__ import annotations

import errno
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from halfbyte import _core, _onednn, answers, names, targets, template
from halfbyte._arguments import (
    flag,
    instance,
    number,
    one_of,
    string,
    takes_options_of,
    whole,
)
from halfbyte._arrays import F32Array, as_ids
from halfbyte.batch import Runner, replies
from halfbyte.choice import is_gguf_model, listed
from halfbyte.errors import (
    ArgumentError,
    ContextOverflowError,
    DTypeError,
    Error,
    ModelError,
    UnsupportedError,
)
from halfbyte.files import Load, PathLike, Tokenizer, checked_limits
from halfbyte.records import LayerConfig, ModelConfig, Piece, Reply, Report
from halfbyte.streams import (
    Answer,
    Chosen,
    OneThread,
    Request,
    StopStrings,
    Stream,
    reply_of,
    stop_strings,
)

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Message", "Model", "Options", "Session", "examine", "load"]

_ACTIVATIONS = ("auto", "static", "dynamic", "f32")

Message = Mapping[str, Any]
Ids = Sequence[int] | NDArray[Any]
Prompt = str | Ids | Sequence[Message]
Tools = Sequence[template.Tool]


class Rendered(list[int]):
    """Ids of messages: what follows them is an answer, which may think and call tools."""


def as_messages(messages: Any) -> Sequence[Message]:
    """What `chat` was given, as messages; ids would be taken for a text to go on with."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or isinstance(messages, bytes):
        got = type(messages).__name__
        raise DTypeError(f"messages: expected a str, or a list of messages, got {got}")
    if not messages:
        raise ArgumentError("messages: expected at least one")
    for index, message in enumerate(messages):
        wanted = '{"role": ..., "content": ...}'
        instance(message, f"messages[{index}]", Mapping, wanted)
    return messages


class _Sequence:
    """What is a session's own. It does not hold the model, which holds one itself:
    weights go as soon as nobody uses the model, not when Python looks for cycles.
    """

    def __init__(self, core: _core.Session) -> None:
        self.core = core
        self.turn = 0  # counts what changes the tokens: an older stream cannot go on
        self.alone = OneThread("session")


class _Drafter(NamedTuple):
    """What guesses for a model."""

    core: _core.Model
    path: str


class Sampling(TypedDict, total=False):
    """What files recommend, as `Model.sampling` has it."""

    temperature: float
    top_k: int
    top_p: float


class Options(TypedDict, total=False):
    """Keywords of `Session.stream` for any prompt, for type checkers."""

    temperature: float | None
    top_k: int
    top_p: float
    max_tokens: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: bool | int
    draft: int | None


class ChatOptions(Options, total=False):
    """Keywords of `Session.stream`, for type checkers where they are handed on."""

    tools: Tools | None
    enable_thinking: bool


# Products of as few tokens read weights once; those of more compute, as a prompt's do.
MAX_DRAFT = 16

# How many a drafter guesses at most, unless told otherwise.
DRAFT = 8

MAX_SEED = 2**64 - 1

# What only messages take.
CHAT_ONLY = ("tools", "enable_thinking")


def request(
    model: Model,
    prompt: Prompt,
    *,
    max_tokens: int = 128,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    logprobs: bool | int = False,
    draft: int | None = None,
    tools: Tools | None = None,
    enable_thinking: bool = False,
) -> Request:
    """Check what `Model.stream` is asked for."""
    if draft is None:
        draft = 0 if model._drafter is None else DRAFT
    if temperature is None:  # who filters wants to draw
        temperature = 0.0 if (top_k, top_p, min_p) == (0, 1.0, 0.0) else 1.0
    limit = whole(max_tokens, "max_tokens", 0)
    sampler = _core.Sampler(
        number(temperature, "temperature"),
        min(whole(top_k, "top_k", 0), model.config.vocab_size),
        number(top_p, "top_p"),
        number(min_p, "min_p"),
        number(repetition_penalty, "repetition_penalty"),
        secrets.randbits(64) if seed is None else whole(seed, "seed", 0, MAX_SEED),
    )
    ids = model._prompt_ids(prompt, tools, enable_thinking)
    return Request(
        ids,
        min(limit, model.context - len(ids) + 1),
        sampler,
        model._alternatives(logprobs),
        StopStrings(stop_strings(stop)),
        model._reader(ids),
        whole(draft, "draft", 0, MAX_DRAFT),
    )


class Session:
    """One sequence of tokens running through a model. Made by `Model.session`.

    Sessions share the weights and nothing else. One thread uses a session at a time;
    a second one gets a `RuntimeError`.
    """

    def __init__(self, model: Model, sequence: _Sequence) -> None:
        self._model, self._sequence = model, sequence

    @property
    def model(self) -> Model:
        """The model it runs through."""
        return self._model

    @property
    def tokens(self) -> list[int]:
        """Tokens whose keys and values the session holds."""
        return self._sequence.core.tokens

    @property
    def position(self) -> int:
        """Number of those tokens."""
        return len(self._sequence.core.tokens)

    @property
    def kv_bytes(self) -> int:
        """Bytes that keys and values take now."""
        return self._sequence.core.kv_bytes

    def copy(self) -> Session:
        """Begin another sequence with the same tokens.

        Keys and values are copied: nothing is computed again.

        Returns
        -------
        Session
        """
        return Session(self._model, _Sequence(self._sequence.core.copy()))

    def __copy__(self) -> Session:
        """Copy as `copy` does."""
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """Copy as `copy` does."""
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be pickled, and say what to do."""
        raise UnsupportedError(
            "a Session is not pickled: make one of a model in each process"
        )

    def reset(self) -> None:
        """Forget all tokens."""
        self.truncate(0)

    def truncate(self, length: int) -> int:
        """Keep at most the first `length` tokens.

        Parameters
        ----------
        length : int

        Returns
        -------
        int
            How many tokens are left. Sliding layers remember only so much: where that
            is too little to go on after `length` tokens, none are left.

        Raises
        ------
        ArgumentError, DTypeError
            If `length` is below 0, or no whole number.
        """
        kept = whole(length, "length", 0)
        with self._sequence.alone:
            self._sequence.turn += 1
            return self._sequence.core.truncate(min(kept, self._model.context))

    def logits(self, ids: Ids, *, last: bool | int = False) -> F32Array:
        """Append tokens and return the logits that follow each of them.

        Parameters
        ----------
        ids : integers, shape (T,)
        last : bool or int
            Only those after the last token, or after so many of the last.

        Returns
        -------
        float32 array, shape (T, vocab_size), or (last, vocab_size)

        Raises
        ------
        ArgumentError, DTypeError
            If `ids` are not integers of one dimension, or not in the vocabulary.
        ContextOverflowError
            If the context holds fewer tokens. Nothing is appended then.
        FileChangedError
            If the file was changed in place since it was loaded.
        """
        tokens = self._model._ids(ids)
        wanted = (
            int(last) if isinstance(last, bool | np.bool_) else whole(last, "last", 0)
        )
        rows = min(wanted, len(tokens)) if wanted else len(tokens)
        with self._sequence.alone:
            self._sequence.turn += 1
            return self._sequence.core.run(tokens, rows, self._model.threads)

    def perplexity(
        self,
        ids: Ids,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> float:
        """Perplexity of tokens; see `Model.perplexity`."""
        tokens = self._model._ids(ids)
        if len(tokens) < 2:
            raise ArgumentError(f"ids: expected two or more, got {len(tokens)}")
        context = whole(self._model.context, "context", 2)  # nothing is scored in 1
        total, scored, step = 0.0, 0, 128
        with self._sequence.alone:
            for start, window in self._model._windows(tokens, context):
                self.reset()
                for begin in range(0, len(window), step):
                    end = min(begin + step, len(window))
                    following = int(window[end]) if end < len(window) else -1
                    scores = self._sequence.core.score(
                        window[begin:end], following, self._model.threads
                    )
                    total, scored = total + float(scores.sum()), scored + len(scores)
                    if progress is not None:
                        progress(start + end, len(tokens))
        with np.errstate(over="ignore"):  # of what is as good as ruled out
            return float(np.exp(-total / scored))

    @takes_options_of(request)
    def stream(self, prompt: Prompt, **options: Unpack[ChatOptions]) -> Stream:
        """Generate piece by piece; see `Model.stream`."""
        asked = request(self._model, prompt, **options)
        answer = Answer(asked, self._model.tokenizer.is_end)
        pieces = self._generate(asked, answer)
        return Stream(pieces, answer.progress, self._sequence.alone)

    @takes_options_of(stream, but=CHAT_ONLY)
    def __call__(self, prompt: str | Ids, **options: Unpack[Options]) -> str:
        """Go on with a text; see `Model.__call__`."""
        return "".join(piece.text for piece in self.stream(prompt, **options))

    @takes_options_of(stream)
    def chat(
        self, messages: str | Sequence[Message], **options: Unpack[ChatOptions]
    ) -> Reply:
        """Answer a conversation; see `Model.chat`."""
        stream = self.stream(as_messages(messages), **options)
        return reply_of(list(stream), stream.stats)

    def _generate(self, asked: Request, answer: Answer) -> Iterator[Piece]:
        progress, core = answer.progress, self._sequence.core
        cached = self._keep_prefix(asked.ids)
        progress.start(cached)
        turn = self._sequence.turn
        pending = np.asarray(asked.ids[cached:], np.int64)
        try:
            while answer.left:
                if turn != self._sequence.turn:
                    raise RuntimeError(
                        "the session went on to something else; make one session a stream"
                    )
                drafts = core.drafts
                chosen = self._choose(pending, asked, answer.left)
                progress.guessed(drafts, core.drafts)
                pending = np.asarray([chosen[0]], np.int64)
                if (piece := answer.push(chosen)) is not None:
                    yield piece
        finally:
            progress.stop()

    def _choose(self, pending: NDArray[np.int64], asked: Request, left: int) -> Chosen:
        """Append tokens; the one to follow and, if asked for, how likely it was."""
        draft = min(asked.draft, left - 1)
        return self._sequence.core.step(
            pending, asked.sampler, self._model.threads, draft, asked.top
        )

    def _keep_prefix(self, ids: list[int]) -> int:
        """Cut the session to what it shares with `ids`, at least one token short."""
        held = self._sequence.core.tokens
        shared = 0
        while shared < min(len(held), len(ids) - 1) and held[shared] == ids[shared]:
            shared += 1
        return self.truncate(shared)


class Model:
    """A loaded checkpoint. Made by `load`.

    Its own methods run in one default session; `session` gives independent ones over
    the same weights, which different threads may use at the same time.
    """

    def __init__(
        self,
        core: _core.Model,
        path: str,
        kv: str,
        activations: str,
        quantize: str | None,
        threads: int | None,
        drafter: _Drafter | None = None,
    ) -> None:
        self._core, self._drafter = core, drafter
        self._path, self._kv, self._activations = path, kv, activations
        self._quantize, self._threads = quantize, threads
        config = dict(core.config)
        layers = tuple(LayerConfig(**layer) for layer in config.pop("layers"))
        self._config = ModelConfig(**config, layers=layers)
        self._tokenizer = None if core.tokenizer is None else Tokenizer(core.tokenizer)
        self._format = self._chat_format()
        self._markers: dict[int, str] = {}
        if self._format is not None:
            self._markers = answers.markers_of(self.tokenizer)
        self._sequence = self._begin()

    def _chat_format(self) -> template.ChatFormat | None:
        if self._tokenizer is None or not self._core.chat_template:
            return None
        return template.family_of(self._core.chat_template, self._tokenizer)

    # ---- what it is

    @property
    def config(self) -> ModelConfig:
        """Hyperparameters."""
        return self._config

    @property
    def context(self) -> int:
        """Tokens that a session holds at most."""
        return self._core.context

    @property
    def threads(self) -> int:
        """Threads that a call uses."""
        return targets.num_threads() if self._threads is None else self._threads

    @property
    def has_tokenizer(self) -> bool:
        """Whether the files have a tokenizer. Without one there are still logits."""
        return self._tokenizer is not None

    @property
    def has_template(self) -> bool:
        """Whether the files have a chat template of a family that is known here."""
        return self._format is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises
        ------
        ModelError
            If the files have none.
        """
        if self._tokenizer is None:
            raise self._lacks(
                "tokenizer", "logits and perplexity go without", "MODEL_TOKENIZER"
            )
        return self._tokenizer

    @property
    def sampling(self) -> Sampling:
        """Sampling settings that the files recommend, as options of an answer.

        Nothing uses them by itself: ``model.chat(…, **model.sampling)`` does, and so do
        ``halfbyte run`` and ``chat``. What no answer can be sampled with is left out; a
        `top_k` below 0 means all tokens, which is 0 here.
        """
        found, kept = dict(self._core.sampling), Sampling()
        if 0.0 <= found.get("temp", math.nan) <= 10.0:
            kept["temperature"] = found["temp"]
        top_k = found.get("top_k", math.nan)
        if top_k <= 2.0**31 and top_k.is_integer():
            kept["top_k"] = max(int(top_k), 0)
        if 1e-6 <= found.get("top_p", math.nan) <= 1.0:
            kept["top_p"] = found["top_p"]
        return kept

    @property
    def kv_scales(self) -> list[tuple[float, float] | None]:
        """Steps of each layer's cached keys and values that the files name.

        A mobile checkpoint was trained to keep its cache in integers. Sliding layers
        have 8 bits with this step; full layers 4 bits, or 8 with a sixteenth of it.
        ``load(…, kv="int8")`` uses them. None for a layer without.
        """
        return self._core.kv_scales

    @property
    def unread_tensors(self) -> list[str]:
        """Tensors of the files that the network has no place for, in their order.

        Encoders, copies of tied heads, keys and values of layers that share those of
        another one: harmless; or something that this package does not know.
        """
        return self._core.unread_tensors

    def report(self) -> Report:
        """Say what is loaded and how it runs.

        Returns
        -------
        Report
        """
        scoped = self._threads is not None
        return Report(
            path=self._path,
            architecture=self._config.architecture,
            types={name: (count, size) for name, count, size in self._core.types},
            file_bytes=self._core.file_bytes,
            repacked_bytes=self._core.repacked_bytes,
            quantize=self._quantize,
            bytes_per_token=self._core.bytes_per_token,
            context=self.context,
            kv=self._kv,
            kv_bytes_at_context=self._core.kv_bytes(self.context),
            activations="static" if self._core.has_steps else self._activations,
            target=targets.cpu_target(),
            threads=self.threads,
            threads_reason="threads=" if scoped else targets.thread_reason(),
            drafter=None if self._drafter is None else self._drafter.path,
        )

    def __repr__(self) -> str:
        """Name the file and its architecture."""
        return f"Model({self._path!r}, {self._config.architecture})"

    def __copy__(self) -> Model:
        """Share the weights, with a default session of its own."""
        return Model(
            self._core,
            self._path,
            self._kv,
            self._activations,
            self._quantize,
            self._threads,
            self._drafter,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        """Share the weights: nothing changes them."""
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be pickled, and say what to do."""
        raise UnsupportedError(
            "a Model is not pickled: call halfbyte.load in each process, which share the "
            'file\'s pages with repack="never"'
        )

    # ---- what it does

    def session(self) -> Session:
        """Begin an independent sequence over the same weights.

        Returns
        -------
        Session
        """
        return Session(self, self._begin())

    def _begin(self) -> _Sequence:
        drafter = None if self._drafter is None else self._drafter.core
        return _Sequence(_core.Session(self._core, drafter))

    @property
    def _session(self) -> Session:
        return Session(self, self._sequence)

    def tokenize(
        self, text: str, *, bos: bool = True, special: bool = False
    ) -> list[int]:
        """Split text into tokens; see `Tokenizer.encode`."""
        return self.tokenizer.encode(text, bos=bos, special=special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Join tokens to text; see `Tokenizer.decode`."""
        return self.tokenizer.decode(ids)

    def logits(self, ids: Ids, *, last: bool | int = False) -> F32Array:
        """Run a sequence from its start and return the logits that follow each token.

        Parameters
        ----------
        ids : integers, shape (T,)
            At most `context` of them.
        last : bool or int
            Only those after the last token, or after so many of the last.

        Returns
        -------
        float32 array, shape (T, vocab_size), or (last, vocab_size)
            After the final softcap.

        Raises
        ------
        ArgumentError, DTypeError
            If `ids` are not integers of one dimension, or not in the vocabulary.
        ContextOverflowError
            If there are too many.
        FileChangedError
            If the file was changed in place since it was loaded.
        """
        with self._sequence.alone:
            self._session.reset()
            return self._session.logits(ids, last=last)

    def perplexity(
        self,
        ids: Ids,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> float:
        """Perplexity of tokens: ``exp(-mean(log p(token | those before)))``.

        Parameters
        ----------
        ids : integers, shape (T,)
            Two or more. More than `context` are cut into windows of that size, each of
            which begins with the token that begins a text, if `ids` do. The first token
            of a window is given, not scored.
        progress : callable, optional
            Called with the number of tokens done and of all.

        Returns
        -------
        float

        Raises
        ------
        ArgumentError, DTypeError, FileChangedError
            If there are fewer than two ids, or the context holds only one, or as by
            `logits`.
        """
        return self._session.perplexity(ids, progress=progress)

    @takes_options_of(Session.stream, but=CHAT_ONLY)
    def __call__(self, prompt: str | Ids, **options: Unpack[Options]) -> str:
        """Go on with a text, as it is: no chat template.

        Parameters
        ----------
        prompt : str, or sequence of int
            Text, or token ids.
        **options
            As for `stream`.

        Returns
        -------
        str
            The continuation alone.

        Raises
        ------
        ArgumentError, DTypeError, ContextOverflowError, ModelError
            As by `stream`.
        """
        return self._session(prompt, **options)

    @takes_options_of(Session.stream)
    def chat(
        self, messages: str | Sequence[Message], **options: Unpack[ChatOptions]
    ) -> Reply:
        """Answer a conversation.

        Parameters
        ----------
        messages : str, or sequence of mappings
            In the form of the OpenAI API: ``{"role": "user", "content": "Hello"}``. A
            str is one message of a user.
        **options
            As for `stream`: `tools` and `enable_thinking` among them.

        Returns
        -------
        Reply
            Its text, and apart from that what the model thought and which tools it
            calls. ``messages.append(reply.message)`` goes on with it.

        Raises
        ------
        ModelError
            If the files have no chat template.
        ArgumentError, DTypeError, ContextOverflowError
            As by `stream`.
        """
        return self._session.chat(messages, **options)

    @takes_options_of(Session.stream)
    def stream(self, prompt: Prompt, **options: Unpack[ChatOptions]) -> Stream:
        """Generate piece by piece.

        Keys and values of a prompt's beginning that the session still holds are used
        again.

        Parameters
        ----------
        prompt : str, sequence of int, or sequence of mappings
            Text or ids to go on with, or messages to answer.
        max_tokens : int
            128 by default. The context may end it earlier.
        temperature : float, optional
            0 takes the likeliest token. By default it is 0, or 1 where `top_k`, `top_p`
            or `min_p` asks to draw.
        top_k : int
            Draw among the `top_k` likeliest; 0: all.
        top_p : float
            Among the likeliest that together have this probability.
        min_p : float
            Among those at least this share as likely as the likeliest.
        repetition_penalty : float
            Divides the positive logits of tokens seen, multiplies the negative ones.
        seed : int
            The same seed gives the same text, for any number of threads. Random by
            default.
        stop : str or sequence of str, optional
            Text that ends the answer, and is not part of it.
        logprobs : bool or int
            Whether pieces tell their token's log-probability, or also those of so many of
            the likeliest tokens. Each token has a piece of its own then, if it shows
            text or not. The tokens are the same ones.
        draft : int
            Guess up to so many tokens ahead, 16 at most, and check them in one pass over
            the weights: two more after a pass whose guesses all came, one less after
            another. The answer is the same, bit for bit, sampled ones too, and comes
            sooner. The model's drafter guesses, 8 by default; without one it is what
            stood behind the last two or three tokens before, where answers quote or
            edit what they were given, and 0 is the default, which guesses nothing.
        tools : sequence of mappings or functions, optional
            With messages: functions that the model may call, in the form of the OpenAI
            API, ``{"type": "function", "function": {"name": ..., "description": ...,
            "parameters": {...}}}`` with a JSON schema (Gemma 4). One of Python is made
            such a mapping by ``transformers.utils.get_json_schema``, of its type hints
            and docstring; it is not called.
        enable_thinking : bool
            With messages: ask for thoughts before the answer (Gemma 4).

        Returns
        -------
        Stream
            Iterator of `Piece`. What answers messages has its thoughts and calls of tools
            apart from its text.

        Raises
        ------
        ArgumentError, DTypeError
            If a parameter is out of range, or of another type, or is for messages only.
        ContextOverflowError
            If the prompt alone is longer than the context.
        ModelError
            If messages are given and the files have no chat template, or if they have no
            tokenizer.
        MissingExtraError
            If a tool is a function of Python, and Transformers is not installed.
        RuntimeError
            From the iterator, if the session was used for something else meanwhile.
        FileChangedError, NumericalError
            From the iterator, if the file was changed in place, or a logit is NaN or
            +inf.
        """
        return self._session.stream(prompt, **options)

    @takes_options_of(request, but=("draft",))
    def batch(
        self,
        prompts: Sequence[Prompt],
        *,
        size: int = 8,
        **options: Unpack[ChatOptions],
    ) -> Iterator[Reply]:
        """Answer many prompts, several of them at a time.

        Decoding is a read of all weights, and one read serves a token of each: on two
        cores with AVX2 alone, eight answers of E2B come three times as fast as one by
        one. They are the same to the bit. What all prompts begin with is computed once.

        Parameters
        ----------
        prompts : sequence of prompts
            Each as for `stream`: text or ids to go on with, or a list of messages.
        size : int
            How many are answered at a time; each holds keys and values of its own. The
            next one begins when one ends.
        **options
            As for `stream`, but for `draft`, and for all prompts alike; with `seed`,
            prompt i has ``seed + i``.

        Yields
        ------
        Reply
            In the order of the prompts, as soon as those before it have ended. Ctrl-C
            leaves what was yielded.

        Raises
        ------
        ArgumentError, DTypeError, ContextOverflowError, ModelError, MissingExtraError
            As by `stream`, before anything is computed; of a prompt, with its index.
        FileChangedError, NumericalError
            From the iterator, as by `stream`.
        """
        if "draft" in options:
            raise TypeError("batch() got an unexpected keyword argument 'draft'")
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            got = type(prompts).__name__
            raise DTypeError(f"prompts: expected a list of prompts, got {got}")
        rows = whole(size, "size", 1)
        options["draft"] = 0  # a pass has tokens enough
        tools = options.pop("tools", None)
        thinking = options.pop("enable_thinking", False)
        seed = options.get("seed")
        first = None if seed is None else whole(seed, "seed", 0, MAX_SEED)
        ids = []
        for index, prompt in enumerate(prompts):
            try:
                ids.append(self._prompt_ids(prompt, tools, thinking))
            except Error as error:
                error.args = (f"prompts[{index}]: {error}",)
                raise

        def ask(index: int) -> Request:
            if first is not None:
                options["seed"] = (first + index) % (MAX_SEED + 1)
            return request(self, ids[index], **options)

        if ids:
            ask(0)  # what is wrong with the options is said now
        return replies(ids, ask, self._runner(), rows)

    def step(self, sessions: Sequence[Session], ids: Ids) -> F32Array:
        """Append a token to each of several sessions, in one pass over the weights.

        For searches and servers that decide themselves what comes next; `batch` is made
        of such passes.

        Parameters
        ----------
        sessions : sequence of Session
            Of this model, no two the same. Each may hold any number of tokens.
        ids : integers, shape (B,)
            One for each session.

        Returns
        -------
        float32 array, shape (B, vocab_size)
            The logits that follow each, with the bits of `Session.logits`.

        Raises
        ------
        ArgumentError, DTypeError
            If there are not as many ids as sessions, a session is of another model or
            there twice, or as by `Session.logits`.
        ContextOverflowError
            If a session is full. Nothing is appended then.
        FileChangedError
            If the file was changed in place since it was loaded.
        """
        tokens = self._ids(ids)
        for index, session in enumerate(sessions):
            instance(session, f"sessions[{index}]", Session, "a Session")
            if session.model._core is not self._core:
                raise ArgumentError(f"sessions[{index}]: is of another model")
        cores = [session._sequence.core for session in sessions]
        if len({*map(id, cores)}) != len(cores):
            raise ArgumentError("sessions: one is there twice")
        if len(tokens) != len(cores):
            raise ArgumentError(
                f"ids: expected one for each of {len(cores)} sessions, got {len(tokens)}"
            )
        with ExitStack() as alone:
            for session in sessions:
                alone.enter_context(session._sequence.alone)
                session._sequence.turn += 1
            return _core.run_each(cores, tokens, self.threads)

    def _runner(self) -> Runner:
        return Runner(
            lambda: _core.Session(self._core, None),
            self.tokenizer.is_end,
            lambda: self.threads,
        )

    # ---- shared with Session

    def _ids(self, ids: Ids, name: str = "ids") -> NDArray[np.int64]:
        return as_ids(ids, name, self._config.vocab_size)

    def _windows(
        self, ids: NDArray[np.int64], length: int
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Cut a text into windows, and say how many tokens come before each.

        A text that begins with <bos> is one that the model was trained on only so: without
        it the likelihoods of a window are those of no model that anybody uses. That
        token counts once.
        """
        bos = None if self._tokenizer is None else self._tokenizer.bos_id
        if bos is None or ids[0] != bos or length < 2:
            for start in range(0, len(ids), length):
                yield start, ids[start : start + length]
            return
        for start in range(0, len(ids) - 1, length - 1):
            yield start, np.append(ids[:1], ids[start + 1 : start + length])

    def _alternatives(self, logprobs: bool | int) -> int | None:
        """How many tokens to tell the log-probability of, beside the one chosen."""
        if isinstance(logprobs, bool):
            return 0 if logprobs else None
        return min(whole(logprobs, "logprobs", 0), self._config.vocab_size) or None

    def _lacks(
        self, what: str, advice: str, code: str, found: str = "none"
    ) -> ModelError:
        name = repr(Path(self._path).name)[1:-1]  # on one line, whatever it is
        return ModelError(
            f"{name}: model: {what}: found {found} - {advice} [{code}]",
            path=self._path,
            kind="model",
            code=code,
        )

    def _reader(self, ids: list[int]) -> answers.Reader:
        markers = self._markers if isinstance(ids, Rendered) else {}
        return answers.Reader(self.tokenizer, markers, ids)

    def _prompt_ids(
        self, prompt: Prompt, tools: Tools | None, enable_thinking: bool
    ) -> list[int]:
        thinking = flag(enable_thinking, "enable_thinking")
        if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
            parts = self._render(prompt, tools, thinking)  # type: ignore[arg-type]
            return Rendered(template.encode_parts(parts, self.tokenizer))
        if tools or thinking:
            raise ArgumentError(
                f"{'tools' if tools else 'enable_thinking'}: expected messages to go "
                "with, got a prompt of text or ids"
            )
        if isinstance(prompt, str):
            ids = self.tokenize(prompt)
        elif isinstance(prompt, Rendered):
            ids = prompt
        elif isinstance(prompt, bytes | bytearray) or not (
            isinstance(prompt, Sequence) or hasattr(prompt, "__array__")
        ):
            got = type(prompt).__name__
            raise DTypeError(f"prompt: expected a text, ids or messages, got {got}")
        else:
            ids = self._ids(prompt, "prompt").tolist()  # type: ignore[arg-type]
        if not ids:
            raise ArgumentError("prompt: expected at least one token")
        if len(ids) > self.context:
            more = self.context < self._config.context_length
            larger = " or load with a larger context" if more else ""
            raise ContextOverflowError(
                f"prompt: found {len(ids)} tokens; expected at most {self.context} - "
                f"shorten it{larger} [CONTEXT_OVERFLOW]",
                code="CONTEXT_OVERFLOW",
                found=f"{len(ids)} tokens",
                expected=f"at most {self.context}",
            )
        return ids

    def _render(
        self,
        messages: Sequence[Message],
        tools: Tools | None,
        thinking: bool,
        names: Sequence[str] | None = None,
    ) -> list[template.Part]:
        if self._format is None:
            found = "none"
            if self._core.chat_template:
                found = "one of a family that is not known here"
            advice = "give a text instead of messages, rendered by Transformers maybe"
            raise self._lacks("chat template", advice, "MODEL_TEMPLATE", found)
        if tools is not None:
            instance(tools, "tools", Sequence, "a list of declarations")
        return self._format.render(
            messages, tools=tools, enable_thinking=thinking, names=names
        )


def load(
    path: PathLike,
    *,
    context: int | None = None,
    threads: int | None = None,
    kv: Literal["f32", "f16", "int8"] = "f32",
    activations: str | None = None,
    repack: str = "auto",
    quantize: str | None = None,
    drafter: PathLike | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    load: Load = "mmap",
    limits: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Load a model.

    Weights are computed on as they are packed. Those that every token reads are copied
    from the mapped file into the order in which the kernels read them, unless `repack`
    says otherwise; the rest, such as the embeddings, stays in the file.

    Parameters
    ----------
    path : str or path-like
        A GGUF file, or a directory with config.json, safetensors and tokenizer.json. A
        safetensors file of such a directory means that one, with the other shards if an
        index names it. Or a name for `halfbyte.names.resolve`: ``"tiny"`` and
        ``"tiny-mobile"``, which are in the package, ``"owner/repo"`` or
        ``"owner/repo:Q4_0"`` of the Hugging Face Hub, ``"ollama:model:tag"``,
        ``"lmstudio:publisher/model"``.
    context : int, optional
        Tokens that a session may hold; what the model was made for by default. Memory
        is taken as it is used.
    threads : int, optional
        For all calls of this model; `halfbyte.num_threads` at the time of the call by
        default.
    kv : {"f32", "f16", "int8"}
        How keys and values are kept. ``"f16"`` takes half the memory and ``"int8"`` a
        quarter, and long contexts are read faster; Gemma 4 does not scale its attention
        scores, so the rounding shows in the logits. ``"int8"`` rounds as
        `halfbyte.quantize_kv` does, with the steps that a mobile checkpoint was trained
        for, if there are some and `activations` is not ``"dynamic"``.
    activations : {"auto", "static", "dynamic", "f32"}, optional
        How the inputs of products are rounded. ``"auto"``, the default, computes what
        the checkpoint was trained for: mobile checkpoints have a step for what goes
        into a matrix and one for what comes out, and both are rounded to 8-bit codes;
        where a step is 0 (the head), and for other quantised weights, inputs are
        rounded to 8 bits by their own range. ``"static"`` does the same, and refuses
        files without steps. ``"dynamic"`` ignores the steps: other results than those
        the checkpoint was trained for. ``"f32"`` rounds nothing: slow, for comparisons.
    repack : {"auto", "always", "never"}
        Whether to copy the weights into kernel order, which changes no value and no
        result. It takes about a second for 1.5 GB, and the file's own pages are let go
        of on the way. ``"never"`` reads the mapped file instead and reorders in every
        product: the first token comes sooner, memory is shared with other processes,
        decoding is slower. ``"auto"`` copies if the free memory holds the weights with
        a fifth to spare.
    quantize : str, optional
        Round the float matrices to a format as they are repacked, such as ``"q4_0"``:
        a directory in BF16 then runs in a quarter of its memory. BF16 weights that were
        trained for Q4_0 keep their steps and levels in ``"q4_0"``: see
        `halfbyte.lattice`. `halfbyte.quantize` says how others are rounded; a file that
        was quantised with care is better. Embeddings, which are gathered by rows, stay
        in the file as they are. It goes for a drafter's matrices too, and then the model
        may have none in floats.
    drafter : str or path-like, optional
        The model's drafter, a small network that guesses what it is about to say: a
        directory or file, or a name, such as
        ``"google/gemma-4-E2B-it-qat-q4_0-unquantized-assistant"``, or
        ``"tiny-drafter"`` for ``"tiny"``. Answers are the same and come sooner; see
        `draft` of `Model.stream`.
    revision : str, optional
        Branch, tag or commit of the model's repository on the Hugging Face Hub; a
        drafter's is part of its name, ``"owner/repo@revision"``.
    local_files_only : bool
        Take a repository from the cache, and ask no server.
    load : {"mmap", "copy", "auto"}
        Whether the files are mapped, or read into memory, so that nothing that becomes
        of them matters any more; ``"auto"`` reads those that lie on network and FUSE
        file systems. A copy takes memory for whole files beside the repacked weights.
        In a mapped file the embeddings stay, and all weights with ``repack="never"``.
    limits : mapping, optional
        What the files may ask for, as for `halfbyte.open_gguf`.
    progress : callable, optional
        Called with the bytes done and their total: those fetched, if there are any to
        fetch, those of each file that is read into memory, then those repacked; first a
        drafter's, then the model's.

    Returns
    -------
    Model

    Raises
    ------
    FormatError, UnsupportedError, ModelError
        If the files are damaged, of a kind not handled, or no model that can run, or if
        the drafter was made for another one. The message names the tensor or key.
    ArgumentError, DTypeError
        If an option is none of those it may be, or of another type.
    NumericalError
        If weights that `quantize` is to round are not finite. The message names the
        file and the byte.
    OutOfMemoryError
        If the weights that every token needs exceed the memory there is, or a file that
        is to be read into it.
    OSError
        If a file cannot be opened, or a name leads to none.
    ImportError
        If a name takes the extra ``hub``, and it is not installed.

    Notes
    -----
    ``HALFBYTE_ACTIVATIONS`` is the default of `activations`.
    ``HALFBYTE_ONEDNN_LIBRARY=auto`` turns `use_onednn` on, if oneDNN is there.
    """
    if context is not None:
        context = min(whole(context, "context", 1), 2**62)  # more than any model has
    if threads is not None:
        threads = targets._valid(threads, "threads")
    for value, option in (
        (kv, "kv"),
        (repack, "repack"),
        (load, "load"),
        (quantize or "", "quantize"),
    ):
        string(value, option)
    source = "activations"
    if activations is None:
        source = "HALFBYTE_ACTIVATIONS"
        activations = os.environ.get(source) or "auto"
    one_of(activations, source, _ACTIVATIONS)
    _onednn.open_if_asked()
    options: dict[str, Any] = {
        "kv": kv,
        "repack": repack,
        "quantize": quantize,
        "load": load,
        "limits": checked_limits(limits),
        "progress": progress,
        "threads": threads or targets.num_threads(),
        "runs": True,
    }
    if drafter is not None and not isinstance(drafter, str | os.PathLike):
        got = type(drafter).__name__
        raise DTypeError(f"drafter: expected a path or a name, got {got}")
    name = _find(path, revision, local_files_only, progress)
    beside = None
    if drafter is not None:  # the small one first: it may be the wrong one
        found = _find(drafter, None, local_files_only, progress)
        drafts = _core.Model.load(
            os.fsencode(found),
            context=0,
            activations="auto" if activations == "static" else activations,
            must_quantize=False,
            drafter=True,
            **options,
        )
        beside = _Drafter(drafts, found)
    core = _core.Model.load(
        os.fsencode(name),
        context=context or 0,
        activations=activations,
        must_quantize=beside is None or beside.core.num_quantized == 0,
        drafter=False,
        **options,
    )
    rounded = quantize if core.num_quantized else None
    return Model(core, name, kv, activations, rounded, threads, beside)


def _find(
    path: PathLike,
    revision: str | None,
    local_files_only: bool,
    progress: Callable[[int, int], None] | None,
) -> str:
    """Path of the files of that name, fetched if need be."""
    found = names.resolve(
        path, revision=revision, local_files_only=local_files_only, progress=progress
    )
    _check_folder(found)
    return os.fsdecode(found)


def _check_folder(path: Path) -> None:
    """Say what a folder lacks that is no model, and what may have been meant."""
    folder = path
    if path.suffix == ".safetensors" and not path.is_dir():
        if not path.exists():
            return  # nothing there: opening it says so
        folder = path.parent
    if not folder.is_dir() or os.path.lexists(folder / "config.json"):
        return
    try:
        inside = [
            p.name for p in folder.iterdir() if is_gguf_model(p.name) and p.is_file()
        ]
    except OSError:
        inside = []
    raise FileNotFoundError(
        errno.ENOENT, f"a folder without config.json{listed(inside)}", str(folder)
    )


def examine(path: PathLike) -> Model:
    """Open a model to read what it is, and not to run it.

    Parameters
    ----------
    path : str or path-like
        A file or a directory.

    Returns
    -------
    Model
        Checked as by `load`, but of any size: it may need more memory than there is.

    Raises
    ------
    FormatError, UnsupportedError, ModelError, OSError
        As by `load`.
    """
    name = os.fsdecode(path)
    core = _core.Model.load(
        os.fsencode(name),
        context=0,
        kv="f32",
        activations="auto",
        repack="never",
        quantize=None,
        load="mmap",
        limits={},
        progress=None,
        threads=1,
        runs=False,
        must_quantize=False,
        drafter=False,
    )
    return Model(core, name, "f32", "auto", None, None)
