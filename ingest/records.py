"""The forms of a media record, from the producer's side (docs/formats/media_record.md).

    plain                `plain_record`: key = id, value = media bytes, `hw_*` headers
    CloudEvents binary   `cloudevent_record`: the same with `ce_*` headers
    Arrow rows           `rows_record`: many items with the producer's own vectors
    null value           `delete_record`
    patch                `patch_record`: attributes change, the media stay

Takes: an id, bytes or vectors, and what is known about them. Gives: key, value and headers, which `contracts.media_record` reads back.
Owns: nothing. Never: sends, or decodes a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts import canonical_json
from contracts.errors import SettingsError
from contracts.log import Headers
from contracts.media_record import ARROW_TYPE, check_id


@dataclass(frozen=True, slots=True)
class OutgoingRecord:
    """A record that is ready to send: `key` decides the partition, a `value` of None deletes."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of key, value and headers, as `contracts.log.LogRecord.size_bytes` counts them."""
        return len(self.key or b"") + len(self.value or b"") + sum(len(name) + len(value) for name, value in self.headers)


@dataclass(frozen=True, slots=True)
class Annotations:
    """What a producer says about an item beside its media.

    Parameters
    ----------
    caption : str, optional
        Text that is indexed with the picture.
    attributes : Mapping, optional
        JSON object; declared names must have the collection's types.
    acl : Sequence of str, optional
        Who may see the item.
    time : datetime or str, optional
        When it happened; a datetime needs a zone, a string is RFC 3339. The log's timestamp where there is none.
    """

    caption: str | None = None
    attributes: Mapping[str, Any] | None = None
    acl: Sequence[str] | None = None
    time: datetime | str | None = None


@dataclass(frozen=True, slots=True)
class RowColumns:
    """Columns of an Arrow record beside the vectors; each has n entries, any of them None."""

    texts: Sequence[str | None] | None = None
    attributes: Sequence[Mapping[str, Any] | None] | None = None
    acls: Sequence[Sequence[str] | None] | None = None
    times: Sequence[datetime | None] | None = None

    def pick(self, rows: Sequence[int]) -> RowColumns:
        """The same columns for some of the rows."""

        def picked(column: Sequence[Any] | None) -> list[Any] | None:
            return None if column is None else [column[row] for row in rows]

        return RowColumns(picked(self.texts), picked(self.attributes), picked(self.acls), picked(self.times))


def rfc3339(value: datetime | str) -> str:
    """RFC 3339 text of a time; SettingsError for a datetime without a zone."""
    if isinstance(value, str):
        return value
    if value.tzinfo is None:
        raise SettingsError("a time without a zone was given", hint="pass datetime(..., tzinfo=UTC)", code="invalid_time")
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _annotation_headers(annotations: Annotations, prefix: str, time_name: str) -> list[tuple[str, bytes]]:
    headers: list[tuple[str, bytes]] = []
    if annotations.caption is not None:
        headers.append((f"{prefix}caption", annotations.caption.encode("utf-8")))
    if annotations.attributes is not None:
        headers.append((f"{prefix}attributes", canonical_json.dump(dict(annotations.attributes))))
    if annotations.acl is not None:
        headers.append((f"{prefix}acl", canonical_json.dump(list(annotations.acl))))
    if annotations.time is not None:
        headers.append((time_name, rfc3339(annotations.time).encode()))
    return headers


def plain_record(item_id: str, data: bytes, content_type: str, annotations: Annotations | None = None) -> OutgoingRecord:
    """Plain form: key = id, value = media bytes.

    Raises
    ------
    RecordError
        ``bad_id``: the id is empty, longer than 512 bytes, or not UTF-8.
    """
    headers = [("content-type", content_type.encode("ascii")), *_annotation_headers(annotations or Annotations(), "hw_", "hw_time")]
    return OutgoingRecord(check_id(item_id).encode("utf-8"), data, tuple(headers))


