"""A tar without the records of some ids (privacy): what stays is copied byte by byte.

Takes: a tar's bytes and index rows, ids to leave out. Gives: a new tar. Owns: what happens to a record that many ids share.
Never: parses a record that stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from contracts.archive_record import from_tar
from contracts.archive_tar import FinishedTar, IndexRow, TarWriter, ids_of
from contracts.collection import CollectionRecord
from contracts.errors import CorruptError
from contracts.item import id_hash
from contracts.log import LogRecord
from contracts.media_record import ARROW_TYPE, RecordLimits, read_media_record

Purges = Mapping[bytes, int]
"""Id hash -> media offset below which the id's records go."""


@dataclass(frozen=True, slots=True)
class RewrittenTar:
    """The new tar; how many records went, and of how many only the purged rows went."""

    tar: FinishedTar
    removed: int
    redacted: int


def is_hit(row: IndexRow, purges: Purges) -> bool:
    """True when a record holds an id that is purged at its offset."""
    return row.start is not None and any(row.offset < purges.get(found, 0) for found in row.ids)


def rewrite_tar(data: bytes, rows: Sequence[IndexRow], purges: Purges, collection: CollectionRecord, limits: RecordLimits) -> RewrittenTar:
    """Copy a tar without what is purged.

    Raises
    ------
    CorruptError
        A record's bytes differ from the sha256 of the index.
    """
    writer = TarWriter(collection, limits)
    removed = redacted = 0
    for row in rows:
        if row.start is None:
            writer.skip(row.offset)
            continue
        found = data[row.start : row.start + row.size_bytes]
        if hashlib.sha256(found).digest() != row.sha256:
            raise CorruptError(f"a tar's record at offset {row.offset} differs from the index's sha256", hint="restore the object from a backup")
        if not is_hit(row, purges):
            writer.copy(row, found)
            continue
        rest = _without(row, found, purges, collection, limits)
        if rest is None:
            writer.skip(row.offset)
            removed += 1
        else:
            writer.add(rest)
            redacted += 1
    return RewrittenTar(writer.finish(), removed, redacted)


def _without(row: IndexRow, data: bytes, purges: Purges, collection: CollectionRecord, limits: RecordLimits) -> LogRecord | None:
    """The record with the purged rows emptied, or None where nothing of it is to stay."""
    if all(row.offset < purges.get(found, 0) for found in row.ids):
        return None
    record = from_tar(data, collection.source_topic, f"offset {row.offset}")
    if record is None or record.value is None or not (record.header("content-type") or b"").startswith(ARROW_TYPE.encode()):
        return None  # one id in one envelope, however often it is named
    items = read_media_record(record, collection, limits)
    gone = {item.item for item in items if item.id and row.offset < purges.get(id_hash(item.id), 0)}
    emptied = empty_rows(record.value, gone)
    if emptied is None or any(item.id and item.item in gone and item.id.encode("utf-8") in emptied for item in items):
        return None  # the id stands in the schema too, or the rows cannot be told apart
    rest = replace(record, value=emptied)
    left = ids_of(rest, read_media_record(rest, collection, limits), collection)
    return None if any(row.offset < purges.get(found, 0) for found in left) else rest


def empty_rows(value: bytes, gone: set[int]) -> bytes | None:
    """An Arrow stream whose rows `gone` are null in every column: the others keep their numbers, which are their versions.

    None where the stream cannot be read.
    """
    try:
        table = pa.ipc.open_stream(value).read_all()
        plain = pa.table({name: _undictionaried(table.column(name)) for name in table.schema.names})
        taken = plain.take(pa.array([None if row in gone else row for row in range(plain.num_rows)], pa.int64()))
    except (pa.ArrowException, OSError, ValueError):
        return None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, taken.schema) as writer:
        writer.write_table(taken.combine_chunks())
    return bytes(sink.getvalue())


def _undictionaried(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary would keep the values of rows that are gone."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
