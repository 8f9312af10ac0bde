# tests/python/test_arguments.py
# SPDX-License-Identifier: Apache-2.0
"""Arguments of the wrong kind: one line that names the argument, and never a guess."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import pytest
from halfbyte import lattice, names, roof
from halfbyte.cli.terminal import printable
from halfbyte.errors import (
    ArgumentError,
    DTypeError,
    FormatError,
    NumericalError,
    ShapeError,
    UnsupportedError,
)
from halfbyte.model import CHAT_ONLY, ChatOptions, Options

X = np.ones((2, 64), np.float32)
Q = halfbyte.quantize(X, "q4_0")
USER = {"role": "user", "content": "hello"}


@pytest.fixture(scope="module")
def model() -> halfbyte.Model:
    return halfbyte.load("halfbyte:tiny")


def check(call: Callable[[], Any], error: type[Exception], begins: str) -> None:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(begins)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("max_tokens", 2.5, DTypeError),
        ("max_tokens", "3", DTypeError),
        ("max_tokens", None, DTypeError),
        ("max_tokens", True, ArgumentError),
        ("temperature", "hot", DTypeError),
        ("temperature", np.ones(2), DTypeError),
        ("top_k", 2.5, DTypeError),
        ("top_k", -1, ArgumentError),
        ("top_p", "1", DTypeError),
        ("min_p", [0], DTypeError),
        ("repetition_penalty", None, DTypeError),
        ("seed", 1.5, DTypeError),
        ("seed", 2**64, ArgumentError),
        ("stop", 3, DTypeError),
        ("stop", [3], DTypeError),
        ("stop", b"x", DTypeError),
        ("stop", ["a", ""], ArgumentError),
        ("logprobs", 1.5, DTypeError),
        ("logprobs", "3", DTypeError),
        ("logprobs", None, DTypeError),
        ("logprobs", -1, ArgumentError),
        ("draft", 1.5, DTypeError),
        ("draft", True, ArgumentError),
        ("draft", -1, ArgumentError),
        ("draft", 17, ArgumentError),
    ],
)
def test_options_of_an_answer(
    model: halfbyte.Model, option: str, value: Any, error: type[Exception]
) -> None:
    check(lambda: model.stream("a", **{option: value}), error, f"{option}: expected")


HEADS = np.ones((1, 1, 2, 8), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "begins"),
    [
        (
            lambda _: halfbyte.attention(HEADS, HEADS, HEADS, scale="x"),
            DTypeError,
            "scale: expected a number, got str",
        ),
        (
            lambda _: halfbyte.attention(HEADS, HEADS, HEADS, causal=True, window=1.5),
            DTypeError,
            "window: expected a whole number, got float",
        ),
        (
            lambda m: m.session().logits([1], last="1"),
            DTypeError,
            "last: expected a whole number, got str",
        ),
        (
            lambda m: m.session().logits([1], last=-1),
            ArgumentError,
            "last: expected 0 or more, got -1",
        ),
        (
            lambda _: halfbyte.attention(HEADS, HEADS, HEADS, causal="no"),
            DTypeError,
            "causal: expected a bool, got str",
        ),
        (
            lambda _: halfbyte.attention(
                HEADS, HEADS, HEADS, mask=[[True], [True, True]]
            ),
            ShapeError,
            "mask: expected rows of one length",
        ),
        (
            lambda _: halfbyte.attention(
                HEADS,
                HEADS,
                HEADS,
                mask=np.ma.masked_array(np.ones((2, 2), bool), True),
            ),
            DTypeError,
            "mask: expected an array without mask, got a masked array",
        ),
        (
            lambda _: halfbyte.Weight(np.empty(0, np.uint8), "q4_0", (0, 2**75)),
            ArgumentError,
            "shape: expected -9223372036854775808 to 9223372036854775807, got ",
        ),
        (
            lambda m: m.tokenize("a", bos=1),
            DTypeError,
            "bos: expected a bool, got int",
        ),
        *(
            (call, DTypeError, "special: expected a bool, got str")
            for call in (
                lambda m: m.tokenizer.encode("a", special="no"),
                lambda m: m.tokenizer.decode([1], special="no"),
                lambda m: m.tokenizer.stream_decoder(special="no"),
            )
        ),
        *(
            (call, DTypeError, "id: expected a whole number, got str")
            for call in (
                lambda m: m.tokenizer.is_end("a"),
                lambda m: m.tokenizer.is_control("a"),
                lambda m: m.tokenizer.token_to_piece("a"),
                lambda m: m.tokenizer.stream_decoder().push("a"),
            )
        ),
        (
            lambda m: m.tokenizer.stream_decoder().push(2**40),
            ArgumentError,
            "id: expected 0 to ",
        ),
        (
            lambda m: m.tokenizer.token_to_piece([1, 2]),
            DTypeError,
            "id: expected a whole number, got list",
        ),
        (
            lambda _: roof.buffer(-1),
            ArgumentError,
            "size: expected 0 to ",
        ),
        (
            lambda _: roof.buffer(1.5),
            DTypeError,
            "size: expected a whole number, got float",
        ),
    ],
)
def test_numbers(
    model: halfbyte.Model,
    call: Callable[[halfbyte.Model], Any],
    error: type[Exception],
    begins: str,
) -> None:
    check(lambda: call(model), error, begins)


def test_logits_of_so_many_of_the_last_tokens(model: halfbyte.Model) -> None:
    ids = model.tokenize("Rain fell on the")
    want = model.logits(ids)
    for last, rows in (
        (False, want),
        (True, want[-1:]),
        (np.int64(2), want[-2:]),
        (99, want),
    ):
        np.testing.assert_array_equal(model.logits(ids, last=last), rows)


HAND_ON = [
    halfbyte.Model.__call__,
    halfbyte.Model.chat,
    halfbyte.Model.stream,
    halfbyte.Session.__call__,
    halfbyte.Session.chat,
    halfbyte.Conversation.send,
]


def options_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Keywords that `help` shows of a function; none of them hidden in ``**``."""
    parameters = inspect.signature(function).parameters
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("function", HAND_ON)
def test_help_shows_every_option_and_its_default(function: Callable[..., Any]) -> None:
    options = options_of(halfbyte.Session.stream)
    assert {"temperature", "seed", "stop", "logprobs"} < options.keys()
    if function.__name__ in ("__call__", "send"):
        options = {n: option for n, option in options.items() if n not in CHAT_ONLY}
    assert options_of(function) == options
    text = pydoc.render_doc(function, renderer=pydoc.plaintext)
    for name, option in options.items():
        assert f"{name}: '{option.annotation}' = {option.default}" in text
    first = [*inspect.signature(function).parameters][:2]
    assert first[0] == "self"
    assert first[1] in ("prompt", "messages", "text")


