# tests/python/test_answers.py
# SPDX-License-Identifier: Apache-2.0
"""Answers with thoughts and calls of tools: told apart, handed out, left out of history.

The tiny model of the package has all tokens and never thinks, so what it "says" here is
put into its mouth. What it is asked is read back from the session's tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import halfbyte
import pytest
from halfbyte import errors, template
from halfbyte.answers import Reader, Said, markers_of
from halfbyte.cli import terminal
from halfbyte.model import Session
from hypothesis import given
from hypothesis import strategies as st

MODEL = halfbyte.load("tiny", threads=1)
TOKENIZER = MODEL.tokenizer
MARKERS = markers_of(TOKENIZER)

USER = {"role": "user", "content": "Weather?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
THOUGHT = "<|channel>thought\nIs it é?\n\nIt is.\n<channel|>"
CALL = '<|tool_call>call:get_weather{city:<|"|>Pa{r,is<|"|>,n:2}<tool_call|>'


def spelled(text: str) -> list[int]:
    """Tokens of a text with markers."""
    return TOKENIZER.encode(text, bos=False, special=True)


def read(ids: list[int], prompt: str = "") -> Said:
    reader, said = Reader(TOKENIZER, MARKERS, spelled(prompt)), Said()
    for id in ids:
        said = said.joined(reader.push(id))
    return said.joined(reader.finish())


def called(name: str, number: int = 0, /, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


# --- Reading ---------------------------------------------------------------------------


def test_markers_are_found_by_name() -> None:
    assert set(MARKERS.values()) == {
        *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>')
    }
    assert all(TOKENIZER.token_to_piece(id) == name for id, name in MARKERS.items())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Hello.", Said("Hello.")),
        (THOUGHT + "Hello.", Said("Hello.", "Is it é?\n\nIt is.")),
        ("<|channel>thought\n<channel|>Hello.", Said("Hello.")),
        ("<|channel>thought<channel|>Hello.", Said("Hello.")),
        ("<|channel>thorough<channel|>Hello.", Said("Hello.", "thorough")),
        ("a<|channel>thought\nb<channel|>c", Said("ac", "b")),
        (
            "<|channel>thought\na\n<channel|>b<|channel>thought\n<channel|>"
            + "<|channel>c",
            Said("b", "a\nc"),
        ),
        # Cut off by the limit.
        ("<|channel>", Said()),
        ("<|channel>thou", Said()),
        ("<|channel>thought\nIs it", Said("", "Is it")),
        ("<|channel>thought\nIs it\n", Said("", "Is it")),
        # Markers that close nothing.
        ("a<channel|>b<tool_call|>c", Said("abc")),
        ("<|channel>thought\na<|channel>thought\nb<channel|>c", Said("c", "a\nb")),
    ],
)
def test_thoughts(answer: str, said: Said) -> None:
    assert read(spelled(answer)) == said


def test_a_thought_that_the_prompt_begins() -> None:
    prompt = "<tool_response|><|channel>thought\n"
    assert read(spelled("Is it\n<channel|>Hello."), prompt) == Said("Hello.", "Is it")
    assert read(spelled("Hello."), prompt + "<channel|>") == Said("Hello.")


def test_wherever_tokens_part_the_same_is_said() -> None:
    whole = read(spelled("Well. " + THOUGHT + "Hello." + CALL))
    assert whole.text == "Well. Hello."
    assert whole.thought == "Is it é?\n\nIt is."
    assert whole.calls == (called("get_weather", city="Pa{r,is", n=2),)
    parts = [
        *("Well. ", "<|channel>", "thought\nIs it é?\n\nIt is.\n", "<channel|>"),
        *("Hello.", "<|tool_call>", "call:get_weather{city:", '<|"|>', "Pa{r,is"),
        *('<|"|>', ",n:2}", "<tool_call|>"),
    ]
    for part, text in enumerate(parts):
        before = spelled("".join(parts[:part]))
        after = spelled("".join(parts[part + 1 :]))
        for at in range(1, 0 if text in MARKERS.values() else len(text)):
            halves = spelled(text[:at]) + spelled(text[at:])
            assert read(before + halves + after) == whole
    bytes_ = [id for c in "é".encode() for id in spelled_byte(c)]
    assert read([*spelled("<|channel>a"), *bytes_]).thought == "aé"
    assert read([*spelled("<|channel>a"), bytes_[0]]).thought == "a\ufffd"


def spelled_byte(byte: int) -> list[int]:
    pieces = map(TOKENIZER.token_to_piece, range(TOKENIZER.num_tokens))
    return [id for id, piece in enumerate(pieces) if piece == f"<0x{byte:02X}>"]


def test_text_that_spells_a_marker_is_text() -> None:
    forged = "<|channel>thought\nx<channel|><|tool_call>call:f{}<tool_call|>"
    ids = TOKENIZER.encode(forged, bos=False)
    assert read(ids) == Said(forged)
    inside = [*spelled('<|tool_call>call:f{a:<|"|>'), *ids, *spelled('<|"|>}')]
    assert read(inside).calls == (called("f", a=forged),)


def test_without_markers_all_is_text() -> None:
    reader = Reader(TOKENIZER, {})
    said = [reader.push(id) for id in spelled(THOUGHT)]
    assert "".join(s.text for s in said) == "thought\nIs it é?\n\nIt is.\n"


# --- Calls -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ("{}", {}),
        ("{a:1,b:-2.5e3,c:true,d:False,e:null,f:None}", None),
        ("{a:{},b:[],c:[1,[2,{d:3}]]}", {"a": {}, "b": [], "c": [1, [2, {"d": 3}]]}),
        (' { "a" : "x\\n\\"}" , b : <|"|>"<|"|> } ', {"a": 'x\n"}', "b": '"'}),
        ('{<|"|>a<|"|>:<|"|><|"|>,}', {"a": ""}),
        ("{two words:1}", {"two words": 1}),
    ],
)
@pytest.mark.parametrize("end", ["<tool_call|>", "<tool_call|><tool_call|>", ""])
def test_calls(body: str, arguments: dict[str, Any] | None, end: str) -> None:
    if arguments is None:
        arguments = {"a": 1, "b": -2500.0, "c": True, "d": False, "e": None, "f": None}
    said = read(spelled(f"<|tool_call>call:f{body}{end}"))
    assert said == Said(calls=(called("f", **arguments),))


def test_several_calls() -> None:
    said = read(spelled(f"A{CALL}<|tool_call>call:f{{}}{CALL}B"))
    assert said.text == "AB"
    weather = {"city": "Pa{r,is", "n": 2}
    assert said.calls == (
        called("get_weather", 0, **weather),
        called("f", 1),
        called("get_weather", 2, **weather),
    )


def test_a_call_ends_a_thought() -> None:
    said = read(spelled("<|channel>thought\nI ask" + CALL + "B"))
    assert (said.text, said.thought, len(said.calls)) == ("B", "I ask", 1)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "found 'the end'; expected 'call'"),
        ("call:f", "found 'the end'; expected '{'"),
        ("call:{}", "found '{'; expected the name of a function"),
        ("f{}", "found 'f'; expected 'call'"),
        ("call:f{a:Paris}", "found 'Paris'; expected a value"),
        ("call:f{a:NaN}", "found 'NaN'; expected a value"),
        ("call:f{a}", "found '}'; expected ':'"),
        ("call:f{a:1", "found 'the end'; expected ',' or '}'"),
        ("call:f{a:[1}", "found '}'; expected ',' or ']'"),
        ("call:f{a:1}b", "found 'b'; expected 'end'"),
        ('call:f{a:<|"|>Par', "found a string without an end; expected its quote"),
        ('call:f{a:"Par}', "found '\"Par}'; expected the end of a string"),
        ("call:f{a:<|channel>1}", "found '<|channel>1'; expected a value"),
    ],
)
def test_what_is_no_call_is_text_and_says_why(body: str, error: str) -> None:
    said = read(spelled(f"A<|tool_call>{body}<tool_call|>B"))
    assert said == Said(f"A{body}B", error=f"tool call: {error}")


def test_a_call_that_is_nested_too_deeply_is_text() -> None:
    body = "call:f{a:" + "[" * 5000
    said = read(spelled(f"<|tool_call>{body}<tool_call|>"))
    assert said.text == body
    assert said.error is not None


KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]*", fullmatch=True)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, VALUES))
def test_what_the_template_writes_is_read(arguments: dict[str, Any]) -> None:
    messages = [USER, {"role": "assistant", "tool_calls": [called("f", **arguments)]}]
    parts = template.ChatFormat("gemma4").render(messages)
    marks = [part.text for part in parts]
    begin = marks.index("<|tool_call>")
    ids = template.encode_parts(parts[begin:-1], TOKENIZER)
    assert read(ids) == Said(calls=(called("f", **arguments),))


# --- Answers ---------------------------------------------------------------------------

Say = Callable[..., None]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Let sessions say what is spelled, and end there, instead of what they would."""
    choose = Session._choose
    tokens: Iterator[int] = iter(())

    def forged(self: Session, *asked: Any) -> Any:
        _, *rest = choose(self, *asked)
        return next(tokens), *rest

    def say(*answers: str, end: str = "<turn|>") -> None:
        nonlocal tokens
        tokens = iter([id for answer in answers for id in spelled(answer + end)])

    monkeypatch.setattr(Session, "_choose", forged)
    return say


