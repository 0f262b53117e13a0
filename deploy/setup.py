"""Sets up `.venv` in the root of this checkout from the hashed locks.

    python3 -m deploy.setup run     what `headwater` needs (make demo)
    python3 -m deploy.setup dev     that, and what the tests need (make test)

Takes: Python >= 3.11 and a package index. Gives: `.venv` with `headwater` installed in place. Owns: the stamp that makes a second call instant.
Never: installs what is not in a lock with its hash.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
LOCKS = {"run": "requirements.lock", "dev": "requirements-dev.lock"}
DISK_BYTES = 7 * 1024**3


def say(began: float, line: str) -> None:
    """Write one progress line with the seconds since the command began."""
    sys.stdout.write(f"[{time.monotonic() - began:6.1f} s] {line}\n")
    sys.stdout.flush()


def refuse(what: str, hint: str, code: int = 2) -> int:
    """Write one error with its hint; returns the exit code."""
    sys.stderr.write(f"error: {what}\nhint: {hint}\n")
    return code


def fingerprint(kind: str) -> str:
    """Hash of everything that decides what is installed."""
    parts = [(ROOT / name).read_bytes() for name in ("requirements-build.lock", LOCKS[kind], "pyproject.toml")]
    return hashlib.sha256(b"\0".join([*parts, sys.version.encode()])).hexdigest()


def is_ready(kind: str) -> bool:
    """True when `.venv` already holds this lock (the dev environment serves for `run` too)."""
    return any((stamp := VENV / f".headwater-{k}").exists() and stamp.read_text() == fingerprint(k) for k in {kind, "dev"})


def main() -> int:
    """Create or bring up to date the environment; returns the exit code."""
    kind = sys.argv[1] if len(sys.argv) > 1 else "run"
    if kind not in LOCKS:
        return refuse(f"{kind!r} is not known", "python3 -m deploy.setup run|dev")
    if sys.version_info < (3, 11):  # noqa: UP036 - the system's python3 runs this, before the package says what it needs
        return refuse(f"Python {sys.version.split()[0]} is too old", f"use Python 3.11 or newer, for example python3.11 -m deploy.setup {kind}")
    if is_ready(kind):
        return 0
    free = shutil.disk_usage(ROOT).free
    if free < DISK_BYTES and not VENV.exists():
        return refuse(f"{free / 1e9:.1f} GB of disk are free, the installation needs about {DISK_BYTES / 1e9:.0f} GB", "free some disk")
    return install(kind)


def install(kind: str) -> int:
    """Install the lock of that kind, telling how large it is before it starts."""
    began = time.monotonic()
    python = VENV / "bin" / "python"
    say(began, "installing into .venv: about 3.5 GB to download, 6 GB on disk (PyTorch from PyPI carries CUDA); one to six minutes")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    uv = [str(python), "-m", "uv", "pip", "install", "--python", str(python)]
    steps = [
        ("installer", [*pip, "--require-hashes", "-r", "requirements-build.lock"]),
        (LOCKS[kind], [*uv, "--require-hashes", "-r", LOCKS[kind]]),
        ("headwater", [*uv, "--no-deps", "--no-build-isolation", "-e", "."]),
    ]
    for name, command in steps:
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode:
            return refuse(f"installing {name} failed (exit {done.returncode}); the lines above say why", "check the network, then repeat", 1)
        say(began, f"{name} installed")
    (VENV / f".headwater-{kind}").write_text(fingerprint(kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
