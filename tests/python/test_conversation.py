# tests/python/test_conversation.py
# SPDX-License-Identifier: Apache-2.0
"""Conversations: what is kept of a turn, what the next one computes, and what ends it.

The prompt of every turn is read back from the session's tokens and compared with what
the model's chat format makes of the messages, so no test here trusts the bookkeeping.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import halfbyte
import pytest
import tiny
from halfbyte import errors, template
from halfbyte.conversation import _kept, _Run
from halfbyte.template import Part
from meanwhile import Meanwhile

TEMPLATE = "{{ bos_token }}{% if add_generation_prompt %}<|turn>model\n{% endif %}"

# Tokens that a template strips or the text does not show: white space, controls.
PIECES, KINDS, _ = tiny.vocabulary()
NOT_KEPT = [
    i
    for i, (piece, kind) in enumerate(zip(PIECES, KINDS, strict=True))
    if kind == 3
    or not piece.strip("\n\u2581")
    or (kind == 6 and int(piece[3:5], 16) < 33)
]
HOT = {"temperature": 1.0, "seed": 3, "max_tokens": 12}

Make = Callable[..., Path]


def talkative(folder: Path, *, suppressed: Sequence[int] = NOT_KEPT) -> halfbyte.Model:
    """A model with a template and random answers that only the limit ends."""
    tiny.save_hf(tiny.talkative("e2b"), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    generation = json.dumps({"suppress_tokens": [*suppressed]})
    (folder / "generation_config.json").write_text(generation)
    return halfbyte.load(folder, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> halfbyte.Model:
    return talkative(tmp_path_factory.mktemp("talk"))


@pytest.fixture(scope="module")
def plain(tiny_gguf: Make) -> halfbyte.Model:
    return halfbyte.load(tiny_gguf("e2b"), threads=1)


@pytest.fixture(scope="module")
def bundled() -> halfbyte.Model:
    return halfbyte.load("halfbyte:tiny")


def say(chat: halfbyte.Conversation, text: str, **options: Any) -> halfbyte.Stats:
    """One turn to its end."""
    stream = chat.send(text, **options)
    said = "".join(piece.text for piece in stream)
    assert chat.messages[-2:] == [
        {"role": "user", "content": text},
        {"role": "assistant", "content": said},
    ]
    assert stream.stats is not None
    return stream.stats


def asked(chat: halfbyte.Conversation, stats: halfbyte.Stats) -> str:
    """Text of the prompt that the last answer followed."""
    ids = chat._session.tokens[: stats.prompt_tokens]
    return chat.model.tokenizer.decode(ids, special=True)


def rendered(chat: halfbyte.Conversation) -> str:
    """The same by the messages, the last answer left out."""
    messages = list(chat.messages[:-1])
    if chat.system is not None:
        messages.insert(0, {"role": "system", "content": chat.system})
    assert chat.model._format is not None
    return template.render_text(chat.model._format.render(messages))


# --- A turn computes what is new -------------------------------------------------------


def test_the_first_answer_is_that_of_chat(model: halfbyte.Model) -> None:
    chat = halfbyte.Conversation(model, system="Be odd.")
    say(chat, "hello", **HOT)
    messages = [
        {"role": "system", "content": "Be odd."},
        {"role": "user", "content": "hello"},
    ]
    assert chat.messages[-1]["content"] == model.chat(messages, **HOT).text


def test_an_answer_may_be_had_when_it_is_whole(model: halfbyte.Model) -> None:
    whole, pieces = halfbyte.Conversation(model), halfbyte.Conversation(model)
    for text in ("the end", "of the line"):
        reply = whole.chat(text, **HOT)
        assert reply.pieces == tuple(pieces.send(text, **HOT))
        assert whole.messages == pieces.messages
        assert reply.text == whole.messages[-1]["content"]
        assert (reply.finish_reason, reply.stats.generated_tokens) == ("length", 12)


def test_a_turn_computes_its_own_tokens_alone(model: halfbyte.Model) -> None:
    chat = halfbyte.Conversation(model, system="Be odd.")
    for turn, text in enumerate(["hello", "and the <turn|> rest", "the end", "of it"]):
        held = chat._session.position
        stats = say(chat, text, **HOT | {"seed": turn})
        assert asked(chat, stats) == rendered(chat)
        assert stats.cached_tokens == held
        ids = chat._session.tokens[: stats.prompt_tokens]
        alone = model.session().stream(ids, **HOT | {"seed": turn})
        assert chat.messages[-1]["content"] == "".join(piece.text for piece in alone)


def test_an_answer_is_kept_in_the_tokens_that_were_generated(
    model: halfbyte.Model,
) -> None:
    # At such a temperature hardly an answer is split as its text would be.
    chat = halfbyte.Conversation(model)
    stream = chat.send("hello", temperature=1e4, seed=5, max_tokens=40)
    text = "".join(piece.text for piece in stream)
    assert len(stream.tokens) == 40
    assert model.tokenize(text, bos=False) != stream.tokens
    held = chat._session.position
    stats = say(chat, "more", max_tokens=1)
    assert stats.cached_tokens == held
    assert asked(chat, stats) == rendered(chat)


def run(text: str, *, marker: bool = False, made: bool = False) -> _Run:
    return _Run(text, marker, [], made)


A, M, SAID = run("a"), run("<m>", marker=True), run("x", made=True)


@pytest.mark.parametrize(
    ("runs", "parts", "kept", "rest"),
    [
        ([A, M, run("b"), SAID], ["a", "<m>", "bxy", "<m>"], 4, ["y", "<m>"]),
        ([A, M, run("b"), SAID], ["a", "<m>", "bx"], 4, []),
        ([A, M, run("b"), SAID], ["a", "<m>", "by"], 2, ["by"]),
        ([A, M, run("b"), SAID], ["b", "<m>", "bx"], 0, ["b", "<m>", "bx"]),
        ([A, M, run("b"), SAID], ["a", "<m>"], 2, []),  # what asked was taken away
        ([A, M], ["a", "<m>", "a"], 2, ["a"]),
        ([A, M], ["ab", "<m>"], 0, ["ab", "<m>"]),  # a token may span the joint
        ([A, SAID, M, run("b")], ["ax", "<m>", "c"], 3, ["c"]),
        ([A, SAID, run("b")], ["axc"], 2, ["c"]),
        ([run("<m"), run(">", made=True)], ["<m>"], 0, ["<m>"]),  # only spelled
        ([run(""), A], ["b"], 1, ["b"]),
        ([], ["a"], 0, ["a"]),
    ],
)
def test_what_is_kept(
    runs: list[_Run], parts: list[str], kept: int, rest: list[str]
) -> None:
    wanted = [Part(text, text == "<m>") for text in parts]
    before, after = _kept(runs, wanted)
    assert before == runs[:kept]
    assert [part.text for part in after] == rest
    assert all(part in wanted or not part.marker for part in after)


def test_answers_that_end_by_themselves(bundled: halfbyte.Model) -> None:
    ended = 0
    resplit = False  # the text of an answer has other tokens than it was made of
    for seed in range(60):  # on every instruction set some are of the kind wanted
        if ended > 6 and resplit:
            break
        chat = halfbyte.Conversation(bundled)
        for text in ("What is love?", "And what is kindness?", "Define a house."):
            held = chat._session.position
            stats = say(chat, text, max_tokens=300, temperature=1.4, seed=seed)
            if stats.generated_tokens == 300:
                break  # cut off, as some are, on some instruction set
            ended += 1
            assert asked(chat, stats) == rendered(chat)
            assert stats.cached_tokens == held
            made = chat._session.tokens[stats.prompt_tokens :]
            said = chat.messages[-1]["content"]
            resplit |= bundled.tokenize(said, bos=False) != made
    assert ended > 6
    assert resplit


def test_without_a_template_the_text_goes_on(plain: halfbyte.Model) -> None:
    chat = halfbyte.Conversation(plain, system="the")
    say(chat, "end", **HOT)
    first = chat.messages[-1]["content"]
    assert first == plain("the\nend", **HOT)
    held = chat._session.position
    stats = say(chat, "of the line", **HOT)
    assert stats.cached_tokens == held
    start = plain.tokenizer.decode(plain.tokenize(""), special=True)
    joint = "" if first.endswith(("\n", " ")) else "\n"
    assert asked(chat, stats) == f"{start}the\nend{first}{joint}of the line"


# --- What is not kept ------------------------------------------------------------------


def test_whatever_was_generated_the_template_has_its_way(tmp_path: Path) -> None:
    model = talkative(tmp_path, suppressed=[])
    generated = set()
    for seed in range(20):
        chat = halfbyte.Conversation(model)
        for text in ("hello", "more", "and more"):
            stats = say(chat, text, temperature=100.0, seed=seed, max_tokens=12)
            assert asked(chat, stats) == rendered(chat)
            generated |= {*chat._session.tokens[stats.prompt_tokens :]}
    assert len(generated & {*NOT_KEPT}) > 10


def test_thoughts_that_the_template_leaves_out_are_asked_without(
    bundled: halfbyte.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    thinking = template.ChatFormat("gemma4", empty_thought=True)
    monkeypatch.setattr(bundled, "_format", thinking)
    chat = halfbyte.Conversation(bundled)
    say(chat, "hello", **HOT)
    shared = rendered(chat).index("<|channel>")
    stats = say(chat, "more", **HOT)
    assert asked(chat, stats) == rendered(chat)
    kept = chat._session.tokens[: stats.cached_tokens]
    assert bundled.tokenizer.decode(kept, special=True) == rendered(chat)[:shared]


@pytest.mark.parametrize("size", [1, 4])
def test_a_stop_string_is_no_part_of_what_was_said(
    model: halfbyte.Model, size: int
) -> None:
    long = HOT | {"max_tokens": 60}
    chat = halfbyte.Conversation(model)
    say(chat, "hello", **long)
    stop = chat.messages[-1]["content"][60 : 60 + size]
    chat = halfbyte.Conversation(model)
    say(chat, "hello", **long, stop=stop)
    assert stop not in chat.messages[-1]["content"]
    held = chat._session.position
    stats = say(chat, "more", **HOT)
    assert asked(chat, stats) == rendered(chat)
    # All but the tokens that the string was in.
    assert held - size - 1 <= stats.cached_tokens <= held


def test_messages_may_be_changed(model: halfbyte.Model) -> None:
    chat = halfbyte.Conversation(model)
    for text in ("one", "two", "three"):
        say(chat, text, **HOT)
    kept = [dict(message) for message in chat.messages[:2]]
    del chat.messages[2:]
    stats = say(chat, "four", **HOT)
    assert stats.cached_tokens > 10
    assert asked(chat, stats) == rendered(chat)
    other = halfbyte.Conversation(model)
    other.messages = kept
    say(other, "four", **HOT)
    chat.messages[1]["content"] = "something else"
    chat.system = "Be even."
    assert asked(chat, say(chat, "five", **HOT)) == rendered(chat)
    chat.messages.pop()
    assert asked(chat, say(chat, "six", **HOT)) == rendered(chat)


def test_reset_keeps_what_the_system_text_cost(model: halfbyte.Model) -> None:
    chat = halfbyte.Conversation(model, system="Answer as odd as you can.")
    say(chat, "hello", **HOT)
    first = chat.messages[-1]["content"]
    chat.reset()
    assert chat.messages == []
    stats = say(chat, "hello", **HOT)
    assert stats.cached_tokens == stats.prompt_tokens - 1
    assert chat.messages[-1]["content"] == first
    assert len(chat.messages) == 2


@pytest.mark.parametrize("way", [halfbyte.Conversation.copy, copy.copy, copy.deepcopy])
def test_a_copy_goes_its_own_way(
    model: halfbyte.Model, way: Callable[[halfbyte.Conversation], halfbyte.Conversation]
) -> None:
    chat = halfbyte.Conversation(model, system="Be odd.")
    say(chat, "hello", **HOT)
    held = chat._session.position
    stream = chat.send("more", **HOT | {"max_tokens": 9})
    heard = [next(stream).text for _ in range(3)]
    before = [dict(m) for m in chat.messages]
    other = way(chat)
    stats = say(other, "other", **HOT)
    assert stats.cached_tokens > held
    assert asked(other, stats) == rendered(other)
    assert other.messages[:4] == before == chat.messages
    heard += [piece.text for piece in stream]  # undisturbed
    assert chat.messages[-1]["content"] == "".join(heard)
    assert len(stream.tokens) == 9
    assert asked(chat, say(chat, "on", **HOT)) == rendered(chat)


def test_a_copy_is_of_the_same_class(model: halfbyte.Model) -> None:
    class Named(halfbyte.Conversation):
        def __init__(self, name: str) -> None:
            super().__init__(model, system="Be odd.")
            self.name = name

    chat = Named("Ada")
    say(chat, "hello", **HOT)
    other = copy.copy(chat)
    assert isinstance(other, Named)
    assert (other.name, other.system) == ("Ada", "Be odd.")
    other.messages[0]["content"] = "changed"
    assert chat.messages[0]["content"] == "hello"


# --- Answers that are stopped ----------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "leave", "go on"])
def test_an_answer_stopped_half_way_is_kept_as_far_as_it_came(
    model: halfbyte.Model, way: str
) -> None:
    chat = halfbyte.Conversation(model)
    stream = chat.send("hello", **HOT | {"max_tokens": 60})
    said = "".join(next(stream).text for _ in range(5))
    assert chat.messages[-1] == {"role": "assistant", "content": said}
    assert stream.tokens
    if way == "close":
        stream.close()
        assert stream.stats is not None
    elif way == "leave":
        del stream
    held = chat._session.position
    stats = say(chat, "more", **HOT)
    assert chat.messages[1]["content"] == said
    assert stats.cached_tokens == held
    assert asked(chat, stats) == rendered(chat)
    if way == "go on":
        assert list(stream) == []
        assert stream.stats is not None


def test_half_a_character_is_not_said(model: halfbyte.Model) -> None:
    chat = halfbyte.Conversation(model)
    stream = chat.send("hello", temperature=1e4, seed=4, max_tokens=60)
    for _ in stream:  # until a token has come that is not shown yet
        said = chat.messages[-1]["content"]
        if model.tokenizer.decode(stream.tokens) != said:
            break
    else:
        pytest.fail("no character was ever half there")
    stats = say(chat, "more", max_tokens=1)
    assert chat.messages[1]["content"] == said
    assert asked(chat, stats) == rendered(chat)


def test_an_answer_that_nobody_read_is_empty(model: halfbyte.Model) -> None:
    chat = halfbyte.Conversation(model)
    chat.send("hello", **HOT)
    assert [message["content"] for message in chat.messages] == ["hello", ""]
    assert asked(chat, say(chat, "more", **HOT)) == rendered(chat)


# --- Two threads -----------------------------------------------------------------------

TOLD = "this conversation is in use by another thread; make one conversation a thread"


def elsewhere(call: Callable[[], Any]) -> BaseException | None:
    """What `call` raises in a thread of its own."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - the tests look at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_a_second_thread_is_told_while_an_answer_is_computed(
    model: halfbyte.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = halfbyte.Conversation(model)
    say(alone, "hello", **HOT)
    chat = halfbyte.Conversation(model)
    stream = chat.send("hello", **HOT)
    calls: list[Callable[[], Any]] = [
        lambda: chat.send("more"),
        chat.reset,
        chat.copy,
        lambda: next(stream),
        stream.close,
    ]
    raised: list[BaseException | None] = []
    sequence = chat._session._sequence
    act = lambda: raised.extend(map(elsewhere, calls))
    monkeypatch.setattr(sequence, "core", Meanwhile(sequence.core, act, "step"))
    for _ in stream:
        pass
    assert len(raised) == len(calls) * HOT["max_tokens"]
    assert {type(error) for error in raised} == {RuntimeError}
    assert {str(error) for error in raised} == {TOLD}
    assert chat.messages == alone.messages


