# examples/qat/tokenizer.py
# A vocabulary in Gemma 4's form for the tiny model, and its texts as tokens.
# SPDX-License-Identifier: Apache-2.0
"""Train the tiny model's tokenizer and encode both splits with it.

``python tokenizer.py CORPUS OUT`` reads what corpus.py wrote and writes
``OUT/tokenizer/`` (tokenizer.json and the files beside it) and ``OUT/train.npy`` and
``OUT/held_out.npy``: one stream of tokens each, shape (T,), uint16, in which a document
begins with <bos> and ends with <eos>.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

VOCAB = 4096

# Gemma 4's, in its order; nothing here was trained on tools or thoughts.
SPECIAL = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|tool>", "<tool|>", "<|tool_call>",
    "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>', "<|think|>",
    "<|channel>", "<channel|>", "<|turn>", "<turn|>",
)  # fmt: skip

# Only to choose merges. None crosses these pieces, so that merging whole texts (as
# Hugging Face does) and merging between newlines (as llama.cpp does) give one answer.
_PIECES = Regex(r"\u2581?\p{L}+|\p{N}|\u2581+|[^\s\u2581\p{L}\p{N}]+")

TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}\
{{ message['content'] | trim }}{{ '<turn|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|turn>model\\n' }}{% endif %}"""


def main() -> None:
    """Write the tokenizer and both streams."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    tokenizer = train(args.corpus / "train.jsonl")
    save(tokenizer, args.out / "tokenizer")
    for split in ("train", "held_out"):
        stream = encode(tokenizer, args.corpus / f"{split}.jsonl")
        np.save(args.out / f"{split}.npy", stream)
        print(f"{split}: {len(stream):,} tokens")


def train(path: Path) -> Tokenizer:
    """Learn merges from a split and put them behind Gemma 4's special tokens."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "\u2581")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "removed"),
            pre_tokenizers.Split(_PIECES, "isolated"),
        ]
    )
    fixed = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = ["\n", "\n\n", "\n\n\n"]
    learner.train_from_iterator(
        texts(path),
        trainers.BpeTrainer(
            vocab_size=VOCAB - len(fixed) - len(lines),
            limit_alphabet=100,  # rarer characters are written in bytes
            show_progress=False,
        ),
    )
    learnt = json.loads(learner.to_str())["model"]
    tokens = [*fixed, *lines, *sorted(learnt["vocab"], key=learnt["vocab"].get)]
    merges = [("\n", "\n"), ("\n\n", "\n"), *map(tuple, learnt["merges"])]
    return _pipeline({token: at for at, token in enumerate(tokens)}, merges)


def _pipeline(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """What the released tokenizer.json does, around a vocabulary."""
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    return tokenizer


def texts(path: Path) -> Iterator[str]:
    """Everything that is written in a split, without markers."""
    for record in records(path):
        yield from [record["text"]] if "text" in record else record["turns"]


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Read the documents of a split."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def encode(tokenizer: Tokenizer, path: Path) -> np.ndarray:
    """All documents of a split in a fixed random order, as one stream."""
    order = random.Random(0)
    documents = [record["text"] for record in records(path) if "text" in record]
    pairs = [record["turns"] for record in records(path) if "turns" in record]
    order.shuffle(pairs)
    while pairs:  # conversations of one to four questions
        now, pairs = pairs[:4][: order.randint(1, 4)], pairs[4:]
        documents.append("".join(map(_exchange, now)))
    order.shuffle(documents)
    encoded = tokenizer.encode_batch(documents)
    eos = [SPECIAL.index("<eos>")]
    return np.concatenate([np.array(e.ids + eos, np.uint16) for e in encoded])


def _exchange(turns: list[str]) -> str:
    ask, answer = turns
    return f"<|turn>user\n{ask}<turn|>\n<|turn>model\n{answer}<turn|>\n"


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and what stands beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    ids = {f"{key}_id": SPECIAL.index(token) for key, token in names.items()}
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "mask_token": "<mask>",
            "add_bos_token": True,
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE,
        },
    )
    del ids["unk_token_id"]
    _write(
        folder / "generation_config.json",
        {
            **ids,
            "eos_token_id": [ids["eos_token_id"], SPECIAL.index("<turn|>")],
            "do_sample": True,
            "temperature": 1.0,
            "top_k": 64,
            "top_p": 0.95,
        },
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
