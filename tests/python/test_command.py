# tests/python/test_command.py
# The command's first moments, and what it makes of its environment.
# SPDX-License-Identifier: Apache-2.0
"""The installed command `halfbyte` before it has read its arguments.

What it does after that is in `test_cli.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import halfbyte
import pytest

SCRIPT = Path(sysconfig.get_path("scripts"), "halfbyte")

# In place of NumPy, which is most of what the start takes.
SLOW = (
    'import sys, time; print("begun", flush=True); time.sleep({seconds}); sys.exit(7)'
)


COMMANDS = {"script": [str(SCRIPT)], "module": [sys.executable, "-m", "halfbyte"]}


def start(
    *args: object, sh: str = 'exec "$@"', command: str = "script", **env: str
) -> subprocess.Popen[bytes]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HALFBYTE_")}
    pipe = subprocess.PIPE
    line = ["sh", "-c", sh, "sh", *COMMANDS[command], *map(str, args)]
    return subprocess.Popen(line, stdout=pipe, stderr=pipe, env=kept | env)


def stand_in(folder: Path, seconds: float) -> dict[str, str]:
    """Environment in which importing NumPy takes `seconds`, and ends with 7."""
    (folder / "numpy.py").write_text(SLOW.format(seconds=seconds))
    return {"PYTHONPATH": str(folder)}


def interrupted(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Interrupt it once it says that it has begun; how it ended, and what it wrote."""
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_during_the_imports_ends_quietly(command: str, tmp_path: Path) -> None:
    process = start("doctor", command=command, **stand_in(tmp_path, 60))
    assert interrupted(process) == (130, b"", b"")


@pytest.mark.parametrize("command", COMMANDS)
def test_where_ctrl_c_is_ignored_it_stays_so(command: str, tmp_path: Path) -> None:
    # As a shell without job control starts what runs in the background.
    ignored = 'trap "" INT; exec "$@"'
    process = start("doctor", sh=ignored, command=command, **stand_in(tmp_path, 0.5))
    assert interrupted(process) == (7, b"", b"")


@pytest.mark.parametrize(
    "line",
    [
        ["-c", "import halfbyte", "-m", "halfbyte"],
        ["-m", "other", "-m", "halfbyte"],
        ["-m", "halfbyte.bench"],
    ],
    ids=" ".join,
)
def test_ctrl_c_is_left_to_programs_that_import_us(
    line: list[str], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("import halfbyte")
    (tmp_path / "other" / "__main__.py").touch()
    process = subprocess.Popen(
        [sys.executable, *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | stand_in(tmp_path, 60),
    )
    code, _, stderr = interrupted(process)
    assert (code, stderr.splitlines()[-1]) == (-signal.SIGINT, b"KeyboardInterrupt")


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", code]
    return subprocess.run(
        line,
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | env,
        timeout=60,
    )


def test_a_target_that_is_not_there_is_a_usage_error() -> None:
    known = ", ".join(halfbyte.cpu_targets())
    process = start("doctor", HALFBYTE_FORCE_TARGET="AVX9\n")
    stdout, stderr = process.communicate(timeout=60)
    assert stderr.decode() == (
        r"halfbyte: HALFBYTE_FORCE_TARGET: found 'AVX9\x0A'; "
        f"expected what this CPU has: {known}\n"
    )
    assert (process.returncode, stdout) == (2, b"")


@pytest.mark.parametrize("name", ["AVX9", "\udcff"])
def test_a_target_that_is_not_there_is_an_argument_error(name: str) -> None:
    done = python("import halfbyte", HALFBYTE_FORCE_TARGET=name)
    said = done.stderr.splitlines()[-1]
    assert said.startswith(
        "halfbyte.errors.ArgumentError: HALFBYTE_FORCE_TARGET: found"
    )
    assert halfbyte.cpu_targets()[-1] in said


@pytest.mark.parametrize("count", ["abc", "\udcff", "0\n0"])
def test_a_number_of_threads_that_is_none_is_a_usage_error(count: str) -> None:
    process = start("doctor", HALFBYTE_NUM_THREADS=count)
    stdout, stderr = process.communicate(timeout=60)
    assert stderr.decode() == (
        f"halfbyte: HALFBYTE_NUM_THREADS: found {count!a}; "
        "expected a whole number from 1 to 1024\n"
    )
    assert (process.returncode, stdout) == (2, b"")


def test_a_warning_is_one_line(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone\n.so")
    process = start("run", "tiny", "hi", "-n1", HALFBYTE_ONEDNN_LIBRARY=gone)
    stdout, stderr = process.communicate(timeout=60)
    warned, stats = stderr.decode().splitlines()
    assert warned.startswith("halfbyte: warning: HALFBYTE_ONEDNN_LIBRARY: oneDNN: ")
    assert warned.endswith("; going on without it")
    assert "Warning" not in warned
    assert "tok/s" in stats
    assert (process.returncode, stdout.count(b"\n")) == (0, 1)
