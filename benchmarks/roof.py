# benchmarks/roof.py
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: the read bandwidth of this machine, and its description."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
from halfbyte import demo, doctor, errors, names, roof

__all__ = [
    "ReadLoop",
    "counted",
    "counts",
    "environment",
    "headline",
    "model_file",
    "model_path",
    "plus_minus",
    "save",
    "summary",
]


class ReadLoop:
    """Reads a buffer from end to end, a contiguous piece a thread.

    Parameters
    ----------
    threads : int
    size : int
        Bytes; several times the last cache.
    """

    def __init__(self, threads: int, size: int = 1 << 30) -> None:
        self._threads, self._data = threads, roof.buffer(size)

    def __call__(self) -> float:
        """Read it and return GB/s."""
        return roof.read_bandwidth(self._data, threads=self._threads)


def environment(threads: int) -> dict[str, Any]:
    """Describe the machine, the versions and the day. Call it before measuring.

    Parameters
    ----------
    threads : int
        How many each side uses.

    Returns
    -------
    dict
        JSON-compatible.
    """
    facts = doctor.facts()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
        "cpu": facts["cpu"],
        "memory": facts["memory"],
        "platform": facts["python"]["platform"],
        "python": facts["python"]["version"],
        "target": halfbyte.cpu_target(),
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "versions": {
            "halfbyte": halfbyte.__version__,
            "numpy": np.__version__,
            "llama-cpp-python": _version("llama-cpp-python"),
        },
    }


def headline(where: dict[str, Any], bandwidth: Sequence[float]) -> str:
    """Machine and read bandwidth in one line, and what the machine did besides."""
    threads = counted(where["threads"], "thread")
    line = f"{where['cpu']['model']}, {where['target']}, {threads}"
    line += f", reads {plus_minus(bandwidth)} GB/s"
    return f"{line}\nload in the minute before: {where['load_average']:.1f}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.check_output(
            command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.strip()


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, mean, standard deviation and the samples themselves."""
    spread = statistics.stdev(samples) if len(samples) > 1 else 0.0
    return {
        "median": statistics.median(samples),
        "mean": statistics.fmean(samples),
        "sd": spread,
        "samples": list(samples),
    }


def ratio(samples: Sequence[float], others: Sequence[float]) -> float:
    """How many times the others they are: median of the ratios, round by round."""
    return statistics.median(a / b for a, b in zip(samples, others, strict=True))


def plus_minus(samples: Sequence[float]) -> str:
    """Mean ± standard deviation, in as many digits as mean something."""
    told = summary(samples)
    digits = 0 if told["mean"] >= 100 else 1
    return f"{told['mean']:.{digits}f} ± {told['sd']:.{digits}f}"


def counted(count: int, thing: str) -> str:
    """Return "1 thread", "2 threads"."""
    return f"{count} {thing}" + "s" * (count != 1)


def counts(text: str) -> list[int]:
    """Return the numbers of "1,2": what argparse makes of such an option."""
    return [int(count) for count in text.split(",")]


def model_path(name: str) -> Path:
    """Find a model by any name that `halfbyte.load` takes: a type for argparse.

    Parameters
    ----------
    name : str
        Empty for the demo model; argparse calls a type with a default that is text.

    Returns
    -------
    Path
        A file or folder that is there.
    """
    try:
        path = names.resolve(name) if name else demo.model_path()
    except (errors.Error, ImportError, OSError, demo.DemoCorruptError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{name}: there is no such file or folder")
    return path


def model_file(name: str) -> Path:
    """Find a model as `model_path` does, and take a file only."""
    path = model_path(name)
    if not path.is_file():
        raise argparse.ArgumentTypeError(
            f"{name}: expected a GGUF file, found a folder"
        )
    return path


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a result file."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, dict):
            return {key: short(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [short(item) for item in value]
        return value

    path.write_text(json.dumps(short(content), indent=1) + "\n", encoding="utf-8")