def test_type_checkers_are_told_the_same_options() -> None:
    told = {
        name: hint.__forward_arg__ for name, hint in ChatOptions.__annotations__.items()
    }
    assert told.keys() - Options.__annotations__.keys() == {*CHAT_ONLY}
    options = options_of(halfbyte.Session.stream)
    assert told == {name: option.annotation for name, option in options.items()}


@pytest.mark.parametrize("function", HAND_ON)
def test_an_option_that_there_is_not(
    model: halfbyte.Model, function: Callable[..., Any]
) -> None:
    self: Any = model
    if function is halfbyte.Conversation.send:
        self = halfbyte.Conversation(model)
    elif function.__qualname__.startswith("Session"):
        self = model.session()
    with pytest.raises(
        TypeError, match="unexpected keyword argument 'temprature'"
    ) as e:
        function(self, "a", temprature=1.0)
    assert "\n" not in str(e.value)


def test_options_that_are_large_or_none(model: halfbyte.Model) -> None:
    options: dict[str, Any] = {"temperature": 1, "seed": np.uint64(3), "max_tokens": 4}
    want = model("a", **options)
    assert model("a", **options, top_k=2**70, stop=None) == want


@pytest.mark.parametrize(
    "prompt", [None, 5, USER, {1, 2}, (USER for _ in "a"), b"abc", bytearray(b"abc")]
)
def test_prompts(model: halfbyte.Model, prompt: Any) -> None:
    check(lambda: model(prompt), DTypeError, "prompt: expected a text, ids or messages")


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([[1], [1, 2]], ShapeError),
        (np.array(5), ArgumentError),
        ([[5]], ArgumentError),
        ([1.5], DTypeError),
    ],
)
def test_ids(model: halfbyte.Model, ids: Any, error: type[Exception]) -> None:
    check(lambda: model.logits(ids), error, "ids: expected")
    check(lambda: model.detokenize(ids), error, "ids: expected")
    check(lambda: model(ids), error, "prompt: expected")


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        (USER, DTypeError),
        (None, DTypeError),
        ((USER for _ in "a"), DTypeError),
        ([], ArgumentError),
        ([1, 2], DTypeError),  # ids are a text to go on with, not a message
        ([{"content": "hello"}], ArgumentError),
        ([{**USER, "role": "robot"}], ArgumentError),
        ([USER, "hello"], DTypeError),
    ],
)
def test_messages(model: halfbyte.Model, messages: Any, error: type[Exception]) -> None:
    check(lambda: model.chat(messages), error, "messages")


