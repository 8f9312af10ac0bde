# python/halfbyte/transformers/gguf_tokenizer.py
# Both kinds of vocabulary are merges to the library: those of a list, or all ways to put
# a piece together, the piece of the best score first.
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a GGUF file as Transformers has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Fast
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from halfbyte.errors import ModelError
from halfbyte.files import File, Tokenizer

__all__ = ["fast_tokenizer", "special_ids"]

_PREFIX = "tokenizer.ggml."
_SPACE = "\u2581"
# Types of tokens.
_NORMAL, _USER, _UNUSED = 1, 4, 5  # user-defined ones are matched before any merge


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids that configurations name.

    Parameters
    ----------
    tokenizer : halfbyte.Tokenizer

    Returns
    -------
    dict
        ``bos_token_id``, ``pad_token_id``, and ``eos_token_id``: all that end a text.
    """
    core = tokenizer._core
    return {
        "bos_token_id": _id(core.bos),
        "eos_token_id": list(core.eog) or _id(core.eos),
        "pad_token_id": _id(core.pad),
    }


def _id(value: int) -> int | None:
    return None if value < 0 else value


def fast_tokenizer(file: File, tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Build a fast tokenizer that gives the ids of halfbyte's.

    Parameters
    ----------
    file : File
        Of a GGUF file.
    tokenizer : halfbyte.Tokenizer
        Of the same file, which was checked in making it.

    Returns
    -------
    PreTrainedTokenizerFast
        Spellings of control tokens in a text become those tokens, as always there. The
        chat template is the file's, as data.

    Raises
    ------
    ModelError
        If the library cannot hold the vocabulary.
    """
    metadata = file.metadata
    tokens = _spellings(metadata)
    fast = Fast(
        BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=_merges(metadata, tokens),
            unk_token=_spelling(tokens, tokenizer._core.unk),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    fast.normalizer = normalizers.Replace(" ", _SPACE)
    if _PREFIX + "merges" in metadata:
        # Newlines are pieces of their own there: merges never cross their border.
        fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
    fast.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    _add_special(fast, metadata, tokens, tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=tokenizer.chat_template or None,
        **_special_tokens(tokens, tokenizer),
    )


def _spellings(metadata: dict[str, Any]) -> list[str]:
    tokens: list[str] = metadata[_PREFIX + "tokens"]
    for i, token in enumerate(tokens):
        if not isinstance(token, str):
            raise ModelError(
                f"tokenizer.ggml.tokens: entry {i}: expected UTF-8, found {token!r}: "
                "use halfbyte.load"
            )
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise ModelError(
            f"tokenizer.ggml.tokens: expected different spellings, found {twice!r} "
            "twice: use halfbyte.load"
        )
    return tokens


def _spelling(tokens: Sequence[str], id: int) -> str | None:
    return None if id < 0 else tokens[id]


def _special_tokens(tokens: Sequence[str], tokenizer: Tokenizer) -> dict[str, str]:
    core = tokenizer._core
    named = {"bos": core.bos, "eos": core.eos, "unk": core.unk, "pad": core.pad}
    return {f"{name}_token": tokens[id] for name, id in named.items() if id >= 0}


def _merges(metadata: dict[str, Any], tokens: list[str]) -> list[tuple[str, str]]:
    ranked = metadata.get(_PREFIX + "merges")
    if ranked is not None:
        # No piece holds a space, but one may begin with it.
        ends = (merge.index(" ", 1) for merge in ranked)
        return [
            (merge[:end], merge[end + 1 :])
            for merge, end in zip(ranked, ends, strict=True)
        ]
    scores = metadata[_PREFIX + "scores"]
    types = metadata.get(_PREFIX + "token_type")
    text = {
        token
        for i, token in enumerate(tokens)
        if types is None or types[i] in (_NORMAL, _USER, _UNUSED)
    }
    merges = []
    # Stable: pieces of one score keep the order of their ids.
    for i in sorted(range(len(tokens)), key=lambda i: -scores[i]):
        token = tokens[i]
        if token in text:
            splits = ((token[:at], token[at:]) for at in range(1, len(token)))
            merges += [pair for pair in splits if pair[0] in text and pair[1] in text]
    return merges


def _add_special(
    fast: Fast, metadata: dict[str, Any], tokens: list[str], tokenizer: Tokenizer
) -> None:
    """Add what is matched before merging, and the token that begins a text."""
    core = tokenizer._core
    types = metadata.get(_PREFIX + "token_type") or [_NORMAL] * len(tokens)
    control = {i for i in range(len(tokens)) if core.is_control(i)}
    user = [
        i for i, kind in enumerate(types) if kind == _USER and i not in set(control)
    ]
    fast.add_special_tokens([_added(tokens[i], special=True) for i in sorted(control)])
    fast.add_tokens([_added(tokens[i], special=False) for i in user])
    if core.add_bos and core.bos >= 0:
        bos = tokens[core.bos]
        fast.post_processor = TemplateProcessing(
            single=[bos, "$A"],
            pair=[bos, "$A", f"{bos}:1", "$B:1"],
            special_tokens=[(bos, core.bos)],
        )


def _added(token: str, *, special: bool) -> AddedToken:
    return AddedToken(token, normalized=False, special=special)
