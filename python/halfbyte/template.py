# python/halfbyte/template.py
# Chat messages as the text that Gemma was trained on.
# SPDX-License-Identifier: Apache-2.0
"""Chat messages as the text that Gemma was trained on.

A template stored in a model file is data and is never executed. What it would write is
written here, as parts: markers, which become single control tokens, and text, which
stays text even where it spells a marker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol

from halfbyte.errors import ArgumentError, DTypeError, MissingExtraError

__all__ = [
    "ChatFormat",
    "Part",
    "encode_parts",
    "family_of",
    "render_text",
    "strip_thoughts",
]

Message = Mapping[str, Any]
Tool = Mapping[str, Any] | Callable[..., Any]

_ROLES = {"system", "developer", "user", "assistant", "model", "tool"}
_QUOTE = '<|"|>'
# What the template leaves out where it takes a schema for its own properties.
_SCHEMA_KEYS = {"description", "type", "properties", "required", "nullable"}
# What begins a turn, and in which family; of a vocabulary that has both, the first.
_TURNS: dict[str, Literal["gemma4", "gemma3"]] = {
    "<|turn>": "gemma4",
    "<start_of_turn>": "gemma3",
}
# In the source of a template the newline is written as an escape or as itself.
_EMPTY_THOUGHT = re.compile(r"<\|channel>thought(?:\\n|\n)<channel\|>")


class Part(NamedTuple):
    """A piece of a prompt; `marker` says that it is one control token."""

    text: str
    marker: bool


class Vocabulary(Protocol):
    """What :func:`family_of` asks: a set of spellings, or a tokenizer."""

    def __contains__(self, text: str, /) -> bool: ...


class Encoder(Protocol):
    """What :func:`encode_parts` needs of a tokenizer."""

    def encode(self, text: str, *, bos: bool, special: bool) -> list[int]:
        """Return the ids of `text`."""
        ...


@dataclass(frozen=True)
class ChatFormat:
    """How a model was taught to read a conversation.

    Parameters
    ----------
    family : {"gemma4", "gemma3"}
    empty_thought : bool
        Whether an answer without thinking starts with an empty thought, as the larger
        Gemma 4 models expect.
    """

    family: Literal["gemma4", "gemma3"]
    empty_thought: bool = False

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = False,
        preserve_thinking: bool = False,
        names: Sequence[str] | None = None,
    ) -> list[Part]:
        """Turn messages into the parts of a prompt.

        Parameters
        ----------
        messages : sequence of mappings
            In the form of the OpenAI API: ``role``, ``content`` (a string, or a list of
            text parts) and, for an assistant, ``tool_calls``, ``tool_responses`` and
            ``reasoning``. The arguments of a call are a mapping, or its JSON text.
        tools : sequence of mappings or functions, optional
            Declarations in the form of the OpenAI API, or functions for Transformers to
            make them of (Gemma 4).
        add_generation_prompt : bool
            End with the start of the model's turn.
        enable_thinking : bool
            Ask for thoughts before the answer (Gemma 4).
        preserve_thinking : bool
            Keep the reasoning of earlier turns that called tools (Gemma 4).
        names : sequence of str, optional
            What errors call each message; ``messages[0]`` and so on by default.

        Returns
        -------
        list of Part
            The first one is the marker ``<bos>``: encode without adding another.

        Raises
        ------
        ArgumentError
            If a role is unknown or out of order, a part of a content is no text, a
            function has no name or no description, or the text of arguments is no JSON.
        DTypeError
            If a message, a tool or the arguments of a call are no mapping, or a content
            is neither a string nor a list.
        MissingExtraError
            If a tool is a function, and Transformers is not installed.
        """
        names = names or [f"messages[{index}]" for index in range(len(messages))]
        for name, message in zip(names, messages, strict=True):
            _check(message, name)
        if self.family == "gemma3":
            if tools or enable_thinking:
                raise ArgumentError("Gemma 3 knows neither tools nor thinking")
            return _render_gemma3(messages, names, add_generation_prompt)
        writer = _Gemma4(messages, names, enable_thinking, preserve_thinking)
        try:
            writer.write_system(tools or ())
            writer.write_messages()
        except RecursionError:
            raise ArgumentError("a tool or a call is nested too deeply") from None
        if add_generation_prompt:
            writer.write_generation_prompt(self.empty_thought)
        return writer.out.parts


def family_of(template: str | None, markers: Vocabulary) -> ChatFormat | None:
    """Choose the chat format of a model.

    Parameters
    ----------
    template : str or None
        The template stored with the model. It is searched, never rendered: one that
        does not write the family's marker of turns is of another family.
    markers : Vocabulary
        Anything that answers whether a spelling is ``in`` the vocabulary.

    Returns
    -------
    ChatFormat or None
        None if no family's marker of turns is in the vocabulary and in the template.
    """
    marker = next((m for m in _TURNS if m in markers), None)
    if marker is None or marker not in (template or marker):
        return None
    prompt = (template or "").rpartition("add_generation_prompt")[2]
    return ChatFormat(_TURNS[marker], _EMPTY_THOUGHT.search(prompt) is not None)


def render_text(parts: Sequence[Part]) -> str:
    """Join parts to the text of the prompt, for display and tests.

    Parameters
    ----------
    parts : sequence of Part

    Returns
    -------
    str
    """
    return "".join(part.text for part in parts)


def encode_parts(parts: Sequence[Part], tokenizer: Encoder) -> list[int]:
    """Tokenize a prompt so that only its markers become control tokens.

    Parameters
    ----------
    parts : sequence of Part
    tokenizer : Encoder

    Returns
    -------
    list of int

    Raises
    ------
    ArgumentError
        If the vocabulary lacks one of the markers.
    """
    ids: list[int] = []
    for part in parts:
        new = tokenizer.encode(part.text, bos=False, special=part.marker)
        if part.marker and len(new) != 1:
            raise ArgumentError(f"the vocabulary has no token {part.text!r}")
        ids += new
    return ids


def strip_thoughts(text: str) -> str:
    """Remove every ``<|channel>...<channel|>`` span, and white space at the ends.

    Parameters
    ----------
    text : str
        What a model wrote, with its markers.

    Returns
    -------
    str
        A span that is never closed is removed up to the end.
    """
    pieces = text.split("<channel|>")
    return "".join(piece.partition("<|channel>")[0] for piece in pieces).strip()


class _Parts:
    """Collects parts; neighbouring texts become one, as they are tokenized together."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def mark(self, marker: str) -> None:
        self.parts.append(Part(marker, marker=True))

    def text(self, text: str) -> None:
        if not text:
            return
        if self.parts and not self.parts[-1].marker:
            text = self.parts.pop().text + text
        self.parts.append(Part(text, marker=False))


