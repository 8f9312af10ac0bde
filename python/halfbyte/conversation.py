# python/halfbyte/conversation.py
# SPDX-License-Identifier: Apache-2.0
"""Conversations: messages back and forth, each turn computed behind those before it."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from halfbyte._arguments import flag, instance, string, takes_options_of
from halfbyte.errors import ArgumentError
from halfbyte.model import (
    CHAT_ONLY,
    Message,
    Model,
    Options,
    Rendered,
    Session,
    Tools,
    as_messages,
)
from halfbyte.records import Piece, Reply
from halfbyte.streams import OneThread, Stream, reply_of
from halfbyte.template import Part, encode_parts

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Conversation"]


class _Run(NamedTuple):
    """Text or a marker, and the tokens that it became, or was generated in."""

    text: str
    marker: bool
    ids: list[int]
    made: bool = False  # generated: what follows is split into tokens apart from it


class Conversation:
    """Messages back and forth with a model, in a session of their own.

    A turn computes only what is new: keys and values of all that was said are kept.

    Parameters
    ----------
    model : Model
    system : str, optional
        Instructions ahead of the messages.
    tools : sequence of mappings or functions, optional
        Functions that the model may call, as for `Model.stream` (Gemma 4).
    enable_thinking : bool
        Ask for thoughts before each answer (Gemma 4).

    Attributes
    ----------
    model : Model
    system : str or None
        May be changed, as the messages may.
    tools : sequence of mappings or functions, or None
        May be changed too.
    enable_thinking : bool
        And this.
    messages : list of dict
        What the user, the assistant and its tools have said, in the form of `Model.chat`.
        The last one grows as it is generated. They may be changed, taken away or
        replaced: the next turn computes what follows the change again; all, if sliding
        layers have forgotten what was just before it, as they do after 500 tokens or so.

    Raises
    ------
    DTypeError
        If `model` is no `Model`, `system` no str, `tools` no list of declarations, or
        `enable_thinking` no bool.
    ArgumentError
        If the model has no place for tools or thoughts.

    Notes
    -----
    A model without a chat template goes on with the text of all messages, each of the
    user's on a line of its own.

    Earlier answers count as the template has them. Where it writes one in another way, as
    Gemma 4's leaves out thoughts, the next turn goes on as after a change. A thought is
    the ``reasoning`` of its message.

    One thread uses a conversation at a time; a second one gets a `RuntimeError`. Between
    two pieces of an answer any thread may go on: that ends the answer, and a thread that
    still reads it gets the error.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        tools: Tools | None = None,
        enable_thinking: bool = False,
    ) -> None:
        self.model = instance(model, "model", Model, "a Model, as load gives it")
        self.system = None if system is None else string(system, "system")
        self.tools = tools
        self.enable_thinking = flag(enable_thinking, "enable_thinking")
        self.messages: list[dict[str, Any]] = []
        self._session = model.session()
        self._asked: list[_Run] = []  # what the last answer followed
        self._stream: Stream | None = None
        self._alone = OneThread("conversation")
        if self.enable_thinking or tools is not None:  # what cannot be is said at once
            self._runs(self._parts([]))

    @takes_options_of(Session.stream, but=CHAT_ONLY)
    def send(
        self, messages: str | Sequence[Message], **options: Unpack[Options]
    ) -> Stream:
        """Say something, and get the answer piece by piece.

        What is said and the answer become messages. An answer that is not read to its
        end, or is closed, is kept as far as it came. It ends with the next message at the
        latest.

        Parameters
        ----------
        messages : str, or sequence of mappings
            A str is one message of the user. Tools answer in messages of their own:
            ``[{"role": "tool", "tool_call_id": ..., "content": ...}]``, one for each of
            the ``tool_calls`` of ``chat.messages[-1]``.
        **options
            As for `Model.stream`.

        Returns
        -------
        Stream
            Iterator of `Piece`.

        Raises
        ------
        ContextOverflowError
            If the whole conversation is longer than the context. It stays as it was:
            `reset` it, or take messages away.
        ArgumentError, DTypeError, ModelError
            As by `Model.stream`. The conversation stays as it was.
        RuntimeError
            If another thread is using the conversation, which stays as that one has it.
            From the iterator, if another thread has gone on meanwhile.
        """
        for name in CHAT_ONLY:
            if name in options:
                raise ArgumentError(
                    f"{name}: expected as an attribute of the conversation"
                )
        with self._alone:
            self._stop()
            said = [dict(message) for message in as_messages(messages)]
            runs = self._runs(self._parts(said))
            ids = Rendered(id for run in runs for id in run.ids)
            stream = self._session.stream(ids, **options)
            answer: dict[str, Any] = {"role": "assistant", "content": ""}
            self.messages += [*said, answer]
            self._asked, self._stream = runs, stream
            pieces = _written_down(stream, answer)
            return Stream(pieces, stream._progress, self._alone)

    @takes_options_of(Session.stream, but=CHAT_ONLY)
    def chat(
        self, messages: str | Sequence[Message], **options: Unpack[Options]
    ) -> Reply:
        """Say something, and get the answer when it is whole.

        Parameters
        ----------
        messages, **options
            As for `send`.

        Returns
        -------
        Reply

        Raises
        ------
        ContextOverflowError, ArgumentError, DTypeError, ModelError, RuntimeError
            As by `send`.
        """
        stream = self.send(messages, **options)
        return reply_of(list(stream), stream.stats)

    def reset(self) -> None:
        """Forget the messages; not `system`, nor what was computed of it."""
        with self._alone:
            self._stop()
            self.messages = []

    def copy(self) -> Conversation:
        """Begin another conversation with the same messages.

        Keys and values are copied: nothing is computed again. An answer in progress goes
        on in this one alone.

        Returns
        -------
        Conversation
        """
        other = object.__new__(type(self))
        with self._alone:
            vars(other).update(vars(self))
            other.messages = copy.deepcopy(self.messages)
            other._session = self._session.copy()
            other._asked, other._stream = [*self._asked, *self._answered()], None
        other._alone = OneThread("conversation")
        return other

    def __copy__(self) -> Conversation:
        """Copy as `copy` does."""
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Conversation:
        """Copy as `copy` does."""
        return self.copy()

    def _stop(self) -> None:
        if self._stream is not None and self._stream.stats is None:
            self._stream._progress.ended_by = threading.get_ident()
            self._stream.close()

    def _parts(self, said: Sequence[Message]) -> list[Part]:
        """Parts of all messages and what is said now, whose errors count apart."""
        before = instance(
            self.messages, "messages of the conversation", MutableSequence, "a list"
        )
        messages = [*before, *said]
        names = [f"messages[{i}] of the conversation" for i in range(len(before))]
        names += [f"messages[{i}]" for i in range(len(said))]
        if self.system is not None:
            system = string(self.system, "system")
            messages.insert(0, {"role": "system", "content": system})
            names.insert(0, "system")
        thinking = flag(self.enable_thinking, "enable_thinking")
        if self.model._format is not None:
            return self.model._render(messages, self.tools, thinking, names)
        if thinking or self.tools:
            what = "enable_thinking" if thinking else "tools"
            raise ArgumentError(f"{what}: this model has no chat template")
        return [Part(_joined(messages, names), marker=False)]

    def _runs(self, parts: list[Part]) -> list[_Run]:
        """Tokens of `parts`, those of answers as they were generated.

        Their text could be split into tokens in another way: all from there on would be
        computed again.
        """
        tokenizer = self.model.tokenizer
        runs, rest = _kept([*self._asked, *self._answered()], parts)
        if not runs and self.model._format is None:
            # A template begins with <bos> itself.
            runs = [_Run("", marker=False, ids=tokenizer.encode(""))]
        return runs + [_Run(*part, encode_parts([part], tokenizer)) for part in rest]

    def _answered(self) -> list[_Run]:
        """What the last answer was generated in: a run up to where a character ends.

        Bytes that make none end no run: what stands for them depends on what follows.
        """
        tokenizer, runs, ids = self.model.tokenizer, list[_Run](), list[int]()
        decoder, text = tokenizer.stream_decoder(special=True), ""
        for id in self._stream.tokens if self._stream is not None else ():
            if tokenizer.is_end(id):
                break
            text += decoder.push(id)
            ids.append(id)
            if text and not text.endswith("\ufffd"):
                runs.append(_Run(text, tokenizer.is_control(id), ids, made=True))
                text, ids = "", []
        if ids:
            text = tokenizer.decode(ids, special=True)
            runs.append(_Run(text, False, ids, made=True))
        return runs


