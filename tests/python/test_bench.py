# tests/python/test_bench.py
# `halfbyte bench`: what is counted, what is printed, and that nothing wrong is timed.
# SPDX-License-Identifier: Apache-2.0
"""`halfbyte bench`: what is counted, what is printed, that nothing wrong is timed.

The command runs in this process: most of these tests replace a part of it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import halfbyte
import numpy as np
import pytest
import tiny
from halfbyte import bench, reference, roof, targets
from halfbyte.cli import main, terminal
from halfbyte.formats import format_info
from halfbyte.records import LayerConfig, ModelConfig

MIB = 1 << 20


class Command:
    """Runs `halfbyte bench` and keeps what it wrote."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *args: object, code: int = 0) -> tuple[str, str]:
        got = main(["bench", *map(str, args)])
        out, err = self._capture.readouterr()
        assert got == code, err
        return out, err

    def json(self, *args: object, **kwargs: Any) -> Any:
        out, err = self(*args, "--json", **kwargs)
        assert err == ""
        return json.loads(out)


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """The command, with a roof of little work, and Ctrl-C heard."""
    monkeypatch.setattr(bench, "ROOF_BYTES", 2 * MIB)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    pipe = signal.getsignal(signal.SIGPIPE)
    yield Command(capsys)
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGPIPE, pipe)


