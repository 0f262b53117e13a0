"""The forms of a record that carries one item, brought to one shape (docs/formats/media_record.md, forms a to d).

    plain                    value = media bytes, `hw_*` headers; or no value and `hw_payload_ref`, the claim check
    CloudEvents binary       the same with `ce_*` headers
    CloudEvents structured   `application/cloudevents+json`
    parts                    `application/vnd.headwater.record+json`

Takes: a log record. Gives: an `Envelope`. Owns: the names of headers and members. Never: checks what an envelope carries, beyond its own form.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contracts import canonical_json
from contracts.collection import CollectionRecord
from contracts.errors import RecordError
from contracts.item import id_text
from contracts.log import LogRecord
from contracts.media_item import TEXT_TYPE, MediaPart, utf8
from contracts.payload_ref import parse_payload_ref

CLOUDEVENT_TYPE = "application/cloudevents+json"
PARTS_TYPE = "application/vnd.headwater.record+json"
ARROW_TYPE = "application/vnd.apache.arrow.stream"
MAX_PARTS = 64
_PARTS_MEMBERS = frozenset(("id", "parts", "attributes", "acl", "time"))
_PART_MEMBERS = frozenset(("content_type", "text", "data_base64", "ref"))
REF_HEADERS = ("hw_payload_ref", "ce_hwpayloadref")


@dataclass(frozen=True, slots=True)
class Envelope:
    """The forms brought to one shape: where ids, media, time, attributes and acl come from.

    `own_id` goes before the record's key, `event_id` after it. `rows` is an Arrow stream, which takes the place of everything else.
    """

    parts: list[MediaPart]
    own_id: str | None = None
    event_id: str | None = None
    attributes: bytes | None = None
    acl: bytes | None = None
    time: bytes | None = None
    rows: bytes | None = None


def may_refer(record: LogRecord) -> bool:
    """Whether the record may name a payload that has to be fetched: by its headers alone, so in doubt it may."""
    if any(name in REF_HEADERS for name, _ in record.headers):
        return True
    return b"json" in (record.header("content-type") or b"").lower()


def open_envelope(record: LogRecord, collection: CollectionRecord) -> Envelope:
    """Read the envelope of a record with a value, which may be empty.

    Raises
    ------
    RecordError
        ``bad_envelope``, ``missing_id`` or ``bad_id``.
    """
    value = record.value or b""
    content_type = content_type_of(record)
    if content_type == CLOUDEVENT_TYPE:
        return _structured(value, collection)
    if content_type == PARTS_TYPE:
        return _with_parts(value, collection)
    event_id = None
    if record.header("ce_specversion") is not None:
        event_id = utf8(record.header("ce_id") or b"", "bad_id", "ce_id") or None
        if event_id is None:
            raise RecordError("missing_id", "a CloudEvent needs ce_id, even where the record has a key")
    prefix = "hw_" if event_id is None else "ce_hw"
    return Envelope(
        parts=_captioned(
            record.header(prefix + "caption"), _medium(content_type, value, record.header(REF_HEADERS[event_id is not None]), collection)
        ),
        event_id=event_id,
        attributes=record.header(prefix + "attributes"),
        acl=record.header(prefix + "acl"),
        time=record.header("hw_time" if event_id is None else "ce_time"),
        rows=value if content_type == ARROW_TYPE else None,
    )


def content_type_of(record: LogRecord) -> str:
    """Media type that the record's header names, in lower case and without parameters; empty where there is none."""
    return _media_type((record.header("content-type") or b"").decode("latin-1"))


def _media_type(content_type: str) -> str:
    return content_type.split(";")[0].strip().lower()


def _medium(content_type: str, data: bytes, ref: bytes | None, collection: CollectionRecord) -> MediaPart:
    if ref is None:
        return MediaPart(content_type, data)
    if data:
        raise RecordError("bad_envelope", "the record has media and a payload reference; send one of them")
    if content_type == ARROW_TYPE:
        raise RecordError("unsupported_content_type", "Arrow rows cannot lie behind a payload reference; send them in several records")
    return MediaPart(content_type, ref=parse_payload_ref(ref, collection))