def _written_down(stream: Stream, answer: dict[str, Any]) -> Iterator[Piece]:
    """Pieces of `stream`, what they say added to the message `answer`."""
    whole = False
    try:
        for piece in stream:
            whole = piece.finish_reason is not None
            answer["content"] += piece.text
            if piece.thought:
                answer["reasoning"] = answer.get("reasoning", "") + piece.thought
            if piece.tool_calls:
                answer.setdefault("tool_calls", []).extend(piece.tool_calls)
            yield piece
        ended_by = stream._progress.ended_by
        if not whole and ended_by not in (None, threading.get_ident()):
            raise RuntimeError(
                "another thread went on with the conversation, which ended this answer; "
                "make one conversation a thread"
            )
    finally:
        stream.close()


def _kept(runs: Sequence[_Run], parts: Sequence[Part]) -> tuple[list[_Run], list[Part]]:
    """The runs that `parts` begin with, and the parts that follow those.

    Only what was generated may end within a part: elsewhere a token may span the joint.
    """
    part = at = 0
    kept, follows = 0, (part, at)
    for number, run in enumerate(runs, 1):
        if part == len(parts):
            break
        text, marker = parts[part]
        if marker != run.marker or not text.startswith(run.text, at):
            break
        at += len(run.text)
        if at == len(text):
            part, at = part + 1, 0
        if run.made or not at:
            kept, follows = number, (part, at)
    part, at = follows
    rest = [*parts[part:]]
    if at:
        rest[0] = Part(rest[0].text[at:], marker=False)
    return [*runs[:kept]], rest


def _joined(messages: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The text to go on with: an answer follows at once, a message on a new line."""
    text = ""
    for name, message in zip(names, messages, strict=True):
        instance(message, name, Mapping, '{"role": ..., "content": ...}')
        content = string(message.get("content"), f"{name}: content")
        joined = text.endswith(("\n", " ")) or message.get("role") == "assistant"
        text += ("" if joined or not text else "\n") + content
    return text
