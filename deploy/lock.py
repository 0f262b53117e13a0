"""Writes the three locks: hashes for every file, no index addresses, markers for Python 3.11 to 3.14.

Takes: pyproject.toml. Gives: requirements{,-dev,-build}.lock. Owns: how they are resolved. Never: runs by itself.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = [
    "--universal",
    "--python-version",
    "3.11",
    "--generate-hashes",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--no-header",
    "--no-annotate",
]
BUILD_NEEDS = "uv\nhatchling>=1.27\neditables\n"


def compile_lock(source: str, target: str, *more: str) -> None:
    """Resolve one lock."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-q", *OPTIONS, *more, source, "-o", target]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Resolve all three; the run lock is held to the versions of the dev lock."""
    with tempfile.NamedTemporaryFile("w", suffix=".in") as needs:
        needs.write(BUILD_NEEDS)
        needs.flush()
        compile_lock(needs.name, "requirements-build.lock")
    compile_lock("pyproject.toml", "requirements-dev.lock", "--extra", "all", "--extra", "dev")
    compile_lock("pyproject.toml", "requirements.lock", "--extra", "all", "-c", "requirements-dev.lock")


if __name__ == "__main__":
    main()
