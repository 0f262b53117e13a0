"""The log in memory: the same promises as Kafka's within one process, for tests and trials.

Takes: records. Gives: `MemoryLog`, an implementation of `contracts.log.Log`; ``memory://NAME`` is one cluster per name and process.
Owns: nothing that outlives the process. Never: touches a disk or a socket.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from backends import log_rules as rules
from backends.polled_reader import PolledGroupReader, PolledReader
from contracts.log import CommittedOffset, LogRecord, OffsetBounds, RecordPosition, TopicInfo, TopicSpec

_RETENTION_CHECK_SECONDS = 1.0


@dataclass
class _Partition:
    start_offset: int = 0
    records: list[LogRecord] = field(default_factory=list)

    @property
    def next_offset(self) -> int:
        return self.start_offset + len(self.records)

    def truncate(self, next_offset: int) -> None:
        dropped = max(0, next_offset - self.start_offset)
        del self.records[:dropped]
        self.start_offset += dropped


@dataclass
class _Topic:
    spec: TopicSpec
    info: TopicInfo
    partitions: list[_Partition]
    next_retention_check: float = 0.0


class MemoryCluster:
    """What the handles of one ``memory://NAME`` share: topics, groups, and the condition that wakes readers."""

    def __init__(self) -> None:
        self.cluster_id = rules.new_identity()
        self.changed = threading.Condition(threading.RLock())
        self.changes = 0
        self.topics: dict[str, _Topic] = {}
        self.members: dict[tuple[str, str], set[str]] = {}
        self.committed: dict[tuple[str, str, int], CommittedOffset] = {}

    def notify(self) -> None:
        """Wake every reader; called with the condition held."""
        self.changes += 1
        self.changed.notify_all()

    def topic(self, name: str) -> _Topic:
        """The topic, or NotFoundError; called with the condition held."""
        if name not in self.topics:
            raise rules.missing_topic(name)
        return self.topics[name]

    def append(self, record: LogRecord) -> RecordPosition:
        """Append a record (its offset is set here) and wake readers."""
        with self.changed:
            topic = self.topic(record.topic)
            limit = topic.spec.max_record_bytes
            rules.check_record(record.topic, record.partition, topic.info.partitions, record.key, record.value, record.headers, limit)
            partition = topic.partitions[record.partition]
            offset = partition.next_offset
            partition.records.append(LogRecord(record.topic, record.partition, offset, record.timestamp_ms, record.key, record.value, record.headers))
            self._expire(topic)
            self.notify()
            return RecordPosition(record.topic, record.partition, offset)

    def _expire(self, topic: _Topic) -> None:
        if topic.spec.retention_ms < 0 or time.monotonic() < topic.next_retention_check:
            return
        topic.next_retention_check = time.monotonic() + _RETENTION_CHECK_SECONDS
        oldest_ms = int(time.time() * 1000) - topic.spec.retention_ms
        for partition in topic.partitions:
            fresh = next((r.offset for r in partition.records if r.timestamp_ms >= oldest_ms), partition.next_offset)
            partition.truncate(fresh)


_clusters: dict[str, MemoryCluster] = {}
_clusters_lock = threading.Lock()


def memory_cluster(name: str) -> MemoryCluster:
    """The process's cluster of that name; an empty name is a new, private one."""
    if not name:
        return MemoryCluster()
    with _clusters_lock:
        return _clusters.setdefault(name, MemoryCluster())


class _MemoryProducer:
    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self._closed = False

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
        if self._closed:
            raise rules.closed("producer")
        now_ms = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
        future: Future[RecordPosition] = Future()
        future.set_result(self._cluster.append(LogRecord(topic, partition, -1, now_ms, key, value, tuple(headers))))
        return future

    def flush(self, timeout_seconds: float) -> None:
        """Nothing to wait for: a send has ended when it returns."""

    def close(self) -> None:
        self._closed = True


class _MemorySource:
    def __init__(self, cluster: MemoryCluster, topic: str) -> None:
        self._cluster = cluster
        self._topic = topic

    def bounds(self) -> dict[int, OffsetBounds]:
        with self._cluster.changed:
            topic = self._cluster.topics.get(self._topic)
            parts = topic.partitions if topic else []
            return {number: OffsetBounds(p.start_offset, p.next_offset) for number, p in enumerate(parts)}

    def fetch(self, partition: int, offset: int, max_records: int, max_bytes: int) -> list[LogRecord]:
        with self._cluster.changed:
            topic = self._cluster.topics.get(self._topic)
            if topic is None:
                return []
            held = topic.partitions[partition]
            first = max(0, offset - held.start_offset)
            found: list[LogRecord] = []
            for record in held.records[first : first + max_records]:
                max_bytes -= record.size_bytes
                if found and max_bytes < 0:
                    break
                found.append(record)
            return found

    def changes(self) -> int:
        with self._cluster.changed:
            return self._cluster.changes

    def wait(self, seen: int, timeout_seconds: float) -> None:
        with self._cluster.changed:
            self._cluster.changed.wait_for(lambda: self._cluster.changes != seen, min(timeout_seconds, threading.TIMEOUT_MAX))

    def close(self) -> None:
        with self._cluster.changed:
            self._cluster.notify()  # a poll in another thread sees at once that its reader is closed


