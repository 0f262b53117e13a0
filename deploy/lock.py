"""Writes the five locks: hashes for every file, no index addresses, markers for Python 3.11 to 3.14.

Takes: pyproject.toml. Gives: requirements{,-dev,-build,-cpu,-query}.lock. Owns: how they are resolved. Never: runs by itself.
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
LEFT_OUT = ("torch", "torchvision", "open-clip-torch", "transformers", "sentence-transformers", "huggingface-hub", "onnx")
"""What the CPU image does without: its networks were converted when it was built. timm stays, for two lists of names; it is never imported."""


def compile_lock(source: str, target: str, *more: str) -> None:
    """Resolve one lock."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-q", *OPTIONS, *more, source, "-o", target]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def compile_image_locks() -> None:
    """Resolve what the images without torch install, in versions of the run lock.

    The CPU image has all roles, and OpenVINO for their networks; the query image has no networks at all.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as left_out:
        left_out.writelines(f"{name}\n" for name in LEFT_OUT)
        left_out.flush()
        extras = [word for name in ("query", "indexer", "openvino") for word in ("--extra", name)]
        compile_lock("pyproject.toml", "requirements-cpu.lock", *extras, "--excludes", left_out.name, "-c", "requirements.lock")
    compile_lock("pyproject.toml", "requirements-query.lock", "--extra", "query", "-c", "requirements.lock")


def main() -> None:
    """Resolve all five; the run lock is held to the versions of the dev lock, the images' to the run lock's."""
    with tempfile.NamedTemporaryFile("w", suffix=".in") as needs:
        needs.write(BUILD_NEEDS)
        needs.flush()
        compile_lock(needs.name, "requirements-build.lock")
    compile_lock("pyproject.toml", "requirements-dev.lock", "--extra", "all", "--extra", "dev")
    compile_lock("pyproject.toml", "requirements.lock", "--extra", "all", "-c", "requirements-dev.lock")
    compile_image_locks()


if __name__ == "__main__":
    main()
