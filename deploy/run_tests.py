"""Runs all tests on real parts: makes what they need, starts the local stack, runs pytest, stops what it started.

    python3 -m deploy.run_tests [pytest arguments]      (make test)

Takes: `.venv` (deploy.setup dev); on Debian as root it installs the browser and kcat itself, and unpacks Prometheus. Gives: pytest's exit code.
Owns: the end of the stack, if it was not running before. Never: calls a run complete when a need was missing: it then exits non-zero.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
DEBIAN_PACKAGES = {"chromium": "chromium", "chromedriver": "chromium-driver", "kcat": "kcat"}
UNPACKED = Path.home() / ".cache" / "headwater" / "debian"
"""Where Debian's Prometheus lies: installing it would start a server on this machine, so that it is only unpacked."""


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


def ensure_prometheus() -> list[str]:
    """Put `prometheus` and `promtool` on the PATH of the tests, out of Debian's package; returns what is still missing, as sentences."""
    os.environ["PATH"] += f"{os.pathsep}{UNPACKED / 'usr' / 'bin'}"
    if shutil.which("promtool") and shutil.which("prometheus"):
        return []
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        UNPACKED.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            subprocess.run(["apt-get", "update", "-qq"], check=False, stdout=subprocess.DEVNULL)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=folder, check=False, stdout=subprocess.DEVNULL)
            for package in Path(folder).glob("prometheus_*.deb"):
                subprocess.run(["dpkg-deb", "-x", str(package), str(UNPACKED)], check=False)
    found = shutil.which("promtool") and shutil.which("prometheus")
    return [] if found else ["missing prometheus: put the programs `prometheus` and `promtool` on the PATH"]


def stack(action: str, stdout: int | None = None) -> int:
    """Run one command of the local stack; returns its exit code."""
    return subprocess.run([sys.executable, "-m", "deploy.local.stack", action], cwd=ROOT, check=False, stdout=stdout).returncode


def main() -> int:
    """Prepare, test, clean up; returns the exit code."""
    problems = [*ensure_debian_packages(), *ensure_prometheus()]
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
