# python/halfbyte/cli/bench.py
# `halfbyte bench`: how fast a model or a kernel runs here, and how near to the limit.
# SPDX-License-Identifier: Apache-2.0
"""How fast a model or a kernel runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from halfbyte._sizes import size_text
from halfbyte.cli import models, options, terminal
from halfbyte.cli.errors import INTERRUPTED, UsageError

if TYPE_CHECKING:
    from halfbyte.bench import KernelSpeed, ModelSpeed

__all__ = ["EXAMPLES", "bench"]

EXAMPLES = """\b
Examples:
  halfbyte bench model.gguf
  halfbyte bench model.gguf -p 128,512 -n 64 --threads 1,2 --json
  halfbyte bench --kernels --formats q4_0,q8_0 --tokens 1,512
"""

_Speed = TypeVar("_Speed")
_MAX_TOKENS = 1 << 20


class _How(NamedTuple):
    """What models and kernels have in common."""

    threads: list[int]
    repetitions: int
    json: bool
    quiet: bool
    kv: options.KvType
    activations: str | None
    quantize: str | None


def bench(
    model: options.ModelArgument = None,
    n_prompt: Annotated[
        str,
        typer.Option(
            "-p", "--n-prompt", help="Tokens of a prompt; 0 = no test.", metavar="N[,N]"
        ),
    ] = "512",
    n_gen: Annotated[
        str,
        typer.Option(
            "-n", "--n-gen", help="Tokens one by one; 0 = no test.", metavar="N[,N]"
        ),
    ] = "128",
    repetitions: Annotated[
        int,
        typer.Option(
            "-r", "--repetitions", min=1, help="Of each test, timed.", metavar="N"
        ),
    ] = 5,
    threads: Annotated[
        str | None,
        typer.Option(
            "--threads", help="Threads; without it, what doctor says.", metavar="N[,N]"
        ),
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Measure products with weights.")
    ] = False,
    formats: Annotated[
        str | None,
        typer.Option(
            "--formats", help="Of the kernels; all by default.", metavar="F[,F]"
        ),
    ] = None,
    matrices: Annotated[
        str | None,
        typer.Option(
            "--matrices",
            help="Among e2b-up,e2b-down,31b-up,31b-down.",
            metavar="M[,M]",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens", help="Of the kernels; 1,4,32,512 by default.", metavar="N[,N]"
        ),
    ] = None,
    kv: options.Kv = options.KvType.F32,
    activations: options.Activations = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Measure how fast a model runs, or the kernels that it consists of.

    As in llama-bench, pp512 is a prompt of 512 tokens and tg128 are 128 tokens one by
    one: mean and standard deviation of the repetitions, after a warm-up. The share of
    the roof compares with what this machine can do at best, measured in between:
    reading the weights of a token (tg), or multiplying (pp). A kernel whose answer is
    wrong is not timed.
    """
    import halfbyte

    counts = [halfbyte.num_threads()]
    if threads is not None:
        counts = _numbers(threads, "--threads", 1, 1024)
    how = _How(counts, repetitions, json, quiet, kv, activations, quantize)
    if kernels:
        asked = (model, activations, quantize)
        if kv is not options.KvType.F32 or any(value is not None for value in asked):
            raise UsageError(
                "--kernels measures no model: leave MODEL out, and so --kv, "
                "--activations and --quantize"
            )
        _kernels(formats, matrices, tokens, how)
        return
    for name, value in (
        ("--formats", formats),
        ("--matrices", matrices),
        ("--tokens", tokens),
    ):
        if value is not None:
            raise UsageError(f"{name} needs --kernels")
    prompts = _numbers(n_prompt, "-p", 0, _MAX_TOKENS)
    answers = _numbers(n_gen, "-n", 0, _MAX_TOKENS)
    _model(model, prompts, answers, how)


def _words(text: str | None, name: str, known: Sequence[str]) -> list[str]:
    """Split a list of names, each of which has to be known; all of them by default."""
    if text is None:
        return list(known)
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise UsageError(f"{name}: expected some of {','.join(known)}, got {word}")
    return words


def _numbers(text: str, name: str, least: int, most: int) -> list[int]:
    """Split a list of numbers, each of which has to be in its range."""
    numbers = []
    for word in text.split(","):
        digits = word.strip()
        is_number = digits.isdecimal() and len(digits) < 10
        if not is_number or not least <= int(digits) <= most:
            raise UsageError(f"{name}: expected {least} to {most}, got {word!r}")
        numbers.append(int(digits))
    return numbers


def _collect(
    speeds: Iterator[_Speed], title: str, total: int, *, quiet: bool
) -> tuple[list[_Speed], BaseException | None]:
    """Take what is measured until it ends, and say what ended it before its time."""
    from halfbyte.bench import WrongAnswerError

    found: list[_Speed] = []
    with terminal.progress(title, quiet=quiet) as update:
        try:
            for done, speed in enumerate(speeds, 1):
                if not found or found[-1] is not speed:
                    found.append(speed)
                update(done, total)
        except (KeyboardInterrupt, WrongAnswerError) as error:
            return found, error
    return found, None


# ---- models


