"""How far something is behind a topic's head, in records and in seconds: since when the head has been ahead of what is done.

Takes: heads of a topic, seen every second or few, and the offsets that are done. Gives: lag. Owns: the observations.
Never: reads a record's time: a producer's clock may say anything. Whoever knows better since when what it found at its first look
has been there says so (`found_waiting`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

MAX_OBSERVATIONS = 4096
"""Per partition; beyond, every second one is dropped, which makes the answer coarser and never smaller than what is kept first."""


class HeadLag:
    """Observations of heads; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[int, deque[tuple[int, float]]] = {}
        self._first: dict[int, tuple[int, float]] = {}

    def observe(self, heads: Mapping[int, int], now_seconds: float) -> None:
        """Note the next offset of each partition of the media topic, as seen at a monotonic time."""
        with self._lock:
            for partition, head in heads.items():
                seen = self._seen.setdefault(partition, deque())
                self._first.setdefault(partition, (head, now_seconds))
                if not seen or head > seen[-1][0]:
                    seen.append((head, now_seconds))
                if len(seen) > MAX_OBSERVATIONS:
                    self._seen[partition] = deque(list(seen)[::2])

    def is_undated(self, partition: int, offset: int) -> bool:
        """Whether `offset` is to be done and was there at the first look, so that nobody saw since when."""
        with self._lock:
            first, seen = self._first.get(partition), self._seen.get(partition)
            return first is not None and seen is not None and offset < first[0] <= seen[0][0]

    def found_waiting(self, partition: int, offset: int, seen_at_seconds: float) -> None:
        """Say since when, in monotonic time, `offset` has been there; later than the first look counts as then."""
        with self._lock:
            first = self._first.get(partition)
            if first is not None and offset + 1 < first[0]:
                self._seen[partition].appendleft((offset + 1, min(seen_at_seconds, first[1])))
            elif first is not None and self._seen[partition][0] == first:
                self._seen[partition][0] = (first[0], min(seen_at_seconds, first[1]))
                self._first[partition] = (offset, first[1])  # dated: nothing is left of the first look

    def seconds(self, expected: Mapping[int, int], now_seconds: float) -> float:
        """Longest time, over partitions, for which something has been in the media log that answers do not hold; 0 when caught up."""
        worst = 0.0
        with self._lock:
            for partition, offset in expected.items():
                for head, at in self._seen.get(partition, ()):
                    if head > offset:
                        worst = max(worst, now_seconds - at)
                        break
        return worst

    def forget(self, expected: Mapping[int, int]) -> None:
        """Drop observations that every later view has passed."""
        with self._lock:
            for partition, offset in expected.items():
                seen = self._seen.get(partition)
                while seen and len(seen) > 1 and seen[0][0] <= offset:
                    seen.popleft()

    def drop(self, partition: int) -> None:
        """Forget a partition that another one looks at from now on."""
        with self._lock:
            self._seen.pop(partition, None)
            self._first.pop(partition, None)

    def records(self, expected: Mapping[int, int]) -> dict[int, int]:
        """Records between what is searchable and the newest head that was seen, by partition."""
        with self._lock:
            return {partition: max(0, self._seen[partition][-1][0] - offset) for partition, offset in expected.items() if self._seen.get(partition)}
