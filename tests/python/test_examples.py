# tests/python/test_examples.py
# The examples and benchmarks as a user runs them, each in a process of its own.
# SPDX-License-Identifier: Apache-2.0
"""The examples and benchmarks as a user runs them, each in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import halfbyte
import numpy as np
import pytest
import tiny
from halfbyte import reference

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(script: str, *args: object, stdin: str = "") -> str:
    """Run a script of the repository and return its stdout; warnings are errors."""
    line = [sys.executable, "-W", "error", str(ROOT / script), *map(str, args)]
    done = subprocess.run(
        line, input=stdin, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template that does not end by itself."""
    path = tmp_path_factory.mktemp("examples") / "plain.gguf"
    return tiny.save_gguf(
        tiny.talkative("gemma3"), path, extra={"context_length": 1024}
    )


def test_every_example_is_tested_and_short() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES:
        assert f'"examples/{path.name}"' in text
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 40, path


def test_dequantize() -> None:
    first, second = run("examples/dequantize.py").splitlines()
    assert "147456 bytes" in first
    assert "4.5 bits a weight, 7.1 x smaller" in first  # 32 / 4.5
    x = np.random.default_rng(0).standard_normal((256, 1024), np.float32)
    lost = reference.dequantize(reference.quantize(x, "q4_0")) - x
    share = np.sqrt(np.mean(lost**2) / np.mean(x**2))
    assert second == f"equal bit for bit; relative error of the format {share:.1%}"


def test_gemv() -> None:
    head, *lines = run("examples/gemv.py").splitlines()
    assert head.startswith(halfbyte.cpu_target())
    found = re.findall(
        r"^(\S+) +(\S+) bits +error (\S+), .* (\S+)$", "\n".join(lines), re.MULTILINE
    )
    names = ["f32", "bf16", "q8_0", "q6_k", "q4_0"]
    assert [row[0] for row in found] == names
    bits = [32, 16, 8.5, 6.5625, 4.5]
    assert [float(row[1]) for row in found] == [round(b, 2) for b in bits]
    packed, exact = (np.array([float(row[i]) for row in found]) for i in (2, 3))
    assert exact[0] < 2048 * 2.0**-24
    # Rounding to steps of s costs s / sqrt(12). Steps: 2^-8 of a number's power of two
    # in bf16; a 127th, and an 8th, of the largest of 32, near 2.1 for normal variables.
    assert exact[1] == pytest.approx(2**-8 / 12**0.5, rel=0.5)
    assert exact[2] == pytest.approx(2.1 / 127 / 12**0.5, rel=0.2)
    assert exact[4] == pytest.approx(2.1 / 8 / 12**0.5, rel=0.2)
    assert (np.diff(packed) > 0).all()
    np.testing.assert_allclose(packed[:2], exact[:2])  # float weights round no input
    assert packed[2] == pytest.approx(2**0.5 * exact[2], rel=0.1)  # both sides rounded


def test_stream_tokens(plain: Path) -> None:
    *lines, read, written = run(
        "examples/stream_tokens.py", plain, "the end"
    ).splitlines()
    model = halfbyte.load(plain, context=512)
    pieces = model.stream("the end", max_tokens=24, temperature=0.8, top_p=0.95, seed=7)
    assert lines == [f"{piece.token:7} {piece.text!r}" for piece in pieces]
    prompt = len(model.tokenize("the end"))
    assert re.fullmatch(rf"{prompt} tokens read at \d+ a second,", read)
    assert re.fullmatch(r"24 written at \d+ a second", written)


def talk(model: halfbyte.Model) -> str:
    """What `examples/chat.py` shows of two turns."""
    chat, shown = halfbyte.Conversation(model), ""
    for line in ("the end", "of the line"):
        text = "".join(piece.text for piece in chat.send(line, max_tokens=48))
        shown += f"> {text}\n"
    return f"{shown}> "


def test_chat_without_a_template_goes_on(plain: Path) -> None:
    out = run("examples/chat.py", plain, stdin="the end\nof the line\n\n")
    assert out == talk(halfbyte.load(plain))


def test_chat_with_a_template_answers(tmp_path: Path) -> None:
    tiny.save_hf(tiny.talkative("e2b"), tmp_path)
    template = (
        "{% for m in messages %}<|turn>{{ m['role'] }}\n{{ m['content'] }}<turn|>"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    out = run("examples/chat.py", tmp_path, stdin="the end\nof the line\n")
    model = halfbyte.load(tmp_path)
    assert model.has_template
    assert out == talk(model)


BENCHMARKS = {
    "batch.py": 1,
    "beside.py": 2,
    "convert.py": 1,
    "engine.py": 1,
    "generate.py": 1,
    "guesses.py": 1,
    "lattice.py": 1,
    "lineage.py": 1,
    "memory.py": 1,
    "start.py": 1,
}


@pytest.mark.parametrize("script", BENCHMARKS)
def test_benchmarks_name_a_model_that_is_not_there(script: str) -> None:
    line = [sys.executable, ROOT / "benchmarks" / script]
    line += ["gone.gguf"] * BENCHMARKS[script]
    done = subprocess.run(
        line, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.endswith("gone.gguf: there is no such file or folder")
    assert "Traceback" not in done.stderr


def test_benchmarks_take_the_names_that_load_takes() -> None:
    options = ["--prompt", "8", "--tokens", "2", "--rounds", "1", "--mib", "16"]
    out = run("benchmarks/generate.py", "tiny", *options, "--only-ours")
    assert "tiny-q4_0.gguf" in out
    assert "looked at" in run("benchmarks/lineage.py", "tiny", "--rounds", 1)


def test_batches_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "batch.json"
    options = ["--rounds", "2", "--threads", "1", "--sizes", "1,3", "--json", file]
    out = run("benchmarks/batch.py", "tiny", *options, "--only-ours")
    assert "halfbyte, tokens/s" in out
    (told,) = json.loads(file.read_text())["results"]
    for size in ("1", "3"):
        assert len(told[size]["tokens_per_s"]["halfbyte"]["samples"]) == 2


def test_guesses_are_measured() -> None:
    options = ["--rounds", "1", "--threads", "1", "--draft", "2"]
    out = run("benchmarks/guesses.py", "tiny", *options)
    assert "tokens a pass" in out
    assert all(name in out for name in ("LICENSE", "gguf.cc", "layer.h"))


def test_generate_benchmark_runs(plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "generate.json"
    options = ["--prompt", "40", "--tokens", "3", "--rounds", "2", "--mib", "16"]
    options += ["--threads", "2,1"]
    out = run("benchmarks/generate.py", plain, *options, "--only-ours", "--json", file)
    result = json.loads(file.read_text())
    assert [measured["threads"] for measured in result["runs"]] == [2, 1]
    report = halfbyte.load(plain).report()
    for measured in result["runs"]:
        assert measured["bytes_per_token"] == report.bytes_per_token
        for key in ("prompt_tokens_per_s", "decode_tokens_per_s"):
            speeds = measured["sides"]["halfbyte"][key]
            assert len(speeds["samples"]) == 2
            assert speeds["median"] == pytest.approx(
                np.median(speeds["samples"]), rel=1e-3
            )
    assert out.count("share of the read bandwidth") == 2
