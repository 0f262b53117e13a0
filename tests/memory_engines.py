"""Engines in memory for tests that run workers: a log and a store of their own, quick seals.

Takes: nothing. Gives: engines. Owns: their end. Never: shared between two tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ulid import ULID

from backends.open_log import open_log
from backends.open_store import open_store
from contracts.engines import Engines
from contracts.settings import load_settings


@contextmanager
def memory_engines(**changes: Any) -> Iterator[Engines]:
    """A log and a store under a name that nobody else has; `changes` are settings beside quick seals and watchdogs."""
    name, quick = str(ULID()), {"seal_seconds": 0.1, "embed_watchdog_seconds": 0.2}
    settings = load_settings(log_url=f"memory://{name}", store_url=f"memory://{name}", **(quick | changes))
    made = Engines(settings, open_log(settings), open_store(settings))
    yield made
    made.log.close()
    made.store.close()
