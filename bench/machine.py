"""Facts of the machine and the code that were measured.

Takes: /proc, git, installed packages. Gives: a JSON object. Owns: which facts. Never: names the user, the host or a path.
"""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "kafka-python",
    "minio",
    "numpy",
    "pyarrow",
    "faiss-cpu",
    "torch",
    "open_clip_torch",
    "openvino",
    "onnxruntime",
    "fastapi",
    "uvicorn",
    "urllib3",
)
_FLAGS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "sha_ni", "vaes")
_FLAG_FAMILIES = ("avx512", "amx")


def facts() -> dict[str, Any]:
    """CPU, memory, kernel, versions and commit, as they stand under ``_machine`` in bench.json."""
    cpu = _cpu()
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "has_uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "cpu": cpu.get("model name", platform.machine()),
        "cores": int(cpu.get("cores", "0")),
        "flags": [flag for flag in cpu.get("flags", "").split() if flag in _FLAGS or flag.startswith(_FLAG_FAMILIES)],
        "memory_gib": _memory_gib(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def commit() -> str:
    """The checked-out commit; ``unknown`` outside a checkout."""
    return _git("rev-parse", "HEAD") or "unknown"


def gpu_name() -> str:
    """The GPU that torch runs encoders on by default; empty where it finds none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu() -> dict[str, str]:
    """Fields of the first processor of /proc/cpuinfo, and ``cores``, the number of processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(":")
        if separator:
            fields.setdefault(name.strip(), value.strip())
    return fields | {"cores": str(sum(line.startswith("processor") for line in lines))}


def _memory_gib() -> float | None:
    try:
        first = Path("/proc/meminfo").read_text().split(maxsplit=2)
    except OSError:
        return None
    return round(int(first[1]) / 1024**2, 1)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
