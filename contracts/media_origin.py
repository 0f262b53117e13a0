"""A replayed dead letter: where its original lay, and which of its items are meant (docs/formats/media_record.md, Replay).

    hw_origin         partition/offset of the original, in the same partition and before the replay
    hw_items          the items to index again, such as ``3,7-9``; all where it is not there
    hw_timestamp_ms   the original's Kafka timestamp

A replay is read as if it lay where its original lay: an id or time that the producer did not give comes out as it did the first time.

Takes: log records. Gives: items that know their origin. Owns: the three headers, and the writing of item numbers.
Never: decides which version of an id is newer (`contracts.item.VersionOrder` does).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from contracts.collection import CollectionRecord
from contracts.errors import RecordError
from contracts.log import Headers, LogRecord
from contracts.media_item import MediaItem, RecordLimits, RejectedItem, produced_at
from contracts.media_record import id_outside_value, read_media_records

ORIGIN_HEADER, ITEMS_HEADER, TIMESTAMP_HEADER = "hw_origin", "hw_items", "hw_timestamp_ms"
REPLAY_HEADERS = (ORIGIN_HEADER, ITEMS_HEADER, TIMESTAMP_HEADER)
REPLAY_HEADERS_BYTES = 1024
"""What our media topics take above ``max_record_bytes``, so that a record of that size can be replayed; more only with hundreds of runs of items."""
_PLACE = re.compile(rb"([0-9]{1,10})/([0-9]{1,19})")
_RUN = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")
_MILLISECONDS = re.compile(rb"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class SupersededItem:
    """An item of a replayed record that the replay does not mean: what became of it stands at the original's offset."""

    offset: int
    item: int
    produced_at_us: int


ReadItem = MediaItem | RejectedItem | SupersededItem


@dataclass(frozen=True, slots=True)
class Items:
    """Numbers of items as ascending, half-open runs."""

    runs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Items:
        """Runs of these numbers."""
        runs: list[tuple[int, int]] = []
        for number in sorted(set(numbers)):
            if runs and runs[-1][1] == number:
                runs[-1] = (runs[-1][0], number + 1)
            else:
                runs.append((number, number + 1))
        return cls(tuple(runs))

    @classmethod
    def parse(cls, text: str) -> Items:
        """Read what `str` writes; ValueError where it is not that, or not ascending."""
        runs: list[tuple[int, int]] = []
        for part in text.split(","):
            match = _RUN.fullmatch(part.strip())
            if not match:
                raise ValueError(f"{part[:20]!r} is neither a number nor two with a dash between them")
            start, last = int(match[1]), int(match[2] or match[1])
            if last < start or (runs and start < runs[-1][1]):
                raise ValueError("the numbers do not ascend")
            runs.append((start, last + 1))
        return cls(tuple(runs))

    def __contains__(self, number: object) -> bool:
        at = bisect_right(self.runs, (number, 2**63)) - 1
        return at >= 0 and isinstance(number, int) and self.runs[at][0] <= number < self.runs[at][1]

    def __str__(self) -> str:
        return ",".join(str(start) if end == start + 1 else f"{start}-{end - 1}" for start, end in self.runs)


@dataclass(frozen=True, slots=True)
class MediaOrigin:
    """What the headers of a replay say: the original's offset in this partition, the items meant (None: all), the original's timestamp."""

    offset: int
    items: Items | None = None
    timestamp_ms: int | None = None


