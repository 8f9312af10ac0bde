# tests/python/test_notebooks.py
# SPDX-License-Identifier: Apache-2.0
"""The notebooks, run from top to bottom in a kernel as their reader would.

A kernel, and not the cells' code in one namespace: only it shows the last value of a
cell by `_repr_html_` and the figures as images, which is half of what they are for.
"""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Any

import matplotlib.font_manager  # noqa: F401  # writes its cache: kernels tell of it
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
CPU_SECONDS = 60


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def what_is_wrong(notebook: Any) -> list[str]:
    """Traces of a run, and what no reader of notebooks would take."""
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [error.message]
    wrong = [] if notebook.nbformat == 4 else [f"nbformat {notebook.nbformat}"]
    for cell in code_cells(notebook):
        if cell.outputs or cell.execution_count is not None or cell.metadata:
            wrong.append(f"{cell.id} was run")
    return wrong


def test_every_notebook_is_run() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [p.name for p in NOTEBOOKS if f'"examples/{p.name}"' not in text] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_without_outputs(path: Path) -> None:
    assert what_is_wrong(read(path)) == []


def test_traces_of_a_run_are_found() -> None:
    for key, value in (
        ("execution_count", 1),
        ("outputs", [nbformat.v4.new_output("stream", text="1")]),
        ("metadata", {"scrolled": True}),
    ):
        notebook = read(NOTEBOOKS[0])
        cell = code_cells(notebook)[-1]
        cell[key] = value
        assert what_is_wrong(notebook) == [f"{cell.id} was run"]
    del cell["outputs"]
    assert "'outputs' is a required property" in what_is_wrong(notebook)[0]


def run(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Execute a notebook without network; its cells fail by raising here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens: "discard"
    notebook = read(path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
    ).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Not by the clock: the machine may be busy with something else.
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert 0 < spent < CPU_SECONDS
    return notebook


def shown(notebook: Any, kind: str) -> list[str]:
    """Outputs of one MIME type."""
    return [
        output.data[kind]
        for cell in code_cells(notebook)
        for output in cell.outputs
        if kind in output.get("data", {})
    ]


def printed(notebook: Any) -> str:
    """All of stdout; warnings, which come by stderr, are failures."""
    streams = [
        output
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "stream"
    ]
    assert [s.text for s in streams if s.name != "stdout"] == []
    return "".join(s.text for s in streams)


def percents(text: str, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern + r" +([\d.]+)%", text)]


def test_numpy_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = run(ROOT / "examples/numpy_tour.ipynb", tmp_path, monkeypatch)
    (weight,) = shown(notebook, "text/html")
    assert "<td>512 x 1024</td>" in weight
    assert "data:image/png;base64," in weight
    assert len(shown(notebook, "image/png")) == 2
    text = printed(notebook)
    formats = percents(text, r"bits a weight, error")  # q8_0, q6_k, q4_0
    assert formats == sorted(formats)
    ordinary, recovered = percents(text, r"(?:quantize|recover) +error")
    assert 10 * recovered < ordinary


def test_transformers_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = run(ROOT / "examples/transformers_tour.ipynb", tmp_path, monkeypatch)
    (report,) = shown(notebook, "text/html")
    assert "<caption>Gemma4ForCausalLM</caption>" in report
    assert "dense linear, q4_0" in report
    before, after = (
        output.data["text/plain"]
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "execute_result" and "text/html" not in output.data
    )
    assert len(before.split(",")) == len(after.split(",")) == 12
    sizes = re.search(r"packed ([\d.]+) MiB.* was ([\d.]+)", printed(notebook))
    assert sizes is not None
    # Told to a tenth of a MiB, of 2.
    assert float(sizes[2]) / float(sizes[1]) == pytest.approx(32 / 4.5, rel=0.05)
