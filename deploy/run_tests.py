"""Runs all tests on real parts: makes what they need, starts the local stack, runs pytest, stops what it started.

    python3 -m deploy.run_tests [pytest arguments]      (make test)

Takes: `.venv` (deploy.setup dev); on Debian as root it installs the browser and kcat itself. Gives: pytest's exit code.
Owns: the end of the stack, if it was not running before. Never: calls a run complete when a need was missing: it then exits non-zero.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
DEBIAN_PACKAGES = {"chromium": "chromium", "chromedriver": "chromium-driver", "kcat": "kcat"}


def ensure_debian_packages() -> list[str]:
    """Install the browser, its driver and kcat where possible; returns what is still missing, as sentences."""
    missing = {program: package for program, package in DEBIAN_PACKAGES.items() if shutil.which(program) is None}
    if not missing:
        return []
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing.values()]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update", "-qq"], check=False, **quiet)  # type: ignore[call-overload]
        subprocess.run(command, check=False, **quiet)  # type: ignore[call-overload]
    still = [package for program, package in missing.items() if shutil.which(program) is None]
    return [f"missing {', '.join(still)}: run `sudo apt-get install {' '.join(still)}`"] if still else []


def stack(action: str, stdout: int | None = None) -> int:
    """Run one command of the local stack; returns its exit code."""
    return subprocess.run([sys.executable, "-m", "deploy.local.stack", action], cwd=ROOT, check=False, stdout=stdout).returncode


def main() -> int:
    """Prepare, test, clean up; returns the exit code."""
    problems = ensure_debian_packages()
    was_running = (
        subprocess.run([sys.executable, "-m", "deploy.local.stack", "status"], cwd=ROOT, check=False, stdout=subprocess.DEVNULL).returncode == 0
    )
    if stack("start") != 0:
        problems.append("the local stack did not start: tests of Kafka and MinIO are skipped; the lines above say what to install")
    try:
        code = subprocess.run([str(PYTHON), "-m", "pytest", "-n", "2", *sys.argv[1:]], cwd=ROOT, check=False).returncode
    finally:
        if not was_running:
            stack("stop")
    for problem in problems:
        sys.stderr.write(f"error: {problem}\n")
    return code or (3 if problems else 0)


if __name__ == "__main__":
    sys.exit(main())
