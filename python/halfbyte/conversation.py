# python/halfbyte/conversation.py
# SPDX-License-Identifier: Apache-2.0
"""Conversations: messages back and forth, each turn computed behind those before it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from halfbyte._arguments import flag, instance, string, takes_options_of
from halfbyte.errors import ArgumentError
from halfbyte.model import CHAT_ONLY, Message, Model, Options, Rendered, Session
from halfbyte.records import Piece
from halfbyte.streams import Stream
from halfbyte.template import Part, encode_parts

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Conversation"]


class _Turn(NamedTuple):
    """What an answer was asked with, and the answer."""

    parts: list[Part]
    ids: list[int]  # of those parts
    stream: Stream


class Conversation:
    """Messages back and forth with a model, in a session of their own.

    A turn computes only what is new: keys and values of all that was said are kept.

    Parameters
    ----------
    model : Model
    system : str, optional
        Instructions ahead of the messages.
    enable_thinking : bool
        Ask for thoughts before each answer (Gemma 4).

    Attributes
    ----------
    model : Model
    system : str or None
        May be changed, as the messages may.
    enable_thinking : bool
        May be changed too.
    messages : list of dict
        What the user and the assistant have said, in the form of `Model.chat`. The last
        one grows as it is generated. They may be changed, taken away or replaced: the
        next turn computes what follows the change again.

    Raises
    ------
    DTypeError
        If `model` is no `Model`, `system` no str, or `enable_thinking` no bool.
    ArgumentError
        If the model has no place for thoughts.

    Notes
    -----
    A model without a chat template goes on with the text of all messages, each of the
    user's on a line of its own.

    Earlier answers count as the template has them. Where it leaves something out, as
    Gemma 4's does with thoughts, the next turn computes that answer once more. A thought
    is the ``reasoning`` of its message.

    One thread uses a conversation at a time.
    """

    def __init__(
        self, model: Model, *, system: str | None = None, enable_thinking: bool = False
    ) -> None:
        self.model = instance(model, "model", Model, "a Model, as load gives it")
        self.system = None if system is None else string(system, "system")
        self.enable_thinking = flag(enable_thinking, "enable_thinking")
        self.messages: list[dict[str, Any]] = []
        self._session = model.session()
        self._last: _Turn | None = None
        if self.enable_thinking:  # what cannot be is said at once
            self._encode(self._parts([]))

    @takes_options_of(Session.stream, but=CHAT_ONLY)
    def send(self, text: str, **options: Unpack[Options]) -> Stream:
        """Say something, and get the answer piece by piece.

        Both become messages. An answer that is not read to its end, or is closed, is kept
        as far as it came. It ends with the next message at the latest.

        Parameters
        ----------
        text : str
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
        """
        self._stop()
        question = {"role": "user", "content": string(text, "text")}
        parts = self._parts([*self.messages, question])
        ids = self._encode(parts)
        stream = self._session.stream(Rendered(ids), **options)
        answer: dict[str, Any] = {"role": "assistant", "content": ""}
        self.messages += [question, answer]
        self._last = _Turn(parts, ids, stream)
        return Stream(_written_down(stream, answer), stream._progress)

    def reset(self) -> None:
        """Forget the messages; not `system`, nor what was computed of it."""
        self._stop()
        self.messages.clear()

    def _stop(self) -> None:
        if self._last is not None:
            self._last.stream.close()

    def _parts(self, messages: Sequence[Message]) -> list[Part]:
        if self.system is not None:
            messages = [{"role": "system", "content": self.system}, *messages]
        if self.model._format is not None:
            return self.model._format.render(
                messages, enable_thinking=self.enable_thinking
            )
        if self.enable_thinking:
            raise ArgumentError("enable_thinking: this model has no chat template")
        return [Part(_joined(messages), marker=False)]

    def _encode(self, parts: list[Part]) -> list[int]:
        """Token ids of `parts`, those of the last answer as they were generated.

        Its text could be split into tokens in another way: all from there on would be
        computed again.
        """
        tokenizer, rest = self.model.tokenizer, None
        if self._last is not None:
            before, ids, stream = self._last
            made = [id for id in stream.tokens if not tokenizer.is_end(id)]
            ids = ids + made
            rest = _what_follows(parts, before, tokenizer.decode(made, special=True))
        if rest is None:  # a template begins with <bos> itself
            ids = tokenizer.encode("") if self.model._format is None else []
            rest = parts
        return ids + encode_parts(rest, tokenizer)


def _written_down(stream: Stream, answer: dict[str, Any]) -> Iterator[Piece]:
    """Pieces of `stream`, what they say added to the message `answer`."""
    try:
        for piece in stream:
            answer["content"] += piece.text
            if piece.thought:
                answer["reasoning"] = answer.get("reasoning", "") + piece.thought
            if piece.tool_calls:
                answer.setdefault("tool_calls", []).extend(piece.tool_calls)
            yield piece
    finally:
        stream.close()


def _what_follows(
    parts: list[Part], before: list[Part], answer: str
) -> list[Part] | None:
    """What comes after `before` and `answer` in `parts`, if they begin with both."""
    *same, last = before
    at, said = len(same), last.text + answer
    if len(parts) <= at or parts[:at] != same:
        return None
    text, marker = parts[at]
    if marker != last.marker or not text.startswith(said):
        return None
    return [Part(text[len(said) :], marker=False), *parts[at + 1 :]]


def _joined(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text to go on with: an answer follows at once, a message on a new line."""
    text = ""
    for index, message in enumerate(messages):
        content = string(message.get("content"), f"messages[{index}]: content")
        joined = text.endswith(("\n", " ")) or message.get("role") == "assistant"
        text += ("" if joined or not text else "\n") + content
    return text
