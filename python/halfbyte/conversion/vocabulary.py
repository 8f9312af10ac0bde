# python/halfbyte/conversion/vocabulary.py
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a directory as the metadata of a GGUF file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfbyte.conversion.gguf import F32, I32, U32
from halfbyte.files import Tokenizer

__all__ = ["vocabulary"]

# Types of tokens.
_NORMAL, _CONTROL, _USER, _UNUSED, _BYTE = 1, 3, 4, 5, 6
_BYTES = re.compile(r"<0x[0-9A-F]{2}>")
# Marks that whoever reads an answer has to see: a control token is shown to nobody.
_SEEN = {
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
    "<|channel>",
    "<channel|>",
}
_ENDS = ("<turn|>", "<end_of_turn>")
_NEVER = -1e9  # score of what no merge makes


def vocabulary(
    folder: Path, tokenizer: Tokenizer, size: int, *, ranked: bool, template: str
) -> dict[str, Any]:
    """Read the tokenizer of a directory.

    Parameters
    ----------
    folder : Path
        Of ``tokenizer.json`` and ``generation_config.json``.
    tokenizer : Tokenizer
        What the reader made of them, which has checked them.
    size : int
        Rows of the embedding. Tokens beyond are left out, missing ones made up.
    ranked : bool
        Whether the file is to have merges by rank, as those of Gemma 4, or scores.
    template : str
        For chats; "" for none.

    Returns
    -------
    dict
        For `gguf.layout`.
    """
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokens, types = _tokens(content, size, ranked=ranked)
    merges = content["model"].get("merges") or ()
    core = tokenizer._core
    out: dict[str, Any] = {"tokens": tokens, "token_type": I32(types)}
    if ranked:
        # Files have scores beside the merges, which nobody reads.
        out |= {"model": "gemma4", "scores": F32([0.0] * size)}
        out["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    else:
        scores = _scores(tokens, merges)
        out |= {"model": "llama", "pre": "default", "scores": F32(scores)}
    known = {text: i for i, text in enumerate(tokens)}
    special = {
        "bos_token_id": core.bos,
        "eos_token_id": core.eos,
        "eot_token_id": next((known[end] for end in _ENDS if end in known), -1),
        "unknown_token_id": core.unk,
        "padding_token_id": core.pad,
        "mask_token_id": known.get("<mask>", -1),
    }
    out |= {key: U32(token) for key, token in special.items() if 0 <= token < size}
    out["add_bos_token"] = core.add_bos
    out["add_space_prefix"] = False
    if suppressed := _suppressed(folder, size):
        out["suppress_tokens"] = I32(suppressed)
    keys = {f"tokenizer.ggml.{key}": value for key, value in out.items()}
    return keys | ({"tokenizer.chat_template": template} if template else {})


def _tokens(
    content: dict[str, Any], size: int, *, ranked: bool
) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [_UNUSED] * size
    model = content["model"]
    for text, token in model["vocab"].items():
        if token < size:
            is_byte = model.get("byte_fallback") and _BYTES.fullmatch(text)
            tokens[token], types[token] = text, _BYTE if is_byte else _NORMAL
    for added in content.get("added_tokens") or ():
        token, text = added["id"], added["content"]
        if token < size:
            control = added.get("special") and not (ranked and text in _SEEN)
            tokens[token], types[token] = text, _CONTROL if control else _USER
    return tokens, types


def _scores(tokens: list[str], merges: Sequence[str | list[str]]) -> list[float]:
    """Scores by which the best merge of pieces is the first one of the list."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = _pair(merge)
        ranks.setdefault(left + right, rank)
    return [-float(ranks[token]) if token in ranks else _NEVER for token in tokens]


def _pair(merge: str | list[str]) -> tuple[str, str]:
    if isinstance(merge, str):  # no piece holds a space, but one may begin with it
        at = merge.index(" ", 1)
        return merge[:at], merge[at + 1 :]
    return merge[0], merge[1]


def _suppressed(folder: Path, size: int) -> list[int]:
    path = folder / "generation_config.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text("utf-8")).get("suppress_tokens") or []
    return [token for token in found if token < size]