def _model(name: str | None, prompts: list[int], answers: list[int], how: _How) -> None:
    tests = sum(map(bool, prompts + answers))
    if tests == 0:
        raise UsageError("nothing to measure: -p and -n are both 0")
    from halfbyte import bench, roof

    path = models.find(name, quiet=how.quiet)
    load = bench.load_average()
    roofs = bench.Roofs(roof.buffer(bench.ROOF_BYTES))  # before the model is there
    loaded = models.open_model(
        path,
        None,
        max(prompts + answers),
        kv=how.kv,
        activations=how.activations,
        quantize=how.quantize,
        quiet=how.quiet,
    )
    speeds = bench.model_speeds(
        loaded,
        roofs,
        prompts=prompts,
        answers=answers,
        threads=how.threads,
        repetitions=how.repetitions,
    )
    total = tests * len(how.threads) * how.repetitions
    found, stopped = _collect(speeds, "bench", total, quiet=how.quiet)
    where = bench.machine(roofs, load)
    report = loaded.report()
    if how.json:
        about = {
            "path": str(path),
            "architecture": report.architecture,
            "bytes_per_token": report.bytes_per_token,
            "kv": report.kv,
        }
        _document(where, [speed.to_dict() for speed in found], model=about)
    else:
        size = report.bytes_per_token / 1e9
        shown = terminal.printable(path.name)
        terminal.line(f"{shown}: {size:.3f} GB of weights a token")
        _show_machine(where)
        _show_model(found)
    _end(stopped)


def _show_model(found: list[ModelSpeed]) -> None:
    rows = [
        [
            speed.test,
            str(speed.threads),
            _plus_minus(speed.tokens_per_second, speed.sd),
            f"{speed.roof_fraction:.2f}",
            size_text(speed.peak_rss_bytes),
        ]
        for speed in found
    ]
    header = ["test", "threads", "tok/s", "of roof", "peak memory"]
    terminal.table(header, rows, "lrrrr")


def _plus_minus(mean: float, sd: float) -> str:
    """Mean ± standard deviation, both to the digits that three of the mean need."""
    shown = terminal.quantity(mean)
    digits = len(shown.partition(".")[2])
    return f"{shown} ± {sd:.{digits}f}"


# ---- kernels


def _kernels(
    formats: str | None, matrices: str | None, tokens: str | None, how: _How
) -> None:
    import halfbyte
    from halfbyte import bench

    some = _words(formats, "--formats", halfbyte.formats())
    which = _words(matrices, "--matrices", list(bench.MATRICES))
    counts = list(bench.TOKENS)
    if tokens is not None:
        counts = _numbers(tokens, "--tokens", 1, _MAX_TOKENS)
    load = bench.load_average()
    roofs = bench.Roofs(bench.kernel_arena(some, which))
    speeds = bench.kernel_speeds(
        roofs,
        formats=some,
        matrices=which,
        tokens=counts,
        threads=how.threads,
        repetitions=how.repetitions,
    )
    total = len(some) * len(which) * len(counts) * len(how.threads)
    found, stopped = _collect(speeds, "kernels", total, quiet=how.quiet)
    where = bench.machine(roofs, load)
    if how.json:
        _document(where, [speed.to_dict() for speed in found])
    else:
        _show_machine(where)
        _show_kernels(found)
    _end(stopped)


def _show_kernels(found: list[KernelSpeed]) -> None:
    rows = []
    for speed in found:
        n, k = speed.shape
        names = [speed.format, f"{speed.matrix} {n}x{k}"]
        counts = [str(speed.tokens), str(speed.threads)]
        speeds = [*map(terminal.quantity, (speed.gb_per_s, speed.gmac_per_s))]
        rows.append(
            [*names, *counts, *speeds, f"{speed.roof_fraction:.2f}", speed.bound]
        )
    header = (
        "format",
        "matrix",
        "tokens",
        "threads",
        "GB/s",
        "GMAC/s",
        "of roof",
        "roof",
    )
    terminal.table(header, rows, "llrrrrrl")


# ---- both


def _document(
    where: dict[str, Any], results: list[dict[str, Any]], **more: dict[str, Any]
) -> None:
    terminal.document({"machine": where, **more, "results": results})


def _show_machine(where: dict[str, Any]) -> None:
    cpu, load = where["cpu"] or "unknown CPU", where["load_average"]
    terminal.line(f"{cpu}, {where['target']}, load before {load:.1f}")
    told: list[tuple[str, Callable[[float], str]]] = [
        ("read_gb_per_s", lambda x: f"reads {terminal.quantity(x)} GB/s"),
        ("dot_gmac_per_s", lambda x: f"dots bytes at {terminal.quantity(x)} GMAC/s"),
        ("fma_gmac_per_s", lambda x: f"f32 at {terminal.quantity(x)} GMAC/s"),
    ]
    for roofs in where["roofs"]:
        facts = [text(roofs[name]) for name, text in told if name in roofs]
        count = roofs["threads"]
        terminal.line(f"{count} thread{'s'[: count > 1]}: {', '.join(facts)}")


def _end(stopped: BaseException | None) -> None:
    """Exit as whatever stopped it would have, after the results so far."""
    if isinstance(stopped, KeyboardInterrupt):
        raise typer.Exit(INTERRUPTED)
    if stopped is not None:
        raise stopped