@pytest.fixture
def path(tiny_gguf: Callable[..., Path]) -> Path:
    return tiny_gguf("e2b")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices, little memory and short rounds."""
    monkeypatch.setattr(bench, "ROOF_BYTES", 2 * MIB)
    monkeypatch.setattr(bench, "MATRICES", {"wide": (96, 256), "flat": (40, 512)})
    monkeypatch.setattr(bench, "_KERNEL_SECONDS", 1e-3)


# --- Counting --------------------------------------------------------------------------


def shape(
    layers: int,
    period: int,
    hidden: int,
    heads: int,
    kv: tuple[int, int],
    ffn: int,
    **more: Any,
) -> ModelConfig:
    """The configuration of a released model, as far as products go."""
    own = more.pop("own", layers)
    k_eq_v = more.pop("k_eq_v", False)

    def layer(i: int) -> LayerConfig:
        full = (i + 1) % period == 0
        source = i if i < own else own - (1 if full else 2)
        width = ffn if i < own else 2 * ffn
        return LayerConfig(
            sliding=not full,
            head_dim=512 if full else 256,
            num_kv_heads=kv[full],
            ffn_len=width,
            kv_source=source,
            value_is_key=full and k_eq_v,
        )

    unused = dict.fromkeys(ModelConfig.__dataclass_fields__, 0)
    known = {"vocab_size": 262_144, "hidden_size": hidden, "num_heads": heads}
    made = tuple(layer(i) for i in range(layers))
    return ModelConfig(**unused | known | more | {"layers": made})  # type: ignore[arg-type]


# Elements of the released checkpoints, summed from the shapes of their tensors.
E2B = {
    "attention": 278_396_928,
    "mlp": 1_557_135_360,
    "ple": 41_341_696 - (35 * 1536 + 256),  # less its norms
    "head": 402_653_184,
}
B26 = {
    "attention": 1_110_179_840,
    "mlp": 535_265_280,
    "experts": 22_837_985_280 // 128 * 8,
    "router": 10_901_760 - 30 * (2816 + 128),  # less its scales
    "head": 738_197_504,
}
B31 = {"attention": 8_477_736_960, "mlp": 20_808_990_720, "head": 1_409_286_144}


def test_products_of_the_released_models_are_counted() -> None:
    e2b = shape(35, 5, 1536, 8, (1, 1), 6144, own=15, per_layer_embedding=256)
    moe = {"num_experts": 128, "num_experts_used": 8, "expert_ffn_len": 704}
    b26 = shape(30, 6, 2816, 16, (8, 2), 2112, k_eq_v=True, **moe)
    b31 = shape(60, 6, 5376, 32, (16, 4), 21504, k_eq_v=True)
    for config, parts in ((e2b, E2B), (b26, B26), (b31, B31)):
        assert bench.prompt_macs(config, 1) == sum(parts.values())
    # More tokens run everything but the head, and but the layers that share.
    every = bench.prompt_macs(b31, 2) - bench.prompt_macs(b31, 1)
    assert every == sum(B31.values()) - B31["head"]
    sharing = 20 * 3 * 1536 * 12288 + 20 * 2 * 1536 * 256  # MLPs, PLE
    sharing += 16 * 2 * 1536 * 2048 + 4 * 2 * 1536 * 4096  # queries, output
    every = bench.prompt_macs(e2b, 512) - bench.prompt_macs(e2b, 511)
    assert every == sum(E2B.values()) - E2B["head"] - sharing


@pytest.mark.parametrize("name", tiny.NAMES)
def test_one_token_multiplies_by_all_that_it_reads(
    name: str, tiny_gguf: Callable[..., Path]
) -> None:
    model = halfbyte.load(tiny_gguf(name))
    assert set(model.report().types) == {"F32"}
    assert 4 * bench.prompt_macs(model.config, 1) == model.report().bytes_per_token


# --- Models ----------------------------------------------------------------------------

RESULT = {
    "test": str,
    "threads": int,
    "tokens_per_second": float,
    "sd": float,
    "roof_fraction": float,
    "peak_rss_bytes": int,
}


def test_the_json_of_a_model(run: Command, path: Path) -> None:
    args = (path, "-p", "8,0,3", "-n", 4, "-r", 2, "--threads", "1,2", "--kv", "int8")
    found = run.json(*args)
    assert found["model"]["kv"] == "int8"
    assert list(found) == ["schema", "machine", "model", "results"]
    assert found["schema"] == 1
    assert found["model"]["path"] == str(path)
    report = halfbyte.load(path).report()
    assert found["model"]["bytes_per_token"] == report.bytes_per_token
    assert found["machine"]["target"] == halfbyte.cpu_target()
    assert [entry["threads"] for entry in found["machine"]["roofs"]] == [1, 2]
    for entry in found["machine"]["roofs"]:
        assert entry["read_gb_per_s"] > 0
        assert entry["fma_gmac_per_s"] > 0  # float weights: no dot products of bytes
        assert "dot_gmac_per_s" not in entry
    tests = [(result["test"], result["threads"]) for result in found["results"]]
    assert tests == [(test, n) for n in (1, 2) for test in ("pp8", "pp3", "tg4")]
    for result in found["results"]:
        assert {name: type(value) for name, value in result.items()} == RESULT
        assert result["tokens_per_second"] > 0
        assert result["sd"] > 0
        assert 0 < result["roof_fraction"] < 1
        # What the roof is measured on, 2 MiB, does not belong to the model. Linux
        # counts pages per CPU and adds them up now and then: some are missing at times.
        assert MIB < result["peak_rss_bytes"] < targets.peak_rss() - MIB


def test_the_table_of_a_model(run: Command, path: Path) -> None:
    out, err = run(path, "-p", 8, "-n", 4, "-r", 2, "--threads", 2)
    assert err == ""
    head, machine, roofs, titles, *rows = out.splitlines()
    assert head.startswith(path.name)
    assert halfbyte.cpu_target() in machine
    assert re.match(r"2 threads: reads [\d.]+ GB/s, f32 at [\d.]+ GMAC/s$", roofs)
    assert re.split("  +", titles) == [
        "test",
        "threads",
        "tok/s",
        "of roof",
        "peak memory",
    ]
    for test, row in zip(("pp8", "tg4"), rows, strict=True):
        assert re.match(
            rf"{test} +2 +[\d.]+ ± [\d.]+ +0\.\d\d +[\d,.]+ [GMK]iB$", row
        ), row


def test_the_numbers_are_those_of_the_samples() -> None:
    speed = bench.ModelSpeed("pp8", 1, [10.0, 12.0, 17.0], [20.0, 20.0, 40.0], 5)
    assert speed.tokens_per_second == 13.0
    assert speed.sd == statistics.stdev([10, 12, 17])
    assert speed.roof_fraction == 0.5  # of 0.5, 0.6, 0.425
    assert bench.ModelSpeed("pp8", 1, [10.0], [20.0], 5).sd == 0.0


def test_quantized_weights_are_measured_by_dot_products(
    run: Command, tiny_gguf: Callable[..., Path]
) -> None:
    path = tiny_gguf("e2b", types=lambda _name: tiny.Type.Q8_0)
    found = run.json(path, "-p", 8, "-n", 0, "-r", 1)
    [entry] = found["machine"]["roofs"]
    assert list(entry) == ["threads", "dot_gmac_per_s"]
    [result] = found["results"]
    assert (result["test"], result["sd"]) == ("pp8", 0.0)
    assert result["threads"] == halfbyte.num_threads()


def test_a_token_at_a_time_costs_what_it_reads(path: Path) -> None:
    """The roof of tg in tokens, times the bytes of a token, is the bandwidth."""
    model = halfbyte.load(path, context=8)
    roofs = bench.Roofs(roof.buffer(MIB))
    speeds = list(
        bench.model_speeds(model, roofs, prompts=(), answers=(4,), repetitions=3)
    )
    assert len(speeds) == 3
    assert all(speed is speeds[0] for speed in speeds)
    [entry] = roofs.found()
    read = model.report().bytes_per_token * statistics.median(speeds[0].roofs)
    assert entry["read_gb_per_s"] == pytest.approx(read / 1e9)


@pytest.mark.parametrize("kind", ["json", "table"])
def test_ctrl_c_prints_what_was_measured(
    run: Command, path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    peak, calls = roof.fma_peak, []

    def interrupted(**options: Any) -> float:
        calls.append(1)
        if len(calls) == 5:  # in the second of the tests
            os.kill(os.getpid(), signal.SIGINT)
        return peak(**options)

    monkeypatch.setattr(roof, "fma_peak", interrupted)
    args = (path, "-p", "8,9,10", "-n", 0, "-r", 3, "--threads", 1)
    if kind == "json":
        results = run.json(*args, code=130)["results"]
        assert [result["test"] for result in results] == ["pp8", "pp9"]
    else:
        out, err = run(*args, code=130)
        assert err == ""
        assert [row.split()[0] for row in out.splitlines()[-2:]] == ["pp8", "pp9"]


def test_ctrl_c_during_a_repetition_leaves_those_before(
    run: Command, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, calls = bench._Runner.seconds, []

    def interrupted(*args: Any) -> float:
        calls.append(1)
        if len(calls) == 3:  # after the warm-up and the first
            raise KeyboardInterrupt
        return seconds(*args)

    monkeypatch.setattr(bench._Runner, "seconds", interrupted)
    [result] = run.json(path, "-p", 8, "-n", 0, "-r", 3, code=130)["results"]
    assert (result["test"], result["sd"]) == ("pp8", 0.0)


def test_quiet_means_no_bar(
    run: Command, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, progress = [], terminal.progress

    def noted(title: str, *, quiet: bool = False) -> Any:
        asked.append((title, quiet))
        return progress(title, quiet=quiet)

    monkeypatch.setattr(terminal, "progress", noted)
    run(path, "-p", 8, "-n", 0, "-r", 1, "--quiet")
    assert asked == [("loading", True), ("bench", True)]


@pytest.mark.parametrize("args", [("--json",), ()])
def test_ctrl_c_before_there_is_anything(
    run: Command, path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    def interrupted(**_options: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(roof, "fma_peak", interrupted)
    out, err = run(path, "-p", 8, *args, code=130)
    assert err == ""
    assert '"results": []' in out or "of roof" in out


# --- Usage -----------------------------------------------------------------------------


def test_the_help_names_the_defaults(run: Command) -> None:
    words = run("--help")[0].split()
    assert ",".join(bench.MATRICES) + "." in words
    assert ",".join(map(str, bench.TOKENS)) in words


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-p", "8,x"), "-p: expected 0 to 1048576, got 'x'"),
        (("-p", "-8"), "-p: expected 0"),
        (("-n", "1" * 5000), "-n: expected 0"),
        (("-n", ""), "-n: expected 0 to 1048576, got ''"),
        (("-p", "0", "-n", "0,0"), "nothing to measure"),
        (("-r", "0"), "repetitions"),
        (("--threads", "0"), "--threads: expected 1 to 1024, got '0'"),
        (("--formats", "q4_0"), "--formats needs --kernels"),
        (("--matrices", "e2b-up"), "--matrices needs --kernels"),
        (("--tokens", "1"), "--tokens needs --kernels"),
        (("--kernels",), "leave MODEL out"),
        (("-p", "300"), "300"),
    ],
)
def test_usage_errors_end_with_2(
    run: Command, path: Path, args: tuple[str, ...], words: str
) -> None:
    out, err = run(path, *args, code=2)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert words in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--formats", "q4_0,q9"), "--formats: expected some of f32,"),
        (("--matrices", "huge"), "--matrices: expected some of e2b-up,"),
        (("--tokens", "0"), "--tokens: expected 1"),
    ],
)
def test_unknown_kernels_end_with_2(
    run: Command, args: tuple[str, ...], words: str
) -> None:
    out, err = run("--kernels", *args, code=2)
    assert out == ""
    assert words in err


def test_a_missing_file_ends_with_2(run: Command, tmp_path: Path) -> None:
    assert "No such file" in run(tmp_path / "none.gguf", code=2)[1]


# --- Kernels ---------------------------------------------------------------------------

KERNEL = {
    "format": str,
    "matrix": str,
    "n": int,
    "k": int,
    "tokens": int,
    "threads": int,
    "target": str,
    "seconds": float,
    "gb_per_s": float,
    "gmac_per_s": float,
    "bound": str,
    "roof_fraction": float,
}


@pytest.mark.usefixtures("small")
def test_the_json_of_kernels(run: Command) -> None:
    args = ("--formats", "q4_0,bf16", "--tokens", "1,9", "--threads", "1,2", "-r", 2)
    found = run.json("--kernels", *args)
    assert list(found) == ["schema", "machine", "results"]
    keys = ["threads", "read_gb_per_s", "dot_gmac_per_s", "fma_gmac_per_s"]
    assert [list(entry) for entry in found["machine"]["roofs"]] == [keys, keys]
    points = [
        (r["matrix"], r["format"], r["threads"], r["tokens"]) for r in found["results"]
    ]
    assert points == [
        (matrix, fmt, threads, tokens)
        for matrix in ("wide", "flat")
        for fmt in ("q4_0", "bf16")
        for threads in (1, 2)
        for tokens in (1, 9)
    ]
    for r in found["results"]:
        assert {name: type(value) for name, value in r.items()} == KERNEL
        assert (r["n"], r["k"]) == bench.MATRICES[r["matrix"]]
        size = r["n"] * r["k"] * (4.5 if r["format"] == "q4_0" else 16) / 8
        assert r["gb_per_s"] == pytest.approx(size / r["seconds"] / 1e9)
        macs = r["tokens"] * r["n"] * r["k"]
        assert r["gmac_per_s"] == pytest.approx(macs / r["seconds"] / 1e9)
        assert r["bound"] in ("read", "dot" if r["format"] == "q4_0" else "fma")
        assert r["target"] == halfbyte.cpu_target()
        assert r["roof_fraction"] > 0


@pytest.mark.usefixtures("small")
def test_the_table_of_kernels(run: Command) -> None:
    args = ("--formats", "q5_k", "--matrices", "flat", "--tokens", "1,4,32", "-r", 1)
    out, err = run("--kernels", *args)
    assert err == ""
    machine, _roofs, titles, *rows = out.splitlines()
    assert halfbyte.cpu_target() in machine
    assert titles.split()[:3] == ["format", "matrix", "tokens"]
    assert [row.split()[:3] for row in rows] == [["q5_k", "flat", "40x512"]] * 3
    assert [row.split()[3] for row in rows] == ["1", "4", "32"]


@pytest.mark.usefixtures("small")
def test_every_format_has_a_right_answer() -> None:
    roofs = bench.Roofs(bench.kernel_arena(halfbyte.formats(), ["wide"]))
    options: dict[str, Any] = {"matrices": ["wide"], "tokens": (1, 5)}
    formats = halfbyte.formats()
    speeds = bench.kernel_speeds(roofs, formats=formats, repetitions=1, **options)
    assert [(s.format, s.tokens) for s in speeds] == [
        (fmt, tokens) for fmt in formats for tokens in (1, 5)
    ]


@pytest.mark.usefixtures("small")
def test_the_limit_is_the_slower_of_the_two() -> None:
    args = ("q4_0", "wide", 1, 1, "AVX2")
    read = bench.KernelSpeed(*args, [4.0, 8.0], [2.0, 2.0], [1.0, 1.0])
    assert (read.bound, read.roof_fraction) == ("read", 0.375)
    dots = bench.KernelSpeed(*args, [4.0, 8.0], [2.0, 2.0], [3.0, 4.0])
    assert (dots.bound, dots.roof_fraction) == ("dot", 0.625)
    floats = bench.KernelSpeed("f16", *args[1:], [4.0], [2.0], [3.0])
    assert floats.bound == "fma"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("fmt", ["f32", "q8_0", "q6_k"])
def test_weights_rotate_through_copies_that_fill_the_memory(fmt: str) -> None:
    arena = bench.kernel_arena([fmt, "q4_0"], ["wide", "flat"])
    stack = bench._stack(fmt, "wide", arena)
    copies = stack.data.reshape(-1, bench._bytes_of(fmt, 96, 256))
    assert stack.shape == (96 * len(copies), 256)
    assert bench.ROOF_BYTES <= stack.nbytes <= arena.size
    # What is timed is what a model runs: packed weights in kernel order.
    assert (stack.repacked_nbytes > 0) == (format_info(fmt).block_len > 1)
    assert (copies == copies[0]).all()
    one = halfbyte.Weight(copies[0], fmt, (96, 256))
    assert np.unique(one.dequantize(), axis=0).shape[0] == 96  # no row twice


@pytest.mark.usefixtures("small")
def test_one_matrix_after_the_other_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def linear_each(_x: Any, _out: Any, begin: int, count: int, _threads: int) -> None:
        asked.append((begin, count))

    monkeypatch.setattr(bench, "_KERNEL_SECONDS", 1e-3)
    core = SimpleNamespace(linear_each=linear_each)
    stack: Any = SimpleNamespace(shape=(96 * 13, 256), _core=core)
    speed = bench.KernelSpeed("q4_0", "wide", 1, 1, "AVX2")
    bench._seconds_a_product(speed, stack, np.zeros((1, 256), np.float32))
    at = [i % 13 for begin, count in asked for i in range(begin, begin + count)]
    assert at == [i % 13 for i in range(len(at))]
    assert max(begin + count for begin, count in asked) == 13
    assert len(at) > 13


@pytest.mark.parametrize("codes", [False, True])
def test_products_with_a_stack_of_matrices(codes: bool) -> None:
    rng = np.random.default_rng(3)
    stack = halfbyte.quantize(rng.standard_normal((5 * 32, 64), np.float32), "w4")
    each, step = stack._core.linear_each, ()
    x: Any = rng.standard_normal((3, 64), np.float32)
    if codes:
        each, step = stack._core.linear_codes_each, (0.1, 0.2)
        x = rng.integers(-127, 128, (3, 64), np.int8)
    whole = halfbyte.linear_codes(x, stack, x_step=0.1, y_step=0.2) if codes else None
    want = halfbyte.linear(x, stack) if whole is None else whole
    out = np.zeros((6, 32), want.dtype)  # room for two
    each(x, *step, out, 1, 3, 1)
    np.testing.assert_array_equal(out[:3], want[:, 96:128])  # over matrix 1
    np.testing.assert_array_equal(out[3:], want[:, 64:96])
    for begin, count in ((0, 6), (5, 1), (2**63, 2**63)):
        with pytest.raises(halfbyte.ShapeError, match="count: too many"):
            each(x, *step, out, begin, count, 1)
    for room in ((2, 32), (3, 0), (0, 32)):
        with pytest.raises(halfbyte.ShapeError, match="out: no room for a product"):
            each(x, *step, np.zeros(room, want.dtype), 0, 1, 1)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("at", [(0, 0), (4, 47), (7, 18)])
def test_a_wrong_answer_is_not_timed(
    run: Command, monkeypatch: pytest.MonkeyPatch, at: tuple[int, int]
) -> None:
    """One output out of hundreds, in one of the numbers of tokens, is a little off."""
    right, wrong = reference.linear, []

    def linear(x: Any, w: Any) -> Any:
        y = right(x, w)
        if len(x) == 8:  # of 9
            y[at] += 0.01 * np.abs(y).max()
            wrong.append(1)
        return y

    monkeypatch.setattr(reference, "linear", linear)
    args = ("--formats", "q8_0", "--tokens", "1,9,4", "--matrices", "wide", "-r", 1)
    out, err = run("--kernels", *args, "--json", code=1)
    assert re.fullmatch(
        r"halfbyte: q8_0, 96 x 256, 9 tokens: off by [\d.e-]+, not timed\n", err
    )
    assert [result["tokens"] for result in json.loads(out)["results"]] == [1]
    assert len(wrong) == 1  # once, to be compared
