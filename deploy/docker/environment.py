"""Writes `.env` for docker-compose.yml: `.env.example` with every empty value made at random.

    python3 -m deploy.docker.environment

Takes: `.env.example`. Gives: `.env`, readable by its owner alone. Owns: how secrets are made.
Never: overwrites a `.env`: what a volume was made with must stay.
"""

from __future__ import annotations

import base64
import secrets
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEY_BYTES, USER_BYTES = 24, 8


def secret_for(name: str) -> str:
    """A random value that suits a variable of `.env.example`: letters, digits, and in the cluster's id also - and _."""
    if name == "KAFKA_CLUSTER_ID":  # as `kafka-storage.sh random-uuid`, which never begins with a hyphen
        while (made := base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()).startswith("-"):
            pass
        return made
    return secrets.token_hex(USER_BYTES if name.endswith("_ACCESS_KEY") else KEY_BYTES)


def filled(example: str) -> str:
    """Text of `.env`: each line ``NAME=`` gets a value, all others stay."""
    lines = []
    for line in example.splitlines():
        name, equals, value = line.partition("=")
        lines.append(f"{name}={secret_for(name)}" if equals and not value and not line.startswith("#") else line)
    return "\n".join(lines) + "\n"


def main(root: Path = ROOT) -> int:
    """Write `.env` once; returns the exit code."""
    path = root / ".env"
    try:
        path.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        sys.stderr.write(f"error: {path} is there already\nhint: keep it, its secrets are those of the volumes; or remove both\n")
        return 2
    path.write_text(filled((root / ".env.example").read_text()))
    sys.stdout.write(f"wrote {path}, with random secrets\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