def asked(session: Session, stats: halfbyte.Stats | None) -> str:
    assert stats is not None
    return TOKENIZER.decode(session.tokens[: stats.prompt_tokens], special=True)


def rendered(messages: list[dict[str, Any]], **options: Any) -> str:
    assert MODEL._format is not None
    return template.render_text(MODEL._format.render(messages, **options))


def test_an_answer_has_its_thought_and_calls_apart(says: Say) -> None:
    says(THOUGHT + "Let me see." + CALL, end="<|tool_response>")
    reply = MODEL.chat([USER], tools=[TOOL], enable_thinking=True)
    assert reply.text == "Let me see."
    assert reply.thought == "Is it é?\n\nIt is."
    assert reply.tool_calls == [called("get_weather", city="Pa{r,is", n=2)]
    assert reply.tool_call_error is None
    assert reply.finish_reason == "tool_calls"
    assert json.loads(json.dumps(reply.message)) == {
        "role": "assistant",
        "content": reply.text,
        "reasoning": reply.thought,
        "tool_calls": reply.tool_calls,
    }


def test_the_template_gets_tools_and_thinking() -> None:
    session = MODEL.session()
    for options in ({"tools": [TOOL]}, {"enable_thinking": True}, {"tools": []}, {}):
        stats = session.chat([USER], max_tokens=1, **options).stats  # type: ignore[arg-type]
        assert asked(session, stats) == rendered([USER], **options)
    stream = session.stream([USER], tools=(TOOL,), enable_thinking=True, max_tokens=1)
    list(stream)
    both = rendered([USER], tools=[TOOL], enable_thinking=True)
    assert asked(session, stream.stats) == both
    assert "<|think|>" in both
    assert "declaration:get_weather{" in both


