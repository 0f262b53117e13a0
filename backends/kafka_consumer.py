"""Readers of the Kafka log: chosen partitions, or those that a consumer group assigns.

Takes: positions from the caller. Gives: `LogReader` and `GroupReader`. Owns: the watchdog over a consumer that stalls.
Never: lets Kafka choose a position: ``auto_offset_reset`` is 'none', and what was just assigned waits for `seek`.

The group's listener runs on kafka-python's I/O thread; it only notes what happened and pauses (state, no network).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.errors import FencedInstanceIdError, IllegalStateError, NoOffsetForPartitionError, OffsetOutOfRangeError
from kafka.structs import OffsetAndMetadata

from backends import log_rules as rules
from backends.kafka_batches import UnreadableHeaders, open_consumer
from backends.kafka_errors import mapped
from backends.kafka_settings import consumer_options, group_options
from contracts.errors import DataLossError, SettingsError, UnavailableError
from contracts.log import Assignment, CommittedOffset, LogRecord, OffsetBounds
from contracts.settings import Settings

logger = logging.getLogger(__name__)

_CLOSE_MS = 5000
_COMMIT_MS = 5000

Bounds = Callable[[str], dict[int, OffsetBounds]]


def to_record(raw: Any) -> LogRecord:
    """Our record for kafka-python's."""
    unreadable = raw.headers.unreadable if isinstance(raw.headers, UnreadableHeaders) else None
    return LogRecord(raw.topic, raw.partition, raw.offset, raw.timestamp, raw.key, raw.value, tuple(raw.headers), unreadable)


