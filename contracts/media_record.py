"""The media record: what producers put on a media topic, and the items that it asks for (docs/formats/media_record.md).

    plain                key = id, value = media bytes, headers `content-type`, `hw_caption`, `hw_attributes`, `hw_acl`, `hw_time`
    CloudEvents binary   the same with `ce_*` headers; CloudEvents structured as `application/cloudevents+json`
    Arrow rows           `application/vnd.apache.arrow.stream` with the producers' own vectors (`contracts.media_rows`)
    null value           delete

Takes: a log record and the collection. Gives: items, each wanted or rejected with its reason. Owns: the forms and the order of ids.
Never: decodes a picture, raises for a bad record, or lets one bad row reject its neighbours.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts import attributes as typed
from contracts import canonical_json
from contracts.collection import CollectionRecord
from contracts.errors import RecordError
from contracts.item import MAX_ID_BYTES
from contracts.log import LogRecord

PICTURE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")
TEXT_TYPE = "text/plain"
CLOUDEVENT_TYPE = "application/cloudevents+json"
ARROW_TYPE = "application/vnd.apache.arrow.stream"
MAX_ATTRIBUTES_BYTES = 256 * 1024
MAX_HEADERS = 1000
_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)


@dataclass(slots=True)
class MediaItem:
    """One item that a record asks to index (or, with `is_delete`, to delete). Nothing of it is decoded yet."""

    offset: int
    item: int
    id: str
    produced_at_us: int
    event_time_us: int
    is_delete: bool = False
    picture: bytes | None = None
    text: str | None = None
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    attributes: dict[str, Any] | None = None
    acl: list[str] | None = None
    media_type: str | None = None
    media_sha256: bytes | None = None


@dataclass(slots=True)
class RejectedItem:
    """One item that can never be indexed, with its reason code and a sentence."""

    offset: int
    item: int
    reason: str
    message: str
    produced_at_us: int
    id: str | None = None


@dataclass(frozen=True, slots=True)
class RecordLimits:
    """Limits on what a record may carry."""

    max_text_bytes: int = 1024 * 1024
    max_rows: int = 65_536


@dataclass(frozen=True, slots=True)
class _Envelope:
    """The forms brought to one shape: where id, time, caption, attributes and acl come from, and the media bytes."""

    value: bytes
    content_type: str
    event_id: str | None
    caption: bytes | None
    attributes: bytes | None
    acl: bytes | None
    time: bytes | None


def read_media_record(record: LogRecord, collection: CollectionRecord, limits: RecordLimits) -> list[MediaItem | RejectedItem]:
    """Items of one record, in item order; never raises for what the record holds."""
    return read_media_records([record], collection, limits)[0]


def read_media_records(records: Sequence[LogRecord], collection: CollectionRecord, limits: RecordLimits) -> list[list[MediaItem | RejectedItem]]:
    """Items of each record, as `read_media_record` gives them; Arrow records are read together, which is what makes small ones cheap."""
    out: list[list[MediaItem | RejectedItem]] = [[] for _ in records]
    arrow: list[int] = []
    for at, record in enumerate(records):
        try:
            found = _read_one(record, collection, limits)
        except RecordError as error:
            found = [RejectedItem(record.offset, 0, error.reason, error.message, _produced_at_us(record))]
        if found is None:
            arrow.append(at)
        else:
            out[at] = found
    if arrow:
        from contracts.media_rows import read_rows  # the only form that needs Arrow tables

        rows = read_rows([records[at] for at in arrow], collection, limits, [_produced_at_us(records[at]) for at in arrow])
        for at, items in zip(arrow, rows, strict=True):
            out[at] = items
    return out


def _read_one(record: LogRecord, collection: CollectionRecord, limits: RecordLimits) -> list[MediaItem | RejectedItem] | None:
    """Items of a record of any form but Arrow, for which it gives None."""
    produced_at_us = _produced_at_us(record)
    if len(record.headers) > MAX_HEADERS:
        raise RecordError("bad_envelope", f"{len(record.headers)} headers, more than {MAX_HEADERS}")
    if record.value is None:
        return [MediaItem(record.offset, 0, _delete_id(record, collection), produced_at_us, produced_at_us, is_delete=True)]
    envelope = _open(record)
    return None if envelope.content_type == ARROW_TYPE else [_single_item(record, envelope, collection, limits, produced_at_us)]


def _produced_at_us(record: LogRecord) -> int:
    return min(max(record.timestamp_ms, 0) * 1000, typed.MAX_TIME_US)  # a producer chooses it: any 64-bit number


def default_id(record: LogRecord, item: int) -> str:
    """Id of an item whose producer gave none; owned by the partition it arrived in."""
    return f"{record.topic}/{record.partition}/{record.offset}/{item}"


def check_id(item_id: str) -> str:
    """Return the id if it can be stored: 1 to 512 bytes of UTF-8 without NUL; RecordError ``bad_id`` otherwise."""
    try:
        size = len(item_id.encode("utf-8"))
    except UnicodeEncodeError:
        raise RecordError("bad_id", "the id is not valid UTF-8") from None
    if not 1 <= size <= MAX_ID_BYTES or "\0" in item_id:
        raise RecordError("bad_id", f"the id has {size} bytes; 1 to {MAX_ID_BYTES} without NUL are allowed")
    return item_id


def _text_of(data: bytes, reason: str, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(reason, f"{what} is not valid UTF-8 at byte {error.start}") from None


def _configured_id(record: LogRecord, collection: CollectionRecord) -> str | None:
    """Id by the collection's `id_from`, where that is a header or a JSON path."""
    if collection.id_from.startswith("header:"):
        found = record.header(collection.id_from.removeprefix("header:"))
        return None if found is None else _text_of(found, "bad_id", collection.id_from)
    if collection.id_from.startswith("json:") and record.value:
        try:
            value = canonical_json.load(record.value)
        except ValueError:
            return None
        for part in collection.id_from.removeprefix("json:").split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    return None