def test_a_tool_is_called_and_answered(says: Say) -> None:
    session = MODEL.session()
    messages: list[dict[str, Any]] = [USER]
    options: Any = {"tools": [TOOL], "enable_thinking": True}
    says(THOUGHT + CALL, end="<|tool_response>")
    reply = session.chat(messages, **options)
    assert reply.text == ""
    (call,) = reply.tool_calls
    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    messages += [reply.message, result]
    # What the template has begun to think goes on here.
    says("So it is\n<channel|>It is sunny.")
    reply = session.chat(messages, **options)
    assert (reply.thought, reply.text) == ("So it is", "It is sunny.")
    assert reply.finish_reason == "stop"
    prompt = asked(session, reply.stats)
    assert prompt == rendered(messages, **options)
    assert THOUGHT + "<|tool_call>call:get_weather{" in prompt
    assert prompt.endswith('sunny<|"|>}<tool_response|><|channel>thought\n')
    # All it held of the call is used again: it is written as it was generated.
    assert reply.stats.cached_tokens > 20
    messages += [reply.message, {"role": "user", "content": "Thanks"}]
    says("Yes.")
    reply = session.chat(messages, **options)
    assert "<|channel>" not in asked(session, reply.stats)


def test_pieces_come_one_by_one_without_markers(says: Say) -> None:
    says(THOUGHT + "Hello there." + CALL + "B")
    pieces = list(MODEL.stream([USER]))
    assert "".join(piece.text for piece in pieces) == "Hello there.B"
    assert "".join(piece.thought for piece in pieces) == "Is it é?\n\nIt is."
    assert not any(piece.text and piece.thought for piece in pieces)
    assert sum(bool(piece.thought) for piece in pieces) > 3
    (call,) = [piece for piece in pieces if piece.tool_calls]
    assert call.tool_calls == (called("get_weather", city="Pa{r,is", n=2),)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    says(THOUGHT + "Hello there." + CALL + "B")
    told = list(MODEL.stream([USER], logprobs=1))
    assert len(told) == len(spelled(THOUGHT + "Hello there." + CALL + "B<turn|>"))


@pytest.mark.parametrize("size", range(1, 40))
def test_the_limit_may_come_anywhere(says: Say, size: int) -> None:
    whole = spelled(THOUGHT + "Hello." + CALL)
    says(THOUGHT + "Hello." + CALL)
    reply = MODEL.chat([USER], max_tokens=size)
    said = read(whole[:size])
    assert (reply.text, reply.thought, reply.tool_call_error) == (
        *(said.text, said.thought, said.error),
    )
    assert reply.tool_calls == [*said.calls]
    assert reply.finish_reason == ("length" if size <= len(whole) else "tool_calls")


