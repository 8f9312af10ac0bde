# examples/qat/measure.py
# The tiny model in four bits and in the mobile form: rounded, and trained to be.
# SPDX-License-Identifier: Apache-2.0
"""Quantize the tiny model with and without training, three seeds each, and compare.

``python measure.py DATA RUN OUT`` reads what tokenizer.py and tiny.py wrote. Every seed
of both schemes is trained. Jobs are processes of their own, some at a time: the model is
too small to fill a GPU. Written are ``OUT/SCHEME-SEED/`` (checkpoints), ``OUT/*.jsonl``
(logs of training), ``OUT/*.json`` (a job's figures) and ``OUT/figures.md``. A choice, of a
rate or of the seed to ship, is made by the KL on the sampled texts called ``chosen``,
which count for nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from halfbyte import qat
from tiny import BOS
from torch import Tensor
from transformers import Gemma4ForCausalLM

LENGTH = 512
SCHEMES = ("q4_0", "mobile")
TESTED, CHOSEN = 384, 128  # sampled texts to measure on, and to choose by


class Recipe(NamedTuple):
    """How students of a scheme are trained."""

    steps: int = 0  # none: rounded and calibrated only
    batch: int = 32  # texts a step
    lr: float = 0.0
    step_lr: float = 0.0


# Small rates for many texts: where the gradient is mostly noise, Adam goes as far as the
# rate says, and at 1e-4 a student of Q4_0 is worse after 1000 steps than after 150.
RECIPES = {
    "q4_0": Recipe(2000, 128, 1e-5, 5e-4),
    "mobile": Recipe(700, 32, 3e-4, 3e-4),
}


class Job(NamedTuple):
    """One student: what it is called, and what it takes to make it."""

    name: str
    scheme: str
    seed: int = 0
    start: str = "search"  # what the first steps of Q4_0 are
    recipe: Recipe = Recipe()


def main() -> None:
    """Run all jobs, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path, help="what tiny.py wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, help="so many, to try it")
    parser.add_argument("--batch", type=int, help="so many texts a step")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=6, help="jobs on one GPU")
    parser.add_argument("--texts", type=int, help="evaluate on so many texts")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--gpu", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.job:
        if torch.cuda.is_available():
            torch.cuda.set_device(args.gpu)
        found = json.loads(args.job)
        do(Job(**found | {"recipe": Recipe(**found["recipe"])}), args)
        return
    rounded = [Job(f"{s}-rounded", s) for s in SCHEMES]
    rounded.append(Job("q4_0-ggml", "q4_0", start="ggml"))
    seeds = [
        Job(f"{scheme}-{seed}", scheme, seed, recipe=recipe(scheme, args))
        for scheme in SCHEMES
        for seed in range(args.seeds)
    ]
    run([*rounded, *seeds], args)
    write_table(args.out, rounded, seeds)


def recipe(scheme: str, args: argparse.Namespace) -> Recipe:
    """The recipe of a scheme, with what was asked for instead."""
    asked = {"steps": args.steps, "batch": args.batch}
    return RECIPES[scheme]._replace(**{k: v for k, v in asked.items() if v})


def run(jobs: list[Job], args: argparse.Namespace) -> None:
    """Run jobs as processes, `args.parallel` at a time on each GPU."""
    waiting = list(jobs)
    running: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
    free = args.parallel * list(range(max(1, torch.cuda.device_count())))
    while waiting or running:
        while waiting and free:
            job, gpu = waiting.pop(0), free.pop(0)
            words = ["--job", json.dumps(plain(job)), "--gpu", str(gpu)]
            process = subprocess.Popen([sys.executable, *sys.argv, *words])
            running[job.name] = process, gpu
        time.sleep(0.2)
        for name, (process, gpu) in list(running.items()):
            if process.poll() is not None:
                del running[name]
                free.append(gpu)
                print(f"{name}: ended with {process.returncode}", flush=True)


def plain(job: Job) -> dict[str, Any]:
    """A job as JSON can hold it."""
    return job._asdict() | {"recipe": job.recipe._asdict()}


# ---- One job