def _check(message: Message, what: str) -> None:
    _mapping(message, what)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ArgumentError(
            f"{what}: found role {role!r}; expected one of " + ", ".join(sorted(_ROLES))
        )
    for name in ("tool_calls", "tool_responses"):
        value = message.get(name) or ()
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
            got = type(value).__name__
            raise DTypeError(f"{what}: {name}: found {got}; expected a list")


def _texts(message: Message, name: str) -> list[str]:
    """Return the text parts of a message's content, as they are."""
    content = message.get("content")
    if content is None and _is_model(message):  # it may have called tools alone
        return []
    if content is None:
        raise ArgumentError(
            f"{name}: content: found none; expected a string or a list of text parts"
        )
    if isinstance(content, str):
        return [content]
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise DTypeError(
            f"{name}: content: found {type(content).__name__}; expected a string or a "
            "list of text parts"
        )
    texts: list[str] = []
    for index, part in enumerate(content):
        what = f"{name}: content[{index}]"
        kind = str(_mapping(part, what).get("type", "text"))
        if kind != "text":
            raise ArgumentError(
                f"{what}: found a part of type {kind[:20]!r}; expected text: images and "
                "sound are not read"
            )
        text = part.get("text")
        if not isinstance(text, str):
            got = type(text).__name__
            raise DTypeError(f"{what}: found {got} as text; expected a string")
        texts.append(text)
    return texts


def _is_model(message: Message | None) -> bool:
    return message is not None and message["role"] in {"assistant", "model"}


def _is_system(message: Message) -> bool:
    return message["role"] in {"system", "developer"}