def test_a_text_is_one_message(model: halfbyte.Model) -> None:
    assert model.chat("hello").text == model.chat([USER]).text != model("hello")


def test_texts_and_lengths(model: halfbyte.Model) -> None:
    check(lambda: model.tokenize(3), DTypeError, "text: expected")  # type: ignore[arg-type]
    check(lambda: 3 in model.tokenizer, DTypeError, "text: expected a str, got int")  # type: ignore[operator]
    assert "\ud800" not in model.tokenizer
    session = model.session()
    check(lambda: session.truncate(1.5), DTypeError, "length: expected")  # type: ignore[arg-type]
    assert session.truncate(2**70) == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("context", "4096"),
        ("context", 1e3),
        ("threads", "2"),
        ("threads", 1.5),
        ("kv", None),
        ("repack", True),
        ("quantize", 4),
        ("activations", 4),
    ],
)
def test_options_of_load(option: str, value: Any) -> None:
    check(
        lambda: halfbyte.load("halfbyte:tiny", **{option: value}),
        DTypeError,
        f"{option}: expected",
    )


@pytest.mark.parametrize("w", [None, X])
def test_what_is_no_weight(w: Any) -> None:
    wanted = "w: expected a Weight, got"
    check(lambda: halfbyte.linear(X, w), DTypeError, wanted)
    check(lambda: halfbyte.embedding_rows(w, [0]), DTypeError, wanted)
    check(lambda: halfbyte.dequantize(w), DTypeError, wanted)
    check(lambda: lattice.repair(w), DTypeError, wanted)
    codes = X.astype(np.int8)
    check(
        lambda: halfbyte.ops.linear_codes(codes, w, x_step=1, y_step=1),
        DTypeError,
        wanted,
    )


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ("ab", DTypeError),
        (64, DTypeError),
        ((64,), ShapeError),
        ((2, 32.5), DTypeError),
        ((-2, 64), ShapeError),
    ],
)
def test_shapes_of_a_weight(shape: Any, error: type[Exception]) -> None:
    check(lambda: halfbyte.Weight(Q.data, "q4_0", shape), error, "shape: expected")


@pytest.mark.parametrize("eps", [-1.0, np.nan, np.inf])
def test_an_eps_that_would_give_nan(eps: float) -> None:
    check(lambda: halfbyte.rms_norm(X, eps=eps), ArgumentError, "eps: expected")