def test_a_second_thread_is_told_while_a_message_is_sent(
    model: halfbyte.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = halfbyte.Conversation(model)
    raised: list[BaseException | None] = []
    parts = chat._parts

    def slow(said: Any) -> list[Part]:
        monkeypatch.setattr(chat, "_parts", parts)
        raised.append(elsewhere(lambda: chat.send("more")))
        return parts(said)

    monkeypatch.setattr(chat, "_parts", slow)
    chat.send("hello", **HOT)
    assert [message["content"] for message in chat.messages] == ["hello", ""]
    assert [str(error) for error in raised] == [TOLD]


def test_who_reads_an_answer_that_another_thread_ended_is_told(
    model: halfbyte.Model,
) -> None:
    chat = halfbyte.Conversation(model)
    for end in (chat.reset, lambda: say(chat, "more", **HOT)):
        for read in (0, 3):
            stream = chat.send("hello", **HOT)
            for _ in range(read):
                next(stream)
            assert elsewhere(end) is None
            with pytest.raises(RuntimeError, match=r"^another thread went on with the"):
                next(stream)
            assert list(stream) == []
    assert asked(chat, say(chat, "on", **HOT)) == rendered(chat)
    stream = chat.send("hello", **HOT)  # the last piece is read, the end is not
    while next(stream).finish_reason is None:
        pass
    assert elsewhere(lambda: say(chat, "more", **HOT)) is None
    assert list(stream) == []


@pytest.mark.parametrize("way", ["keep", "close", "leave", "fail", "interrupt"])
def test_an_answer_that_is_left_keeps_no_other_thread_out(
    model: halfbyte.Model, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise KeyboardInterrupt if way == "interrupt" else errors.NumericalError

    chat = halfbyte.Conversation(model)
    stream = chat.send("hello", **HOT)
    next(stream)
    if way == "close":
        stream.close()
    elif way == "leave":
        del stream
    elif way != "keep":
        sequence = chat._session._sequence
        with monkeypatch.context() as patch:
            patch.setattr(sequence, "core", Meanwhile(sequence.core, fail, "step"))
            with pytest.raises((KeyboardInterrupt, errors.NumericalError)):
                next(stream)
    assert elsewhere(lambda: say(chat, "more", **HOT)) is None
    assert len(chat.messages) == 4


def test_a_copy_is_used_by_another_thread(
    model: halfbyte.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = halfbyte.Conversation(model)
    say(chat, "hello", **HOT)
    other = chat.copy()
    raised: list[BaseException | None] = []
    act = lambda: raised.append(elsewhere(lambda: other.send("on")))
    sequence = chat._session._sequence
    monkeypatch.setattr(sequence, "core", Meanwhile(sequence.core, act, "step"))
    say(chat, "more", max_tokens=1)
    assert raised == [None]


# --- Errors ----------------------------------------------------------------------------


def test_a_full_context_is_the_error_of_any_prompt(tiny_gguf: Make) -> None:
    model = halfbyte.load(tiny_gguf("e2b"), context=64, threads=1)
    chat = halfbyte.Conversation(model)
    say(chat, "the end", max_tokens=40)
    before = [dict(message) for message in chat.messages]
    with pytest.raises(errors.ContextOverflowError) as caught:
        chat.send("of the line " * 20)
    assert caught.value.code == "CONTEXT_OVERFLOW"
    with pytest.raises(errors.ContextOverflowError) as plain:
        model.stream(tiny.prompt(65))
    found = str(caught.value).replace(str(caught.value.found), "65 tokens")
    assert found == str(plain.value)
    assert chat.messages == before
    say(chat, "short", max_tokens=2)  # goes on where it was
    chat.reset()
    assert say(chat, "the end", max_tokens=40).generated_tokens == 40


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (3, {}, "messages: expected a str, or a list of messages, got int"),
        ("more", {"top_k": -1}, "top_k: expected 0 or more, got -1"),
        ("more", {"stop": 3}, "stop: expected a str or several, got int"),
        ("more", {"tools": []}, "tools: expected as an attribute of the conversation"),
        (
            [{"role": "user", "content": "more"}],
            {"enable_thinking": True},
            "enable_thinking: expected as an attribute of the conversation",
        ),
    ],
)
def test_what_is_refused_changes_nothing(
    model: halfbyte.Model, text: Any, options: dict[str, Any], message: str
) -> None:
    chat = halfbyte.Conversation(model)
    say(chat, "hello", **HOT)
    before = [dict(message) for message in chat.messages]
    with pytest.raises((errors.DTypeError, errors.ArgumentError)) as caught:
        chat.send(text, **options)
    assert str(caught.value) == message
    assert chat.messages == before
    assert asked(chat, say(chat, "more", **HOT)) == rendered(chat)


@pytest.mark.parametrize("system", [None, "Be odd."])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"role": "bogus", "content": "x"}, "found role 'bogus'; expected one of"),
        ({"role": "user", "tool_calls": 3}, "tool_calls: found int; expected a list"),
        ({"role": "tool", "content": "x"}, "a tool message must follow an assistant"),
    ],
)
def test_errors_count_what_was_sent(
    model: halfbyte.Model, system: str | None, bad: dict[str, Any], message: str
) -> None:
    chat = halfbyte.Conversation(model, system=system)
    say(chat, "hello", **HOT)
    say(chat, "more", **HOT)
    good = {"role": "user", "content": "and this"}
    for said in ([bad], [good, bad]):
        with pytest.raises(errors.Error) as caught:
            chat.send(said)
        assert str(caught.value).startswith(f"messages[{len(said) - 1}]: {message}")
    chat.messages[2] = bad  # one of those before, by its place there
    with pytest.raises(errors.Error) as caught:
        chat.send("on")
    assert str(caught.value).startswith(f"messages[2] of the conversation: {message}")