@pytest.mark.parametrize(
    ("answer", "stop", "reason"),
    [
        (CALL, None, "tool_calls"),
        ("<|tool_call>call:f{}", None, "tool_calls"),  # closed by the end alone
        (CALL + "B. C", "B", "tool_calls"),
        ("B. C" + CALL, "B", "stop"),
        ("<|tool_call>call:f{", None, "stop"),
    ],
)
def test_an_answer_with_calls_ends_in_tool_calls(
    says: Say, answer: str, stop: str | None, reason: str
) -> None:
    says(answer)
    reply = MODEL.chat([USER], stop=stop)
    assert reply.finish_reason == reason
    assert bool(reply.tool_calls) == (reason == "tool_calls")


def test_half_a_call_is_text_with_an_error(says: Say) -> None:
    says('A<|tool_call>call:f{city:<|"|>Par')
    reply = MODEL.chat([USER])
    assert reply.text == 'Acall:f{city:<|"|>Par'
    assert reply.tool_calls == []
    assert reply.tool_call_error is not None
    assert reply.message == {"role": "assistant", "content": reply.text}


def test_a_call_of_nothing_is_told_of(says: Say) -> None:
    says("A<|tool_call><tool_call|>B")
    reply = MODEL.chat([USER])
    assert reply.text == "AB"
    assert reply.tool_call_error == "tool call: found 'the end'; expected 'call'"


def test_a_thought_has_no_stop_string(says: Say) -> None:
    says(THOUGHT + "Hello. It is. Bye.")
    reply = MODEL.chat([USER], stop="It is.")
    assert reply.text == "Hello. "
    assert reply.thought.endswith("It is.")


def test_what_goes_on_with_a_text_is_text(says: Say) -> None:
    for prompt in ("Once", MODEL.tokenize("Once")):
        says(THOUGHT + "Hello.")
        assert MODEL(prompt) == "thought\nIs it é?\n\nIt is.\nHello."


def test_a_conversation_forgets_thoughts(says: Say) -> None:
    chat = halfbyte.Conversation(MODEL, enable_thinking=True)
    for text in ("One", "Two", "Three"):
        says(THOUGHT + "Hello.")
        stream = chat.send(text)
        assert "".join(piece.text for piece in stream) == "Hello."
        before = rendered(chat.messages[:-1], enable_thinking=True)
        assert asked(chat._session, stream.stats) == before
        assert "<|think|>" in before
        assert "Is it" not in before
    says("A<|channel>thought\nIs it")
    list(chat.send("Four", max_tokens=8))
    assert chat.messages[-1]["content"] == "A"
    assert "Is it".startswith(chat.messages[-1]["reasoning"])
    says(CALL)
    list(chat.send("Five"))
    assert chat.messages[-1]["tool_calls"][0]["function"]["name"] == "get_weather"
    chat.enable_thinking = False
    says("B")
    stream = chat.send("Six")
    list(stream)
    assert asked(chat._session, stream.stats) == rendered(chat.messages[:-1])


@pytest.mark.parametrize(
    "call",
    [
        [THOUGHT + CALL],
        # In other tokens than its text would be split into.
        [
            "<|channel>thou",
            "ght\nO",
            ".\n<channel|><|tool_call>ca",
            "ll:f{}<tool_call|>",
        ],
    ],
)
def test_a_conversation_goes_on_with_what_tools_say(says: Say, call: list[str]) -> None:
    options: Any = {"tools": [TOOL], "enable_thinking": True}
    chat = halfbyte.Conversation(MODEL, **options)
    says(*call, "<|tool_response>", end="")
    list(chat.send("Weather?"))
    for more in (True, True, False):  # two calls one after the other
        held = chat._session.position
        (made,) = chat.messages[-1]["tool_calls"]
        says("So it is\n<channel|>" + (CALL if more else "It is sunny."))
        result = {"role": "tool", "tool_call_id": made["id"], "content": "sunny"}
        stream = chat.send([result])
        list(stream)
        assert chat.messages[-2] == result
        assert asked(chat._session, stream.stats) == rendered(
            chat.messages[:-1], **options
        )
        assert stream.stats is not None
        assert stream.stats.cached_tokens == held
    assert chat.messages[-1]["content"] == "It is sunny."
    chat.tools = None
    says("Yes.")
    stream = chat.send("Thanks")
    list(stream)
    before = rendered(chat.messages[:-1], enable_thinking=True)
    assert asked(chat._session, stream.stats) == before


