# python/halfbyte/answers.py
# SPDX-License-Identifier: Apache-2.0
"""The tokens of an answer told apart: its text, thoughts, calls of tools.

What they are parted by are tokens of the vocabulary, found by their names. Text that
only spells one stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

__all__ = ["Reader", "Said", "markers_of"]

_THOUGHT, _THOUGHT_END = "<|channel>", "<channel|>"
_CALL, _CALL_END = "<|tool_call>", "<tool_call|>"
_QUOTE = '<|"|>'
_CHANNEL = "thought\n"  # the channel's name, before what is thought

# In a call, outside of its quote tokens: punctuation, JSON's strings, all else.
_WORD = re.compile(
    r"""\s*(?:([{}\[\],:])|("(?:[^"\\]|\\.)*")|([^\s{}\[\],:"][^{}\[\],:]*))""",
    re.DOTALL,
)
_LITERALS = {"null": None, "None": None, "True": True, "False": False}


class _Decoder(Protocol):
    def push(self, id: int, /) -> str: ...
    def finish(self) -> str: ...


class _Tokenizer(Protocol):
    """What is asked of a tokenizer."""

    def encode(self, text: str, /, *, bos: bool, special: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], /, *, special: bool) -> str: ...
    def is_control(self, id: int, /) -> bool: ...
    def stream_decoder(self) -> _Decoder: ...


class Said(NamedTuple):
    """What tokens brought."""

    text: str = ""
    thought: str = ""
    calls: tuple[dict[str, Any], ...] = ()
    error: str | None = None  # why a call is in `text` instead

    def joined(self, after: Said) -> Said:
        """Both, one after the other."""
        return Said(
            self.text + after.text,
            self.thought + after.thought,
            self.calls + after.calls,
            self.error or after.error,
        )


def markers_of(tokenizer: _Tokenizer) -> dict[int, str]:
    """Ids of the tokens that part an answer, as far as the vocabulary has them."""
    found = {}
    for name in (_THOUGHT, _THOUGHT_END, _CALL, _CALL_END, _QUOTE):
        ids = tokenizer.encode(name, bos=False, special=True)
        if len(ids) == 1 and tokenizer.is_control(ids[0]):
            found[ids[0]] = name
    return found


class Reader:
    """Takes the tokens of one answer as they come.

    Parameters
    ----------
    tokenizer : Tokenizer
    markers : dict
        As `markers_of` finds them. Without any, all is text.
    prompt : sequence of int
        What the answer follows: it may have begun a thought.
    """

    def __init__(
        self,
        tokenizer: _Tokenizer,
        markers: dict[int, str],
        prompt: Sequence[int] = (),
    ) -> None:
        self._tokenizer, self._markers = tokenizer, markers
        self._decoder = tokenizer.stream_decoder()
        ends = (markers[id] for id in reversed(prompt) if id in markers)
        last = next((m for m in ends if m in (_THOUGHT, _THOUGHT_END)), None)
        self._thinking = self._named = last == _THOUGHT
        self._held = ""  # of a thought: what may be its name, or its last line break
        self._joint = ""  # what parts two thoughts
        self._thought_before = False
        self._call: list[int] | None = None
        self._num_calls = 0

    def push(self, token: int) -> Said:
        """Take a token."""
        marker = self._markers.get(token)
        if self._call is not None and marker not in (_CALL, _CALL_END):
            self._call.append(token)
            return Said()
        if marker is None or marker == _QUOTE:
            return self._said(self._decoder.push(token))
        said = self.finish()
        if marker == _THOUGHT:
            self._thinking, self._named, self._held = True, False, ""
            self._joint = "\n" if self._thought_before else ""
        elif marker == _THOUGHT_END:
            self._thinking = False
        elif marker == _CALL:  # a thought that was not closed ends with it
            self._thinking, self._call = False, []
        return said

    def finish(self) -> Said:
        """End what is open: half a character, a call that was cut off."""
        if self._call is None:
            return self._said(self._decoder.finish())
        ids, self._call = self._call, None
        try:
            name, arguments = _Call(self._between_quotes(ids)).read()
        except (ValueError, RecursionError) as error:
            text = self._tokenizer.decode(ids, special=True)
            return Said(text, error=f"tool call: {error}")
        call_id = f"call_{self._num_calls}"
        self._num_calls += 1
        function = {"name": name, "arguments": arguments}
        return Said(calls=({"id": call_id, "type": "function", "function": function},))

    def _between_quotes(self, ids: Sequence[int]) -> list[str]:
        parts: list[list[int]] = [[]]
        for id in ids:
            if self._markers.get(id) == _QUOTE:
                parts.append([])
            else:
                parts[-1].append(id)
        return [self._tokenizer.decode(part, special=True) for part in parts]

    def _said(self, text: str) -> Said:
        return Said(thought=self._thought(text)) if self._thinking else Said(text)

    def _thought(self, text: str) -> str:
        text = self._held + text
        if not self._named:
            if _CHANNEL.startswith(text):
                self._held = text
                return ""
            text, self._named = text.removeprefix(_CHANNEL), True
        shown = text.rstrip("\n")
        self._held = text[len(shown) :]
        if shown:
            shown, self._joint = self._joint + shown, ""
            self._thought_before = True
        return shown


class _Call:
    """Reads ``call:NAME{key:value,…}``.

    Parameters
    ----------
    pieces : list of str
        The text between the quote tokens: every second one is a string.
    """

    def __init__(self, pieces: list[str]) -> None:
        if not len(pieces) % 2:
            raise ValueError("found a string without an end; expected its quote")
        self._words = self._split(pieces)

    def read(self) -> tuple[str, dict[str, Any]]:
        """Return the name and the arguments."""
        self._expect("", "call")
        self._expect(":")
        kind, name = next(self._words)
        if kind:
            raise ValueError(f"found {name!r}; expected the name of a function")
        self._expect("{")
        arguments = self._mapping()
        self._expect("end")
        return name, arguments

    @staticmethod
    def _split(pieces: list[str]) -> Iterator[tuple[str, str]]:
        """Yield kind and text: a mark of punctuation, "string", "end", or "": a word."""
        for index, piece in enumerate(pieces):
            if index % 2:
                yield "string", piece
                continue
            at = 0
            while found := _WORD.match(piece, at):
                mark, quoted, word = found.groups()
                if quoted:
                    yield "string", json.loads(quoted, strict=False)
                else:
                    yield mark or "", mark or word.strip()
                at = found.end()
            if rest := piece[at:].strip():
                raise ValueError(f"found {rest[:20]!r}; expected the end of a string")
        while True:
            yield "end", "the end"

    def _expect(self, kind: str, text: str | None = None) -> None:
        found, word = next(self._words)
        if found != kind or (text or word) != word:
            raise ValueError(f"found {word[:20]!r}; expected {text or kind!r}")

    def _comma(self, close: str) -> bool:
        """Whether another entry follows."""
        kind, word = next(self._words)
        if kind not in (",", close):
            raise ValueError(f"found {word[:20]!r}; expected ',' or {close!r}")
        return kind == ","

    def _mapping(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        kind, key = next(self._words)
        while kind != "}":
            if kind not in ("", "string"):
                raise ValueError(f"found {key!r}; expected the name of an argument")
            self._expect(":")
            result[key] = self._value(*next(self._words))
            if not self._comma("}"):
                break
            kind, key = next(self._words)
        return result

    def _list(self) -> list[Any]:
        result: list[Any] = []
        kind, word = next(self._words)
        while kind != "]":
            result.append(self._value(kind, word))
            if not self._comma("]"):
                break
            kind, word = next(self._words)
        return result

    def _value(self, kind: str, word: str) -> Any:
        if kind == "string":
            return word
        if kind == "{":
            return self._mapping()
        if kind == "[":
            return self._list()
        if kind == "" and word in _LITERALS:
            return _LITERALS[word]
        try:
            return json.loads(word, parse_constant=_no_number)
        except ValueError:
            raise ValueError(f"found {word[:20]!r}; expected a value") from None


def _no_number(name: str) -> None:
    raise ValueError(name)  # NaN and the like, which JSON has not