class KafkaReader:
    """`contracts.log.LogReader` on Kafka, without a group. All calls from one thread.

    Parameters
    ----------
    bounds : callable
        First and next offsets of a topic; asked only when nothing came from a partition for `watchdog_seconds`.
    watchdog_seconds : float
        When unread records of a partition stay unread for two such periods, whatever comes from others, the consumer is built anew at its
        positions (kafka-python's fetcher stalled in 3.0.6 and 3.0.9). When the broker is gone, this is how long it takes to say so.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        positions: Mapping[int, int],
        bounds: Bounds,
        *,
        watchdog_seconds: float = 30.0,
        on_close: Callable[[KafkaReader], None] | None = None,
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._bounds = bounds
        self._watchdog_seconds = watchdog_seconds
        self._on_close = on_close
        self._closed = False
        self._lock = threading.RLock()  # of the three below; the group's listener changes them on another thread
        self._positions: dict[int, int] = dict(positions)
        self._paused: set[int] = set()
        self._moved_at: dict[int, float] = {}
        self._asked_at = time.monotonic()
        self._suspects: dict[int, int] = {}
        self._client = self._connect()

    def _connect(self) -> Any:
        what = f"opening a reader of {self._topic}"
        client = open_consumer(self._settings, consumer_options(self._settings), what)
        with mapped(what):
            client.assign([self._at(partition) for partition in self._positions])
            for partition, offset in self._positions.items():
                client.seek(self._at(partition), offset)
            client.pause(*(self._at(partition) for partition in self._paused & self._positions.keys()))
        return client

    def _at(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)

    def poll(self, timeout_seconds: float, max_records: int = 500) -> list[LogRecord]:
        """See `contracts.log.LogReader.poll`."""
        if self._closed:
            raise rules.closed("reader")
        try:
            with mapped(f"reading {self._topic}"):
                batches = self._fetch(max(0, int(timeout_seconds * 1000)), max_records)
        except DataLossError as error:
            raise self._name_place(error) from error.__cause__
        found: list[LogRecord] = []
        with self._lock:
            for at, raws in batches.items():
                if at.partition in self._positions:  # else it was revoked, or assigned and not yet sought
                    found += map(to_record, raws)
                    self._positions[at.partition] = raws[-1].offset + 1
        self._watch({record.partition for record in found})
        return found

    def _name_place(self, error: DataLossError) -> DataLossError:
        if isinstance(error.__cause__, OffsetOutOfRangeError) and error.__cause__.args and isinstance(error.__cause__.args[0], dict):
            (at, offset), *_ = error.__cause__.args[0].items()
            return rules.out_of_range(at.topic, at.partition, offset)
        return error

    def _fetch(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        return dict(self._client.poll(timeout_ms=timeout_ms, max_records=max_records))

    def _watch(self, moved: set[int]) -> None:
        """Notice, while nothing comes from a partition, that something should (or that nobody answers)."""
        now = time.monotonic()
        with self._lock:
            active = {p for p in self._positions if p not in self._paused}
        self._moved_at = {p: now if p in moved else self._moved_at.get(p, now) for p in active}
        quiet = {p for p, at in self._moved_at.items() if now - at >= self._watchdog_seconds}
        self._suspects = {p: position for p, position in self._suspects.items() if p in quiet}
        if not quiet or now - self._asked_at < self._watchdog_seconds:
            return
        self._asked_at = now
        held = self._bounds(self._topic)  # UnavailableError tells the caller that the broker is gone
        unread = {p: self.position(p) for p in quiet if p in held and self.position(p) < held[p].next_offset}
        stuck = {p for p, position in unread.items() if self._suspects.get(p) == position}
        self._suspects = unread
        if stuck:
            logger.warning("reader of %s does not move on partitions %s; it is opened anew", self._topic, sorted(stuck))
            self._reopen()

    def _reopen(self) -> None:
        self._moved_at, self._suspects = {}, {}
        self._client.close(timeout_ms=_CLOSE_MS)
        self._client = self._connect()

    def seek(self, partition: int, offset: int) -> None:
        """See `contracts.log.LogReader.seek`."""
        with self._lock:
            if partition not in self._positions:
                raise rules.not_assigned(self._topic, partition)
            self._start(partition, offset)

    def _start(self, partition: int, offset: int) -> None:
        if offset < 0:
            raise SettingsError(f"offset {offset} of {self._topic}/{partition} is negative", hint="give an offset from 0")
        self._client.seek(self._at(partition), offset)
        self._positions[partition] = offset
        if partition not in self._paused:
            self._client.resume(self._at(partition))

    def pause(self, partitions: Iterable[int]) -> None:
        """See `contracts.log.LogReader.pause`."""
        with self._lock:
            for partition in partitions:
                self._paused.add(partition)
                if partition in self._positions:
                    self._client.pause(self._at(partition))

    def resume(self, partitions: Iterable[int]) -> None:
        """See `contracts.log.LogReader.resume`."""
        with self._lock:
            for partition in partitions:
                self._paused.discard(partition)
                if partition in self._positions:
                    self._client.resume(self._at(partition))

    def position(self, partition: int) -> int:
        """See `contracts.log.LogReader.position`; passes over transaction markers, which are not records."""
        with self._lock:
            if partition not in self._positions:
                raise rules.not_assigned(self._topic, partition)
            position = self._positions[partition]
        try:
            with mapped(f"asking for the position in {self._topic}"):
                seen = self._client.position(self._at(partition), timeout_ms=0)
        except SettingsError as error:
            if isinstance(error.__cause__, IllegalStateError):  # revoked a moment ago
                return position
            raise
        return max(position, seen or 0)

    def close(self) -> None:
        """See `contracts.log.LogReader.close`."""
        if self._closed:
            return
        self._closed = True
        if self._on_close is not None:
            self._on_close(self)
        with mapped(f"closing a reader of {self._topic}"):
            self._client.close(timeout_ms=_CLOSE_MS)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Notes what the group did, on the I/O thread."""

    def __init__(self, reader: KafkaGroupReader) -> None:
        self._reader = reader

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._reader.note_assigned([at.partition for at in assigned])

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._reader.note_revoked([at.partition for at in revoked])

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self._reader.note_revoked([at.partition for at in lost])


