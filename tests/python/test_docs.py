# tests/python/test_docs.py
# The documentation against the tree: links, code, options, tables.
# SPDX-License-Identifier: Apache-2.0
"""The documentation against the tree: links, code, options, tables.

Each check is a function of a text that returns what is wrong in it, and is also given a
text with one mistake that it has to find.
"""

from __future__ import annotations

import ast
import json
import pkgutil
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import halfbyte
import halfbyte.torch  # not imported by halfbyte, but written of
import halfbyte.transformers
import pytest
import typer
from halfbyte import reference
from halfbyte.cli import errors
from halfbyte.cli.app import app
from halfbyte.formats import format_info
from test_layers import MODULES, OVER_CORE

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith((".", "build")) for part in path.relative_to(ROOT).parts)
)
COMMAND, ARCHITECTURE, FORMATS, PERFORMANCE = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "docs/command.md",
        "docs/architecture.md",
        "docs/formats.md",
        "docs/performance.md",
    )
)
RESULTS = ROOT / "benchmarks" / "results"
each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda p: str(p.relative_to(ROOT))
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"`(halfbyte [^`]+)`")


def prose(text: str) -> str:
    return _FENCE.sub("", text)


def blocks(text: str, *languages: str) -> Iterator[str]:
    for match in _FENCE.finditer(text):
        if match[1] in languages:
            yield match[2]


# ---- lines

# Tables cannot be broken.
MAX_COLUMNS = 112


def wide_lines(text: str) -> list[str]:
    lines = (line for line in prose(text).splitlines() if not line.startswith("|"))
    return [line for line in lines if len(line) > MAX_COLUMNS]


@each_page
def test_lines_are_not_too_long(page: Path) -> None:
    assert wide_lines(page.read_text(encoding="utf-8")) == []


def test_a_line_that_is_too_long_is_found() -> None:
    wide = "word " * 30
    text = f"short\n{wide}\n```sh\n{wide}\n```\n| {wide} |\n"
    assert wide_lines(text) == [wide]


# ---- links


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in kept}


def leads_somewhere(page: Path, link: str) -> bool:
    target, _, anchor = link.partition("#")
    path = (page.parent / target).resolve() if target else page
    if not path.exists() or ROOT not in (path, *path.parents):
        return False
    return not anchor or anchor in anchors(path.read_text(encoding="utf-8"))


def broken_links(page: Path, text: str) -> list[str]:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    inside = [link for link in links if not link.startswith(("https://", "mailto:"))]
    return [link for link in inside if not leads_somewhere(page, link)]


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found() -> None:
    good = "[a](../csrc/base) [b](formats.md#weight-formats) [c](https://a.b)"
    bad = "[d](gone.md) [e](formats.md#gone) [f](../../outside) [g](#weight-format)"
    page = ROOT / "docs" / "formats.md"
    found = broken_links(page, good + bad)
    assert found == ["gone.md", "formats.md#gone", "../../outside", "#weight-format"]


# ---- code


def runs_alone(code: str) -> bool:
    """Whether a block needs neither a model file nor a download."""
    imports = "import halfbyte" in code or "from halfbyte" in code
    signs = (".gguf", "load(", "from_gguf(", "from_pretrained(")
    takes_a_model = any(sign in code for sign in signs)
    return imports and not takes_a_model


