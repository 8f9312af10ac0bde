# tests/python/test_stubs.py
# The stub file says what the compiled module is, and the package is typed throughout.
# SPDX-License-Identifier: Apache-2.0
"""The stub file says what the compiled module is, and the package is typed throughout.

`stubtest` compares names, kinds and properties. It cannot see the signatures of compiled
functions, so those are compared here, with the first line of pybind11's docstrings.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import halfbyte
import pytest
from halfbyte import _core

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "python"
STUB = Path(halfbyte.__file__).with_name("_core.pyi")

# stubtest sees the metaclass that pybind11 gives its classes, and a constructor that
# only refuses where there is none.
CLASSES = [name for name, item in vars(_core).items() if isinstance(item, type)]
UNBUILT = ["File", "Model", "Tokenizer"]

# How pybind11 spells the stub's arrays.
ARRAYS = {
    "_F32": "NDArray[np.float32]",
    "_U8": "NDArray[np.uint8]",
    "NDArray[np.": "numpy.typing.NDArray[numpy.",
}


def run(*line: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, line)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


def stubtest(module: str, allowed: list[str], folder: Path) -> str:
    """Return what `stubtest` complains about; "" if nothing."""
    listed, config = folder / "allowed", folder / "mypy.ini"
    listed.write_text("\n".join(allowed))
    # torch is not what is asked about, and reading it takes most of a run.
    config.write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")
    line = (
        "mypy.stubtest",
        module,
        "--allowlist",
        listed,
        "--mypy-config-file",
        config,
    )
    done = run(*line)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy knows of others' packages: reading them takes most of a run."""
    return tmp_path_factory.mktemp("mypy")


def test_the_package_is_typed_strictly(cache: Path) -> None:
    assert (SOURCE / "halfbyte" / "py.typed").exists()
    done = run("mypy", "--strict", "--cache-dir", cache, SOURCE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_options_that_are_handed_on_are_typed(cache: Path, tmp_path: Path) -> None:
    program = tmp_path / "wrong.py"
    program.write_text(
        "import halfbyte\n"
        "import numpy as np\n"
        "import torch\n"
        'model = halfbyte.load("tiny")\n'
        "chat = halfbyte.Conversation(model)\n"
        'model("a", temperature=1, stop=["b"], logprobs=2)\n'
        'model.chat("a", temprature=1)\n'
        'model.stream("a", seed="b")\n'
        'chat.send("a", top=1)\n'
        "halfbyte.softmax([1.0])\n"
        'halfbyte.load("tiny", kv="f8")\n'
        "model.stream(np.arange(3))\n"
        'halfbyte.quantize(torch.ones(2, 32), "q4_0", quantizer="rms")\n'
    )
    done = run("mypy", "--strict", "--cache-dir", cache, program)
    found = re.findall(r"wrong\.py:(\d+): error", done.stdout)
    assert found == ["7", "8", "9", "10", "11", "13"], done.stdout + done.stderr


def test_the_stub_names_what_there_is(tmp_path: Path) -> None:
    allowed = [f"halfbyte._core.{name}" for name in CLASSES]
    allowed += [f"halfbyte._core.{name}.__init__" for name in UNBUILT]
    assert stubtest("halfbyte._core", allowed, tmp_path) == ""


# --- Signatures ------------------------------------------------------------------------


def stubbed(text: str) -> dict[str, tuple[list[str], str]]:
    """Parameters and result of each function, method and property of a stub."""
    found = {}
    for node in ast.parse(text).body:
        body = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for item in body:
            if isinstance(item, ast.FunctionDef):
                assert not item.args.kwonlyargs, item.name
                assert not item.args.defaults, item.name
                names = [a.arg for a in item.args.posonlyargs + item.args.args]
                assert item.returns is not None, item.name
                found[prefix + item.name] = (names, ast.unparse(item.returns))
    return found


def compiled() -> dict[str, tuple[list[str], str]]:
    """Return the same of the compiled module."""
    found = {}
    for name, item in vars(_core).items():
        if isinstance(item, type):
            found |= {
                f"{name}.{member}": signature(value)
                for member, value in vars(item).items()
                if documented(value)
            }
        elif callable(item) and not name.startswith("_"):
            found[name] = signature(item)
    return found


def documented(member: Any) -> bool:
    if isinstance(member, property):
        return True
    text = getattr(member, "__func__", member).__doc__ or ""
    return callable(member) and "->" in text


def signature(member: Any) -> tuple[list[str], str]:
    if isinstance(member, property):
        line = f"property{member.fget.__doc__.strip()}".replace("arg0", "self")
    else:
        line = getattr(member, "__func__", member).__doc__.splitlines()[0]
    tree = ast.parse(f"def {line}: ...").body[0]
    assert isinstance(tree, ast.FunctionDef)
    assert tree.returns is not None
    returns = ast.unparse(tree.returns).replace("halfbyte._core.", "")
    return [argument.arg for argument in tree.args.args], returns


def same_type(compiled: str, stub: str) -> bool:
    """Whether the stub says what pybind11 says, or the same more exactly."""
    for short, full in ARRAYS.items():
        stub = stub.replace(short, full)
    array = r"numpy\.typing\.NDArray\[numpy\.\w+\]"
    outer = re.match(r"\w+", stub)
    assert outer is not None
    loose = compiled in ("list", "dict", "tuple") and compiled == outer[0]
    untyped = compiled == "numpy.ndarray" and re.fullmatch(array, stub) is not None
    optional = stub == f"{compiled} | None" and compiled == "Tokenizer"
    text = (compiled, stub) == ("object", "str | bytes")
    return compiled == stub or loose or untyped or optional or text


def differences(stub: str) -> list[str]:
    ours, real = stubbed(stub), compiled()
    wrong = [f"only in one: {name}" for name in sorted(ours.keys() ^ real.keys())]
    for name in sorted(ours.keys() & real.keys()):
        (names, returns), (real_names, real_returns) = ours[name], real[name]
        if names != real_names:
            wrong.append(f"{name}: {names} in the stub, {real_names} in the module")
        if not same_type(real_returns, returns):
            wrong.append(f"{name}: {returns} in the stub, {real_returns} in the module")
    return wrong


def test_signatures_are_the_compiled_ones() -> None:
    assert differences(STUB.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        ("rows: int, threads: int", "threads: int, rows: int", "Session.run"),
        ("def peak_rss() -> int", "def peak_rss() -> str", "peak_rss"),
        ("def is_eog(self, id: int)", "def is_end(self, id: int)", "Tokenizer.is_eog"),
        ("def tokens(self) -> list[int]", "def tokens(self) -> list[str]", "tokens"),
        ("def panels(self, threads: int)", "def panels(self, n: int)", "Weight.panels"),
        ("threads: int) -> _U8", "threads: int) -> _F32", "Weight.panels"),
    ],
)
def test_a_wrong_stub_is_noticed(good: str, bad: str, named: str) -> None:
    text = STUB.read_text(encoding="utf-8")
    assert good in text
    assert any(named in line for line in differences(text.replace(good, bad)))
