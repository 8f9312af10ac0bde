# tests/python/test_import.py
# What `import halfbyte` costs, and what it leaves alone.
# SPDX-License-Identifier: Apache-2.0
"""What `import halfbyte` costs, and what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import halfbyte
import pytest

# Of the processor time that NumPy takes, and the best of several runs: the machine may
# be busy otherwise.
MAX_SHARE = 0.6  # 0.26 to 0.36 where it was measured
RUNS = 9

WATCHED = """
import json, os, signal, sys, threading, time
tasks = lambda: len(os.listdir("/proc/self/task"))
files = lambda: sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2))
import numpy  # its BLAS may start threads and set the floating-point mode: not ours
tiny = float(numpy.float32(1e-40) * numpy.float32(1))
for s in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(s, signal.SIG_DFL)  # what the parent ignores would be ignored here
handlers = [signal.getsignal(s) for s in range(1, signal.NSIG)]
before = tasks(), files()
import halfbyte
print(json.dumps({
    "same": (tasks(), files()) == before,
    "threads": threading.active_count(),
    "handlers": handlers == [signal.getsignal(s) for s in range(1, signal.NSIG)],
    "subnormals": tiny == float(numpy.float32(1e-40) * numpy.float32(1)) != 0,
    "modules": sorted(sys.modules),
}))
"""


def python(code: str, *args: object, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *map(str, args), "-c", code],
        check=True,
        capture_output=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"} | env,
        timeout=60,
    )


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return dict(json.loads(python(WATCHED).stdout))


def test_it_is_quick_beside_numpy() -> None:
    # Which it imports. Both in one process: a busy machine slows both.
    timed = """
import time
times = [time.process_time()]
import numpy
times.append(time.process_time())
import halfbyte
times.append(time.process_time())
print((times[2] - times[1]) / (times[1] - times[0]))
"""
    python(timed)  # compiles the bytecode
    shares = [float(python(timed).stdout) for _ in range(RUNS)]
    assert min(shares) < MAX_SHARE, shares


def test_it_is_silent() -> None:
    done = python("import halfbyte", "-W", "error", "-X", "dev")
    assert done.stdout == b""
    assert done.stderr == b""


def test_it_starts_no_thread_and_changes_no_setting(seen: dict[str, Any]) -> None:
    assert seen["same"]
    assert seen["threads"] == 1
    assert seen["handlers"]
    assert seen["subnormals"]


def test_the_first_parallel_call_starts_the_threads() -> None:
    # Shows that a thread of ours would have been counted above.
    counted = """
import os
import numpy as np, halfbyte
before = len(os.listdir("/proc/self/task"))
with halfbyte.threads(3):
    halfbyte.softmax(np.zeros((64, 4096), np.float32))
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert int(python(counted).stdout) == 2


def test_it_brings_nothing_heavy(seen: dict[str, Any]) -> None:
    loaded = {name.partition(".")[0] for name in seen["modules"]}
    heavy = {"torch", "transformers", "typer", "rich", "ml_dtypes", "safetensors"}
    heavy |= {"huggingface_hub", "tokenizers", "gguf", "asyncio", "http", "socket"}
    assert "halfbyte" in loaded
    assert not loaded & heavy
    assert not [name for name in seen["modules"] if name.startswith("halfbyte.cli")]


def test_without_torch_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import halfbyte
try:
    import halfbyte.torch
except ImportError as error:
    print(error)
"""
    told = python(code).stdout.decode()
    assert "halfbyte.torch takes torch" in told
    assert told.endswith('run pip install "halfbyte[torch]"\n')


def test_it_writes_nothing(tmp_path: Path) -> None:
    code = "import halfbyte; halfbyte.num_threads(); halfbyte.cpu_targets()"
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    python(code, "-B", **environment, TMPDIR=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1 2"])
def test_closed_streams_do_not_matter(closed: str) -> None:
    redirections = " ".join(f"{fd}>&-" for fd in closed.split())
    line = f'exec "{sys.executable}" -c "import halfbyte" {redirections}'
    subprocess.run(["sh", "-c", line], check=True, timeout=60)


@pytest.mark.parametrize("name", ["HOME", "PATH", "LANG"])
def test_an_unset_variable_does_not_matter(name: str) -> None:
    env = {key: value for key, value in os.environ.items() if key != name}
    line = [sys.executable, "-c", "import halfbyte"]
    subprocess.run(line, check=True, env=env, timeout=60)


def test_the_end_of_the_process_is_clean() -> None:
    # Threads asleep, a stream in the middle of its answer, an object in a cycle.
    code = """
import numpy as np, halfbyte
class Node: pass
node = Node()
node.self, node.weight = node, halfbyte.quantize(np.ones((64, 64), np.float32), "q8_0")
with halfbyte.threads(3):
    halfbyte.softmax(np.zeros((64, 4096), np.float32))
"""
    done = python(code, "-X", "dev")
    assert (done.stdout, done.stderr) == (b"", b"")


def test_modules_are_there_when_they_are_asked_for() -> None:
    for name in ("imatrix", "lineage"):
        told = python(f"import halfbyte; print(halfbyte.{name}.__name__)").stdout
        assert told.decode().strip() == f"halfbyte.{name}"


def test_the_public_names_are_there() -> None:
    assert len(halfbyte.__all__) == len(set(halfbyte.__all__))
    for name in halfbyte.__all__:
        assert getattr(halfbyte, name) is not None
        assert name == "__version__" or not name.startswith("_")
    public = {name for name in vars(halfbyte) if not name.startswith("_")}
    modules = {n for n in public if type(getattr(halfbyte, n)).__name__ == "module"}
    assert public - modules <= set(halfbyte.__all__)
