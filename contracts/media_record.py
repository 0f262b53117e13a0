"""The media record: what producers put on a media topic, and the items that it asks for (docs/formats/media_record.md).

    plain, CloudEvents, parts   one item (`contracts.media_envelope`)
    bucket notifications        an item per entry, on a topic declared as such (`contracts.media_notification`)
    Arrow rows                  many items with the producers' own vectors (`contracts.media_rows`)
    null value                  delete
    `hw_op: patch`              a JSON object that changes attributes (`contracts.media_patch`)

Takes: a log record and the collection. Gives: items, each wanted or rejected with its reason. Owns: the order of ids.
Never: decodes a picture, raises for a bad record, or lets one bad row reject its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from contracts import canonical_json
from contracts.collection import CollectionRecord
from contracts.errors import RecordError
from contracts.log import LogRecord
from contracts.media_envelope import ARROW_TYPE, CLOUDEVENT_TYPE, PARTS_TYPE, Envelope, content_type_of, open_envelope
from contracts.media_item import (
    PICTURE_TYPES,
    TEXT_TYPE,
    MediaItem,
    RecordLimits,
    RejectedItem,
    check_id,
    default_id,
    event_time,
    fill_item,
    json_acl,
    json_attributes,
    json_path,
    picture_type,
    produced_at,
    utf8,
)
from contracts.media_notification import read_notification
from contracts.media_patch import PATCH_TYPES, checked_patch
from contracts.partitioner import partition_of

__all__ = [
    "ARROW_TYPE",
    "CLOUDEVENT_TYPE",
    "PARTS_TYPE",
    "PICTURE_TYPES",
    "TEXT_TYPE",
    "MediaItem",
    "RecordLimits",
    "RejectedItem",
    "check_id",
    "id_outside_value",
    "picture_type",
    "read_media_record",
    "read_media_records",
]

MAX_HEADERS = 1000
_IDS_INSIDE = (CLOUDEVENT_TYPE, PARTS_TYPE, ARROW_TYPE)
"""Content types whose values tell ids, or may hold rows that do."""

_Items = list[MediaItem | RejectedItem]


def read_media_record(record: LogRecord, collection: CollectionRecord, limits: RecordLimits) -> list[MediaItem | RejectedItem]:
    """Items of one record, in item order; never raises for what the record holds."""
    return read_media_records([record], collection, limits)[0]


def read_media_records(records: Sequence[LogRecord], collection: CollectionRecord, limits: RecordLimits) -> list[list[MediaItem | RejectedItem]]:
    """Items of each record, as `read_media_record` gives them; Arrow records are read together, which is what makes small ones cheap."""
    out: list[_Items] = [[] for _ in records]
    rows: dict[int, LogRecord] = {}
    for at, record in enumerate(records):
        try:
            found = _read_one(record, collection, limits)
        except RecordError as error:
            found = [RejectedItem(record.offset, 0, error.reason, error.message, produced_at(record))]
        if isinstance(found, LogRecord):
            rows[at] = found
        else:
            out[at] = found
    if rows:
        from contracts.media_rows import read_rows  # the only form that needs Arrow tables

        read = read_rows(list(rows.values()), collection, limits)
        for at, items in zip(rows, read, strict=True):
            out[at] = items
    return out if collection.partitioner == "producer" else [_placed(record, items, collection) for record, items in zip(records, out, strict=True)]


def _read_one(record: LogRecord, collection: CollectionRecord, limits: RecordLimits) -> _Items | LogRecord:
    """Items of a record of any form but Arrow, for which it gives the record whose value is the Arrow stream."""
    if record.unreadable is not None:  # no delete, though its value is null
        raise RecordError(record.unreadable.reason, record.unreadable.message)
    if len(record.headers) > MAX_HEADERS:
        raise RecordError("bad_envelope", f"{len(record.headers)} headers, more than {MAX_HEADERS}")
    if record.header("hw_op") == b"patch":
        return [_patch_item(record, collection)]
    if record.value is None:
        produced_at_us = produced_at(record)
        return [MediaItem(record.offset, 0, _named_id(record, collection, "a delete"), produced_at_us, produced_at_us, is_delete=True)]
    if collection.notifications:
        return read_notification(record, collection, limits)
    operation = record.header("hw_op")
    if operation not in (None, b"upsert"):
        raise RecordError("bad_envelope", f"hw_op {operation[:40]!r} is not known" if operation else "hw_op is empty")
    envelope = open_envelope(record, collection)
    if envelope.rows is not None:
        return record if envelope.rows is record.value else replace(record, value=envelope.rows)
    return [_single_item(record, envelope, collection, limits)]


def _placed(record: LogRecord, items: _Items, collection: CollectionRecord) -> _Items:
    """Items whose ids the collection's partitioner puts into this partition; the others are rejected (an id of our own is always at home)."""
    out: _Items = []
    for item in items:
        if isinstance(item, MediaItem) and item.id != default_id(record, item.item):
            home = _home(record, item.id, collection)
            if home != record.partition:
                message = f"the id belongs in partition {home} by {collection.partitioner}, the record lies in {record.partition}"
                out.append(RejectedItem(item.offset, item.item, "wrong_partition", message, item.produced_at_us, item.id))
                continue
        out.append(item)
    return out