@each_page
def test_python_runs_or_compiles(page: Path) -> None:
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        compile(code, str(page), "exec")
        missing = [name for name in public_names(code) if not exists(name)]
        assert missing == []
        if runs_alone(code):
            subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def public_names(code: str) -> Iterator[str]:
    """Everything that a block takes from the package, such as ``reference.linear``."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if dotted.startswith("halfbyte."):
                yield dotted.removeprefix("halfbyte.")


def exists(dotted: str) -> bool:
    try:
        pkgutil.resolve_name(f"halfbyte.{dotted}")  # imports what has to be
    except (ImportError, AttributeError):
        return False
    return True


@each_page
def test_names_in_the_text_exist(page: Path) -> None:
    text = prose(page.read_text(encoding="utf-8"))
    names = re.findall(r"`halfbyte\.([A-Za-z_][\w.]*\w)[^`]*`", text)
    assert [name for name in names if not exists(name)] == []


def test_a_wrong_name_is_found() -> None:
    code = "import halfbyte\nhalfbyte.reference.linear\nhalfbyte.liner(1)"
    names = sorted(set(public_names(code)), key=len)
    assert [name for name in names if not exists(name)] == ["liner"]


# ---- the command


COMMANDS = typer.main.get_command(app)


def unknown_options(line: str) -> list[str]:
    """Subcommands and options of a `halfbyte` command line that there are not."""
    words = shlex.split(line, comments=True)[1:]
    commands = getattr(COMMANDS, "commands", {})
    command, wrong = COMMANDS, []
    if words and not words[0].startswith("-"):
        if words[0] not in commands:
            return [words[0]]
        command = commands[words.pop(0)]
    known = {"-h", "--help"}.union(*(p.opts + p.secondary_opts for p in command.params))
    for word in words:
        if re.match(r"--?[a-zA-Z]", word) and word.split("=")[0] not in known:
            wrong.append(word)
    return wrong


def command_lines(text: str) -> Iterator[str]:
    for code in blocks(text, "sh", "console"):
        for line in code.replace("\\\n", " ").splitlines():
            if match := re.search(r"(?:^|&& |\| |\$ )(halfbyte [^|&>]+)", line):
                yield match[1]
    yield from _COMMAND.findall(prose(text))


@each_page
def test_commands_have_their_options(page: Path) -> None:
    lines = list(command_lines(page.read_text(encoding="utf-8")))
    wrong = {line: found for line in lines if (found := unknown_options(line))}
    assert wrong == {}


def test_a_wrong_option_is_found() -> None:
    text = "```sh\nhalfbyte run m.gguf --tmep 1 x # --not-read\n```\n`halfbyte walk -x`"
    found = [unknown_options(line) for line in command_lines(text)]
    assert found == [["--tmep"], ["walk"]]
    assert unknown_options("halfbyte run m.gguf 'Why?' -n 256 --temp 0.8") == []


@each_page
def test_scripts_have_their_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"python ((?:benchmarks|examples|tests)/[^\n`]*)", text):
        script, *words = shlex.split(line, comments=True)
        source = (ROOT / script).read_text(encoding="utf-8")
        options = [word for word in words if word.startswith("--")]
        assert [option for option in options if f'"{option}"' not in source] == []


@each_page
def test_presets_exist(page: Path) -> None:
    presets = json.loads((ROOT / "CMakePresets.json").read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    for kind, command in (
        ("configure", "cmake"),
        ("build", "--build"),
        ("test", "ctest"),
    ):
        known = {preset["name"] for preset in presets[f"{kind}Presets"]}
        assert set(re.findall(rf"{command} --preset (\w+)", text)) <= known


@each_page
def test_environment_variables_are_read(page: Path) -> None:
    named = set(re.findall(r"HALFBYTE_[A-Z_]+", page.read_text(encoding="utf-8")))
    sources = [*(ROOT / "python").rglob("*.py"), *ROOT.rglob("CMakeLists.txt")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert {name for name in named if name not in text} == set()


# ---- the table of formats


def format_rows(text: str) -> dict[str, tuple[str, ...]]:
    """Name to id, weights and bytes a block, bits a weight, and the mark of quantize."""
    rows: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = (*cells[1:5], cells[6])
    return rows


def actual_rows() -> dict[str, tuple[str, ...]]:
    rows: dict[str, tuple[str, ...]] = {}
    for name in halfbyte.formats():
        _, type_id, length, size, writable, *_ = format_info(name)
        numbers = (str(type_id), str(length), str(size), f"{8 * size / length:g}")
        rows[name] = (*numbers, "yes" if writable else "")
    return rows


def test_the_table_of_formats_is_the_list() -> None:
    assert format_rows(FORMATS) == actual_rows()


def test_a_wrong_table_is_found() -> None:
    for old, new in (("2.625", "2.5"), ("| 210 |", "| 212 |"), ("| `q4_1` |", "| |")):
        assert old in FORMATS
        assert format_rows(FORMATS.replace(old, new, 1)) != actual_rows()


def test_every_format_is_described() -> None:
    for name in set(halfbyte.formats()) - {"f32", "f16", "bf16"}:
        assert FORMATS.count(f"`{name}`") >= 2
    assert sorted(halfbyte.formats()) == sorted(reference.formats())


# ---- other tables


def rows_under(heading: str, text: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its head."""
    part = text.partition(f"# {heading}\n")[2].partition("\n#")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def module_rows(text: str) -> dict[str, set[str]]:
    """Modules by what they may import."""
    found = {}
    for names, _, may_import in rows_under("The modules", text):
        for name in re.findall(r"`(\w+)`", names):
            found[name] = set(re.findall(r"`(\w+)`", may_import))
    return found


def actual_modules() -> dict[str, set[str]]:
    return {
        name or "halfbyte": {other or "halfbyte" for other in others}
        | ({"_core"} if name in OVER_CORE else set())
        for name, others in MODULES.items()
    }


def test_the_table_of_modules_is_what_is_tested() -> None:
    assert module_rows(ARCHITECTURE) == actual_modules()
    wrong = ARCHITECTURE.replace("| `draft` |", "| `files` |")
    assert module_rows(wrong) != actual_modules()


