"""ULIDs in rising order: object ids are minted in publish order, so that the newest published one is a safe cut for garbage collection.

Takes: nothing. Gives: ULID texts, each greater than the one before. Owns: the last one.
Never: is shared between processes; a writer's ULIDs rise, those of two writers need not.
"""

from __future__ import annotations

import threading

from ulid import ULID


class UlidSource:
    """Mints rising ULIDs for one writer (thread-safe)."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def mint(self) -> str:
        """Return a new ULID, greater than all before it."""
        with self._lock:
            self._last = max(self._last + 1, int(ULID()))
            return str(ULID.from_int(self._last))
