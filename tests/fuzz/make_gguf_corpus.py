# tests/fuzz/make_gguf_corpus.py
# Makes the seeds in corpus/gguf from the hostile table.
# SPDX-License-Identifier: Apache-2.0
"""Write the seeds of fuzz_gguf: small valid files, and one refused file a code.

``python make_gguf_corpus.py`` fills ``corpus/gguf`` beside this script. Files whose
names begin with ``found-`` came from the fuzzer and stay.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "hostile"))

from gguf_cases import hostile_cases, valid_cases

MAX_BYTES = 1500


def main() -> None:
    """Write the corpus."""
    folder = HERE / "corpus" / "gguf"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if not old.name.startswith("found-"):
            old.unlink()
    seen: set[str] = set()
    for case in [*valid_cases(), *hostile_cases()]:
        part = next(iter(case.files.values()))
        if part.size > MAX_BYTES or (case.code and case.code in seen):
            continue
        seen.add(case.code)
        (folder / case.name.replace("^", "p")).write_bytes(part.read())


if __name__ == "__main__":
    main()
