# benchmarks/guesses.py
# SPDX-License-Identifier: Apache-2.0
"""Tokens guessed ahead: what a pass of several costs, and what an answer gains.

    python benchmarks/guesses.py [MODEL] [--text FILE ...] [--draft 3,7] [--rounds 5]
    python benchmarks/guesses.py MODEL --drafter DRAFTER [--quantize q4_0] --text

README.md in this folder says what the columns mean.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import halfbyte
from halfbyte.cli import terminal
from roof import counts, environment, model_path, ratio, save, summary

PROMPT, ANSWER = 768, 128  # tokens
DRAFTED = 8  # tokens of a drafter that are timed together
ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "LICENSE", ROOT / "csrc/io/gguf.cc", ROOT / "csrc/kv/layer.h"]


def passes(model: halfbyte.Model, drafts: list[int], rounds: int) -> dict[str, Any]:
    """Time passes of one token and of several, and a drafter's, in turn."""
    session = model.session()
    session.logits([2] * PROMPT, last=True)
    sizes = [1, *(draft + 1 for draft in drafts)]
    seconds: dict[int | str, list[float]] = {size: [] for size in sizes}
    if drafted := model.report().drafter is not None:
        seconds["drafted"] = []
    for _ in range(rounds * 4):
        for size in sizes:
            start = time.perf_counter()
            session.logits([2] * size)
            seconds[size].append(time.perf_counter() - start)
            if size == 1 and drafted:
                guess = session._sequence.core.guess  # no API: nobody else needs it
                start = time.perf_counter()
                assert len(guess(2, model.threads, DRAFTED)) == DRAFTED
                seconds["drafted"].append((time.perf_counter() - start) / DRAFTED)
            session.truncate(PROMPT)
    rows, told = [], {}
    for what, samples in seconds.items():
        over = ratio(samples, seconds[1])
        told[str(what)] = summary(samples) | {"over_one": over}
        rows.append((str(what), f"{over:.3f}" if what == "drafted" else f"{over:.2f}"))
    terminal.table(("tokens of a pass", "time"), rows, "rr")
    return told


def answer(
    model: halfbyte.Model, ids: list[int], draft: int
) -> tuple[list[int], halfbyte.Stats]:
    """Go on with a prompt, greedily."""
    stream = model.session().stream(ids, max_tokens=ANSWER, draft=draft)
    for _ in stream:
        pass
    assert stream.stats is not None
    return stream.tokens, stream.stats


def answers(
    model: halfbyte.Model, text: Path, drafts: list[int], rounds: int
) -> dict[str, Any]:
    """Time one text's answers in turn, all of them the same."""
    ids = model.tokenize(text.read_text(encoding="utf-8"))[:PROMPT]
    tried = [0, *drafts]
    stats: dict[int, list[halfbyte.Stats]] = {draft: [] for draft in tried}
    plain, _ = answer(model, ids, 0)
    if len(plain) < 2:
        raise SystemExit(f"{text.name}: the model ends its answer at once")
    for _ in range(rounds):
        for draft in tried:
            tokens, one = answer(model, ids, draft)
            if tokens != plain:
                raise SystemExit(f"{text.name}: draft={draft} gave another answer")
            stats[draft].append(one)
    rows, told = [], {}
    for draft in tried:
        seconds = [one.decode_seconds for one in stats[draft]]
        faster = ratio([one.decode_seconds for one in stats[0]], seconds)
        last = stats[draft][-1]
        steps = len(plain) - 1 - last.accepted_tokens
        a_pass = (len(plain) - 1) / steps
        told[str(draft)] = summary(seconds) | {
            "drafted": last.drafted_tokens,
            "accepted": last.accepted_tokens,
            "tokens_a_pass": a_pass,
            "faster": faster,
        }
        came = f"{last.accepted_tokens} of {last.drafted_tokens}"
        rows.append((text.name, str(draft), came, f"{a_pass:.2f}", f"{faster:.2f}"))
    heads = ("goes on with", "draft", "came", "tokens a pass", "faster")
    terminal.table(heads, rows, "lrrrr")
    return told


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("model", nargs="?", type=model_path, default="", help="else the demo")
    add("--drafter", type=model_path, help="what guesses")
    add("--quantize", help="what float matrices of either are rounded to")
    add("--text", type=Path, nargs="*", default=TEXTS, help="files to go on with")
    add("--draft", type=counts, default=[3, 7], help="tokens to guess")
    add("--threads", type=counts, default=[1, 2], help="numbers of threads")
    add("--rounds", type=int, default=5)
    add("--json", type=Path, help="write all samples to this file")
    options = parser.parse_args()
    results = []
    for threads in options.threads:
        model = halfbyte.load(
            options.model,
            threads=threads,
            drafter=options.drafter,
            quantize=options.quantize,
        )
        where = environment(threads)
        terminal.line(f"{model!r}, {threads} threads")
        told = {"passes": passes(model, options.draft, options.rounds)}
        for text in options.text:
            told[text.name] = answers(model, text, options.draft, options.rounds)
        results.append({"environment": where, **told})
    if options.json:
        save(options.json, {"script": "guesses.py", "results": results})


if __name__ == "__main__":
    main()
