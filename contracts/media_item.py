"""What a media record asks for, item by item, before anything of it is decoded.

A record's form (`contracts.media_envelope`, `media_rows`, `media_notification`) gives parts, ids and annotations; here they become items.

Takes: ids, parts, attributes, texts. Gives: `MediaItem` and `RejectedItem`, checked. Owns: the content types and the limits of an item.
Never: knows forms or headers, or fetches a payload.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts import attributes as typed
from contracts import canonical_json
from contracts.attributes import MAX_ATTRIBUTES_BYTES
from contracts.collection import CollectionRecord
from contracts.errors import RecordError
from contracts.item import MAX_ID_BYTES, id_text
from contracts.log import LogRecord
from contracts.payload_ref import PayloadRef

PICTURE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")
TEXT_TYPE = "text/plain"
TYPE_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-ms-bmp": "image/bmp",
    "application/octet-stream": "",
    "binary/octet-stream": "",
}
"""What uploaders call the types that we index, without being registered; and what says nothing, so that the first bytes tell."""
_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)


@dataclass(slots=True)
class MediaPart:
    """One medium of an item: its bytes, or where they lie; an empty content type means that the first bytes tell it. A caption is text beside it."""

    content_type: str
    data: bytes = b""
    is_caption: bool = False
    ref: PayloadRef | None = None


@dataclass(slots=True)
class MediaItem:
    """One item that a record asks to index (or to delete with `is_delete`, or to change with `patch`). Nothing of it is decoded yet.

    `parts` is empty unless a payload has to be fetched first (`backends.payloads`): then picture, text and hash are those of what is here already.
    A delete with `parts` holds only if the object that they name is gone.
    `bad_part` says why it has no text where its record has one beside the picture: it is indexed in part or rejected, as the collection has it.
    """

    offset: int
    item: int
    id: str
    produced_at_us: int
    event_time_us: int
    is_delete: bool = False
    patch: str | None = None
    picture: bytes | None = None
    text: str | None = None
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    attributes: dict[str, Any] | None = None
    acl: list[str] | None = None
    media_type: str | None = None
    media_sha256: bytes | None = None
    parts: list[MediaPart] = field(default_factory=list)
    bad_part: RecordError | None = None
    origin_offset: int | None = None
    origin_item: int | None = None


@dataclass(slots=True)
class RejectedItem:
    """One item that can never be indexed, with its reason code and a sentence; its id where that could be read."""

    offset: int
    item: int
    reason: str
    message: str
    produced_at_us: int
    id: str | None = None
    origin_offset: int | None = None
    origin_item: int | None = None


@dataclass(frozen=True, slots=True)
class RecordLimits:
    """Limits on what a record may carry."""

    max_text_bytes: int = 1024 * 1024
    max_rows: int = 65_536
    max_payload_bytes: int = 32 * 1024 * 1024
    max_expanded_bytes: int = 64 * 1024 * 1024


def fill_item(item: MediaItem, parts: Sequence[MediaPart], limits: RecordLimits) -> None:
    """Give an item its picture and its text: parts fill its fields, texts are joined by a newline.

    Bad text beside a picture, or beside a payload that may turn out to be one, is noted as `bad_part`.

    Raises
    ------
    RecordError
        ``empty``, ``unsupported_content_type``, ``too_many_parts``, or ``bad_text`` where there is nothing else.
    """
    parts = [part for part in parts if part.data or part.ref is not None]
    if not parts:
        raise RecordError("empty", "there are no media bytes and no caption; a delete has a null value")
    for part in parts:
        declared = part.content_type
        part.content_type = TYPE_ALIASES.get(declared, declared) or picture_type(part.data)
        awaited = part.ref is not None and not part.content_type
        if not awaited and part.content_type not in (*PICTURE_TYPES, TEXT_TYPE):
            shown = declared[:80]
            raise RecordError("unsupported_content_type", f"content-type {shown!r} is not indexed; see docs/formats/media_record.md")
    pictures = [part for part in parts if part.content_type in PICTURE_TYPES]
    if len(pictures) > 1:
        raise RecordError("too_many_parts", f"{len(pictures)} pictures in one item; send one item for each")
    texts = [part for part in parts if part.content_type == TEXT_TYPE and part.data]
    item.parts = list(parts) if any(part.ref is not None for part in parts) else []
    untold = any(not part.content_type for part in parts)
    item.text = item.bad_part = None
    try:
        item.text = _joined(texts, limits) if texts else None
    except RecordError as error:
        if not pictures and not untold:
            raise
        item.bad_part = error
    item.picture = pictures[0].data or None if pictures else None
    item.media_type = pictures[0].content_type if pictures else None if untold else TEXT_TYPE
    media = item.picture or b"\n".join(part.data for part in texts if not part.is_caption)
    item.media_sha256 = hashlib.sha256(media).digest() if media else None


def _joined(texts: Sequence[MediaPart], limits: RecordLimits) -> str:
    size = sum(len(part.data) for part in texts) + len(texts) - 1
    if size > limits.max_text_bytes:
        raise RecordError("bad_text", f"the text has {size} bytes, more than {limits.max_text_bytes}")
    return "\n".join(utf8(part.data, "bad_text", "the caption" if part.is_caption else "the text") for part in texts)


def picture_type(head: bytes) -> str:
    """Content type of a picture by its first 16 bytes; empty where it is no picture that we index."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")


