# tests/python/test_cmake.py
# SPDX-License-Identifier: Apache-2.0
"""The build files: configured only, with stand-ins for Highway and GoogleTest."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import halfbyte
import pytest
from halfbyte import _core

ROOT = Path(__file__).parents[2]
HIGHWAY = """
cmake_minimum_required(VERSION 3.10)
project(hwy VERSION 1.2.0 LANGUAGES CXX)
set(HWY_ENABLE_TESTS ON CACHE BOOL "Enable HWY tests")
file(WRITE "${CMAKE_BINARY_DIR}/tests_of_highway" "${HWY_ENABLE_TESTS}")
add_library(hwy INTERFACE)
"""
GTEST = """
add_library(gtest_main INTERFACE)
add_library(GTest::gtest_main ALIAS gtest_main)
"""


@pytest.fixture
def highway(tmp_path: Path) -> Path:
    for name, text in (("highway", HIGHWAY), ("gtest", GTEST)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "CMakeLists.txt").write_text(text)
    return tmp_path / "highway"


def configure(source: Path, highway: Path, *options: str) -> tuple[int, str, Path]:
    """Exit code and output of CMake, and the build folder."""
    build = highway.with_name("build")
    stand_ins = {
        "FETCHCONTENT_SOURCE_DIR_HIGHWAY": highway,
        "FETCHCONTENT_SOURCE_DIR_GTEST": highway.with_name("gtest"),
        "CMAKE_DISABLE_FIND_PACKAGE_hwy": "ON",
        "CMAKE_DISABLE_FIND_PACKAGE_GTest": "ON",
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
    }
    given = [*options, *(f"-D{name}={value}" for name, value in stand_ins.items())]
    done = subprocess.run(
        ["cmake", "-S", source, "-B", build, "-G", "Ninja", *given],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr, build


def test_no_variable_is_read_before_it_is_set(highway: Path) -> None:
    code, output, build = configure(
        ROOT, highway, "--warn-uninitialized", "-DHALFBYTE_TESTS=ON"
    )
    assert code == 0, output
    assert "Warning" not in output
    assert (build / "tests_of_highway").read_text() == "OFF"
    cache = (build / "CMakeCache.txt").read_text()
    assert "HWY_ENABLE_TESTS:BOOL=ON" in cache  # Highway's own default, left alone


def test_a_project_that_has_highway_keeps_it(highway: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.28)\n"
        "project(parent LANGUAGES CXX)\n"
        "add_library(hwy INTERFACE)\n"
        f'add_subdirectory("{ROOT}" halfbyte)\n'
    )
    code, output, build = configure(parent, highway)
    assert code == 0, output
    assert not (build / "tests_of_highway").exists()


def test_the_extension_has_a_version_without_pip(highway: Path) -> None:
    pybind11 = pytest.importorskip("pybind11")
    code, output, build = configure(
        ROOT,
        highway,
        "--warn-uninitialized",
        "-DHALFBYTE_PYTHON=ON",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    assert code == 0, output
    commands = json.loads((build / "compile_commands.json").read_text())
    module = next(c for c in commands if c["file"].endswith("bindings/module.cc"))
    assert f'HALFBYTE_VERSION=\\"{halfbyte.__version__}\\"' in module["command"]


def test_kernels_are_not_hardened(highway: Path) -> None:
    """Rooms are, by flags that would change what was measured of kernels."""
    code, output, build = configure(ROOT, highway)
    assert code == 0, output
    for command in json.loads((build / "compile_commands.json").read_text()):
        kernel = "/kernels/" in command["file"]
        assert ("-fstack-protector-strong" in command["command"]) != kernel
        assert ("-D_FORTIFY_SOURCE=2" in command["command"]) != kernel


def test_plain_kernels_are_not_sanitized(highway: Path) -> None:
    """They would take minutes to compile; the rooms around them are. Kernels have the
    flags of a release, whose objects a cache then has.
    """
    flags = ("-DCMAKE_CXX_FLAGS=-fsanitize=address", "-DCMAKE_BUILD_TYPE=Debug")
    kernels: dict[str, set[str]] = {}
    for kind, options in {
        "release": (),
        "plain": (*flags, "-DHALFBYTE_PLAIN_KERNELS=ON"),
    }.items():
        code, output, build = configure(ROOT, highway, *options)
        assert code == 0, output
        kernels[kind] = set()
        for command in json.loads((build / "compile_commands.json").read_text()):
            line = command["command"].replace(str(build), "BUILD")
            if "/kernels/" in command["file"]:
                kernels[kind].add(line)
            else:
                assert ("-fsanitize=address" in line) == (kind == "plain")
    assert kernels["plain"] == kernels["release"]
    assert len(kernels["plain"]) > 30


def test_the_extension_is_hardened_and_shows_one_symbol() -> None:
    if sys.platform != "linux" or (readelf := shutil.which("readelf")) is None:
        pytest.skip("takes Linux and readelf")
    shown = subprocess.run(
        [readelf, "-dlW", "--dyn-syms", _core.__file__],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "GNU_RELRO" in shown
    assert re.search(r"\(FLAGS_1\) .*\bNOW\b", shown)
    assert re.search(r"GNU_STACK .* RW ", shown)
    assert "__stack_chk_fail" in shown
    assert "_chk@" in shown  # of _FORTIFY_SOURCE
    symbols = [
        line.split() for line in shown.splitlines() if re.match(r" +\d+: ", line)
    ]
    ours = [s[7] for s in symbols if len(s) > 7 and s[6] != "UND"]
    assert ours == ["PyInit__core"]


def test_32_bits_are_refused_in_a_line(highway: Path) -> None:
    code, output, _ = configure(
        ROOT,
        highway,
        "-DCMAKE_CXX_FLAGS=-m32",
        "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY",
    )
    if "-m32" in output.partition("halfbyte:")[0]:
        pytest.skip("this compiler has no 32-bit target")
    assert code != 0
    assert "found a 32-bit target; expected a 64-bit one" in " ".join(output.split())
