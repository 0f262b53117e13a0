"""What all three logs hold in common: names, limits, the share of a group member, and the errors' words.

Takes: names, sizes, member lists. Gives: checked values, `AssignmentChanges`, errors that read the same from every log.
Owns: the legal topic name, the deterministic assignment. Never: does I/O.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence

from contracts.errors import DataLossError, NotFoundError, SettingsError
from contracts.log import Assignment, LogRecord, OffsetBounds, ReadHeaders, TopicInfo, TopicSpec

MAX_POLL_BYTES = 64 * 1024 * 1024
"""One poll of a local log returns at most this many bytes (and always at least one record), as Kafka's fetch does."""

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")  # Kafka's rule, so that a name that works embedded works on a cluster


def new_identity() -> str:
    """A random identity of a topic or cluster, written as a UUID (KIP-516 uses UUIDs for topics)."""
    return str(uuid.uuid4())


def check_spec(spec: TopicSpec) -> None:
    """Refuse a topic that Kafka would refuse.

    Raises
    ------
    SettingsError
        The name has other characters than letters, digits, dot, dash and underscore, or a number is out of range.
    """
    if not _TOPIC_NAME.fullmatch(spec.name) or spec.name in (".", ".."):
        raise SettingsError(f"topic name {spec.name[:60]!r} is not allowed", hint="use at most 249 letters, digits, dots, dashes and underscores")
    if spec.partitions < 1:
        raise SettingsError(f"topic {spec.name}: {spec.partitions} partitions", hint="ask for at least 1 partition")
    if spec.retention_ms < -1 or spec.max_record_bytes < 1:
        raise SettingsError(f"topic {spec.name}: retention or record limit is negative", hint="use -1 to keep records for ever")


def check_same_partitions(existing: TopicInfo, spec: TopicSpec) -> TopicInfo:
    """Return `existing` when it has the partitions that `spec` asks for; SettingsError otherwise."""
    if existing.partitions != spec.partitions:
        raise SettingsError(
            f"topic {spec.name} exists with {existing.partitions} partitions, not {spec.partitions}",
            hint=f"ask for {existing.partitions} partitions or choose another name",
        )
    return existing


def check_record(topic: str, partition: int, partitions: int, key: bytes | None, value: bytes | None, headers: ReadHeaders, max_bytes: int) -> None:
    """Refuse, before it is sent, a record that the topic cannot take (SettingsError)."""
    check_partition(topic, partition, partitions)
    if key is None and value is None:
        raise SettingsError(f"record for topic {topic} has neither key nor value", hint="give a tombstone its key")
    size_bytes = LogRecord(topic, partition, -1, 0, key, value, headers).size_bytes
    if size_bytes > max_bytes:
        raise SettingsError(
            f"record of {size_bytes} bytes is larger than the {max_bytes} bytes that topic {topic} takes",
            hint="store the media and send hw_payload_ref, or raise HEADWATER_MAX_RECORD_BYTES and the topic's max.message.bytes",
        )


def check_partition(topic: str, partition: int, partitions: int) -> None:
    """Refuse a partition number that the topic does not have (SettingsError)."""
    if not 0 <= partition < partitions:
        raise SettingsError(f"topic {topic} has no partition {partition}", hint=f"use partitions 0 to {partitions - 1}")


def check_truncate(topic: str, next_offsets: Mapping[int, int], bounds: Mapping[int, OffsetBounds]) -> None:
    """Refuse to truncate above what was ever written (SettingsError): that is always a mix-up of topics."""
    for partition, offset in next_offsets.items():
        check_partition(topic, partition, len(bounds))
        if not 0 <= offset <= bounds[partition].next_offset:
            raise SettingsError(
                f"cannot truncate {topic}/{partition} at offset {offset}: its next offset is {bounds[partition].next_offset}",
                hint="give an offset out of this topic",
            )


def missing_topic(name: str) -> NotFoundError:
    """The error for a topic that is not there."""
    return NotFoundError(f"topic {name} does not exist", hint="create the collection, or check log_url and source_topic")


def out_of_range(topic: str, partition: int, offset: int, bounds: OffsetBounds | None = None) -> DataLossError:
    """The error for a position that the log does not hold; the reader stays where it is."""
    held = "" if bounds is None else f"; it holds [{bounds.start_offset}, {bounds.next_offset})"
    return DataLossError(
        f"offset {offset} of {topic}/{partition} is outside what the log holds{held}",
        hint="records were deleted before they were read, or the topic was made again; see docs/errors/data_loss.md",
    )


def not_assigned(topic: str, partition: int) -> SettingsError:
    """The error for touching a partition that a reader does not read."""
    return SettingsError(f"this reader does not read {topic}/{partition}", hint="open the reader with that partition")


def closed(what: str) -> SettingsError:
    """The error for using what was closed."""
    return SettingsError(f"this {what} is closed", hint="open a new one")


def topic_config(spec: TopicSpec) -> dict[str, str]:
    """The topic's settings under Kafka's names."""
    return {"cleanup.policy": "delete", "retention.ms": str(spec.retention_ms), "max.message.bytes": str(spec.max_record_bytes)}


def share_of(member: str, members: Sequence[str], partitions: int) -> frozenset[int]:
    """Partitions of one member: with members sorted, partition p goes to member p mod n; none for a stranger.

    Examples
    --------
    >>> sorted(share_of("b", ["b", "a"], 5))
    [1, 3]
    """
    order = sorted(members)
    if member not in order:
        return frozenset()
    return frozenset(range(order.index(member), partitions, len(order)))


class AssignmentChanges:
    """Collects what a group assigned and revoked until the caller takes it; safe between threads.

    A partition that was revoked and assigned again shows up on both sides: stop it first, then start it. One that
    was assigned and revoked before anyone asked shows up on neither.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._assigned: set[int] = set()
        self._revoked: set[int] = set()

    def assign(self, partitions: Iterable[int]) -> None:
        """Note newly assigned partitions."""
        with self._lock:
            self._assigned.update(partitions)

    def revoke(self, partitions: Iterable[int]) -> None:
        """Note revoked partitions."""
        with self._lock:
            gone = set(partitions)
            self._revoked |= gone - self._assigned
            self._assigned -= gone

    def take(self) -> Assignment | None:
        """What changed since the last call, or None."""
        with self._lock:
            if not self._assigned and not self._revoked:
                return None
            changed = Assignment(assigned=frozenset(self._assigned), revoked=frozenset(self._revoked))
            self._assigned.clear()
            self._revoked.clear()
            return changed
