"""One media record as the members of a WebDataset sample, and back (docs/formats/archive.md).

    <offset>.jpg    the picture           <offset>.txt   the caption or text         <offset>.json   everything else

The `.json` member rebuilds the record byte by byte: key and headers in base64, the value as a list of pieces that name the other members.

Takes: a log record. Gives: members; from their bytes the same record. Owns: which piece of a value lies in which member.
Never: decodes a picture, or writes a picture twice where its bytes (or their base64) can be found in the value.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from contracts import FORMAT_VERSION, canonical_json
from contracts import attributes as typed
from contracts.collection import CollectionRecord
from contracts.errors import CorruptError
from contracts.log import LogRecord, Unreadable
from contracts.media_record import ARROW_TYPE, MediaItem, RejectedItem, picture_type

Items = Sequence[MediaItem | RejectedItem]
Members = list[tuple[str, bytes]]
_EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif", "image/bmp": "bmp", "image/tiff": "tiff"}
DESCRIPTION = "json"
TEXT = "txt"
OFFSET_DIGITS = 20


def sample_key(offset: int) -> str:
    """What the members of one record's sample are called, before their extension."""
    return f"{offset:0{OFFSET_DIGITS}d}"


def to_members(record: LogRecord, items: Items, collection: CollectionRecord, keep_media: bool = True) -> Members:
    """Members of a record's sample, in their order in the tar, by extension.

    Parameters
    ----------
    record : LogRecord
        Any record: wanted, rejected, or a delete.
    items : sequence
        What `read_media_record` gives for it.
    collection : CollectionRecord
        Gives the types of the attributes.
    keep_media : bool
        False leaves pictures and texts out and keeps their size and sha256 (``archive: off``).
    """
    members: dict[str, bytes] = {}
    first = items[0] if len(items) == 1 and isinstance(items[0], MediaItem) else None
    if first is not None and first.text is not None and keep_media:
        members[TEXT] = first.text.encode("utf-8")
    pieces = None if record.value is None else _pieces(record, record.value, first, members)
    if not keep_media and not collection.notifications and pieces is not None:  # a notification only names its media
        kept = ("arrow",) if first is not None and first.picture is not None else ("arrow", "value.json")
        pieces = [_left_out(piece, members, kept) for piece in pieces]
        members = {name: data for name, data in members.items() if any(piece.get("member") == name for piece in pieces)}
    description = {
        "format": FORMAT_VERSION,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": None if record.key is None else _base64(record.key),
        "headers": [[name, None if value is None else _base64(value)] for name, value in record.headers],
        "value": pieces,
        **({} if record.unreadable is None else {"unreadable": asdict(record.unreadable)}),
        **_for_people(items, first, collection),
    }
    return [*members.items(), (DESCRIPTION, _readable(description))]


def _readable(description: dict[str, Any]) -> bytes:
    """Canonical JSON that its reader takes: attributes at the limit of depth would go beyond it one level further in."""
    data = canonical_json.dump(description)
    if data.count(b"[") + data.count(b"{") <= canonical_json.MAX_DEPTH:
        return data
    try:
        canonical_json.load(data)
    except ValueError:
        return canonical_json.dump({name: value for name, value in description.items() if name != "attributes"})
    return data


def _pieces(record: LogRecord, value: bytes, first: MediaItem | None, members: dict[str, bytes]) -> list[dict[str, Any]]:
    """The value as pieces; what lies in a member of its own is put into `members`."""
    if not value:
        if first is not None and first.picture is not None:  # a claim check whose payload was fetched
            members[_extension(first.picture)] = first.picture
        return []
    if first is not None and first.picture is not None and value != first.picture:
        extension, encoded = _extension(first.picture), base64.b64encode(first.picture)
        members[extension] = first.picture
        before, found, after = value.partition(encoded)
        if found:  # an envelope: what stands around the picture goes into the description
            return [{"base64": _base64(before)}, {"base64_of": extension}, {"base64": _base64(after)}]
    elif members.get(TEXT) == value:
        return [{"member": TEXT}]
    extension = _value_extension(record, value, first)
    members[extension] = value
    return [{"member": extension}]


