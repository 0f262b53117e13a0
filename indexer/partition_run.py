"""A run: one stretch of work on a partition, from a seek to the next.

Takes: where the chain ends. Gives: how far fetching, producing and checking have come. Owns: nothing else.
Never: outlives a doubt: on an error the run is dropped and another begins at the chain's end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from indexer.partition_source import ChainScan, OwnBatch


@dataclass(slots=True)
class PartitionRun:
    """A stretch of work on one partition since it was last sought. Slices of an older run are dropped.

    ``start``: media offset at which it began; ``fetched_next``: offset behind what was fetched; ``sent_next``: behind what was
    handed to the producer; ``checked_next``: `sent_next` as the watchdog saw it last time; ``committed_next``: what the group
    was told last; ``is_counted``: whether the group knows of this attempt (`indexer.attempts`); ``own``: acknowledged batches that the
    watchdog has not come past (ADR 0016).
    """

    number: int
    scan: ChainScan
    start: int
    fetched_next: int
    sent_next: int
    checked_next: int
    committed_next: int
    is_counted: bool = False
    own: deque[OwnBatch] = field(default_factory=deque)

    @classmethod
    def at(cls, number: int, scan: ChainScan, start: int) -> PartitionRun:
        """A run that begins at media offset `start`."""
        return cls(number, scan, start, start, start, start, start)
