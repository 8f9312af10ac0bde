# tests/python/test_tokenizer.py
# Tokenizers against Hugging Face's tokenizers library and against llama.cpp.
# SPDX-License-Identifier: Apache-2.0
"""Tokenizers against Hugging Face's tokenizers library and against llama.cpp.

The library is an independent implementation of the same algorithm; llama.cpp's answers
for the real vocabulary of Gemma 3 were recorded by
`tests/golden/make_tokenizer_golden.py`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import halfbyte
import pytest
import tokenizers
from halfbyte import errors
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).parent.parent / "golden" / "tokenizer_gemma3.json"
CASES: list[dict[str, Any]] = json.loads(GOLDEN.read_text())["cases"]

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
# No merge joins newlines: halfbyte takes a run of them out first, as llama.cpp does.
LETTERS = [*"abcdeé中▁<>|."]
UNKNOWN = [*"0xßZ😊\u0301"]


def small_vocabulary(seed: int) -> tokenizers.Tokenizer:
    """Build a tokenizer like Gemma 4's: ranked merges, byte fallback, specials."""
    rng = random.Random(seed)
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, "\n"]
    pieces = list(LETTERS)
    merges: dict[tuple[str, str], None] = {}
    for _ in range(400):
        left, right = rng.choice(pieces), rng.choice(pieces)
        if len(left + right) > 10 or "<0x" in left + right:
            continue
        merges[left, right] = None
        if left + right not in tokens:
            tokens.append(left + right)
            pieces.append(left + right)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = tokenizers.models.BPE(
        vocabulary, list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    oracle = tokenizers.Tokenizer(model)
    oracle.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    oracle.add_special_tokens(SPECIAL)
    oracle.add_tokens([tokenizers.AddedToken("<b>", normalized=False, special=False)])
    return oracle


@pytest.fixture(scope="module", params=[1, 2, 3])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tokenizers.Tokenizer, Any]:
    """Return the oracle, and halfbyte's tokenizer from the file that it saved."""
    oracle = small_vocabulary(request.param)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    oracle.save(str(path))
    return oracle, halfbyte.Tokenizer.from_json(path)


@pytest.fixture(scope="module")
def gemma3(demo_model: Path) -> Any:
    return halfbyte.Tokenizer.from_gguf(demo_model)


texts = st.lists(
    st.one_of(
        st.text(alphabet=[*LETTERS, " ", "\n"], max_size=20),
        st.text(alphabet=[*LETTERS, *UNKNOWN, " "], max_size=8),
        st.text(max_size=4),
    ),
    max_size=8,
).map("".join)
marked_texts = st.lists(
    st.one_of(texts, st.sampled_from([*SPECIAL, "<b>", "<0x41>"])), max_size=6
).map("".join)


class TestAgainstHuggingFace:
    @given(text=marked_texts)
    @settings(max_examples=400, deadline=None)
    def test_encode(self, pair: tuple[tokenizers.Tokenizer, Any], text: str) -> None:
        oracle, tokenizer = pair
        expected = oracle.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, bos=False, special=True) == expected

    @given(text=texts)
    @settings(max_examples=400, deadline=None)
    def test_pieces(self, pair: tuple[tokenizers.Tokenizer, Any], text: str) -> None:
        oracle, tokenizer = pair
        ids = tokenizer.encode(text, bos=False)
        assert [tokenizer.token_to_piece(i) for i in ids] == [
            oracle.id_to_token(i) for i in ids
        ]

    @given(text=marked_texts)
    @settings(max_examples=400, deadline=None)
    def test_round_trip(
        self, pair: tuple[tokenizers.Tokenizer, Any], text: str
    ) -> None:
        _, tokenizer = pair
        for special in (False, True):
            ids = tokenizer.encode(text, bos=False, special=special)
            assert tokenizer.decode(ids, special=True) == text.replace("▁", " ")

    @given(text=marked_texts)
    @settings(max_examples=400, deadline=None)
    def test_text_makes_no_control_token(
        self, pair: tuple[tokenizers.Tokenizer, Any], text: str
    ) -> None:
        _, tokenizer = pair
        assert min(tokenizer.encode(text, bos=False), default=99) >= len(SPECIAL)

    @given(text=texts)
    @settings(max_examples=200, deadline=None)
    def test_stream(self, pair: tuple[tokenizers.Tokenizer, Any], text: str) -> None:
        _, tokenizer = pair
        ids = tokenizer.encode(text, bos=False)
        stream = tokenizer.stream_decoder()
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


