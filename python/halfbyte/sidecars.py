# python/halfbyte/sidecars.py
# SPDX-License-Identifier: Apache-2.0
"""Names of the files that lie beside the weights in a directory of a model."""

from __future__ import annotations

__all__ = ["TOKENIZER"]

# What tokenizers, chats and the defaults of sampling need: whoever writes the weights
# anew copies these.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
