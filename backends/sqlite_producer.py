"""The SQLite log's producer: a thread that puts whatever is waiting into one transaction (group commit).

Takes: sends from any thread. Gives: futures of positions, fsynced. Owns: the numbering of offsets; retention by time.
Never: leaves a hole in the offsets: numbers are taken inside the transaction that stores the records.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from backends import log_rules as rules
from backends.sqlite_file import SharedFile, connect, mapped, pack_headers, sqlite_error, transaction
from contracts.errors import HeadwaterError, UnavailableError
from contracts.log import LogRecord, RecordPosition

logger = logging.getLogger(__name__)

_MOST_RECORDS = 1000  # of one transaction
_MOST_BYTES = 32 * 1024 * 1024
_CLOSE_SECONDS = 5.0
_EXPIRE_ROWS = 500  # deleted per transaction, so that retention never holds the write lock for long


@dataclass(frozen=True, slots=True)
class _Send:
    record: LogRecord
    future: Future[RecordPosition]


@dataclass(frozen=True, slots=True)
class _TopicRow:
    id: int
    partitions: int
    retention_ms: int
    max_record_bytes: int


def topic_row(connection: sqlite3.Connection, name: str) -> _TopicRow:
    """The topic's row, or NotFoundError."""
    row = connection.execute("SELECT id, partitions, retention_ms, max_record_bytes FROM topics WHERE name=?", (name,)).fetchone()
    if row is None:
        raise rules.missing_topic(name)
    return _TopicRow(*row)