def _render_gemma3(
    messages: Sequence[Message], names: Sequence[str], add_generation_prompt: bool
) -> list[Part]:
    out = _Parts()
    out.mark("<bos>")
    prefix = ""
    if messages and _is_system(messages[0]):
        prefix = "".join(_texts(messages[0], names[0])) + "\n\n"
        messages, names = messages[1:], names[1:]
    for index, (message, name) in enumerate(zip(messages, names, strict=True)):
        expected = "assistant" if index % 2 else "user"
        role = "assistant" if _is_model(message) else message["role"]
        if role != expected:
            raise ArgumentError(
                f"{name}: found role {message['role']!r}; expected {expected!r}, as "
                "roles alternate in Gemma 3"
            )
        out.mark("<start_of_turn>")
        out.text("model\n" if role == "assistant" else "user\n")
        out.text(prefix)
        prefix = ""
        for text in _texts(message, name):
            out.text(text.strip())
        out.mark("<end_of_turn>")
        out.text("\n")
    if prefix:
        raise ArgumentError("a system message needs a user message to go with")
    if add_generation_prompt:
        out.mark("<start_of_turn>")
        out.text("model\n")
    return out.parts


class _Gemma4:
    """Writes one conversation."""

    def __init__(
        self,
        messages: Sequence[Message],
        names: Sequence[str],
        thinking: bool,
        preserve: bool,
    ) -> None:
        self.out = _Parts()
        self.messages = messages
        self.names = names
        self.thinking = thinking
        self.preserve = preserve
        # What the last message ended with, for the generation prompt.
        self.last: Literal["text", "call", "result"] = "text"
        self.last_user = max(
            (i for i, m in enumerate(messages) if m["role"] == "user"), default=-1
        )

    def write_system(self, tools: Sequence[Tool]) -> None:
        self.out.mark("<bos>")
        system = bool(self.messages) and _is_system(self.messages[0])
        if not (self.thinking or tools or system):
            return
        self._open_turn("system")
        if self.thinking:
            self.out.mark("<|think|>")
            self.out.text("\n")
        if system:
            first = self.messages[0]
            texts = [text.strip() for text in _texts(first, self.names[0])]
            # A list of parts gets a space after each, a string does not.
            space = "" if isinstance(first.get("content"), str) else " "
            self.out.text("".join(text + space for text in texts))
        for index, tool in enumerate(tools):
            self.out.mark("<|tool>")
            self._declaration(_declared(tool, f"tools[{index}]"))
            self.out.mark("<tool|>")
        self._close_turn()

    def write_messages(self) -> None:
        previous: Message | None = None
        skip_system = bool(self.messages) and _is_system(self.messages[0])
        for index, message in enumerate(self.messages):
            if index == 0 and skip_system:
                continue
            if message["role"] == "tool":
                if not _is_model(previous) or not (previous or {}).get("tool_calls"):
                    raise ArgumentError(
                        f"{self.names[index]}: a tool message must follow an assistant "
                        "message with tool_calls"
                    )
                continue
            if not (_is_model(message) and _is_model(previous)):
                role = "model" if _is_model(message) else message["role"]
                self._open_turn(role)
            self._message(index, message)
            previous = message

    def write_generation_prompt(self, empty_thought: bool) -> None:
        if self.last == "call":
            return
        if self.last == "result":
            if self.thinking:
                self.out.mark("<|channel>")
                self.out.text("thought\n")
            return
        self._open_turn("model")
        if empty_thought and not self.thinking:
            self._thought("")

    def _message(self, index: int, message: Message) -> None:
        made = (message.get("tool_calls") or ()) if _is_model(message) else ()
        name = self.names[index]
        calls = [
            (_function(c, f"{name}: tool_calls[{i}]"), c.get("id"))
            for i, c in enumerate(made)
        ]
        results: list[tuple[str, Any]] = []
        if _is_model(message):
            self._reasoning(index, message, bool(calls))
            for i, (function, _) in enumerate(calls):
                self._call(function, f"{name}: tool_calls[{i}]")
            results = self._results(index, message, calls)
            for function_name, value in results:
                self._response(function_name, value)
        strip = strip_thoughts if _is_model(message) else str.strip
        content = "".join(strip(text) for text in _texts(message, name))
        self.out.text(content)

        following = next(
            (m for m in self.messages[index + 1 :] if m["role"] != "tool"), None
        )
        self.last = "result" if results else "call" if calls else "text"
        if self.last == "call":
            self.out.mark("<|tool_response>")
        elif _is_model(message) and _is_model(following):
            pass  # one turn of several messages
        elif not results or content or following is not None:
            self._close_turn()

    def _open_turn(self, role: str) -> None:
        self.out.mark("<|turn>")
        self.out.text(role + "\n")

    def _close_turn(self) -> None:
        self.out.mark("<turn|>")
        self.out.text("\n")

    def _thought(self, text: str) -> None:
        self.out.mark("<|channel>")
        self.out.text("thought\n" + text)
        self.out.mark("<channel|>")

    def _reasoning(self, index: int, message: Message, has_calls: bool) -> None:
        text = message.get("reasoning") or message.get("reasoning_content")
        current = index > self.last_user
        if text and (current or (self.preserve and has_calls)):
            self._thought(str(text) + "\n")

    def _call(self, function: Mapping[str, Any], what: str) -> None:
        self.out.mark("<|tool_call>")
        self.out.text(f"call:{function['name']}")
        self._value(_arguments(function, what))
        self.out.mark("<tool_call|>")

    def _results(
        self,
        index: int,
        message: Message,
        calls: Sequence[tuple[Mapping[str, Any], Any]],
    ) -> list[tuple[str, Any]]:
        """Return name and value of each result that belongs to a message."""
        own = [
            _mapping(response, f"{self.names[index]}: tool_responses[{i}]")
            for i, response in enumerate(message.get("tool_responses") or ())
        ]
        if own:
            return [(r.get("name") or "unknown", r.get("response")) for r in own]
        # A result without an id is of a call without one, the last.
        names = {repr(call_id): function["name"] for function, call_id in calls}
        results: list[tuple[str, Any]] = []
        for i, follower in enumerate(self.messages[index + 1 :], index + 1):
            if follower["role"] != "tool":
                break
            name = names.get(repr(follower.get("tool_call_id")))
            value = follower.get("content")
            if isinstance(value, str | Sequence | Mapping):
                value = "".join(_texts(follower, self.names[i]))
            results.append((name or follower.get("name") or "unknown", value))
        return results

    def _response(self, name: str, value: Any) -> None:
        self.out.mark("<|tool_response>")
        self.out.text(f"response:{name}")
        self._value(value if isinstance(value, Mapping) else {"value": value})
        self.out.mark("<tool_response|>")

    def _string(self, text: object) -> None:
        self.out.mark(_QUOTE)
        self.out.text(str(text))
        self.out.mark(_QUOTE)

    def _value(self, value: Any, *, quote_keys: bool = False) -> None:
        """Write an argument: strings between quote markers, keys sorted."""
        if isinstance(value, str):
            self._string(value)
        elif value is None or isinstance(value, bool):
            self.out.text({None: "null", True: "true", False: "false"}[value])
        elif isinstance(value, Mapping):
            self.out.text("{")
            for comma, key, item in _sorted_items(value):
                self.out.text(comma)
                if quote_keys:
                    self._string(key)
                else:
                    self.out.text(str(key))
                self.out.text(":")
                self._value(item, quote_keys=quote_keys)
            self.out.text("}")
        elif isinstance(value, Sequence):
            self._list(value, quote_keys=quote_keys)
        else:
            self.out.text(str(value))

    def _list(self, values: Sequence[Any], *, quote_keys: bool = False) -> None:
        self.out.text("[")
        for i, item in enumerate(values):
            self.out.text("," if i else "")
            self._value(item, quote_keys=quote_keys)
        self.out.text("]")

    def _declaration(self, function: Mapping[str, Any]) -> None:
        self.out.text(f"declaration:{function['name']}{{description:")
        self._string(function.get("description") or "")
        parameters = function.get("parameters")
        if parameters:
            what = f"parameters of {function['name']!r}"
            self.out.text(",parameters:{")
            self._parameters(_mapping(parameters, what))
        if "response" in function:
            what = f"response of {function['name']!r}"
            response = _mapping(function["response"] or {}, what)
            self.out.text(",response:{")
            if response.get("description"):
                self._entry("description", response["description"])
            # Here and below a brace goes with the type, and is missing without it.
            if _type_of(response) == "OBJECT":
                self.out.text("type:")
                self._string("OBJECT")
                self.out.text("}")
        self.out.text("}")

    def _parameters(self, schema: Mapping[str, Any]) -> None:
        if schema.get("properties"):
            self._properties(schema["properties"])
        self._required(schema)
        if schema.get("type"):
            self.out.text("type:")
            self._string(_type_of(schema))
            self.out.text("}")

    def _entry(self, name: str, value: Any) -> None:
        self.out.text(f"{name}:")
        self._value(value, quote_keys=True)
        self.out.text(",")

    def _required(self, schema: Mapping[str, Any]) -> None:
        if schema.get("required"):
            self._entry("required", _listed(schema["required"], "required"))

    def _properties(self, properties: Mapping[str, Any], end: str = "},") -> None:
        self.out.text("properties:{")
        properties = _mapping(properties, "properties of a schema")
        for comma, name, schema in _sorted_items(properties):
            self.out.text(f"{comma}{name}:{{")
            self._property(schema if isinstance(schema, Mapping) else {})
            self.out.text("}")
        self.out.text(end)

    def _property(self, schema: Mapping[str, Any]) -> None:
        kind = _type_of(schema)
        if schema.get("description"):
            self._entry("description", str(schema["description"]))
        if kind == "STRING" and schema.get("enum"):
            self._entry("enum", schema["enum"])
        items = schema.get("items")
        if kind == "ARRAY" and items and isinstance(items, Mapping):
            self._items(items)
        if schema.get("nullable"):
            self.out.text("nullable:true,")
        if kind == "OBJECT":
            inner = schema.get("properties")
            if not isinstance(inner, Mapping):
                inner = {k: v for k, v in schema.items() if k not in _SCHEMA_KEYS}
            self._properties(inner)
            self._required(schema)
        self.out.text("type:")
        self._string(kind)

    def _items(self, schema: Mapping[str, Any]) -> None:
        self.out.text("items:{")
        known = {key: value for key, value in schema.items() if value is not None}
        for comma, key, value in _sorted_items(known):
            self.out.text(comma)
            if key == "properties":
                self._properties(value if isinstance(value, Mapping) else {}, end="}")
                continue
            self.out.text(f"{key}:")
            if key == "type":
                if isinstance(value, str):
                    value = value.upper()
                else:
                    value = [name.upper() for name in _listed(value, "type of items")]
            elif key == "required":
                value = _listed(value, "required")
            # The keys of what is in there are quoted, of all but this template's own.
            self._value(value, quote_keys=True)
        self.out.text("},")


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        got = type(value).__name__
        raise DTypeError(f"{what}: found {got}; expected a mapping")
    return value


