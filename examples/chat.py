# examples/chat.py
# SPDX-License-Identifier: Apache-2.0
"""A conversation in a dozen lines. Each line of input is a turn; an empty one ends it.

    python examples/chat.py [MODEL]

Without MODEL it is the small model of the package, which sounds like old dictionaries.
"""

import contextlib
import sys

import halfbyte

model = halfbyte.load(sys.argv[1] if len(sys.argv) > 1 else "tiny")
chat = halfbyte.Conversation(model)  # keeps what was said: a turn costs its own tokens

with contextlib.suppress(EOFError):  # Ctrl-D
    while line := input("> ").strip():
        for piece in chat.send(line, max_tokens=48):
            print(piece.text, end="", flush=True)
        print()
