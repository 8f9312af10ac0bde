# tests/python/test_layers.py
# Which way the arrows go: reads every include, import and CMake line.
# SPDX-License-Identifier: Apache-2.0
"""Which way the arrows go: reads every include, import and CMake line.

Each check is a function of a source tree that returns what is wrong in it. It is run on
this repository, and on a tree with one planted fault that it has to find.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

Check = Callable[[Path], list[str]]

# base <- formats <- kernels <- ops <- kv <- model <- bindings
# base <- runtime <----------- ops
# base <- formats <- io <- text <----------- model
ARROWS: dict[str, set[str]] = {
    "base": set(),
    "formats": {"base"},
    "kernels": {"formats"},
    "runtime": {"base"},
    "ops": {"kernels", "runtime"},
    "kv": {"ops"},
    "io": {"formats"},
    "text": {"io"},
    "model": {"kv", "text"},
    "bindings": {"model"},
}


# The same for Python; "" is the package, whose names are the public ones.
MODULES: dict[str, set[str]] = {
    "errors": set(),
    "kv_codes": {"errors"},
    "reference": {"kv_codes"},
    "_arguments": {"errors"},
    "_arrays": {"errors"},
    "_picture": set(),
    "_sizes": set(),
    "targets": {"_arguments"},
    "_onednn": {"errors"},
    "formats": {"_arrays", "_picture", "targets"},
    "kv": {"_arrays", "targets", "kv_codes"},
    "ops": {"formats", "_onednn", "kv"},
    "lattice": {"formats"},
    "files": {"formats"},
    "template": {"errors"},
    "answers": set(),
    "choice": {"errors"},
    "hub": {"choice"},
    "stores": {"choice"},
    "bundled": {"errors"},
    "names": {"bundled", "hub", "stores"},
    "records": {"_sizes"},
    "streams": {"_arguments", "records", "answers"},
    "batch": {"streams"},
    "model": {"ops", "files", "template", "names", "batch"},
    "conversation": {"model"},
    # Some when they are asked for.
    "": {
        "conversation",
        "verification",
        "lattice",
        "reference",
        "conversion",
        "torch",
    },
    "torch": {"ops", "_sizes"},
    "transformers": {"", "gemma"},
    "sidecars": set(),
    "origin": set(),
    "qat": {"_arguments", "origin", "sidecars"},
    "draft": {"errors"},
    "demo": {"draft"},
    "doctor": {"formats", "_onednn"},
    "roof": {"targets"},
    "bench": {"", "doctor", "roof"},
    "modules": {"files", "gemma"},
    "_svg": set(),
    "lineage": {"modules", "lattice", "choice", "origin", "_svg"},
    "verification": {"model", "lineage", "choice"},
    "imatrix": {"files"},
    "gemma": set(),
    "conversion": {
        "model",
        "lattice",
        "lineage",
        "imatrix",
        "gemma",
        "draft",
        "origin",
        "sidecars",
    },
    "cli": {"", "conversion", "demo", "doctor", "bench", "lineage"},
    "__main__": set(),
}
OVER_CORE = {
    "targets",
    "_onednn",
    "formats",
    "lattice",
    "ops",
    "torch",
    "transformers",
    "files",
    "kv",
    "model",
    "streams",
    "batch",
    "roof",
}


def below(name: str, arrows: dict[str, set[str]]) -> set[str]:
    """Every room or module that `name` may see."""
    direct = arrows.get(name, set())
    return direct.union(*(below(lower, arrows) for lower in direct))


def cpp_files(root: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted((root / "csrc").rglob("*")):
        if path.suffix in (".cc", ".h", ".inc"):
            yield path, path.read_text(encoding="utf-8")


def code_of(text: str) -> str:
    """C++ without comments and without what is inside of strings."""
    token = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
    return re.sub(
        token, lambda m: '""' if m[0][0] == '"' else "", text, flags=re.DOTALL
    )


# --- C++ -------------------------------------------------------------------------------


def wrong_includes(root: Path) -> list[str]:
    """Includes of rooms that a file's own room may not see."""
    wrong = []
    for path, text in cpp_files(root):
        room = path.relative_to(root / "csrc").parts[0]
        known = {room} | below(room, ARROWS)
        for included in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
            first = included.split("/")[0]
            outside = first == "hwy" and room in ("formats", "kernels", "base")
            if not outside and (first not in known or "/" not in included):
                wrong.append(f"{path.relative_to(root)} includes {included}")
            elif not outside and not (root / "csrc" / included).exists():
                wrong.append(f"{path.relative_to(root)}: {included} is not there")
    return wrong


