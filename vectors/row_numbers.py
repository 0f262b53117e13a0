"""Row numbers: how the rows of many segments and tails are named inside one logical index (docs/adr/0009-row-numbers-and-tiers.md).

A range of numbers belongs to one piece of rows and is never given to another while anything holds it: views hold the ranges that they name, an index
those whose rows lie in its tiers. When the last holder lets go, the numbers are free again. Ranges begin at multiples of 8 at least, so that the bits
of a range are whole bytes of a bitmap.

Takes: how many rows. Gives: ranges. Owns: which numbers are free. Never: hands out a number that a tier or a pinned view may still mean.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable

ALIGNMENT = 8


class NumberRange:
    """Row numbers ``[start, start + capacity)``; kept alive by whoever means one of them.

    Parameters
    ----------
    start, capacity : int
        First number, and how many there are; multiples of the index's alignment.
    """

    __slots__ = ("__weakref__", "capacity", "start")

    def __init__(self, start: int, capacity: int) -> None:
        self.start, self.capacity = start, capacity

    @property
    def stop(self) -> int:
        """The number after the last one."""
        return self.start + self.capacity


class RowNumbers:
    """Numbers of one logical index; thread-safe. `limit` is above every number that was ever given out and not cut off again.

    Parameters
    ----------
    alignment : int
        Ranges begin and end at multiples of it; itself a multiple of 8.
    on_return : callable, optional
        Told start and capacity of a range that nobody holds any more, at any moment and on any thread, before it is given out again.
    """

    def __init__(self, alignment: int = ALIGNMENT, on_return: Callable[[int, int], None] | None = None) -> None:
        self._alignment, self._on_return = alignment, on_return
        self._lock = threading.Lock()
        self._free: list[tuple[int, int]] = []  # (start, capacity), ascending, never adjacent
        self._returned: deque[tuple[int, int]] = deque()  # by finalizers, which may run anywhere: also where the lock is held
        self.limit = 0

    def allocate(self, rows: int) -> NumberRange:
        """A range of at least `rows` numbers, the lowest that is free."""
        capacity = max(1, -(-rows // self._alignment)) * self._alignment
        with self._lock:
            self._collect()
            start = self._take(capacity)
        made = NumberRange(start, capacity)
        weakref.finalize(made, self._return, start, capacity).atexit = False
        return made

    def _return(self, start: int, capacity: int) -> None:
        if self._on_return is not None:
            self._on_return(start, capacity)
        self._returned.append((start, capacity))

    def _take(self, capacity: int) -> int:
        for at, (start, free) in enumerate(self._free):
            if free >= capacity:
                self._free[at : at + 1] = [(start + capacity, free - capacity)] if free > capacity else []
                return start
        start = self.limit
        self.limit += capacity
        return start

    def _collect(self) -> None:
        while self._returned:
            start, capacity = self._returned.popleft()
            at = bisect_left(self._free, (start, 0))
            if at < len(self._free) and self._free[at][0] == start + capacity:
                capacity += self._free.pop(at)[1]
            if at and sum(self._free[at - 1]) == start:
                start, before = self._free.pop(at - 1)
                capacity += before
            insort(self._free, (start, capacity))
        if self._free and sum(self._free[-1]) == self.limit:
            self.limit = self._free.pop()[0]
