"""The readers of the two local logs (memory and SQLite): positions, pauses and group membership over a record source.

Takes: a `RecordSource`, positions, a `Membership`. Gives: `LogReader` and `GroupReader`.
Owns: the rule that a position outside the log is an error and never a jump. Never: stores anything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from backends.log_rules import MAX_POLL_BYTES, AssignmentChanges, check_partition, closed, missing_topic, not_assigned, out_of_range, share_of
from contracts.log import Assignment, CommittedOffset, LogRecord, OffsetBounds


class RecordSource(Protocol):
    """Where a reader's records come from: one topic of one log, through one connection."""

    def bounds(self) -> Mapping[int, OffsetBounds]:
        """Bounds of every partition; empty when the topic does not exist."""
        ...

    def fetch(self, partition: int, offset: int, max_records: int, max_bytes: int) -> list[LogRecord]:
        """Records from `offset` on, at least one where there is one, whatever its size."""
        ...

    def changes(self) -> int:
        """A number that differs after every append or truncation that this source can see."""
        ...

    def wait(self, seen: int, timeout_seconds: float) -> None:
        """Return when `changes` differs from `seen`, or when time is over."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Membership(Protocol):
    """One member's view of its consumer group."""

    member: str

    def members(self) -> Sequence[str]:
        """Living members of the group on this topic."""
        ...

    def commit(self, partition: int, committed: CommittedOffset) -> None:
        """Store an advisory position."""
        ...

    def committed(self, partition: int) -> CommittedOffset | None:
        """The stored advisory position."""
        ...

    def leave(self) -> None:
        """Leave the group at once."""
        ...


class PolledReader:
    """`contracts.log.LogReader` over a `RecordSource`.

    Parameters
    ----------
    source : RecordSource
        Closed with the reader.
    topic : str
        Name for records and errors.
    positions : mapping of int to int
        Next offset of each partition to read.
    """

    def __init__(
        self, source: RecordSource, topic: str, positions: Mapping[int, int], on_close: Callable[[PolledReader], None] | None = None
    ) -> None:
        self._source = source
        self._topic = topic
        self._positions: dict[int, int] = dict(positions)
        self._paused: set[int] = set()
        self._lock = threading.RLock()
        self._turn = 0
        self._closed = False
        self._on_close = on_close

    def poll(self, timeout_seconds: float, max_records: int = 500) -> list[LogRecord]:
        """See `contracts.log.LogReader.poll`."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            with self._lock:
                if self._closed:
                    raise closed("reader")
                seen = self._source.changes()
                next_look = self._tend()
                records = self._collect(max_records)
            remaining = deadline - time.monotonic()
            if records or remaining <= 0:
                return records
            self._source.wait(seen, min(remaining, next_look))

    def _tend(self) -> float:
        """Do what must be done on every round; return after how many seconds at most to come back."""
        return float("inf")

    def _collect(self, max_records: int) -> list[LogRecord]:
        bounds = self._source.bounds()
        if not bounds:
            raise missing_topic(self._topic)
        active = sorted(p for p in self._positions if p not in self._paused)
        for partition in active:
            held, position = bounds.get(partition), self._positions[partition]
            if held is None or not held.start_offset <= position <= held.next_offset:
                raise out_of_range(self._topic, partition, position, held)
        behind = [p for p in active if self._positions[p] < bounds[p].next_offset]
        # Every poll starts with another partition, so that a full one cannot starve the rest.
        self._turn += 1
        cut = self._turn % len(behind) if behind else 0
        found: list[LogRecord] = []
        left_bytes = MAX_POLL_BYTES
        for partition in behind[cut:] + behind[:cut]:
            if len(found) >= max_records or left_bytes <= 0:
                break
            records = self._source.fetch(partition, self._positions[partition], max_records - len(found), left_bytes)
            if records and records[0].offset != self._positions[partition]:  # truncated since `bounds` was read
                raise out_of_range(self._topic, partition, self._positions[partition])
            left_bytes -= sum(record.size_bytes for record in records)
            found += records
        for record in found:  # only now: an error above must not lose what was fetched before it
            self._positions[record.partition] = record.offset + 1
        return found

    def seek(self, partition: int, offset: int) -> None:
        """See `contracts.log.LogReader.seek`."""
        with self._lock:
            if partition not in self._positions:
                raise not_assigned(self._topic, partition)
            self._positions[partition] = offset

    def pause(self, partitions: Iterable[int]) -> None:
        """See `contracts.log.LogReader.pause`."""
        with self._lock:
            self._paused.update(partitions)

    def resume(self, partitions: Iterable[int]) -> None:
        """See `contracts.log.LogReader.resume`."""
        with self._lock:
            self._paused.difference_update(partitions)

    def position(self, partition: int) -> int:
        """See `contracts.log.LogReader.position`."""
        with self._lock:
            if partition not in self._positions:
                raise not_assigned(self._topic, partition)
            return self._positions[partition]

    def close(self) -> None:
        """See `contracts.log.LogReader.close`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._source.close()
        if self._on_close is not None:
            self._on_close(self)


class PolledGroupReader(PolledReader):
    """`contracts.log.GroupReader` over a `RecordSource` and a `Membership`.

    Parameters
    ----------
    check_seconds : float
        How often the members are looked at inside `poll`; 0 looks on every round.

    Notes
    -----
    Two members may both read a partition for up to `check_seconds` while it changes hands; that is harmless
    because positions come from chains (ADR 0001), never from the group.
    """

    def __init__(
        self,
        source: RecordSource,
        topic: str,
        membership: Membership,
        check_seconds: float,
        on_close: Callable[[PolledReader], None] | None = None,
    ) -> None:
        super().__init__(source, topic, {}, on_close)
        self._membership = membership
        self._check_seconds = check_seconds
        self._next_check = 0.0
        self._owned: frozenset[int] = frozenset()
        self._partitions = 0
        self._changes = AssignmentChanges()

    def _tend(self) -> float:
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + self._check_seconds
            self._partitions = len(self._source.bounds())
            share = share_of(self._membership.member, self._membership.members(), self._partitions)
            gone, came = self._owned - share, share - self._owned
            for partition in gone:
                self._positions.pop(partition, None)
                self._paused.discard(partition)
            self._changes.revoke(gone)
            self._changes.assign(came)  # no position yet: returns nothing until `seek`
            self._owned = share
        return max(self._next_check - now, 0.0) if self._check_seconds else float("inf")

    def seek(self, partition: int, offset: int) -> None:
        """See `contracts.log.LogReader.seek`; nothing happens where the partition was revoked meanwhile."""
        with self._lock:
            if partition in self._owned:
                self._positions[partition] = offset

    def take_assignment(self) -> Assignment | None:
        """See `contracts.log.GroupReader.take_assignment`."""
        return self._changes.take()

    def commit(self, partition: int, committed: CommittedOffset, *, is_awaited: bool = False) -> None:
        """See `contracts.log.GroupReader.commit`; stored when it returns, awaited or not."""
        if self._partitions:
            check_partition(self._topic, partition, self._partitions)
        self._membership.commit(partition, committed)

    def committed(self, partition: int) -> CommittedOffset | None:
        """See `contracts.log.GroupReader.committed`."""
        return self._membership.committed(partition)

    def close(self) -> None:
        """See `contracts.log.LogReader.close`."""
        with self._lock:
            if not self._closed:
                self._membership.leave()
        super().close()