def do(job: Job, args: argparse.Namespace) -> None:
    """Make a student, measure it and write it."""
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64  # each layer is compiled for itself
    teacher, student = load(args.run / "bf16"), load(args.run / "bf16")
    generated = _texts(np.load(args.run / "generated.npy"))
    train = np.load(args.data / "train.npy")
    tables = {"embeddings": True, "per_layer": True}
    start = time.perf_counter()
    if job.start == "ggml":
        tables["step"] = "ggml"
    steps, batch, lr, step_lr = job.recipe
    source = batches(train, generated, job.seed, batch)
    calibration = [next(source)] if job.scheme == "mobile" else []  # of activations
    qat.ptq(student, job.scheme, calibration, **tables)
    report = plain(job)
    if steps:
        with (args.out / f"{job.name}.jsonl").open("w") as log:
            try:
                qat.distill(
                    student,
                    teacher,
                    source,
                    steps=steps,
                    lr=lr,
                    step_lr=step_lr,
                    act_lr=1e-3,
                    clip=1.0,
                    seed=job.seed,
                    compile=args.compile,
                    callback=lambda entry: print(json.dumps(entry), file=log),
                )
            except qat.DivergenceError as error:
                report["diverged"] = str(error)
    report["seconds"] = time.perf_counter() - start
    report |= measure(student, teacher, args, generated)
    qat.export(student, args.out / job.name, tokenizer=args.run / "bf16")
    (args.out / f"{job.name}.json").write_text(json.dumps(report, indent=1) + "\n")


def load(folder: Path) -> Any:
    """Load BF16 weights to compute with in float32: no rounding hides a small KL."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Gemma4ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval()


def measure(
    student: Any, teacher: Any, args: argparse.Namespace, generated: Tensor
) -> dict[str, dict[str, float]]:
    """Compare on held-out documents and on both kinds of sampled texts."""
    held_out = np.load(args.data / "held_out.npy")
    rows = held_out[: len(held_out) // (LENGTH - 1) * (LENGTH - 1)]
    tests = {
        "held_out": _texts(rows.reshape(-1, LENGTH - 1)),
        "sampled": generated[:TESTED],
        "chosen": generated[TESTED:][:CHOSEN],
    }
    return {
        name: qat.compare(student, teacher, rows[: args.texts], batch=64)
        for name, rows in tests.items()
    }


def _texts(rows: np.ndarray) -> Tensor:
    """Rows as int64, behind a <bos> if they have none: (N, 512)."""
    tokens = torch.from_numpy(rows.astype(np.int64))
    missing = LENGTH - tokens.shape[1]
    return torch.nn.functional.pad(tokens, (missing, 0), value=BOS)


def batches(
    stream: np.ndarray, generated: Tensor, seed: int, size: int
) -> Iterator[Tensor]:
    """Texts to train on without end, half from the corpus and half sampled by the teacher.

    Yields tensors of shape (size, 512).
    """
    rng = np.random.default_rng(seed)
    sampled = generated[TESTED + CHOSEN :]
    half = size // 2
    while True:
        begins = rng.integers(0, len(stream) - LENGTH, (half, 1))
        rows = stream[begins + np.arange(LENGTH - 1)]
        picked = torch.from_numpy(rng.integers(0, len(sampled), half))
        yield torch.cat([_texts(rows), sampled[picked]])


# ---- All of them


def figures(out: Path, job: Job) -> dict[str, Any]:
    """Read what a job measured; one that failed or diverged is the worst of all."""
    path = out / f"{job.name}.json"
    found = json.loads(path.read_text()) if path.exists() else {"failed": True}
    if "diverged" in found or "failed" in found:
        bad = {"kl": float("inf"), "ppl": float("inf"), "teacher_ppl": 1.0}
        found |= dict.fromkeys(("held_out", "sampled", "chosen"), bad)
    return found


def write_table(out: Path, rounded: list[Job], seeds: list[Job]) -> None:
    """Write and print the figures."""
    lines = [
        "| student | held out: rise | KL | sampled: rise | KL | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for job in [*rounded, *seeds]:
        found = figures(out, job)
        cells = [f"{_rise(found[t]):.2f} % | {found[t]['kl']:.4f}" for t in _TESTS]
        took = found.get("seconds", 0.0)
        lines.append(f"| {job.name} | {' | '.join(cells)} | {took:.0f} |")
    for scheme in SCHEMES:
        for test in _TESTS:
            lines.append(_cut_line(out, scheme, test, seeds))
    text = "\n".join(lines) + "\n"
    (out / "figures.md").write_text(text)
    print(text)


_TESTS = ("held_out", "sampled")


def _rise(found: dict[str, float]) -> float:
    """Rise of perplexity over the teacher's, in per cent."""
    return 100 * (found["ppl"] / found["teacher_ppl"] - 1)


def _cut_line(out: Path, scheme: str, test: str, seeds: list[Job]) -> str:
    before = _rise(figures(out, Job(f"{scheme}-rounded", scheme))[test])
    after = [_rise(figures(out, j)[test]) for j in seeds if j.scheme == scheme]
    cuts = [100 * (1 - rise / before) for rise in after]
    spread = statistics.stdev(cuts) if len(cuts) > 1 else 0.0
    mean = statistics.fmean(cuts)
    return f"\n{scheme}, {test}: the rise is {mean:.1f} ± {spread:.1f} % smaller."


if __name__ == "__main__":
    main()
