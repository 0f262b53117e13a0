"""The log: ordered, partitioned, durable records (Kafka's model, smaller).

Takes: records. Gives: offsets, readers, group assignment. Owns: the words topic, partition, offset.
Never: keeps a reader's position for us; positions come from manifests and chains (ADR 0001).

Implementations: `backends.kafka_log`, `backends.sqlite_log`, `backends.memory_log`; one test body holds
them equal (`tests/backends/test_log_contract.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

SAFE_REPLICATION = 3
SAFE_IN_SYNC = 2
"""Of so many replicas so many must have a record before it is acknowledged: it outlives the loss of a broker, and so does writing."""

Headers = tuple[tuple[str, bytes], ...]
"""Headers that are sent; a name may come twice."""

ReadHeaders = tuple[tuple[str, bytes | None], ...]
"""Headers of a record: another client may have sent a null value, which is not the empty one. Ours cannot (kafka-python refuses it)."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why nothing but the place and the time of a record can be had.

    `reason` is one of `contracts.errors.REJECT_REASONS`; `size_bytes` is what the log holds of it, together with the records beside it.
    """

    reason: str
    message: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record as it lies in the log. `value` is None for a tombstone (a delete), and where the record is `unreadable`."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: ReadHeaders = ()
    unreadable: Unreadable | None = None

    def header(self, name: str) -> bytes | None:
        """Value of the last header of that name; None where there is none, or the value is null."""
        return next((value for key, value in reversed(self.headers) if key == name), None)

    @property
    def size_bytes(self) -> int:
        """Bytes of key, value and headers; what queues and fetch limits count."""
        headers = sum(len(k) + len(v or b"") for k, v in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


@dataclass(frozen=True, slots=True)
class RecordPosition:
    """Where an acknowledged record landed."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class OffsetBounds:
    """Half-open interval ``[start_offset, next_offset)`` of what a partition holds.

    Within one `leader_epoch` a partition only grows: what was acknowledged may be gone only when it has changed. -1 where the log cannot tell.
    """

    start_offset: int
    next_offset: int
    leader_epoch: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic to create: ``retention_ms`` -1 keeps records until they are deleted by `truncate`."""

    name: str
    partitions: int
    retention_ms: int
    max_record_bytes: int = 32 * 1024 * 1024
    replication: int = -1  # -1: the cluster's default


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic that exists. `topic_id` differs when a topic was deleted and made again (KIP-516).

    `replication` and `in_sync` are the fewest replicas, and replicas in sync, that any of its partitions has.
    """

    name: str
    topic_id: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)
    replication: int = 1
    in_sync: int = 1


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    """A consumer group's advisory position with its metadata string."""

    offset: int
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What changed in a group member's assignment since it was last asked."""

    assigned: frozenset[int]
    revoked: frozenset[int]


class LogProducer(Protocol):
    """Appends records; one producer keeps the order of its own sends within a partition."""

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
        """Append one record; the future ends when it is acknowledged by all in-sync replicas.

        Raises
        ------
        SettingsError
            The record is larger than the topic takes (at once, not in the future).
        UnavailableError
            Through the future: not stored, stored, or stored later; the caller re-reads to learn which.
        """
        ...

    def flush(self, timeout_seconds: float) -> None:
        """Wait until every send so far has ended; UnavailableError when time is over."""
        ...

    def close(self) -> None:
        """Flush for a short while and let go of connections."""
        ...


class LogReader(Protocol):
    """Reads chosen partitions of one topic from positions that the caller gives."""

    def poll(self, timeout_seconds: float, max_records: int = 500) -> list[LogRecord]:
        """Return records, in offset order within each partition; empty when none came in time.

        Raises
        ------
        DataLossError
            The position of a partition lies outside what the log holds; never jumps by itself.
        UnavailableError
            The log does not answer.
        """
        ...

    def seek(self, partition: int, offset: int) -> None:
        """Read `partition` from `offset` on (and start it, if it was assigned and waiting)."""
        ...

    def pause(self, partitions: Iterable[int]) -> None:
        """Return nothing of these partitions until `resume`; membership and position stay."""
        ...

    def resume(self, partitions: Iterable[int]) -> None:
        """Undo `pause`."""
        ...

    def position(self, partition: int) -> int:
        """Offset of the next record that `poll` returns for `partition`."""
        ...

    def close(self) -> None:
        """Leave the group, if any, and let go of connections."""
        ...


class GroupReader(LogReader, Protocol):
    """A reader whose partitions are given out by a consumer group.

    A newly assigned partition returns nothing until `seek` is called on it: the position comes from the
    manifest, not from the group.
    """

    def take_assignment(self) -> Assignment | None:
        """What was assigned and revoked since the last call (None: no change). `poll` drives membership."""
        ...

    def commit(self, partition: int, committed: CommittedOffset, *, is_awaited: bool = False) -> None:
        """Store an advisory position, best effort; never trusted on start.

        With `is_awaited` it returns when the position is stored; UnavailableError where it is not.
        """
        ...

    def committed(self, partition: int) -> CommittedOffset | None:
        """The group's stored advisory position."""
        ...


class Log(Protocol):
    """A cluster of topics."""

    def cluster_id(self) -> str:
        """Identity of the cluster; stored in manifests."""
        ...

    def create_topic(self, spec: TopicSpec) -> TopicInfo:
        """Create the topic, or return the one that exists.

        Raises
        ------
        SettingsError
            It exists with another number of partitions.
        """
        ...

    def describe_topic(self, name: str) -> TopicInfo | None:
        """The topic's identity and partitions, or None."""
        ...

    def list_topics(self) -> Sequence[str]:
        """Names of all topics that are not internal to the log."""
        ...

    def delete_topic(self, name: str) -> None:
        """Delete the topic; no error when it does not exist."""
        ...

    def bounds(self, topic: str) -> dict[int, OffsetBounds]:
        """First and next offset of every partition.

        Raises
        ------
        NotFoundError
            No such topic.
        """
        ...

    def offsets_for_time(self, topic: str, timestamp_ms: int) -> dict[int, int]:
        """Per partition, the first offset whose timestamp is at or after the time; else the next offset."""
        ...

    def truncate(self, topic: str, next_offsets: Mapping[int, int]) -> None:
        """Delete records below the given offsets."""
        ...

    def read_at(self, topic: str, partition: int, offset: int) -> LogRecord | None:
        """One record, or None when it is not (or no longer) there."""
        ...

    def producer(self, *, linger_seconds: float = 0.0) -> LogProducer:
        """A new idempotent producer."""
        ...

    def reader(self, topic: str, positions: Mapping[int, int]) -> LogReader:
        """A reader of those partitions, from those offsets; no group."""
        ...

    def group_reader(self, topic: str, group: str) -> GroupReader:
        """A member of a consumer group on one topic."""
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...
