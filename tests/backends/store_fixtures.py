"""How the store tests reach the MinIO of `make stack`."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.settings import Settings

STACK_ENV = Path(__file__).parents[2] / "deploy" / "local" / "stack.env"


def stack_settings() -> Settings:
    if not STACK_ENV.exists():
        pytest.skip("no local MinIO: make stack")
    named = dict(line.split("=", 1) for line in STACK_ENV.read_text().splitlines() if line)
    return Settings(
        store_url=named["HEADWATER_STORE_URL"],
        store_access_key=named["HEADWATER_STORE_ACCESS_KEY"],
        store_secret_key=named["HEADWATER_STORE_SECRET_KEY"],
    )
