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
chat = halfbyte.Conversation(model)  # keeps what was said: a turn costs its own tokens

while line := input("> ").strip():
    for piece in chat.send(line, max_tokens=48):
        print(piece.text, end="", flush=True)
    print()