def test_the_table_of_the_environment_is_whole() -> None:
    sources = (ROOT / "python").rglob("*.py")
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    read = set(re.findall(r"\bHALFBYTE_[A-Z_]+\b", text))
    table = str(rows_under("Environment", COMMAND))
    assert len(read) >= 5
    assert {name for name in read if f"`{name}`" not in table} == set()


def test_the_table_of_exit_codes_is_whole() -> None:
    codes = {value for value in vars(errors).values() if isinstance(value, int)}
    table = rows_under("Exit codes", COMMAND)
    assert [int(row[0]) for row in table] == sorted({0} | codes)


# ---- figures

_KERNELS = re.compile(
    r"\(\.\./benchmarks/results/([\w-]+-kernels\.json)\)[^|]*((?:^\|.*\n)+)",
    re.MULTILINE,
)

Cells = dict[tuple[str, int], str]


def kernel_tables(text: str) -> dict[str, Cells]:
    """Cells of the tables behind links to figures of kernels, by format and tokens."""
    found: dict[str, Cells] = {}
    for name, table in _KERNELS.findall(text):
        head, _, *rows = (
            [cell.strip() for cell in line[1:-1].split("|")]
            for line in table.splitlines()
        )
        found[name] = {
            (row[0].lower(), int(count.split()[0])): cell
            for row in rows
            for count, cell in zip(head[1:], row[1:], strict=True)
        }
    return found


def measured_cells(path: Path) -> Cells:
    """What a table has to say: shares of a roof, marked if it is not the usual one."""
    found: Cells = {}
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    for r in sorted(results, key=lambda r: r["threads"]):
        reads, one = r["bound"] == "read", r["tokens"] == 1
        mark = "" if reads == one else " r" if reads else " d"
        key = (r["format"], r["tokens"])
        before = f"{found[key]} / " if key in found else ""
        found[key] = f"{before}{r['roof_fraction']:.2f}{mark}"
    return found


def wrong_kernel_tables(text: str) -> list[str]:
    tables = kernel_tables(text)
    paths = sorted(RESULTS.glob("*-kernels.json"))
    return [p.name for p in paths if tables.get(p.name) != measured_cells(p)]


def test_the_tables_of_kernels_are_their_figures() -> None:
    assert wrong_kernel_tables(PERFORMANCE) == []


def test_a_wrong_figure_is_found() -> None:
    for name in kernel_tables(PERFORMANCE):
        before, link, table = PERFORMANCE.partition(f"{name})")
        for old, new in ((" r ", " "), ("| 0.", "| 0.0"), ("| Q8_0 |", "| Q4_0 |")):
            wrong = before + link + table.replace(old, new, 1)
            assert wrong_kernel_tables(wrong) == [name]


def ratios(path: Path) -> dict[tuple[str, int], str]:
    """How many times as fast as llama.cpp: of prompts and decoding, by threads."""
    found = {}
    for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
        for kind in ("prompt", "decode"):
            own, its = (
                run["sides"][side][f"{kind}_tokens_per_s"]["samples"]
                for side in ("halfbyte", "llama.cpp")
            )
            pairs = statistics.median(a / b for a, b in zip(own, its, strict=True))
            found[kind, run["threads"]] = f"{pairs:.1f}"
    return found


def wrong_headlines(text: str) -> list[str]:
    """What the README says of the speed of E2B, and the kept samples do not."""
    kept = {path: ratios(path) for path in RESULTS.glob("*-e2b-generate.json")}
    told = re.search(
        r"reads prompts at ([\d.]+) to ([\d.]+) times and answers at ([\d.]+) to ([\d.]+) "
        r"times",
        text,
    )
    wrong = [] if told is not None else ["no range"]
    for at, kind in enumerate(("prompt", "decode")) if told is not None else ():
        all_of_it = [
            r for found in kept.values() for (k, _), r in found.items() if k == kind
        ]
        range_ = (min(all_of_it, key=float), max(all_of_it, key=float))
        if told is not None and told.groups()[2 * at : 2 * at + 2] != range_:
            wrong.append(f"{kind}: {range_}")
    for (kind, threads), ratio in kept[RESULTS / "zen5-e2b-generate.json"].items():
        row = rf"^\| {kind}[^|]*{threads} threads?( \|[^|]*){{2}}\| {ratio} \|$"
        if not re.search(row, text, re.MULTILINE):
            wrong.append(f"{kind}, {threads} threads: {ratio}")
    return wrong


def test_the_speeds_in_the_readme_are_their_samples() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert wrong_headlines(readme) == []
    for old, new in (("at 6.5 to", "at 7.1 to"), ("| 7.4 |", "| 7.3 |")):
        assert old in readme
        assert len(wrong_headlines(readme.replace(old, new))) == 1


def test_every_result_is_told_of() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    kept = {path.name for path in RESULTS.iterdir()}
    told = set(re.findall(r"results/([\w-]+\.json)", text))
    assert kept - told == set()