def _captioned(caption: bytes | None, medium: MediaPart) -> list[MediaPart]:
    return [medium] if caption is None else [MediaPart(TEXT_TYPE, caption, is_caption=True), medium]


def _structured(value: bytes, collection: CollectionRecord) -> Envelope:
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
    content_type = _media_type(str(event.get("datacontenttype", "")))
    return Envelope(
        parts=_captioned(_member(event, "hwcaption"), _medium(content_type, body, _member(event, "hwpayloadref"), collection)),
        event_id=event_id,
        attributes=_member(event, "hwattributes"),
        acl=_member(event, "hwacl"),
        time=_member(event, "time"),
        rows=body if content_type == ARROW_TYPE else None,
    )


def _with_parts(value: bytes, collection: CollectionRecord) -> Envelope:
    try:
        found = canonical_json.load(value)
    except ValueError as error:
        raise RecordError("bad_envelope", f"the record's JSON cannot be read: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("parts"), list):
        raise RecordError("bad_envelope", "not a JSON object with a list of parts")
    _refuse_unknown(found, _PARTS_MEMBERS, "the record")
    if len(found["parts"]) > MAX_PARTS:
        raise RecordError("too_many_parts", f"{len(found['parts'])} parts in one record, more than {MAX_PARTS}")
    own_id = id_text(found.get("id"))
    if own_id is None and found.get("id") is not None:
        raise RecordError("bad_id", "the id is neither a string nor a whole number")
    if own_id == "":
        raise RecordError("bad_id", "the id is empty; leave it out to take the key")
    return Envelope(
        parts=[_part(part, number, collection) for number, part in enumerate(found["parts"])],
        own_id=own_id,
        attributes=_member(found, "attributes"),
        acl=_member(found, "acl"),
        time=_member(found, "time"),
    )


def _part(part: Any, number: int, collection: CollectionRecord) -> MediaPart:
    """One of `text`, `data_base64` and `ref`; the content type may be left out."""
    where = f"part {number}"
    if not isinstance(part, dict):
        raise RecordError("bad_envelope", f"{where} is not a JSON object")
    _refuse_unknown(part, _PART_MEMBERS, where)
    content_type = part.get("content_type", "")
    if not isinstance(content_type, str):
        raise RecordError("bad_envelope", f"{where}: content_type is not a string")
    kind = _media_type(content_type)
    bodies = [name for name in ("text", "data_base64", "ref") if part.get(name) is not None]
    if len(bodies) != 1:
        raise RecordError("bad_envelope", f"{where} needs one of text, data_base64 and ref")
    body = part[bodies[0]]
    if bodies[0] == "ref" and isinstance(body, dict):
        return MediaPart(kind, ref=parse_payload_ref(body, collection))
    if bodies[0] == "ref" or not isinstance(body, str):
        raise RecordError("bad_envelope", f"{where}: {bodies[0]} is not {'an object' if bodies[0] == 'ref' else 'a string'}")
    if bodies[0] == "text":
        if kind not in ("", TEXT_TYPE):
            raise RecordError("bad_envelope", f"{where}: text with the content type {kind[:80]!r}")
        return MediaPart(TEXT_TYPE, body.encode("utf-8"))  # JSON's reader refused lone surrogates
    try:
        return MediaPart(kind, base64.b64decode(body, validate=True))
    except (ValueError, binascii.Error) as error:
        raise RecordError("bad_envelope", f"{where}: data_base64: {error}") from None


def _refuse_unknown(found: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    unknown = sorted(found.keys() - known)
    if unknown:
        raise RecordError("bad_envelope", f"{where} has an unknown member {unknown[0][:60]!r}; known are {', '.join(sorted(known))}")


def _as_bytes(value: Any) -> bytes:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else canonical_json.dump(value)


def _member(found: Mapping[str, Any], name: str) -> bytes | None:
    value = found.get(name)
    return None if value is None else _as_bytes(value)