def test_errors_of_a_text_without_a_template_count_what_was_sent(
    plain: halfbyte.Model,
) -> None:
    chat = halfbyte.Conversation(plain, system="the")
    say(chat, "end", max_tokens=2)
    with pytest.raises(errors.DTypeError, match=r"^messages\[0\]: content: expected a"):
        chat.send([{"role": "user", "content": 3}])


def test_what_no_conversation_is_made_of(
    model: halfbyte.Model, plain: halfbyte.Model, tiny_gguf: Make
) -> None:
    with pytest.raises(errors.DTypeError, match=r"^model: expected a Model, as load"):
        halfbyte.Conversation("tiny")  # type: ignore[arg-type]
    with pytest.raises(errors.DTypeError, match=r"^system: expected a str, got int$"):
        halfbyte.Conversation(model, system=3)  # type: ignore[arg-type]
    chat = halfbyte.Conversation(model)
    chat.enable_thinking = "no"  # type: ignore[assignment]
    with pytest.raises(errors.DTypeError, match=r"^enable_thinking: expected a bool"):
        chat.send("more")
    for kind in (model, plain):
        chat = halfbyte.Conversation(kind)
        chat.system = ["Be odd."]  # type: ignore[assignment]
        with pytest.raises(
            errors.DTypeError, match=r"^system: expected a str, got list$"
        ):
            chat.send("more")
        chat.system = None
        for messages in (None, 3, "hello", ({"role": "user", "content": "x"},)):
            chat.messages = messages  # type: ignore[assignment]
            with pytest.raises(errors.DTypeError) as told:
                chat.send("more")
            assert str(told.value) == (
                "messages of the conversation: expected a list, got "
                + type(messages).__name__
            )
        chat.messages = ["hello"]  # type: ignore[list-item]
        with pytest.raises(
            errors.DTypeError, match=r"^messages\[0\] of the conversation: .*expected"
        ):
            chat.send("more")
    chat = halfbyte.Conversation(plain)
    chat.messages = [{"role": "user"}]
    with pytest.raises(
        errors.DTypeError,
        match=r"^messages\[0\] of the conversation: content: expected",
    ):
        chat.send("more")
    mute = halfbyte.load(tiny_gguf("e2b", tokenizer=False))
    with pytest.raises(errors.ModelError) as caught:
        halfbyte.Conversation(mute).send("hello")
    assert caught.value.code == "MODEL_TOKENIZER"