class _MemoryMembership:
    def __init__(self, cluster: MemoryCluster, group: str, topic: str) -> None:
        self.member = rules.new_identity()
        self._cluster = cluster
        self._group = (group, topic)
        with cluster.changed:
            cluster.members.setdefault(self._group, set()).add(self.member)
            cluster.notify()

    def members(self) -> Sequence[str]:
        with self._cluster.changed:
            return sorted(self._cluster.members.get(self._group, ()))

    def commit(self, partition: int, committed: CommittedOffset) -> None:
        with self._cluster.changed:
            self._cluster.committed[(*self._group, partition)] = committed

    def committed(self, partition: int) -> CommittedOffset | None:
        with self._cluster.changed:
            return self._cluster.committed.get((*self._group, partition))

    def leave(self) -> None:
        with self._cluster.changed:
            self._cluster.members.get(self._group, set()).discard(self.member)
            self._cluster.notify()


class MemoryLog:
    """`contracts.log.Log` in memory.

    Parameters
    ----------
    name : str
        Handles of the same name in one process see the same topics; an empty name is a private log.
    """

    def __init__(self, name: str = "") -> None:
        self._cluster = memory_cluster(name)
        self._readers: set[PolledReader] = set()

    def cluster_id(self) -> str:
        """See `contracts.log.Log.cluster_id`."""
        return self._cluster.cluster_id

    def create_topic(self, spec: TopicSpec) -> TopicInfo:
        """See `contracts.log.Log.create_topic`."""
        rules.check_spec(spec)
        with self._cluster.changed:
            existing = self._cluster.topics.get(spec.name)
            if existing is not None:
                return rules.check_same_partitions(existing.info, spec)
            info = TopicInfo(spec.name, rules.new_identity(), spec.partitions, rules.topic_config(spec))
            self._cluster.topics[spec.name] = _Topic(spec, info, [_Partition() for _ in range(spec.partitions)])
            self._cluster.notify()
            return info

    def describe_topic(self, name: str) -> TopicInfo | None:
        """See `contracts.log.Log.describe_topic`."""
        with self._cluster.changed:
            topic = self._cluster.topics.get(name)
            return topic.info if topic else None

    def list_topics(self) -> Sequence[str]:
        """See `contracts.log.Log.list_topics`."""
        with self._cluster.changed:
            return sorted(self._cluster.topics)

    def delete_topic(self, name: str) -> None:
        """See `contracts.log.Log.delete_topic`."""
        with self._cluster.changed:
            self._cluster.topics.pop(name, None)
            self._cluster.committed = {where: value for where, value in self._cluster.committed.items() if where[1] != name}
            self._cluster.notify()

    def bounds(self, topic: str) -> dict[int, OffsetBounds]:
        """See `contracts.log.Log.bounds`."""
        held = _MemorySource(self._cluster, topic).bounds()
        if not held:
            raise rules.missing_topic(topic)
        return held

    def offsets_for_time(self, topic: str, timestamp_ms: int) -> dict[int, int]:
        """See `contracts.log.Log.offsets_for_time`."""
        with self._cluster.changed:
            parts = self._cluster.topic(topic).partitions
            return {
                number: next((record.offset for record in part.records if record.timestamp_ms >= timestamp_ms), part.next_offset)
                for number, part in enumerate(parts)
            }

    def truncate(self, topic: str, next_offsets: Mapping[int, int]) -> None:
        """See `contracts.log.Log.truncate`."""
        with self._cluster.changed:
            rules.check_truncate(topic, next_offsets, self.bounds(topic))
            for number, next_offset in next_offsets.items():
                self._cluster.topic(topic).partitions[number].truncate(next_offset)
            self._cluster.notify()

    def read_at(self, topic: str, partition: int, offset: int) -> LogRecord | None:
        """See `contracts.log.Log.read_at`."""
        with self._cluster.changed:
            rules.check_partition(topic, partition, self._cluster.topic(topic).info.partitions)
            found = _MemorySource(self._cluster, topic).fetch(partition, offset, 1, rules.MAX_POLL_BYTES)
        return found[0] if found and found[0].offset == offset else None

    def producer(self, *, linger_seconds: float = 0.0) -> _MemoryProducer:
        """See `contracts.log.Log.producer`; nothing lingers here."""
        return _MemoryProducer(self._cluster)

    def reader(self, topic: str, positions: Mapping[int, int]) -> PolledReader:
        """See `contracts.log.Log.reader`."""
        with self._cluster.changed:
            for partition in positions:
                rules.check_partition(topic, partition, self._cluster.topic(topic).info.partitions)
        return self._keep(PolledReader(_MemorySource(self._cluster, topic), topic, positions, self._readers.discard))

    def group_reader(self, topic: str, group: str) -> PolledGroupReader:
        """See `contracts.log.Log.group_reader`."""
        with self._cluster.changed:
            self._cluster.topic(topic)
        membership = _MemoryMembership(self._cluster, group, topic)
        reader = PolledGroupReader(_MemorySource(self._cluster, topic), topic, membership, 0.0, self._readers.discard)
        self._keep(reader)
        return reader

    def _keep(self, reader: PolledReader) -> PolledReader:
        self._readers.add(reader)
        return reader

    def close(self) -> None:
        """Close this handle's readers (they leave their groups); the topics stay with their name."""
        for reader in list(self._readers):
            reader.close()