def wrong_links(root: Path) -> list[str]:
    """Rooms whose NEEDS in CMake are not their arrows."""
    needs: dict[str, set[str]] = {}
    for path in sorted((root / "csrc").rglob("CMakeLists.txt")):
        text = re.sub(r"#[^\n]*", "", path.read_text(encoding="utf-8"))
        for call in re.findall(r"halfbyte_room\(([^)]*)\)", text):
            words, _, needed = call.partition("NEEDS")
            needs[words.split()[0]] = set(needed.split())
        linked = re.findall(r"target_link_libraries\(_core\b([^)]*)\)", text)
        for name in re.findall(r"halfbyte_(\w+)", " ".join(linked)):
            needs.setdefault("bindings", set()).add(name)
    return [
        f"{room} needs {sorted(needs.get(room, ()))}, expected {sorted(ARROWS.get(room, ()))}"
        for room in sorted(ARROWS.keys() | needs.keys())
        if needs.get(room) != ARROWS.get(room)
    ]


def wrong_calls(root: Path) -> list[str]:
    """Printing, and ends of the process."""
    forbidden = (
        r"(?<!\w)(?:v|f|vf)?printf\s*\(|(?<!\w)f?put[sc]\s*\(|std::(?:cout|cerr|clog)\b|"
        r"(?<!\w)(?:abort|_?_?exit|quick_exit|assert|terminate)\s*\("
    )
    return [
        f"{path.relative_to(root)}: {found[0]}"
        for path, text in cpp_files(root)
        for found in re.finditer(forbidden, code_of(text))
    ]


def wrong_kernels(root: Path) -> list[str]:
    """Exceptions and allocations in what is compiled once a target."""
    words = r"\b(?:throw|try|catch|new|malloc|calloc|realloc)\b"
    wrong = []
    for path, text in cpp_files(root):
        if "HWY_NAMESPACE" not in text:
            continue
        # After HWY_ONCE come the functions that dispatch: they run before any kernel.
        code = code_of(text).partition("#if HWY_ONCE")[0]
        wrong += [
            f"{path.relative_to(root)}: {word}" for word in re.findall(words, code)
        ]
    return wrong


# --- Python ----------------------------------------------------------------------------


def imports(root: Path) -> dict[str, set[str]]:
    """Modules of the package by the modules they import; "" is the package itself."""
    package = root / "python" / "halfbyte"
    names = {
        path.relative_to(package).with_suffix("") for path in package.rglob("*.py")
    }
    modules = {".".join(n.parts).removesuffix("__init__").rstrip(".") for n in names}
    found: dict[str, set[str]] = {}
    for name in sorted(names):
        key = ".".join(name.parts).removesuffix("__init__").rstrip(".")
        tree = ast.parse(
            (package / name).with_suffix(".py").read_text(encoding="utf-8")
        )
        found[key] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                full = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{key}: relative import"
                full = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for item in full:
                if item.partition(".")[0] != "halfbyte":
                    continue
                inner = item.partition(".")[2]
                while inner not in modules | {"_core"}:
                    inner = inner.rpartition(".")[0]
                found[key].add(inner)
    return found


def wrong_imports(root: Path) -> list[str]:
    """Imports that go up, or past the modules that wrap the core."""
    wrong = []
    for module, imported in imports(root).items():
        top = module.split(".")[0]
        known = {top} | below(top, MODULES) | ({"_core"} if top in OVER_CORE else set())
        wrong += [
            f"{module or 'halfbyte'} imports {other or 'halfbyte'}"
            for other in sorted(imported)
            if top not in MODULES or other.split(".")[0] not in known
        ]
    return wrong


def wrong_beginnings(root: Path) -> list[str]:
    """Sources that do not begin with their path, or have no line with the licence."""
    wrong = []
    modules = sorted((root / "python").rglob("*.py"))
    cpp = (path for path, _ in cpp_files(root) if path.suffix != ".inc")
    for path in [*cpp, *modules]:
        sign = "#" if path.suffix == ".py" else "//"
        name, text = str(path.relative_to(root)), path.read_text(encoding="utf-8")
        licence = f"\n{sign} SPDX-License-Identifier: Apache-2.0\n"
        if not text.startswith(f"{sign} {name}\n") or licence not in text:
            wrong.append(f"{name}: expected its path first, and the licence")
    return wrong


def cycles(root: Path) -> list[str]:
    """Modules that import one another."""
    graph = {name: others - {"_core", name} for name, others in imports(root).items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" <- ".join(name or "halfbyte" for name in error.args[1])]
    return []