class SqliteProducer:
    """`contracts.log.LogProducer` on an SQLite file.

    Parameters
    ----------
    linger_seconds : float
        How long a transaction waits for more records after its first.
    retention_check_seconds : float
        How often records past their topic's retention are deleted, while appending.
    """

    def __init__(self, shared: SharedFile, *, lock_seconds: float, linger_seconds: float, retention_check_seconds: float) -> None:
        self._shared = shared
        self._linger_seconds = linger_seconds
        self._retention_check_seconds = retention_check_seconds
        self._next_retention_check = 0.0
        self._waiting: queue.SimpleQueue[_Send | None] = queue.SimpleQueue()
        self._idle = threading.Condition()
        self._unacknowledged = 0
        self._closed = False
        self._known: dict[str, _TopicRow] = {}
        with mapped(shared.path):
            self._connection = connect(shared.path, lock_seconds=lock_seconds)
        self._thread = threading.Thread(target=self._run, name="sqlite-producer", daemon=True)
        self._thread.start()

    def send(
        self,
        topic: str,
        *,
        partition: int,
        key: bytes | None = None,
        value: bytes | None = None,
        headers: Iterable[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> Future[RecordPosition]:
        """See `contracts.log.LogProducer.send`."""
        now_ms = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
        record = LogRecord(topic, partition, -1, now_ms, key, value, tuple(headers))
        if topic not in self._known:
            with mapped(self._shared.path):
                self._known[topic] = topic_row(self._connection, topic)
        known = self._known[topic]
        rules.check_record(topic, partition, known.partitions, key, value, record.headers, known.max_record_bytes)
        future: Future[RecordPosition] = Future()
        future.set_running_or_notify_cancel()  # a send cannot be taken back
        with self._idle:
            if self._closed:
                raise rules.closed("producer")
            self._unacknowledged += 1
            self._waiting.put(_Send(record, future))
        return future

    def flush(self, timeout_seconds: float) -> None:
        """See `contracts.log.LogProducer.flush`."""
        with self._idle:
            if not self._idle.wait_for(lambda: self._unacknowledged == 0, timeout_seconds):
                raise UnavailableError(
                    f"{self._unacknowledged} records were not written to {self._shared.path} in {timeout_seconds:g} s",
                    hint="check the disk, or wait longer",
                )

    def close(self) -> None:
        """See `contracts.log.LogProducer.close`."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
        self._waiting.put(None)  # everything sent before lies in front of it in the queue
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.warning("producer still writes while it is closed", extra={"path": str(self._shared.path)})

    def _run(self) -> None:
        more = True
        while more:
            batch, more = self._take()
            if batch:
                self._append(batch)
                self._expire({send.record.topic for send in batch})
        self._connection.close()

    def _take(self) -> tuple[list[_Send], bool]:
        """Wait for one record, then take what else is there; False at the end of the producer."""
        batch: list[_Send] = []
        size_bytes = 0
        deadline = 0.0
        while len(batch) < _MOST_RECORDS and size_bytes < _MOST_BYTES:
            try:
                linger = max(0.0, deadline - time.monotonic())
                send = self._waiting.get(timeout=linger) if batch else self._waiting.get()
            except queue.Empty:
                break
            if send is None:
                return batch, False
            if not batch:
                deadline = time.monotonic() + self._linger_seconds
            batch.append(send)
            size_bytes += send.record.size_bytes
        return batch, True

    def _append(self, batch: list[_Send]) -> None:
        outcomes: list[RecordPosition | HeadwaterError] = []
        try:
            with transaction(self._connection, self._shared):
                outcomes = self._insert(batch)
        except sqlite3.Error as error:
            outcomes = [sqlite_error(error, self._shared.path)] * len(batch)
        for send, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, HeadwaterError):
                send.future.set_exception(outcome)
            else:
                send.future.set_result(outcome)
        with self._idle:
            self._unacknowledged -= len(batch)
            self._idle.notify_all()

    def _insert(self, batch: list[_Send]) -> list[RecordPosition | HeadwaterError]:
        topics: dict[str, _TopicRow | HeadwaterError] = {}
        next_offsets: dict[tuple[int, int], int] = {}
        outcomes: list[RecordPosition | HeadwaterError] = []
        for send in batch:
            record = send.record
            topic = topics.get(record.topic) or self._look_up(record.topic, topics)
            if isinstance(topic, HeadwaterError):
                outcomes.append(topic)
                continue
            where = (topic.id, record.partition)
            if where not in next_offsets:
                row = self._connection.execute("SELECT next_offset FROM partitions WHERE topic=? AND partition=?", where).fetchone()
                next_offsets[where] = row[0]
            offset = next_offsets[where]
            self._connection.execute(
                "INSERT INTO records (topic, partition, offset, timestamp_ms, headers, key, value) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*where, offset, record.timestamp_ms, pack_headers(record.headers), record.key, record.value),
            )
            next_offsets[where] = offset + 1
            outcomes.append(RecordPosition(record.topic, record.partition, offset))
        for (topic_id, partition), next_offset in next_offsets.items():
            self._connection.execute("UPDATE partitions SET next_offset=? WHERE topic=? AND partition=?", (next_offset, topic_id, partition))
        return outcomes

    def _look_up(self, name: str, topics: dict[str, _TopicRow | HeadwaterError]) -> _TopicRow | HeadwaterError:
        """Read the topic again inside the transaction: it may have been deleted, or made anew, since `send`."""
        known = self._known.pop(name, None)
        try:
            found = topic_row(self._connection, name)
        except HeadwaterError as error:
            topics[name] = error
            return error
        if known is not None and known.partitions != found.partitions:  # the caller chose its partition among the old ones
            refused = UnavailableError(f"topic {name} was made again with {found.partitions} partitions", hint="send again")
            topics[name] = refused
            return refused
        self._known[name] = topics[name] = found
        return found

    def _expire(self, topics: set[str]) -> None:
        if time.monotonic() < self._next_retention_check:
            return
        self._next_retention_check = time.monotonic() + self._retention_check_seconds
        for name in topics:
            known = self._known.get(name)
            if known is None or known.retention_ms < 0:
                continue
            try:
                expire(self._connection, self._shared, known.id, int(time.time() * 1000) - known.retention_ms)
            except sqlite3.Error as error:  # the records are stored; what is too old goes next time
                logger.warning("retention could not delete old records of %s: %s", name, error)


def expire(connection: sqlite3.Connection, shared: SharedFile, topic_id: int, oldest_ms: int) -> None:
    """Delete, from the head of each partition, records whose timestamp is below `oldest_ms`."""
    rows = connection.execute("SELECT partition, next_offset FROM partitions WHERE topic=?", (topic_id,)).fetchall()
    for partition, next_offset in rows:
        fresh = connection.execute(
            "SELECT offset FROM records WHERE topic=? AND partition=? AND offset<? AND timestamp_ms>=? ORDER BY offset LIMIT 1",
            (topic_id, partition, next_offset, oldest_ms),
        ).fetchone()
        delete_below(connection, shared, topic_id, partition, fresh[0] if fresh else next_offset)


def delete_below(connection: sqlite3.Connection, shared: SharedFile, topic_id: int, partition: int, next_offset: int) -> None:
    """Delete the records of a partition below `next_offset`, a few at a time."""
    while True:
        row = connection.execute("SELECT start_offset FROM partitions WHERE topic=? AND partition=?", (topic_id, partition)).fetchone()
        if row is None or row[0] >= next_offset:
            return
        until = min(next_offset, row[0] + _EXPIRE_ROWS)
        with transaction(connection, shared):
            connection.execute("DELETE FROM records WHERE topic=? AND partition=? AND offset<?", (topic_id, partition, until))
            connection.execute("UPDATE partitions SET start_offset=max(start_offset, ?) WHERE topic=? AND partition=?", (until, topic_id, partition))
