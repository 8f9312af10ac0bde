# tests/python/test_snippets.py
# SPDX-License-Identifier: Apache-2.0
"""What the documentation tells its reader to type, typed.

Every block of Python of a page runs in one process, one after the other, in a folder
that has files of the names that the pages use: all are the small model of the package,
in other forms. So do the command lines that `halfbyte` begins.
"""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import drafters
import halfbyte
import pytest
import torch
from halfbyte import bundled
from halfbyte.transformers import from_gguf
from test_docs import ROOT, blocks, command_lines
from transformers.utils import logging

PACKAGE = ROOT / "python/halfbyte"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = [p for p in PAGES if list(blocks(p.read_text(encoding="utf-8"), "python"))]

# Exit codes but 0, which a command may well have: it says something about the file.
EXIT_CODES = {
    # The tiny model is packed by its lattice: there is nothing to repair or to tell.
    "lineage model.gguf": 6,
    "lineage model.gguf --plot what.svg": 6,
    "repair qat.gguf better.gguf": 4,
    "repair model.gguf better.gguf": 4,
    "repair model.gguf": 4,
}
# Commands that take what a test has not: a person, minutes, the demo's weights.
LEFT_OUT = ("chat ", "run The first", "bench --kernels")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that a page names."""
    folder = tmp_path_factory.mktemp("shelf")
    for name in ("gemma-4-E2B-it-qat-q4_0.gguf", "model.gguf", "qat.gguf"):
        shutil.copy(bundled.locate("tiny"), folder / name)
    dense = folder / "google" / "gemma-4-E2B-it"
    logging.disable_progress_bar()
    model, tokenizer = from_gguf("tiny", dtype=torch.bfloat16)
    logging.enable_progress_bar()
    model.save_pretrained(dense)
    tokenizer.save_pretrained(dense)
    mobile = dense.with_name("gemma-4-E2B-it-qat-mobile-transformers")
    mobile.symlink_to(bundled.locate("tiny-mobile"))
    dense.with_name("gemma-4-E2B-it-qat-q4_0-gguf").symlink_to(folder / "model.gguf")
    dense.with_name("gemma-3-1b-it").symlink_to(dense)
    packed = dense.with_name("gemma-4-E2B-it-qat-w4a16-ct")
    halfbyte.convert(dense, packed, to="safetensors", format="w4a16-ct")
    for name in ("qat-bf16", "bf16", "unquantized"):
        (folder / name).symlink_to(dense)
    (folder / "gemma-4-E2B-it-qat-q4_0-unquantized").symlink_to(dense)
    assistant = dense.with_name("gemma-4-E2B-it-qat-q4_0-unquantized-assistant")
    drafters.save(drafters.build(model), assistant)
    halfbyte.convert(dense, folder / "bf16.gguf", format="bf16")
    write_imatrix(folder / "imatrix.gguf", folder / "bf16.gguf")
    passages = Path(halfbyte.__file__).parent / "data" / "passages.txt"
    shutil.copy(passages, folder / "text.txt")
    (folder / "questions.txt").write_text("What does Charity mean?\nWho is it?\n")
    return folder


def write_imatrix(path: Path, model: Path) -> None:
    """An importance of 1 for every column of every matrix, as llama-imatrix has it."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    for tensor in halfbyte.open_gguf(model).tensors:
        if len(tensor.shape) == 2:
            ones = np.ones((1, tensor.shape[1]), np.float32)
            writer.add_tensor(f"{tensor.name}.in_sum2", ones)
            writer.add_tensor(f"{tensor.name}.counts", ones[:, :1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run(line: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in `folder`, with no network."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return subprocess.run(
        line,
        check=False,
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def python_of(page: Path) -> str:
    return "\n".join(blocks(page.read_text(encoding="utf-8"), "python"))


@pytest.mark.parametrize("page", CODE, ids=lambda p: p.stem)
def test_python(page: Path, shelf: Path) -> None:
    done = run([sys.executable, "-c", python_of(page)], shelf)
    assert done.returncode == 0, done.stderr


EXAMPLES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_in_docstrings(module: str) -> None:
    done = doctest.testmod(importlib.import_module(module))
    assert done.attempted
    assert not done.failed


def commands() -> list[str]:
    found: dict[str, None] = {}
    for page in PAGES:
        for line in command_lines(page.read_text(encoding="utf-8")):
            words = shlex.split(line, comments=True)[1:]
            is_run = len(words) > 1 and not any("…" in w or w == "HEX" for w in words)
            if is_run and not " ".join(words).startswith(LEFT_OUT):
                found[shlex.join(words)] = None
    return list(found)


@pytest.mark.parametrize("command", commands())
def test_command(command: str, shelf: Path) -> None:
    for name in ("out.gguf", "e2b.gguf", "q8_0.gguf", "ct"):
        shutil.rmtree(shelf / name, ignore_errors=True)
        (shelf / name).unlink(missing_ok=True)
    done = run([sys.executable, "-m", "halfbyte", *shlex.split(command)], shelf)
    assert done.returncode == EXIT_CODES.get(command, 0), done.stderr
    assert "Traceback" not in done.stderr


def test_exit_codes_are_of_commands_that_are_there() -> None:
    assert set(EXIT_CODES) <= set(commands())


def test_what_does_not_run_is_found(shelf: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n```python\nassert x == 2\n```\n")
    assert re.search(
        r"AssertionError", run([sys.executable, "-c", python_of(page)], shelf).stderr
    )