def _delete_id(record: LogRecord, collection: CollectionRecord) -> str:
    found = _configured_id(record, collection)
    if found is None and record.key:
        found = _text_of(record.key, "bad_id", "the key")
    if found is None and (event_id := record.header("ce_id")) is not None:
        found = _text_of(event_id, "bad_id", "ce_id")
    if found is None:
        raise RecordError("missing_id", "a delete (null value) needs an id: a key, ce_id, or the collection's id_from")
    return check_id(found)


def _open(record: LogRecord) -> _Envelope:
    value = record.value or b""
    content_type = (record.header("content-type") or b"").decode("latin-1").split(";")[0].strip().lower()
    operation = record.header("hw_op")
    if operation not in (None, b"upsert"):
        raise RecordError("bad_envelope", f"hw_op {operation[:40]!r} is not known" if operation else "hw_op is empty")
    if content_type == CLOUDEVENT_TYPE:
        return _structured(value)
    event_id = None
    if record.header("ce_specversion") is not None:
        event_id = _text_of(record.header("ce_id") or b"", "bad_id", "ce_id") or None
        if event_id is None:
            raise RecordError("missing_id", "a CloudEvent needs ce_id, even where the record has a key")
    prefix = "hw_" if event_id is None else "ce_hw"
    return _Envelope(
        value=value,
        content_type=content_type or picture_type(value),
        event_id=event_id,
        caption=record.header(prefix + "caption"),
        attributes=record.header(prefix + "attributes"),
        acl=record.header(prefix + "acl"),
        time=record.header("hw_time" if event_id is None else "ce_time"),
    )


def _structured(value: bytes) -> _Envelope:
    try:
        event = canonical_json.load(value)
        if not isinstance(event, dict) or not isinstance(event.get("specversion"), str):
            raise ValueError("not a CloudEvent with specversion")
        data = event.get("data") or ""
        body = base64.b64decode(event["data_base64"], validate=True) if "data_base64" in event else _as_bytes(data)
    except (ValueError, TypeError, binascii.Error) as error:
        raise RecordError("bad_envelope", f"the CloudEvent cannot be read: {error}") from None
    event_id = event.get("id")
    if not isinstance(event_id, str) or not event_id:
        raise RecordError("missing_id", "a CloudEvent needs an id")
    return _Envelope(
        value=body,
        content_type=str(event.get("datacontenttype", "")).split(";")[0].strip().lower() or picture_type(body),
        event_id=event_id,
        caption=_extension(event, "hwcaption"),
        attributes=_extension(event, "hwattributes"),
        acl=_extension(event, "hwacl"),
        time=_extension(event, "time"),
    )


