# tests/fuzz/make_safetensors_corpus.py
# Writes the seeds in corpus/safetensors and corpus/json from the hostile table.
# SPDX-License-Identifier: Apache-2.0
"""Make the starting points of two fuzzers; finds are added to them by hand."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "hostile"))

import safetensors_cases

MAX_BYTES = 400

JSON_SEEDS = {
    "numbers": '[0,-0,1,-1,1.5,1e3,-2E-7,18446744073709551615,9007199254740993]',
    "words": '{"t":true,"f":false,"n":null}',
    "escapes": r'"\"\\\/\b\f\n\r\t\u0000\u00e9\ud83d\ude00"',
    "unicode": '{"é":"日本","😀":[]}',
    "nested": "[" * 32 + "]" * 32,
    "too_deep": "[" * 33 + "]" * 33,
    "empty_ones": '[{},[],"",{"":{}}]',
    "spaces": ' \t\n\r{ "a" : [ 1 , 2 ] , "b" : { } } \n',
    "duplicate": r'{"a":1,"b":{"c":2,"c":3},"\u0061":4}',
    "config": '{"architectures":["Gemma4ForCausalLM"],"rope_theta":1e6,'
    '"layer_types":["sliding_attention","full_attention"],"pad_token_id":0}',
    "tokenizer": '{"model":{"type":"BPE","vocab":{"<pad>":0,"▁a":1},'
    '"merges":[["▁","a"],"b c"]},"added_tokens":[{"id":0,"special":true}]}',
    "lone_surrogate": r'"\ud800"',
    "trailing_comma": "[1,]",
    "nan": "[NaN]",
}  # fmt: skip


def main() -> None:
    """Write one seed a code and every valid file, if it is small."""
    target = HERE / "corpus" / "safetensors"
    target.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for case in safetensors_cases.cases():
        files = case.build()
        content = files.get(safetensors_cases.ONE)
        if content is None or not 0 < len(content) <= MAX_BYTES:
            continue
        if case.code and case.code in seen:
            continue
        seen.add(case.code)
        (target / case.name).write_bytes(content)

    target = HERE / "corpus" / "json"
    target.mkdir(parents=True, exist_ok=True)
    for name, text in JSON_SEEDS.items():
        (target / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
