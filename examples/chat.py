# examples/chat.py
# SPDX-License-Identifier: Apache-2.0
"""A conversation in a dozen lines. Each line of input is a turn; an empty one ends it.

    python examples/chat.py [MODEL]

Without MODEL it is the demo model, which has no chat template: it goes on with the text.
"""

import sys

import halfbyte
from halfbyte import demo

model = halfbyte.load(sys.argv[1] if len(sys.argv) > 1 else demo.model_path())
session = model.session()  # keeps what it has read: a turn costs its own tokens
messages: list[dict[str, str]] = []
text = ""

while line := input("> ").strip():
    text += line
    messages.append({"role": "user", "content": line})
    prompt = messages if model.has_template else text
    answer = ""
    for piece in session.stream(prompt, max_tokens=48):
        print(piece.text, end="", flush=True)
        answer += piece.text
    print()
    text += answer
    messages.append({"role": "assistant", "content": answer})