def _as_bytes(value: Any) -> bytes:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else canonical_json.dump(value)


def _extension(event: Mapping[str, Any], name: str) -> bytes | None:
    value = event.get(name)
    return None if value is None else _as_bytes(value)


def picture_type(head: bytes) -> str:
    """Content type of a picture by its first 16 bytes; empty where it is no picture that we index."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")


def _single_item(record: LogRecord, envelope: _Envelope, collection: CollectionRecord, limits: RecordLimits, produced_at_us: int) -> MediaItem:
    item_id = _configured_id(record, collection)
    if item_id is None and record.key:
        item_id = _text_of(record.key, "bad_id", "the key")
    item_id = check_id(item_id or envelope.event_id or default_id(record, 0))
    picture, text = _parts(envelope, limits)
    return MediaItem(
        offset=record.offset,
        item=0,
        id=item_id,
        produced_at_us=produced_at_us,
        event_time_us=_time(envelope.time, produced_at_us),
        picture=picture,
        text=text,
        attributes=_attributes(envelope.attributes, collection),
        acl=_acl(envelope.acl),
        media_type=envelope.content_type if envelope.value else TEXT_TYPE,
        media_sha256=hashlib.sha256(envelope.value).digest() if envelope.value else None,
    )


def _parts(envelope: _Envelope, limits: RecordLimits) -> tuple[bytes | None, str | None]:
    caption = None if envelope.caption is None else checked_text(_text_of(envelope.caption, "bad_text", "the caption"), limits)
    if not envelope.value:
        if not caption:
            raise RecordError("empty", "the value is empty and there is no caption; a delete has a null value")
        return None, caption
    if envelope.content_type in PICTURE_TYPES:
        return envelope.value, caption
    if envelope.content_type == TEXT_TYPE:
        if len(envelope.value) > limits.max_text_bytes:
            raise RecordError("bad_text", f"the text has {len(envelope.value)} bytes, more than {limits.max_text_bytes}")
        text = _text_of(envelope.value, "bad_text", "the text")
        return None, text if caption is None else f"{caption}\n{text}"
    raise RecordError("unsupported_content_type", f"content-type {envelope.content_type[:80]!r} is not indexed; see docs/formats/media_record.md")


def checked_text(text: str, limits: RecordLimits) -> str:
    """Return the text if it is not longer than the limit; RecordError ``bad_text`` otherwise."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limits.max_text_bytes:
        raise RecordError("bad_text", f"the text has {size} bytes, more than {limits.max_text_bytes}")
    return text


def _time(value: bytes | None, otherwise_us: int) -> int:
    if value is None:
        return otherwise_us
    try:
        return typed.parse_time(_text_of(value, "bad_time", "the time"))
    except (ValueError, OverflowError) as error:
        raise RecordError("bad_time", f"hw_time or ce_time: {error}") from None


def _attributes(value: bytes | None, collection: CollectionRecord) -> dict[str, Any]:
    if value is None:
        return typed.coerce_all({}, collection.attributes)
    try:
        found = canonical_json.load(value, MAX_ATTRIBUTES_BYTES)
    except ValueError as error:
        raise RecordError("bad_attributes", f"hw_attributes: {error}") from None
    return coerced_attributes(found, collection)


def coerced_attributes(found: Any, collection: CollectionRecord) -> dict[str, Any]:
    """Typed attributes of a JSON object; RecordError ``bad_attributes`` names the wrong one."""
    if not isinstance(found, dict):
        raise RecordError("bad_attributes", "the attributes are not a JSON object")
    try:
        return typed.coerce_all(found, collection.attributes)
    except (ValueError, TypeError) as error:  # TypeError: an Arrow struct may hold what JSON cannot
        raise RecordError("bad_attributes", str(error)) from None


def _acl(value: bytes | None) -> list[str] | None:
    if value is None:
        return None
    try:
        found = canonical_json.load(value, MAX_ATTRIBUTES_BYTES)
    except ValueError as error:
        raise RecordError("bad_acl", f"hw_acl: {error}") from None
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise RecordError("bad_acl", "hw_acl is not a JSON list of strings")
    return found