def cloudevent_record(
    item_id: str, data: bytes, content_type: str, annotations: Annotations | None = None, *, source: str = "headwater", kind: str = "headwater.media"
) -> OutgoingRecord:
    """CloudEvents in Kafka's binary content mode (CloudEvents Kafka protocol binding 1.0, section 3.2): `ce_*` headers, key = id.

    Raises
    ------
    RecordError
        ``bad_id``: the id is empty, longer than 512 bytes, or not UTF-8.
    """
    key = check_id(item_id).encode("utf-8")
    envelope = [("ce_specversion", b"1.0"), ("ce_id", key), ("ce_source", source.encode("utf-8")), ("ce_type", kind.encode("utf-8"))]
    headers = [*envelope, ("content-type", content_type.encode("ascii")), *_annotation_headers(annotations or Annotations(), "ce_hw", "ce_time")]
    return OutgoingRecord(key, data, tuple(headers))


def delete_record(item_id: str) -> OutgoingRecord:
    """A null value: the item is deleted."""
    return OutgoingRecord(check_id(item_id).encode("utf-8"), None)


def patch_record(item_id: str, attributes: Mapping[str, Any], acl: Sequence[str] | None = None) -> OutgoingRecord:
    """A patch: changes attributes and leaves the item's media, text and vectors as they are.

    Parameters
    ----------
    item_id : str
        Id.
    attributes : Mapping
        RFC 7396 merge patch of the attributes: None removes one, objects are merged, everything else replaces.
    acl : Sequence of str, optional
        Who may see the item from now on; unchanged where it is None.

    Raises
    ------
    RecordError
        ``bad_id``: the id is empty, longer than 512 bytes, or not UTF-8.
    """
    headers = [("hw_op", b"patch"), ("content-type", b"application/merge-patch+json")]
    headers += [] if acl is None else [("hw_acl", canonical_json.dump(list(acl)))]
    return OutgoingRecord(check_id(item_id).encode("utf-8"), canonical_json.dump(dict(attributes)), tuple(headers))


def rows_record(ids: Sequence[str], vectors: Mapping[str, NDArray[np.floating[Any]]], columns: RowColumns | None = None) -> OutgoingRecord:
    """Arrow form: one record, one row per item, with the producer's own vectors.

    Parameters
    ----------
    ids : Sequence of str
        n ids.
    vectors : Mapping of str to NDArray
        Per vector field a matrix, shape (n, d), float16 or float32; its rows are copied as they are.
    columns : RowColumns, optional
        Texts, attributes, acls and times, n entries each.

    Raises
    ------
    RecordError
        ``bad_id``: an id cannot be stored.
    """
    columns = columns or RowColumns()
    names, arrays = ["id"], [pa.array([check_id(item_id) for item_id in ids], pa.utf8())]
    for name, matrix in vectors.items():
        flat = matrix if matrix.dtype in (np.float16, np.float32) else matrix.astype(np.float32)
        names.append(name)
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(flat).reshape(-1)), matrix.shape[1]))
    optional: list[tuple[str, Sequence[Any] | None, pa.DataType]] = [
        ("text", columns.texts, pa.utf8()),
        ("attributes", _json_column(columns.attributes), pa.utf8()),
        ("acl", columns.acls, pa.list_(pa.utf8())),
        ("time", columns.times, pa.timestamp("us", tz="UTC")),
    ]
    for name, values, kind in optional:
        if values is not None:
            names.append(name)
            arrays.append(pa.array(values, kind))
    batch = pa.RecordBatch.from_arrays(arrays, names=names)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return OutgoingRecord(None, bytes(sink.getvalue()), (("content-type", ARROW_TYPE.encode()),))


def _json_column(values: Sequence[Mapping[str, Any] | None] | None) -> list[str | None] | None:
    if values is None:
        return None
    return [None if value is None else canonical_json.dump(dict(value)).decode("utf-8") for value in values]