def produced_at(record: LogRecord) -> int:
    """Microseconds since 1970 at which the record was produced; a producer chooses it, so any 64-bit number is brought into range."""
    return min(max(record.timestamp_ms, 0) * 1000, typed.MAX_TIME_US)


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


def utf8(data: bytes, reason: str, what: str) -> str:
    """Text of bytes; RecordError with `reason` where they are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(reason, f"{what} is not valid UTF-8 at byte {error.start}") from None


def json_path(value: Any, path: str) -> str | None:
    """String or whole number, as a string, under a path of member names with dots between them; None where there is none."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return id_text(value)


def checked_text(text: str, limits: RecordLimits) -> str:
    """Return the text if it is not longer than the limit; RecordError ``bad_text`` otherwise."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limits.max_text_bytes:
        raise RecordError("bad_text", f"the text has {size} bytes, more than {limits.max_text_bytes}")
    return text


def event_time(value: bytes | None, otherwise_us: int) -> int:
    """Microseconds since 1970 of RFC 3339 text; RecordError ``bad_time`` where it is none."""
    if value is None:
        return otherwise_us
    try:
        return typed.parse_time(utf8(value, "bad_time", "the time"))
    except (ValueError, OverflowError) as error:
        raise RecordError("bad_time", f"the time: {error}") from None


def json_attributes(value: bytes | None, collection: CollectionRecord) -> dict[str, Any]:
    """Typed attributes of JSON text; RecordError ``bad_attributes`` says what is wrong."""
    if value is None:
        return typed.coerce_all({}, collection.attributes)
    try:
        found = canonical_json.load(value, MAX_ATTRIBUTES_BYTES)
    except ValueError as error:
        raise RecordError("bad_attributes", f"the attributes: {error}") from None
    return coerced_attributes(found, collection)


def coerced_attributes(found: Any, collection: CollectionRecord) -> dict[str, Any]:
    """Typed attributes of a JSON object; RecordError ``bad_attributes`` names the wrong one."""
    if not isinstance(found, dict):
        raise RecordError("bad_attributes", "the attributes are not a JSON object")
    try:
        return typed.coerce_all(found, collection.attributes)
    except (ValueError, TypeError) as error:  # TypeError: an Arrow struct may hold what JSON cannot
        raise RecordError("bad_attributes", str(error)) from None


def json_acl(value: bytes | None) -> list[str] | None:
    """List of strings of JSON text; RecordError ``bad_acl`` where it is none."""
    if value is None:
        return None
    try:
        found = canonical_json.load(value, MAX_ATTRIBUTES_BYTES)
    except ValueError as error:
        raise RecordError("bad_acl", f"the acl: {error}") from None
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise RecordError("bad_acl", "the acl is not a JSON list of strings")
    return found
