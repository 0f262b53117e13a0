"""Batches by count and by time: how long the embedding thread waits for company.

Takes: the queue of decoding slices, its condition, when waiting ends. Gives: whether another slice may be taken now. Owns: that wait.
Never: waits where waiting was not asked for: on a CPU a batch of one costs no more per picture.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from indexer.slices import DecodedSlice, FetchedSlice

LOOK_SECONDS = 0.005
"""How often it looks whether the next slice is decoded: a finished future wakes nobody."""


def next_is_decoded(
    queue: deque[tuple[FetchedSlice, Future[DecodedSlice]]], arrived: threading.Condition, due_seconds: float, now: Callable[[], float]
) -> bool:
    """Whether the queue's first slice is decoded, now or before `now()` reaches `due_seconds`; the caller holds `arrived`."""
    while not (queue and queue[0][1].done()):
        left = due_seconds - now()
        if left <= 0:
            return False
        arrived.wait(min(left, LOOK_SECONDS))
    return True