def read_origin(record: LogRecord) -> MediaOrigin | None:
    """Origin of a record, or None where it is no replay.

    Raises
    ------
    RecordError
        ``bad_origin``: not partition/offset, another partition, not before the record itself, or items that cannot be read.
    """
    found = record.header(ORIGIN_HEADER)
    if found is None:
        return None
    place = _PLACE.fullmatch(found)
    if not place:
        raise RecordError("bad_origin", f"hw_origin {found[:40]!r} is not partition/offset")
    partition, offset = int(place[1]), int(place[2])
    if partition != record.partition or offset >= record.offset:
        raise RecordError("bad_origin", f"hw_origin {partition}/{offset} does not lie before {record.partition}/{record.offset} in its partition")
    items = record.header(ITEMS_HEADER)
    timestamp = record.header(TIMESTAMP_HEADER)
    try:
        chosen = None if items is None else Items.parse(items.decode("ascii"))
    except ValueError as error:
        raise RecordError("bad_origin", f"hw_items: {error}") from None
    is_time = timestamp is not None and _MILLISECONDS.fullmatch(timestamp)
    return MediaOrigin(offset, chosen, int(timestamp) if timestamp is not None and is_time else None)


def replay_headers(record: LogRecord, origin: MediaOrigin) -> Headers:
    """Headers of the replay of a record: its own, without those of an earlier replay, then where it comes from.

    One with a null value cannot be sent (`contracts.log.ReadHeaders`) and is left out, which means the same to every reader of ours.
    """
    kept = tuple((name, value) for name, value in record.headers if name not in REPLAY_HEADERS and value is not None)
    ours = [(ORIGIN_HEADER, f"{record.partition}/{origin.offset}")]
    if origin.items is not None:
        ours.append((ITEMS_HEADER, str(origin.items)))
    if origin.timestamp_ms is not None:
        ours.append((TIMESTAMP_HEADER, str(origin.timestamp_ms)))
    return (*kept, *((name, value.encode("ascii")) for name, value in ours))


def read_items(records: Sequence[LogRecord], collection: CollectionRecord, limits: RecordLimits) -> list[list[ReadItem]]:
    """Items of each record as `contracts.media_record.read_media_records` gives them, replays placed where their originals lay."""
    origins: list[MediaOrigin | None] = []
    refused: dict[int, RejectedItem] = {}
    for at, record in enumerate(records):
        try:
            origins.append(read_origin(record))
        except RecordError as error:
            origins.append(None)
            refused[at] = RejectedItem(record.offset, 0, error.reason, error.message, produced_at(record))
    placed = [record if origin is None else _at_origin(record, origin) for record, origin in zip(records, origins, strict=True)]
    found = iter(read_media_records([record for at, record in enumerate(placed) if at not in refused], collection, limits))
    out: list[list[ReadItem]] = []
    for at, (record, origin) in enumerate(zip(records, origins, strict=True)):
        items = [refused[at]] if at in refused else next(found)
        out.append([*items] if origin is None else [_from_origin(item, record, origin) for item in items])
    return out


def rejected_unread(record: LogRecord, collection: CollectionRecord, reason: str, message: str) -> RejectedItem:
    """Rejection of a whole record whose value must not be read: its id by key and headers, its place that of its original."""
    rejected = RejectedItem(record.offset, 0, reason, message, produced_at(record), id_outside_value(record, collection))
    try:
        origin = read_origin(record)
    except RecordError:
        return replace(rejected, id=None)  # a replay with a false origin removes nothing
    if origin is None:
        return rejected
    if origin.items is not None and 0 not in origin.items:
        rejected.id = None  # its one item is not meant
    return replace(rejected, origin_offset=origin.offset, origin_item=0)


def _at_origin(record: LogRecord, origin: MediaOrigin) -> LogRecord:
    return replace(record, offset=origin.offset, timestamp_ms=record.timestamp_ms if origin.timestamp_ms is None else origin.timestamp_ms)


def _from_origin(item: MediaItem | RejectedItem, record: LogRecord, origin: MediaOrigin) -> ReadItem:
    produced_at_us = produced_at(record)
    if origin.items is not None and item.item not in origin.items:
        return SupersededItem(record.offset, item.item, produced_at_us)
    return replace(item, offset=record.offset, produced_at_us=produced_at_us, origin_offset=origin.offset, origin_item=item.item)