def _listed(value: Any, key: str) -> list[str]:
    """Return the names in a list of a schema."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        got = type(value).__name__
        raise DTypeError(f"{key} of a schema: found {got}; expected a list of names")
    return [str(name) for name in value]


def _declared(tool: Any, what: str) -> Mapping[str, Any]:
    """Return a declared function: one of Python is declared as Transformers does."""
    if callable(tool):
        try:
            utils = import_module("transformers.utils")
        except ImportError as error:
            raise MissingExtraError(
                f"{what}: found a function; expected a mapping, or Transformers to make "
                f'one of it ({error}): run pip install "halfbyte[transformers]"'
            ) from None
        try:
            tool = utils.get_json_schema(tool)
        except Exception as error:  # noqa: BLE001 - its own, and those of type hints
            raise ArgumentError(f"{what}: {' '.join(str(error).split())}") from None
    return _function(tool, what)


def _function(value: Any, what: str) -> Mapping[str, Any]:
    """Return the function of a declaration or a call, which may be in a wrapping."""
    function = _mapping(_mapping(value, what).get("function", value), what)
    if not isinstance(function.get("name"), str):
        raise ArgumentError(f"{what}: found no name; expected that of a function")
    return function


def _arguments(function: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """Return the arguments of a call, read if they are JSON, as OpenAI has them."""
    what = f"{what}: arguments of {function['name']!r}"
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments.strip() or "{}")
        except (ValueError, RecursionError) as error:
            raise ArgumentError(
                f"{what}: found no JSON ({error}); expected a JSON object, or a mapping"
            ) from None
    return _mapping({} if arguments is None else arguments, what)


def _type_of(schema: Mapping[str, Any]) -> str:
    # A list of types is what Python prints of it: the template says so.
    return str(schema.get("type", "")).upper()


def _sorted_items(mapping: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield a comma where one is due, key and value, ignoring case in the order."""
    items = sorted(mapping.items(), key=lambda item: str(item[0]).lower())
    for i, (key, value) in enumerate(items):
        yield "," if i else "", key, value