# --- On this repository, and on a planted fault ----------------------------------------

CHECKS: list[Check] = [
    wrong_includes,
    wrong_links,
    wrong_calls,
    wrong_kernels,
    wrong_imports,
    wrong_beginnings,
    cycles,
]


@pytest.mark.parametrize("check", CHECKS)
def test_arrows(check: Check) -> None:
    assert sum(1 for _ in cpp_files(ROOT)) > 50
    assert len(imports(ROOT)) > 10
    assert check(ROOT) == []


def copy_of(root: Path, folder: Path) -> Path:
    """Copy the sources that the checks read."""
    for part in ("csrc", "python"):
        kept = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(root / part, folder / part, ignore=kept)
    return folder


@pytest.mark.parametrize(
    ("check", "file", "line", "named"),
    [
        (wrong_includes, "csrc/kernels/rope.cc", '#include "ops/rowwise.h"', "ops/"),
        (wrong_includes, "csrc/base/half.h", '#  include "io/cursor.h"', "io/"),
        (wrong_includes, "csrc/io/gguf.h", '#include "model/config.h"', "model/"),
        (wrong_includes, "csrc/runtime/topology.cc", '#include "kernels/q8.h"', "q8.h"),
        (wrong_includes, "csrc/ops/linear.cc", '#include "hwy/highway.h"', "hwy/"),
        (wrong_includes, "csrc/ops/linear.cc", '#include "linear.h"', "linear.h"),
        (wrong_includes, "csrc/ops/linear.cc", '#include "base/gone.h"', "not there"),
        (wrong_includes, "csrc/attic/old.cc", '#include "base/view.h"', "attic"),
        (
            wrong_links,
            "csrc/kv/CMakeLists.txt",
            "halfbyte_room(kv a.cc NEEDS io)",
            "kv",
        ),
        (wrong_links, "csrc/x/CMakeLists.txt", "halfbyte_room(x a.cc NEEDS io)", "x"),
        (wrong_calls, "csrc/io/json.cc", 'void F() { printf("x"); }', "printf"),
        (wrong_calls, "csrc/io/json.cc", "void F() { std::cerr << 1; }", "cerr"),
        (wrong_calls, "csrc/io/json.cc", "void F() { ::abort (); }", "abort"),
        (wrong_calls, "csrc/io/json.cc", "void F(int n) { assert(n); }", "assert"),
        (wrong_calls, "csrc/io/json.cc", "void F() { std::exit(1); }", "exit"),
        (wrong_kernels, "csrc/kernels/tile-inl.h", "void F() { throw 1; }", "throw"),
        (wrong_kernels, "csrc/formats/q4_0-inl.h", "int* f = new int;", "new"),
        (wrong_imports, "python/halfbyte/reference.py", "import halfbyte.ops", "ops"),
        (
            wrong_imports,
            "python/halfbyte/template.py",
            "from halfbyte import _core",
            "_core",
        ),
        (wrong_imports, "python/halfbyte/files.py", "import halfbyte.model", "model"),
        (wrong_imports, "python/halfbyte/model.py", "from halfbyte import cli", "cli"),
        (
            wrong_imports,
            "python/halfbyte/ops.py",
            "from halfbyte import linear",
            "halfbyte",
        ),
        (wrong_imports, "python/halfbyte/new.py", "from halfbyte import errors", "new"),
        (wrong_beginnings, "csrc/base/new.h", "struct New {};", "csrc/base/new.h"),
        (wrong_beginnings, "python/halfbyte/new.py", "NEW = 1", "new.py"),
        (
            cycles,
            "python/halfbyte/cli/terminal.py",
            "import halfbyte.cli.app",
            "terminal",
        ),
        (
            cycles,
            "python/halfbyte/errors.py",
            "def f():\n    import halfbyte.ops",
            "ops",
        ),
    ],
)
def test_a_planted_fault_is_found(
    check: Check, file: str, line: str, named: str, tmp_path: Path
) -> None:
    root = copy_of(ROOT, tmp_path)
    (root / file).parent.mkdir(exist_ok=True)
    with (root / file).open("a", encoding="utf-8") as out:
        out.write(f"\n{line}\n")
    wrong = check(root)
    assert len(wrong) == 1
    assert named in wrong[0]


def test_comments_and_text_are_no_code() -> None:
    text = """a(); // printf("x")\n/* abort() */ b("assert(1) // \\" exit(2)"); c();"""
    assert code_of(text).split() == ["a();", 'b("");', "c();"]
