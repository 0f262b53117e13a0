"""The threads that load segments: of all partitions and collections of a node, the newest segment of each first.

A partition that has nothing yet answers as soon as its first segment is there. Therefore that work has rank 0, and nothing else is begun while some
of it is under way, nor until the first search has had a moment: others would take their share of network and processors, and the first answer would
come as late as theirs. What a search waits for comes before that, and does not wait for a thread that is at other work.

Takes: work with a rank. Gives: futures. Owns: the threads and the order. Never: lets one partition's hundred segments go before another's first.
"""

from __future__ import annotations

import heapq
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from time import monotonic
from typing import Any, TypeVar

Result = TypeVar("Result")

ASKED = -1
"""The rank of what a search waits for."""
FIRST = 0
"""The rank of what a first answer waits for."""
LAST = sys.maxsize
"""The rank of what nobody waits for: it begins when nothing else is under way."""
FIRST_SEARCH_SECONDS = 0.05
"""How long nothing else is begun after the last work of rank `FIRST`, unless a search asked for something and has got it: who waits for a first
answer asks now, and what has begun would take processors from it."""


class LoadPool:
    """Work in the order of its rank, and of its arrival within a rank; up to that of `FIRST` alone.

    Parameters
    ----------
    threads : int
        How many at once, and as many more where work of rank `ASKED` would wait for others; they start when there is work, and end with the process
        or `close`.
    """

    def __init__(self, threads: int) -> None:
        self._most = threads
        self._threads: list[threading.Thread] = []
        self._queue: list[tuple[int, int, Future[Any], Callable[[], Any]]] = []
        self._arrivals = count()
        self._idle = 0
        self._asked = 0  # works of rank `ASKED` that are under way or wait
        self._first, self._others, self._last = 0, 0, 0  # works under way: of rank `FIRST`, `LAST`, and between
        self._held_until = 0.0  # for work that is behind `FIRST`
        self._closed = False
        self._wake = threading.Condition()

    def submit(self, rank: int, work: Callable[[], Result]) -> Future[Result]:
        """Do `work` when it is its turn; of lower rank first."""
        future: Future[Result] = Future()
        with self._wake:
            if self._closed:
                future.cancel()
                return future
            self._asked += rank == ASKED
            heapq.heappush(self._queue, (rank, next(self._arrivals), future, work))
            if len(self._queue) > self._idle and len(self._threads) < (2 if rank == ASKED else 1) * self._most:
                thread = threading.Thread(target=self._run, name=f"load-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._wake.notify()
        return future

    def give_way(self) -> None:
        """Wait until nothing is under way that a search waits for; for work that comes behind `FIRST` to call now and then."""
        with self._wake:
            while self._asked and not self._closed:
                self._wake.wait()

    def await_first(self, timeout_seconds: float) -> None:
        """Wait until no work of rank `FIRST` is under way or waits, or until time is over."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or not (self._first or any(rank == FIRST for rank, *_ in self._queue)), timeout_seconds)

    def close(self) -> None:
        """Cancel what waits, and let the threads end."""
        with self._wake:
            self._closed = True
            for _, _, future, _ in self._queue:
                future.cancel()
            self._queue.clear()
            self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._idle += 1
                while not self._may_begin() and not self._closed:
                    held_seconds = self._held_until - monotonic()
                    self._wake.wait(held_seconds if held_seconds > 0 else None)
                self._idle -= 1
                if not self._queue:
                    return
                rank, _, future, work = heapq.heappop(self._queue)
                self._count(rank, 1)
            _do(future, work)
            del future, work  # while this thread waits, it must not keep what it loaded last
            with self._wake:
                self._count(rank, -1)

    def _count(self, rank: int, by: int) -> None:
        if rank == ASKED:
            self._asked -= by < 0
            if not self._asked:
                self._held_until = 0.0
        elif rank == FIRST:
            self._first += by
            self._held_until = monotonic() + FIRST_SEARCH_SECONDS
        elif rank < LAST:
            self._others += by
        else:
            self._last += by
        if by < 0:
            self._wake.notify_all()

    def _may_begin(self) -> bool:
        """Whether the next work may begin: other than `ASKED` on `threads` threads at most, so that one is always left for what others wait for."""
        rank = self._queue[0][0] if self._queue else None
        if rank is None or rank == ASKED:
            return rank is not None
        if self._first + self._others + self._last >= self._most:
            return False
        if rank == FIRST:
            return True
        if self._first or self._asked or monotonic() < self._held_until:
            return False
        return rank < LAST or (not self._others and self._last < max(1, self._most // 2))


def _do(future: Future[Any], work: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)