def _value_extension(record: LogRecord, value: bytes, first: MediaItem | None) -> str:
    if picture_type(value):
        return _extension(value)
    content_type = record.header("content-type") or b""
    if content_type.startswith(ARROW_TYPE.encode()):
        return "arrow"
    if first is None:
        return "bin"  # a rejected record: nothing that a reader would stumble over
    if b"json" in content_type:
        return "value.json"
    return "bin" if first.text is None else "value.txt"


def _extension(picture: bytes) -> str:
    return _EXTENSIONS.get(picture_type(picture), "bin")


def _left_out(piece: dict[str, Any], members: dict[str, bytes], kept: Sequence[str]) -> dict[str, Any]:
    name = piece.get("member") or piece.get("base64_of")
    if name is None or name in kept:
        return piece
    data = members[name]
    return {"left_out": name, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _for_people(items: Items, first: MediaItem | None, collection: CollectionRecord) -> dict[str, Any]:
    """Fields that training code and people read; the record is rebuilt without them."""
    told: dict[str, Any] = {"items": len(items)}
    if len(items) == 1:
        told["id"] = items[0].id
    if len(items) == 1 and isinstance(items[0], RejectedItem):
        told["rejected"] = items[0].reason
    if first is not None:
        told["event_time_us"] = first.event_time_us
        told["attributes"] = typed.to_json(first.attributes, collection.attributes)
        told["acl"] = first.acl
    return told


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def from_tar(data: bytes, topic: str, where: str) -> LogRecord | None:
    """The record whose members are these bytes of a tar; their sha256 was compared before.

    Returns
    -------
    LogRecord or None
        None where the archive left media out (``archive: off``), so that the value is not whole.

    Raises
    ------
    CorruptError
        Not the members of one record.
    """
    try:
        members = _members(data)
        told = canonical_json.load(members[DESCRIPTION])
        if told["format"] != FORMAT_VERSION:
            raise CorruptError(f"{where}: format {told['format']!r}", hint="upgrade headwater on this machine", code="unknown_format")
        if told["value"] is not None and any("left_out" in piece for piece in told["value"]):
            return None
        return LogRecord(
            topic=topic,
            partition=told["partition"],
            offset=told["offset"],
            timestamp_ms=told["timestamp_ms"],
            key=None if told["key"] is None else base64.b64decode(told["key"], validate=True),
            value=None if told["value"] is None else b"".join(_piece(piece, members) for piece in told["value"]),
            headers=tuple((name, None if value is None else base64.b64decode(value, validate=True)) for name, value in told["headers"]),
            unreadable=Unreadable(**told["unreadable"]) if "unreadable" in told else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, tarfile.TarError) as error:
        raise CorruptError(f"{where}: the archived record cannot be read: {error!r}"[:300]) from None


def media_from_tar(data: bytes, media_sha256: bytes, where: str) -> bytes | None:
    """The media that lies in these bytes of a tar, also where the record itself only names it; None where no member has that sha256.

    Raises
    ------
    CorruptError
        Not the members of one record.
    """
    try:
        members = _members(data)
    except (ValueError, tarfile.TarError) as error:
        raise CorruptError(f"{where}: the archived record cannot be read: {error!r}"[:300]) from None
    return next((found for found in members.values() if hashlib.sha256(found).digest() == media_sha256), None)


def _members(data: bytes) -> dict[str, bytes]:
    """Members by extension."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                raise ValueError(f"{member.name[:80]!r} is no file")
            found[member.name.partition(".")[2]] = file.read()
    return found


def _piece(piece: dict[str, Any], members: dict[str, bytes]) -> bytes:
    if "member" in piece:
        return members[piece["member"]]
    if "base64_of" in piece:
        return base64.b64encode(members[piece["base64_of"]])
    return base64.b64decode(piece["base64"], validate=True)
