"""The log in one SQLite file: durable, for several threads and processes of one machine, without a broker.

Takes: a path. Gives: `SqliteLog`, an implementation of `contracts.log.Log`. Owns: reads and administration.
Never: works on a network file system (SQLite's locks do not); never keeps a reader's position.

Readers are woken by `backends.sqlite_watch`, which notices commits by ``PRAGMA data_version``
(https://www.sqlite.org/pragma.html#pragma_data_version).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from backends import log_rules as rules
from backends.polled_reader import PolledGroupReader, PolledReader
from backends.sqlite_file import SharedFile, connect, mapped, prepare, shared_file, transaction, unpack_headers
from backends.sqlite_group import SqliteMembership
from backends.sqlite_producer import SqliteProducer, delete_below, topic_row
from contracts.log import LogRecord, OffsetBounds, TopicInfo, TopicSpec

_GROUP_CHECK_SECONDS = 0.5

_BOUNDS = "SELECT p.partition, p.start_offset, p.next_offset FROM topics t JOIN partitions p ON p.topic=t.id WHERE t.name=? ORDER BY p.partition"
_RECORDS = """
SELECT r.partition, r.offset, r.timestamp_ms, r.key, r.value, r.headers FROM topics t JOIN records r ON r.topic=t.id
WHERE t.name=? AND r.partition=? AND r.offset>=? ORDER BY r.offset LIMIT ?"""


def _record(topic: str, row: Sequence[Any]) -> LogRecord:
    partition, offset, timestamp_ms, key, value, headers = row
    return LogRecord(topic, partition, offset, timestamp_ms, key, value, unpack_headers(headers))


class _Closable(Protocol):
    def close(self) -> None: ...


class _SqliteSource:
    """A `RecordSource` with a connection of its own."""

    def __init__(self, shared: SharedFile, topic: str, lock_seconds: float) -> None:
        self._shared = shared
        self._topic = topic
        self._lock = threading.Lock()
        with mapped(shared.path):
            self._connection = connect(shared.path, lock_seconds=lock_seconds)
        shared.watch.join()

    def bounds(self) -> dict[int, OffsetBounds]:
        with self._lock, mapped(self._shared.path):
            rows = self._connection.execute(_BOUNDS, (self._topic,)).fetchall()
        return {partition: OffsetBounds(start, following) for partition, start, following in rows}

    def fetch(self, partition: int, offset: int, max_records: int, max_bytes: int) -> list[LogRecord]:
        found: list[LogRecord] = []
        with self._lock, mapped(self._shared.path):
            cursor = self._connection.execute(_RECORDS, (self._topic, partition, offset, max_records))
            try:
                for row in cursor:
                    record = _record(self._topic, row)
                    max_bytes -= record.size_bytes
                    if found and max_bytes < 0:
                        break
                    found.append(record)
            finally:
                cursor.close()  # ends the read transaction, which would keep the write-ahead log from shrinking
        return found

    def changes(self) -> int:
        return self._shared.watch.changes(self._topic)

    def wait(self, seen: int, timeout_seconds: float) -> None:
        self._shared.watch.wait(self._topic, seen, timeout_seconds)

    def close(self) -> None:
        self._shared.watch.leave(self._topic)
        with self._lock:
            self._connection.close()


class SqliteLog:
    """`contracts.log.Log` in an SQLite file.

    Parameters
    ----------
    path : Path
        The file; it and its folder are made where they are missing.
    session_seconds : float
        A group member not heard of for this long loses its partitions.
    retention_check_seconds : float
        How often producers delete what is past its topic's retention.
    lock_seconds : float
        How long to wait for another process's transaction before UnavailableError.

    Raises
    ------
    SettingsError, CorruptError, UnavailableError
        See `backends.sqlite_file.prepare`.
    """

    def __init__(self, path: Path, *, session_seconds: float = 3.0, retention_check_seconds: float = 10.0, lock_seconds: float = 10.0) -> None:
        self._shared = shared_file(path)
        self._session_seconds = session_seconds
        self._retention_check_seconds = retention_check_seconds
        self._lock_seconds = lock_seconds
        prepare(self._shared, lock_seconds)
        self._lock = threading.Lock()
        with mapped(self._shared.path):
            self._connection = connect(self._shared.path, lock_seconds=lock_seconds)
        self._open: set[_Closable] = set()

    def _rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock, mapped(self._shared.path):
            return self._connection.execute(sql, values).fetchall()

    def cluster_id(self) -> str:
        """See `contracts.log.Log.cluster_id`."""
        return str(self._rows("SELECT identity FROM cluster")[0][0])

    def create_topic(self, spec: TopicSpec) -> TopicInfo:
        """See `contracts.log.Log.create_topic`."""
        rules.check_spec(spec)
        with self._lock, mapped(self._shared.path), transaction(self._connection, self._shared):
            existing = self._describe(spec.name)
            if existing is not None:
                return rules.check_same_partitions(existing, spec)
            cursor = self._connection.execute(
                "INSERT INTO topics (name, identity, partitions, retention_ms, max_record_bytes) VALUES (?, ?, ?, ?, ?)",
                (spec.name, rules.new_identity(), spec.partitions, spec.retention_ms, spec.max_record_bytes),
            )
            rows = [(cursor.lastrowid, partition) for partition in range(spec.partitions)]
            self._connection.executemany("INSERT INTO partitions VALUES (?, ?, 0, 0)", rows)
            created = self._describe(spec.name)
            assert created is not None  # inserted above, in this transaction
            return created

    def _describe(self, name: str) -> TopicInfo | None:
        row = self._connection.execute("SELECT identity, partitions, retention_ms, max_record_bytes FROM topics WHERE name=?", (name,)).fetchone()
        if row is None:
            return None
        identity, partitions, retention_ms, max_record_bytes = row
        return TopicInfo(name, identity, partitions, rules.topic_config(TopicSpec(name, partitions, retention_ms, max_record_bytes)))

    def describe_topic(self, name: str) -> TopicInfo | None:
        """See `contracts.log.Log.describe_topic`."""
        with self._lock, mapped(self._shared.path):
            return self._describe(name)

    def list_topics(self) -> Sequence[str]:
        """See `contracts.log.Log.list_topics`."""
        return [row[0] for row in self._rows("SELECT name FROM topics ORDER BY name")]

    def delete_topic(self, name: str) -> None:
        """See `contracts.log.Log.delete_topic`."""
        with self._lock, mapped(self._shared.path), transaction(self._connection, self._shared):
            row = self._connection.execute("SELECT id FROM topics WHERE name=?", (name,)).fetchone()
            if row is None:
                return
            self._connection.execute("DELETE FROM records WHERE topic=?", row)
            self._connection.execute("DELETE FROM partitions WHERE topic=?", row)
            self._connection.execute("DELETE FROM topics WHERE id=?", row)
            self._connection.execute("DELETE FROM committed WHERE topic=?", (name,))

    def bounds(self, topic: str) -> dict[int, OffsetBounds]:
        """See `contracts.log.Log.bounds`."""
        held = {partition: OffsetBounds(start, following) for partition, start, following in self._rows(_BOUNDS, (topic,))}
        if not held:
            raise rules.missing_topic(topic)
        return held

    def offsets_for_time(self, topic: str, timestamp_ms: int) -> dict[int, int]:
        """See `contracts.log.Log.offsets_for_time`."""
        found: dict[int, int] = {}
        for partition, held in self.bounds(topic).items():
            rows = self._rows(
                "SELECT r.offset FROM topics t JOIN records r ON r.topic=t.id "
                "WHERE t.name=? AND r.partition=? AND r.timestamp_ms>=? ORDER BY r.offset LIMIT 1",
                (topic, partition, timestamp_ms),
            )
            found[partition] = rows[0][0] if rows else held.next_offset
        return found

    def truncate(self, topic: str, next_offsets: Mapping[int, int]) -> None:
        """See `contracts.log.Log.truncate`."""
        rules.check_truncate(topic, next_offsets, self.bounds(topic))
        with self._lock, mapped(self._shared.path):
            topic_id = topic_row(self._connection, topic).id
            for partition, next_offset in next_offsets.items():
                delete_below(self._connection, self._shared, topic_id, partition, next_offset)

    def read_at(self, topic: str, partition: int, offset: int) -> LogRecord | None:
        """See `contracts.log.Log.read_at`."""
        rules.check_partition(topic, partition, len(self.bounds(topic)))
        rows = self._rows(_RECORDS, (topic, partition, offset, 1))
        if not rows or rows[0][1] != offset:
            return None
        return _record(topic, rows[0])

    def producer(self, *, linger_seconds: float = 0.0) -> SqliteProducer:
        """See `contracts.log.Log.producer`."""
        producer = SqliteProducer(
            self._shared,
            lock_seconds=self._lock_seconds,
            linger_seconds=linger_seconds,
            retention_check_seconds=self._retention_check_seconds,
        )
        self._open.add(producer)
        return producer

    def reader(self, topic: str, positions: Mapping[int, int]) -> PolledReader:
        """See `contracts.log.Log.reader`."""
        partitions = len(self.bounds(topic))
        for partition in positions:
            rules.check_partition(topic, partition, partitions)
        source = _SqliteSource(self._shared, topic, self._lock_seconds)
        reader = PolledReader(source, topic, positions, self._open.discard)
        self._open.add(reader)
        return reader

    def group_reader(self, topic: str, group: str) -> PolledGroupReader:
        """See `contracts.log.Log.group_reader`."""
        self.bounds(topic)
        membership = SqliteMembership(self._shared, group, topic, session_seconds=self._session_seconds, lock_seconds=self._lock_seconds)
        source = _SqliteSource(self._shared, topic, self._lock_seconds)
        reader = PolledGroupReader(source, topic, membership, _GROUP_CHECK_SECONDS, self._open.discard)
        self._open.add(reader)
        return reader

    def close(self) -> None:
        """Close this handle's readers and producers, then the file."""
        for opened in list(self._open):
            opened.close()
        with self._lock:
            self._connection.close()