def test_answers_before_a_thought_are_kept_as_they_were_generated(says: Say) -> None:
    chat = halfbyte.Conversation(MODEL)
    says("He", "l", "lo.", "<turn|>", end="")
    assert MODEL.tokenize("Hello.", bos=False) != [*map(spelled, ("He", "l", "lo."))]
    list(chat.send("One"))
    says(THOUGHT + "Hi.")
    thoughtful = chat.send("Two")
    list(thoughtful)
    says("Yes.")
    stream = chat.send("Three")
    list(stream)
    assert asked(chat._session, stream.stats) == rendered(chat.messages[:-1])
    assert stream.stats is not None
    assert thoughtful.stats is not None
    assert stream.stats.cached_tokens == thoughtful.stats.prompt_tokens


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"^messages: expected at least one$"),
        ({"role": "tool"}, r"^messages: expected a str, or a list of messages, got"),
        ([USER, "x"], r"^messages\[1\]: expected \{.*\}, got str$"),
        ([{"role": "tool", "content": "x"}], r"must follow an assistant message with"),
    ],
)
def test_what_no_tool_says(messages: Any, message: str) -> None:
    chat = halfbyte.Conversation(MODEL, tools=[TOOL])
    with pytest.raises((errors.ArgumentError, errors.DTypeError), match=message):
        chat.send(messages)
    assert chat.messages == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tools": [TOOL]},
            "tools: expected messages to go with, got a prompt of text",
        ),
        ({"enable_thinking": True}, "enable_thinking: expected messages to go with"),
        ({"enable_thinking": 1}, "enable_thinking: expected a bool, got int"),
    ],
)
def test_what_only_messages_take(options: Any, message: str) -> None:
    for prompt in ("Once", [2]):
        with pytest.raises((errors.ArgumentError, errors.DTypeError), match=message):
            MODEL.stream(prompt, **options)


def test_what_is_no_tool() -> None:
    for tools, message in (
        (TOOL, "^tools: expected a list of declarations, got dict$"),
        (
            [5],
            r"^tools\[0\]: found int; expected a mapping$",
        ),
    ):
        with pytest.raises(errors.DTypeError, match=message):
            MODEL.chat([USER], tools=tools)  # type: ignore[arg-type]
        with pytest.raises(errors.DTypeError, match=message):
            halfbyte.Conversation(MODEL, tools=tools)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"enable_thinking": True}, {"tools": [TOOL]}])
def test_models_without_thoughts_or_tools_say_so(
    tiny_gguf: Callable[..., Any], options: dict[str, Any]
) -> None:
    plain = halfbyte.load(tiny_gguf("e2b"), threads=1)
    message = f"^{next(iter(options))}: this model has no chat template"
    with pytest.raises(errors.ArgumentError, match=message):
        halfbyte.Conversation(plain, **options)


# --- On a terminal ---------------------------------------------------------------------


def piece(text: str = "", thought: str = "", **rest: Any) -> Any:
    filled = {"finish_reason": None, "tool_calls": (), **rest}
    return SimpleNamespace(text=text, thought=thought, **filled)


@pytest.mark.parametrize(
    ("options", "err"),
    [
        ({"thoughts": True}, "(thinking) a\\x1bb\n"),
        ({"thoughts": False}, ""),
        ({"thoughts": True, "quiet": True}, ""),
    ],
)
def test_thoughts_are_shown_on_request(
    capsys: pytest.CaptureFixture[str], options: dict[str, bool], err: str
) -> None:
    shown = terminal.Shown(raw=False, **options)
    for one in (piece(thought="a\x1b"), piece(thought="b"), piece("c"), piece("d")):
        shown.piece(one)
    shown.close()
    assert capsys.readouterr() == ("cd", err)


def test_thoughts_are_dim_where_that_is_seen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "fancy", lambda _stream: True)
    shown = terminal.Shown(raw=False, thoughts=True)
    shown.piece(piece(thought="a"))
    shown.close()
    assert capsys.readouterr().err == "\x1b[2m(thinking) a\x1b[0m\n"


def test_an_answer_that_shows_nothing_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = terminal.Shown(raw=False, thoughts=False)
    shown.piece(piece(thought="a", finish_reason="length"))
    shown.piece(piece(tool_calls=(called("f", a="\x1b"),)))
    shown.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "(still thinking at the limit of --max-tokens)\n"
        '(calls f with {"a": "\\u001b"}, which is no tool here)\n'
    )