def _home(record: LogRecord, item_id: str, collection: CollectionRecord) -> int:
    """Partition in which the id belongs; under `producer` wherever the record lies."""
    if collection.partitioner == "producer":
        return record.partition
    return partition_of(collection.partitioner, item_id.encode("utf-8"), collection.partitions)


def id_outside_value(record: LogRecord, collection: CollectionRecord) -> str | None:
    """Id of the record's item by key and headers alone; None where only the value can tell it, or where it is not one to act on here."""
    is_medium = record.value is not None and record.header("hw_op") != b"patch"  # a delete or patch has no id in its value
    if (record.value and collection.id_from.startswith("json:")) or (
        is_medium and (collection.notifications or content_type_of(record) in _IDS_INSIDE)
    ):
        return None
    try:
        has_id = not is_medium or record.key or record.header("ce_specversion") is not None or _configured_id(record, collection) is not None
        found = _named_id(record, collection, "the record") if has_id else None
    except RecordError:
        return None
    return found if found is not None and _home(record, found, collection) == record.partition else None


def _configured_id(record: LogRecord, collection: CollectionRecord) -> str | None:
    """Id by the collection's `id_from`, where that is a header or a JSON path."""
    if collection.id_from.startswith("header:"):
        found = record.header(collection.id_from.removeprefix("header:"))
        return None if found is None else utf8(found, "bad_id", collection.id_from)
    if collection.id_from.startswith("json:") and record.value:
        try:
            value = canonical_json.load(record.value)
        except ValueError:
            return None
        return json_path(value, collection.id_from.removeprefix("json:"))
    return None


def _named_id(record: LogRecord, collection: CollectionRecord, what: str) -> str:
    found = _configured_id(record, collection)
    if found is None and record.key:
        found = utf8(record.key, "bad_id", "the key")
    if found is None and (event_id := record.header("ce_id")) is not None:
        found = utf8(event_id, "bad_id", "ce_id")
    if found is None:
        raise RecordError("missing_id", f"{what} needs an id: a key, ce_id, or the collection's id_from")
    return check_id(found)


def _patch_item(record: LogRecord, collection: CollectionRecord) -> MediaItem | RejectedItem:
    item_id, produced_at_us = _named_id(record, collection, "a patch"), produced_at(record)
    acl = record.header("hw_acl" if record.header("ce_specversion") is None else "ce_hwacl")
    content_type = content_type_of(record)
    try:
        if record.value is None or not (record.value or acl):
            raise RecordError("empty", "the patch has no JSON object; a delete has a null value and no hw_op")
        if content_type not in PATCH_TYPES:
            raise RecordError("unsupported_content_type", f"a patch is a JSON object, its content-type is {content_type[:80]!r}")
        patch = checked_patch(record.value or b"{}", collection.attributes)
        return MediaItem(record.offset, 0, item_id, produced_at_us, produced_at_us, patch=patch, acl=json_acl(acl))
    except RecordError as error:
        return RejectedItem(record.offset, 0, error.reason, error.message, produced_at_us, item_id)


def _single_id(record: LogRecord, envelope: Envelope, collection: CollectionRecord) -> str:
    found = _configured_id(record, collection)
    if found is None:
        found = envelope.own_id
    if found is None and record.key:
        found = utf8(record.key, "bad_id", "the key")
    return check_id(found or envelope.event_id or default_id(record, 0))


def _single_item(record: LogRecord, envelope: Envelope, collection: CollectionRecord, limits: RecordLimits) -> MediaItem | RejectedItem:
    item_id, produced_at_us = _single_id(record, envelope, collection), produced_at(record)
    item = MediaItem(record.offset, 0, item_id, produced_at_us, produced_at_us)
    try:
        fill_item(item, envelope.parts, limits)
        item.event_time_us = event_time(envelope.time, produced_at_us)
        item.attributes = json_attributes(envelope.attributes, collection)
        item.acl = json_acl(envelope.acl)
    except RecordError as error:
        return RejectedItem(record.offset, 0, error.reason, error.message, produced_at_us, item_id)
    return item
