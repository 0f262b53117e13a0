"""Bucket notifications: what S3 and MinIO say about objects that came or went, as a media record (docs/formats/media_record.md, form f).

One record holds a list of `Records`; each is an item, numbered from 0. An object that was created is to be fetched, one that was removed is a delete.
The message's structure is version 2 of Amazon's (S3 user guide, notification-content-structure), which MinIO follows.

Takes: a log record of a collection made with `--notifications`. Gives: items, wanted or rejected one by one. Owns: which events count.
Never: fetches an object, or trusts a name that a URL would read as another one.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_plus

from contracts import canonical_json
from contracts.collection import CollectionRecord
from contracts.errors import RecordError
from contracts.log import LogRecord
from contracts.media_item import (
    MediaItem,
    MediaPart,
    RecordLimits,
    RejectedItem,
    check_id,
    event_time,
    fill_item,
    json_attributes,
    json_path,
    produced_at,
    utf8,
)
from contracts.payload_ref import PayloadRef

MAX_NOTIFICATION_BYTES = 4 * 1024 * 1024
MAX_NOTIFIED = 1000
MAX_OBJECT_NAME_BYTES = 1024
CREATED, REMOVED = "ObjectCreated:", ("ObjectRemoved:", "LifecycleExpiration:")
DELETE = ":Delete"
"""Names of events that delete an object, or one version of it; those of a delete marker end otherwise."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}\Z")


def read_notification(record: LogRecord, collection: CollectionRecord, limits: RecordLimits) -> list[MediaItem | RejectedItem]:
    """Items of one notification; RecordError where it has none: ``bad_envelope``, ``too_large`` or ``empty``."""
    try:
        found = canonical_json.load(record.value or b"", MAX_NOTIFICATION_BYTES)
    except ValueError as error:
        raise RecordError("bad_envelope", f"the notification cannot be read: {error}") from None
    entries = found.get("Records") if isinstance(found, dict) else None
    if entries is None and isinstance(found, dict) and found.get("Event") == "s3:TestEvent":
        raise RecordError("empty", "a test event, sent when the notification was set up")
    if not isinstance(entries, list):
        raise RecordError("bad_envelope", "not a JSON object with a list of Records; this topic was declared to carry bucket notifications")
    if not entries:
        raise RecordError("empty", "the notification has no Records")
    if len(entries) > MAX_NOTIFIED:
        raise RecordError("too_large", f"{len(entries)} Records in one notification, more than {MAX_NOTIFIED}")
    return [_entry(record, number, entry, len(entries) == 1, collection, limits) for number, entry in enumerate(entries)]


def _entry(record: LogRecord, number: int, entry: Any, alone: bool, collection: CollectionRecord, limits: RecordLimits) -> MediaItem | RejectedItem:
    produced_at_us, item_id = produced_at(record), None
    try:
        if not isinstance(entry, dict):
            raise RecordError("bad_envelope", f"entry {number} of Records is not a JSON object")
        event, ref = _event(entry), _reference(entry)
        item_id = check_id(_configured_id(record, entry, alone, collection) or f"{ref.bucket}/{ref.key}")
        item = MediaItem(record.offset, number, item_id, produced_at_us, produced_at_us, is_delete=event.startswith(REMOVED))
        if item.is_delete:
            if event.endswith(DELETE) and ref.version_id is not None:  # one version went: only the bucket knows whether the object did
                item.parts = [MediaPart("", ref=PayloadRef(ref.key, bucket=ref.bucket))]
            return item
        if ref.size_bytes == 0:
            raise RecordError("empty", "the object has no bytes")
        fill_item(item, [MediaPart("", ref=ref)], limits)
        item.event_time_us = event_time(_text(entry, "eventTime"), produced_at_us)
        item.attributes = json_attributes(None, collection)
        return item
    except RecordError as error:
        return RejectedItem(record.offset, number, error.reason, error.message, produced_at_us, item_id)


def _event(entry: dict[str, Any]) -> str:
    name = entry.get("eventName")
    if not isinstance(name, str):
        raise RecordError("bad_envelope", "the notification names no event")
    name = name.removeprefix("s3:")  # MinIO writes it, Amazon does not
    if not name.startswith((CREATED, *REMOVED)):
        raise RecordError("empty", f"event {name[:60]!r} neither creates nor removes an object")
    return name


def _reference(entry: dict[str, Any]) -> PayloadRef:
    bucket, key = json_path(entry, "s3.bucket.name"), json_path(entry, "s3.object.key")
    if bucket is None or not _BUCKET.match(bucket):
        raise RecordError("bad_envelope", "the notification names no bucket")
    try:
        name = unquote_plus(key or "", errors="strict")
    except UnicodeDecodeError:
        raise RecordError("bad_envelope", "the object's name is not UTF-8") from None
    # a URL's "." and ".." would lead to another object, even of another bucket
    if not 1 <= len(name.encode("utf-8")) <= MAX_OBJECT_NAME_BYTES or "\0" in name or {".", ".."} & set(name.split("/")):
        raise RecordError("bad_envelope", f"the object's name is empty, longer than {MAX_OBJECT_NAME_BYTES} bytes, or holds NUL, . or ..")
    size = json_path(entry, "s3.object.size")
    if size is not None and not (size.isdecimal() and len(size) < 20):
        raise RecordError("bad_envelope", "the object's size is not a number of bytes")
    etag, version = json_path(entry, "s3.object.eTag"), json_path(entry, "s3.object.versionId")
    if any(value is not None and (len(value) > MAX_OBJECT_NAME_BYTES or not value.isprintable()) for value in (etag, version)):
        raise RecordError("bad_envelope", "the object's entity tag or version cannot be read")
    return PayloadRef(name, None if size is None else int(size), None, bucket, (etag or "").strip('"') or None, version or None)


def _configured_id(record: LogRecord, entry: dict[str, Any], alone: bool, collection: CollectionRecord) -> str | None:
    """Id by the collection's `id_from`: a path within the entry, or a header where the record has one entry alone."""
    source, _, name = collection.id_from.partition(":")
    if source == "json":
        return json_path(entry, name)
    found = record.header(name) if source == "header" and alone else None
    return None if found is None else utf8(found, "bad_id", collection.id_from)


def _text(entry: dict[str, Any], name: str) -> bytes | None:
    value = entry.get(name)
    return value.encode("utf-8") if isinstance(value, str) else None