def test_numbers_of_operations() -> None:
    heads = X[:, None]
    for name in ("freq_base", "freq_scale"):
        options: dict[str, Any] = {name: "x"}
        check(
            lambda options=options: halfbyte.rope(heads, [0, 1], **options),
            DTypeError,
            f"{name}: expected",
        )
    check(lambda: halfbyte.rms_norm(X, eps="1"), DTypeError, "eps: expected")  # type: ignore[arg-type]
    check(
        lambda: halfbyte.use_target(None),  # type: ignore[arg-type]
        DTypeError,
        "target: expected",
    )


@pytest.mark.parametrize(
    ("options", "error", "begins"),
    [
        ({"format": ["q4_0"]}, DTypeError, "format: expected a str, got list"),
        ({"format": "q4_9"}, ArgumentError, "format: expected one of f32, f16, q4_0"),
        ({"quantizer": None}, DTypeError, "quantizer: expected a str, got NoneType"),
        ({"quantizer": "rms"}, ArgumentError, "quantizer: expected one of rtn, mse"),
        ({"quantizer": "imatrix"}, ArgumentError, "importance: wanted by"),
        ({"importance": X[0]}, ArgumentError, "importance: not for"),
    ],
)
def test_options_of_quantize(
    options: dict[str, Any], error: type[Exception], begins: str
) -> None:
    packed = {"format": "q4_0"} | options
    check(lambda: halfbyte.quantize(X, **packed), error, begins)
    if "format" not in options:  # all of X is on the lattice
        check(lambda: lattice.recover(X, **packed), error, begins)


def test_bits_of_a_lattice() -> None:
    wanted = "bits: expected a uint16 array, got list"
    check(lambda: lattice.recover_bits([[0] * 32]), DTypeError, wanted)  # type: ignore[arg-type]
    bits: Any = np.zeros((1, 32), np.uint16)
    check(lambda: lattice.recover_bits(bits, None), DTypeError, "format: expected")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("begin", "out", "error", "begins"),
    [
        (-1, np.zeros(4, np.uint8), ArgumentError, "begin: expected 0 or more, got -1"),
        ("a", np.zeros(4, np.uint8), DTypeError, "begin: expected a whole number"),
        (2**70, np.zeros(4, np.uint8), ShapeError, "out: expected at most 0 bytes"),
        (0, [0], DTypeError, "out: expected a uint8 array, got list"),
    ],
)
def test_what_a_file_reads(
    begin: Any, out: Any, error: type[Exception], begins: str
) -> None:
    opened = halfbyte.open_gguf(names.resolve("halfbyte:tiny"))
    check(lambda: opened.read(opened.tensors[0].name, begin, out), error, begins)


@pytest.mark.parametrize("step", [1e39, 1e-46])
@pytest.mark.parametrize("name", ["x_step", "y_step"])
def test_steps_that_float32_has_not(name: str, step: float) -> None:
    weight, codes = (
        halfbyte.quantize(HEADS.reshape(1, -1).repeat(2, 1), "w8"),
        np.ones((1, 32), np.int8),
    )
    steps = {"x_step": 1.0, "y_step": 1.0} | {name: step}
    want = f"{name}: expected a float32 above 0, got {step}"
    check(lambda: halfbyte.linear_codes(codes, weight, **steps), ArgumentError, want)


@pytest.mark.parametrize(
    ("fmt", "fits", "too_large"),
    [("q4_0", 5.2e5, 5.3e5), ("q8_0", 8.3e6, 8.4e6), ("q6_k", 1e8, 3e38)],
)
def test_weights_that_no_step_reaches(fmt: str, fits: float, too_large: float) -> None:
    x = np.full((3, 256), 0.02, np.float32)
    x[2, 5] = fits
    largest = halfbyte.quantize(x, fmt).dequantize()[2, 5]
    assert abs(largest - fits) <= fits / 15  # half a step of the coarsest, and f16
    x[2, 5] = too_large
    want = f"x: expected values that {fmt} has steps for, got {too_large:g} in row 2"
    check(lambda: halfbyte.quantize(x, fmt), NumericalError, want)


