"""Dead letters: the original record, byte for byte, with why and where from (docs/formats/dead_letter.md).

Header names are those of Kafka Connect (`org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter`, `populateContextHeaders`), and as there
every value is a text in UTF-8, numbers in decimal. Connect leaves a name out that the record already has; here they always follow the original's
own headers, so that everything before the last ``__connect.errors.topic`` is the original.

Takes: rejections of one record; dead-letter records. Gives: one dead letter per record and index; what a dead letter says. Owns: the header names.
Never: is the verdict: the batch is; a dead letter is a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from contracts.collection import CollectionRecord
from contracts.log import Headers, LogRecord
from contracts.media_origin import Items
from indexer.slices import Rejection

_CONNECT = "__connect.errors."
_FIRST = _CONNECT + "topic"
MAX_MESSAGE_CHARACTERS = 1000
MAX_KEY_BYTES = 1024
"""Longest key that stays in a dead letter whose value and headers are left out."""


@dataclass(frozen=True, slots=True)
class DeadLetterRecord:
    """Key, value and headers of a dead letter, as they are produced."""

    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    reasons: tuple[str, ...]


def dead_letter_record(collection: CollectionRecord, index: str, rejections: Sequence[Rejection], leave_out: bool = False) -> DeadLetterRecord:
    """The dead letter of one record.

    Parameters
    ----------
    collection, index
        Who rejected it.
    rejections : sequence of Rejection
        Of items of one record, at least one.
    leave_out : bool
        Without the original's value and headers (and without a long key): it is too large for the topic. So is one whose bytes cannot be had.
    """
    record = rejections[0].record
    leave_out = leave_out or record.unreadable is not None
    reasons = tuple(sorted({rejection.reason for rejection in rejections}))
    more = f" (and {len(rejections) - 1} more items)" if len(rejections) > 1 else ""
    ours = [
        (_FIRST, record.topic),
        (_CONNECT + "partition", str(record.partition)),
        (_CONNECT + "offset", str(record.offset)),
        (_CONNECT + "connector.name", f"headwater.{collection.name}"),
        (_CONNECT + "task.id", str(record.partition)),
        (_CONNECT + "stage", "VALUE_CONVERTER"),
        (_CONNECT + "class.name", "indexer.decode.Decoder"),
        (_CONNECT + "exception.class.name", "contracts.errors.RecordError"),
        (_CONNECT + "exception.message", rejections[0].message[:MAX_MESSAGE_CHARACTERS] + more),
        ("hw_index", index),
        ("hw_incarnation", collection.incarnation),
        ("hw_reason", ",".join(reasons)),
        ("hw_items", str(Items.of(rejection.item for rejection in rejections))),
        ("hw_timestamp_ms", str(record.timestamp_ms)),
    ]
    if all(rejection.partial for rejection in rejections):
        ours.append(("hw_partial", "1"))
    if record.value is None and record.unreadable is None:
        ours.append(("hw_null_value", "1"))
    if leave_out:
        ours.append(("hw_left_out_bytes", str(record.size_bytes if record.unreadable is None else record.unreadable.size_bytes)))
    nulls = Items.of(at for at, (_, value) in enumerate(record.headers) if value is None)
    if nulls.runs and not leave_out:
        ours.append(("hw_null_headers", str(nulls)))
    headers = tuple((name, value.encode("utf-8", "replace")) for name, value in ours)
    own = ((name, value or b"") for name, value in record.headers)
    key = record.key if not leave_out or len(record.key or b"") <= MAX_KEY_BYTES else None
    value = b"" if leave_out or (key is None and record.value is None) else record.value  # Kafka clients refuse a record with neither
    return DeadLetterRecord(record.partition, key, value, headers if leave_out else (*own, *headers), reasons)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What a record of the dead-letter topic says.

    `original` is the rejected record as it lay in the media topic, None where it was left out (`size_bytes` is its size all the same); `written_ms`
    is when the dead letter was written, milliseconds since 1970.
    """

    topic: str
    partition: int
    offset: int
    index: str
    incarnation: str
    reasons: tuple[str, ...]
    message: str
    items: Items
    is_partial: bool
    timestamp_ms: int
    size_bytes: int
    written_ms: int
    original: LogRecord | None
    stored_offset: int

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset of the original in the media topic."""
        return self.partition, self.offset


def read_dead_letter(record: LogRecord) -> DeadLetter | None:
    """Read a record of a dead-letter topic; None where it is none of ours (Kafka Connect writes such topics too)."""
    at = next((at for at in range(len(record.headers) - 1, -1, -1) if record.headers[at][0] == _FIRST), -1)
    if at < 0:
        return None
    said = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers[at:]}
    try:
        offset, timestamp_ms = int(said[_CONNECT + "offset"]), int(said["hw_timestamp_ms"])
        left_out = int(said["hw_left_out_bytes"]) if "hw_left_out_bytes" in said else None
        partition, topic = int(said[_CONNECT + "partition"]), said[_FIRST]
        if partition != record.partition:  # ours lie in the partition of their original
            return None
        value = None if "hw_null_value" in said else record.value
        nulls = Items.parse(said["hw_null_headers"]) if "hw_null_headers" in said else Items(())
        headers = tuple((name, None if number in nulls else sent) for number, (name, sent) in enumerate(record.headers[:at]))
        original = LogRecord(topic, partition, offset, timestamp_ms, record.key, value, headers)
        return DeadLetter(
            topic=topic,
            partition=partition,
            offset=offset,
            index=said["hw_index"],
            incarnation=said["hw_incarnation"],
            reasons=tuple(said["hw_reason"].split(",")),
            message=said[_CONNECT + "exception.message"],
            items=Items.parse(said["hw_items"]),
            is_partial="hw_partial" in said,
            timestamp_ms=timestamp_ms,
            size_bytes=original.size_bytes if left_out is None else left_out,
            written_ms=record.timestamp_ms,
            original=original if left_out is None else None,
            stored_offset=record.offset,
        )
    except (KeyError, ValueError):
        return None