class TestSmallVocabulary:
    def test_bos(self, pair: tuple[tokenizers.Tokenizer, Any]) -> None:
        _, tokenizer = pair
        assert tokenizer.encode("a") == [2, *tokenizer.encode("a", bos=False)]
        assert tokenizer.encode("") == [2]

    def test_decode_of_control_tokens(
        self, pair: tuple[tokenizers.Tokenizer, Any]
    ) -> None:
        _, tokenizer = pair
        ids = tokenizer.encode("<|turn>a<turn|>", special=True)
        assert tokenizer.decode(ids) == "a"
        assert tokenizer.decode(ids, special=True) == "<bos><|turn>a<turn|>"

    def test_stream_holds_back_and_replaces(
        self, pair: tuple[tokenizers.Tokenizer, Any]
    ) -> None:
        oracle, tokenizer = pair
        euro = [oracle.token_to_id(f"<0x{byte:02X}>") for byte in "€".encode()]
        stream = tokenizer.stream_decoder()
        assert [stream.push(i) for i in euro] == ["", "", "€"]
        assert [stream.push(i) for i in euro[:2]] == ["", ""]
        assert stream.finish() == "\ufffd"
        assert tokenizer.decode(euro[:2]) == "\ufffd"

    @pytest.mark.parametrize("bad", [-1, 10**6, 2**31, -(2**63)])
    def test_ids_out_of_range(
        self, pair: tuple[tokenizers.Tokenizer, Any], bad: int
    ) -> None:
        _, tokenizer = pair
        last = tokenizer.num_tokens - 1
        with pytest.raises(
            errors.ArgumentError,
            match=rf"^ids: expected 0 to {last}, got {bad} at \(1,\)$",
        ):
            tokenizer.decode([2, bad])
        with pytest.raises(
            errors.ArgumentError, match=rf"^id: expected 0 to {last}, got {bad}$"
        ):
            tokenizer.token_to_piece(bad)

    @pytest.mark.parametrize("bad", [2**64, 0.5, "a"])
    def test_ids_of_another_type(
        self, pair: tuple[tokenizers.Tokenizer, Any], bad: Any
    ) -> None:
        _, tokenizer = pair
        with pytest.raises(errors.DTypeError, match=r"^ids: expected integers"):
            tokenizer.decode([bad])
        error = errors.ArgumentError if bad == 2**64 else errors.DTypeError
        with pytest.raises(error, match=r"^id: expected (0 to|a whole number)"):
            tokenizer.token_to_piece(bad)

    def test_lone_surrogates_are_bytes_like_others(
        self, pair: tuple[tokenizers.Tokenizer, Any]
    ) -> None:
        _, tokenizer = pair
        ids = tokenizer.encode("a\ud800", bos=False)
        assert ids == tokenizer.encode(b"a\xed\xa0\x80", bos=False)
        assert tokenizer.decode(ids) == "a\ufffd\ufffd\ufffd"


class TestGemma3:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "Hello world! Café déjà vu — 123 😊",
                [
                    *(9259, 1902, 236888, 62367, 29234, 11042, 2192),
                    *(236743, 236770, 236778, 236800, 103453),
                ],
            ),
            ("hello", [23391]),
            (" hello", [29104]),
            (" ", [236743]),
            ("thought", [45518]),
        ],
    )
    def test_vectors(self, gemma3: Any, text: str, expected: list[int]) -> None:
        assert gemma3.encode(text, bos=False) == expected

    def test_vector_with_bos(self, gemma3: Any) -> None:
        assert gemma3.encode("Hello,") == [2, 9259, 236764]
        assert gemma3.encode("<bos>Hello,", bos=False, special=True) == [
            *(2, 9259, 236764)
        ]

    def test_equals_llama_cpp(self, gemma3: Any) -> None:
        assert len(CASES) >= 220
        for case in CASES:
            ids = gemma3.encode(case["text"], bos=False, special=case["special"])
            assert ids == case["ids"], case["text"]

    def test_round_trip(self, gemma3: Any) -> None:
        for case in CASES:
            text = case["text"].replace("▁", " ")
            assert gemma3.decode(case["ids"], special=True) == text
