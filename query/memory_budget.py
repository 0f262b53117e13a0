"""The memory that this node may use for indexes: what is held is counted, and what does not fit is refused before it is loaded.

Mapped files do not count: the system takes their pages back when it needs them. What counts is what only this process holds: flat vectors, codes,
tails, ids.

Takes: bytes that somebody is about to hold. Gives: a `Held` that gives them back when it goes. Owns: the sum.
Never: measures anything, or frees memory.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

from contracts.errors import UnavailableError


class MemoryFullError(UnavailableError):
    """The next piece does not fit into `memory_bytes`."""

    code = "memory_full"


class Held:
    """Bytes that are counted as long as this lives."""

    __slots__ = ("__weakref__", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


class MemoryBudget:
    """Bytes of one node; thread-safe.

    Parameters
    ----------
    limit_bytes : int
        Most bytes; 0 for no limit.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._held_bytes = 0
        self._returned: deque[int] = deque()  # by finalizers, which may run anywhere: also where the lock is held
        self._growing: dict[str, int] = {}

    def hold(self, size_bytes: int, what: str) -> Held:
        """Count bytes that are about to be held; `what` names them in the error.

        Raises
        ------
        MemoryFullError
            They do not fit.
        """
        with self._lock:
            used = self._used()
            if self.limit_bytes and used + size_bytes > self.limit_bytes:
                raise MemoryFullError(
                    f"{what} needs {size_bytes} bytes of memory; {used} of {self.limit_bytes} are in use",
                    hint="raise HEADWATER_MEMORY_BYTES, or serve fewer collections from this node",
                )
            self._held_bytes += size_bytes
        held = Held(size_bytes)
        weakref.finalize(held, self._returned.append, size_bytes).atexit = False
        return held

    def set_growing(self, collection: str, size_bytes: int) -> None:
        """Bytes of a collection that grow without being asked for: tails, and filter indexes of its segments; 0 where it is not served any more."""
        with self._lock:
            self._growing[collection] = size_bytes
            if not size_bytes:
                del self._growing[collection]

    @property
    def used_bytes(self) -> int:
        """Bytes that count now."""
        with self._lock:
            return self._used()

    @property
    def exceeded(self) -> bool:
        """Whether what grows by itself has passed the limit: then tails must not be read on."""
        return bool(self.limit_bytes) and self.used_bytes > self.limit_bytes

    def _used(self) -> int:
        while self._returned:
            self._held_bytes -= self._returned.popleft()
        return self._held_bytes + sum(self._growing.values())
