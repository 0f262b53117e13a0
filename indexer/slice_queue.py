"""What was fetched and waits to be embedded: in order, counted in bytes.

Takes: fetched slices and what becomes of them in the decode threads. Gives: slices in the order in which they came. Owns: the count that
back-pressure looks at (`FetchedSlice.size_bytes`: never less than a record takes once it is decoded).
Never: refuses a slice: whoever fetches looks at `size_bytes` and stops.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from indexer.batching import next_is_decoded
from indexer.slices import DecodedSlice, FetchedSlice

Queued = tuple[FetchedSlice, "Future[DecodedSlice]"]


class SliceQueue:
    """A queue between one thread that fetches and one that embeds."""

    def __init__(self) -> None:
        self._slices: deque[Queued] = deque()
        self._arrived = threading.Condition()
        self.size_bytes = 0

    def put(self, fetched: FetchedSlice, decoding: Future[DecodedSlice]) -> None:
        """Add a slice."""
        with self._arrived:
            self._slices.append((fetched, decoding))
            self.size_bytes += fetched.size_bytes
            self._arrived.notify()

    def take(self, wait_seconds: float, most_records: int, batch_seconds: float, now: Callable[[], float]) -> list[Queued]:
        """The first slice, waited for, and those behind it that are decoded by now, or within `batch_seconds`; they count until `taken`."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._slices, wait_seconds):
                return []
            taken = [self._slices.popleft()]
            records = len(taken[0][0].records)
            due = now() + batch_seconds
            while records < most_records and next_is_decoded(self._slices, self._arrived, due, now):
                taken.append(self._slices.popleft())
                records += len(taken[-1][0].records)
            return taken

    def taken(self, slices: list[Queued]) -> None:
        """Count no longer what was taken: the embedding thread holds it now, one batch at a time."""
        with self._arrived:
            self.size_bytes -= sum(fetched.size_bytes for fetched, _ in slices)


def decoded_now(decoded: DecodedSlice) -> Future[DecodedSlice]:
    """What needs no pool: reading records and texts takes less time than handing them to another thread."""
    future: Future[DecodedSlice] = Future()
    future.set_result(decoded)
    return future