def test_whether_a_file_reads_once_is_a_bool() -> None:
    opened = halfbyte.open_gguf(names.resolve("halfbyte:tiny"))
    name, out = opened.tensors[0].name, np.zeros(4, np.uint8)
    want = "once: expected a bool, got str"
    check(lambda: opened.read(name, 0, out, once="a"), DTypeError, want)  # type: ignore[arg-type]
    opened.read(name, 0, out, once=np.bool_(True))


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("max_kl", "a", DTypeError),
        ("min_top1", "a", DTypeError),
        ("greedy", 1.5, DTypeError),
        ("greedy", -1, ArgumentError),
        ("sha256", 0, DTypeError),
        ("text", 3, DTypeError),
    ],
)
def test_options_of_verify(option: str, value: Any, error: type[Exception]) -> None:
    options: dict[str, Any] = {option: value}
    check(lambda: halfbyte.verify("no file", **options), error, f"{option}: expected")


def test_a_context_in_which_nothing_is_scored() -> None:
    model = halfbyte.load("halfbyte:tiny", context=1)
    want = "context: expected 2 or more, got 1"
    check(lambda: model.perplexity([1, 2, 3]), ArgumentError, want)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing has no Unpack")
@pytest.mark.parametrize("name", halfbyte.__all__)
def test_type_hints_can_be_looked_up(name: str) -> None:
    public = getattr(halfbyte, name)
    for item in (
        (public, *vars(public).values()) if isinstance(public, type) else (public,)
    ):
        if inspect.isfunction(item):
            typing.get_type_hints(item)


# ---- copies


def test_a_copy_of_a_model_has_a_session_of_its_own(model: halfbyte.Model) -> None:
    want = model("hello", max_tokens=4)
    stream = model.stream("hello", max_tokens=4)
    first = next(stream)
    for other in (copy.copy(model), copy.deepcopy(model)):
        assert other._core is model._core
        assert other("hello", max_tokens=4) == want
    assert first.text + "".join(piece.text for piece in stream) == want
    for copied in copy.copy, copy.deepcopy:
        assert copied(model.tokenizer).encode("x") == model.tokenizer.encode("x")
    session = model.session()
    session.logits([2, 5])
    assert [copied(session).tokens for copied in (copy.copy, copy.deepcopy)] == [
        [2, 5],
        [2, 5],
    ]


def test_what_is_not_pickled_says_what_to_do(model: halfbyte.Model) -> None:
    for thing, advice in (
        (model, "call halfbyte.load in each process"),
        (model.session(), "make one of a model in each process"),
        (model.tokenizer, "make it of its file in each process"),
    ):
        with pytest.raises(UnsupportedError, match=advice):
            pickle.dumps(thing)


# ---- names of models


def test_a_folder_that_is_no_model_says_what_may_be_meant(tmp_path: Path) -> None:
    (tmp_path / "m-q4_0.gguf").touch()
    (tmp_path / "lone.safetensors").touch()
    for path in (tmp_path, tmp_path / "lone.safetensors"):
        with pytest.raises(
            FileNotFoundError, match=r"without config.json - there are"
        ) as e:
            halfbyte.load(path)
        assert "m-q4_0.gguf" in str(e.value)
        assert e.value.filename == str(tmp_path)


def test_names_that_no_file_can_have() -> None:
    with pytest.raises(FileNotFoundError, match="name of the model is empty"):
        halfbyte.load("")
    with pytest.raises(OSError, match="too long"):
        halfbyte.load("a" * 5000)


@pytest.mark.parametrize("hidden", ["\ufeff", "\u202e", "\u200b", "\u2066"])
def test_what_a_terminal_would_not_show_is_escaped(hidden: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(hidden.encode() + b"x" * 40)
    with pytest.raises(FormatError) as caught:
        halfbyte.open_gguf(path)
    assert hidden not in str(caught.value)
    assert "\\xE2\\x8" in str(caught.value) or "\\xEF\\xBB\\xBF" in str(caught.value)
    assert hidden not in printable(hidden)
