"""Time, injected.

Takes: nothing. Gives: wall-clock and monotonic seconds. Owns: the only calls to `time`.
Never: orders events by wall clock; order is offsets and versions.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Source of time; tests pass a `ManualClock`."""

    def now_seconds(self) -> float:
        """Seconds since the Unix epoch (UTC)."""
        ...

    def monotonic_seconds(self) -> float:
        """Seconds that never go back, for durations."""
        ...

    def wait(self, event: threading.Event, timeout_seconds: float) -> bool:
        """Wait until `event` is set or the time is over; True when it was set."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_seconds(self) -> float:
        """Seconds since the Unix epoch (UTC)."""
        return time.time()

    def monotonic_seconds(self) -> float:
        """Seconds that never go back, for durations."""
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_seconds: float) -> bool:
        """Wait until `event` is set or the time is over; True when it was set."""
        return event.wait(timeout_seconds)


class ManualClock:
    """A clock that moves only when told to (tests, simulation)."""

    def __init__(self, start_seconds: float = 1_000_000_000.0) -> None:
        self._now = start_seconds
        self._moved = threading.Condition()

    def now_seconds(self) -> float:
        """Seconds since the Unix epoch, as set."""
        return self._now

    def monotonic_seconds(self) -> float:
        """The same as `now_seconds`."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move time forward by `seconds`."""
        with self._moved:
            self._now += seconds
            self._moved.notify_all()

    def wait(self, event: threading.Event, timeout_seconds: float) -> bool:
        """Return at once, having moved time forward, so that loops under test make progress."""
        if not event.is_set():
            self.advance(timeout_seconds)
        return event.is_set()