class KafkaGroupReader(KafkaReader):
    """`contracts.log.GroupReader` on Kafka, with the cooperative protocol. All calls from one thread."""

    def __init__(
        self,
        settings: Settings,
        topic: str,
        group: str,
        bounds: Bounds,
        *,
        watchdog_seconds: float = 30.0,
        on_close: Callable[[KafkaReader], None] | None = None,
    ) -> None:
        self._group = group
        self._owned: set[int] = set()
        self._changes = rules.AssignmentChanges()
        self._is_fenced = False
        super().__init__(settings, topic, {}, bounds, watchdog_seconds=watchdog_seconds, on_close=on_close)

    def _connect(self) -> Any:
        what = f"joining group {self._group}"
        client = open_consumer(self._settings, group_options(self._settings, self._group), what)
        with mapped(what):
            client.subscribe([self._topic], listener=_Listener(self))
            # A request for metadata that was on its way while we subscribed lacks the topic and is not repeated until
            # metadata_max_age_ms; a member elected leader in that state would assign nothing to anybody.
            client.partitions_for_topic(self._topic)
        return client

    def _reopen(self) -> None:
        self.note_revoked(list(self._owned))
        super()._reopen()

    def note_assigned(self, partitions: list[int]) -> None:
        """Hold new partitions still until `seek`; called on the I/O thread."""
        with self._lock:
            for partition in partitions:
                self._client.pause(self._at(partition))
                # Any position will do while it is paused; without one the consumer would ask the group for it.
                self._client.seek(self._at(partition), 0)
                self._positions.pop(partition, None)
                self._paused.discard(partition)
            self._owned |= set(partitions)
            self._changes.assign(partitions)

    def note_revoked(self, partitions: list[int]) -> None:
        """Forget partitions; called on the I/O thread."""
        with self._lock:
            for partition in partitions:
                self._positions.pop(partition, None)
                self._paused.discard(partition)
            self._owned -= set(partitions)
            self._changes.revoke(partitions)

    def _note_commit(self, offsets: Any, outcome: Any) -> None:
        """How an advisory commit ended; called on the I/O thread."""
        if isinstance(outcome, FencedInstanceIdError):
            self._is_fenced = True
        elif isinstance(outcome, Exception):
            logger.warning("advisory commit was not stored: %s", type(outcome).__name__)

    def _fetch(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        if self._is_fenced:  # kafka-python would go on reading, for nobody
            raise FencedInstanceIdError(self._settings.kafka_instance_id)
        try:
            return super()._fetch(timeout_ms, max_records)
        except NoOffsetForPartitionError:  # between the assignment and its listener; the next poll finds it paused
            return {}

    def seek(self, partition: int, offset: int) -> None:
        """See `contracts.log.LogReader.seek`; nothing happens where the partition was revoked meanwhile."""
        with self._lock:
            if partition not in self._owned:
                return
            try:
                self._start(partition, offset)
            except (ValueError, KeyError):  # kafka-python: gone from the assignment; the listener tells in a moment
                self._positions.pop(partition, None)

    def take_assignment(self) -> Assignment | None:
        """See `contracts.log.GroupReader.take_assignment`."""
        return self._changes.take()

    def commit(self, partition: int, committed: CommittedOffset, *, is_awaited: bool = False) -> None:
        """See `contracts.log.GroupReader.commit`; one that is not awaited and that a rebalance refuses is dropped with a warning."""
        offsets = {self._at(partition): OffsetAndMetadata(committed.offset, committed.metadata, -1)}
        if is_awaited:
            with mapped(f"committing to group {self._group}"):
                self._client.commit(offsets, timeout_ms=_COMMIT_MS)
            return
        try:
            with mapped(f"committing to group {self._group}"):
                self._client.commit_async(offsets, callback=self._note_commit)
        except UnavailableError as error:
            logger.warning("advisory commit was not stored: %s", error)

    def committed(self, partition: int) -> CommittedOffset | None:
        """See `contracts.log.GroupReader.committed`."""
        with mapped(f"asking group {self._group} for its position"):
            found = self._client.committed(self._at(partition), metadata=True, timeout_ms=_COMMIT_MS)
        return None if found is None else CommittedOffset(found.offset, found.metadata or "")
